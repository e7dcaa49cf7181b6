from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import cwgnc_jax
from cwgnc_jax import component_clip_by_global_norm, component_norms

GRADS = {
    "embeddings": {"word": jnp.array([[3.0, 4.0], [0.0, 12.0]])},
    "layer": {
        "0": {"kernel": jnp.array([[0.03, 0.04]]), "bias": jnp.array([0.0, 0.0])},
        "1": {"kernel": jnp.array([[-0.6, 0.8]]), "bias": jnp.array([1e-12, 0.0])},
    },
}


def clip(grads, max_norm, component_fn=cwgnc_jax.by_parameter, **kwargs):
    tx = component_clip_by_global_norm(max_norm, component_fn, **kwargs)
    updates, _ = tx.update(grads, tx.init(grads))
    return updates


def torch_clip(grads, max_norm):
    def one(grad):
        parameter = torch.nn.Parameter(torch.zeros(grad.shape))
        parameter.grad = torch.tensor(np.array(grad))
        torch.nn.utils.clip_grad_norm_(parameter, max_norm)
        return parameter.grad.numpy()

    return jax.tree.map(one, grads)


def random_grads(seed, scales=(1e-4, 1.0, 30.0)):
    rng = np.random.default_rng(seed)
    return {
        f"layer_{i}": {
            "kernel": jnp.asarray(rng.normal(size=(3, 5)) * scale, jnp.float32),
            "bias": jnp.asarray(rng.normal(size=5) * scale, jnp.float32),
        }
        for i, scale in enumerate(scales)
    }


@pytest.mark.parametrize("max_norm", [1e-3, 0.05, 1.0, 1e5])
def test_default_equals_torch_clip_of_each_parameter(max_norm):
    grads = GRADS | random_grads(0)
    chex.assert_trees_all_close(
        clip(grads, max_norm), torch_clip(grads, max_norm), rtol=3e-7, atol=0
    )


@given(
    seed=st.integers(0, 2**16),
    max_norm=st.floats(1e-6, 1e3),
    scale=st.floats(1e-6, 1e6),
)
@settings(max_examples=30, deadline=None)
def test_any_tree_equals_torch_and_is_never_longer_than_max_norm(seed, max_norm, scale):
    grads = random_grads(seed, (1e-3, 1.0, scale))
    clipped = clip(grads, max_norm)
    chex.assert_trees_all_close(clipped, torch_clip(grads, max_norm), rtol=1e-6, atol=0)
    for norm in component_norms(clipped).values():
        assert norm <= max_norm * (1 + 1e-6)


def test_equals_partition_of_exact_clips_a_leaf():
    grads = random_grads(1)
    labels = jax.tree_util.tree_map_with_path(
        lambda path, _: jax.tree_util.keystr(path), grads
    )
    oracle = optax.partition(
        {name: optax.clip_by_global_norm(0.05) for name in jax.tree.leaves(labels)},
        labels,
    )
    expected, _ = oracle.update(grads, oracle.init(grads))
    chex.assert_trees_all_close(clip(grads, 0.05, eps=0), expected, rtol=3e-7)


def test_one_component_for_all_equals_optax_clip_by_global_norm():
    grads = random_grads(2)
    oracle = optax.clip_by_global_norm(0.05)
    expected, _ = oracle.update(grads, oracle.init(grads))
    clipped = clip(grads, 0.05, lambda path: "all", eps=0)
    chex.assert_trees_all_close(clipped, expected, rtol=3e-7)


def test_module_is_clipped_by_the_joint_norm_of_kernel_and_bias():
    grads = {"dense": {"kernel": jnp.array([[3.0]]), "bias": jnp.array([4.0])}}
    clipped = clip(grads, 1.0, cwgnc_jax.by_module, eps=0)
    chex.assert_trees_all_close(
        clipped,
        {"dense": {"kernel": jnp.array([[0.6]]), "bias": jnp.array([0.8])}},
    )


