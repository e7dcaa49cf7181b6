import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cwgnc_jax import add_decayed_weights_towards, decay_mask

PARAMS = {"kernel": jnp.array([[3.0, -1.0]]), "bias": jnp.array([2.0])}
PRETRAINED = {"kernel": jnp.array([[1.0, 1.0]]), "bias": jnp.array([5.0])}
ZEROS = jax.tree.map(jnp.zeros_like, PARAMS)


def test_updates_lead_back_to_the_pretrained_weights():
    tx = add_decayed_weights_towards(PRETRAINED, 0.1)
    updates, _ = tx.update(ZEROS, tx.init(PARAMS), PARAMS)
    np.testing.assert_allclose(updates["kernel"], [[0.2, -0.2]], rtol=1e-6)
    np.testing.assert_allclose(updates["bias"], [-0.3], rtol=1e-6)


def test_towards_zero_it_is_the_usual_decay():
    ours, theirs = (
        add_decayed_weights_towards(ZEROS, 0.1),
        optax.add_decayed_weights(0.1),
    )
    for mask in (None, decay_mask):
        ours = add_decayed_weights_towards(ZEROS, 0.1, mask)
        theirs = optax.add_decayed_weights(0.1, mask)
        first, _ = ours.update(PRETRAINED, ours.init(PARAMS), PARAMS)
        second, _ = theirs.update(PRETRAINED, theirs.init(PARAMS), PARAMS)
        for name in PARAMS:
            np.testing.assert_allclose(first[name], second[name], rtol=1e-6)


def test_without_gradients_the_weights_converge_to_the_pretrained_ones():
    tx = optax.chain(add_decayed_weights_towards(PRETRAINED, 0.5), optax.scale(-1.0))
    params, state = PARAMS, tx.init(PARAMS)
    for step in range(1, 5):
        updates, state = tx.update(ZEROS, state, params)
        params = optax.apply_updates(params, updates)
        left = (params["bias"] - PRETRAINED["bias"]) / -3.0
        np.testing.assert_allclose(left, 0.5**step, rtol=1e-5)


def test_the_rate_may_be_traced():
    def update(rate):
        tx = add_decayed_weights_towards(PRETRAINED, rate)
        return tx.update(ZEROS, tx.init(PARAMS), PARAMS)[0]["bias"]

    np.testing.assert_allclose(
        jax.jit(jax.vmap(update))(jnp.array([0.0, 1.0])), [[0.0], [-3.0]]
    )


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="rate must be 0 or a positive number, got -1"):
        add_decayed_weights_towards(PRETRAINED, -1)
    tx = add_decayed_weights_towards(PRETRAINED, 0.1)
    with pytest.raises(
        ValueError, match="must be a tree like the parameters, but lacks 'more'"
    ):
        tx.init(PARAMS | {"more": jnp.ones(2)})
    with pytest.raises(ValueError, match=r"its 'bias' has .* in place of \(2,\)"):
        tx.init(PARAMS | {"bias": jnp.ones(2)})
    with pytest.raises(ValueError, match="needs params"):
        tx.update(ZEROS, tx.init(PARAMS))


def test_a_mask_that_is_no_tree_of_booleans_is_refused():
    for mask in ("bias", {"kernel": True}, {"kernel": 1, "bias": 0}):
        tx = add_decayed_weights_towards(PRETRAINED, 0.1, mask)
        with pytest.raises(TypeError, match="mask must be a tree of True and False"):
            tx.update(ZEROS, tx.init(PARAMS), PARAMS)
