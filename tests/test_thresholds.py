import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cwgnc_jax import (
    by_layer,
    component_clip_by_global_norm,
    component_norms,
    cwgnc_adamw,
    per_element,
    relative_to_params,
)

GRADS = {
    "layer": {
        "0": {"kernel": jnp.array([[3.0, 4.0]]), "bias": jnp.array([0.0, 2.0])},
        "1": {"kernel": jnp.array([[0.6, 0.8]]), "bias": jnp.array([5.0, 12.0])},
    },
    "head": jnp.array([8.0]),
}


def norms_after(tx, grads=GRADS, params=None, state=None):
    state = tx.init(grads) if state is None else state
    updates, state = tx.update(grads, state, params)
    return {name: float(norm) for name, norm in component_norms(updates).items()}


def test_scheduled_threshold_follows_the_step_through_scan():
    schedule = optax.linear_schedule(4.0, 1.0, 3)
    tx = component_clip_by_global_norm(schedule, eps=0)
    state = tx.init(GRADS)
    assert state.count.dtype == jnp.int32

    def step(state, _):
        updates, state = tx.update(GRADS, state)
        return state, component_norms(updates)["head"]

    state, norms = jax.lax.scan(step, state, length=5)
    np.testing.assert_allclose(norms, [4.0, 3.0, 2.0, 1.0, 1.0], rtol=1e-6)
    assert state.count == 5


def test_threshold_that_is_no_schedule_needs_no_state():
    for max_norm in (0.05, per_element(1.0), [(".*", 1.0)], relative_to_params(0.1)):
        state = component_clip_by_global_norm(max_norm).init(GRADS)
        assert state == optax.EmptyState()


def test_first_matching_rule_gives_the_threshold_and_none_touches_nothing():
    rules = [
        ("layer/[0-9]+/bias", optax.constant_schedule(1.0)),
        ("layer/.*", 0.5),
        ("head", None),
    ]
    tx = component_clip_by_global_norm(rules, eps=0)
    assert norms_after(tx) == pytest.approx(
        {
            "head": 8.0,
            "layer/0/bias": 1.0,
            "layer/0/kernel": 0.5,
            "layer/1/bias": 1.0,
            "layer/1/kernel": 0.5,
        }
    )
    untouched, _ = tx.update(GRADS | {"head": jnp.array([jnp.nan])}, tx.init(GRADS))
    assert jnp.isnan(untouched["head"]).all()


def test_rules_match_names_of_components_and_not_paths():
    tx = component_clip_by_global_norm([("layer/0", 1.0), (".*", None)], by_layer)
    updates, _ = tx.update(GRADS, tx.init(GRADS))
    norms = component_norms(updates, by_layer)
    assert norms["layer/0"] == pytest.approx(1.0, rel=1e-5)
    assert norms["layer/1"] == pytest.approx((1 + 13**2) ** 0.5)


@pytest.mark.parametrize(
    ("rules", "match"),
    [
        (
            [("head", 1.0)],
            r"No threshold rule covers 'layer/0/bias'.*\(\"\.\*\", None\)",
        ),
        ([("haed", 1.0), (".*", 1.0)], "matches no component.*nearest one is 'head'"),
        ([(".*", 1.0), ("head", 2.0)], r"rule \('head', 2.0\) has no effect"),
    ],
)
def test_rules_must_cover_every_component_and_each_match_one(rules, match):
    with pytest.raises(ValueError, match=match):
        component_clip_by_global_norm(rules).init(GRADS)


@pytest.mark.parametrize(
    ("rules", "error", "match"),
    [
        ([], TypeError, "max_norm must be a real number"),
        ([("(", 1.0)], ValueError, r"'\(' is not a valid regular expr"),
        ([("a", -1.0)], ValueError, "max_norm of 'a' must be positive"),
        ([("a", "b")], TypeError, "max_norm of 'a' must be a real number, got 'b'"),
        ([("a", 1.0), "b"], TypeError, "max_norm must be a real number.*rules"),
    ],
)
def test_malformed_threshold_rules_are_refused(rules, error, match):
    with pytest.raises(error, match=match):
        component_clip_by_global_norm(rules)


def test_schedule_that_returns_no_scalar_is_refused():
    tx = component_clip_by_global_norm(lambda step: jnp.ones(2))
    with pytest.raises(ValueError, match="the schedule max_norm returns must be a sc"):
        tx.update(GRADS, tx.init(GRADS))


