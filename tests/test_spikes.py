import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, PartitionSpec

from cwgnc_jax import scale_by_spam, spike_skip

STEPS = 60


def spiky_grads(seed=0, steps=STEPS):
    rng = np.random.default_rng(seed)
    sizes = np.exp(0.3 * rng.normal(size=steps))
    sizes[[9, 30, 31, 47]] *= 50
    return jax.tree.map(
        lambda shape: jnp.asarray(
            rng.normal(size=(steps, *shape)) * sizes.reshape(-1, *[1] * len(shape)),
            jnp.float32,
        ),
        {"kernel": (3, 2), "bias": (2,)},
        is_leaf=lambda node: isinstance(node, tuple),
    )


def at(grads, step):
    return jax.tree.map(lambda leaf: leaf[step], grads)


def trajectory(tx, grads, state=None):
    """All updates, and the last state."""
    state = tx.init(at(grads, 0)) if state is None else state
    return jax.lax.scan(lambda state, grad: tx.update(grad, state)[::-1], state, grads)[
        ::-1
    ]


def outliers(norms, sigmas, window):
    """Which steps are skipped, by the rule of OLMo-core and MaxText."""
    skipped = np.zeros(len(norms), bool)
    for t, norm in enumerate(norms):
        past = norms[max(0, t - window) : t]
        if t + 1 >= max(3, window // 2):
            skipped[t] = norm > past.mean() + sigmas * past.std(ddof=1)
    return skipped


def global_norms(grads):
    leaves = [np.reshape(leaf, (len(leaf), -1)) for leaf in jax.tree.leaves(grads)]
    return np.linalg.norm(np.float64(np.concatenate(leaves, axis=1)), axis=1)


@pytest.mark.parametrize(("sigmas", "window"), [(3.0, 16), (1.0, 5), (6.0, 128)])
def test_outliers_are_skipped_and_the_inner_state_does_not_know(sigmas, window):
    grads = spiky_grads()
    norms = global_norms(grads)
    skipped = outliers(norms, sigmas, window)
    assert (0 < skipped.sum() < STEPS // 2) == (window < STEPS)
    inner = optax.adam(lambda step: 0.1 / (1 + step))
    updates, state = trajectory(spike_skip(inner, sigmas, window=window), grads)
    kept = np.flatnonzero(~skipped)
    expected, inner_state = trajectory(inner, at(grads, kept))
    chex.assert_trees_all_close(at(updates, kept), expected, rtol=1e-5, atol=1e-7)
    chex.assert_trees_all_close(state.inner_state, inner_state, rtol=1e-5)
    for leaf in jax.tree.leaves(at(updates, skipped)):
        assert not np.any(leaf)
    assert (state.count, state.skipped) == (STEPS, skipped.sum())
    last = np.roll(np.arange(STEPS)[-window:], STEPS % window)
    if window < STEPS:
        np.testing.assert_allclose(state.norms, norms[last], rtol=1e-6)


def test_by_default_the_64th_norm_is_the_first_that_is_judged():
    sizes = 1 + 0.1 * jnp.sin(jnp.arange(64.0))
    for spike, skipped in ((62, 0), (63, 1)):
        tx = spike_skip(optax.identity())
        _, state = trajectory(tx, sizes.at[spike].set(50.0))
        assert state.skipped == skipped


def test_the_third_norm_is_judged_by_the_deviation_of_two():
    # Their mean is 2, their deviation the root of 2.
    tx = spike_skip(optax.sgd(1.0), sigmas=1.0, window=4)
    for norm, skipped in ((3.3, 0), (3.5, 1)):
        state = tx.init({"w": jnp.zeros(1)})
        for each in (1.0, 3.0, norm):
            _, state = tx.update({"w": jnp.array([each])}, state)
        assert state.skipped == skipped


def test_a_new_level_of_norms_is_soon_no_outlier():
    tx = spike_skip(optax.identity(), window=16)
    sizes = jnp.concatenate([1 + 0.1 * jnp.arange(16) % 2, jnp.full(20, 100.0)])
    updates, state = trajectory(tx, sizes)
    assert 1 <= state.skipped <= 4
    np.testing.assert_array_equal(updates[-16:], sizes[-16:])


@pytest.mark.parametrize("scale", [1e-18, 1.0, 1e17])
def test_norms_of_any_size_are_judged_alike(scale):
    sizes = jnp.array([1.0, 1.1, 0.9, 1.0, 1.05, 40.0, 1.0]) * scale
    updates, state = trajectory(spike_skip(optax.identity(), window=6), sizes)
    np.testing.assert_array_equal(updates == 0, sizes > 10 * scale)
    assert state.skipped == 1


def test_equal_norms_are_no_outliers():
    for size in (0.0, 0.1, 1 / 3):
        _, state = trajectory(
            spike_skip(optax.identity(), window=8), jnp.full(40, size)
        )
        assert state.skipped == 0


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf, -jnp.inf, 1e30])
def test_a_step_that_is_not_finite_is_skipped_and_learned_from_never(bad):
    grads = spiky_grads(steps=50)
    spoilt = jax.tree.map(jnp.copy, grads)
    when = np.array([0, 1, 20, 40])
    spoilt["bias"] = spoilt["bias"].at[when, 0].set(bad)
    tx = spike_skip(optax.adam(0.1), 3.0, window=16)
    updates, state = trajectory(tx, spoilt)
    rest = np.setdiff1d(np.arange(50), when)
    expected, without = trajectory(tx, at(grads, rest))
    chex.assert_trees_all_close(at(updates, rest), expected, rtol=1e-5, atol=1e-7)
    assert not np.any(updates["kernel"][when]) and not np.any(updates["bias"][when])
    assert state.skipped == without.skipped + 4
    chex.assert_trees_all_close(state._replace(skipped=0), without._replace(skipped=0))


