"""Whether a folder's files are still those that were written."""

import hashlib
import json
from pathlib import Path

from cwgnc_train.records.files import sync

_NAME = "manifest.json"


def write_manifest(folder: Path) -> None:
    """Writes the sha256 of every file of a folder into it; all reach the disk."""
    digests = {}
    for path in _files(folder):
        digests[path.relative_to(folder).as_posix()] = _digest(path)
        sync(path)
    manifest = folder / _NAME
    manifest.write_text(json.dumps(digests, indent=0))
    sync(manifest)
    for path in {path.parent for path in _files(folder)}:
        sync(path)


def verify_manifest(folder: Path) -> str | None:
    """Says what happened to a folder since its manifest was written, or None.

    Missing, changed and new files are damage, and so is anything that keeps the
    manifest or a file from being read.
    """
    try:
        manifest = json.loads((folder / _NAME).read_bytes())
        if not isinstance(manifest, dict):
            return f"{_NAME} is no JSON object"
        names = {path.relative_to(folder).as_posix() for path in _files(folder)}
        for name in sorted({*manifest, *names} - {_NAME}):
            if name not in names:
                return f"{name} is missing"
            if name not in manifest:
                return f"{name} is not in {_NAME}"
            if _digest(folder / name) != manifest[name]:
                return f"{name} has changed"
    except FileNotFoundError:
        return f"{_NAME} is missing"
    except ValueError:
        return f"{_NAME} is no JSON"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    return None


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
