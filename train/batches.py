"""From text to token arrays to the batch of (seed, step), a pure function."""

import dataclasses
import functools
import itertools
import os
from pathlib import Path
from typing import Any

import numpy as np

from train.examples import Examples

Batch = dict[str, np.ndarray]
"""input_ids, attention_mask, token_type_ids ``[rows, length]``; labels and weights of
the examples, where weight 0 marks one that only fills up the last batch, or
first_tokens, where each example begins."""


_TOKENIZED_AT_ONCE = 4096
_VOCABULARIES = (("tokenizer.json",), ("vocab.txt",), ("vocab.json", "merges.txt"))
_TOKENIZER_FILES = (
    *itertools.chain.from_iterable(_VOCABULARIES),
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)


@dataclasses.dataclass(frozen=True)
class TokenArrays:
    """The tokens of a set of examples, ``[examples, length]`` each, int32."""

    input_ids: np.ndarray
    attention_mask: np.ndarray
    token_type_ids: np.ndarray
    labels: np.ndarray | None

    def __len__(self) -> int:
        return len(self.input_ids)

    @functools.cached_property
    def lengths(self) -> np.ndarray:
        """How many tokens each example has, int32."""
        return self.attention_mask.sum(axis=1, dtype=np.int32)


@dataclasses.dataclass(frozen=True)
class Tokens:
    """The tokens of a set of examples, one example after the other, without padding."""

    ids: np.ndarray
    types: np.ndarray
    """0 for a token of the first text, 1 for one of the second."""
    lengths: np.ndarray
    """How many tokens each example has."""
    padding: np.ndarray
    """The id and the type that fill up."""


def tokenizer_files(directory: Path) -> dict[str, bytes]:
    """Reads the files of the tokenizer that lies beside a model's weights.

    Raises:
      FileNotFoundError: If there is none.
    """
    files = {
        name: (directory / name).read_bytes()
        for name in _TOKENIZER_FILES
        if (directory / name).is_file()
    }
    # Without its vocabulary transformers would make up a tokenizer that knows no words.
    if not any(files.keys() >= set(names) for names in _VOCABULARIES):
        expected = ", or ".join(" and ".join(names) for names in _VOCABULARIES)
        raise FileNotFoundError(
            f"no tokenizer in {directory}: expected {expected}, beside the weights"
        )
    return files


def load_tokenizer(directory: Path) -> Any:
    """Loads the tokenizer that lies beside a model's weights.

    Raises:
      FileNotFoundError: If there is none.
      ValueError: If its files cannot be read.
    """
    tokenizer_files(directory)
    # Advice meant for its authors' own trainers, and a warning about threads.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    # It takes two seconds to import.
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
    """Tokenizes examples into arrays of one length; see ``encode`` and ``pad``."""
    tokens = encode(tokenizer, examples.texts, max_length)
    return pad(tokens, examples.labels, max_length, length)


def encode(tokenizer: Any, texts: tuple[list[str], ...], max_length: int) -> Tokens:
    """Turns texts into tokens.

    A pair longer than ``max_length`` loses tokens of its longer text first.

    Args:
      tokenizer: A tokenizer of transformers.
      texts: One list of texts, or two whose items form pairs.
      max_length: The most tokens an example keeps, special tokens included.

    Returns:
      The tokens.

    Raises:
      ValueError: If ``max_length`` leaves no room for a token of each text.
    """
    pair = len(texts) == 2
    least = tokenizer.num_special_tokens_to_add(pair=pair) + len(texts)
    if max_length < least:
        raise ValueError(
            f"--max-length must be at least {least} for "
            f"{'pairs of texts' if pair else 'texts'} (their special tokens and a "
            f"token each), got {max_length}"
        )
    parts = []
    # All at once, the tokenizer's notes on offsets and words take 20 kB an example.
    for start in range(0, len(texts[0]), _TOKENIZED_AT_ONCE):
        try:
            encoded = tokenizer(
                *(column[start : start + _TOKENIZED_AT_ONCE] for column in texts),
                truncation=True,
                max_length=max_length,
                return_token_type_ids=True,
            )
        except Exception as error:  # the tokenizers library raises bare Exceptions
            raise ValueError(
                f"the model's tokenizer fails: {_first_line(error)}; see that its "
                f"files are whole"
            ) from error
        ids, types = encoded["input_ids"], encoded["token_type_ids"]
        lengths = np.array([len(row) for row in ids], np.int32)
        parts.append((_joined(ids, np.int32), _joined(types, np.uint8), lengths))
    if tokenizer.pad_token_id is None:
        raise ValueError("the model's tokenizer names no token that fills up a batch")
    padding = np.array([tokenizer.pad_token_id, tokenizer.pad_token_type_id], np.int32)
    return Tokens(*map(np.concatenate, zip(*parts, strict=True)), padding)


