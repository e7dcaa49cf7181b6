"""The norms of components: exact, in order, and alike however they are summed."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cwgnc_jax import _norms, component_clip_by_global_norm, component_norms


def test_norms_of_large_leaves_are_exact_to_float32():
    # On a CPU torch's are not: pytorch/pytorch#68326.
    shape = (30522, 1024)
    leaf = np.random.default_rng(0).standard_normal(shape, np.float32)
    exact = np.linalg.norm(leaf.astype(np.float64))
    for norms in (component_norms, jax.jit(component_norms)):
        np.testing.assert_allclose(norms({"embedding": leaf})["embedding"], exact, 3e-7)


def test_snapshot_keeps_norms_inside_scan():
    tx = optax.chain(
        optax.snapshot("norms", component_norms), component_clip_by_global_norm(0.05)
    )

    grads = {"layer": {"kernel": jnp.array([[-0.6, 0.8]]), "bias": jnp.zeros(2)}}

    def step(opt_state, scale):
        _, opt_state = tx.update(jax.tree.map(lambda g: g * scale, grads), opt_state)
        return opt_state, optax.tree.get(opt_state, "norms")

    _, norms = jax.lax.scan(step, tx.init(grads), jnp.array([1.0, 2.0]))
    np.testing.assert_allclose(norms["layer/kernel"], [1.0, 2.0], rtol=1e-6)


def test_norms_come_in_natural_order_out_of_jit():
    grads = {"layer": {str(i): {"w": jnp.ones(1)} for i in range(12)}}
    expected = [f"layer/{i}/w" for i in range(12)]
    assert list(component_norms(grads)) == expected
    assert list(jax.jit(component_norms)(grads)) == expected


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "complex64"])
def test_leaves_summed_shape_by_shape_are_those_summed_one_by_one(dtype):
    shapes = [(), (3,), (3,), (), (2, 3), (3,), (2, 3), (2, 3, 4), (0,), (4, 0), (5,)]
    rng = np.random.default_rng(0)
    leaves = [jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes]
    leaves[5] = jnp.asarray(rng.normal(size=3), jnp.float32)
    found = jax.jit(_norms.shape_by_shape)(leaves)
    for square, leaf in zip(found, leaves, strict=True):
        assert square.shape == () and square.dtype == jnp.float32
        expected = np.sum(np.abs(np.asarray(leaf, np.complex128)) ** 2)
        np.testing.assert_allclose(square, expected, rtol=1e-5)
