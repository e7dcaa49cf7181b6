"""Embedding tables, with gradients that suit the platform."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Float, Int

# The cost of a product with one-hot vectors grows with the number of rows.
_FEW_ROWS = 512

_Residuals = tuple[Int[Array, " tokens"], Float[Array, "rows features"]]


def lookup(
    table: Float[Array, "rows features"], ids: Int[Array, "*shape"], dtype: DTypeLike
) -> Float[Array, "*shape features"]:
    """Looks up rows of a table; gradients are summed in the table's dtype.

    On a CPU the gradient is a scatter-add. On other platforms additions into the same
    row wait for each other, and there can be thousands, since each token has one of two
    types. For a small table the gradient is therefore a matrix product with one-hot
    vectors. For a large one a matrix product first sums the rows of equal ids, and each
    sum is then written to its row; that needs no additions in memory and gives the same
    bits every time.

    Args:
      table: The embedding table.
      ids: The number of a row for each result.
      dtype: The dtype of the result.

    Returns:
      A row of the table for each id.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from cwgnc_jax.models.embedding import lookup
      >>> table = jnp.array([[1.0, 2.0], [3.0, 4.0]])
      >>> jax.grad(lambda t: lookup(t, jnp.array([1, 1]), t.dtype).sum())(table)
      Array([[0., 0.],
             [2., 2.]], dtype=float32)
    """
    return _rows(table, ids).astype(dtype)


def sinusoids(rows: int, features: int) -> Float[Array, "rows features"]:
    r"""Makes the table of positions of Vaswani et al. (2017), in float32.

    .. math::
      t_{p, 2i} = \sin \frac{p}{10000^{2i / d}} \qquad
      t_{p, 2i + 1} = \cos \frac{p}{10000^{2i / d}}

    Args:
      rows: The number of positions p.
      features: The width d.

    Returns:
      The table.

    Examples:
      >>> from cwgnc_jax.models.embedding import sinusoids
      >>> print(sinusoids(2, 4)[0])
      [0. 1. 0. 1.]
    """
    column = np.arange(features)
    angles = np.arange(rows)[:, None] / 10000 ** (column // 2 * 2 / features)
    table = np.where(column % 2 == 0, np.sin(angles), np.cos(angles))
    return jnp.asarray(table, jnp.float32)


@jax.custom_vjp
def _rows(
    table: Float[Array, "rows features"], ids: Int[Array, "*shape"]
) -> Float[Array, "*shape features"]:
    return jnp.take(table, ids, axis=0, mode="clip")


def _forward(
    table: Float[Array, "rows features"], ids: Int[Array, "*shape"]
) -> tuple[Float[Array, "*shape features"], _Residuals]:
    # Only the table's shape and dtype are used, so XLA does not keep the table.
    return _rows(table, ids), (ids.reshape(-1), table)


def _backward(
    residuals: _Residuals, cotangent: Float[Array, "*shape features"]
) -> tuple[Float[Array, "rows features"], None]:
    ids, table = residuals
    grads = cotangent.reshape(len(ids), -1).astype(table.dtype)
    elsewhere = by_one_hot if len(table) <= _FEW_ROWS else by_sums_of_equals
    summed = jax.lax.platform_dependent(
        ids,
        grads,
        cpu=functools.partial(by_scatter, rows=len(table)),
        default=functools.partial(elsewhere, rows=len(table)),
    )
    return summed, None


_rows.defvjp(_forward, _backward)


def by_scatter(
    ids: Int[Array, " tokens"], grads: Float[Array, "tokens features"], rows: int
) -> Float[Array, "rows features"]:
    """Adds each gradient to its row, one after the other."""
    return jnp.zeros((rows, grads.shape[1]), grads.dtype).at[ids].add(grads)


def by_one_hot(
    ids: Int[Array, " tokens"], grads: Float[Array, "tokens features"], rows: int
) -> Float[Array, "rows features"]:
    """Sums the gradients of each row by a product with one-hot vectors."""
    one_hot = jax.nn.one_hot(ids, rows, dtype=grads.dtype, axis=0)
    return jnp.dot(one_hot, grads, precision=jax.lax.Precision.HIGHEST)


def by_sums_of_equals(
    ids: Int[Array, " tokens"], grads: Float[Array, "tokens features"], rows: int
) -> Float[Array, "rows features"]:
    """Sums the gradients of equal ids, then writes each sum to its row.

    A row is written once for each of its ids. These copies are equal, since they have
    the same summands in the same order, so it does not matter which is written last.
    """
    equal = (ids[:, None] == ids[None, :]).astype(grads.dtype)
    sums = jnp.dot(equal, grads, precision=jax.lax.Precision.HIGHEST)
    return jnp.zeros((rows, grads.shape[1]), grads.dtype).at[ids].set(sums)