def test_the_skip_wraps_and_is_wrapped():
    grads = spiky_grads(1)
    none = {"kernel": None, **{"bias": grads["bias"]}}
    tx = spike_skip(optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(1.0)))
    updates, _ = trajectory(tx, none)
    assert updates["kernel"] is None

    def scaled(updates, state, params=None, *, value):
        return optax.tree.scale(value, updates), state

    inner = optax.GradientTransformationExtraArgs(lambda params: (), scaled)
    tx = spike_skip(inner)
    updates, _ = tx.update(at(grads, 0), tx.init(at(grads, 0)), value=2.0)
    chex.assert_trees_all_close(updates, optax.tree.scale(2.0, at(grads, 0)))

    assert tx.update({}, tx.init({}), value=2.0)[0] == {}


def test_all_devices_judge_the_norm_of_the_whole_tree():
    mesh = jax.make_mesh((4,), ("x",), axis_types=(AxisType.Auto,))
    sizes = np.array([1, 1.1, 0.9, 1, 1, 30, 1])
    grads = {"w": jnp.asarray(sizes[:, None] * np.ones(8), jnp.float32)}
    # Only one device sees the spike.
    grads["w"] = grads["w"].at[5, 1:].set(1.0)

    def steps(tx):
        return lambda grads: trajectory(tx, grads, tx.init({"w": jnp.zeros(2)}))

    tx = spike_skip(optax.identity(), window=6, axis_name="x")
    spec = {"w": PartitionSpec(None, "x")}
    run = jax.shard_map(
        steps(tx), mesh=mesh, in_specs=(spec,), out_specs=(spec, PartitionSpec())
    )
    updates, state = jax.jit(run)(grads)
    expected, alone = trajectory(spike_skip(optax.identity(), window=6), grads)
    assert state.skipped == alone.skipped == 1
    np.testing.assert_allclose(updates["w"], expected["w"])
    np.testing.assert_allclose(state.norms, alone.norms, rtol=1e-6)
    with pytest.raises(ValueError, match="sharded over the mesh axis 'x'"):
        jax.shard_map(
            steps(spike_skip(optax.identity())),
            mesh=mesh,
            in_specs=(spec,),
            out_specs=(spec, PartitionSpec()),
        )(grads)


SPAM = {"interval": 20, "threshold": 3.0, "spared_steps": 4, "warmup_steps": 6}


def spam_by_hand(grads, interval, threshold, spared_steps, warmup_steps):
    """Updates, and which elements are clipped, by the rule of the authors' code."""
    m = v = np.zeros(grads.shape[1:])
    updates, clipped = [], []
    since_reset = warmup_steps + 1
    for t, g in enumerate(grads, start=1):
        if t % interval == 0:
            m = v = np.zeros(grads.shape[1:])
            since_reset = 0
        spike = (g**2 > threshold * v) & (t % interval >= spared_steps)
        g = np.where(spike, np.sign(g) * np.sqrt(threshold * v), g)
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        correction = np.sqrt(1 - 0.999**t) / (1 - 0.9**t)
        share = 1.0
        if since_reset < warmup_steps:
            cosine = np.cos(np.pi * since_reset / (warmup_steps + 1))
            share = 1 - 0.99 * (1 + cosine) / 2
        updates.append(share * correction * m / (np.sqrt(v) + 1e-6))
        clipped.append(spike)
        since_reset += 1
    return np.array(updates), np.array(clipped)


@pytest.mark.parametrize(
    "numbers", [SPAM, {**SPAM, "threshold": 500.0}, {**SPAM, "warmup_steps": 0}]
)
def test_spam_is_its_rule(numbers):
    grads = spiky_grads(2)
    updates, state = trajectory(scale_by_spam(**numbers), grads)
    for name, leaf in grads.items():
        expected, clipped = spam_by_hand(np.float64(leaf), **numbers)
        assert 0 < clipped.sum() < clipped.size
        np.testing.assert_allclose(updates[name], expected, rtol=1e-4, atol=1e-5)
    assert state.count == STEPS


