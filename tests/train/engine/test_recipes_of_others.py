"""Recipes of other authors inside the training step, each against its own statement."""

import dataclasses
import functools

import jax
import numpy as np
import optax
import pytest

import cwgnc_jax
from cwgnc_jax import models
from cwgnc_train.config import (
    METHODS,
    RegularizationConfig,
    RunSpec,
    TrainingConfig,
)
from cwgnc_train.engine import TaskRuns
from cwgnc_train.engine.optimizer import check_clip, make_hparams
from cwgnc_train.engine.step import init_run, update
from tests.train.conftest import MODEL, STEP_CONFIG

PARAMS = models.init_params(MODEL, jax.random.key(0))
STEPS, RATE = 10, 1e-3


def drawn(count, scale=0.02):
    """Gradients whose norms differ from step to step and from leaf to leaf."""
    rng = np.random.default_rng(0)

    def leaf(value):
        size = scale * np.exp(rng.normal(0, 1.5))
        return rng.normal(0, size, value.shape).astype(np.float32)

    return [jax.tree.map(leaf, PARAMS) for _ in range(count)]


def stepped(method, grads, **changes):
    """The parameters and metrics of every step of a method, and the last state."""
    optimizer = dataclasses.replace(METHODS[method].optimizer, learning_rate=RATE)
    config = dataclasses.replace(
        STEP_CONFIG, components=optimizer.components, clip=optimizer.clip, **changes
    )
    hparams = make_hparams(optimizer, RegularizationConfig(dropout=0.0), STEPS)
    state = init_run(config, PARAMS, jax.random.key(1), hparams)
    step, found = jax.jit(functools.partial(update, config)), []
    for each in grads:
        state, metrics = step(state, np.float32(1), each)
        found.append((state.params, metrics))
    return found, state


def global_norms(grads):
    return np.array([float(optax.tree.norm(each)) for each in grads])


def coefficients(found):
    return np.array([np.asarray(metrics.coefficients) for _, metrics in found])


def test_bertadam_clips_each_parameter_at_norm_1():
    """As in pytorch_pretrained_bert/optimization.py, a loop over parameters."""
    grads = drawn(6, scale=0.3)
    found, _ = stepped("bertadam", grads)
    paths, leaves, _ = cwgnc_jax.flatten_with_paths(PARAMS)
    norms = []
    for path, leaf in zip(paths, leaves, strict=True):
        value = np.asarray(leaf, np.float64)
        first, second = np.zeros_like(value), np.zeros_like(value)
        decays = not path.endswith("bias") and "LayerNorm" not in path
        for step, each in enumerate(grads):
            names, values, _ = cwgnc_jax.flatten_with_paths(each)
            grad = np.asarray(values[names.index(path)], np.float64)
            norm = np.sqrt((grad**2).sum())
            norms.append(norm)
            grad = grad * min(1, 1 / (norm + 1e-6))
            first = 0.9 * first + 0.1 * grad
            second = 0.999 * second + 0.001 * grad**2
            change = first / (np.sqrt(second) + 1e-6)
            if decays:
                change = change + 0.01 * value
            # A tenth of the ten steps is warm-up.
            share = step if step < 1 else (10 - step) / 9
            value = value - RATE * share * change
            names, values, _ = cwgnc_jax.flatten_with_paths(found[step][0])
            np.testing.assert_allclose(values[names.index(path)], value, atol=1e-6)
    assert 0.1 < np.mean(np.array(norms) > 1) < 0.9


def test_zclip_caps_the_global_norm_from_the_first_step_on():
    grads = drawn(4)
    found, _ = stepped("zclip", grads)
    norms = global_norms(grads)
    assert norms[0] > 1
    np.testing.assert_allclose(
        coefficients(found)[:, 0], np.minimum(1, 1 / (norms + 1e-6)), rtol=1e-5
    )