def test_unclipped_leaves_keep_every_bit():
    chex.assert_trees_all_equal(clip(GRADS, 100.0), GRADS)
    chex.assert_trees_all_equal(clip(GRADS, jnp.inf), GRADS)


def test_eps_shrinks_a_component_whose_norm_is_the_threshold():
    grads = {"w": jnp.array([0.03, 0.04])}
    assert clip(grads, 0.05)["w"][0] / 0.03 == pytest.approx(0.99998, abs=1e-7)


def test_zero_gradients_stay_zero_without_eps():
    with jax.debug_nans(True), jax.debug_infs(True):
        clipped = clip({"w": jnp.zeros(3)}, 0.05, eps=0)
    chex.assert_trees_all_equal(clipped, {"w": jnp.zeros(3)})


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_norm_is_accumulated_in_float32_and_leaves_keep_their_dtype(dtype):
    # In float16 the square of 1e-5 is 0, and so would be the norm.
    grads = {"w": jnp.full((1000,), 1e-5, dtype)}
    norm = component_norms(grads)["w"]
    assert norm.dtype == jnp.float32
    assert norm == pytest.approx(1e-5 * 1000**0.5, rel=5e-3)
    clipped = clip(grads, 1e-4)
    assert clipped["w"].dtype == dtype
    assert component_norms(clipped)["w"] == pytest.approx(1e-4, rel=2e-2)


def test_complex_leaves_are_clipped_by_their_modulus():
    clipped = clip({"w": jnp.array([3.0 + 4.0j])}, 1.0, eps=0)
    chex.assert_trees_all_close(clipped, {"w": jnp.array([0.6 + 0.8j])})


def test_none_leaves_and_empty_trees_pass():
    assert clip({}, 1.0) == {}
    assert clip(None, 1.0) is None
    clipped = clip({"frozen": None, "w": jnp.array([3.0, 4.0])}, 1.0, eps=0)
    assert clipped["frozen"] is None
    np.testing.assert_allclose(clipped["w"], [0.6, 0.8], rtol=1e-6)


def test_sharding_of_leaves_is_kept():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    grads = {"w": jnp.arange(16.0), "b": jnp.ones(8)}
    expected = clip(grads, 0.05)
    sharded = jax.device_put(grads, sharding)
    for update in (clip, jax.jit(clip, static_argnums=1)):
        clipped = update(sharded, 0.05)
        assert clipped["w"].sharding.is_equivalent_to(sharding, 1)
        chex.assert_trees_all_close(clipped, expected, rtol=3e-7)


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf, -jnp.inf])
def test_non_finite_gradients_stay_in_their_component_and_equal_torch(bad):
    grads = {"bad": jnp.array([bad, 1.0]), "good": jnp.array([3.0, 4.0])}
    clipped = clip(grads, 1.0)
    np.testing.assert_array_equal(clipped["bad"], torch_clip(grads, 1.0)["bad"])
    np.testing.assert_allclose(clipped["good"], [0.6, 0.8], rtol=1e-5)


def test_overflowing_norm_zeroes_its_component_only():
    clipped = clip({"huge": jnp.full(2, 1e30), "good": jnp.ones(1)}, 5.0)
    chex.assert_trees_all_equal(clipped, {"huge": jnp.zeros(2), "good": jnp.ones(1)})


def test_vmap_over_thresholds_equals_each_alone():
    thresholds = jnp.array([0.01, 0.5, jnp.inf])
    swept = jax.jit(jax.vmap(lambda max_norm: clip(GRADS, max_norm)))(thresholds)
    for i, max_norm in enumerate(thresholds):
        one = jax.tree.map(lambda leaf, i=i: leaf[i], swept)
        chex.assert_trees_all_close(one, clip(GRADS, max_norm), rtol=3e-7)


