"""A run's directory: its config, one line of JSON a step, and its results."""

import contextlib
import hashlib
import json
import math
import os
import re
import zlib
from pathlib import Path
from typing import Any


def check_workdir(workdir: Path) -> None:
    """Raises if a run cannot be written here; writes nothing.

    Raises:
      FileExistsError: If the folder holds something already, or is a file.
      PermissionError: If nothing can be written there.
    """
    if workdir.is_dir() and not any(workdir.iterdir()):
        return
    if (workdir / "config.json").exists():
        raise FileExistsError(
            f"{workdir} already holds a run; go on with it with --resume, name another "
            f"--workdir, or remove it"
        )
    if workdir.exists():
        raise FileExistsError(
            f"{workdir} exists and is no empty folder; name another --workdir"
        )
    parent = next(parent for parent in workdir.absolute().parents if parent.exists())
    if not (parent.is_dir() and os.access(parent, os.W_OK)):
        raise PermissionError(f"cannot create {workdir}: {parent} is not writable")


def write_json(path: Path, content: Any) -> None:
    """Writes a file whole or not at all."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(plain(content), indent=2) + "\n")
    os.replace(temporary, path)


class NoLines:
    """Takes what ``HashedLines`` takes and writes nothing, in all processes but one."""

    def append(self, record: dict[str, Any]) -> None:
        """Takes a record."""

    def flush(self) -> None:
        """Does nothing."""

    def mark(self) -> dict[str, Any]:
        """Describes nothing."""
        return {}


class HashedLines:
    """A file of JSON lines that can be taken back to where it was.

    Use as a context manager.

    Args:
      path: The file.
      mark: Where to go on, as :meth:`mark` returned it; what comes after it is
        removed. None to begin anew.

    Raises:
      ValueError: If the file does not begin with what was marked.
    """

    def __init__(self, path: Path, mark: dict[str, Any] | None = None):
        content = b"" if mark is None else marked_lines(path, mark)
        self._bytes, self._digest = len(content), hashlib.sha256(content)
        self._file = path.open("r+b" if content else "wb")
        self._file.truncate(len(content))
        self._file.seek(len(content))

    def __enter__(self):
        return self

    def __exit__(self, kind, *exception):
        if kind is None:
            self._file.close()
            return
        # What could not be written has been said already.
        with contextlib.suppress(OSError):
            self._file.close()

    def append(self, record: dict[str, Any]) -> None:
        """Writes a record, with the next flush or mark."""
        line = json.dumps(plain(record)).encode() + b"\n"
        self._bytes += len(line)
        self._digest.update(line)
        self._file.write(line)

    def flush(self) -> None:
        """Lets others read what has been written."""
        self._file.flush()

    def mark(self) -> dict[str, Any]:
        """Describes all that has been written, which is on the disk itself then."""
        self._file.flush()
        os.fsync(self._file.fileno())
        return {"bytes": self._bytes, "sha256": self._digest.hexdigest()}


def marked_lines(path: Path, mark: dict[str, Any]) -> bytes:
    """Reads what a file of records held when it was marked.

    Raises:
      ValueError: If the file does not begin with it any more.
    """
    content = path.read_bytes() if path.exists() else b""
    begin = content[: mark["bytes"]]
    if hashlib.sha256(begin).hexdigest() != mark["sha256"]:
        raise ValueError(f"{path} has changed or lacks records")
    return begin


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Reads all records of a JSON-lines file."""
    with path.open() as file:
        return [json.loads(line) for line in file]


def parse_lines(path: Path, content: bytes) -> list[dict[str, Any]]:
    """Parses the whole lines of a file of records.

    Raises:
      ValueError: If one is no JSON object; it is named.
    """
    lines = enumerate(content.splitlines(), 1)
    return [parse_line(path, number, text) for number, text in lines]


def parse_line(path: Path, number: int, text: bytes) -> dict[str, Any]:
    """Parses one line of a file of records; the same error names it.

    A line with a checksum, as :func:`checked_line` writes it, must be as it was
    written, and is returned without it. Lines without one are read as they are.
    """
    text = text.rstrip(b"\n")
    checked = _CHECKSUM.search(text)
    if checked:
        record = text[: checked.start()] + b"}"
        if checked[1] != _crc32(record):
            raise ValueError(
                f"{path}, line {number}: has changed since it was written, its crc32 "
                f"does not fit; {_MEND}"
            )
        text = record
    try:
        line = json.loads(text)
    except (ValueError, RecursionError):
        line = None
    if not isinstance(line, dict):
        raise ValueError(
            f"{path}, line {number}: expected a JSON object, got {text[:60]!r}; {_MEND}"
        )
    return line


def checked_line(record: dict[str, Any]) -> bytes:
    """Writes a record as a line of JSON that tells whether it was changed.

    Its last entry, ``crc32``, is the checksum of the bytes of the line without it.
    """
    text = json.dumps(plain(record)).encode()
    return text[:-1] + b', "crc32": "' + _crc32(text) + b'"}\n'


def _crc32(text: bytes) -> bytes:
    return f"{zlib.crc32(text):08x}".encode()


_CHECKSUM = re.compile(rb', "crc32": "(.{8})"}$')
_MEND = "restore it, or remove all lines of its run to have that made again"


def plain(value: Any) -> Any:
    """Turns a value into what JSON can hold."""
    if isinstance(value, dict):
        return {name: plain(child) for name, child in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(child) for child in value]
    if isinstance(value, Path):
        return str(value)
    # JSON has no infinity (a threshold) and no NaN (a run that diverged).
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
