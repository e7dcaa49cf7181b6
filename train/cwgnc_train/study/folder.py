"""A study's folder: whether it may be written to, and what it is the folder of."""

import dataclasses
import os
from pathlib import Path
from typing import Any

from cwgnc_train.config import UserError
from cwgnc_train.records import plain, read_json_object

# What may differ from one start to the next: which runs are wanted, and how they are
# carried out.
_FREE = (
    *("workdir", "tasks", "methods", "max_norms", "learning_rates"),
    *("seed", "seeds", "seed_list", "data_seeds"),
    *("devices", "hosts", "checkpoints", "writers", "cache", "give_up_after"),
)
# What the description says of each task, besides the settings.
OF_INPUTS = ("data", "weights", "commits")
# What is written before the first run starts.
_FIRST_FILES = {"study.json.tmp", "reproduction.json", "reproduction.json.tmp"}


def flattened(config: Any) -> dict[str, Any]:
    """Returns the settings that all runs of a folder share, by the names of flags."""
    settings = {}
    for name, value in vars(config).items():
        if name in _FREE:
            continue
        nested = dataclasses.is_dataclass(value)
        settings |= flattened(value) if nested else {name: plain(value)}
    return settings


def read_description(workdir: Path) -> dict[str, Any]:
    """Reads ``study.json``, {} if there is none; a damaged one is a UserError."""
    path = workdir / "study.json"
    if not path.exists():
        return {}
    known = read_json_object(path, "the study's settings")
    for name in OF_INPUTS:
        texts = known.get(name)
        if not isinstance(texts, dict) or any(
            not isinstance(text, str | None) for text in texts.values()
        ):
            raise UserError(
                f"{path} is damaged: expected the study's settings; restore it, or "
                f"start anew in another --workdir"
            )
    return known


def check_workdir(workdir: Path, resume: bool) -> None:
    """Raises a UserError if a new study cannot be written here; writes nothing."""
    if workdir.is_dir():
        names = {path.name for path in workdir.iterdir()}
        if names <= (_FIRST_FILES if resume else set()):
            return
    if (workdir / "records.jsonl").exists():
        raise UserError(
            f"{workdir / 'study.json'} is missing: expected the settings of the runs "
            f"in {workdir}; restore it, or name another --workdir"
        )
    if workdir.exists():
        raise UserError(
            f"{workdir} exists and is not an empty folder; name another --workdir"
        )
    parent = next(parent for parent in workdir.absolute().parents if parent.exists())
    if not (parent.is_dir() and os.access(parent, os.W_OK)):
        raise UserError(f"cannot create {workdir}: {parent} is not writable")


def check_same(workdir: Path, what: str, before: dict, now: dict) -> None:
    """Raises a UserError if settings or data differ from those in the folder."""
    differences = "; ".join(
        f"{name} was {before.get(name)} and is {now.get(name)}"
        for name in {**before, **now}
        if before.get(name) != now.get(name)
    )
    if differences:
        raise UserError(
            f"{workdir} holds runs with other {what}: {differences}. Give the same to "
            f"go on with them by --resume, or another --workdir to start new ones"
        )
