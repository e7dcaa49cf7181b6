"""The stability study: seeds × thresholds × methods, in a folder of its own."""

import contextlib
import functools
import json
from pathlib import Path
from typing import Any

import jax

from cwgnc_jax import models
from train import parallel
from train.experiments.plan import (
    PlannedRun,
    StabilityConfig,
    check_stability,
    data_config,
    planned_runs,
    protocol,
)
from train.experiments.record_file import RecordFile
from train.experiments.recorder import Recorder
from train.experiments.study import Study
from train.experiments.worker import Worker
from train.inputs import Inputs, load_inputs
from train.interruption import Interruption
from train.methods import find_method
from train.progress import StudyProgress
from train.records import check_workdir, plain, write_json
from train.tasks import find_task
from train.writers import check_writers

_DESCRIPTIONS = ("reproduction", "study")
_OF_INPUTS = ("data", "commits")


def prepare_study(
    config: StabilityConfig, runs: list[PlannedRun] | None = None
) -> Study:
    """Reads and checks all that a study needs, and writes nothing but cached tokens.

    Args:
      config: The study's config.
      runs: Its runs, if they are not all combinations of what the config lists.

    Returns:
      The study, ready to start or to go on.

    Raises:
      ValueError: If a setting, the data or the weights are wrong, or the folder holds a
        study with other settings; the message says what differs and how to go on.
      OSError: If a file is missing or a hub cannot be reached.
    """
    check_stability(config)
    check_writers(config.writers)
    for task in config.tasks:
        find_task(task)
    known = _read_study(config.workdir)
    if known is None:
        if not _died_at_once(config.workdir):
            check_workdir(config.workdir)
    else:
        settings = {name: known[name] for name in known if name not in _OF_INPUTS}
        _check_same(config.workdir, "settings", settings, _protocol(config))
    devices = jax.devices()
    if config.devices is not None and config.devices > len(devices):
        raise ValueError(f"--devices {config.devices}: there are {len(devices)}")
    mesh = parallel.device_mesh(devices[: config.devices], config.data_devices)
    if config.runs_per_program != "auto":
        parallel.Layout(config.runs_per_program, 1, mesh)
    load_checkpoint = functools.cache(
        lambda num_labels: models.load_pretrained(
            config.model,
            num_labels=num_labels,
            key=jax.random.key(0),
            revision=(known or {}).get("commits", {}).get("model") or config.revision,
        )
    )
    inputs = {
        task: load_inputs(data_config(config, task), load_checkpoint, config.cache)
        for task in config.tasks
    }
    if known is not None:
        digests = {task: inputs[task].data_digest for task in inputs}
        before = {task: known["data"].get(task, digests[task]) for task in inputs}
        _check_same(config.workdir, "data of task", before, digests)
    _check_layers(config, inputs)
    return Study(config, inputs, runs or planned_runs(config), mesh)


def run_study(study: Study) -> None:
    """Makes all runs of a study that are not finished yet, and records them.

    Args:
      study: The study.

    Raises:
      ValueError: If the records or all checkpoints are damaged.
      BlockingIOError: If another process is at work on the study.
      MemoryError: If a device cannot hold even one run.
      OSError: If the records or a checkpoint cannot be written.
      Interrupted: If a signal came; what has been done is on the disk.
    """
    workdir = study.config.workdir
    workdir.mkdir(parents=True, exist_ok=True)
    known = _read_study(workdir) or {"data": {}}
    digests = {task: inputs.data_digest for task, inputs in study.inputs.items()}
    commits = {task: inputs.data_commit for task, inputs in study.inputs.items()}
    commits["model"] = next(iter(study.inputs.values())).checkpoint.commit
    description = _protocol(study.config) | {
        "data": known["data"] | digests,
        "commits": known.get("commits", {}) | commits,
    }
    if description != known:
        write_json(workdir / "study.json", description)
    with contextlib.ExitStack() as files:
        records = files.enter_context(RecordFile(workdir / "records.jsonl"))
        components = None
        if any(run.statistics_every for run in study.runs):
            path = workdir / "components.jsonl"
            components = files.enter_context(RecordFile(path))
        recorder = files.enter_context(Recorder(study, records, components))
        before = [run for run in study.runs if recorder.is_finished(run)]
        todo = [run for run in study.runs if not recorder.is_finished(run)]
        progress = StudyProgress(
            done=len(before),
            failed=sum(recorder.failed(run) for run in before),
            runs=len(study.runs),
            run_steps=sum(study.total_steps(run) for run in todo),
        )
        with progress, Interruption() as interruption:
            Worker(study, recorder, progress, interruption).work(todo)


def _check_layers(config: StabilityConfig, inputs: dict[str, Inputs]) -> None:
    layers = min(of_task.layers for of_task in inputs.values())
    for name in config.methods:
        wanted = find_method(name).regularization.reinit_layers
        if wanted > layers:
            raise ValueError(
                f"method {name!r} draws the top {wanted} layers anew, but "
                f"{config.model} has {layers}"
            )
    if config.iterations is not None and config.iterations > layers:
        raise ValueError(
            f"--iterations {config.iterations}: an iteration thaws one layer, and "
            f"{config.model} has {layers}; give at most that many"
        )


def _protocol(config: StabilityConfig) -> dict[str, Any]:
    return plain(protocol(config))


def _read_study(workdir: Path) -> dict[str, Any] | None:
    path = workdir / "study.json"
    if not path.exists():
        return None
    try:
        known = json.loads(path.read_text())
        parts = known["data"], known.get("commits", {})
        if all(isinstance(part, dict) for part in parts):
            return known
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    raise ValueError(
        f"{path} is damaged: expected the study's settings; restore it, or start "
        f" the study anew in another --workdir"
    )


def _died_at_once(workdir: Path) -> bool:
    """Whether all that is left of a study is what is written before its runs start."""
    names = {path.name for path in workdir.iterdir()} if workdir.is_dir() else set()
    first = {f"{name}.json{tmp}" for name in _DESCRIPTIONS for tmp in ("", ".tmp")}
    return bool(names) and names <= first


def _check_same(workdir: Path, what: str, before: dict, now: dict) -> None:
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    if names:
        differences = "; ".join(
            f"{name} was {before.get(name)} and is {now.get(name)}" for name in names
        )
        raise ValueError(
            f"{workdir} holds a study with other {what}: {differences}. Give the same "
            f"to go on with it, or another --workdir to start a new one"
        )
