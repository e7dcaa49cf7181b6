import chex
import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cwgnc_jax
from cwgnc_jax import component_clip_by_global_norm, component_norms, component_sizes

STACKED = {"decoder/layers": 0}


def grads_of(layers=3, axis=0):
    """The same gradients, of a model with stacked layers and of one without."""
    rng = np.random.default_rng(0)
    alone = {
        str(i): {
            "attention": {"query": {"kernel": rng.normal(size=(2, 4)) * 10.0**-i}},
            "mlp": {"kernel": rng.normal(size=(4, 2)), "bias": rng.normal(size=2)},
        }
        for i in range(layers)
    }
    alone = jax.tree.map(jnp.float32, alone)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves, axis), *alone.values())
    head = {"kernel": jnp.array([[3.0, 4.0]])}
    return (
        {"decoder": {"layers": stacked}, "head": head},
        {"decoder": {"layers": alone}, "head": head},
    )


@pytest.mark.parametrize(
    "component_fn",
    [
        cwgnc_jax.by_parameter,
        cwgnc_jax.by_layer,
        cwgnc_jax.by_module_type,
        cwgnc_jax.by_rules([(".*/[02]/.*", "even"), (".*", "rest")]),
    ],
    ids=["by_parameter", "by_layer", "by_module_type", "by_rules"],
)
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_stacked_layers_are_clipped_as_layers_of_their_own(component_fn, axis):
    stacked, alone = grads_of(axis=axis)
    options = {"component_fn": component_fn, "stacked_axes": {"decoder/layers": axis}}
    tx = component_clip_by_global_norm(0.05, **options)
    updates, _ = jax.jit(tx.update)(stacked, tx.init(stacked))
    tx = component_clip_by_global_norm(0.05, component_fn)
    expected, _ = tx.update(alone, tx.init(alone))
    layers = expected["decoder"]["layers"].values()
    expected["decoder"]["layers"] = jax.tree.map(
        lambda *leaves: jnp.stack(leaves, axis), *layers
    )
    chex.assert_trees_all_close(updates, expected, rtol=1e-6)

    norms = component_norms(stacked, **options)
    assert list(norms) == list(component_norms(alone, component_fn))
    chex.assert_trees_all_close(norms, component_norms(alone, component_fn), rtol=1e-6)
    assert component_sizes(stacked, **options) == component_sizes(alone, component_fn)


def test_layers_of_a_scanned_linen_model_are_components():
    class Block(flax.linen.Module):
        @flax.linen.compact
        def __call__(self, x, _):
            return flax.linen.Dense(4)(x), None

    scanned = flax.linen.scan(
        Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=2
    )()
    params = scanned.init(jax.random.key(0), jnp.ones((1, 4)), None)["params"]
    assert component_sizes(params, stacked_axes={"Dense_0": 0}) == {
        "Dense_0/0/bias": 4,
        "Dense_0/0/kernel": 16,
        "Dense_0/1/bias": 4,
        "Dense_0/1/kernel": 16,
    }


def test_threshold_rules_see_the_layers_and_leave_some_untouched():
    stacked, _ = grads_of()
    tx = component_clip_by_global_norm(
        [("decoder/layers/1/.*", 0.05), (".*", None)], stacked_axes=STACKED
    )
    updates, _ = tx.update(stacked, tx.init(stacked))
    for before, after in zip(
        jax.tree.leaves(stacked), jax.tree.leaves(updates), strict=True
    ):
        if len(before) > 1:
            np.testing.assert_array_equal(after[::2], before[::2])
            assert np.linalg.norm(after[1]) <= 0.05


def test_stacked_leaves_keep_their_dtype():
    stacked = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), grads_of()[0])
    tx = component_clip_by_global_norm(0.05, stacked_axes=STACKED)
    updates, _ = tx.update(stacked, tx.init(stacked))
    assert {leaf.dtype for leaf in jax.tree.leaves(updates)} == {jnp.dtype("bfloat16")}


@pytest.mark.parametrize(
    ("stacked_axes", "match"),
    [
        ({"decoder/layer": 0}, "matches no module.*nearest one is 'decoder/layers'"),
        ({"decoder": 0, "decoder/layers": 0}, "has no effect: an earlier rule"),
        ({"decoder/layers": 2}, r"axis 2 of 'decoder/layers/.*its shape is \(3, "),
    ],
)
def test_stacked_axes_that_do_not_fit_are_refused_at_init(stacked_axes, match):
    tx = component_clip_by_global_norm(0.05, stacked_axes=stacked_axes)
    with pytest.raises(ValueError, match=match):
        tx.init(grads_of()[0])


@pytest.mark.parametrize("stacked_axes", [["decoder/layers"], {"decoder/layers": "0"}])
def test_stacked_axes_that_are_no_mapping_to_axes_are_refused(stacked_axes):
    with pytest.raises(TypeError, match=r'such as \{"decoder/layers": 0\}, got'):
        component_sizes(grads_of()[0], stacked_axes=stacked_axes)
