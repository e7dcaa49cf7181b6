"""Records as lines of JSON that tell whether they were changed."""

import json
import math
import re
import zlib
from pathlib import Path
from typing import Any

from cwgnc_train.config import UserError

_CHECKSUM = re.compile(rb', "crc32": "(.{8})"}$')
_FIX = "restore it, or remove all lines of its run to train that run again"


def checked_line(record: dict[str, Any]) -> bytes:
    """Writes a record as one line of JSON.

    Its last entry, ``crc32``, is the checksum of the bytes of the line without it.
    """
    text = json.dumps(plain(record)).encode()
    return text[:-1] + b', "crc32": "' + _crc32(text) + b'"}\n'


def parse_lines(path: Path, content: bytes) -> list[dict[str, Any]]:
    """Parses whole lines of records.

    A line with a checksum must be as it was written; it is returned without it. Lines
    without one are read as they are.

    Args:
      path: The file they come from, for messages.
      content: The lines.

    Returns:
      The records.

    Raises:
      UserError: If a line has changed or is no JSON object; it is named.
    """
    return [
        _parse_line(path, number, text)
        for number, text in enumerate(content.splitlines(), 1)
    ]


def plain(value: Any) -> Any:
    """Turns a value into one that JSON can hold."""
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


def _parse_line(path: Path, number: int, text: bytes) -> dict[str, Any]:
    checked = _CHECKSUM.search(text)
    if checked:
        record = text[: checked.start()] + b"}"
        if checked[1] != _crc32(record):
            raise UserError(
                f"{path}, line {number}: has changed since it was written, its crc32 "
                f"does not fit; {_FIX}"
            )
        text = record
    try:
        line = json.loads(text)
    except (ValueError, RecursionError):
        line = None
    if not isinstance(line, dict):
        raise UserError(
            f"{path}, line {number}: expected a JSON object, got {text[:60]!r}; {_FIX}"
        )
    return line


def _crc32(text: bytes) -> bytes:
    return f"{zlib.crc32(text):08x}".encode()
