"""A study's folder: whether it may be written to, and what it is the folder of."""

import dataclasses
import os
from pathlib import Path
from typing import Any

from cwgnc_train.config import UserError
from cwgnc_train.records import plain, read_json_object

# What may differ from one start to the next: which runs are wanted, and how they are
# carried out.
_FREE = frozenset(
    {
        *("workdir", "tasks", "methods", "max_norms", "learning_rates"),
        *("seed", "seeds", "seed_list", "data_seeds"),
        *("runs_per_program", "devices", "data_devices", "strategy", "shard_params"),
        *("coordinator", "num_processes", "process_id"),
        *("resume", "checkpoint_seconds", "keep", "keep_best"),
        *("writers", "cache", "give_up_after"),
    }
)
# What the description says of each task, besides the settings.
OF_INPUTS = ("data", "weights", "commits")
# What is written before the first run starts.
_FIRST_FILES = {"study.json.tmp", "reproduction.json", "reproduction.json.tmp"}


def flattened(config: Any) -> dict[str, Any]:
    """Returns the settings that all runs of a folder share, by the names of flags."""
    return plain(
        {name: value for name, value in _fields(config).items() if name not in _FREE}
    )


def read_description(workdir: Path) -> dict[str, Any] | None:
    """Reads ``study.json``; None if there is none, and a UserError if it is damaged."""
    path = workdir / "study.json"
    if not path.exists():
        return None
    known = read_json_object(path, "the study's settings")
    if all(
        isinstance(of_name := known.get(name), dict)
        and all(value is None or isinstance(value, str) for value in of_name.values())
        for name in OF_INPUTS
    ):
        return known
    raise UserError(
        f"{path} is damaged: expected the study's settings; restore it, or start anew "
        f"in another --workdir"
    )


def check_workdir(workdir: Path, resume: bool) -> None:
    """Raises a UserError if a new study cannot be written here; writes nothing."""
    if workdir.is_dir():
        names = {path.name for path in workdir.iterdir()}
        if not names or (resume and names <= _FIRST_FILES):
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
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    if names:
        differences = "; ".join(
            f"{name} was {before.get(name)} and is {now.get(name)}" for name in names
        )
        raise UserError(
            f"--resume: {workdir} holds runs with other {what}: {differences}. Give "
            f"the same to go on with them, or another --workdir to start new ones"
        )


def _fields(config: Any) -> dict[str, Any]:
    flat = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        nested = dataclasses.is_dataclass(value)
        flat |= _fields(value) if nested else {field.name: value}
    return flat
