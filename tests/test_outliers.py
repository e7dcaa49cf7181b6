import jax.numpy as jnp
import numpy as np
import pytest

from cwgnc_jax import autoclip, by_module, zclip
from tests.trajectories import STEPS, norms_over_time, random_grads, run


def test_autoclip_is_its_rule():
    grads = random_grads(3)
    norms = norms_over_time(grads)
    expected = np.ones_like(norms)
    for t, norm in enumerate(norms):
        past = norms[max(0, t - 15) : t + 1]
        threshold = np.percentile(past, 30, axis=0)
        expected[t] = np.minimum(1.0, threshold / (norm + 1e-6))
    tx = autoclip(30, by_module, history_length=16)
    coefficients, _ = run(tx, grads)
    np.testing.assert_allclose(coefficients, expected, rtol=2e-5)


def test_a_history_of_all_steps_is_the_unbounded_one_of_the_paper():
    grads = random_grads(3)
    norms = norms_over_time(grads)
    thresholds = [np.percentile(norms[: t + 1], 10, axis=0) for t in range(STEPS)]
    expected = np.minimum(1.0, thresholds / (norms + 1e-6))
    coefficients, _ = run(autoclip(10, by_module, history_length=STEPS), grads)
    longer, _ = run(autoclip(10, by_module, history_length=STEPS + 9), grads)
    np.testing.assert_allclose(coefficients, expected, rtol=2e-5)
    np.testing.assert_allclose(longer, expected, rtol=2e-5)


def test_a_norm_that_teaches_nothing_leaves_a_gap_in_the_history():
    tx, remembered = autoclip(50.0, eps=0, history_length=4), []
    state = tx.init({"w": jnp.zeros(1)})
    for norm in (3.0, 5.0, 0.0, 1.0, np.inf, 2.0):
        updates, state = tx.update({"w": jnp.array([norm])}, state)
        remembered.append(norm if 0 < norm < np.inf else np.nan)
        if 0 < norm < np.inf:
            expected = min(norm, np.nanpercentile(remembered[-4:], 50))
            np.testing.assert_allclose(updates["w"][0], expected, rtol=1e-6)


def test_a_history_of_one_step_clips_nothing():
    tx = autoclip(50.0, history_length=1, eps=0)
    state = tx.init({"w": jnp.zeros(1)})
    for norm in (1.0, 5.0):
        updates, state = tx.update({"w": jnp.array([norm])}, state)
        assert updates["w"] == norm


def zclip_by_hand(norms, z_threshold, decay, warmup_steps):
    """The norms that are left without a cap ``[steps, components]``, and moments."""
    kept = norms.copy()
    mean, variance = norms[:warmup_steps].mean(0), norms[:warmup_steps].var(0)
    for t in range(warmup_steps, len(norms)):
        deviation = np.sqrt(variance)
        z = (norms[t] - mean) / (deviation + 1e-6)
        reduced = mean + z_threshold**2 * deviation / z
        kept[t] = np.where(z > z_threshold, reduced, norms[t])
        mean = decay * mean + (1 - decay) * kept[t]
        variance = decay * variance + (1 - decay) * (kept[t] - mean) ** 2
    return kept, mean, variance


@pytest.mark.parametrize("cap", [np.inf, 3.0])
def test_zclip_is_its_rule(cap):
    grads = random_grads(4)
    norms = norms_over_time(grads)
    kept, mean, variance = zclip_by_hand(norms, 1.5, 0.9, 10)
    together = np.linalg.norm(kept, axis=1, keepdims=True)
    expected = kept / norms * np.minimum(1, cap / together)
    tx = zclip(1.5, by_module, decay=0.9, warmup_steps=10, max_global_norm=cap)
    coefficients, state = run(tx, grads)
    assert 3 < np.sum(kept < norms) < 40
    assert np.any(expected[:10] < 1) == np.isfinite(cap)
    np.testing.assert_allclose(coefficients, expected, rtol=2e-5)
    np.testing.assert_allclose(state.mean, mean, rtol=2e-5)
    np.testing.assert_allclose(state.variance, variance, rtol=1e-4)


def test_the_cap_of_the_authors_clips_far_more_than_their_rule():
    # In their code the threshold of a step is the less of the rule's and the cap.
    norms = np.exp(0.3 * np.random.default_rng(2).normal(size=(400, 1)))
    kept, _, _ = zclip_by_hand(norms, 2.5, 0.97, 25)
    capped = np.minimum(kept, 1.0)
    assert (np.sum(kept < norms), np.sum(capped < norms)) == (16, 200)
    for tx, expected in ((zclip(), kept), (zclip(max_global_norm=1.0), capped)):
        state, left = tx.init(jnp.zeros(1)), []
        for norm in norms:
            updates, state = tx.update(jnp.asarray(norm, jnp.float32), state)
            left.append(updates)
        np.testing.assert_allclose(left, expected, rtol=2e-5)


def test_without_a_cap_no_component_hears_of_anothers_nan():
    grads = {"a": jnp.array([jnp.nan]), "b": jnp.ones(1)}
    for cap, expected in ((np.inf, 1.0), (1.0, np.nan)):
        tx = zclip(max_global_norm=cap)
        updates, _ = tx.update(grads, tx.init(grads))
        np.testing.assert_array_equal(updates["b"], [expected])


def test_the_first_norm_after_the_warm_up_is_judged():
    tx = zclip(2.5, warmup_steps=3)
    state = tx.init({"w": jnp.zeros(1)})
    for norm in (1.0, 1.1, 0.9, 100.0):
        updates, state = tx.update({"w": jnp.array([norm])}, state)
    assert updates["w"][0] < 10
