"""Files written whole or not at all, folders with a manifest, records as JSON lines."""

import hashlib
import json
import math
import os
import re
import zlib
from pathlib import Path
from typing import Any

from cwgnc_train.config import UserError

_MANIFEST = "manifest.json"
_CHECKSUM = re.compile(rb', "crc32": "(.{8})"}$')
_FIX = "; restore it, or remove all lines of its run to train that run again"


def write_whole(path: Path, content: bytes | str) -> None:
    """Writes a file so that it is there whole or not at all, whenever we die."""
    raw = content.encode() if isinstance(content, str) else content
    temporary = path.with_name(path.name + ".tmp")
    try:
        temporary.write_bytes(raw)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Writes a value as a JSON file, whole or not at all."""
    write_whole(path, json.dumps(plain(content), indent=2) + "\n")


def read_json_object(path: Path, what: str) -> dict[str, Any]:
    """Reads a JSON object; a file that holds none, but ``what``, is a UserError."""
    content = _json_object(path.read_bytes())
    if content is None:
        raise UserError(
            f"{path} is damaged: expected {what} as a JSON object; restore it, or "
            f"start anew in another --workdir"
        )
    return content


def write_manifest(folder: Path) -> None:
    """Writes the sha256 of every file of a folder into it; all reach the disk."""
    digests = _digests(folder)
    (folder / _MANIFEST).write_text(json.dumps(digests, indent=0))
    files = [folder / name for name in (*digests, _MANIFEST)]
    for path in (*files, *{file.parent for file in files}):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def verify_manifest(folder: Path) -> str | None:
    """Says what happened to a folder since its manifest was written, or None.

    Missing, changed and new files are damage, and so is anything that keeps the
    manifest or a file from being read.
    """
    try:
        manifest = json.loads((folder / _MANIFEST).read_bytes())
        found = _digests(folder)
    except FileNotFoundError:
        return f"{_MANIFEST} is missing"
    except ValueError:
        return f"{_MANIFEST} is no JSON"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    if not isinstance(manifest, dict):
        return f"{_MANIFEST} is no JSON object"
    for name in sorted({*manifest, *found}):
        if name not in found:
            return f"{name} is missing"
        if name not in manifest:
            return f"{name} is not in {_MANIFEST}"
        if found[name] != manifest[name]:
            return f"{name} has changed"
    return None


def checked_line(record: dict[str, Any]) -> bytes:
    """Writes a record as one line of JSON.

    Its last entry, ``crc32``, is the checksum of the bytes of the line without it.
    """
    text = json.dumps(plain(record)).encode()
    return text[:-1] + b', "crc32": "' + _crc32(text) + b'"}\n'


def parse_lines(path: Path, content: bytes) -> list[dict[str, Any]]:
    """Parses whole lines of records, from this path.

    A line with a checksum must be as it was written, and is returned without it. A
    UserError names a line that has changed or is no JSON object.
    """
    records = []
    for number, text in enumerate(content.splitlines(), 1):
        place = f"{path}, line {number}"
        if checked := _CHECKSUM.search(text):
            text = text[: checked.start()] + b"}"
            if checked[1] != _crc32(text):
                raise UserError(
                    f"{place}: has changed since its crc32 was written{_FIX}"
                )
        record = _json_object(text)
        if record is None:
            got = repr(text[:60])
            raise UserError(f"{place}: expected a JSON object, got {got}{_FIX}")
        records.append(record)
    return records


def plain(value: Any) -> Any:
    """Turns a value into one that JSON can hold."""
    if isinstance(value, dict):
        return {name: plain(child) for name, child in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(child) for child in value]
    # JSON has no infinity (a threshold) and no NaN (a run that diverged).
    unknown = isinstance(value, float) and not math.isfinite(value)
    return str(value) if unknown or isinstance(value, Path) else value


def _json_object(text: bytes) -> dict[str, Any] | None:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def _crc32(text: bytes) -> bytes:
    return f"{zlib.crc32(text):08x}".encode()


def _digests(folder: Path) -> dict[str, str]:
    digests = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path != folder / _MANIFEST:
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            digests[path.relative_to(folder).as_posix()] = digest
    return digests