def test_inject_hyperparams_schedules_the_threshold():
    tx = optax.inject_hyperparams(
        component_clip_by_global_norm, static_args="component_fn"
    )(max_norm=lambda step: 1.0 / (step + 1), eps=0.0)
    grads = {"w": jnp.array([3.0, 4.0])}
    state = tx.init(grads)
    for expected in (1.0, 0.5):
        updates, state = jax.jit(tx.update)(grads, state)
        assert optax.tree.norm(updates) == pytest.approx(expected)


def test_multi_steps_clips_the_accumulated_mean():
    tx = optax.MultiSteps(component_clip_by_global_norm(1.0, eps=0), 2)
    grads = [{"w": jnp.array([6.0, 0.0])}, {"w": jnp.array([-5.0, 0.0])}]
    state = tx.init(grads[0])
    for grad in grads:
        updates, state = tx.update(grad, state)
    # The mean is 0.5, below the threshold; the mean of the clipped ones would be 0.
    np.testing.assert_allclose(updates["w"], [0.5, 0.0])


def test_masked_leaves_pass_unclipped():
    tx = optax.masked(
        component_clip_by_global_norm(1.0, eps=0), {"a": True, "b": False}
    )
    grads = {"a": jnp.array([3.0, 4.0]), "b": jnp.array([3.0, 4.0])}
    updates, _ = tx.update(grads, tx.init(grads))
    np.testing.assert_allclose(updates["a"], [0.6, 0.8], rtol=1e-6)
    np.testing.assert_array_equal(updates["b"], [3.0, 4.0])


def test_partition_gives_groups_their_own_threshold():
    tx = optax.partition(
        {
            "low": component_clip_by_global_norm(0.5, eps=0),
            "high": component_clip_by_global_norm(1.0, eps=0),
        },
        {"a": "low", "b": "high"},
    )
    grads = {"a": jnp.array([3.0, 4.0]), "b": jnp.array([3.0, 4.0])}
    updates, _ = tx.update(grads, tx.init(grads))
    np.testing.assert_allclose(updates["a"], [0.3, 0.4], rtol=1e-6)
    np.testing.assert_allclose(updates["b"], [0.6, 0.8], rtol=1e-6)


def test_apply_if_finite_skips_a_step_with_nan():
    tx = optax.apply_if_finite(component_clip_by_global_norm(1.0), 3)
    state = tx.init({"w": jnp.ones(2)})
    updates, state = tx.update({"w": jnp.array([jnp.nan, 1.0])}, state)
    np.testing.assert_array_equal(updates["w"], [0.0, 0.0])
    assert state.total_notfinite == 1


def test_scan_jit_and_chain_equal_a_loop():
    tx = cwgnc_jax.cwgnc_adamw(1e-2, 0.05, weight_decay=0.1)
    params = random_grads(3)

    def step(carry, scale):
        params, opt_state = carry
        grads = jax.tree.map(lambda p: p * scale, params)
        updates, opt_state = tx.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), None

    scales = jnp.array([1.0, 10.0, 0.001])
    scanned, _ = jax.jit(lambda c: jax.lax.scan(step, c, scales))(
        (params, tx.init(params))
    )
    looped = (params, tx.init(params))
    for scale in scales:
        looped, _ = step(looped, scale)
    chex.assert_trees_all_close(scanned, looped, rtol=1e-5, atol=1e-7)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_pmap_after_the_mean_equals_the_clip_of_the_mean():
    grads = {"w": jnp.arange(24.0).reshape(8, 3)}

    def update(shard):
        return clip(jax.lax.pmean(shard, "data"), 0.05)

    clipped = jax.pmap(update, axis_name="data")(grads)
    expected = clip({"w": grads["w"].mean(0)}, 0.05)
    for device in range(8):
        np.testing.assert_allclose(clipped["w"][device], expected["w"], rtol=1e-6)


