"""The paper's tables and figures from one command, cut to a budget."""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from cwgnc_train.config import (
    ReproduceConfig,
    RunSpec,
    StabilityConfig,
    UserError,
    check_numbers,
)
from cwgnc_train.engine import Programs, RunGroup, evaluate, hosts, seconds_saved
from cwgnc_train.records import read_json_object, write_json
from cwgnc_train.study.folder import check_same, flattened
from cwgnc_train.study.study import Study, prepare_study

# Table 1 compares these, Table 2 the thresholds of the last one, figures 1, 2, 4 and 5
# gradual unfreezing with full fine-tuning.
TABLE_METHODS = ("devlin", "bias_correction", "mixout", "mosbach", "cwgnc")
THRESHOLDS = (0.01, 0.05, 0.1, 0.5, 1.0, 5.0, math.inf)
FIGURE_METHODS = ("gu", "gu_restart", "full")
# Those whose race is measured: with the paper's clip, and two without.
RACING_METHODS = ("devlin", "cwgnc", *FIGURE_METHODS)
_FEWEST_THRESHOLDS = (0.05, 1.0, math.inf)
_PAPER_SEEDS = 25
_FIGURE_SEEDS = 5
_FEWEST_SEEDS = 3
_FEWEST_STEPS = 4
_TIMED_STEPS = 5


@dataclasses.dataclass(frozen=True)
class Scale:
    """How much of what the paper did is done again."""

    seeds: int  # Runs of each cell of the tables.
    train_examples: int | None = None  # None for all.
    evaluations: int | None = None  # None for one an epoch.
    thresholds: tuple[float, ...] = THRESHOLDS
    every: int = 20
    """Steps between two measurements of the components, and two lines of losses."""


@dataclasses.dataclass(frozen=True)
class Speed:
    """What a task costs on a machine, in seconds."""

    step: float
    evaluation: float
    compilation: float
    examples: int
    layers: int


