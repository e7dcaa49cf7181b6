"""From text to token arrays to the batch of (seed, step), a pure function."""

import dataclasses
import functools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from train.examples import Examples

Batch = dict[str, np.ndarray]
"""input_ids, attention_mask, token_type_ids ``[batch, length]``; labels and weights
``[batch]``, where weight 0 marks a row that only fills up the last batch."""


_TOKENIZED_AT_ONCE = 4096


@dataclasses.dataclass(frozen=True)
class TokenArrays:
    """The tokens of a set of examples, ``[examples, length]`` each, int32."""

    input_ids: np.ndarray
    attention_mask: np.ndarray
    token_type_ids: np.ndarray
    labels: np.ndarray | None

    def __len__(self) -> int:
        return len(self.input_ids)


def load_tokenizer(directory: Path) -> Any:
    """Loads the tokenizer that lies beside a model's weights.

    Raises:
      FileNotFoundError: If there is none.
      ValueError: If its files cannot be read.
    """
    if not any(
        (directory / name).is_file() for name in ("tokenizer.json", "vocab.txt")
    ):
        raise FileNotFoundError(
            f"no tokenizer in {directory}: expected tokenizer.json or vocab.txt beside "
            f"the weights"
        )
    # Advice meant for its authors' own trainers, and a warning about threads.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
    except Exception as error:  # the tokenizers library raises bare Exceptions
        raise ValueError(
            f"the tokenizer in {directory} cannot be read: {_first_line(error)}"
        ) from error


