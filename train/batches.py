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


def tokenize(tokenizer: Any, examples: Examples, max_length: int) -> TokenArrays:
    """Tokenizes examples into arrays of one length.

    A pair longer than ``max_length`` loses tokens of its longer text first. The length
    is that of the longest example, rounded up to a multiple of 8: one shape and so one
    compiled program for a whole run, without padding that nothing needs.

    Args:
      tokenizer: A tokenizer of transformers.
      examples: Texts, and labels if they have any.
      max_length: The most tokens an example keeps, special tokens included.

    Returns:
      The arrays.
    """
    encoded = tokenizer(*examples.texts, truncation=True, max_length=max_length)
    longest = max(map(len, encoded["input_ids"]))
    length = min(max_length, -(-longest // 8) * 8)
    padded = tokenizer.pad(
        encoded,
        padding="max_length",
        max_length=length,
        return_attention_mask=True,
        return_tensors="np",
    )
    ids = padded["input_ids"].astype(np.int32)
    types = padded.get("token_type_ids", np.zeros_like(ids)).astype(np.int32)
    mask = padded["attention_mask"].astype(np.int32)
    return TokenArrays(ids, mask, types, examples.labels)


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


def eval_batches(arrays: TokenArrays, batch_size: int) -> Iterator[Batch]:
    """Yields the examples in their order, the last batch filled up with weight 0."""
    for start in range(0, len(arrays), batch_size):
        end = min(start + batch_size, len(arrays))
        yield _take(arrays, np.arange(start, end), batch_size)


@functools.lru_cache(maxsize=8)
def _permutation(seed: int, epoch: int, examples: int) -> np.ndarray:
    # Counter-based: the key is the epoch's own, no earlier draw is needed.
    generator = np.random.Generator(np.random.Philox(key=[seed, epoch]))
    return generator.permutation(examples)


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
