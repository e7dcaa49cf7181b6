"""Properties of the programs that GPUs and TPUs get, which no CPU's program shows.

Each program is compiled by the accelerator's own compiler, in a process of its own; no
device is needed. Two layers of BERT-base stand for all.
"""

import dataclasses
import functools
import json
import os
import subprocess
import sys
from typing import NamedTuple

import jax
import pytest

from benchmarks.compiled_rows import STEPS, Row
from cwgnc_jax import models
from cwgnc_train.plan import Program, read_program

pytestmark = pytest.mark.compilers

MEGABYTE = 2**20
ONE = {"h100": Row("h100", layers=2), "v5e": Row("v5e", layers=2)}
DATA_PARALLEL = Row("h100:8", batch=64, data_devices=8, layers=2)
SPLIT = Row("h100:8", batch=64, data_devices=8, layers=2, shard_params=True)

of_each = pytest.mark.parametrize("on", ONE)


class Compiled(NamedTuple):
    """A program, and what the page says of it."""

    program: Program
    found: dict

    def per_step(self):
        """Yields what each step carries out, with all that a fusion computes inside."""
        for computation, instruction, times in self.program.steps():
            if times >= STEPS:
                inside = self.program.computations.get(instruction.called or "", {})
                yield computation, instruction, list(inside.values()) or [instruction]

    def collectives(self, kind, least=0):
        """The bytes of each of a kind in a step."""
        return [
            size
            for name, size, times in self.found["collectives"]
            for _ in range(round(times))
            if name == kind and size >= least
        ]


@pytest.fixture(scope="session")
def compiled(tmp_path_factory):
    """Compiles rows of the page, each once."""

    @functools.cache
    def compile_row(row):
        text = tmp_path_factory.mktemp("program") / "text"
        command = [sys.executable, "-m", "benchmarks.compiled", "--row", row.key]
        # As users compile, not in the haste of other tests.
        hasty = "JAX_DISABLE_MOST_OPTIMIZATIONS", "XLA_FLAGS"
        env = {name: value for name, value in os.environ.items() if name not in hasty}
        done = subprocess.run(
            [*command, "--text", text], env=env, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout.splitlines()[-1])
        return Compiled(read_program(text.read_text()), found)

    return compile_row


@functools.cache
def parameters():
    """The sizes of all parameters of these two layers, by path."""
    config = ONE["h100"].config
    shapes = jax.eval_shape(lambda: models.init_params(config, jax.random.key(0)))
    leaves, _ = jax.tree.flatten_with_path(shapes)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf.size
        for path, leaf in leaves
    }


@of_each
def test_no_large_array_is_padded_to_more_than_four_times_its_size(compiled, on):
    assert 1 <= compiled(ONE[on]).found["padding"] <= 4


@of_each
def test_random_bits_are_a_twentieth_of_a_step_of_twelve_layers(compiled, on):
    two, one = (
        compiled(row).found for row in (ONE[on], dataclasses.replace(ONE[on], layers=1))
    )

    def of_twelve(of):
        return of(two) + 10 * (of(two) - of(one))

    bits = of_twelve(lambda found: found["parts"]["random bits"][0])
    assert 0 < bits <= 0.05 * of_twelve(lambda found: found["seconds"])


@of_each
def test_the_roots_of_all_components_are_taken_as_one_vector(compiled, on):
    of_kernels = [
        sizes
        for _, _, inside in compiled(ONE[on]).per_step()
        if (
            sizes := {
                each.results[0].elements
                for each in inside
                if each.opcode in ("sqrt", "rsqrt") and "component_" in each.scope
            }
        )
    ]
    # The compiler may take them twice, in fusion with what needs them.
    assert 1 <= len(of_kernels) <= 2
    assert set.union(*of_kernels) == {len(parameters())}


def test_norms_of_parameters_alike_share_kernels(compiled):
    _, kernels = compiled(ONE["h100"]).found["parts"]["norms"]
    assert kernels < 0.7 * len(parameters())


@of_each
def test_no_parameter_is_copied_and_each_is_cast_at_most_once(compiled, on):
    moves = {"copy", "convert", "bitcast", "transpose", "reshape", "parameter"}
    large = {size for size in parameters().values() if size > MEGABYTE / 4}
    cast = copied = 0
    for _, instruction, inside in compiled(ONE[on]).per_step():
        opcodes = {each.opcode for each in inside} - {"tuple"}
        if opcodes <= moves and opcodes & {"copy", "convert", "transpose"}:
            for array in instruction.results:
                if array.elements in large:
                    cast += array.bytes * (array.dtype == "bf16")
                    copied += array.bytes * (array.dtype == "f32")
    assert copied == 0
    assert cast <= 2 * sum(parameters().values())


@of_each
def test_the_state_is_updated_in_place(compiled, on):
    found = compiled(ONE[on]).found
    assert found["new"] < 0.001 * found["arguments"]


def test_devices_sum_their_gradients_in_one_exchange_and_no_dropout_in_any(compiled):
    made = compiled(DATA_PARALLEL)
    kinds = {kind for kind, _, _ in made.found["collectives"]}
    assert kinds <= {"all-reduce", "all-gather", "reduce-scatter"}
    [size] = made.collectives("all-reduce", MEGABYTE)
    # In bfloat16, the dtype of the products that make them. The table of words is not
    # among them: its tokens' gradients are exchanged instead, which are less.
    of_words = [n for path, n in parameters().items() if "word_embeddings" in path]
    assert size == pytest.approx(2 * (sum(parameters().values()) - sum(of_words)), 0.05)
    tokens = 4 * 64 * 128 * 768
    assert made.collectives("reduce-scatter", MEGABYTE) == [tokens]
    assert made.collectives("all-gather", MEGABYTE) == [tokens]


def test_split_parameters_are_summed_and_gathered_and_norms_travel_along(compiled):
    made = compiled(SPLIT)
    kinds = {kind for kind, _, _ in made.found["collectives"]}
    assert kinds <= {"all-reduce", "all-gather", "reduce-scatter"}
    # The tokens' gradients of the table of words, and all gradients of kernels.
    assert len(made.collectives("reduce-scatter", MEGABYTE)) == 2
    assert made.collectives("all-reduce", MEGABYTE) == []
    # One for each component would be 41 more.
    assert len(made.collectives("all-reduce")) <= 4


def test_runs_together_multiply_in_batches(compiled):
    alone, together = (
        compiled(Row("h100", "minilm", runs=runs, layers=2)).found for runs in (1, 4)
    )
    assert together["flops"] == pytest.approx(4 * alone["flops"])
    assert (
        together["parts"]["matrix products"][1] == alone["parts"]["matrix products"][1]
    )
    assert together["kernels"] < 1.2 * alone["kernels"]
