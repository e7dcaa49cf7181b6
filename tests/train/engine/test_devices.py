"""One run over several devices against the same run on one."""

import dataclasses
import functools
import re
from pathlib import Path

import chex
import jax
import numpy as np
import pytest

from cwgnc_jax import models
from cwgnc_train.config import (
    CheckpointsConfig,
    DevicesConfig,
    OptimizerConfig,
    RegularizationConfig,
    UserError,
)
from cwgnc_train.data import BatchIndices, make_packing, token_table
from cwgnc_train.engine import (
    Checkpoints,
    Layout,
    choose_mesh,
    compile_train_steps,
    find_checkpoint,
    hosts,
    make_hparams,
    make_mesh,
    start_runs,
    steps_of_program,
)
from cwgnc_train.engine.checkpoints import restore
from cwgnc_train.engine.evaluation import EvaluationBatches
from cwgnc_train.engine.pmap import pmap_train_steps
from cwgnc_train.engine.programs import compile_eval_step
from tests.train.conftest import MODEL, STEP_CONFIG, tokens_of

# Large enough that the kernels are split, the largest axis of each differing.
SIZES = {"vocab_size": 72, "hidden_size": 64, "intermediate_size": 128}
MODEL = dataclasses.replace(MODEL, **SIZES)
STEP_CONFIG = dataclasses.replace(STEP_CONFIG, model=MODEL)
# Batches of 13, 13 and 5 examples, of which no number of devices gets as many each.
ARRAYS, BATCH, STEPS = tokens_of(MODEL, 31), 13, 20
LAYOUTS = {
    "one": (1, "jit", False),
    "jit on 2": (2, "jit", False),
    "jit on 4": (4, "jit", False),
    "jit on 8": (8, "jit", False),
    "pmap on 8": (8, "pmap", False),
    "split over 2": (2, "jit", True),
    "split over 4": (4, "jit", True),
    "split over 8": (8, "jit", True),
}
QUICK = ("jit on 8", "pmap on 8", "split over 8")


def layout_of(name):
    count, strategy, split = LAYOUTS[name]
    mesh = make_mesh(jax.devices()[:count], count)
    return Layout(mesh, strategy=strategy, shard_params=split)


ONE = layout_of("one")


def slow_unless_quick(*names):
    return [
        name if name in QUICK else pytest.param(name, marks=pytest.mark.slow)
        for name in names
    ]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    directory = tmp_path_factory.mktemp("model")
    params = models.init_params(MODEL, jax.random.key(0))
    models.save_pretrained(directory, MODEL, params)
    return models.load_pretrained(
        directory, num_labels=2, key=jax.random.key(0), new_head=True
    )


# At a tiny eps Adam makes whole steps of the key biases' rounding errors.
OPTIMIZER = OptimizerConfig(
    learning_rate=1e-3, eps=1e-3, weight_decay=0.1, warmup_ratio=0.1
)


def start(weights, layout, config=STEP_CONFIG, optimizer=OPTIMIZER, **regularization):
    regularization = RegularizationConfig(**({"dropout": 0.0} | regularization))
    hparams = make_hparams(optimizer, regularization, STEPS)
    return start_runs(config, weights, [(1, 1)], [hparams], layout)


@functools.cache
def program_of(layout, batch=BATCH, accumulate=1, config=STEP_CONFIG):
    """A program for any steps, and the packing and shape of its batches."""
    pmap, devices = layout.strategy == "pmap", layout.data_devices
    packing = make_packing(
        ARRAYS,
        "packed",
        batch,
        8,
        multiple=1 if pmap else devices,
        parts=accumulate * (devices if pmap else 1),
    )
    # The one that holds any batch, so that there is one program.
    shape = packing.shapes[-1]
    compiled = pmap_train_steps if pmap else compile_train_steps
    return compiled(config, layout, shape), packing, shape


@functools.cache
def table_of(layout):
    return layout.place_table(token_table(ARRAYS))


def take(run, layout, steps, **kwargs):
    """Takes some steps in one program."""
    program, packing, shape = program_of(layout, **kwargs)
    indices = [packing.batch_indices(1, step, shape) for step in steps]
    return program(run, table_of(layout), layout.place_indices([indices]))


