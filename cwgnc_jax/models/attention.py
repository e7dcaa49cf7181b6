"""Self-attention in a form that XLA also compiles well for CPUs."""

from collections.abc import Sequence
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float, PRNGKeyArray, Shaped

from cwgnc_jax.models.dropout import Noise, dropout

Hidden = Float[Array, "tokens hidden"]
"""Hidden states; rows and length are one axis."""
MaskBias = Float[Array, " rows #heads #length length"]
"""Added to the attention scores; see :func:`bias_of_mask`."""
_PerHead = Float[Array, "rows heads length head_size"]
_Scores = Float[Array, "rows heads length length"]


def self_attention(
    projections: Sequence[nnx.Linear],
    heads: int,
    x: Hidden,
    mask_bias: MaskBias,
    noise: Noise,
) -> Hidden:
    """Lets each token attend to the tokens of its example, in several heads.

    Args:
      projections: The dense layers of query, key and value.
      heads: The number of heads.
      x: The hidden states.
      mask_bias: See :func:`bias_of_mask`.
      noise: Its rates include one named ``attention``.

    Returns:
      The context of each token.
    """
    rows = mask_bias.shape[0]
    query, key, value = (split_heads(dense(x), rows, heads) for dense in projections)
    return attend(query, key, value, mask_bias, noise.key, noise.rates.attention)


def split_heads(y: Hidden, rows: int, heads: int) -> _PerHead:
    """Splits the tokens into rows and their features into heads."""
    # Transposed here rather than in the einsums: then XLA's CPU backend fuses the whole
    # attention, which takes a third off the time of the forward pass.
    return y.reshape(rows, -1, heads, y.shape[1] // heads).transpose(0, 2, 1, 3)


def attend(
    query: _PerHead,
    key: _PerHead,
    value: _PerHead,
    mask_bias: MaskBias,
    dropout_key: PRNGKeyArray | None,
    rate: ArrayLike | None,
) -> Hidden:
    """Computes the context of each token from query, key and value."""
    scores = cast(_Scores, _scores(query, key))
    scores = scores * query.shape[-1] ** -0.5 + mask_bias
    probs = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    probs = dropout(dropout_key, probs, rate)
    context = jnp.einsum("bhqk,bhkd->bhqd", probs, value).transpose(0, 2, 1, 3)
    return context.reshape(-1, context.shape[-2] * context.shape[-1])


def bias_of_mask(
    mask: Shaped[Array, " rows #heads #length length"],
) -> MaskBias:
    """Turns a mask of the keys that each query sees into a bias for the scores."""
    # With -inf a row without tokens would be NaN, which spreads to the whole batch.
    return jnp.where(mask.astype(bool), 0.0, np.finfo(np.float32).min)


@jax.custom_vjp
def _scores(query: _PerHead, key: _PerHead) -> _Scores:
    """Multiplies each query with each key of its head, in float32."""
    return jnp.einsum("bhqd,bhkd->bhqk", query, key, preferred_element_type=jnp.float32)


def _scores_forward(
    query: _PerHead, key: _PerHead
) -> tuple[_Scores, tuple[_PerHead, _PerHead]]:
    return _scores(query, key), (query, key)


def _scores_backward(
    saved: tuple[_PerHead, _PerHead], grads: _Scores
) -> tuple[_PerHead, _PerHead]:
    query, key = saved
    grads = grads.astype(query.dtype)
    # The smaller matrix comes first: XLA's CPU backend takes twice as long for
    # "bhqk,bhqd->bhkd", which is what autodiff would write.
    of_key = jnp.einsum("bhqd,bhqk->bhdk", query, grads).swapaxes(2, 3)
    return jnp.einsum("bhqk,bhkd->bhqd", grads, key), of_key


_scores.defvjp(_scores_forward, _scores_backward)
