"""Embedding tables, with gradients that suit the platform."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Bool, Float, Int

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
    return _rows(table, ids, jnp.dtype(dtype))


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


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _rows(
    table: Float[Array, "rows features"], ids: Int[Array, "*shape"], dtype: np.dtype
) -> Float[Array, "*shape features"]:
    return jnp.take(table, ids, axis=0, mode="clip").astype(dtype)


def _forward(
    table: Float[Array, "rows features"], ids: Int[Array, "*shape"], dtype: np.dtype
) -> tuple[Float[Array, "*shape features"], _Residuals]:
    # Only the table's shape and dtype are used, so XLA does not keep the table.
    return _rows(table, ids, dtype), (ids.reshape(-1), table)


def _backward(
    dtype: np.dtype, residuals: _Residuals, cotangent: Float[Array, "*shape features"]
) -> tuple[Float[Array, "rows features"], None]:
    ids, table = residuals
    grads = cotangent.reshape(len(ids), -1)
    elsewhere = by_one_hot if len(table) <= _FEW_ROWS else by_sums_of_equals
    # The products sum numbers of the cotangent's dtype in that of the table.
    way = {"rows": len(table), "dtype": table.dtype}
    summed = jax.lax.platform_dependent(
        ids,
        grads,
        cpu=functools.partial(by_scatter, **way),
        default=functools.partial(elsewhere, **way),
    )
    return summed, None


_rows.defvjp(_forward, _backward)


def by_scatter(
    ids: Int[Array, " tokens"],
    grads: Float[Array, "tokens features"],
    rows: int,
    dtype: DTypeLike,
) -> Float[Array, "rows features"]:
    """Adds each gradient to its row, one after the other."""
    zeros = jnp.zeros((rows, grads.shape[1]), dtype)
    return zeros.at[ids].add(grads.astype(dtype))


def by_one_hot(
    ids: Int[Array, " tokens"],
    grads: Float[Array, "tokens features"],
    rows: int,
    dtype: DTypeLike,
) -> Float[Array, "rows features"]:
    """Sums the gradients of each row by a product with one-hot vectors."""
    return _summed(jnp.arange(rows)[:, None] == ids[None], grads, dtype)


def by_sums_of_equals(
    ids: Int[Array, " tokens"],
    grads: Float[Array, "tokens features"],
    rows: int,
    dtype: DTypeLike,
) -> Float[Array, "rows features"]:
    """Sums the gradients of equal ids, then writes each sum to its row.

    A row is written once for each of its ids. These copies are equal, since they have
    the same summands in the same order, so it does not matter which is written last.
    """
    sums = _summed(ids[:, None] == ids[None, :], grads, dtype)
    return jnp.zeros((rows, grads.shape[1]), dtype).at[ids].set(sums)


def _summed(
    chosen: Bool[Array, "sums tokens"],
    grads: Float[Array, "tokens features"],
    dtype: DTypeLike,
) -> Float[Array, "sums features"]:
    """Sums chosen gradients in a wider dtype, exactly but for rounding of the sums."""
    return jnp.dot(
        chosen.astype(grads.dtype),
        grads,
        precision=jax.lax.Precision.HIGHEST,
        preferred_element_type=dtype,
    )