def test_without_resets_and_clips_spam_is_adam():
    grads = spiky_grads(3)
    tx = scale_by_spam(interval=STEPS + 1, threshold=jnp.inf)
    adam = optax.scale_by_adam(eps=0)
    updates, _ = trajectory(tx, grads)
    expected, _ = trajectory(adam, grads)
    chex.assert_trees_all_close(updates, expected, rtol=1e-3, atol=1e-4)


def test_an_element_without_a_past_is_not_kept_at_zero():
    tx = scale_by_spam(spared_steps=1)
    state = tx.init(jnp.zeros(2))
    for grad in ([1.0, 0.0], [1.0, 1.0]):
        updates, state = tx.update(jnp.array(grad), state)
    assert np.all(updates > 0.1)


def test_an_infinite_element_becomes_its_threshold():
    tx = scale_by_spam(spared_steps=1, threshold=4.0)
    state = tx.init(jnp.zeros(2))
    for grad in ([1.0, 1.0], [-jnp.inf, 1.0]):
        updates, state = tx.update(jnp.array(grad), state)
    assert np.all(np.isfinite(updates)) and np.all(np.isfinite(state.nu))
    np.testing.assert_allclose(state.mu[0], 0.09 - 0.1 * np.sqrt(4 * 0.001), rtol=1e-5)


def test_spam_forgets_a_spike_and_nan_at_the_next_reset():
    grads = jnp.ones((12, 2)).at[3, 0].set(jnp.nan)
    tx = scale_by_spam(interval=6, warmup_steps=0, spared_steps=0)
    updates, _ = trajectory(tx, grads)
    clean, _ = trajectory(tx, jnp.ones((12, 2)))
    assert np.all(np.isnan(updates[3:5, 0]))
    np.testing.assert_array_equal(updates[:, 1], clean[:, 1])
    np.testing.assert_array_equal(updates[5:], clean[5:])


def test_runs_under_vmap_equal_each_alone():
    seeds = [spiky_grads(seed) for seed in (4, 5)]
    both = jax.tree.map(lambda *leaves: jnp.stack(leaves), *seeds)
    for tx in (spike_skip(optax.adam(0.1), 3.0, window=16), scale_by_spam(**SPAM)):
        swept = jax.vmap(lambda grads, tx=tx: trajectory(tx, grads))(both)
        for i, grads in enumerate(seeds):
            alone = trajectory(tx, grads)
            chex.assert_trees_all_close(at(swept, i), alone, rtol=1e-4, atol=1e-6)


def test_the_threshold_can_be_swept():
    grads = jnp.array([1.0, 1.1, 0.9, 1.0, 2.0])

    def skipped(sigmas):
        tx = spike_skip(optax.identity(), sigmas, window=8)
        return trajectory(tx, grads)[1].skipped

    np.testing.assert_array_equal(jax.vmap(skipped)(jnp.array([5.0, 50.0])), [1, 0])


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (
            lambda: spike_skip(0.1),
            TypeError,
            "inner must be an optax.GradientTransformation",
        ),
        (lambda: spike_skip(optax.sgd(1), 0), ValueError, "sigmas must be positive"),
        (lambda: spike_skip(optax.sgd(1), "6"), TypeError, "sigmas must be a real nu"),
        (lambda: spike_skip(optax.sgd(1), window=3), ValueError, "window must be at"),
        (lambda: spike_skip(optax.sgd(1), window=8.0), TypeError, "window must be an"),
        (lambda: scale_by_spam(b1=1.0), ValueError, r"b1 must lie in \[0, 1\)"),
        (lambda: scale_by_spam(eps=-1), ValueError, "eps must be 0 or a positive"),
        (lambda: scale_by_spam(interval=0), ValueError, "interval must be at least 1"),
        (lambda: scale_by_spam(threshold=0), ValueError, "threshold must be positive"),
        (lambda: scale_by_spam(spared_steps=-1), ValueError, "spared_steps must be at"),
        (lambda: scale_by_spam(warmup_steps=-1), ValueError, "warmup_steps must be at"),
    ],
)
def test_numbers_out_of_range_are_refused(make, error, match):
    with pytest.raises(error, match=match):
        make()


@pytest.mark.parametrize("tx", [spike_skip(optax.sgd(1.0)), scale_by_spam()])
def test_integers_are_refused_by_name(tx):
    with pytest.raises(TypeError, match="'steps' has the dtype int32"):
        tx.init({"steps": jnp.zeros(2, jnp.int32)})
