import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import cwgnc_jax
from cwgnc_jax import (
    adagc,
    aggc,
    autoclip,
    by_module,
    component_norms,
    olmo_clip,
    zclip,
)

STEPS = 50
MAKERS = {
    "adagc": lambda **kwargs: adagc(1.2, decay=0.8, warmup_steps=5, **kwargs),
    "aggc": lambda **kwargs: aggc(0.7, 1.3, decay=0.8, **kwargs),
    "olmo_clip": lambda **kwargs: olmo_clip(1.1, decay=0.9, **kwargs),
    "autoclip": lambda **kwargs: autoclip(30.0, history_length=8, **kwargs),
    "zclip": lambda **kwargs: zclip(1.5, decay=0.9, warmup_steps=6, **kwargs),
}
MADE = {name: make(component_fn=by_module) for name, make in MAKERS.items()}
EVERY = pytest.mark.parametrize("tx", MADE.values(), ids=MADE)
EVERY_MAKER = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)


def random_grads(seed=0, steps=STEPS):
    """Gradients of some steps along the leading axis, with spikes."""
    rng = np.random.default_rng(seed)

    def leaf(*shape):
        sizes = np.exp(rng.normal(size=(steps, *[1] * len(shape))))
        return jnp.asarray(rng.normal(size=(steps, *shape)) * sizes, jnp.float32)

    return {
        "a": {"kernel": leaf(3, 4), "bias": leaf(4)},
        "b": {"kernel": leaf(4, 2)},
    }


def norms_over_time(grads):
    """Norms ``[steps, components]`` of the modules, by numpy alone."""
    a = np.concatenate(
        [
            np.reshape(grads["a"][name], (len(grads["a"][name]), -1))
            for name in ("kernel", "bias")
        ],
        axis=1,
    )
    b = np.reshape(grads["b"]["kernel"], (len(grads["b"]["kernel"]), -1))
    norms = [np.linalg.norm(np.float64(grad), axis=1) for grad in (a, b)]
    return np.stack(norms, axis=1)


@functools.partial(jax.jit, static_argnums=0)
def trajectory(tx, grads):
    """All updates, and the last state."""
    first = jax.tree.map(lambda leaf: leaf[0], grads)
    return jax.lax.scan(
        lambda state, grad: tx.update(grad, state)[::-1], tx.init(first), grads
    )[::-1]


def run(tx, grads):
    """Coefficients ``[steps, components]`` as the updates show them, and the state."""
    updates, state = trajectory(tx, grads)
    return norms_over_time(updates) / norms_over_time(grads), state


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


def test_aggc_is_its_rule():
    grads = random_grads(1)
    norms = norms_over_time(grads)
    expected, average = np.ones_like(norms), norms[0]
    for t, norm in enumerate(norms[1:], start=1):
        expected[t] = np.clip(norm, 0.6 * average, 1.4 * average) / norm
        average = 0.9 * average + 0.1 * expected[t] * norm
    coefficients, state = run(aggc(0.6, 1.4, by_module, decay=0.9), grads)
    assert np.any(expected < 1) and np.any(expected > 1) and np.any(expected[1:] == 1)
    np.testing.assert_allclose(coefficients, expected, rtol=2e-5)
    np.testing.assert_allclose(state.average, average, rtol=2e-5)


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


def test_zclip_is_its_rule():
    grads = random_grads(4)
    norms = norms_over_time(grads)
    expected = np.ones_like(norms)
    mean, variance = norms[:10].mean(0), norms[:10].var(0)
    for t, norm in enumerate(norms[10:], start=10):
        deviation = np.sqrt(variance)
        z = (norm - mean) / (deviation + 1e-6)
        kept = np.where(z > 1.5, mean + 1.5**2 * deviation / z, norm)
        expected[t] = kept / norm
        mean = 0.9 * mean + 0.1 * kept
        variance = 0.9 * variance + 0.1 * (kept - mean) ** 2
    tx = zclip(1.5, by_module, decay=0.9, warmup_steps=10)
    coefficients, state = run(tx, grads)
    assert 3 < np.sum(expected < 1) < 40
    np.testing.assert_allclose(coefficients, expected, rtol=2e-5)
    np.testing.assert_allclose(state.mean, mean, rtol=2e-5)
    np.testing.assert_allclose(state.variance, variance, rtol=1e-4)


@EVERY
def test_norms_that_teach_nothing_leave_the_state_usable(tx):
    grads = random_grads(5, 15)
    healthy, _ = run(tx, grads)
    at = np.array([0, 7, 9, 11])
    kernel = grads["b"]["kernel"].at[at[:2]].set(0.0).at[9].set(jnp.nan)
    spoilt = {"a": grads["a"], "b": {"kernel": kernel.at[11, 0, 0].set(jnp.inf)}}
    late = np.append(np.delete(np.arange(15), at), at)
    with np.errstate(invalid="ignore"):
        coefficients, state = run(tx, spoilt)
        _, later = run(tx, jax.tree.map(lambda leaf: leaf[late], spoilt))
    chex.assert_tree_all_finite(state)
    if type(state).__name__ == "AdaGCState":  # whose warm-up is of all components
        return
    np.testing.assert_allclose(coefficients[:, 0], healthy[:, 0], rtol=1e-5)
    # Not clipped to nothing for ever, as by a threshold of zero.
    assert np.all(np.delete(coefficients[:, 1], at) > 1e-2)
    if type(state).__name__ != "AutoClipState":  # whose history has gaps
        for leaf, leaf_later in zip(state, later, strict=True):
            np.testing.assert_allclose(leaf[1], leaf_later[1], rtol=1e-6)


