"""The input and the output of an encoder."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Int

from cwgnc_jax.models.attention import bias_of_mask
from cwgnc_jax.models.config import EncoderConfig

Ids = Int[Any, "rows length"]
"""Integers, one for each token: an array of JAX or NumPy."""
Mask = Int[Any, "rows length"] | Bool[Any, "rows length"]
"""1 or True for tokens, 0 or False for padding."""


class EncoderOutput(NamedTuple):
    """What :func:`apply` returns.

    Attributes:
      logits: Always in float32.
      hidden_states: The output of the embeddings and of each layer but the last.
      cls_hidden: The last layer's output at the first token of each example, or the
        mean over the example's tokens where the config says so.
      pooled: The input of the last dense layer, before its dropout.
    """

    logits: Float[Array, "examples num_labels"]
    hidden_states: tuple[Float[Array, "rows length hidden"], ...]
    cls_hidden: Float[Array, "examples hidden"]
    pooled: Float[Array, "examples hidden"]


class Tokens(NamedTuple):
    """A batch in the form that the modules of all types read.

    Attributes:
      input_ids: The ids of the tokens.
      token_type_ids: The types of the tokens.
      position_ids: The position of each token in its example, from 0.
      mask_bias: Added to the attention scores.
      cls_positions: Where each example begins: row * length + column.
    """

    input_ids: Int[Array, "rows length"]
    token_type_ids: Int[Array, "rows length"]
    position_ids: Int[Array, "rows length"]
    mask_bias: Float[Array, " rows 1 #length length"]
    cls_positions: Int[Array, " examples"]


def read_tokens(
    config: EncoderConfig,
    input_ids: Ids,
    attention_mask: Mask | None = None,
    token_type_ids: Ids | None = None,
    segment_ids: Ids | None = None,
    cls_positions: Int[Any, " examples"] | None = None,
) -> Tokens:
    """Checks a batch and works out positions and which tokens see each other.

    Args:
      config: The model's config.
      input_ids: See :func:`cwgnc_jax.models.apply`, as for the others.
      attention_mask: Likewise.
      token_type_ids: Likewise.
      segment_ids: Likewise.
      cls_positions: Likewise.

    Returns:
      The tokens.

    Raises:
      ValueError: If neither or both of attention_mask and segment_ids are given, one of
        segment_ids and cls_positions is missing, or the inputs' shapes differ or are
        too long for the model.
      TypeError: If the ids are not integers.
    """
    given: dict[str, Any] = {
        "attention_mask": attention_mask,
        "segment_ids": segment_ids,
        "cls_positions": cls_positions,
    }
    names = [name for name, value in given.items() if value is not None]
    packed = names == ["segment_ids", "cls_positions"]
    if not packed and names != ["attention_mask"]:
        raise ValueError(
            f"expected attention_mask (one example in each row), or segment_ids and "
            f"cls_positions (packed rows), got {' and '.join(names) or 'none of them'}"
        )
    layout = names[0]
    if token_type_ids is None:
        token_type_ids = jnp.zeros(jnp.shape(input_ids), jnp.int32)
    arrays = _checked(
        config,
        {
            "input_ids": input_ids,
            layout: given[layout],
            "token_type_ids": token_type_ids,
        },
    )
    rows, length = arrays["input_ids"].shape
    if packed:
        cls_positions = _checked_cls_positions(given["cls_positions"])
        segments = arrays["segment_ids"]
        same = segments[:, :, None] == segments[:, None, :]
        # A token's position is the number of tokens of its example that precede it.
        position_ids = jnp.sum(jnp.tril(same, -1), axis=-1, dtype=jnp.int32)
        mask = same[:, None]
    else:
        cls_positions = jnp.arange(rows) * length
        position_ids = jnp.broadcast_to(jnp.arange(length), (rows, length))
        mask = arrays["attention_mask"][:, None, None, :]
    return Tokens(
        input_ids=arrays["input_ids"],
        token_type_ids=arrays["token_type_ids"],
        position_ids=position_ids,
        mask_bias=bias_of_mask(mask),
        cls_positions=cls_positions,
    )


def _checked_cls_positions(cls_positions: ArrayLike) -> Array:
    cls_positions = jnp.asarray(cls_positions)
    if cls_positions.ndim != 1 or not jnp.issubdtype(cls_positions.dtype, jnp.integer):
        raise TypeError(
            f"cls_positions must be integers of shape (examples,), got "
            f"{cls_positions.dtype} of shape {cls_positions.shape}"
        )
    return cls_positions


def _checked(config: EncoderConfig, inputs: dict[str, Any]) -> dict[str, Array]:
    """Converts the inputs to arrays and raises unless shapes and dtypes fit."""
    arrays = {name: jnp.asarray(value) for name, value in inputs.items()}
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
    return arrays