def finish(weights, layout, started=None, **kwargs):
    run, reported = started or start(weights, layout), []
    for step in range(STEPS):
        run, metrics = take(run, layout, [step], **kwargs)
        reported.append((metrics.loss, metrics.norms))
    return hosts.on_host(run.params, 0), *jax.device_get(reported)


@pytest.fixture(scope="module")
def alone(weights):
    return finish(weights, ONE)


@pytest.mark.parametrize("name", slow_unless_quick(*list(LAYOUTS)[1:]))
def test_devices_that_share_a_run_make_the_run_of_one(name, weights, alone):
    found = finish(weights, layout_of(name))
    chex.assert_trees_all_close(found, alone, rtol=1e-4, atol=3e-6)
    moved = jax.tree.map(lambda x, y: np.abs(x - y).max(), alone[0], weights.params)
    assert max(jax.tree.leaves(moved)) > 1e-2


@pytest.mark.slow
@pytest.mark.parametrize("name", ["jit on 8", "split over 8", "pmap on 8"])
@pytest.mark.parametrize(("batch", "accumulate"), [(3, 1), (12, 3), (12, 6)])
def test_parts_and_devices_without_examples_change_nothing(
    name, batch, accumulate, weights
):
    expected = finish(weights, ONE, batch=batch)
    found = finish(weights, layout_of(name), batch=batch, accumulate=accumulate)
    chex.assert_trees_all_close(found, expected, rtol=1e-4, atol=3e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["jit on 4", "split over 4"])
def test_decays_mixout_and_skipped_steps_are_those_of_one_device(name, weights):
    config = dataclasses.replace(
        STEP_CONFIG,
        **{"mixout": True, "prior_decay": True, "layer_decay": True},
        **{"nonfinite": "skip_step", "components": "by_layer", "remat": True},
    )
    optimizer = dataclasses.replace(OPTIMIZER, prior_decay=0.1, layer_decay=0.9)

    def made(layout):
        started = start(weights, layout, config, optimizer, mixout=0.3)
        return finish(weights, layout, started=started, config=config)

    chex.assert_trees_all_close(made(layout_of(name)), made(ONE), rtol=1e-4, atol=3e-6)


def collectives(layout, run):
    """By kind the shapes that each one in the compiled step yields."""
    program, packing, shape = program_of(layout)
    indices = layout.place_indices([[packing.batch_indices(1, 0, shape)]])
    text = program.lower(run, table_of(layout), indices).compile().as_text()
    found = {}
    for line in text.splitlines():
        if match := re.search(r" = (.*?) ([a-z-]+?)(?:-start)?\(", line):
            shapes = [
                tuple(map(int, shape.split(","))) if shape else ()
                for shape in re.findall(r"\w\d+\[([\d,]*)\]", match[1])
            ]
            found.setdefault(match[2], []).append(shapes)
    kinds = "all-reduce all-gather reduce-scatter all-to-all collective-permute".split()
    return {kind: found[kind] for kind in kinds if kind in found}


def large(of_kind):
    """The shapes of what is larger than a vector for each example of a batch."""
    least = MODEL.hidden_size * 16
    shapes = [shape for shapes in of_kind for shape in shapes]
    return sorted(shape for shape in shapes if np.prod(shape) > least)


def without_runs(leaves):
    return sorted(leaf.shape[1:] for leaf in leaves)


def test_devices_sum_their_gradients_once_and_exchange_no_activations(weights):
    layout = layout_of("jit on 8")
    run = start(weights, layout)
    found = collectives(layout, run)
    assert found.keys() == {"all-reduce", "all-gather"}
    kernels = [x for x in jax.tree.leaves(run.params) if x.size > 16 * 64]
    assert large(found["all-reduce"]) == without_runs(kernels)
    assert large(found["all-gather"]) == []


