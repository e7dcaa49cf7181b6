"""Gradual unfreezing in a study, and the measurement of components."""

import functools

import jax
import numpy as np
import pytest

import cwgnc_jax
from cwgnc_jax import models
from cwgnc_train.config import UserError
from cwgnc_train.engine import RunGroup
from cwgnc_train.engine.component_statistics import STATISTICS
from cwgnc_train.engine.step import update
from cwgnc_train.study import prepare_study
from tests.train.configs import replaced
from tests.train.conftest import write_tiny_model
from tests.train.study.conftest import (
    everything,
    interrupt_at,
    lasting,
    of_kind,
    records,
    study,
    tiny_config,
)

# 33 examples at 8 a step are 5 steps an epoch.
UNFREEZING = {
    "methods": ("gu", "gu_restart", "full"),
    "seeds": 1,
    "epochs": 1,
    "epochs_per_iteration": 1,
    "evaluations": None,
    "statistics_every": 3,
}
STEPS = 5


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory):
    """A tiny model of two layers."""
    return write_tiny_model(tmp_path_factory.mktemp("two_layers"), layers=2)


def components(workdir):
    """The measurements: {(method, step): {statistic: {component: value}}}."""
    lines = records(workdir, "components")
    [names] = [x for x in of_kind(lines, "names") if x["by"] == "by_parameter"]
    return {
        (line["run"].split("/")[1], line["step"]): {
            statistic: dict(
                zip(names["components"], map(float, line[statistic]), strict=True)
            )
            for statistic in STATISTICS
        }
        for line in of_kind(lines, "components")
    }


@pytest.fixture(scope="module")
def made(tiny_model, tiny_glue, tmp_path_factory):
    config = tiny_config(tiny_model, tiny_glue, tmp_path_factory.mktemp("w") / "study")
    lines = study(config, **UNFREEZING)
    return lines, components(config.workdir)


def curve(lines, method):
    return {
        line["step"]: {k: line[k] for k in ("loss", "grad_norm", "learning_rate")}
        for line in of_kind(lines, "metrics")
        if f"/{method}/" in line["run"]
    }


def layer(values, number):
    return [v for name, v in values.items() if f"/layer/{number}/" in name]


@pytest.mark.slow
def test_iterations_are_runs_of_their_own_length_and_scored_each(made):
    lines, _ = made
    runs = {run["method"]: run for run in of_kind(lines, "run")}
    for method in ("gu", "gu_restart"):
        run = runs[method]
        assert (run["steps"], run["iterations"], run["epochs"]) == (2 * STEPS, 2, 1)
        scored = [e for e in of_kind(lines, "evaluation") if e["run"] == run["run"]]
        assert {e["step"] for e in scored} == {STEPS, 2 * STEPS}
        rates = [line["learning_rate"] for line in curve(lines, method).values()]
        # Each iteration starts at the full rate again.
        assert rates[0] == rates[2] > rates[1] == rates[3]
    assert runs["gu"]["unfreezing"] == "carry"
    assert (runs["full"]["iterations"], runs["full"]["unfreezing"]) == (1, None)


@pytest.mark.slow
def test_full_fine_tuning_is_the_last_iteration_of_restarting(made):
    lines, measured = made
    restart, full = curve(lines, "gu_restart"), curve(lines, "full")
    assert {step - STEPS: x for step, x in restart.items() if step > STEPS} == full
    scores = {run["method"]: run["scores"] for run in of_kind(lines, "run")}
    assert scores["gu_restart"] == scores["full"]
    for step in (1, 4, 5):
        one, other = measured["gu_restart", STEPS + step], measured["full", step]
        # A bias that starts at zero has no angle to its start: NaN on both sides.
        np.testing.assert_equal(one, other)


@pytest.mark.slow
def test_frozen_layers_and_embeddings_do_not_move(made):
    _, measured = made
    assert {step for _, step in measured} == {1, 4, 5, 6, 9, 10}
    for method in ("gu", "gu_restart"):
        first, last = (
            measured[method, STEPS]["rmsd"],
            measured[method, 2 * STEPS]["rmsd"],
        )
        assert not any(layer(first, 0)) and all(layer(first, 1)) and all(layer(last, 0))
        embeddings = [name for name in first if "/embeddings/" in name]
        assert not any(first[name] for name in embeddings)
        assert all(last[name] for name in embeddings if "position" not in name)
        assert first["classifier/kernel"] and first["bert/pooler/dense/kernel"]
        gradients = measured[method, STEPS]["grad_norm"]
        assert not any(layer(gradients, 0)) and all(layer(gradients, 1))


@pytest.mark.slow
def test_weights_carry_over_or_start_again(made):
    _, measured = made
    kernel = "bert/encoder/layer/1/output/dense/kernel"

    def moved(method, step):
        return measured[method, step]["rmsd"][kernel]

    assert moved("gu", STEPS + 1) > 0.8 * moved("gu", STEPS)
    assert moved("gu_restart", STEPS + 1) < 0.8 * moved("gu_restart", STEPS)
    assert moved("gu", STEPS) == moved("gu_restart", STEPS)


def test_iterations_that_carry_over_have_noise_and_order_of_their_own(config):
    prepared = prepare_study(replaced(config, **UNFREEZING))
    of_task = prepared.tasks["cola"]
    runs = {run.method: run for run in prepared.runs if run.optimizer.max_norm > 1}
    gu, restart = runs["gu"], runs["gu_restart"]
    assert of_task.kind(gu) != of_task.kind(restart)  # never in one program

    def parts(run):
        group = RunGroup(of_task, (run,), prepared.layout)
        keys = [group.start(i).key[0] for i in (0, 1)]
        firsts = [i * STEPS for i in (0, 1)]
        [indices] = group.batch_indices(firsts, group.batch_shape(firsts))
        return keys, [of_step.examples.tolist() for of_step in indices]

    keys, orders = parts(gu)
    assert keys[0] != keys[1] and orders[0] != orders[1]
    keys, orders = parts(restart)
    assert keys[0] == keys[1] and orders[0] == orders[1]


