"""What goes into an encoder, and what comes out."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from cwgnc_jax.models.attention import bias_of_mask
from cwgnc_jax.models.config import EncoderConfig


class EncoderOutput(NamedTuple):
    """What :func:`apply` returns."""

    logits: Array  # shape=(examples, num_labels), dtype=jnp.float32
    hidden_states: tuple[Array, ...]  # after the embeddings and each layer but the last
    first_hidden: Array  # shape=(examples, hidden), after the last layer, or its mean
    pooled: Array  # shape=(examples, hidden), what the last dense layer reads


class Tokens(NamedTuple):
    """The tokens of a batch, as the modules of all types read them."""

    input_ids: Array  # shape=(rows, length)
    token_type_ids: Array  # shape=(rows, length)
    position_ids: Array  # shape=(rows, length), from 0 in each example
    mask_bias: Array  # (b, h, q, k), added to the attention scores
    first_tokens: Array  # shape=(examples,), row * length + column


def read_tokens(
    config: EncoderConfig,
    input_ids: ArrayLike,
    attention_mask: ArrayLike,
    token_type_ids: ArrayLike | None,
    first_tokens: ArrayLike | None,
) -> Tokens:
    """Checks a batch and says where each example begins and what it attends to.

    Args:
      config: The model's config.
      input_ids: See :func:`cwgnc_jax.models.apply`, as for the others.
      attention_mask: Likewise.
      token_type_ids: Likewise.
      first_tokens: Likewise.

    Returns:
      The tokens.

    Raises:
      ValueError: If the inputs' shapes differ or are too long for the model.
      TypeError: If the ids are not integers.
    """
    if token_type_ids is None:
        token_type_ids = jnp.zeros(jnp.shape(input_ids), jnp.int32)
    input_ids, attention_mask, token_type_ids = _checked_inputs(
        config, input_ids, attention_mask, token_type_ids
    )
    rows, length = input_ids.shape
    if first_tokens is None:
        first_tokens = jnp.arange(rows) * length
        position_ids = jnp.broadcast_to(jnp.arange(length), (rows, length))
        mask_bias = bias_of_mask(attention_mask[:, None, None, :])
    else:
        first_tokens = _checked_first_tokens(first_tokens)
        same = attention_mask[:, :, None] == attention_mask[:, None, :]
        # As many tokens of the same example are before a token in its row.
        position_ids = jnp.sum(jnp.tril(same, -1), axis=-1, dtype=jnp.int32)
        mask_bias = bias_of_mask(same[:, None])
    return Tokens(input_ids, token_type_ids, position_ids, mask_bias, first_tokens)


def _checked_first_tokens(first_tokens):
    first_tokens = jnp.asarray(first_tokens)
    if first_tokens.ndim != 1 or not jnp.issubdtype(first_tokens.dtype, jnp.integer):
        raise TypeError(
            f"first_tokens must be integers of shape (examples,), got "
            f"{first_tokens.dtype} of shape {first_tokens.shape}"
        )
    return first_tokens


def _checked_inputs(config, input_ids, attention_mask, token_type_ids):
    arrays = {
        "input_ids": jnp.asarray(input_ids),
        "attention_mask": jnp.asarray(attention_mask),
        "token_type_ids": jnp.asarray(token_type_ids),
    }
    shape = arrays["input_ids"].shape
    for name, array in arrays.items():
        if array.ndim != 2 or array.shape != shape:
            raise ValueError(
                f"{name} must have the shape (batch, length) of input_ids, got "
                f"{array.shape} where input_ids has {shape}"
            )
        if name != "attention_mask" and not jnp.issubdtype(array.dtype, jnp.integer):
            raise TypeError(f"{name} must be integers, got {array.dtype}")
    if shape[1] > config.max_length:
        raise ValueError(
            f"input_ids must be at most max_length = {config.max_length} long, got "
            f"{shape[1]}; truncate the texts"
        )
    return arrays.values()
