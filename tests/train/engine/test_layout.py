"""Many runs in one program against the same runs alone."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cwgnc_jax import models
from cwgnc_train.config import CheckpointsConfig, OptimizerConfig, RegularizationConfig
from cwgnc_train.data import BatchIndices, TokenTable
from cwgnc_train.engine import (
    Checkpoints,
    Layout,
    compile_train_steps,
    find_checkpoint,
    make_hparams,
    make_mesh,
    programs,
    start_runs,
)
from cwgnc_train.engine.checkpoints import restore
from cwgnc_train.engine.evaluation import EvaluationBatches
from cwgnc_train.engine.programs import compile_eval_step
from tests.train.conftest import MODEL, STEP_CONFIG, a_batch, tokens_of

HEAD = ("classifier/bias", "classifier/kernel")
STEPS = 3
# Eight runs that differ in every number there is.
OPTIMIZERS = [
    OptimizerConfig(
        learning_rate=(i + 1) * 1e-3,
        max_norm=[0.01, 0.1, 1.0, np.inf][i % 4],
        weight_decay=0.1 * (i % 3),
        warmup_ratio=0.25 * (i % 2),
        # At a tiny eps Adam makes whole steps of the key biases' rounding errors.
        eps=[1e-3, 1e-2][i % 2],
        bias_correction=i % 2 == 0,
    )
    for i in range(8)
]
DROPOUTS = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.1, 0.1]
REGULARIZATIONS = [RegularizationConfig(dropout=rate) for rate in DROPOUTS]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    directory = tmp_path_factory.mktemp("model")
    models.save_pretrained(
        directory, MODEL, models.init_params(MODEL, jax.random.key(0))
    )
    return models.load_pretrained(
        directory, num_labels=2, key=jax.random.key(0), new_head=True
    )


ROWS, LENGTH = 4, 8


def training_set():
    """Four examples for each step of each of the eight runs."""
    each = [a_batch(ROWS, [run, step]) for run in range(8) for step in range(STEPS)]
    batch = {name: np.concatenate([b[name] for b in each]) for name in each[0]}
    return TokenTable(
        batch["input_ids"],
        batch["token_type_ids"],
        batch["segment_ids"].sum(1, dtype=np.int32),
        batch["labels"],
    )


def indices_of(run, step):
    """Each example in a row of its own."""
    first = (run * STEPS + step) * ROWS
    return BatchIndices(
        np.arange(first, first + ROWS, dtype=np.int32),
        np.arange(ROWS, dtype=np.int32) * LENGTH,
        np.ones(ROWS, np.float32),
    )


def in_parts(indices, parts):
    """The same batch, of which each part has rows of its own."""
    each = ROWS // parts
    examples, _, weights = (leaf.reshape(parts, each) for leaf in indices)
    positions = np.tile(np.arange(each, dtype=np.int32) * LENGTH, (parts, 1))
    return BatchIndices(examples, positions, weights)


def layout_of(runs, group=1, devices=1, data_devices=1, **kwargs):
    mesh = make_mesh(jax.devices()[:devices], data_devices)
    return Layout(mesh, runs, group, **kwargs)


ONE = layout_of(1)


def start(checkpoint, which, layout, config=STEP_CONFIG, **changes):
    hparams = [make_hparams(OPTIMIZERS[i], REGULARIZATIONS[i], 10) for i in which]
    hparams = [
        h._replace(**changes.get(f"run{i}", {}))
        for i, h in zip(which, hparams, strict=True)
    ]
    seeds = [(i, 100 + i) for i in which]
    return start_runs(config, checkpoint, seeds, hparams, layout)


@functools.cache
def compiled(layout, rows=ROWS):
    return compile_train_steps(STEP_CONFIG, layout, (rows, LENGTH))


def finish(checkpoint, which, layout, parts=1, **changes):
    """The parameters and losses of some of the eight runs after a few steps."""
    runs = start(checkpoint, which, layout, **changes)
    indices = [[indices_of(run, step) for step in range(STEPS)] for run in which]
    if parts > 1:
        indices = [[in_parts(i, parts) for i in of_run] for of_run in indices]
    runs, metrics = compiled(layout, ROWS // parts)(
        runs, layout.place_table(training_set()), layout.place_indices(indices)
    )
    return jax.device_get((runs.params, metrics.loss))


def one_of(stacked, index):
    return jax.tree.map(lambda leaf: leaf[index], stacked)


@pytest.fixture(scope="module")
def alone(checkpoint):
    return [one_of(finish(checkpoint, [i], ONE), 0) for i in range(8)]


LAYOUTS = {
    "vmap": layout_of(8, 8),
    "map": layout_of(8, 1),
    "map over groups": layout_of(8, 3),
    "8 devices": layout_of(8, 1, 8),
    "4 x 2 devices": layout_of(8, 8, 8, 2),
    "2 x 4 devices, map": layout_of(8, 2, 8, 4),
    "1 x 4 devices": layout_of(8, 8, 4, 4),
}
QUICK = ("vmap", "4 x 2 devices")


def slow_unless_quick(*names):
    """Names of layouts; those that are not quick to compile are tested when slow."""
    return [
        name if name in QUICK else pytest.param(name, marks=pytest.mark.slow)
        for name in names
    ]


@pytest.mark.parametrize("name", slow_unless_quick(*LAYOUTS))
def test_runs_together_equal_the_runs_alone(name, checkpoint, alone):
    together = finish(checkpoint, range(8), LAYOUTS[name])
    for i in range(8):
        chex.assert_trees_all_close(one_of(together, i), alone[i], rtol=1e-5, atol=1e-6)
    moved = [np.abs(a[1] - b[1]).max() for a, b in zip(alone, alone[1:], strict=False)]
    assert min(moved) > 1e-4  # the runs do differ


@pytest.mark.slow
@pytest.mark.parametrize("name", ["4 x 2 devices", "1 x 4 devices"])
def test_runs_on_devices_take_batches_in_parts(name, checkpoint):
    # Each part has dropout of its own, so that only runs without are the same.
    without = {f"run{i}": {"dropout_rate": jnp.float32(0)} for i in range(8)}
    layout, which = LAYOUTS[name], range(8)
    together = finish(checkpoint, which, layout, parts=2, **without)
    expected = finish(checkpoint, which, LAYOUTS["vmap"], **without)
    chex.assert_trees_all_close(together, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "name", slow_unless_quick("vmap", "map over groups", "4 x 2 devices")
)
def test_neighbours_change_no_bit_of_a_run(name, checkpoint):
    layout = LAYOUTS[name]
    usual = finish(checkpoint, range(8), layout)
    others = finish(checkpoint, [7, 1, 7, 3, 7, 5, 7, 0], layout)
    for i in (1, 3, 5):
        chex.assert_trees_all_equal(one_of(usual, i), one_of(others, i))


@pytest.mark.parametrize(
    "name", slow_unless_quick("vmap", "map over groups", "8 devices")
)
def test_a_run_that_diverges_leaves_the_others_alone(name, checkpoint):
    layout = LAYOUTS[name]
    usual = finish(checkpoint, range(8), layout)
    diverging = {"run2": {"learning_rate": jnp.float32(jnp.inf)}}
    spoiled = finish(checkpoint, range(8), layout, **diverging)
    assert not np.isfinite(one_of(spoiled, 2)[1]).all()
    for i in (0, 1, 3, 4, 5, 6, 7):
        chex.assert_trees_all_equal(one_of(usual, i), one_of(spoiled, i))


@pytest.mark.parametrize(
    "name",
    slow_unless_quick("vmap", "8 devices", "4 x 2 devices", "2 x 4 devices, map"),
)
def test_runs_together_are_evaluated_as_alone(name, checkpoint):
    sets = {"validation": tokens_of(MODEL, 21)}

    def logits(which, layout):
        batches = EvaluationBatches(sets, 13, layout)
        program = compile_eval_step(STEP_CONFIG, layout, batches.shape)
        params = start(checkpoint, which, layout).params
        return batches.logits(program, params)["validation"]

    together = logits(range(8), LAYOUTS[name])
    assert np.ptp(together, axis=(0, 1)).min() > 1e-2
    for i in (0, 5):
        np.testing.assert_allclose(together[i], logits([i], ONE)[0], atol=1e-5)


def test_runs_of_one_program_lie_on_their_devices(checkpoint):
    layout = LAYOUTS["4 x 2 devices"]
    kernel = start(checkpoint, range(8), layout).params["classifier"]["kernel"]
    assert {shard.data.shape for shard in kernel.addressable_shards} == {(2, 8, 2)}


@pytest.mark.parametrize(
    "layout",
    [
        pytest.param(layout_of(4, 2, 4, 2, shard_params=True), marks=pytest.mark.slow),
        pytest.param(layout_of(4, 4, 2, 2, shard_params=True), marks=pytest.mark.slow),
    ],
    ids=["2 x 2 devices", "1 x 2 devices"],
)
def test_parameters_of_several_runs_are_split(layout, checkpoint):
    """As the runs over all devices, each of which has whole parameters, are."""
    model = dataclasses.replace(MODEL, hidden_size=64, intermediate_size=128)
    config = dataclasses.replace(STEP_CONFIG, model=model)
    params = models.init_params(model, jax.random.key(0))
    checkpoint = dataclasses.replace(checkpoint, params=params)

    def finish(layout):
        runs = start(checkpoint, range(4), layout, config)
        step = compile_train_steps(config, layout, (ROWS, LENGTH))
        indices = [[indices_of(run, step) for step in range(STEPS)] for run in range(4)]
        inputs = layout.place_table(training_set()), layout.place_indices(indices)
        return step(runs, *inputs)

    (split, metrics), (whole, others) = finish(layout), finish(layout_of(4, 4))
    chex.assert_trees_all_close(
        jax.device_get((split.params, metrics.loss, metrics.norms)),
        jax.device_get((whole.params, others.loss, others.norms)),
        rtol=1e-4,
        atol=1e-6,
    )
    on_device = 4 // layout.run_devices
    large = [x for x in jax.tree.leaves(split) if x[0].size >= 4096]
    assert len(large) == 3 * 7
    for leaf in large:
        [shape] = {shard.data.shape for shard in leaf.addressable_shards}
        assert shape[0] == on_device and np.prod(shape[1:]) == leaf[0].size / 2


def test_a_program_of_many_runs_is_traced_once(checkpoint, monkeypatch):
    traced = chex.assert_max_traces(programs.train_step, n=1)
    monkeypatch.setattr(programs, "train_step", traced)
    finish(checkpoint, range(2), layout_of(2, 2))


def test_each_run_has_a_classifier_of_its_own(checkpoint):
    params = start(checkpoint, [0, 1], layout_of(2, 2)).params
    assert (
        params["classifier"]["kernel"][0] != params["classifier"]["kernel"][1]
    ).all()
    chex.assert_trees_all_equal(
        one_of(params["bert"], 0), one_of(params["bert"], 1), checkpoint.params["bert"]
    )


def test_the_classifier_is_the_one_that_its_seed_draws(checkpoint):
    params = start(checkpoint, [4], ONE).params
    key = jax.random.split(jax.random.key(4))[0]
    expected = models.redraw(MODEL, checkpoint.params, HEAD, key)
    chex.assert_trees_all_equal(one_of(params, 0), expected)


def compiled_alone(checkpoint, **sizes):
    """The step of a model whose weights outweigh all that the few tokens need."""
    model = dataclasses.replace(MODEL, **sizes)
    config = dataclasses.replace(STEP_CONFIG, model=model)
    params = models.init_params(model, jax.random.key(0))
    checkpoint = dataclasses.replace(checkpoint, params=params)
    runs = start(checkpoint, [0], ONE, config)
    inputs = training_set(), ONE.place_indices([[indices_of(0, 0)]])
    steps = compile_train_steps(config, ONE, (ROWS, LENGTH))
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    return steps.lower(runs, *inputs).compile(), size


@pytest.mark.slow
def test_a_gradient_dies_when_its_parameter_is_updated(checkpoint):
    few, many = (
        compiled_alone(
            checkpoint, num_hidden_layers=n, hidden_size=512, intermediate_size=512
        )
        for n in (1, 2)
    )
    temporaries = [
        program.memory_analysis().temp_size_in_bytes for program, _ in (few, many)
    ]
    # Of one more layer the activations are kept, and nothing as large as the weights.
    assert temporaries[1] - temporaries[0] < 0.35 * (many[1] - few[1])


def test_a_run_alone_is_updated_in_place(checkpoint):
    program, size = compiled_alone(
        checkpoint, vocab_size=2000, hidden_size=64, intermediate_size=512
    )
    entry = program.as_text().partition("\nENTRY")[2]
    copies = [line for line in entry.splitlines() if " copy(" in line]
    assert copies
    assert not [line for line in copies if "opt_state" in line and "f32" in line]
    # The gradients once, what the tokens need, and a copy of parameters that are still
    # read while they are written; a copy of the moments would be two more.
    assert program.memory_analysis().temp_size_in_bytes < 1.5 * size


@pytest.mark.parametrize("layout", [ONE, layout_of(2, 1, 2)], ids=["one", "2 devices"])
def test_runs_that_go_on_take_the_program_of_fresh_ones(
    layout, checkpoint, tmp_path, caplog
):
    which = range(layout.runs)
    steps = compile_train_steps(STEP_CONFIG, layout, (ROWS, LENGTH))
    runs = start(checkpoint, which, layout)
    with Checkpoints(tmp_path, CheckpointsConfig()) as checkpoints:
        checkpoints.save(1, runs, {"step": 1})
        checkpoints.wait()
    found = find_checkpoint(tmp_path, print)
    assert found is not None
    restored = restore(found[0], start(checkpoint, which, layout))
    table = layout.place_table(training_set())
    indices = layout.place_indices([[indices_of(run, 0)] for run in which])
    runs, _ = steps(runs, table, indices)
    steps(runs, table, indices)
    with jax.log_compiles():
        restored, _ = steps(restored, table, indices)
        steps(restored, table, indices)
    assert not [x for x in caplog.messages if "Finished XLA compilation" in x]


def test_checked_types_stop_the_gradient_of_erf_in_the_newest_jax():
    """Once this fails, ``over_runs`` can have its types checked again."""
    runs = jax.sharding.PartitionSpec("run")
    checked = jax.shard_map(
        jax.vmap(jax.grad(jax.lax.erf)),
        mesh=make_mesh(jax.devices()[:2]),
        in_specs=runs,
        out_specs=runs,
        axis_names={"run"},
    )
    if jax.__version_info__ < (0, 12):
        np.testing.assert_allclose(checked(jnp.ones(2)), 2 / (np.e * np.pi**0.5))
    else:
        with pytest.raises(ValueError, match="varying manual axes"):
            checked(jnp.ones(2))