def pad(
    tokens: Tokens,
    labels: np.ndarray | None,
    max_length: int,
    length: int | None = None,
) -> TokenArrays:
    """Lays tokens out in arrays of one length.

    The length is that of the longest example, rounded up to a multiple of 8: one shape
    and so one compiled program for a whole run, without padding that nothing needs.

    Args:
      tokens: The tokens.
      labels: The examples' labels, if they have any.
      max_length: The most tokens an example keeps.
      length: The length of the arrays, if the examples' own will not do.

    Returns:
      The arrays.

    Raises:
      ValueError: If an example is longer than ``length``.
    """
    longest = int(tokens.lengths.max())
    if length is None:
        length = min(max_length, -(-longest // 8) * 8)
    if not longest <= length <= max_length:
        raise ValueError(
            f"length must lie between the longest example's {longest} tokens and "
            f"max_length {max_length}, got {length}"
        )
    # To the right, where BERT's positions expect it, whatever the tokenizer says.
    mask = np.arange(length) < tokens.lengths[:, None]

    def filled(values, padding):
        array = np.full(mask.shape, padding, np.int32)
        array[mask] = values
        return array

    ids, types = map(filled, (tokens.ids, tokens.types), tokens.padding)
    return TokenArrays(ids, mask.astype(np.int32), types, labels)


def check_length(max_length: int, most: int) -> None:
    """Raises if the model has no positions for texts of this length.

    Raises:
      ValueError: If ``max_length`` is the larger one.
    """
    if max_length > most:
        raise ValueError(
            f"--max-length {max_length} is beyond the model's "
            f"{most} positions; lower it to at most that"
        )


def check_tokens(tokens: Tokens, vocab_size: int, type_vocab_size: int) -> None:
    """Raises if the model has no embedding for a token; JAX would take the last one.

    Raises:
      ValueError: If a token or a token type is beyond the model's.
    """
    for what, ids, size in (
        ("token", tokens.ids, vocab_size),
        ("token type", tokens.types, type_vocab_size),
    ):
        most = ids.max(initial=0)
        # A model of one token type passes over them.
        if most >= size and (what == "token" or size > 1):
            raise ValueError(
                f"the tokenizer gives the {what} {most}, and the model has {size} of "
                f"them, counted from 0: they do not belong together; take the model's "
                f"own tokenizer"
            )


def steps_per_epoch(examples: int, batch_size: int) -> int:
    """Batches of an epoch, the last partial one included."""
    return -(-examples // batch_size)


def examples_of(count: int, seed: int, step: int, batch_size: int) -> np.ndarray:
    """The examples of a step; the same for the same arguments, whatever came before.

    Each epoch visits every example once, in an order of its own.

    Args:
      count: How many examples the training set has.
      seed: Draws the order.
      step: Counts from 0 over all epochs.
      batch_size: Examples a step; the last one of an epoch takes what is left.

    Returns:
      Their indices.
    """
    epoch, position = divmod(step, steps_per_epoch(count, batch_size))
    start = position * batch_size
    return _permutation(seed, epoch, count)[start : start + batch_size]


def parts_of(
    count: int, seed: int, step: int, batch_size: int, parts: int
) -> list[np.ndarray]:
    """Splits the examples of a step into parts as equal as can be; some may be empty.

    Args:
      count: See :func:`examples_of`, as the next three.
      seed: Draws the order.
      step: Counts from 0 over all epochs.
      batch_size: Examples a step.
      parts: How many parts.

    Returns:
      The indices of each part's examples.
    """
    return np.array_split(examples_of(count, seed, step, batch_size), parts)


def train_batch(arrays: TokenArrays, seed: int, step: int, batch_size: int) -> Batch:
    """The batch of a step with each example in a row of its own.

    Args:
      arrays: The training set, with labels.
      seed: Draws the order.
      step: Counts from 0 over all epochs.
      batch_size: Rows of a batch; a smaller last one of an epoch is filled up with
        rows of weight 0.

    Returns:
      The batch.
    """
    assert arrays.labels is not None
    examples = examples_of(len(arrays), seed, step, batch_size)
    weights = (np.arange(batch_size) < len(examples)).astype(np.float32)
    rows = np.pad(examples, (0, batch_size - len(examples)))
    return {
        "input_ids": arrays.input_ids[rows],
        "attention_mask": arrays.attention_mask[rows],
        "token_type_ids": arrays.token_type_ids[rows],
        "labels": arrays.labels[rows],
        "weights": weights,
    }


def _joined(rows: list[list[int]], dtype: Any) -> np.ndarray:
    return np.fromiter(itertools.chain.from_iterable(rows), dtype)


# More than the seeds of a sweep, whose runs step through their epochs together.
@functools.lru_cache(maxsize=64)
def _permutation(seed: int, epoch: int, examples: int) -> np.ndarray:
    # Counter-based: the key is the epoch's own, no earlier draw is needed. The order
    # of raw words is the same in all versions of NumPy, which it does not promise of
    # Generator.permutation.
    key = np.array([seed, epoch], np.uint64)
    return np.argsort(np.random.Philox(key=key).random_raw(examples)).astype(np.int32)


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
