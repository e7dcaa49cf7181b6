"""Leaves of every kind of number, and thresholds that are traced."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import cwgnc_jax
from cwgnc_jax import component_clip_by_global_norm as clip
from tests.composition.transforms import GRADS, TRANSFORMS, nested
from tests.composition.wrappers import PLAIN, PULL

HUGE = np.array([1e20, 1e20])
NO_NUMBERS = {"gradual_unfreezing"}
"""It hands all leaves to an optimizer and computes nothing itself."""

LEARNED = {
    "adagc": cwgnc_jax.adagc(warmup_steps=0),
    "olmo_clip": cwgnc_jax.olmo_clip(1.0),
}


@pytest.mark.parametrize("program", [False, True], ids=["eager", "jit"])
def test_the_norm_of_long_floats_is_accumulated_in_them(program):
    with jax.enable_x64(True):
        grads = {"w": jnp.asarray(HUGE)}
        tx = clip(1.0)
        update = jax.jit(tx.update) if program else tx.update
        updates, _ = update(grads, tx.init(grads))
        assert updates["w"].dtype == jnp.float64
    np.testing.assert_allclose(updates["w"], np.sqrt([0.5, 0.5]), rtol=1e-6)


def test_the_norm_of_long_floats_is_exact_beside_short_ones():
    with jax.enable_x64(True):
        grads = {"w": jnp.asarray([3.0, 4.0 + 1e-9]), "v": jnp.ones(2, jnp.float32)}
        norms = cwgnc_jax.component_norms(grads)
        assert norms["w"].dtype == jnp.float64
    assert norms["w"] == pytest.approx(np.hypot(3.0, 4.0 + 1e-9), rel=1e-15)


def test_the_norm_of_long_complex_numbers_is_accumulated_in_them():
    with jax.enable_x64(True):
        grads = {"w": jnp.asarray(HUGE * (0.6 + 0.8j))}
        updates, _ = clip(1.0).update(grads, clip(1.0).init(grads))
        assert updates["w"].dtype == jnp.complex128
    expected = np.sqrt([0.5, 0.5]) * (0.6 + 0.8j)
    np.testing.assert_allclose(updates["w"], expected, rtol=1e-6)


@pytest.mark.parametrize("name", LEARNED)
def test_clips_that_learn_take_long_floats(name):
    with jax.enable_x64(True):
        tx, grads = LEARNED[name], {"w": jnp.asarray(HUGE)}
        state = tx.init(grads)
        _, state = tx.update({"w": jnp.asarray([0.6, 0.8])}, state)
        updates, after = tx.update(grads, state)
        assert dtypes(after) == dtypes(state)
    assert np.linalg.norm(updates["w"]) == pytest.approx(
        1.05 if name == "adagc" else 1.0, rel=1e-5
    )


def dtypes(tree):
    return [leaf.dtype for leaf in jax.tree.leaves(tree)]


def test_short_floats_are_summed_in_float32():
    grads = {"w": jnp.full(4, 200.0, jnp.float16)}
    updates, _ = clip(1.0).update(grads, clip(1.0).init(grads))
    np.testing.assert_allclose(updates["w"], np.full(4, 0.5), rtol=1e-3)


@pytest.mark.parametrize(
    "name", [name for name in TRANSFORMS if name not in NO_NUMBERS]
)
@pytest.mark.parametrize("dtype", ["int32", "uint8"])
def test_leaves_of_whole_numbers_are_refused_by_their_path(name, dtype):
    tx = TRANSFORMS[name].make(PULL)
    grads = nested(GRADS[0])
    grads["layer_0"]["bias"] = jnp.ones(2, dtype)
    params = nested(GRADS[0])
    params["layer_0"]["bias"] = jnp.ones(2, dtype)
    with pytest.raises(TypeError, match="layer_0/bias"):
        tx.update(grads, tx.init(params), params)


# --- Thresholds below zero.


def assert_zeros(updates):
    for leaf in jax.tree.leaves(updates):
        np.testing.assert_array_equal(leaf, np.zeros(leaf.shape))


def test_a_schedule_below_zero_gives_zeros():
    tx = clip(optax.linear_schedule(1.0, -1.0, 2))
    state = tx.init(PLAIN)
    signs = []
    for grads in map(nested, GRADS[:3]):
        updates, state = tx.update(grads, state, PLAIN)
        signs.append(np.sign(updates["classifier"]["kernel"]))
    np.testing.assert_array_equal(signs[0], np.sign(GRADS[0]["classifier/kernel"]))
    assert_zeros(updates)


@pytest.mark.parametrize("max_norm", [-1.0, -1e-30, -np.inf])
@pytest.mark.parametrize(
    "wrap",
    [lambda x: x, cwgnc_jax.per_element, cwgnc_jax.relative_to_params],
    ids=["number", "per_element", "relative_to_params"],
)
def test_a_traced_threshold_below_zero_gives_zeros(max_norm, wrap):
    @jax.jit
    def update(grads, max_norm):
        tx = clip(wrap(max_norm))
        return tx.update(grads, tx.init(PLAIN), PLAIN)[0]

    grads = nested(GRADS[0])
    assert_zeros(update(grads, max_norm))
    kept = update(grads, 1e6)
    np.testing.assert_allclose(
        kept["classifier"]["kernel"], GRADS[0]["classifier/kernel"], rtol=1e-6
    )


def test_an_injected_threshold_below_zero_gives_zeros():
    tx = optax.inject_hyperparams(clip)(max_norm=1.0)
    state = tx.init(PLAIN)
    state.hyperparams["max_norm"] = jnp.float32(-1.0)
    updates, _ = jax.jit(tx.update)(nested(GRADS[0]), state, PLAIN)
    assert_zeros(updates)


def test_a_ratio_below_zero_gives_zeros():
    tx = optax.inject_hyperparams(cwgnc_jax.olmo_clip)(ratio=1.0)
    state = tx.init(PLAIN)
    update = jax.jit(tx.update)
    _, state = update(nested(GRADS[0]), state, PLAIN)
    state.hyperparams["ratio"] = jnp.float32(-1.0)
    updates, _ = update(nested(GRADS[1]), state, PLAIN)
    assert_zeros(updates)


# --- Derivatives, and dtypes of numbers.


@pytest.mark.parametrize(
    "tx",
    [
        cwgnc_jax.component_clip_by_global_norm(float("inf")),
        cwgnc_jax.olmo_clip(2.0),
        cwgnc_jax.zclip(),
        cwgnc_jax.aggc(0.5, 2.0),
    ],
    ids=["no threshold", "olmo_clip", "zclip", "aggc"],
)
def test_where_nothing_is_clipped_the_derivative_is_one(tx):
    def total(grads):
        return jnp.sum(tx.update(grads, tx.init(grads))[0])

    np.testing.assert_array_equal(jax.grad(total)(jnp.array([3.0, 4.0])), [1.0, 1.0])


@pytest.mark.parametrize("make", [cwgnc_jax.scale_by_adam, cwgnc_jax.scale_by_spam])
def test_a_decay_of_another_dtype_changes_no_moment(make):
    tx = make(b1=np.float32(0.9), b2=jnp.float32(0.99))
    grads = {"narrow": jnp.ones(2, jnp.bfloat16), "wide": jnp.ones(2)}
    state = tx.init(grads)
    updates, after = tx.update(grads, state)
    dtypes = jax.tree.map(lambda leaf: leaf.dtype, (state, grads))
    assert jax.tree.map(lambda leaf: leaf.dtype, (after, updates)) == dtypes


def test_a_factor_is_not_rounded_to_the_dtype_of_a_leaf():
    grads = {"layer_0": jnp.full(1, 6e4, "float16"), "layer_24": jnp.ones(1, "float16")}
    tx = cwgnc_jax.scale_by_layer_decay(0.5)
    updates, _ = tx.update(grads, tx.init(grads))
    assert updates["layer_0"] == np.float16(6e4 * 0.5**25) > 0


def test_leaves_of_eight_bits_are_clipped_in_float32():
    grads = jnp.ones(4, jnp.float8_e4m3fn)
    tx = cwgnc_jax.component_clip_by_global_norm(1.0, eps=0)
    updates, _ = tx.update(grads, tx.init(grads))
    assert updates.dtype == grads.dtype
    np.testing.assert_array_equal(updates.astype(jnp.float32), np.full(4, 0.5))
