"""The paper's tables and figures from one command, cut to a budget."""

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import jax

from train.caches import seconds_saved
from train.evaluation import evaluate
from train.experiments.paper import (
    ReproduceConfig,
    Scale,
    Speed,
    check_reproduce,
    cut_to,
    describe,
    paper_runs,
    study_config,
)
from train.experiments.programs import Programs
from train.experiments.stability import prepare_study
from train.experiments.study import Study
from train.parallel import ONE_RUN
from train.progress import StudyProgress
from train.records import plain, write_json

_TIMED_STEPS = 5
# What may differ from one start of a reproduction to the next.
_FREE = ("workdir", "runs_per_program", "devices", "data_devices", "cache")


def prepare_reproduction(config: ReproduceConfig) -> tuple[Study, list[str]]:
    """Reads and checks all that the reproduction needs, and decides on its scale.

    With a budget a few steps of every task are timed. What was decided is kept in
    ``reproduction.json``, so that the same command goes on with the same runs.

    Args:
      config: The reproduction's config.

    Returns:
      The study, ready to start or to go on, and what of the protocol was cut.

    Raises:
      ValueError: If a setting, the data or the weights are wrong, the budget is too
        small, or the folder holds another reproduction.
      OSError: If a file is missing or a hub cannot be reached.
    """
    check_reproduce(config)
    path = config.workdir / "reproduction.json"
    settings = {
        name: value
        for name, value in plain(dataclasses.asdict(config)).items()
        if name not in _FREE
    }
    known = _read(path, settings) if path.exists() else None
    if known is None:
        scale = Scale(config.seeds)
        study = prepare_study(study_config(config, scale), paper_runs(config, scale))
        if config.budget_minutes is not None:
            scale = cut_to(config, _speeds(study))
    else:
        scale = _scale(known)
    study = prepare_study(study_config(config, scale), paper_runs(config, scale))
    if known is None:
        # The budget is spent from now on; a folder is made only when all is well.
        config.workdir.mkdir(parents=True, exist_ok=True)
        decided = {"scale": dataclasses.asdict(scale), "cut": describe(scale, config)}
        write_json(path, settings | decided)
    return study, describe(scale, config)


def _read(path: Path, settings: dict[str, Any]) -> dict[str, Any]:
    try:
        known = json.loads(path.read_text())
        _scale(known)
    except (KeyError, TypeError, ValueError):
        raise ValueError(
            f"{path} is damaged: expected the settings of a reproduction; restore it, "
            f"or start anew in another --workdir"
        ) from None
    for name, value in settings.items():
        if known.get(name) != value:
            flag = name.replace("_", "-")
            raise ValueError(
                f"{path.parent} holds a reproduction with --{flag} {known.get(name)}, "
                f"not {value}. Give the same to go on with it, or another --workdir"
            )
    return known


def _scale(known: dict[str, Any]) -> Scale:
    # JSON has lists, and infinity as a string.
    scale = known["scale"]
    return Scale(**scale | {"thresholds": tuple(map(float, scale["thresholds"]))})


def _speeds(study: Study) -> dict[str, Speed]:
    """Times a few steps and an evaluation of every task."""
    steps = _TIMED_STEPS * len(study.inputs)
    with StudyProgress(done=0, failed=0, runs=0, run_steps=steps) as progress:
        programs = Programs(study, progress)
        return {task: _speed(study, programs, task) for task in study.inputs}


def _speed(study: Study, programs: Programs, task: str) -> Speed:
    run = next(run for run in study.runs if run.task == task and not run.unfreezing)
    run = dataclasses.replace(run, statistics_every=0)
    inputs, before = study.inputs[task], programs.seconds
    # One shape that holds them all, so that nothing is compiled between them.
    shape = study.batch_shape([run], range(_TIMED_STEPS + 1))

    def step(values, number):
        program = programs.train_steps([run], ONE_RUN, 0, [number], shape, False)
        return program(values)[0]

    with seconds_saved() as saved:
        values = step(study.start([run], ONE_RUN), 0)
    # This program may have been kept on disk; those of the study need not have been.
    compilation = programs.seconds - before + sum(saved)
    jax.block_until_ready(values.params)
    start = time.monotonic()
    for number in range(1, _TIMED_STEPS + 1):
        values = step(values, number)
    jax.block_until_ready(values.params)
    stepped = time.monotonic()
    eval_step = programs.eval_step(run, ONE_RUN)
    compiled = time.monotonic()
    evaluate(eval_step, values.params, inputs, study.config.eval_batch_size)
    return Speed(
        step=(stepped - start) / _TIMED_STEPS,
        evaluation=time.monotonic() - compiled,
        compilation=compilation,
        examples=len(inputs.train),
        layers=inputs.layers,
    )