@pytest.mark.parametrize(
    ("method", "keeps_moments", "one_schedule"),
    [
        ("gu", False, False),
        ("gu_state", True, False),
        ("gu_schedule", False, True),
        ("gu_state_schedule", True, True),
    ],
)
def test_moments_and_schedule_go_on_or_begin_anew(
    config, method, keeps_moments, one_schedule
):
    """Against a loop over the parameters, each with its own count, as in torch."""
    prepared = prepare_study(replaced(config, **UNFREEZING | {"methods": (method,)}))
    [run], of_task = prepared.runs, prepared.tasks["cola"]
    group, rng = RunGroup(of_task, (run,), prepared.layout), np.random.default_rng(0)
    state, values, moments = group.start(0), {}, {}
    params = jax.tree.map(lambda leaf: leaf[0], state.params)
    paths, leaves, treedef = cwgnc_jax.flatten_with_paths(params)
    values = {
        path: np.asarray(leaf, np.float64)
        for path, leaf in zip(paths, leaves, strict=True)
    }
    for iteration in (0, 1):
        if iteration:
            state = group.start_after(state, iteration)
            moments = moments if keeps_moments else {}
        step_config = of_task.step_config(run, iteration)
        step = jax.jit(jax.vmap(functools.partial(update, step_config)))
        for number in range(STEPS):
            grads = {path: rng.normal(0, 0.1, x.shape) for path, x in values.items()}
            done = number + STEPS * iteration * one_schedule
            rate = 3e-3 * (1 - done / (STEPS * (1 + one_schedule)))
            for path, grad in grads.items():
                top = "/layer/1/" in path or "pooler" in path or "classifier" in path
                if iteration == 0 and not top:
                    continue
                count, first, second = moments.get(path, (0, 0, 0))
                count, first = count + 1, 0.9 * first + 0.1 * grad
                second = 0.999 * second + 0.001 * grad**2
                moments[path] = count, first, second
                size = (1 - 0.999**count) ** 0.5 / (1 - 0.9**count)
                change = size * first / (second**0.5 + 1e-8)
                values[path] = values[path] - rate * change
            tree = jax.tree.unflatten(
                treedef, [grads[path][None].astype(np.float32) for path in paths]
            )
            trained, _ = models.split_params(tree, step_config.trains)
            state, metrics = step(state, np.ones(1, np.float32), trained)
            assert metrics.learning_rate[0] == pytest.approx(rate, rel=1e-5)
    found, leaves, _ = cwgnc_jax.flatten_with_paths(state.params)
    for path, leaf in zip(found, leaves, strict=True):
        np.testing.assert_allclose(leaf[0], values[path], atol=2e-6)


@pytest.mark.slow
def test_measurements_agree_with_the_clip(config):
    study(config, **UNFREEZING | {"methods": ("cwgnc_code",), "max_norms": (0.05,)})
    for values in components(config.workdir).values():
        for name, norm in values["grad_norm"].items():
            factor = min(1, 0.05 / (norm + 1e-6))
            assert values["clipped_norm"][name] == pytest.approx(
                factor * norm, rel=1e-4
            )
            assert values["coefficient"][name] == pytest.approx(factor, rel=1e-4)
    assert (
        max(values["coefficient"].values()) == 1 > min(values["coefficient"].values())
    )


@pytest.mark.slow
@pytest.mark.parametrize("method", ["gu", "gu_state_schedule"])
def test_unfreezing_goes_on_to_the_same_bits(config, monkeypatch, method):
    changes = UNFREEZING | {"methods": (method,), "checkpoint_seconds": 0.0}
    study(config, **changes)
    broken = changes["workdir"] = config.workdir.with_name("broken")
    # Within the first iteration, at the first step of the second one, and in it.
    for call in (4, 3, 3):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            interrupt_at(patch, call)
            study(config, **changes)
    study(config, **changes)
    assert everything(broken) == everything(config.workdir)
    files = [path / "components.jsonl" for path in (config.workdir, broken)]
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.slow
def test_runs_of_unfreezing_share_a_program(config):
    changes = UNFREEZING | {"methods": ("gu",), "seeds": 2, "statistics_every": 0}
    together = study(config, **changes, runs_per_program=2)
    alone = study(config, **changes, workdir=config.workdir.with_name("alone"))
    assert {run["runs_per_program"] for run in of_kind(together, "run")} == {2}
    for one, other in zip(lasting(together), lasting(alone), strict=True):
        if one["kind"] == "metrics":
            assert one["loss"] == pytest.approx(other["loss"], rel=1e-3)


def test_more_iterations_than_layers_are_refused(config):
    with pytest.raises(UserError, match="--iterations 3: an iteration thaws one layer"):
        study(config, **UNFREEZING, iterations=3)
    assert not config.workdir.exists()


@pytest.mark.slow
def test_fewer_iterations_thaw_fewer_layers(config):
    lines = study(config, **UNFREEZING | {"methods": ("gu",)}, iterations=1)
    assert {run["steps"] for run in of_kind(lines, "run")} == {STEPS}
    assert not any(layer(components(config.workdir)["gu", STEPS]["rmsd"], 0))
