import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from cwgnc_jax import (
    by_module,
    component_clip_by_global_norm,
    component_norms,
    per_element,
    relative_to_params,
)

GRADS = {
    "a": {"kernel": jnp.arange(64.0).reshape(16, 4), "scale": jnp.array([3.0, 4.0])},
    "b": {"kernel": jnp.full((8, 2), 1e-3)},
    "c": {"scale": jnp.array([0.3, 0.4, 1.2])},
}
SHARDED = PartitionSpec("model")
WHOLE = PartitionSpec()
SPECS = {
    "a": {"kernel": SHARDED, "scale": WHOLE},
    "b": {"kernel": SHARDED},
    "c": {"scale": WHOLE},
}


def over_devices(function, in_specs=SPECS, out_specs=SPECS, **kwargs):
    mesh = jax.make_mesh((8,), ("model",), axis_types=(AxisType.Auto,))
    return jax.jit(
        jax.shard_map(
            function, mesh=mesh, in_specs=(in_specs,), out_specs=out_specs, **kwargs
        )
    )


def update_of(max_norm, component_fn=by_module, **kwargs):
    tx = component_clip_by_global_norm(max_norm, component_fn, **kwargs)
    return lambda grads: tx.update(grads, tx.init(grads), grads)[0]


@pytest.mark.parametrize(
    "max_norm", [0.05, per_element(0.01), [(".*", relative_to_params(0.1))]]
)
def test_shards_are_clipped_as_the_whole_with_copies_counted_once(max_norm):
    clipped = over_devices(update_of(max_norm, axis_name="model"))(GRADS)
    chex.assert_trees_all_close(clipped, update_of(max_norm)(GRADS), rtol=1e-6)


def test_all_components_take_one_collective():
    update = update_of(relative_to_params(0.1), axis_name="model")
    lowered = over_devices(update).lower(GRADS)
    # The compiler may join several, but need not.
    assert lowered.as_text().count("stablehlo.all_reduce") == 1
    program = lowered.compile().as_text()
    assert len(re.findall(r" all-reduce(?:-start)?\(", program)) == 1


def test_norms_of_shards_are_those_of_the_whole():
    norms = over_devices(
        lambda grads: component_norms(grads, axis_name="model"), out_specs=WHOLE
    )(GRADS)
    chex.assert_trees_all_close(norms, component_norms(GRADS), rtol=1e-6)


def test_without_types_every_leaf_counts_as_sharded():
    grads = {"w": jnp.arange(16.0)}
    update = update_of(0.05, axis_name="model")
    clipped = over_devices(update, SHARDED, SHARDED, check_vma=False)(grads)
    chex.assert_trees_all_close(clipped, update_of(0.05)(grads), rtol=1e-6)


def test_shards_without_axis_name_are_refused_with_the_fix():
    for function in (update_of(0.05), component_norms):
        with pytest.raises(
            ValueError, match="'a/kernel' is sharded.*axis_name='model'"
        ):
            over_devices(function)(GRADS)


def test_empty_axis_name_clips_what_each_device_holds():
    grads = {"w": jnp.arange(1.0, 17.0)}
    update = update_of(0.5, axis_name=(), eps=0)
    clipped = over_devices(update, SHARDED, SHARDED)(grads)
    norms = np.linalg.norm(clipped["w"].reshape(8, 2), axis=1)
    np.testing.assert_allclose(norms, 0.5, rtol=1e-6)


def test_axis_of_vmap_is_summed_as_well():
    grads = {"w": jnp.arange(16.0)}
    update = jax.vmap(update_of(0.05, axis_name="model"), axis_name="model")
    clipped = update({"w": grads["w"].reshape(4, 4)})
    expected = update_of(0.05)(grads)["w"].reshape(4, 4)
    np.testing.assert_allclose(clipped["w"], expected, rtol=1e-6)


def test_shards_over_one_of_two_axes_count_once():
    mesh = jax.make_mesh((2, 4), ("x", "y"), axis_types=(AxisType.Auto,) * 2)
    specs = {"xy": PartitionSpec("x", "y"), "y": PartitionSpec("y")}
    grads = {"xy": jnp.arange(32.0).reshape(4, 8), "y": jnp.arange(8.0)}
    update = jax.shard_map(
        update_of(0.05, lambda path: "all", axis_name=("x", "y")),
        mesh=mesh,
        in_specs=(specs,),
        out_specs=specs,
    )
    expected = update_of(0.05, lambda path: "all")(grads)
    chex.assert_trees_all_close(jax.jit(update)(grads), expected, rtol=1e-6)
