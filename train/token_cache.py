"""A model's tokenizer, and the tokens it has made before."""

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

from train import batches
from train.caches import cache_folder, make_private

# To be raised when the same texts come to other tokens, or these to another file.
_FORMAT = 1
_LIBRARIES = ("tokenizers", "transformers")
_MOST_BYTES = 2**30


class CachedTokenizer:
    """The tokenizer that lies beside a model's weights, loaded when it is needed.

    It is not needed for texts whose tokens are kept on disk. There they are found by a
    hash of all that they depend on: the tokenizer's files, the texts, ``max_length``
    and the versions of the libraries.

    Args:
      directory: The model's folder.
      cache: Whether tokens are kept, and those that have been kept are used.

    Raises:
      FileNotFoundError: If there is no tokenizer.
    """

    def __init__(self, directory: Path, cache: bool):
        self._directory = directory
        self._files = batches.tokenizer_files(directory)
        self._folder = cache_folder("tokens") if cache else None

    def encode(self, texts: tuple[list[str], ...], max_length: int) -> batches.Tokens:
        """Returns the tokens of texts; see ``batches.encode``.

        Raises:
          ValueError: If the tokenizer cannot be read, or ``max_length`` leaves no room
            for a token of each text.
        """
        if self._folder is None:
            return batches.encode(self._loaded, texts, max_length)
        path = self._folder / f"{self._key(texts, max_length)}.npz"
        tokens = _read(path, len(texts[0]))
        if tokens is None:
            tokens = batches.encode(self._loaded, texts, max_length)
            _write(path, tokens)
        return tokens

    def save(self, directory: Path) -> None:
        """Writes the tokenizer's files as they were read."""
        for name, content in self._files.items():
            (directory / name).write_bytes(content)

    @functools.cached_property
    def _loaded(self) -> Any:
        return batches.load_tokenizer(self._directory)

    def _key(self, texts: tuple[list[str], ...], max_length: int) -> str:
        # A tokenizer whose own files do not name its class has that of the model.
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


def _read(path: Path, examples: int) -> batches.Tokens | None:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            tokens = batches.Tokens(**arrays)
        whole = len(tokens.lengths) == examples and (
            len(tokens.ids) == len(tokens.types) == tokens.lengths.sum()
        )
    except Exception:  # a damaged archive fails in many ways
        return None
    with contextlib.suppress(OSError):
        # Those that have not been used for longest give way first.
        os.utime(path)
    return tokens if whole else None


def _write(path: Path, tokens: batches.Tokens) -> None:
    temporary = path.with_name(f".{uuid.uuid4().hex}")
    # All works without a cache, if more slowly.
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
    """Removes the oldest entries, so that the others take no more than their share."""
    total = 0
    statuses = [(path.stat(), path) for path in folder.iterdir()]
    for status, path in sorted(statuses, key=lambda x: x[0].st_mtime, reverse=True):
        total += status.st_size
        if total > _MOST_BYTES:
            path.unlink(missing_ok=True)
