"""Where an interrupted run goes on, and whether it may; reads only."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from train import checkpoint
from train.config import FinetuneConfig
from train.inputs import Inputs
from train.records import check_workdir, marked_lines, plain

# What does not change a run's bits.
_FREE = frozenset(
    {
        *("workdir", "cache", "resume", "checkpoint_seconds", "keep"),
        *("give_up_after", "writers"),
        # These are of the inputs, which are compared themselves.
        *("model_commit", "data_commit"),
        # They may change its rounding, which the fingerprint says.
        *("devices", "strategy", "shard_params"),
    }
)


@dataclasses.dataclass(frozen=True)
class Restart:
    """Where a run stands: before its first step, or at a checkpoint.

    Attributes:
      path: The checkpoint.
      step: How many steps are done.
      seconds: The time they took.
      diverged_at: The first of them whose loss was not finite.
      nonfinite: The fields of ``NonfiniteSteps``.
      records: The marks of the files of records by name.
    """

    path: Path | None = None
    step: int = 0
    seconds: float = 0.0
    diverged_at: int | None = None
    nonfinite: dict[str, Any] = dataclasses.field(default_factory=dict)
    records: dict[str, Any] = dataclasses.field(default_factory=dict)

    def notes(
        self, config: FinetuneConfig, inputs: Inputs, devices: int | str = 1
    ) -> dict[str, Any]:
        """What is written into a checkpoint beside the state of the run."""
        state = dataclasses.asdict(self)
        del state["path"]
        return {
            "config": described(config),
            "inputs": {"data": inputs.data_digest, "weights": inputs.weights_digest},
            "fingerprint": checkpoint.fingerprint(devices),
            "state": state,
        }


def described(config: FinetuneConfig) -> dict[str, Any]:
    """What ``config.json`` holds of a run: all but the manner of its start."""
    settings = plain(dataclasses.asdict(config))
    del settings["resume"], settings["hosts"]
    return settings


def begun_commit(config: FinetuneConfig) -> str | None:
    """The commit on the hub whose model a run to resume began with, if it did."""
    path = config.workdir / "config.json"
    if not (config.resume and path.exists()):
        return None
    commit = _flat(_read(path)).get("model_commit")
    return commit if isinstance(commit, str) else None


def finished(config: FinetuneConfig) -> dict[str, Any] | None:
    """The results of a run that is to be resumed and has nothing left to do.

    Raises:
      ValueError: If the run has other settings, or a file is damaged.
    """
    path = config.workdir / "results.json"
    if not (config.resume and path.exists()):
        return None
    check_settings(config)
    return _read(path)


def check_settings(config: FinetuneConfig) -> None:
    """Raises a ValueError if the folder of a run to resume holds another one, or none.

    It may be empty, or not be there: the run then starts.
    """
    workdir = config.workdir
    path = workdir / "config.json"
    if path.exists():
        _check_same(workdir, _flat(_read(path)), _flat(described(config)))
    elif workdir.is_dir() and (workdir / "metrics.jsonl").exists():
        raise ValueError(
            f"{path} is missing: expected the settings of the run in {workdir}; "
            f"restore it, or name another --workdir"
        )
    elif not _died_at_once(workdir):
        check_workdir(workdir)


def find_restart(
    config: FinetuneConfig,
    inputs: Inputs,
    say: Callable[[str], None],
    devices: int | str = 1,
) -> Restart:
    """Finds where a run goes on.

    Args:
      config: The run's config.
      inputs: The run's data and weights.
      say: Is told of checkpoints that are not used, and whether the bits of this one
        are to be the same as without interruption.
      devices: How many are used, and how if there are several.

    Returns:
      The newest whole checkpoint, with records as they were at its time; the start if
      none has been written.

    Raises:
      ValueError: If none is whole, or it belongs to other settings or data.
    """

    def problem(notes: dict[str, Any]) -> str | None:
        try:
            for name, mark in notes["state"]["records"].items():
                marked_lines(config.workdir / name, mark)
        except ValueError as error:
            return str(error)
        return None

    found = checkpoint.latest(config.workdir / "checkpoint", say, problem)
    if found is None:
        return Restart()
    path, notes = found
    now = Restart().notes(config, inputs, devices)
    _check_same(config.workdir, _flat(notes["config"]), _flat(now["config"]))
    _check_same(config.workdir, notes["inputs"], now["inputs"])
    elsewhere = checkpoint.other_fingerprint(notes["fingerprint"], now["fingerprint"])
    if elsewhere is not None:
        say(elsewhere)
    return Restart(path, **notes["state"])


def _died_at_once(workdir: Path) -> bool:
    """Whether a run was about to write its settings, and no more."""
    return workdir.is_dir() and {"config.json.tmp"} == {
        p.name for p in workdir.iterdir()
    }


def _check_same(workdir: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    names = [
        name
        for name in {**before, **now}
        if name not in _FREE and before.get(name) != now.get(name)
    ]
    if names:
        differences = "; ".join(
            f"{name} was {before.get(name)} and is {now.get(name)}" for name in names
        )
        raise ValueError(
            f"--resume: {workdir} holds a run with other settings: {differences}. Give "
            f"the same to go on with it, or another --workdir to start a new one"
        )


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise ValueError(
            f"{path} is damaged: expected a JSON object; restore it, or start the run "
            f"anew in another --workdir"
        )
    return content


def _flat(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings by their flags' names, which have no prefixes."""
    flat = {}
    for name, value in settings.items():
        flat |= _flat(value) if isinstance(value, dict) else {name: value}
    return flat
