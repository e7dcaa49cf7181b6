"""One run over several devices against the same run on one."""

import contextlib
import dataclasses
import functools
import json
import re

import chex
import jax
import numpy as np
import pytest

from cwgnc_jax import models
from tests.train.conftest import MODEL, RECIPE, tokens_of
from train import checkpoint, parallel
from train.__main__ import main
from train.config import OptimizerConfig, RegularizationConfig
from train.data_parallel import (
    compile_shared_steps,
    on_host,
    place_shared_plans,
    shared_layout,
)
from train.evaluation import evaluation_packing, predict_logits
from train.optimizer import hyperparameters
from train.packing import make_packing, training_set
from train.parallel import ONE_RUN, Layout, device_mesh, place_training_set

pytestmark = pytest.mark.usefixtures("compilation_cache")
# Large enough that the kernels are split, the largest axis of each differing.
SIZES = {"vocab_size": 72, "hidden_size": 64, "intermediate_size": 128}
MODEL = dataclasses.replace(MODEL, **SIZES)
RECIPE = dataclasses.replace(RECIPE, model=MODEL)
# Batches of 13, 13 and 5 examples, of which no number of devices gets as many each.
ARRAYS, BATCH, STEPS = tokens_of(MODEL, 31), 13, 20
LAYOUTS = {
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
    return shared_layout(jax.devices()[:count], strategy, split)


def layouts(*names):
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
OPTIMIZER = OptimizerConfig(learning_rate=1e-3, eps=1e-3, weight_decay=0.1)


def start(weights, layout, recipe=RECIPE, optimizer=OPTIMIZER, mixout=0.0):
    regularization = RegularizationConfig(dropout=0.0, mixout=mixout)
    numbers = hyperparameters(optimizer, regularization, STEPS)
    return parallel.init_runs(recipe, weights, [(1, 1)], [numbers], layout)


def program_of(layout, batch=BATCH, accumulate=1, steps=range(STEPS), recipe=RECIPE):
    """A program of some steps, and what it takes besides the run."""
    parts = accumulate * layout.data_devices
    how = make_packing(ARRAYS, "packed", batch, 8, parts=parts)
    # The one shape for all, so that there is one program.
    shape = how.shapes[-1]
    plans = [how.plan(1, step, shape) for step in steps]
    return (
        compile_shared_steps(recipe, layout, shape),
        place_training_set(layout, training_set(ARRAYS)),
        place_shared_plans(layout, plans),
    )


def finish(weights, layout, **kwargs):
    program, *inputs = program_of(layout, **kwargs)
    run, metrics = program(start(weights, layout), *inputs)
    return on_host(run.params), *jax.device_get((metrics.loss, metrics.norms))


@pytest.fixture(scope="module")
def alone(weights, compilation_cache):
    return finish(weights, ONE_RUN)


@pytest.mark.parametrize("name", layouts(*LAYOUTS))
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
    expected = finish(weights, ONE_RUN, batch=batch)
    found = finish(weights, layout_of(name), batch=batch, accumulate=accumulate)
    chex.assert_trees_all_close(found, expected, rtol=1e-4, atol=3e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["jit on 4", "split over 4"])
def test_decays_mixout_and_skipped_steps_are_those_of_one_device(name, weights):
    recipe = dataclasses.replace(
        RECIPE,
        **{"mixout": True, "prior_decay": True, "layer_decay": True},
        **{"nonfinite": "skip_step", "components": "by_layer", "remat": True},
    )
    optimizer = dataclasses.replace(OPTIMIZER, prior_decay=0.1, layer_decay=0.9)

    def made(layout):
        program, *inputs = program_of(layout, recipe=recipe, accumulate=1)
        run = start(weights, layout, recipe, optimizer, mixout=0.3)
        run, metrics = program(run, *inputs)
        return on_host(run.params), *jax.device_get((metrics.loss, metrics.norms))

    chex.assert_trees_all_close(
        made(layout_of(name)), made(ONE_RUN), rtol=1e-4, atol=3e-6
    )


@pytest.mark.slow
def test_devices_of_a_study_share_batches_of_any_size(weights, alone):
    layout = Layout(1, 1, device_mesh(jax.devices(), 8))
    how = make_packing(ARRAYS, "packed", BATCH, 8, multiple=8)
    assert how.plan(1, 0, how.shapes[-1]).weights.shape == (16,)
    plans = [how.plan(1, step, how.shapes[-1]) for step in range(STEPS)]
    run, metrics = parallel.compile_train_steps(RECIPE, layout, how.shapes[-1])(
        start(weights, layout),
        place_training_set(layout, training_set(ARRAYS)),
        parallel.place_plans(layout, [plans]),
    )
    found = on_host(run.params), *jax.device_get((metrics.loss, metrics.norms))
    chex.assert_trees_all_close(found, alone, rtol=1e-4, atol=3e-6)


def collectives(program, run, inputs):
    """How many there are of each in the compiled program, and lines with them."""
    lines = program.lower(run, *inputs).compile().as_text().splitlines()
    kinds = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all")
    return {
        kind: [line for line in lines if re.search(rf" {kind}(-start)?\(", line)]
        for kind in kinds
    }


def test_devices_sum_their_gradients_once_and_exchange_nothing_else(weights):
    layout = layout_of("jit on 8")
    program, *inputs = program_of(layout)
    run = start(weights, layout)
    lowered = program.lower(run, *inputs).as_text()
    # Each parameter's gradient, the loss, and the weight of all examples, as the
    # program says it; the compiler may join them.
    assert lowered.count("stablehlo.all_reduce") == len(jax.tree.leaves(run.params)) + 2
    for other in ("all_gather", "reduce_scatter", "all_to_all", "collective_permute"):
        assert f"stablehlo.{other}" not in lowered


def test_no_norm_of_split_parameters_is_summed_alone(weights):
    layout = layout_of("split over 8")
    program, *inputs = program_of(layout, steps=range(1))
    run = start(weights, layout)
    lowered = program.lower(run, *inputs).as_text()
    leaves = jax.tree.leaves(run.params)
    whole = sum(leaf.is_fully_replicated for leaf in leaves)
    # The gradients of what is whole, the loss, the weight of all examples, and twice
    # the norms of all components: for the clip and for the records.
    assert lowered.count("stablehlo.all_reduce") == whole + 4
    assert lowered.count("stablehlo.all_gather") == len(leaves) - whole
    assert lowered.count("stablehlo.reduce_scatter") == len(leaves) - whole


@pytest.mark.slow
def test_the_clip_of_split_parameters_takes_one_collective_for_all(weights):
    layout = layout_of("split over 8")
    program, *inputs = program_of(layout, steps=range(1))
    run = start(weights, layout)
    # The norms are asked for twice, by the clip and for the records: the compiler
    # computes them once, if it is not in haste.
    with all_optimizations():
        found = collectives(program, run, inputs)
    results = [line.partition(" all-reduce")[0] for line in found["all-reduce"]]
    components = len(jax.tree.leaves(run.params))
    assert sum(f"f32[{components},1]" in result for result in results) == 1
    # No norm is summed alone: there are the loss and the weight of all examples.
    assert sum(result.count("f32[]") for result in results) == 2
    split = sum(not leaf.is_fully_replicated for leaf in jax.tree.leaves(run.params))
    assert len(found["all-gather"]) == len(found["reduce-scatter"]) == split


@contextlib.contextmanager
def all_optimizations():
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


def test_split_parameters_and_moments_take_an_eighth_of_the_memory(weights):
    def bytes_on_a_device(layout):
        run = start(weights, layout)
        device = jax.devices()[0]
        return sum(
            shard.data.nbytes
            for leaf in jax.tree.leaves((run.params, run.opt_state))
            for shard in leaf.addressable_shards
            if shard.device == device
        )

    whole, split = map(bytes_on_a_device, map(layout_of, ("jit on 8", "split over 8")))
    # What is not split are biases, LayerNorm and small tables.
    assert whole / 8 < split < whole / 5
    kernel = start(weights, layout_of("split over 8")).params["bert"]["encoder"]
    kernel = kernel["layer"]["0"]["intermediate"]["dense"]["kernel"]
    assert kernel.addressable_shards[0].data.shape == (1, 64, 16)


@pytest.mark.parametrize("name", ["split over 4", "jit on 2", "one"])
def test_a_checkpoint_of_split_parameters_goes_on_on_other_devices(
    name, weights, tmp_path
):
    layout = layout_of("split over 8")
    run = start(weights, layout)
    state = jax.tree.map(lambda x: x + 2, (run.params, run.opt_state, run.step))
    run = run._replace(params=state[0], opt_state=state[1], step=state[2])
    before = on_host(run.params)
    moments = jax.device_get(run.opt_state)
    with checkpoint.Checkpoints(tmp_path / "c") as checkpoints:
        checkpoints.save(2, run, {})
        checkpoints.wait()
    path, _ = checkpoint.latest(tmp_path / "c", print)
    other = ONE_RUN if name == "one" else layout_of(name)
    restored = checkpoint.restore_runs(path, start(weights, other))
    chex.assert_trees_all_equal(on_host(restored.params), before)
    chex.assert_trees_all_equal(jax.device_get(restored.opt_state), moments)
    kernel = restored.params["bert"]["pooler"]["dense"]["kernel"]
    assert len(kernel.sharding.device_set) == other.data_devices
    assert restored.step[0] == 2


@pytest.mark.parametrize("name", ["jit on 8", "split over 8"])
def test_logits_of_any_number_of_examples_are_those_of_one_device(name, weights):
    arrays = tokens_of(MODEL, 21, seed=3)

    def logits(layout):
        step = parallel.compile_eval_step(RECIPE, layout)
        packing = evaluation_packing([arrays], 13, layout.data_devices)
        params = start(weights, layout).params
        return predict_logits(step, params, arrays, packing, layout)

    expected = logits(ONE_RUN)
    np.testing.assert_allclose(logits(layout_of(name)), expected, atol=1e-5)
    assert np.ptp(expected, axis=1).min() > 1e-2


@pytest.mark.slow
def test_each_device_has_dropout_of_its_own(weights):
    def losses(layout):
        run = start(weights, layout)
        numbers = run.numbers._replace(dropout_rate=run.numbers.dropout_rate + 0.5)
        program, *inputs = program_of(layout, steps=range(1))
        return np.asarray(program(run._replace(numbers=numbers), *inputs)[1].loss)

    one, eight = losses(ONE_RUN), losses(layout_of("jit on 8"))
    assert np.abs(one - eight).min() > 1e-6


def test_what_a_strategy_cannot_do_is_refused():
    with pytest.raises(ValueError, match="pmap has all parameters .*drop --shard-par"):
        shared_layout(jax.devices(), "pmap", True)
    assert shared_layout(jax.devices()[:1], "pmap") is ONE_RUN


@pytest.fixture
def finetune(tiny_model, tiny_data, tmp_path):
    def run(name, *more):
        flags = {
            "model": tiny_model,
            "train-file": tiny_data[0],
            "validation-file": tiny_data[1],
            "text-columns": "text",
            "preset": "code",
            "epochs": 2,
            "batch-size": 13,
            "eval-batch-size": 7,
            "learning-rate": 3e-3,
            "eps": 1e-3,
            "dropout": 0.0,
            "max-length": 16,
            "padding": "max_length",
            "workdir": tmp_path / name,
        }
        pairs = [(f"--{name}", str(value)) for name, value in flags.items()]
        return main(["finetune", *(part for pair in pairs for part in pair), *more])

    return run


def results_of(workdir):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    results = json.loads((workdir / "results.json").read_text())
    return [json.loads(line)["loss"] for line in lines], results["scores"]


@pytest.mark.slow
def test_finetune_on_several_devices_is_finetune_on_one(finetune, tmp_path):
    assert finetune("one") == 0
    assert finetune("three", "--devices", "3") == 0
    (losses, scores), (others, other_scores) = (
        results_of(tmp_path / name) for name in ("one", "three")
    )
    np.testing.assert_allclose(others, losses, rtol=1e-4)
    assert other_scores == scores
    settings = json.loads((tmp_path / "three" / "config.json").read_text())
    assert settings["devices"]["devices"] == 3 and "hosts" not in settings


def test_a_run_resumed_on_other_devices_says_so(finetune, tmp_path, capsys):
    keep = ("--checkpoint-seconds", "0", "--keep", "9")
    assert finetune("run", *keep, "--devices", "2", "--shard-params") == 0
    (tmp_path / "run" / "results.json").unlink()
    assert finetune("run", *keep, "--resume") == 0
    said = capsys.readouterr().err
    assert "devices was '2 by jit with split parameters' and is 1" in said


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--devices", "9"], "--devices 9: there are 8"),
        (["--devices", "0"], "--devices must be at least 1"),
        (["--num-processes", "2"], "need --coordinator HOST:PORT beside"),
        (["--coordinator", "here"], "must be HOST:PORT, such as .* got here"),
        (["--coordinator", "a:1"], "needs --num-processes and --process-id"),
        (
            ["--coordinator", "a:1", "--num-processes", "2", "--process-id", "2"],
            r"--process-id must lie in \[0, --num-processes 2\), got 2",
        ),
        (["--coordinator", "auto"], "auto: expected the environment of SLURM"),
    ],
    ids=str,
)
def test_devices_and_processes_that_cannot_be_are_refused(
    more, message, finetune, tmp_path, capsys, monkeypatch
):
    if "auto" in more:
        # As in a process that has not asked for devices yet.
        monkeypatch.setattr(
            jax.distributed,
            "initialize",
            functools.partial(refuse, "coordinator_address should be defined."),
        )
    assert finetune("run", *more) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "run").exists()


def refuse(message):
    raise ValueError(message)
