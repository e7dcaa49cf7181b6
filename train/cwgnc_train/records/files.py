"""Files that are written whole or not at all."""

import json
import os
from pathlib import Path
from typing import Any

from cwgnc_train.config import UserError
from cwgnc_train.records.lines import plain


def write_whole(path: Path, content: bytes | str) -> None:
    """Writes a file so that it is there whole or not at all, whenever we die."""
    if isinstance(content, str):
        content = content.encode()
    temporary = path.with_name(path.name + ".tmp")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Writes a value as a JSON file, whole or not at all."""
    write_whole(path, json.dumps(plain(content), indent=2) + "\n")


def read_json_object(path: Path, what: str) -> dict[str, Any]:
    """Reads a JSON object.

    Args:
      path: The file.
      what: What it should hold, for the message.

    Raises:
      UserError: If the file does not hold a JSON object.
    """
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise UserError(
            f"{path} is damaged: expected {what} as a JSON object; restore it, or "
            f"start anew in another --workdir"
        )
    return content


def sync(path: Path) -> None:
    """Returns when a file's content or a folder's names have reached the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
