"""A run's directory: its config, one line of JSON a step, and its results."""

import json
import math
import os
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
            f"{workdir} already holds a run; name another --workdir, or remove it"
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


def append_line(file: Any, record: dict[str, Any]) -> None:
    """Appends one record to an open text file."""
    file.write(json.dumps(plain(record)) + "\n")


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
    """Parses one line of a file of records; the same error names it."""
    try:
        line = json.loads(text)
    except ValueError:
        line = None
    if not isinstance(line, dict):
        raise ValueError(
            f"{path}, line {number}: expected a JSON object, got {text[:60]!r}; "
            f"restore it, or remove all lines of its run to have that made again"
        )
    return line


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