def test_olmos_ratio_is_five_times_as_large_at_first():
    """With the average of clipped norms by the larger of Adam's decays."""
    numbers = {"warmup_steps": 3.0}
    optimizer = dataclasses.replace(
        METHODS["olmo"].optimizer, learning_rate=RATE, clip_numbers=numbers
    )
    config = dataclasses.replace(STEP_CONFIG, clip="olmo")
    hparams = make_hparams(optimizer, RegularizationConfig(dropout=0.0), STEPS)
    state, found = init_run(config, PARAMS, jax.random.key(1), hparams), []
    step, grads = jax.jit(functools.partial(update, config)), drawn(8)
    for each in grads:
        state, metrics = step(state, np.float32(1), each)
        found.append((None, metrics))
    norms = np.array([list(cwgnc_jax.component_norms(each).values()) for each in grads])
    average, expected = norms[0], [np.ones_like(norms[0])]
    for number, row in enumerate(norms[1:], 1):
        ratio = 10 if number < 3 else 2
        factor = np.minimum(1, ratio * average / (row + 1e-6))
        average = 0.999 * average + 0.001 * factor * row
        expected.append(factor)
    np.testing.assert_allclose(coefficients(found), expected, rtol=1e-4)
    early, late = np.array(expected[1:3]), np.array(expected[3:])
    assert 0 < (early < 1).mean() < (late < 1).mean() < 1


def test_the_caps_and_floor_of_aggcs_authors_can_be_set():
    """As they ran LoRA, but for the end that moves and the start of the average."""
    numbers = {"min_factor": 0.9, "max_factor": 1.1, "floor": 0.01, "decay": 0.95}
    numbers |= {"low": 0.95, "high": 0.7}
    own = dataclasses.replace(METHODS["aggc"].optimizer, clip_numbers=numbers)
    check_clip(own)
    config = dataclasses.replace(STEP_CONFIG, components=own.components, clip="aggc")
    hparams = make_hparams(own, RegularizationConfig(dropout=0.0), STEPS)
    state, found = init_run(config, PARAMS, jax.random.key(1), hparams), []
    step, grads = jax.jit(functools.partial(update, config)), drawn(5)
    for each in grads:
        state, metrics = step(state, np.float32(1), each)
        found.append((None, metrics))
    of_kind = cwgnc_jax.by_module_type
    norms = [list(cwgnc_jax.component_norms(x, of_kind).values()) for x in grads]
    average, expected = np.zeros(len(norms[0])), []
    for row in np.array(norms):
        lowered, raised = 0.7 * average / row, np.maximum(0.95 * average, 0.01) / row
        too_large = (average > 0) & (lowered < 1)
        factor = np.where(
            too_large, np.maximum(0.9, lowered), np.clip(raised, 1.0, 1.1)
        )
        moved = 0.95 * average + 0.05 * factor * row
        average = np.where(average > 0, moved, factor * row)
        expected.append(factor)
    np.testing.assert_allclose(coefficients(found), expected, rtol=1e-4)
    assert np.min(expected) == 0.9 and np.max(expected) == 1.1


def test_autoclip_remembers_the_whole_run():
    grads = drawn(8)
    found, _ = stepped("autoclip", grads, history_length=8)
    norms = global_norms(grads)
    thresholds = [np.percentile(norms[: i + 1], 10) for i in range(len(norms))]
    expected = np.minimum(1, thresholds / (norms + 1e-6))
    np.testing.assert_allclose(coefficients(found)[:, 0], expected, rtol=1e-5)
    assert (expected < 1).any()


@pytest.mark.parametrize(("method", "length"), [("autoclip", 535 * 5), ("cwgnc", None)])
def test_the_history_is_as_long_as_the_run(method, length):
    class Inputs:
        """As many examples as CoLA has."""

        train = range(8551)
        layers = 1

        class checkpoint:
            config = MODEL

        class task:
            regression = False

    of_task = TaskRuns(Inputs(), TrainingConfig(), 128)  # type: ignore[arg-type]
    own = METHODS[method]
    run = RunSpec(
        "cola",
        method,
        own.optimizer,
        own.regularization,
        own.epochs,
        seed=1,
        data_seed=1,
    )
    config = of_task.step_config(run)
    assert config.history_length == length
    if length:
        hparams = make_hparams(own.optimizer, RegularizationConfig(), length)
        state = jax.eval_shape(
            lambda: init_run(config, PARAMS, jax.random.key(0), hparams)
        )
        assert state.opt_state[0].inner_state.history.shape == (1, length)
