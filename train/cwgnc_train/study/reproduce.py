"""The paper's tables and figures from one command, cut to a budget."""

import dataclasses
from pathlib import Path
from typing import Any

import jax

from cwgnc_train.config import ReproduceConfig, UserError, check_numbers
from cwgnc_train.engine import Programs, RunGroup, evaluate, hosts, seconds_saved
from cwgnc_train.records import read_json_object, write_json
from cwgnc_train.study.folder import check_same, flattened
from cwgnc_train.study.paper import (
    Scale,
    Speed,
    cut_to,
    describe,
    paper_runs,
    study_config,
)
from cwgnc_train.study.study import Study, prepare_study

_TIMED_STEPS = 5


def prepare_reproduction(config: ReproduceConfig) -> tuple[Study, list[str]]:
    """Reads and checks what the reproduction needs, and decides on its scale.

    With a budget, a few steps of every task are timed. What was decided is kept in
    ``reproduction.json``, so that the same command goes on with the same runs.

    Returns:
      The study, ready to start or to go on, and what of the protocol was cut.

    Raises:
      UserError: If a setting, the data or the weights are wrong, the budget is too
        small, or the folder holds another reproduction.
      OSError: If a file cannot be read or a hub cannot be reached.
    """
    with hosts.together("start"):
        check_numbers(config)
        if not config.tasks:
            raise UserError("--tasks names nothing, so there is no run to make")
        path = config.workdir / "reproduction.json"
        settings = flattened(config)
        settings |= {"seeds": config.seeds, "tasks": list(config.tasks)}
        known = path.exists()
        if known:
            scale = _read_scale(path, settings)
        else:
            scale = Scale(config.seeds)
            if config.budget_minutes is not None:
                scale = cut_to(config, _speeds(_study(config, scale)))
        study, cuts = _study(config, scale), describe(scale, config)
    if not known and hosts.is_primary():
        # The budget is spent from now on; a folder is made only when all is well.
        config.workdir.mkdir(parents=True, exist_ok=True)
        write_json(path, settings | {"scale": dataclasses.asdict(scale), "cut": cuts})
    return study, cuts


def _study(config: ReproduceConfig, scale: Scale) -> Study:
    return prepare_study(study_config(config, scale), paper_runs(config, scale))


def _read_scale(path: Path, settings: dict[str, Any]) -> Scale:
    """Reads the scale that was decided on; other settings are a UserError."""
    known = read_json_object(path, "the settings of a reproduction")
    try:
        # JSON has lists, and infinity as a string.
        thresholds = tuple(map(float, known["scale"]["thresholds"]))
        scale = Scale(**known["scale"] | {"thresholds": thresholds})
    except (KeyError, TypeError, ValueError):
        raise UserError(
            f"{path} is damaged: expected the settings of a reproduction; restore it, "
            f"or start anew in another --workdir"
        ) from None
    before = {name: known.get(name) for name in settings}
    check_same(path.parent, "settings", before, settings)
    return scale


def _speeds(study: Study) -> dict[str, Speed]:
    return {task: _speed(study, task) for task in study.tasks}


def _speed(study: Study, task: str) -> Speed:
    """Times a few steps and an evaluation of a task."""
    programs = Programs(say=lambda line: None)
    run = next(run for run in study.runs if run.task == task and not run.unfreezing)
    run = dataclasses.replace(run, statistics_every=0)
    # Every device that runs lie on must have one.
    layout = dataclasses.replace(study.layout, runs=study.layout.run_devices)
    group = RunGroup(study.tasks[task], (run,), layout)
    inputs = group.of_task.inputs
    # One shape that holds them all, so that nothing is compiled between them.
    shape = group.batch_shape(range(_TIMED_STEPS + 1))

    def step(states, number):
        program, batches = programs.train_steps(group, 0, [number], shape, False)
        return program(states, *batches)[0]

    with seconds_saved() as saved:
        states = step(group.start(), 0)
    # This program may have been kept on disk; those of the study need not have been.
    compilation = programs.seconds + sum(saved)
    jax.block_until_ready(states.params)
    start = programs.clock()
    for number in range(1, _TIMED_STEPS + 1):
        states = step(states, number)
    jax.block_until_ready(states.params)
    stepped = programs.clock()
    evaluate(programs.evaluation(group), states.params, inputs)
    # Those of the slowest process, so that all decide on the same scale.
    slowest = hosts.largest(
        (stepped - start) / _TIMED_STEPS, programs.clock() - stepped, compilation
    )
    return Speed(*slowest, examples=len(inputs.train), layers=inputs.layers)
