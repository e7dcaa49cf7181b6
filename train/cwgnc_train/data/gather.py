"""The batch of a step, gathered on the device."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Num

from cwgnc_train.data.packing import BatchIndices, Shape
from cwgnc_train.data.tokens import TokenArrays


class TokenTable(NamedTuple):
    """The tokens and labels of examples, on the device or ready to be put there."""

    input_ids: Int[Any, "examples length"]
    token_type_ids: Int[Any, "examples length"]
    lengths: Int[Any, " examples"]
    labels: Num[Any, " examples"]


def token_table(*sets: TokenArrays) -> TokenTable:
    """Joins sets of one length, one after another; labels that lack are 0."""
    tables = []
    for arrays in sets:
        labels = arrays.labels
        if labels is None:
            labels = np.zeros(len(arrays), np.int32)
        tables.append([arrays.input_ids, arrays.token_type_ids, arrays.lengths, labels])
    return TokenTable(*map(np.concatenate, zip(*tables, strict=True)))


def packed_batch(
    table: TokenTable, indices: BatchIndices, shape: Shape
) -> dict[str, Num[Array, "..."]]:
    """Gathers a batch on the device.

    ``input_ids``, ``token_type_ids`` and ``segment_ids`` are ``[rows, length]``;
    ``cls_positions``, ``labels`` and ``weights`` are ``[slots]``. A batch in parts has
    a leading axis over parts.
    """
    if indices.weights.ndim == 2:
        # One part at a time: finding each token's example takes far more memory than
        # the tokens do.
        return jax.lax.map(lambda part: packed_batch(table, part, shape), indices)
    rows, length = shape
    cells = jnp.arange(rows * length)[:, None]
    first = indices.cls_positions[None]
    inside = (first <= cells) & (cells < first + table.lengths[indices.examples][None])
    slot = jnp.argmax(inside, axis=1)
    taken = jnp.any(inside, axis=1)
    row = indices.examples[slot]
    column = jnp.where(taken, cells[:, 0] - indices.cls_positions[slot], 0)

    def gathered(tokens):
        return jnp.where(taken, tokens[row, column], 0).reshape(shape)

    return {
        "input_ids": gathered(table.input_ids),
        "token_type_ids": gathered(table.token_type_ids),
        "segment_ids": jnp.where(taken, slot + 1, 0).reshape(shape),
        "cls_positions": jnp.minimum(indices.cls_positions, rows * length - 1),
        "labels": table.labels[indices.examples],
        "weights": indices.weights,
    }
