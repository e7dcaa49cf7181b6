import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cwgnc_jax.models.embedding import (
    by_one_hot,
    by_scatter,
    by_sums_of_equals,
    lookup,
)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("rows", [2, 40, 600])
@pytest.mark.parametrize("way", [by_scatter, by_one_hot, by_sums_of_equals])
def test_all_ways_sum_the_gradients_of_rows_in_float32(way, rows, dtype):
    rng = np.random.default_rng(0)
    ids = rng.integers(0, rows, 70)
    grads = jnp.asarray(rng.standard_normal((70, 5)), dtype)
    expected = np.zeros((rows, 5))
    np.add.at(expected, ids, np.asarray(grads, np.float64))
    actual = jax.jit(way, static_argnums=(2, 3))(ids, grads, rows, jnp.float32)
    assert actual.dtype == jnp.float32
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_rows_are_taken_as_they_are_and_gradients_stay_in_float32(dtype):
    table = jax.random.normal(jax.random.key(0), (7, 3))
    ids = jnp.array([[1, 6], [1, 1]])
    taken = lookup(table, ids, dtype)
    assert taken.dtype == dtype
    np.testing.assert_array_equal(taken, table[ids].astype(dtype))
    # 1 + 2**-9 is no bfloat16, and so is no sum of three of them.
    scales = jnp.array([1.0, 1.0, 2.0**-9])[None, None]
    loss = lambda table: (lookup(table, ids, dtype) * scales.astype(dtype)).sum()
    grad = jax.jit(jax.grad(loss))(table)
    assert grad.dtype == jnp.float32
    np.testing.assert_allclose(grad[1], 3 * scales[0, 0])


def test_the_lookup_works_under_vmap_over_tables():
    tables = jax.random.normal(jax.random.key(0), (3, 9, 4))
    ids = jax.random.randint(jax.random.key(1), (3, 5), 0, 9)
    grad = jax.grad(lambda table, ids: (lookup(table, ids, table.dtype) ** 2).sum())
    together = jax.jit(jax.vmap(grad))(tables, ids)
    for run in range(3):
        np.testing.assert_allclose(
            together[run], grad(tables[run], ids[run]), rtol=1e-6
        )
