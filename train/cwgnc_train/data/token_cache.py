"""A model's tokenizer, and a cache of the tokens it made."""

import contextlib
import dataclasses
import functools
import hashlib
import importlib.metadata
import json
import os
import uuid
from pathlib import Path
from typing import Any

import numpy as np

from cwgnc_train.config import cache_folder, make_private
from cwgnc_train.data.tokens import (
    EncodedTexts,
    encode_texts,
    load_tokenizer,
    tokenizer_files,
)

# To be raised when the same texts give other tokens, or the file's format changes.
_FORMAT = 1
_LIBRARIES = ("tokenizers", "transformers")
_MOST_BYTES = 2**30


class CachedTokenizer:
    """The tokenizer in a model's folder, loaded only when it is needed.

    Texts whose tokens are cached on disk do not need it. An entry is found by a hash of
    all that its tokens depend on: the tokenizer's files, the texts, ``max_length`` and
    the versions of the libraries.
    """

    def __init__(self, directory: Path, cache: bool):
        self._directory = directory
        self._files = tokenizer_files(directory)
        self._folder = cache_folder("tokens") if cache else None

    def encode(self, texts: tuple[list[str], ...], max_length: int) -> EncodedTexts:
        """Turns texts into tokens; see :func:`encode_texts`."""
        if self._folder is None:
            return encode_texts(self._loaded, texts, max_length)
        path = self._folder / f"{self._key(texts, max_length)}.npz"
        tokens = _read(path, len(texts[0]))
        if tokens is None:
            tokens = encode_texts(self._loaded, texts, max_length)
            _write(path, tokens)
        return tokens

    def save(self, directory: Path) -> None:
        """Writes the tokenizer's files as they were read."""
        for name, content in self._files.items():
            (directory / name).write_bytes(content)

    @functools.cached_property
    def _loaded(self) -> Any:
        return load_tokenizer(self._directory)

    def _key(self, texts: tuple[list[str], ...], max_length: int) -> str:
        # A tokenizer whose files do not name its class gets the class of the model.
        config = self._directory / "config.json"
        files = self._files | {config.name: config.read_bytes()}
        parts = [
            _FORMAT,
            [importlib.metadata.version(name) for name in _LIBRARIES],
            [(name, hashlib.sha256(files[name]).hexdigest()) for name in sorted(files)],
            max_length,
            texts,
        ]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


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
        # The entries unused for longest are removed first.
        os.utime(path)
    return tokens if whole else None


def _write(path: Path, tokens: EncodedTexts) -> None:
    # Workers of a study may write the same entry at the same time.
    temporary = path.with_name(f".{uuid.uuid4().hex}")
    # Without a cache everything works, only slower.
    with contextlib.suppress(OSError):
        make_private(path.parent)
        try:
            with temporary.open("wb") as file:
                np.savez(file, **dataclasses.asdict(tokens))
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
