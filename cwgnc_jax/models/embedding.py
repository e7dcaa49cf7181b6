"""Rows of an embedding table, with gradients that suit the device."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike

# A product with one-hot rows costs as many multiplications as the table has rows.
_FEW_ROWS = 512


def lookup(table: Array, ids: Array, dtype: DTypeLike) -> Array:
    """Takes rows of a table; their gradients are summed in the table's dtype.

    On a CPU the gradient is a scatter-add. Elsewhere many additions into one row would
    wait for each other (thousands do: every token has one of two types), so there it is
    a matrix product with one-hot rows for a small table. For a large one the rows of
    equal ids are summed by a matrix product first and then written, which needs no
    additions in memory and gives the same bits every time.

    Args:
      table: Shape (rows, features).
      ids: Integers of any shape, in [0, rows).
      dtype: The dtype of the result.

    Returns:
      An array of the shape of ``ids`` with features behind.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from cwgnc_jax.models.embedding import lookup
      >>> table = jnp.array([[1.0, 2.0], [3.0, 4.0]])
      >>> jax.grad(lambda t: lookup(t, jnp.array([1, 1]), t.dtype).sum())(table)
      Array([[0., 0.],
             [2., 2.]], dtype=float32)
    """
    return _rows(table, ids).astype(dtype)


def sinusoids(rows: int, features: int) -> Array:
    r"""A table of positions as Vaswani et al. (2017) fill it, in float32.

    .. math::
      t_{p, 2i} = \sin \frac{p}{10000^{2i / d}} \qquad
      t_{p, 2i + 1} = \cos \frac{p}{10000^{2i / d}}

    Args:
      rows: The number of positions p.
      features: The width d.

    Returns:
      An array of shape (rows, features).

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
def _rows(table: Array, ids: Array) -> Array:
    return jnp.take(table, ids, axis=0, mode="clip")


def _forward(table, ids):
    # The table itself is only asked for its shape and is not kept.
    return _rows(table, ids), (ids.reshape(-1), table)


def _backward(residuals, cotangent):
    ids, table = residuals
    grads = cotangent.reshape(len(ids), -1).astype(table.dtype)
    elsewhere = by_one_hot if len(table) <= _FEW_ROWS else by_sums_of_equals
    summed = jax.lax.platform_dependent(
        ids,
        grads,
        cpu=lambda ids, grads: by_scatter(ids, grads, len(table)),
        default=lambda ids, grads: elsewhere(ids, grads, len(table)),
    )
    return summed, None


_rows.defvjp(_forward, _backward)


def by_scatter(ids: Array, grads: Array, rows: int) -> Array:
    """Adds each gradient to its row, one after the other."""
    return jnp.zeros((rows, grads.shape[1]), grads.dtype).at[ids].add(grads)


def by_one_hot(ids: Array, grads: Array, rows: int) -> Array:
    """Sums the gradients of each row by a product with one-hot vectors."""
    one_hot = jax.nn.one_hot(ids, rows, dtype=grads.dtype, axis=0)
    return jnp.dot(one_hot, grads, precision=jax.lax.Precision.HIGHEST)


def by_sums_of_equals(ids: Array, grads: Array, rows: int) -> Array:
    """Sums the gradients of equal ids, then writes each row, whatever copy comes last.

    The copies of a row have the same summands in the same order, so they are equal.
    """
    equal = (ids[:, None] == ids[None, :]).astype(grads.dtype)
    sums = jnp.dot(equal, grads, precision=jax.lax.Precision.HIGHEST)
    return jnp.zeros((rows, grads.shape[1]), grads.dtype).at[ids].set(sums)
