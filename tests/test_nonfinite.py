"""What a component does whose gradient is not a finite number, or at the edge of it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cwgnc_jax import (
    by_module,
    by_parameter,
    clip_report,
    component_clip_by_global_norm,
    component_norms,
)

BAD = {
    "nan": [np.nan, 1.0],
    "inf": [np.inf, 1.0],
    "-inf": [1.0, -np.inf],
    "both": [np.inf, np.nan],
    "overflow": [1e30, 1e30],
}


def clipped(grads, max_norm=1.0, component_fn=by_parameter, **options):
    tx = component_clip_by_global_norm(max_norm, component_fn, **options)
    update = jax.jit(tx.update)
    return update(grads, tx.init(grads))


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
@pytest.mark.parametrize(
    "max_norm",
    [1.0, np.inf, optax.constant_schedule(1.0), [(".*", None)]],
    ids=["number", "none", "schedule", "untouched"],
)
def test_zero_makes_the_whole_component_zero_and_no_other(bad, max_norm):
    grads = {"bad": jnp.array(bad), "good": jnp.array([0.3, 0.4])}
    updates, _ = clipped(grads, max_norm, nonfinite="zero")
    np.testing.assert_array_equal(updates["bad"], [0, 0])
    np.testing.assert_array_equal(updates["good"], grads["good"])


def test_zero_takes_all_leaves_of_the_component():
    grads = {
        "a": {"kernel": jnp.array([jnp.nan]), "bias": jnp.ones(2)},
        "b": {"kernel": jnp.array([3.0]), "bias": jnp.array([4.0])},
    }
    updates, _ = clipped(grads, 1.0, by_module, nonfinite="zero")
    assert not updates["a"]["kernel"].any() and not updates["a"]["bias"].any()
    np.testing.assert_allclose(updates["b"]["kernel"], [0.6], rtol=1e-5)


def test_zero_takes_only_the_layer_of_a_stack_that_is_bad():
    grads = {"layers": {"kernel": jnp.array([[1.0, jnp.inf], [3.0, 4.0]])}}
    options = {"nonfinite": "zero", "stacked_axes": {"layers": 0}}
    updates, _ = clipped(grads, 1.0, **options)
    expected = [[0.0, 0.0], [0.6, 0.8]]
    np.testing.assert_allclose(updates["layers"]["kernel"], expected, rtol=1e-5)


def test_finite_gradients_are_clipped_as_without_the_option():
    grads = {"loud": jnp.array([3.0, 4.0]), "zero": jnp.zeros(3)}
    plain, _ = clipped(grads)
    zeroing, _ = clipped(grads, nonfinite="zero")
    jax.tree.map(np.testing.assert_array_equal, zeroing, plain)


def test_the_report_shows_what_was_made_zero():
    grads = {"bad": jnp.array([jnp.nan, 1.0]), "good": jnp.array([3.0, 4.0])}
    _, state = clipped(grads, 1.0, nonfinite="zero", keep_report=True)
    report = clip_report(state, grads)
    assert np.isnan(report.norm["bad"])
    assert report.coefficient["bad"] == 0
    assert report.coefficient["good"] == pytest.approx(0.2, rel=1e-5)


def test_adam_goes_on_after_a_component_was_made_zero():
    tx = optax.chain(
        component_clip_by_global_norm(1.0, nonfinite="zero"), optax.adam(0.1)
    )
    params = {"bad": jnp.zeros(2), "good": jnp.zeros(2)}
    state = tx.init(params)
    for value in (jnp.nan, 1.0):
        grads = {"bad": jnp.array([value, 1.0]), "good": jnp.ones(2)}
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves((params, state)))
    assert (params["bad"] < 0).all() and (params["good"] < params["bad"]).all()


@pytest.mark.parametrize("nonfinite", ["propagate", "zero"])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_zero_and_tiny_gradients_stay_what_they_are(dtype, nonfinite):
    tiny = float(jnp.finfo(dtype).tiny)
    grads = {"zero": jnp.zeros(3, dtype), "tiny": jnp.full(3, tiny, dtype)}
    updates, _ = clipped(grads, 0.05, nonfinite=nonfinite)
    for name, leaf in grads.items():
        assert updates[name].dtype == dtype
        np.testing.assert_array_equal(updates[name], leaf)


@pytest.mark.parametrize("nonfinite", ["propagate", "zero"])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_the_largest_numbers_of_short_dtypes_are_clipped(dtype, nonfinite):
    # Norms are accumulated in float32, into which bfloat16's squares do not all fit.
    largest = min(float(jnp.finfo(dtype).max), 1e18)
    grads = {"w": jnp.array([largest, 0], dtype)}
    updates, _ = clipped(grads, 1.0, nonfinite=nonfinite)
    assert updates["w"].dtype == dtype
    np.testing.assert_allclose(np.float32(updates["w"]), [1, 0], rtol=2**-7)
    norm = component_norms(grads)["w"]
    np.testing.assert_allclose(norm, float(grads["w"][0]), rtol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_short_dtypes_have_the_same_policies(dtype, bad):
    grads = {"bad": jnp.array([bad, 1.0], dtype), "good": jnp.array([3.0, 4.0], dtype)}
    for nonfinite, expected in (
        ("propagate", [np.nan, np.nan if np.isnan(bad) else 0]),
        ("zero", [0, 0]),
    ):
        updates, _ = clipped(grads, nonfinite=nonfinite)
        assert {leaf.dtype for leaf in updates.values()} == {jnp.dtype(dtype)}
        np.testing.assert_array_equal(np.float32(updates["bad"]), expected)
        np.testing.assert_allclose(np.float32(updates["good"]), [0.6, 0.8], rtol=2**-8)


@pytest.mark.parametrize("nonfinite", ["propagate", "zero"])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_a_norm_that_overflows_zeroes_its_component_under_each_policy(dtype, nonfinite):
    grads = {"loud": jnp.array([1e30, 1e30], dtype), "good": jnp.array([3.0, 4.0])}
    assert np.isinf(component_norms(grads)["loud"])
    updates, _ = clipped(grads, nonfinite=nonfinite)
    np.testing.assert_array_equal(np.float32(updates["loud"]), [0, 0])
    np.testing.assert_allclose(updates["good"], [0.6, 0.8], rtol=1e-5)
    # Without a clip, the one policy takes it as it is and the other as lost.
    updates, _ = clipped(grads, jnp.inf, nonfinite=nonfinite)
    expected = grads["loud"] if nonfinite == "propagate" else jnp.zeros(2, dtype)
    np.testing.assert_array_equal(updates["loud"], expected)


@pytest.mark.parametrize("nonfinite", ["propagate", "zero"])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_denormals_stay_or_are_taken_for_zeros(dtype, nonfinite):
    least = np.asarray(jnp.finfo(dtype).smallest_subnormal)
    grads = {"tiny": jnp.asarray(np.full(3, least)), "good": jnp.array([3.0, 4.0])}
    for max_norm in (1.0, 1e-30, np.inf):
        updates, _ = clipped(grads, max_norm, nonfinite=nonfinite)
        assert updates["tiny"].dtype == dtype
        assert set(np.float64(updates["tiny"])) <= {0.0, np.float64(least)}
    np.testing.assert_array_equal(updates["good"], grads["good"])


def test_an_unknown_policy_is_refused():
    with pytest.raises(ValueError, match="'propagate' or 'zero', got 'skip'"):
        component_clip_by_global_norm(1.0, nonfinite="skip")
