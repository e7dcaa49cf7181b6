import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cwgnc_jax import (
    adagc,
    aggc,
    by_module,
    component_clip_by_global_norm,
    olmo_clip,
)
from tests.trajectories import STEPS, norms_over_time, random_grads, run


def test_adagc_is_its_rule():
    grads = random_grads()
    norms = norms_over_time(grads)
    expected, gamma = np.ones_like(norms), np.full(2, np.inf)
    for t, norm in enumerate(norms):
        if t < 10:
            expected[t] = min(1.0, 3.0 / np.sqrt(np.sum(norm**2)))
            gamma = np.minimum(gamma, expected[t] * norm)
        else:
            expected[t] = np.minimum(1.0, 1.3 * gamma / norm)
            gamma = 0.8 * gamma + 0.2 * expected[t] * norm
    tx = adagc(1.3, by_module, decay=0.8, max_global_norm=3.0, warmup_steps=10)
    coefficients, state = run(tx, grads)
    assert 5 < np.sum(expected[10:] < 1) < 75
    np.testing.assert_allclose(coefficients, expected, rtol=2e-5)
    np.testing.assert_allclose(state.average, gamma, rtol=2e-5)
    assert state.count == STEPS


def aggc_by_hand(
    norms, low, high, decay, min_factor=0, max_factor=np.inf, floor=0, raise_small=True
):
    """Coefficients, and the last averages."""
    coefficients, average = np.ones_like(norms), np.zeros(norms.shape[1])
    for t, step in enumerate(norms):
        for c, norm in enumerate(step):
            upper = high * average[c] if t else np.inf
            lower = max(low * average[c], floor)
            if norm > upper:
                coefficients[t, c] = max(upper / norm, min_factor)
            elif raise_small and norm < lower:
                coefficients[t, c] = min(lower / norm, max_factor)
            kept = coefficients[t, c] * norm
            average[c] = decay * average[c] + (1 - decay) * kept if t else kept
    return coefficients, average


CAPS = {"min_factor": 0.9, "max_factor": 1.1, "floor": 0.01}
AGGC = {
    "interval": {"low": 0.6, "high": 1.4, "decay": 0.9},
    "LoRA": {"low": 0.95, "high": 0.6, "decay": 0.95, "raise_small": False, **CAPS},
    "GRPO": {"low": 0.98, "high": 0.7, "decay": 0.99, **CAPS, "floor": 0.0},
    "caps": {"low": 0.6, "high": 1.4, "decay": 0.9, **CAPS},
    "floor": {"low": 0.1, "high": 1.4, "decay": 0.9, "floor": 2.0},
    "none small": {"low": 0.6, "high": 1.4, "decay": 0.9, "raise_small": False},
}


@pytest.mark.parametrize("numbers", AGGC.values(), ids=AGGC)
def test_aggc_is_its_rule(numbers):
    grads = random_grads(1)
    expected, average = aggc_by_hand(norms_over_time(grads), **numbers)
    coefficients, state = run(aggc(component_fn=by_module, **numbers), grads)
    raising = numbers.get("raise_small", True)
    assert np.any(expected < 1) and np.any(expected > 1) == raising
    np.testing.assert_allclose(coefficients, expected, rtol=2e-5)
    np.testing.assert_allclose(state.average, average, rtol=2e-5)


def test_the_floor_raises_the_first_norm_which_starts_the_average():
    tx = aggc(0.0, 1.0, floor=2.0, max_factor=1.5)
    updates, state = tx.update({"w": jnp.ones(1)}, tx.init({"w": jnp.ones(1)}))
    np.testing.assert_allclose(updates["w"], [1.5])
    np.testing.assert_allclose(state.average, [1.5])


def test_the_least_factor_keeps_no_norm_that_is_not_finite():
    tx = aggc(0.5, 2.0, min_factor=0.9, max_factor=1.1, floor=0.1)
    plain = component_clip_by_global_norm(1.0)
    grads = {"w": jnp.ones(2)}
    _, state = tx.update(grads, tx.init(grads))
    for bad in (jnp.nan, jnp.inf):
        grads = {"w": jnp.array([bad, 1.0])}
        updates, _ = tx.update(grads, state)
        expected, _ = plain.update(grads, plain.init(grads))
        np.testing.assert_array_equal(updates["w"], expected["w"])


def test_aggc_joins_modules_of_a_type_by_default():
    params = {"layer": {str(i): {"query": {"kernel": jnp.ones(2)}} for i in range(3)}}
    assert aggc(0.5, 2.0).init(params).average.shape == (1,)


def test_olmo_clip_is_its_rule():
    grads = random_grads(2)
    norms = norms_over_time(grads)
    expected, average = np.ones_like(norms), norms[0]
    for t, norm in enumerate(norms):
        if t > 0:
            expected[t] = np.minimum(1.0, 1.2 * average / (norm + 1e-6))
        average = average + (1 - 0.95) * (expected[t] * norm - average)
    coefficients, state = run(olmo_clip(1.2, by_module), grads)
    assert 5 < np.sum(expected < 1) < 95
    np.testing.assert_allclose(coefficients, expected, rtol=2e-5)
    np.testing.assert_allclose(state.average, average, rtol=2e-5)


def test_the_ratio_of_olmo_clip_is_larger_in_the_first_steps():
    grads = random_grads(2)
    norms = norms_over_time(grads)
    expected, average = np.ones_like(norms), norms[0]
    for t, norm in enumerate(norms[1:], start=1):
        ratio = 1.2 * (3.0 if t < 20 else 1.0)  # t counts from 0, OLMo from 1
        expected[t] = np.minimum(1.0, ratio * average / (norm + 1e-6))
        average = 0.999 * average + 0.001 * expected[t] * norm
    tx = olmo_clip(1.2, by_module, decay=0.999, warmup_steps=20, warmup_factor=3.0)
    coefficients, state = run(tx, grads)
    assert 0 < np.sum(expected[:20] < 1) < np.sum(expected[20:40] < 1)
    np.testing.assert_allclose(coefficients, expected, rtol=2e-5)
    np.testing.assert_allclose(state.average, average, rtol=2e-5)
    assert state.count == STEPS


def test_parameter_that_starts_without_a_gradient_is_not_clipped_to_nothing():
    tx = adagc(warmup_steps=2)
    state = tx.init({"w": jnp.zeros(2)})
    for size in (0.0, 0.0, 1.0, 1.0):
        updates, state = tx.update({"w": jnp.array([size, 0.0])}, state)
    np.testing.assert_array_equal(updates["w"], [1.0, 0.0])


def test_numbers_can_be_injected_as_schedules():
    tx = optax.inject_hyperparams(aggc, static_args="component_fn")(
        low=0.0, high=lambda step: 2.0 / (step + 1)
    )
    grads = {"w": jnp.array([3.0, 4.0])}
    state = tx.init(grads)
    for expected in (5.0, 5.0, 5.0 * 2 / 3):
        updates, state = jax.jit(tx.update)(grads, state)
        assert jnp.linalg.norm(updates["w"]) == pytest.approx(expected)
