"""What all clips share whose thresholds are learned."""

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
from tests.trajectories import random_grads, run, trajectory

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
            if leaf.ndim:
                np.testing.assert_allclose(leaf[1], leaf_later[1], rtol=1e-6)


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


@EVERY
def test_updates_of_other_components_than_those_of_init_are_refused(tx):
    state = tx.init({"a": {"w": jnp.ones(2)}, "b": {"w": jnp.ones(2)}})
    with pytest.raises(ValueError, match="have 1 components, but the clip was init"):
        tx.update({"a": {"w": jnp.ones(2)}}, state)


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: adagc(0.0), ValueError, "ratio must be positive"),
        (lambda: adagc(decay=1.0), ValueError, r"decay must lie in \[0, 1\)"),
        (lambda: aggc(1.0, 2.0, decay=1.0), ValueError, r"decay must lie in \[0, 1\)"),
        (lambda: olmo_clip(1.0, decay=1.0), ValueError, r"decay must lie in \[0, 1\)"),
        (lambda: zclip(decay=1.0), ValueError, r"decay must lie in \[0, 1\)"),
        (lambda: adagc(warmup_steps=-1), ValueError, "warmup_steps must be at least 0"),
        (lambda: adagc(max_global_norm=0), ValueError, "max_global_norm must be pos"),
        (lambda: aggc(2.0, 1.0), ValueError, "low must not exceed high, got 2.0 and"),
        (lambda: aggc(-1.0, 1.0), ValueError, "low must be 0 or a positive number"),
        (lambda: aggc(1.0, 2.0, floor=-1), ValueError, "floor must be 0 or a positive"),
        (lambda: aggc(1.0, 2.0, min_factor=1), ValueError, "min_factor must lie in"),
        (lambda: aggc(1.0, 2.0, max_factor=0.5), ValueError, "max_factor must be at"),
        (lambda: aggc(1.0, 2.0, raise_small="no"), TypeError, "raise_small must be T"),
        (lambda: aggc(-1.0, 1.0, min_factor=0.9), ValueError, "low must be 0 or a p"),
        (lambda: olmo_clip("1"), TypeError, "ratio must be a real number, got '1'"),
        (
            lambda: olmo_clip(1.0, warmup_steps=-1),
            ValueError,
            "warmup_steps must be at",
        ),
        (lambda: olmo_clip(1.0, warmup_factor=0), ValueError, "warmup_factor must be"),
        (lambda: adagc(eps=-1.0), ValueError, "eps must be 0 or a positive num"),
        (lambda: aggc(1.0, 2.0, eps=-1.0), ValueError, "eps must be 0 or a positive"),
        (lambda: olmo_clip(1.0, eps=-1.0), ValueError, "eps must be 0 or a positive"),
        (lambda: autoclip(eps=-1.0), ValueError, "eps must be 0 or a positive num"),
        (lambda: autoclip(101), ValueError, r"percentile must lie in \[0, 100"),
        (lambda: autoclip(history_length=0), ValueError, "history_length must be at l"),
        (lambda: autoclip(history_length=jnp.int32(9)), TypeError, "static_args"),
        (lambda: zclip(-1.0), ValueError, "z_threshold must be positive"),
        (lambda: zclip(warmup_steps=0), ValueError, "warmup_steps must be at least 1"),
        (lambda: zclip(max_global_norm=0), ValueError, "max_global_norm must be pos"),
        (lambda: zclip(eps=-1.0), ValueError, "eps must be 0 or a positive num"),
    ],
)
def test_numbers_out_of_range_are_refused(make, error, match):
    with pytest.raises(error, match=match):
        make()
