"""None in the updates, where the parameters have an array.

A missing leaf is one whose gradient is zero, but that it stays missing: its component
learns nothing from a norm of zero, and the others see nothing of it.
"""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cwgnc_jax
from tests.composition.transforms import GRADS, PARAMS, TRANSFORMS, nested
from tests.composition.ways import eager, jit
from tests.composition.wrappers import PLAIN, PULL

MISSING = "classifier/kernel"
each = pytest.mark.parametrize("name", TRANSFORMS)


def without(flat):
    tree = nested(flat)
    tree["classifier"]["kernel"] = None
    return tree


def expected(name, grads, params=PARAMS):
    zeroed = [flat | {MISSING: np.zeros_like(flat[MISSING])} for flat in grads]
    return TRANSFORMS[name].alone(params, zeroed)


@each
def test_the_other_leaves_are_updated_as_if_nothing_were_missing(name):
    tx = TRANSFORMS[name].make(PULL)
    history = jit(tx, PLAIN, [without(flat) for flat in GRADS[:3]])
    for updates, right in zip(history, expected(name, GRADS[:3]), strict=True):
        assert updates["classifier"]["kernel"] is None
        chex.assert_trees_all_close(updates, without(right), rtol=2e-5, atol=1e-6)


@each
def test_a_leaf_that_comes_back_goes_on_from_what_it_had_learned(name):
    tx = TRANSFORMS[name].make(PULL)
    grads = [without(GRADS[0]), without(GRADS[1]), nested(GRADS[2])]
    updates = eager(tx, PLAIN, grads)[2]
    zeros = {MISSING: np.zeros_like(GRADS[0][MISSING])}
    right = TRANSFORMS[name].alone(
        PARAMS, [GRADS[0] | zeros, GRADS[1] | zeros, GRADS[2]]
    )[2]
    chex.assert_trees_all_close(updates, nested(right), rtol=2e-5, atol=1e-6)


@each
def test_the_state_keeps_its_structure_when_a_leaf_is_missing(name):
    tx = TRANSFORMS[name].make(PULL)
    state = tx.init(PLAIN)
    after = jax.eval_shape(tx.update, without(GRADS[0]), state, PLAIN)[1]
    assert jax.tree.structure(after) == jax.tree.structure(state)
    chex.assert_trees_all_equal_shapes_and_dtypes(after, state)


@pytest.mark.parametrize("name", ["adagc", "olmo_clip", "autoclip", "zclip"])
def test_the_component_of_a_missing_leaf_learns_nothing(name):
    tx = TRANSFORMS[name].make(PULL)
    state = tx.init(PLAIN)
    update = jax.jit(tx.update)
    _, state = update(nested(GRADS[0]), state, PLAIN)
    _, after = update(without(GRADS[1]), state, PLAIN)
    components = np.array(list(cwgnc_jax.component_sizes(PLAIN)))
    unchanged = np.ones(len(components), bool)
    for before, learned in zip(state, after, strict=True):
        if before.ndim:  # One row for each component.
            unchanged &= np.equal(before, learned).reshape(len(components), -1).all(1)
    assert list(components[unchanged]) == [MISSING]


def test_a_component_of_two_leaves_has_the_norm_of_the_one_that_is_there():
    grads = {"layer": {"kernel": jnp.array([3.0, 4.0]), "bias": None}}
    params = {"layer": {"kernel": jnp.ones(2), "bias": jnp.ones(2)}}
    tx = cwgnc_jax.component_clip_by_global_norm(1.0, cwgnc_jax.by_module, eps=0)
    updates, _ = tx.update(grads, tx.init(params), params)
    np.testing.assert_allclose(updates["layer"]["kernel"], [0.6, 0.8], rtol=1e-6)
    assert updates["layer"]["bias"] is None


def test_a_missing_leaf_was_not_clipped_in_the_report():
    tx = cwgnc_jax.component_clip_by_global_norm(0.1, keep_report=True)
    _, state = tx.update(without(GRADS[0]), tx.init(PLAIN), PLAIN)
    report = cwgnc_jax.clip_report(state, PLAIN)
    assert report.norm[MISSING] == 0
    assert not report.clipped.pop(MISSING)
    assert all(report.clipped.values())


def test_a_component_fn_need_not_know_a_place_without_a_parameter():
    params = {"kernel": jnp.ones(2), "activation": None}
    names = {"kernel": "all"}
    for component_fn in (
        names.__getitem__,
        names.get,
        cwgnc_jax.by_rules([*names.items()]),
    ):
        tx = cwgnc_jax.olmo_clip(1.0, component_fn)
        updates, _ = tx.update(params, tx.init(params))
        assert updates["activation"] is None
    with pytest.raises(KeyError, match="kernel"):
        cwgnc_jax.component_clip_by_global_norm(1.0, {}.__getitem__).init(params)


def test_a_component_fn_that_breaks_at_such_a_place_is_heard():
    def component_fn(path):
        if path == "activation":
            raise RuntimeError("broken")
        return path

    params = {"kernel": jnp.ones(2), "activation": None}
    with pytest.raises(RuntimeError, match="broken"):
        cwgnc_jax.component_clip_by_global_norm(1.0, component_fn).init(params)
