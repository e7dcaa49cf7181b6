"""A batch in parts makes the step of the whole batch."""

import json
import re

import chex
import jax
import numpy as np
import pytest

from cwgnc_jax import models
from cwgnc_train.commands import run as main
from cwgnc_train.config import OptimizerConfig, RegularizationConfig
from cwgnc_train.data import make_packing, token_table
from cwgnc_train.engine import Layout, compile_train_steps, make_mesh
from cwgnc_train.engine.optimizer import make_hparams
from cwgnc_train.engine.step import init_run
from tests.train.conftest import MODEL, STEP_CONFIG, tokens_of

LAYOUT = Layout(make_mesh(jax.devices()[:1]))
# The last step of each epoch has four examples.
ARRAYS, BATCH, STEPS = tokens_of(MODEL, 40), 12, 8


def finish(accumulate, padding, dropout=0.0):
    """Parameters, losses and norms after two epochs."""
    hparams = make_hparams(
        # At a tiny eps Adam makes whole steps of the key biases' rounding errors.
        OptimizerConfig(learning_rate=1e-2, eps=1e-3, weight_decay=0.1),
        RegularizationConfig(dropout=dropout),
        STEPS,
    )
    params = models.init_params(MODEL, jax.random.key(0))
    run = init_run(STEP_CONFIG, params, jax.random.key(1), hparams)
    run = jax.tree.map(lambda leaf: leaf[None], run)
    how = make_packing(ARRAYS, padding, BATCH, 8, parts=accumulate)
    shape = how.shape([1], range(STEPS))
    batches = [how.batch_indices(1, step, shape) for step in range(STEPS)]
    run, metrics = compile_train_steps(STEP_CONFIG, LAYOUT, shape)(
        run,
        LAYOUT.place_table(token_table(ARRAYS)),
        LAYOUT.place_indices([batches]),
    )
    return jax.device_get((run.params, metrics.loss, metrics.norms))


@pytest.mark.slow
@pytest.mark.parametrize(
    "padding", ["packed", pytest.param("longest", marks=pytest.mark.slow)]
)
def test_parts_of_unequal_weight_make_the_run_of_whole_batches(padding):
    # Of the four examples of a last batch two parts have none.
    expected, found = finish(1, padding), finish(6, padding)
    chex.assert_trees_all_close(found, expected, rtol=1e-5, atol=2e-6)
    start = models.init_params(MODEL, jax.random.key(0))
    moved = jax.tree.map(lambda x, y: np.abs(x[0] - y).max(), expected[0], start)
    assert max(jax.tree.leaves(moved)) > 1e-2


@pytest.mark.slow
def test_every_part_has_dropout_of_its_own():
    # Four parts of the same three examples would have the same loss.
    one, parts = finish(1, "packed", 0.5)[1], finish(4, "packed", 0.5)[1]
    assert np.abs(one - parts).min() > 1e-6


def test_the_examples_of_a_part_are_in_its_own_rows():
    how = make_packing(ARRAYS, "packed", BATCH, 8, parts=4)
    last = how.batch_indices(1, 3, how.shape([1], [3]))
    assert last.examples.shape == (4, 3)
    np.testing.assert_array_equal(last.weights.sum(axis=1), 1)
    seen = [
        example
        for step in range(4)
        for batch in [how.batch_indices(1, step, how.shape([1], [step]))]
        for example in batch.examples[batch.weights > 0]
    ]
    assert sorted(seen) == list(range(40))


@pytest.mark.slow
def test_parts_need_the_memory_of_one():
    def temporaries(accumulate):
        arrays = tokens_of(MODEL, 512)
        params = models.init_params(MODEL, jax.random.key(0))
        hparams = make_hparams(OptimizerConfig(), RegularizationConfig(), 1)
        run = init_run(STEP_CONFIG, params, jax.random.key(1), hparams)
        run = jax.tree.map(lambda leaf: leaf[None], run)
        how = make_packing(arrays, "longest", 512, 8, parts=accumulate)
        shape = how.shape([1], [0])
        steps = compile_train_steps(STEP_CONFIG, LAYOUT, shape)
        indices = LAYOUT.place_indices([[how.batch_indices(1, 0, shape)]])
        program = steps.lower(run, token_table(arrays), indices).compile()
        return program.memory_analysis().temp_size_in_bytes

    assert temporaries(16) < temporaries(1) / 4


@pytest.mark.slow
def test_finetune_in_parts_records_the_losses_of_whole_batches(
    tiny_model, tiny_data, tmp_path
):
    def records(accumulate):
        workdir = tmp_path / f"run{accumulate}"
        flags = {
            "model": tiny_model,
            "train-file": tiny_data[0],
            "validation-file": tiny_data[1],
            "text-columns": "text",
            "preset": "code",
            "epochs": 1,
            "learning-rate": 3e-3,
            "eps": 1e-3,
            "dropout": 0.0,
            "max-length": 16,
            "accumulate": accumulate,
            "record-every": 1,
            "workdir": workdir,
        }
        pairs = [(f"--{name}", str(value)) for name, value in flags.items()]
        assert main(["finetune", *(part for pair in pairs for part in pair)]) == 0
        lines = (workdir / "records.jsonl").read_text().splitlines()
        records = map(json.loads, lines)
        return [line for line in records if line["kind"] == "metrics"]

    for one, parts in zip(records(1), records(8), strict=True):
        for name in ("loss", "grad_norm", "clip_rate_elements"):
            assert parts[name] == pytest.approx(one[name], rel=1e-4), name


@pytest.mark.parametrize("accumulate", [3, 32])
def test_parts_that_do_not_divide_the_batch_are_refused(accumulate, tmp_path, capsys):
    flags = ["--model", "none", "--task", "rte", "--workdir", str(tmp_path / "run")]
    assert main(["finetune", *flags, "--accumulate", str(accumulate)]) == 2
    message = f"--accumulate must divide --batch-size 16, got {accumulate}"
    assert re.search(message, capsys.readouterr().err)
