"""Whether a folder's files are still those that were written."""

import hashlib
import json
import os
from pathlib import Path

_NAME = "manifest.json"


def write_manifest(folder: Path) -> None:
    """Writes the sha256 of every file of a folder into it; all reach the disk."""
    digests = _digests(folder)
    (folder / _NAME).write_text(json.dumps(digests, indent=0))
    files = [folder / name for name in (*digests, _NAME)]
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
        manifest = json.loads((folder / _NAME).read_bytes())
        if not isinstance(manifest, dict):
            return f"{_NAME} is no JSON object"
        found = _digests(folder)
    except FileNotFoundError:
        return f"{_NAME} is missing"
    except ValueError:
        return f"{_NAME} is no JSON"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    for name in sorted({*manifest, *found}):
        if name not in found:
            return f"{name} is missing"
        if name not in manifest:
            return f"{name} is not in {_NAME}"
        if found[name] != manifest[name]:
            return f"{name} has changed"
    return None


def _digests(folder: Path) -> dict[str, str]:
    digests = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path != folder / _NAME:
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            digests[path.relative_to(folder).as_posix()] = digest
    return digests
