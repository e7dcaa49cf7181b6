"""Many runs in one program against the same runs alone."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cwgnc_jax import models
from tests.train.conftest import MODEL, RECIPE, a_batch
from train import parallel
from train.checkpoint import Checkpoints, latest, restore_runs
from train.config import OptimizerConfig, RegularizationConfig
from train.optimizer import hyperparameters
from train.packing import Plan, TrainingSet
from train.parallel import ONE_RUN, Layout, device_mesh

pytestmark = pytest.mark.usefixtures("compilation_cache")

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
    return TrainingSet(
        batch["input_ids"],
        batch["token_type_ids"],
        batch["attention_mask"].sum(1, dtype=np.int32),
        batch["labels"],
    )


def plan_of(run, step):
    """Each example in a row of its own."""
    first = (run * STEPS + step) * ROWS
    return Plan(
        np.arange(first, first + ROWS, dtype=np.int32),
        np.arange(ROWS, dtype=np.int32) * LENGTH,
        np.ones(ROWS, np.float32),
    )


def start(checkpoint, which, layout, **changes):
    numbers = [hyperparameters(OPTIMIZERS[i], REGULARIZATIONS[i], 10) for i in which]
    numbers = [
        n._replace(**changes.get(f"run{i}", {}))
        for i, n in zip(which, numbers, strict=True)
    ]
    seeds = [(i, 100 + i) for i in which]
    return parallel.init_runs(RECIPE, checkpoint, seeds, numbers, layout)


@functools.cache
def compiled(layout):
    return parallel.compile_train_steps(RECIPE, layout, (ROWS, LENGTH))


def finish(checkpoint, which, layout, **changes):
    """The parameters and losses of some of the eight runs after a few steps."""
    runs = start(checkpoint, which, layout, **changes)
    examples = parallel.place_training_set(layout, training_set())
    plans = [[plan_of(run, step) for step in range(STEPS)] for run in which]
    runs, metrics = compiled(layout)(
        runs, examples, parallel.place_plans(layout, plans)
    )
    return jax.device_get((runs.params, metrics.loss))


def one_of(stacked, index):
    return jax.tree.map(lambda leaf: leaf[index], stacked)


@pytest.fixture(scope="module")
def alone(checkpoint):
    return [one_of(finish(checkpoint, [i], ONE_RUN), 0) for i in range(8)]


LAYOUTS = {
    "vmap": lambda: Layout(8, 8),
    "map": lambda: Layout(8, 1),
    "map over groups": lambda: Layout(8, 3),
    "8 devices": lambda: Layout(8, 1, device_mesh(jax.devices())),
    "4 x 2 devices": lambda: Layout(8, 8, device_mesh(jax.devices(), 2)),
    "2 x 4 devices, map": lambda: Layout(8, 2, device_mesh(jax.devices(), 4)),
}


QUICK = ("vmap", "8 devices", "4 x 2 devices")


def layouts(*names):
    """Names of layouts; those that are not quick to compile are tested when slow."""
    return [
        name if name in QUICK else pytest.param(name, marks=pytest.mark.slow)
        for name in names
    ]


@pytest.mark.parametrize("name", layouts(*LAYOUTS))
def test_runs_together_equal_the_runs_alone(name, checkpoint, alone):
    together = finish(checkpoint, range(8), LAYOUTS[name]())
    for i in range(8):
        chex.assert_trees_all_close(one_of(together, i), alone[i], rtol=1e-5, atol=1e-6)
    moved = [np.abs(a[1] - b[1]).max() for a, b in zip(alone, alone[1:], strict=False)]
    assert min(moved) > 1e-4  # the runs do differ


@pytest.mark.parametrize("name", layouts("vmap", "map over groups", "4 x 2 devices"))
def test_neighbours_change_no_bit_of_a_run(name, checkpoint):
    layout = LAYOUTS[name]()
    usual = finish(checkpoint, range(8), layout)
    others = finish(checkpoint, [7, 1, 7, 3, 7, 5, 7, 0], layout)
    for i in (1, 3, 5):
        chex.assert_trees_all_equal(one_of(usual, i), one_of(others, i))


@pytest.mark.parametrize("name", layouts("vmap", "map over groups", "8 devices"))
def test_a_run_that_diverges_leaves_the_others_alone(name, checkpoint):
    layout = LAYOUTS[name]()
    usual = finish(checkpoint, range(8), layout)
    diverging = {"run2": {"learning_rate": jnp.float32(jnp.inf)}}
    spoiled = finish(checkpoint, range(8), layout, **diverging)
    assert not np.isfinite(one_of(spoiled, 2)[1]).all()
    for i in (0, 1, 3, 4, 5, 6, 7):
        chex.assert_trees_all_equal(one_of(usual, i), one_of(spoiled, i))


def test_runs_of_one_program_lie_on_their_devices(checkpoint):
    layout = Layout(8, 1, device_mesh(jax.devices(), 2))
    kernel = start(checkpoint, range(8), layout).params["classifier"]["kernel"]
    assert {shard.data.shape for shard in kernel.addressable_shards} == {(2, 8, 2)}


def test_a_program_of_many_runs_is_traced_once(checkpoint, monkeypatch):
    traced = chex.assert_max_traces(parallel.train_step, n=1)
    monkeypatch.setattr(parallel, "train_step", traced)
    finish(checkpoint, range(2), Layout(2, 2))


def test_each_run_has_a_classifier_of_its_own(checkpoint):
    params = start(checkpoint, [0, 1], Layout(2, 2)).params
    assert (
        params["classifier"]["kernel"][0] != params["classifier"]["kernel"][1]
    ).all()
    chex.assert_trees_all_equal(
        one_of(params["bert"], 0), one_of(params["bert"], 1), checkpoint.params["bert"]
    )


def test_the_classifier_is_the_one_that_its_seed_draws(checkpoint):
    params = start(checkpoint, [4], ONE_RUN).params
    key = jax.random.split(jax.random.key(4))[0]
    expected = models.redraw(MODEL, checkpoint.params, HEAD, key)
    chex.assert_trees_all_equal(one_of(params, 0), expected)


def test_devices_that_cannot_be_shared_evenly_are_refused():
    with pytest.raises(ValueError, match="--data-devices must divide the 8 devices"):
        device_mesh(jax.devices(), 3)
    mesh = device_mesh(jax.devices())
    with pytest.raises(ValueError, match="6 runs cannot be split evenly over 8"):
        Layout(6, 1, mesh)
    assert device_mesh(jax.devices()[:1]) is None
    assert ONE_RUN.over_runs() is None


def compiled_alone(checkpoint, **sizes):
    """The step of a model whose weights outweigh all that the few tokens need."""
    model = dataclasses.replace(MODEL, **sizes)
    recipe = dataclasses.replace(RECIPE, model=model)
    params = models.init_params(model, jax.random.key(0))
    checkpoint = dataclasses.replace(checkpoint, params=params)
    numbers = [hyperparameters(OPTIMIZERS[0], REGULARIZATIONS[0], 10)]
    runs = parallel.init_runs(recipe, checkpoint, [(0, 0)], numbers, ONE_RUN)
    inputs = training_set(), parallel.place_plans(ONE_RUN, [[plan_of(0, 0)]])
    steps = parallel.compile_train_steps(recipe, ONE_RUN, (ROWS, LENGTH))
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    return steps.lower(runs, *inputs).compile(), size


def test_a_gradient_dies_when_its_parameter_is_updated(checkpoint):
    few, many = (
        compiled_alone(
            checkpoint, num_hidden_layers=n, hidden_size=512, intermediate_size=512
        )
        for n in (2, 4)
    )
    temporaries = [
        program.memory_analysis().temp_size_in_bytes for program, _ in (few, many)
    ]
    # Of two more layers the activations are kept, and nothing as large as the weights.
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


@pytest.mark.parametrize(
    "layout", [ONE_RUN, Layout(2, mesh=device_mesh(jax.devices()[:2]))], ids=str
)
def test_runs_that_go_on_take_the_program_of_fresh_ones(
    layout, checkpoint, tmp_path, caplog
):
    which = range(layout.runs)
    steps = parallel.compile_train_steps(RECIPE, layout, (ROWS, LENGTH))
    runs = start(checkpoint, which, layout)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(0, runs, {})
    path, _ = latest(tmp_path, print)
    restored = restore_runs(path, start(checkpoint, which, layout))
    examples = parallel.place_training_set(layout, training_set())
    plans = parallel.place_plans(layout, [[plan_of(run, 0)] for run in which])
    runs, _ = steps(runs, examples, plans)
    steps(runs, examples, plans)
    with jax.log_compiles():
        restored, _ = steps(restored, examples, plans)
        steps(restored, examples, plans)
    assert not [x for x in caplog.messages if "Finished XLA compilation" in x]