def prepare_reproduction(config: ReproduceConfig) -> tuple[Study, list[str]]:
    """Reads and checks what the reproduction needs, and decides on its scale.

    With a budget, a few steps of every task are timed. What was decided is kept in
    ``reproduction.json``, so that the same command goes on with the same runs.

    Returns the study and what was cut. Raises what ``prepare_study``
    raises, and a UserError if the budget is too small.
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
        study, cuts = _study(config, scale), describe(scale)
    if not known and hosts.is_primary():
        # The budget is spent from now on; a folder is made only when all is well.
        config.workdir.mkdir(parents=True, exist_ok=True)
        write_json(path, settings | {"scale": dataclasses.asdict(scale), "cut": cuts})
    return study, cuts


def _study_config(config: ReproduceConfig, scale: Scale) -> StabilityConfig:
    """Returns the settings that all runs of the reproduction share."""
    examples = scale.train_examples or config.data.train_examples
    return StabilityConfig(
        model=config.model,
        workdir=config.workdir,
        tasks=config.tasks,
        methods=(*TABLE_METHODS, *FIGURE_METHODS),
        learning_rates=(config.learning_rate,),
        seeds=scale.seeds,
        data=dataclasses.replace(config.data, train_examples=examples),
        training=dataclasses.replace(
            config.training,
            evaluations=scale.evaluations or config.training.evaluations,
            record_every=scale.every,
            statistics_every=scale.every,
            norms_every=0,
        ),
    )


def paper_runs(config: ReproduceConfig, scale: Scale) -> list[RunSpec]:
    """Lists the runs behind the tables and figures."""
    shared = _study_config(config, scale)
    figures = "rte" if "rte" in config.tasks else config.tasks[0]
    thresholds = "cola" if "cola" in config.tasks else config.tasks[-1]
    parts = [
        dataclasses.replace(shared, methods=TABLE_METHODS),
        dataclasses.replace(
            shared,
            tasks=(thresholds,),
            methods=TABLE_METHODS[-1:],
            max_norms=scale.thresholds,
        ),
        dataclasses.replace(
            shared,
            tasks=(figures,),
            methods=FIGURE_METHODS,
            seeds=min(scale.seeds, _FIGURE_SEEDS),
        ),
    ]
    runs = {run.name: run for part in parts for run in part.runs()}
    return [
        run
        if run.task == figures and run.method in RACING_METHODS
        else dataclasses.replace(run, statistics_every=0)
        for run in runs.values()
    ]


def cut_to(config: ReproduceConfig, speeds: Mapping[str, Speed]) -> Scale:
    """Finds how much of it all fits into the budget of minutes.

    Raises a UserError if not even the least that makes sense fits.
    """
    assert config.budget_minutes is not None
    # The rest is for reading, figures and what the estimate misses.
    seconds = 0.85 * 60 * config.budget_minutes
    # All tasks have so many; none is asked for more than it has.
    most = min(speed.examples for speed in speeds.values())
    batch = config.training.batch_size
    whole, fewest = -(-most // batch), min(_FEWEST_SEEDS, config.seeds)
    fuller = [Scale(n) for n in range(config.seeds, fewest - 1, -1)]
    few = Scale(fewest, thresholds=_FEWEST_THRESHOLDS)
    shorter = [
        dataclasses.replace(
            few,
            train_examples=min(most, batch * steps),
            evaluations=1,
            every=max(3, min(20, 3 * steps // 20)),
        )
        for steps in range(whole, min(_FEWEST_STEPS, whole) - 1, -1)
    ]
    for scale in (*fuller, few, *shorter):
        if _seconds(config, scale, speeds) <= seconds:
            return scale
    least = _seconds(config, shorter[-1], speeds) / seconds * config.budget_minutes
    raise UserError(
        f"--budget-minutes {config.budget_minutes:g} is too little: {fewest} seeds of "
        f"{shorter[-1].train_examples} examples take about {least:.0f} minutes; give "
        f"more, or lower --max-length, or name fewer --tasks"
    )


def describe(scale: Scale) -> list[str]:
    """Says what is less than the paper has; other settings are not looked at."""
    seeds, few = scale.seeds, scale.thresholds
    examples, evaluations = scale.train_examples, scale.evaluations
    cuts = {
        f"{seeds} runs a cell instead of {_PAPER_SEEDS}": seeds < _PAPER_SEEDS,
        f"{seeds} runs in the figures instead of {_FIGURE_SEEDS}": seeds
        < _FIGURE_SEEDS,
        f"{len(few)} thresholds in Table 2 instead of 7": few != THRESHOLDS,
        f"at most {examples} training examples of a task": examples is not None,
        "scores at the end of a run or iteration instead of every epoch": evaluations,
    }
    return [words for words, is_cut in cuts.items() if is_cut]


def _study(config: ReproduceConfig, scale: Scale) -> Study:
    return prepare_study(_study_config(config, scale), paper_runs(config, scale))


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
    evaluation = programs.evaluation(group)
    jax.block_until_ready(states.params)
    start = programs.clock()
    for number in range(1, _TIMED_STEPS + 1):
        states = step(states, number)
    jax.block_until_ready(states.params)
    stepped = programs.clock()
    evaluate(evaluation, states.params, inputs)
    # Those of the slowest process, so that all decide on the same scale.
    slowest = hosts.largest(
        (stepped - start) / _TIMED_STEPS, programs.clock() - stepped, compilation
    )
    return Speed(*slowest, examples=len(inputs.train), layers=inputs.layers)


def _seconds(
    config: ReproduceConfig, scale: Scale, speeds: Mapping[str, Speed]
) -> float:
    """Estimates how long the runs of a scale take one after the other."""
    total, programs = 0.0, set()
    for run in paper_runs(config, scale):
        speed = speeds[run.task]
        examples = min(speed.examples, scale.train_examples or speed.examples)
        steps = run.epochs * -(-examples // config.training.batch_size)
        iterations = speed.layers if run.unfreezing else 1
        for i in range(iterations):
            # A forward pass costs one third of a step, a whole backward pass two.
            trained = (i + 1) / speed.layers if run.unfreezing else 1.0
            total += steps * speed.step * (1 + 2 * trained) / 3
            if run.statistics_every:
                total += 0.2 * steps / run.statistics_every * speed.step
            programs.add((run.task, run.optimizer.components, run.regularization, i))
        scored = scale.evaluations or run.epochs
        total += speed.evaluation * (iterations if run.unfreezing else scored)
    compilations = [speeds[task].compilation for task, *_ in programs]
    # Measured steps are programs of their own.
    return total + 2 * sum(compilations)
