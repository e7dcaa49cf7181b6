"""From texts to arrays of tokens, by a model's tokenizer or from a cache."""

import contextlib
import dataclasses
import functools
import hashlib
import importlib.metadata
import json
import os
import uuid
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, Num, UInt8

from cwgnc_train.config import UserError, cache_folder, make_private

# To be raised when the same texts give other tokens, or the file's format changes.
_FORMAT = 1
_MOST_BYTES = 2**30
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
    types: UInt8[np.ndarray, " tokens"]  # 0 in the first text, 1 in the second.
    lengths: Int[np.ndarray, " examples"]  # How many tokens each example has.
    padding: Int[np.ndarray, "2"]  # The id and the type of a padding token.


class CachedTokenizer:
    """The tokenizer in a model's folder, loaded when texts are not in the cache.

    An entry is found by a hash of all that its tokens depend on: the tokenizer's files,
    the texts, ``max_length`` and the versions of the libraries.
    """

    def __init__(self, directory: Path, cache: bool):
        self._directory = directory
        self._folder = cache_folder("tokens") if cache else None
        self._files = {
            name: (directory / name).read_bytes()
            for name in _TOKENIZER_FILES
            if (directory / name).is_file()
        }
        # Without one, transformers would make up a tokenizer that knows no words.
        if not any(self._files.keys() >= set(names) for names in _VOCABULARIES):
            known = ", or ".join(" and ".join(names) for names in _VOCABULARIES)
            raise UserError(
                f"no tokenizer in {directory}: expected {known}, beside the weights"
            )

    def encode(
        self, texts: tuple[list[str], ...], max_length: int, token_types: bool = True
    ) -> EncodedTexts:
        """Turns texts into tokens; see :func:`encode_texts`.

        Without ``token_types`` all tokens have type 0, those of padding too. What is
        kept on disk has the tokenizer's types in either case.
        """
        tokens = self._encode(texts, max_length)
        if token_types:
            return tokens
        padding = np.array([tokens.padding[0], 0], np.int32)
        types = np.zeros_like(tokens.types)
        return dataclasses.replace(tokens, types=types, padding=padding)

    def _encode(self, texts: tuple[list[str], ...], max_length: int) -> EncodedTexts:
        if self._folder is None:
            return encode_texts(self.loaded, texts, max_length)
        path = self._folder / f"{self._key(texts, max_length)}.npz"
        tokens = _read(path, len(texts[0]))
        if tokens is None:
            tokens = encode_texts(self.loaded, texts, max_length)
            _write(path, tokens)
        return tokens

    def save(self, directory: Path) -> None:
        """Writes the tokenizer's files as they were read."""
        for name, content in self._files.items():
            (directory / name).write_bytes(content)

    @functools.cached_property
    def loaded(self) -> Any:
        """The tokenizer as transformers reads it."""
        # No advice on writing a training loop, and no warnings about threads.
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
        # It takes two seconds to import.
        from transformers import AutoTokenizer

        try:
            return AutoTokenizer.from_pretrained(
                self._directory, trust_remote_code=False
            )
        except Exception as error:  # the tokenizers library raises bare Exceptions
            what = f"the tokenizer in {self._directory} cannot be read"
            raise UserError(f"{what}: {_first_line(error)}") from error

    def _key(self, texts: tuple[list[str], ...], max_length: int) -> str:
        # A tokenizer whose files do not name its class gets the class of the model.
        config = (self._directory / "config.json").read_bytes()
        files = sorted((self._files | {"config.json": config}).items())
        parts = [
            _FORMAT,
            [importlib.metadata.version(x) for x in ("tokenizers", "transformers")],
            [(name, hashlib.sha256(content).hexdigest()) for name, content in files],
            max_length,
            texts,
        ]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


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
        given = "pairs of texts" if pair else "texts"
        raise UserError(
            f"--max-length must be at least {least} for {given} (their special tokens "
            f"and a token each), got {max_length}"
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
            reason = f"{_first_line(error)}; check that its files are complete"
            raise UserError(f"the model's tokenizer fails: {reason}") from error
        ids.append(np.fromiter(chain.from_iterable(encoded["input_ids"]), np.int32))
        token_types = chain.from_iterable(encoded["token_type_ids"])
        types.append(np.fromiter(token_types, np.uint8))
        lengths += map(len, encoded["input_ids"])
    if tokenizer.pad_token_id is None:
        raise UserError("the model's tokenizer has no padding token")
    padding = tokenizer.pad_token_id, tokenizer.pad_token_type_id
    return EncodedTexts(
        ids=np.concatenate(ids),
        types=np.concatenate(types),
        lengths=np.array(lengths, np.int32),
        padding=np.array(padding, np.int32),
    )


def pad_tokens(
    tokens: EncodedTexts,
    labels: Num[np.ndarray, " examples"] | None,
    max_length: int,
    length: int | None = None,
) -> TokenArrays:
    """Pads tokens to one length, so that one compiled program serves.

    By default that is the length of the longest, rounded up to a multiple of 8.
    """
    longest = int(tokens.lengths.max())
    if length is None:
        length = min(max_length, -(-longest // 8) * 8)
    if not longest <= length <= max_length:
        raise UserError(
            f"length must lie between the longest example's {longest} tokens and "
            f"max_length {max_length}, got {length}"
        )
    # To the right, as BERT's positions expect, whatever the tokenizer's own side is.
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
        beyond = f"--max-length {max_length} is beyond the model's {most} positions"
        raise UserError(f"{beyond}; lower it to at most that")


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
                f"them, counted from 0; take the model's own tokenizer"
            )


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def _read(path: Path, examples: int) -> EncodedTexts | None:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            tokens = EncodedTexts(**arrays)
        whole = len(tokens.lengths) == examples and (
            len(tokens.ids) == len(tokens.types) == tokens.lengths.sum()
        )
    except Exception:  # a damaged archive fails in many ways
        return None
    with contextlib.suppress(OSError):
        os.utime(path)  # The entries unused for longest are removed first.
    return tokens if whole else None


def _write(path: Path, tokens: EncodedTexts) -> None:
    # Workers of a study may write the same entry at the same time.
    temporary = path.with_name(f".{uuid.uuid4().hex}.npz")
    # Without a cache everything works, only slower.
    with contextlib.suppress(OSError):
        make_private(path.parent)
        try:
            np.savez(temporary, **dataclasses.asdict(tokens))
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        _prune(path.parent)


def _prune(folder: Path) -> None:
    """Removes the entries unused for longest until the rest fit into their limit."""
    total = 0
    statuses = [(path.stat(), path) for path in folder.iterdir()]
    for status, path in sorted(statuses, key=lambda x: x[0].st_mtime, reverse=True):
        total += status.st_size
        if total > _MOST_BYTES:
            path.unlink(missing_ok=True)