def test_shard_map_after_the_mean_equals_the_clip_of_the_mean():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    grads = {"w": jnp.arange(24.0).reshape(8, 3)}

    def update(shard):
        mean = jax.lax.pmean(jax.tree.map(lambda g: g[0], shard), "data")
        return clip(mean, 0.05)

    sharded = jax.shard_map(
        update,
        mesh=mesh,
        in_specs=(PartitionSpec("data"),),
        out_specs=PartitionSpec(),
    )
    clipped = jax.jit(sharded)(grads)
    expected = clip({"w": grads["w"].mean(0)}, 0.05)
    chex.assert_trees_all_close(clipped, expected, rtol=1e-6)


def test_constant_factor_is_absorbed_by_adam_except_through_eps():
    grads = {"w": jnp.array([3.0, 4.0])}
    for eps, same in ((0.0, True), (1e-2, False)):
        adam = cwgnc_jax.scale_by_adam(eps=eps)
        clipped = optax.chain(component_clip_by_global_norm(0.05), adam)
        plain, _ = adam.update(grads, adam.init(grads))
        behind, _ = clipped.update(grads, clipped.init(grads))
        assert np.allclose(plain["w"], behind["w"], rtol=1e-5) == same


def test_the_clip_reads_each_gradient_once_more_and_writes_no_copy_of_it():
    grads = {f"layer/{i}": jnp.ones((500, 200)) for i in range(8)}
    size = sum(leaf.nbytes for leaf in grads.values())

    def compiled(*clip) -> Any:
        tx = optax.chain(*clip, optax.scale_by_adam())
        update = jax.jit(tx.update, donate_argnums=(0, 1))
        return update.lower(grads, tx.init(grads)).compile()

    program = compiled(component_clip_by_global_norm(0.05))
    accessed, without = (
        x.cost_analysis()["bytes accessed"] for x in (program, compiled())
    )
    assert 0.9 * size < accessed - without < 1.1 * size
    assert program.memory_analysis().temp_size_in_bytes < 0.01 * size


def test_update_compiles_once_for_all_thresholds():
    @jax.jit
    @chex.assert_max_traces(n=1)
    def update(grads, max_norm):
        return clip(grads, max_norm)

    for max_norm in (0.01, 1.0, np.inf):
        update(GRADS, jnp.float32(max_norm))


@pytest.mark.parametrize("max_norm", [0, -1.0, float("nan"), np.float32(-2)])
def test_threshold_that_is_not_positive_is_refused(max_norm):
    with pytest.raises(ValueError, match="max_norm must be positive.*got"):
        component_clip_by_global_norm(max_norm)


@pytest.mark.parametrize("max_norm", ["0.05", None, True, 1j, [0.1], {}])
def test_threshold_that_is_no_number_is_refused(max_norm):
    with pytest.raises(TypeError, match="max_norm must be a real number, got"):
        component_clip_by_global_norm(max_norm)


def test_threshold_that_is_no_scalar_is_refused():
    with pytest.raises(ValueError, match=r"max_norm must be a scalar.*shape \(2,\)"):
        component_clip_by_global_norm(jnp.ones(2))


@pytest.mark.parametrize("eps", [-1e-6, float("nan"), float("inf")])
def test_bad_eps_is_refused(eps):
    with pytest.raises(ValueError, match="eps must be 0 or a positive number"):
        component_clip_by_global_norm(0.05, eps=eps)


def test_component_fn_under_inject_hyperparams_names_the_fix():
    tx = optax.inject_hyperparams(component_clip_by_global_norm)(
        max_norm=0.05, component_fn=lambda path: "all"
    )
    with pytest.raises(TypeError, match='static_args="component_fn"'):
        tx.init({"w": jnp.ones(1)})


def test_whole_numbers_are_refused_by_init_and_by_update_alike():
    tx = component_clip_by_global_norm(1.0)
    with pytest.raises(TypeError, match="'a/w' has the dtype int32, but what is train"):
        tx.init({"a": {"w": jnp.ones(2, jnp.int32)}})
    state = tx.init({"a": {"w": jnp.ones(2)}})
    with pytest.raises(TypeError, match="'a/w' has the dtype int32, but what is train"):
        tx.update({"a": {"w": jnp.ones(2, jnp.int32)}}, state)
