"""From texts to arrays of tokens."""

import dataclasses
import functools
import os
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, Num, UInt8

from cwgnc_train.config import UserError

_TOKENIZED_AT_ONCE = 4096
_VOCABULARIES = (("tokenizer.json",), ("vocab.txt",), ("vocab.json", "merges.txt"))
_TOKENIZER_FILES = (
    *chain.from_iterable(_VOCABULARIES),
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)


@dataclasses.dataclass(frozen=True)
class TokenArrays:
    """The tokens of a set of examples, padded to one length."""

    input_ids: Int[np.ndarray, "examples length"]
    attention_mask: Int[np.ndarray, "examples length"]
    token_type_ids: Int[np.ndarray, "examples length"]
    labels: Num[np.ndarray, " examples"] | None

    def __len__(self) -> int:
        return len(self.input_ids)

    @functools.cached_property
    def lengths(self) -> Int[np.ndarray, " examples"]:
        """How many tokens each example has."""
        return self.attention_mask.sum(axis=1, dtype=np.int32)


@dataclasses.dataclass(frozen=True)
class EncodedTexts:
    """The tokens of a set of examples, one example after another without padding."""

    ids: Int[np.ndarray, " tokens"]
    types: UInt8[np.ndarray, " tokens"]
    """0 for a token of the first text, 1 for one of the second."""
    lengths: Int[np.ndarray, " examples"]  # How many tokens each example has.
    padding: Int[np.ndarray, "2"]  # The id and the type of a padding token.


def tokenizer_files(directory: Path) -> dict[str, bytes]:
    """Reads the files of the tokenizer in a model's folder; needs a vocabulary."""
    files = {
        name: (directory / name).read_bytes()
        for name in _TOKENIZER_FILES
        if (directory / name).is_file()
    }
    # Without one, transformers would make up a tokenizer that knows no words.
    if not any(files.keys() >= set(names) for names in _VOCABULARIES):
        expected = ", or ".join(" and ".join(names) for names in _VOCABULARIES)
        raise UserError(
            f"no tokenizer in {directory}: expected {expected}, beside the weights"
        )
    return files


def load_tokenizer(directory: Path) -> Any:
    """Loads the tokenizer in a model's folder."""
    tokenizer_files(directory)
    # transformers' advice is for those who write their own training loop, and its
    # tokenizers warn about threads.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    # It takes two seconds to import.
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
    except Exception as error:  # the tokenizers library raises bare Exceptions
        raise UserError(
            f"the tokenizer in {directory} cannot be read: {_first_line(error)}"
        ) from error


def encode_texts(
    tokenizer: Any, texts: tuple[list[str], ...], max_length: int
) -> EncodedTexts:
    """Turns texts, or two lists whose items form pairs, into tokens.

    An example keeps ``max_length`` tokens at most, special tokens included, which must
    leave room for a token of each text. A pair that is longer loses tokens of its
    longer text first.
    """
    pair = len(texts) == 2
    least = tokenizer.num_special_tokens_to_add(pair=pair) + len(texts)
    if max_length < least:
        raise UserError(
            f"--max-length must be at least {least} for "
            f"{'pairs of texts' if pair else 'texts'} (their special tokens and a "
            f"token each), got {max_length}"
        )
    ids, types, lengths = [], [], []
    # In parts, since the tokenizer returns 20 kB of offsets and words per example.
    for start in range(0, len(texts[0]), _TOKENIZED_AT_ONCE):
        try:
            encoded = tokenizer(
                *(column[start : start + _TOKENIZED_AT_ONCE] for column in texts),
                truncation=True,
                max_length=max_length,
                return_token_type_ids=True,
            )
        except Exception as error:  # the tokenizers library raises bare Exceptions
            raise UserError(
                f"the model's tokenizer fails: {_first_line(error)}; check that "
                f"its files are complete"
            ) from error
        ids.append(np.fromiter(chain.from_iterable(encoded["input_ids"]), np.int32))
        token_types = chain.from_iterable(encoded["token_type_ids"])
        types.append(np.fromiter(token_types, np.uint8))
        lengths += map(len, encoded["input_ids"])
    if tokenizer.pad_token_id is None:
        raise UserError("the model's tokenizer has no padding token")
    return EncodedTexts(
        ids=np.concatenate(ids),
        types=np.concatenate(types),
        lengths=np.array(lengths, np.int32),
        padding=np.array(
            [tokenizer.pad_token_id, tokenizer.pad_token_type_id], np.int32
        ),
    )


def pad_tokens(
    tokens: EncodedTexts,
    labels: Num[np.ndarray, " examples"] | None,
    max_length: int,
    length: int | None = None,
) -> TokenArrays:
    """Pads tokens to one length.

    By default that is the length of the longest example, rounded up to a multiple of 8:
    one shape, and so one compiled program, without needless padding.
    """
    longest = int(tokens.lengths.max())
    if length is None:
        length = min(max_length, -(-longest // 8) * 8)
    if not longest <= length <= max_length:
        raise UserError(
            f"length must lie between the longest example's {longest} tokens and "
            f"max_length {max_length}, got {length}"
        )
    # Padding goes to the right, as BERT's positions expect, whatever the tokenizer's
    # own side is.
    mask = np.arange(length) < tokens.lengths[:, None]

    def padded(values: np.ndarray, padding: int) -> np.ndarray:
        array = np.full(mask.shape, padding, np.int32)
        array[mask] = values
        return array

    return TokenArrays(
        input_ids=padded(tokens.ids, tokens.padding[0]),
        attention_mask=mask.astype(np.int32),
        token_type_ids=padded(tokens.types, tokens.padding[1]),
        labels=labels,
    )


def check_length(max_length: int, most: int) -> None:
    """Checks that the model has positions for texts of this length."""
    if max_length > most:
        raise UserError(
            f"--max-length {max_length} is beyond the model's "
            f"{most} positions; lower it to at most that"
        )


def check_tokens(tokens: EncodedTexts, vocab_size: int, type_vocab_size: int) -> None:
    """Checks that the model has an embedding for every token; JAX would not notice."""
    for what, ids, size in (
        ("token", tokens.ids, vocab_size),
        ("token type", tokens.types, type_vocab_size),
    ):
        most = ids.max(initial=0)
        # A model of one token type ignores the types.
        if most >= size and (what == "token" or size > 1):
            raise UserError(
                f"the tokenizer gives the {what} {most}, and the model has {size} of "
                f"them, counted from 0: they do not belong together; take the model's "
                f"own tokenizer"
            )


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
