"""A state that was written and read again goes on as if nothing had happened."""

import pickle

import chex
import flax.serialization
import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from tests.composition.transforms import GRADS, TRANSFORMS, nested
from tests.composition.wrappers import PLAIN, PULL, WRAPPERS


def by_flax(state, blank, folder):
    data = flax.serialization.to_bytes(state)
    return flax.serialization.from_bytes(blank, data)


def by_pickle(state, blank, folder):
    return pickle.loads(pickle.dumps(state))


def by_orbax(state, blank, folder):
    # It refuses a tree without leaves, so something stands beside the state.
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder / "all", {"state": state, "step": 2})
        checkpointer.wait_until_finished()
        whole = checkpointer.restore(folder / "all", {"state": blank, "step": 0})
    assert whole["step"] == 2
    return whole["state"]


STORES = {"flax": by_flax, "pickle": by_pickle, "Orbax": by_orbax}
each = pytest.mark.parametrize("name", TRANSFORMS)


def assert_goes_on(tx, params, grads, store, folder):
    update, state = jax.jit(tx.update), tx.init(params)
    for of_step in grads[:2]:
        _, state = update(of_step, state, params)
    restored = store(state, tx.init(params), folder)
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    chex.assert_trees_all_equal(restored, state)
    assert types(restored) == types(state)
    expected = update(grads[2], state, params)
    chex.assert_trees_all_equal(update(grads[2], restored, params), expected)


def types(tree):
    return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)


@each
@pytest.mark.parametrize("store", STORES)
def test_a_stored_state_goes_on(name, store, tmp_path):
    tx = TRANSFORMS[name].make(PULL)
    grads = [nested(flat) for flat in GRADS[:3]]
    assert_goes_on(tx, PLAIN, grads, STORES[store], tmp_path)


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("store", ["flax", "pickle"])
def test_a_stored_state_of_a_wrapper_goes_on(wrapper, store, tmp_path):
    wrapper = WRAPPERS[wrapper]
    tx = wrapper.optimizer(TRANSFORMS["clip by module, reporting"])
    grads = wrapper.nested_grads()
    assert_goes_on(tx, wrapper.params, grads, STORES[store], tmp_path)


@each
def test_a_state_is_made_of_arrays(name):
    state = TRANSFORMS[name].make(PULL).init(PLAIN)
    parts = jax.tree.leaves(
        flax.serialization.to_state_dict(state),
        is_leaf=lambda node: not isinstance(node, dict),
    )
    assert all(isinstance(part, jax.Array | np.ndarray) for part in parts)
    assert len(parts) == len(jax.tree.leaves(state))