def test_split_parameters_are_gathered_once_and_no_norm_is_summed_alone(weights):
    layout = layout_of("split over 8")
    run = start(weights, layout)
    found = collectives(layout, run)
    split = [x for x in jax.tree.leaves(run.params) if not x.is_fully_replicated]
    assert len(split) == 8
    # CPUs have no reduce-scatter: each takes its part of the sum.
    assert found.keys() == {"all-reduce", "all-gather"}
    gathered = [shape[1:] for shape in large(found["all-gather"])]
    assert sorted(gathered) == without_runs(split)
    assert large(found["all-reduce"]) == without_runs(split)
    # The norms of components travel with gradients.
    alone = [shapes for shapes in found["all-reduce"] if not large([shapes])]
    assert len(alone) <= 2


def part_on_first_device(leaf):
    [shard] = [x for x in leaf.addressable_shards if x.device == jax.devices()[0]]
    return shard.data.size / leaf.size


def test_split_parameters_and_moments_lie_split_before_and_after_a_step(weights):
    layout = layout_of("split over 8")
    before = start(weights, layout)
    parts = [part_on_first_device(x) for x in jax.tree.leaves(before)]
    after, _ = take(before, layout, [0])
    assert [part_on_first_device(x) for x in jax.tree.leaves(after)] == parts
    for tree in after.params, after.opt_state:
        leaves = jax.tree.leaves(tree)
        # What stays whole are biases, LayerNorm and small tables.
        assert {part_on_first_device(x) for x in leaves if x.size >= 4096} == {1 / 8}
        held = sum(x.size * part_on_first_device(x) for x in leaves)
        assert held < sum(x.size for x in leaves) / 5
    mu, nu = (after.opt_state[1].mu, after.opt_state[1].nu)
    for moments in mu, nu:
        same = jax.tree.map(
            lambda m, p: m.sharding == p.sharding, moments, after.params
        )
        assert all(jax.tree.leaves(same))
    layer = after.params["bert"]["encoder"]["layer"]["0"]
    kernel = layer["intermediate"]["dense"]["kernel"]
    assert kernel.addressable_shards[0].data.shape == (1, 64, 16)


@pytest.mark.parametrize("name", ["jit on 8", "split over 8", "pmap on 8"])
def test_a_step_writes_the_run_over_the_one_before(name, weights):
    layout = layout_of(name)
    before = start(weights, layout)
    take(before, layout, [0])
    leaves = jax.tree.leaves((before.params, before.opt_state))
    assert all(leaf.is_deleted() for leaf in leaves)


@pytest.mark.parametrize("name", ["split over 4", "jit on 2", "one"])
def test_a_checkpoint_of_split_parameters_goes_on_on_other_devices(
    name, weights, tmp_path
):
    run = start(weights, layout_of("split over 8"))
    state = jax.tree.map(lambda x: x + 2, (run.params, run.opt_state, run.step))
    run = run._replace(params=state[0], opt_state=state[1], step=state[2])
    before = jax.device_get((run.params, run.opt_state))
    with Checkpoints(tmp_path, CheckpointsConfig()) as checkpoints:
        checkpoints.save(2, run, {"step": 2})
        checkpoints.wait()
    found = find_checkpoint(tmp_path, print)
    assert found is not None
    other = layout_of(name)
    restored = restore(found[0], start(weights, other))
    after = jax.device_get((restored.params, restored.opt_state))
    chex.assert_trees_all_equal(after, before)
    kernel = restored.params["bert"]["pooler"]["dense"]["kernel"]
    assert len(kernel.sharding.device_set) == other.data_devices
    assert restored.step[0] == 2


@pytest.mark.parametrize("name", ["jit on 8", "split over 8", "pmap on 8"])
def test_logits_of_any_number_of_examples_are_those_of_one_device(name, weights):
    sets = {"validation": tokens_of(MODEL, 21, seed=3)}

    def logits(layout):
        batches = EvaluationBatches(sets, 13, layout)
        program = compile_eval_step(STEP_CONFIG, layout, batches.shape)
        params = start(weights, layout).params
        return batches.logits(program, params)["validation"][0]

    expected = logits(ONE)
    np.testing.assert_allclose(logits(layout_of(name)), expected, atol=1e-5)
    assert np.ptp(expected, axis=0).min() > 1e-2


