"""A study as a value: its runs, and all that they are made from."""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cwgnc_train.config import (
    FinetuneConfig,
    RunSpec,
    StabilityConfig,
    TrainingConfig,
    UserError,
    check_finetune,
    check_stability,
)
from cwgnc_train.data import find_task
from cwgnc_train.engine import (
    Layout,
    TaskRuns,
    check_clip,
    check_writers,
    choose_mesh,
    load_inputs,
    load_weights,
)
from cwgnc_train.study.folder import (
    OF_INPUTS,
    check_same,
    check_workdir,
    flattened,
    read_description,
)


@dataclasses.dataclass(frozen=True)
class Study:
    """A study that is ready to start or to go on: everything has been read."""

    workdir: Path
    runs: list[RunSpec]
    tasks: dict[str, TaskRuns]
    """By name."""
    training: TrainingConfig
    layout: Layout
    """The way over the devices, with one run."""
    description: dict[str, Any]
    """What ``study.json`` holds: the settings, and the data and model they are for."""
    saves_best: bool = False
    """Whether the model of the best run is saved."""


def prepare_finetune(config: FinetuneConfig) -> Study:
    """Reads and checks what ``finetune`` needs; writes nothing but cached tokens.

    Raises a UserError if a setting, the data or the weights are wrong or the folder
    holds runs with other settings, and an OSError if a file or a hub cannot be reached.
    """
    check_finetune(config)
    return _prepare(config, [config.task], config.runs(), saves_best=True)


def prepare_stability(
    config: StabilityConfig, runs: list[RunSpec] | None = None
) -> Study:
    """Reads and checks what a stability study needs, as :func:`prepare_finetune`.

    Its runs are all combinations of what the config lists, if they are not given.
    """
    check_stability(config)
    return _prepare(config, config.tasks or [None], runs or config.runs())


def _prepare(
    config: FinetuneConfig | StabilityConfig,
    tasks: Sequence[str | None],
    runs: list[RunSpec],
    saves_best: bool = False,
) -> Study:
    training, data = config.training, config.data
    for task in filter(None, tasks):
        find_task(task)
    for run in runs:
        check_clip(run.optimizer)
    check_writers(training.writers)
    settings, known = flattened(config), read_description(config.workdir)
    if known is None:
        check_workdir(config.workdir, training.checkpoints.resume)
    elif not training.checkpoints.resume:
        raise UserError(
            f"{config.workdir} already holds runs; go on with them with --resume, name "
            f"another --workdir, or remove it"
        )
    else:
        before = {name: known[name] for name in known if name not in OF_INPUTS}
        check_same(config.workdir, "settings", before, settings)
    devices, most = training.devices, training.batch_size // training.accumulate
    layout = Layout(
        choose_mesh(devices, len(runs), most),
        shard_params=devices.shard_params,
        strategy=devices.strategy,
    )
    commits = (known or {}).get("commits", {})
    weights = functools.cache(
        functools.partial(
            load_weights,
            config.model,
            new_head=training.new_head,
            revision=commits.get("model") or training.revision,
        )
    )
    of_tasks = {
        task or "own": TaskRuns(
            inputs=load_inputs(task, data, weights, training.cache),
            training=training,
            max_length=data.max_length,
            data_devices=layout.data_devices,
        )
        for task in tasks
    }
    digests = {
        "data": {name: of.inputs.data_digest for name, of in of_tasks.items()},
        "weights": {name: of.inputs.weights_digest for name, of in of_tasks.items()},
    }
    if known is not None:
        for what, now in digests.items():
            before = {name: known[what].get(name, now[name]) for name in now}
            check_same(config.workdir, f"{what} of task", before, now)
            digests[what] = known[what] | now
    _check_layers(config.model, runs, of_tasks)
    commits = commits | {name: of.inputs.data_commit for name, of in of_tasks.items()}
    commits["model"] = next(iter(of_tasks.values())).inputs.checkpoint.commit
    return Study(
        workdir=config.workdir,
        runs=runs,
        tasks=of_tasks,
        training=training,
        layout=layout,
        description=settings | digests | {"commits": commits},
        saves_best=saves_best,
    )


def _check_layers(
    model: str, runs: Sequence[RunSpec], of_tasks: dict[str, TaskRuns]
) -> None:
    layers = min(of_task.inputs.layers for of_task in of_tasks.values())
    for run in runs:
        drawn = run.regularization.reinit_layers
        if drawn > layers:
            raise UserError(
                f"{run.method} re-initialises {drawn} layers (--reinit-layers), but "
                f"{model} has {layers}"
            )
        if (run.iterations or 0) > layers:
            raise UserError(
                f"--iterations {run.iterations}: an iteration thaws one layer, and "
                f"{model} has {layers}; give at most that many"
            )
