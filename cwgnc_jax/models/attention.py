"""Self-attention, written so that XLA's CPU backend is quick about it as well."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import ArrayLike

from cwgnc_jax.models.dropout import Noise, dropout


def self_attention(
    projections: Sequence[nnx.Linear],
    heads: int,
    x: Array,
    mask_bias: Array,
    noise: Noise,
) -> Array:
    """Attention of each token to those of its example, in several heads.

    Args:
      projections: The dense layers of query, key and value.
      heads: The number of heads.
      x: Hidden states, (tokens, hidden).
      mask_bias: See :func:`bias_of_mask`.
      noise: Has a rate for the ``attention``.

    Returns:
      The context of every token, (tokens, hidden).
    """
    rows = mask_bias.shape[0]
    query, key, value = (
        split_heads(y, rows, heads) for y in _projected(projections, x)
    )
    return attend(query, key, value, mask_bias, noise.key, noise.rates.attention)


def split_heads(y: Array, rows: int, heads: int) -> Array:
    """From (tokens, hidden) to (rows, heads, length, hidden / heads)."""
    # Transposed here and not by the einsums: XLA's CPU backend fuses the whole
    # attention then, and the forward pass takes two thirds of the time.
    return y.reshape(rows, -1, heads, y.shape[1] // heads).transpose(0, 2, 1, 3)


def attend(
    query: Array,
    key: Array,
    value: Array,
    mask_bias: Array,
    dropout_key: Array | None,
    rate: ArrayLike,
) -> Array:
    """The context, (tokens, hidden), of what :func:`split_heads` gave."""
    scores = _scores(query, key)
    scores = scores * query.shape[-1] ** -0.5 + mask_bias
    probs = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    probs = dropout(dropout_key, probs, rate)
    context = jnp.einsum("bhqk,bhkd->bhqd", probs, value).transpose(0, 2, 1, 3)
    return context.reshape(-1, context.shape[-2] * context.shape[-1])


def _projected(projections, x):
    """Query, key and value."""
    if jax.default_backend() == "cpu":
        # XLA's CPU backend would join the kernels of all layers ahead of the rest,
        # and keep them: a quarter of the memory of all gradients.
        return [dense(x) for dense in projections]
    # By one matrix product, which keeps a GPU busier; they stay three parameters.
    kernels = [dense.kernel[...].astype(x.dtype) for dense in projections]
    kernel = jnp.concatenate(kernels, axis=1)
    bias = jnp.concatenate([dense.bias[...].astype(x.dtype) for dense in projections])
    return jnp.split(x @ kernel + bias[None], 3, axis=1)


def bias_of_mask(mask):
    """What is added to the attention scores; the mask broadcasts to (b, h, q, k)."""
    # Not -inf: a row without any token would be NaN, and one NaN spoils a whole batch.
    return jnp.where(mask.astype(bool), 0.0, jnp.finfo(jnp.float32).min)


@jax.custom_vjp
def _scores(query, key):
    """Each query's product with each key of its head, (b, h, q, k), in float32."""
    return jnp.einsum("bhqd,bhkd->bhqk", query, key, preferred_element_type=jnp.float32)


def _scores_forward(query, key):
    return _scores(query, key), (query, key)


def _scores_backward(saved, grads):
    query, key = saved
    grads = grads.astype(query.dtype)
    # The product with the small matrix on the left: XLA's CPU backend takes twice the
    # time for "bhqk,bhqd->bhkd", which is what jax.grad writes.
    of_key = jnp.einsum("bhqd,bhqk->bhdk", query, grads).swapaxes(2, 3)
    return jnp.einsum("bhqk,bhkd->bhqd", grads, key), of_key


_scores.defvjp(_scores_forward, _scores_backward)