def losses_of_slots(weights, layout, dropout):
    """The same example in every row, of which each time another one counts."""
    program, packing, shape = program_of(layout)
    filled = packing.batch_indices(1, 0, shape)
    slots = filled.weights.size
    # Each device of pmap has rows of its own.
    first = np.arange(slots, dtype=np.int32) * 8 % (shape[0] * 8)
    losses = []
    for slot in (0, 1, slots - 1):
        chosen = (np.arange(slots) == slot).astype(np.float32)
        leaves = np.zeros(slots, np.int32), first, chosen
        indices = BatchIndices(*[x.reshape(filled.weights.shape) for x in leaves])
        run = start(weights, layout, dropout=dropout)
        placed = layout.place_indices([[indices]])
        losses.append(float(program(run, table_of(layout), placed)[1].loss[0, 0]))
    return losses


@pytest.mark.parametrize("name", ["one", "jit on 8", "pmap on 8"])
def test_each_row_and_each_device_has_dropout_of_its_own(name, weights):
    layout = layout_of(name)
    assert np.ptp(losses_of_slots(weights, layout, dropout=0.0)) < 1e-6
    first, second, last = losses_of_slots(weights, layout, dropout=0.5)
    assert min(abs(first - second), abs(first - last), abs(second - last)) > 1e-5


def test_devices_draw_the_dropout_that_one_would(weights):
    layout = layout_of("jit on 8")
    program, packing, shape = program_of(layout)
    indices = [packing.batch_indices(1, 0, shape)]

    def losses(layout, program):
        inputs = table_of(layout), layout.place_indices([indices])
        return program(start(weights, layout, dropout=0.5), *inputs)[1].loss

    expected = losses(ONE, compile_train_steps(STEP_CONFIG, ONE, shape))
    np.testing.assert_allclose(losses(layout, program), expected, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["jit on 8", "split over 8", "pmap on 8"])
def test_steps_in_one_program_are_those_in_several(name, weights):
    layout = layout_of(name)
    together, metrics = take(start(weights, layout), layout, range(4))
    run, losses = start(weights, layout), []
    for step in range(4):
        run, one = take(run, layout, [step])
        losses.append(one.loss[:, 0])
    found, expected = jax.device_get(
        ((together.params, metrics.loss), (run.params, np.stack(losses, 1)))
    )
    chex.assert_trees_all_close(found, expected, rtol=1e-5, atol=1e-6)


def test_devices_that_cannot_be_shared_evenly_are_refused():
    with pytest.raises(UserError, match="--data-devices must divide the 8 devices"):
        choose_mesh(DevicesConfig(data_devices=3), runs=2, examples=8)
    with pytest.raises(UserError, match="--devices 9: there are 8"):
        choose_mesh(DevicesConfig(devices=9), runs=2, examples=8)


@pytest.mark.parametrize(
    ("config", "runs", "grid"),
    [
        # The devices of a CPU share its cores.
        (DevicesConfig(), 1, (1, 1)),
        (DevicesConfig(devices=4), 1, (1, 4)),
        (DevicesConfig(), 8, (8, 1)),
        (DevicesConfig(), 25, (8, 1)),
        (DevicesConfig(), 2, (2, 4)),
        (DevicesConfig(), 3, (2, 4)),
        (DevicesConfig(data_devices=2), 25, (4, 2)),
        (DevicesConfig(devices=4, strategy="pmap"), 25, (1, 4)),
    ],
    ids=str,
)
def test_devices_go_to_runs_first_and_to_batches_where_runs_leave_them(
    config, runs, grid
):
    mesh = choose_mesh(config, runs, examples=16)
    assert (mesh.shape["run"], mesh.shape["data"]) == grid


@pytest.mark.parametrize("platform", ["cpu", "gpu", "tpu"])
def test_steps_of_a_program_follow_the_platform_of_the_layout(platform):
    taken, alike = steps_of_program(platform, 20, 100)
    assert (len(taken), len(alike)) == ((1, 1) if platform == "cpu" else (10, 10))


def test_nothing_asks_the_host_for_what_the_mesh_decides():
    root = Path(__file__).parents[3]
    sources = [*(root / "train").rglob("*.py"), *(root / "cwgnc_jax").rglob("*.py")]
    assert len(sources) > 100
    found = [path for path in sources if "default_backend" in path.read_text()]
    assert found == []