def tokenize(
    tokenizer: Any, examples: Examples, max_length: int, length: int | None = None
) -> TokenArrays:
    """Tokenizes examples into arrays of one length.

    A pair longer than ``max_length`` loses tokens of its longer text first. The length
    is that of the longest example, rounded up to a multiple of 8: one shape and so one
    compiled program for a whole run, without padding that nothing needs.

    Args:
      tokenizer: A tokenizer of transformers.
      examples: Texts, and labels if they have any.
      max_length: The most tokens an example keeps, special tokens included.
      length: The length of the arrays, if the examples' own will not do.

    Returns:
      The arrays.

    Raises:
      ValueError: If ``max_length`` leaves no room for a token of each text, or an
        example is longer than ``length``.
    """
    pair = len(examples.texts) == 2
    least = tokenizer.num_special_tokens_to_add(pair=pair) + len(examples.texts)
    if max_length < least:
        raise ValueError(
            f"--max-length must be at least {least} for "
            f"{'pairs of texts' if pair else 'texts'} (their special tokens and a "
            f"token each), got {max_length}"
        )
    parts = []
    # All at once, the tokenizer's notes on offsets and words take 20 kB an example.
    for start in range(0, len(examples), _TOKENIZED_AT_ONCE):
        chunk = slice(start, start + _TOKENIZED_AT_ONCE)
        encoded = tokenizer(
            *(texts[chunk] for texts in examples.texts),
            truncation=True,
            max_length=max_length,
            return_token_type_ids=True,
        )
        parts.append(_padded(tokenizer, encoded, max_length))
    ids, mask, types = map(np.concatenate, zip(*parts, strict=True))
    longest = int(mask.sum(axis=1).max())
    if length is None:
        length = min(max_length, -(-longest // 8) * 8)
    if not longest <= length <= max_length:
        raise ValueError(
            f"length must lie between the longest example's {longest} tokens and "
            f"max_length {max_length}, got {length}"
        )
    arrays = (np.ascontiguousarray(array[:, :length]) for array in (ids, mask, types))
    return TokenArrays(*arrays, examples.labels)


def check_length(max_length: int, max_position_embeddings: int) -> None:
    """Raises if the model has no positions for texts of this length.

    Raises:
      ValueError: If ``max_length`` is the larger one.
    """
    if max_length > max_position_embeddings:
        raise ValueError(
            f"--max-length {max_length} is beyond the model's "
            f"{max_position_embeddings} positions; lower it to at most that"
        )


def steps_per_epoch(examples: int, batch_size: int) -> int:
    """Batches of an epoch, the last partial one included."""
    return -(-examples // batch_size)


def train_batch(arrays: TokenArrays, seed: int, step: int, batch_size: int) -> Batch:
    """Takes the batch of a step; the same for the same arguments, whatever came before.

    Each epoch visits every example once, in an order of its own. The last batch of an
    epoch holds what is left, filled up with rows of weight 0.

    Args:
      arrays: The training set, with labels.
      seed: Draws the order.
      step: Counts from 0 over all epochs.
      batch_size: Rows of a batch.

    Returns:
      The batch.
    """
    epoch, position = divmod(step, steps_per_epoch(len(arrays), batch_size))
    order = _permutation(seed, epoch, len(arrays))
    start = position * batch_size
    return _take(arrays, order[start : start + batch_size], batch_size)


def eval_batches(
    arrays: TokenArrays, batch_size: int
) -> Iterator[tuple[np.ndarray, Batch]]:
    """Takes all examples, the shortest first, without most of their padding.

    A batch has the smallest of at most three lengths that holds its longest example:
    that of the arrays, a half and a quarter of it, so that evaluation compiles three
    programs at most.

    Args:
      arrays: The examples.
      batch_size: Rows of a batch; the last one is filled up with rows of weight 0.

    Yields:
      The indices of the examples and their batch.
    """
    lengths, allowed = arrays.attention_mask.sum(axis=1), eval_lengths(arrays)
    order = np.argsort(lengths, kind="stable")
    for start in range(0, len(arrays), batch_size):
        rows = order[start : start + batch_size]
        length = next(x for x in allowed if x >= lengths[rows].max())
        batch = _take(arrays, rows, batch_size)
        for name in ("input_ids", "attention_mask", "token_type_ids"):
            batch[name] = batch[name][:, :length]
        yield rows, batch


def eval_lengths(arrays: TokenArrays) -> list[int]:
    """The lengths that batches of evaluation may have, the shortest first."""
    longest = arrays.input_ids.shape[1]
    halves = [-(-longest // (8 * part)) * 8 for part in (4, 2)]
    return sorted({*(x for x in halves if x < longest), longest})


def _padded(tokenizer: Any, encoded: Any, length: int) -> tuple[np.ndarray, ...]:
    ids = encoded["input_ids"]
    # To the right, where BERT's positions expect it, whatever the tokenizer says.
    mask = np.arange(length) < np.array([len(row) for row in ids])[:, None]

    def filled(rows, padding):
        array = np.full(mask.shape, padding, np.int32)
        array[mask] = np.concatenate(rows)
        return array

    types = filled(encoded["token_type_ids"], tokenizer.pad_token_type_id)
    return filled(ids, tokenizer.pad_token_id), mask.astype(np.int32), types


# More than the seeds of a sweep, whose runs step through their epochs together.
@functools.lru_cache(maxsize=64)
def _permutation(seed: int, epoch: int, examples: int) -> np.ndarray:
    # Counter-based: the key is the epoch's own, no earlier draw is needed. The order
    # of raw words is the same in all versions of NumPy, which it does not promise of
    # Generator.permutation.
    key = np.array([seed, epoch], np.uint64)
    return np.argsort(np.random.Philox(key=key).random_raw(examples)).astype(np.int32)


def _take(arrays: TokenArrays, rows: np.ndarray, batch_size: int) -> Batch:
    weights = (np.arange(batch_size) < len(rows)).astype(np.float32)
    rows = np.pad(rows, (0, batch_size - len(rows)))
    batch = {
        "input_ids": arrays.input_ids[rows],
        "attention_mask": arrays.attention_mask[rows],
        "token_type_ids": arrays.token_type_ids[rows],
        "weights": weights,
    }
    if arrays.labels is not None:
        batch["labels"] = arrays.labels[rows]
    return batch


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