def test_parameter_that_starts_without_a_gradient_is_not_clipped_to_nothing():
    tx = adagc(warmup_steps=2)
    state = tx.init({"w": jnp.zeros(2)})
    for size in (0.0, 0.0, 1.0, 1.0):
        updates, state = tx.update({"w": jnp.array([size, 0.0])}, state)
    np.testing.assert_array_equal(updates["w"], [1.0, 0.0])


@EVERY
def test_non_finite_gradients_become_what_the_plain_clip_makes_of_them(tx):
    plain = cwgnc_jax.component_clip_by_global_norm(1.0)
    grads = random_grads(6, 15)
    last = grads["b"]["kernel"].at[-1, 0, 0]
    for bad in (jnp.nan, jnp.inf):
        spoilt = {"a": grads["a"], "b": {"kernel": last.set(bad)}}
        updates, _ = trajectory(tx, spoilt)
        expected, _ = plain.update(spoilt["b"]["kernel"][-1], optax.EmptyState())
        np.testing.assert_array_equal(updates["b"]["kernel"][-1], expected)
        assert np.all(np.isfinite(updates["a"]["kernel"]))


@EVERY_MAKER
def test_wrappers_donation_and_reports_keep_the_structure(make):
    grads = jax.tree.map(lambda leaf: leaf[0].astype("bfloat16"), random_grads(7, 1))
    clip = make(component_fn=by_module, keep_report=True)
    tx = optax.MultiSteps(optax.apply_if_finite(optax.chain(clip), 3), 2)
    state = tx.init(grads)
    update = jax.jit(tx.update, donate_argnums=1)
    shapes = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), state)
    for _ in range(4):
        updates, state = update(grads, state, grads)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), state) == shapes
    assert {leaf.dtype for leaf in jax.tree.leaves(updates)} == {jnp.dtype("bfloat16")}
    norm = float(component_norms(grads, by_module)["b"])
    assert cwgnc_jax.clip_report(state, grads, by_module).norm["b"] == pytest.approx(
        norm, rel=1e-2
    )


@EVERY
def test_runs_under_vmap_equal_each_alone(tx):
    seeds = [random_grads(seed, 15) for seed in (8, 9)]
    both = jax.tree.map(lambda *leaves: jnp.stack(leaves), *seeds)
    swept = jax.vmap(lambda grads: trajectory(tx, grads))(both)
    for i, grads in enumerate(seeds):
        one = jax.tree.map(lambda leaf, i=i: leaf[i], swept)
        chex.assert_trees_all_close(one, trajectory(tx, grads), rtol=1e-5)


@EVERY_MAKER
def test_empty_trees_pass(make):
    updates, state = make().update({}, make().init({}))
    assert updates == {}
    assert jax.tree.structure(state) == jax.tree.structure(make().init({}))


def test_numbers_can_be_injected_as_schedules():
    tx = optax.inject_hyperparams(aggc, static_args="component_fn")(
        low=0.0, high=lambda step: 2.0 / (step + 1)
    )
    grads = {"w": jnp.array([3.0, 4.0])}
    state = tx.init(grads)
    for expected in (5.0, 5.0, 5.0 * 2 / 3):
        updates, state = jax.jit(tx.update)(grads, state)
        assert jnp.linalg.norm(updates["w"]) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: adagc(0.0), ValueError, "ratio must be positive"),
        (lambda: adagc(decay=1.0), ValueError, r"decay must lie in \[0, 1\)"),
        (lambda: adagc(warmup_steps=-1), ValueError, "warmup_steps must be at least 0"),
        (lambda: adagc(max_global_norm=0), ValueError, "max_global_norm must be pos"),
        (lambda: aggc(2.0, 1.0), ValueError, "low must not exceed high, got 2.0 and"),
        (lambda: aggc(-1.0, 1.0), ValueError, "low must be 0 or a positive number"),
        (lambda: olmo_clip("1"), TypeError, "ratio must be a real number, got '1'"),
        (lambda: autoclip(101), ValueError, r"percentile must lie in \[0, 100"),
        (lambda: autoclip(history_length=0), ValueError, "history_length must be at l"),
        (lambda: autoclip(history_length=jnp.int32(9)), TypeError, "static_args"),
        (lambda: zclip(-1.0), ValueError, "z_threshold must be positive"),
        (lambda: zclip(warmup_steps=0), ValueError, "warmup_steps must be at least 1"),
        (lambda: zclip(eps=-1.0), ValueError, "eps must be 0 or a positive num"),
    ],
)
def test_numbers_out_of_range_are_refused(make, error, match):
    with pytest.raises(error, match=match):
        make()
