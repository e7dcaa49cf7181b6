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
    check_study,
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
    tasks: dict[str, TaskRuns]  # By name.
    training: TrainingConfig
    layout: Layout  # The way over the devices, with one run.
    description: dict[str, Any]
    """What ``study.json`` holds: the settings, and the data and model they are for."""
    saves_best: bool  # Whether the model of the best run is saved.


def prepare_study(
    config: FinetuneConfig | StabilityConfig, runs: list[RunSpec] | None = None
) -> Study:
    """Reads and checks what a study needs; writes nothing but cached tokens.

    Its runs are all that the config lists, if they are not given. The best model of a
    FinetuneConfig is saved.

    Raises a UserError if a setting, the data or the weights are wrong or the folder
    holds runs with other settings, and an OSError if a file or a hub cannot be reached.
    """
    check_study(config)
    training, data, runs = config.training, config.data, runs or config.runs()
    for task in config.tasks:
        find_task(task)
    for run in runs:
        check_clip(run.optimizer)
    check_writers(training.writers)
    settings, known = flattened(config), read_description(config.workdir)
    if not known:
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
    commits = known.get("commits", {})
    revision = commits.get("model") or training.revision

    @functools.cache
    def weights(num_labels: int) -> Any:
        return load_weights(
            config.model, num_labels, new_head=training.new_head, revision=revision
        )

    of_tasks = {
        task or "own": TaskRuns(
            inputs=load_inputs(task, data, weights, training.cache),
            training=training,
            max_length=data.max_length,
            data_devices=layout.data_devices,
            token_types=data.token_types,
        )
        for task in config.tasks or [None]
    }
    inputs = {name: of_task.inputs for name, of_task in of_tasks.items()}
    digests = {
        "data": {name: of_task.data_digest for name, of_task in inputs.items()},
        "weights": {name: of_task.weights_digest for name, of_task in inputs.items()},
    }
    for what, now in digests.items():
        # Each may have tasks that the other has not.
        before = known.get(what, {})
        check_same(config.workdir, f"{what} of task", now | before, before | now)
        digests[what] = before | now
    _check_layers(config.model, runs, min(x.layers for x in inputs.values()))
    commits = commits | {name: of_task.data_commit for name, of_task in inputs.items()}
    commits["model"] = next(iter(inputs.values())).checkpoint.commit
    return Study(
        workdir=config.workdir,
        runs=runs,
        tasks=of_tasks,
        training=training,
        layout=layout,
        description=settings | digests | {"commits": commits},
        saves_best=isinstance(config, FinetuneConfig),
    )


def _check_layers(model: str, runs: Sequence[RunSpec], layers: int) -> None:
    for run in runs:
        drawn, thawed = run.regularization.reinit_layers, run.iterations or 0
        if drawn > layers:
            raise UserError(
                f"{run.method} re-initialises {drawn} layers (--reinit-layers), but "
                f"{model} has {layers}"
            )
        if thawed > layers:
            raise UserError(
                f"--iterations {thawed}: an iteration thaws one layer, and {model} has "
                f"{layers}; give at most that many"
            )