def test_per_element_of_each_parameter_is_optax_clip_by_block_rms():
    oracle = optax.clip_by_block_rms(0.7)
    expected, _ = oracle.update(GRADS, oracle.init(GRADS))
    tx = component_clip_by_global_norm(per_element(0.7), eps=0)
    updates, _ = tx.update(GRADS, tx.init(GRADS))
    chex.assert_trees_all_close(updates, expected, rtol=3e-7)


def test_relative_threshold_follows_the_norm_of_the_components_parameters():
    params = jax.tree.map(jnp.zeros_like, GRADS) | {"head": jnp.array([-20.0])}
    tx = component_clip_by_global_norm(relative_to_params(0.1), eps=0)
    norms = norms_after(tx, params=params)
    assert norms["head"] == pytest.approx(2.0)
    assert norms["layer/0/kernel"] == pytest.approx(0.1 * 1e-3)


@pytest.mark.parametrize(
    ("stacked_axes", "axis"), [({"dense": 1}, None), (None, (0, 1))]
)
def test_adaptive_clipping_by_unit_or_by_tensor_is_that_of_optax(stacked_axes, axis):
    rng = np.random.default_rng(5)
    grads, params = (
        {"dense": {"kernel": jnp.asarray(rng.normal(size=(6, 4)), jnp.float32)}}
        for _ in range(2)
    )
    params["dense"]["kernel"] = params["dense"]["kernel"].at[:, 0].set(0.0)
    ours = component_clip_by_global_norm(
        relative_to_params(0.8), stacked_axes=stacked_axes, eps=0
    )
    theirs = optax.adaptive_grad_clip(0.8, axis=axis)
    updates, _ = ours.update(grads, ours.init(params), params)
    expected, _ = theirs.update(grads, theirs.init(params), params)
    chex.assert_trees_all_close(updates, expected, rtol=1e-5)
    chex.assert_trees_all_equal_shapes(updates, grads)
    clipped = np.any(
        ~np.isclose(updates["dense"]["kernel"], grads["dense"]["kernel"]), 0
    )
    assert 0 < clipped.sum() < 4 or axis


def test_relative_threshold_refuses_parameters_of_other_components():
    tx = component_clip_by_global_norm(relative_to_params(1.0))
    with pytest.raises(
        ValueError, match="have 5 components, and the parameters 1: call"
    ):
        tx.update(GRADS, tx.init(GRADS), {"w": jnp.ones(2)})


def test_relative_threshold_names_the_missing_parameters():
    tx = component_clip_by_global_norm([("head", relative_to_params(1.0)), (".*", 1)])
    with pytest.raises(ValueError, match=r"call tx.update\(grads, opt_state, params\)"):
        tx.update(GRADS, tx.init(GRADS))


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: per_element(0), ValueError, "threshold must be positive"),
        (lambda: per_element("1"), TypeError, "threshold must be a real number"),
        (lambda: relative_to_params(-1), ValueError, "ratio must be positive"),
        (lambda: relative_to_params(1, 0), ValueError, "min_norm must be positive"),
    ],
)
def test_thresholds_that_are_not_positive_are_refused(make, error, match):
    with pytest.raises(error, match=match):
        make()


@pytest.mark.parametrize(
    "max_norm",
    [
        lambda c: c,
        per_element,
        relative_to_params,
        lambda c: lambda step: c / (step + 1),
        lambda c: [("head", c), (".*", None)],
    ],
    ids=["scalar", "per_element", "relative", "schedule", "rules"],
)
def test_every_threshold_can_be_swept_and_injected(max_norm):
    def clipped(c):
        tx = component_clip_by_global_norm(max_norm(c))
        return tx.update(GRADS, tx.init(GRADS), GRADS)[0]

    thresholds = jnp.array([0.2, 2.0])
    swept = jax.jit(jax.vmap(clipped))(thresholds)
    for i, c in enumerate(thresholds):
        one = jax.tree.map(lambda leaf, i=i: leaf[i], swept)
        chex.assert_trees_all_close(one, clipped(c), rtol=3e-7)

    injected = optax.inject_hyperparams(
        lambda c: component_clip_by_global_norm(max_norm(c))
    )(c=0.2)
    updates, _ = jax.jit(injected.update)(GRADS, injected.init(GRADS), GRADS)
    chex.assert_trees_all_close(updates, clipped(jnp.float32(0.2)), rtol=3e-7)


def test_the_optimizer_of_the_paper_takes_every_threshold():
    rules = [("head", relative_to_params(0.1)), (".*", optax.constant_schedule(0.05))]
    tx = cwgnc_adamw(1e-3, rules)
    updates, _ = tx.update(GRADS, tx.init(GRADS), GRADS)
    chex.assert_tree_all_finite(updates)
