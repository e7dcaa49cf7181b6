"""The training loop, and one run from its config to its results."""

import dataclasses
import functools
import importlib.metadata
import json
import platform
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax

from cwgnc_jax import models
from train import batches, checkpoint, data_parallel, hosts, parallel, tasks
from train.analysis.curves import draw_curves
from train.config import FinetuneConfig
from train.config_checks import check_finetune
from train.evaluation import Evaluation, evaluate
from train.inputs import Inputs, load_inputs
from train.interruption import Interrupted, Interruption
from train.nonfinite import NonfiniteSteps
from train.optimizer import check_clip, hyperparameters
from train.packing import Packing, make_packing, training_set
from train.parallel import ONE_RUN, Layout
from train.progress import Progress
from train.records import check_workdir, write_json
from train.restart import (
    Restart,
    begun_commit,
    check_settings,
    described,
    find_restart,
)
from train.run_recorder import RunRecorder
from train.steps import Metrics, Recipe, Run
from train.writers import check_writers

# Metrics are fetched this many steps at a time, and never those of the step that was
# just dispatched, so that the device does not wait for the host.
_CHUNK = 10


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A run that is ready to start: everything it was given has been read."""

    config: FinetuneConfig
    inputs: Inputs
    recipe: Recipe
    packing: Packing
    total_steps: int
    layout: Layout = ONE_RUN
    restart: Restart = Restart()

    def told(self) -> str:
        """All that the processes of a run must have in common."""
        notes = self.restart.notes(self.config, self.inputs, self.layout.description)
        return json.dumps(notes)


def prepare(config: FinetuneConfig) -> Prepared:
    """Reads and checks all that a run needs, and writes nothing but cached tokens.

    Args:
      config: The run's config.

    Returns:
      The run, ready to start or to go on.

    Raises:
      ValueError: If a setting, the data or the weights are wrong, or those of a run to
        resume were others; the message says what was expected, what came and how to
        mend it.
      OSError: If a file is missing or a hub cannot be reached.
    """
    check_finetune(config)
    check_clip(config.optimizer)
    check_writers(config.writers)
    layout = data_parallel.choose_layout(
        config.devices, config.batch_size // config.accumulate
    )
    if config.resume:
        check_settings(config)
    else:
        check_workdir(config.workdir)
    inputs = load_inputs(
        config.data,
        # The parameters that the weights lack are drawn when the run starts.
        lambda num_labels: models.load_pretrained(
            config.model,
            num_labels=num_labels,
            key=jax.random.key(0),
            new_head=config.new_head,
            revision=begun_commit(config) or config.revision,
        ),
        config.cache,
    )
    layers, new = inputs.layers, config.regularization.reinit_layers
    if new > layers:
        raise ValueError(f"--reinit-layers {new}: {config.model} has {layers} layers")
    steps = batches.steps_per_epoch(len(inputs.train), config.batch_size)
    recipe = inputs.recipe(
        config.optimizer, config.regularization, config.dtype, config.remat
    )
    packing = make_packing(
        *(inputs.train, config.padding, config.batch_size, config.data.max_length),
        parts=config.accumulate * layout.data_devices,
    )
    restart = Restart()
    if config.resume:
        restart = find_restart(config, inputs, _say, layout.description)
    return Prepared(
        *(config, inputs, recipe, packing, config.epochs * steps, layout, restart)
    )


def start_run(prepared: Prepared) -> Run:
    """A prepared run where it stands, as the only one of its program."""
    config = prepared.config
    run = parallel.init_runs(
        prepared.recipe,
        prepared.inputs.checkpoint,
        [(config.seed, config.seed)],
        [
            hyperparameters(
                config.optimizer, config.regularization, prepared.total_steps
            )
        ],
        prepared.layout,
        config.regularization.reinit_layers,
    )
    path = prepared.restart.path
    return run if path is None else checkpoint.restore_runs(path, run)


def train(
    step_fn: Callable[[Run, int, int], tuple[Run, Metrics, int]],
    runs: Run,
    first: int,
    ends: Iterable[int],
    stopped: Callable[[], bool] = lambda: False,
) -> Iterator[tuple[int, Run, list[Metrics]]]:
    """Takes steps, without waiting for the device.

    Args:
      step_fn: From runs, a step, counted from 0, and an end takes that step, and those
        behind it that one program takes with it, none from the end on. It takes over
        the runs' buffers, and returns the runs, the metrics of these steps, with axes
        over runs and steps, and the step that is next.
      runs: The runs so far.
      first: The step to begin with.
      ends: Rising numbers of steps done, at which to yield.
      stopped: Whether to yield at once, whatever the number.

    Yields:
      The number of steps done, the runs, and the metrics of the steps since the last
      time. They are still being computed: fetch those of an earlier time first.
    """
    step = first
    for end in ends:
        metrics = []
        while step < end and not stopped():
            runs, of_steps, step = step_fn(runs, step, end)
            metrics.append(of_steps)
        yield step, runs, metrics


def fetch(reported: Iterable[Metrics]) -> list[Metrics]:
    """Brings metrics to the host, with an axis over runs, in a list over steps."""
    return [
        jax.tree.map(lambda leaf, step=step: leaf[:, step], metrics)
        for metrics in jax.device_get(list(reported))
        for step in range(metrics.loss.shape[1])
    ]


def train_and_evaluate(prepared: Prepared) -> dict[str, Any]:
    """Runs a prepared run and writes its folder.

    Args:
      prepared: The run.

    Returns:
      What ``results.json`` holds.
    """
    config, inputs = prepared.config, prepared.inputs
    workdir = config.workdir
    run = start_run(prepared)
    # All have looked at the folder before the first process writes into it.
    hosts.wait_for_all("start")
    if hosts.is_first():
        workdir.mkdir(parents=True, exist_ok=True)
        settings = described(config) | {"commits": inputs.commits}
        write_json(workdir / "config.json", settings)
    # Until all is written: a signal must not cost what has been trained.
    with Interruption() as interruption:
        trained = _train(prepared, run, interruption)
        return _write_results(prepared, trained)


def _write_results(prepared: Prepared, trained: "_Trained") -> dict[str, Any]:
    config, inputs = prepared.config, prepared.inputs
    workdir = config.workdir
    run, reached, evaluations, seconds = trained
    scores = {name: result.scores for name, result in evaluations.items()}
    lines = inputs.majority_lines()
    judged, metric = inputs.judged, inputs.task.metric
    results = {
        "task": inputs.task.name,
        "metric": metric,
        "scores": scores,
        "majority_line": lines,
        "failed": tasks.has_failed(scores[judged][metric], lines[judged][metric]),
        "collapsed": evaluations[judged].collapsed,
        "diverged_at_step": reached.diverged_at,
        "nonfinite": NonfiniteSteps(**reached.nonfinite).summary(),
        "steps": prepared.total_steps,
        "seconds": {
            "training": round(reached.seconds, 1),
            "evaluation": round(seconds, 1),
        },
        "new_parameters": list(inputs.checkpoint.new_parameters),
        **environment(),
    }
    params = data_parallel.on_host(run.params)
    if not hosts.is_first():
        return results
    save_model(workdir / "model", inputs, params)
    draw_curves(workdir)
    # Whoever finds the results finds all else as well.
    write_json(workdir / "results.json", results)
    if config.keep is None and not config.keep_best:
        checkpoint.remove_checkpoints(_checkpoints(config))
    return results


def environment() -> dict[str, Any]:
    """On what and with which versions a run was made."""
    return {
        "device": jax.devices()[0].device_kind,
        "versions": {"python": platform.python_version()}
        | {
            name: importlib.metadata.version(name)
            for name in ("jax", "jaxlib", "flax", "optax", "transformers")
        },
    }


def save_model(directory: Path, inputs: Inputs, params: Any) -> None:
    """Writes weights, config and tokenizer as torch's transformers reads them."""
    models.save_pretrained(
        directory,
        inputs.checkpoint.config,
        params,
        label_names=inputs.task.label_names,
        regression=inputs.task.regression,
        source_config=inputs.checkpoint.source_config,
    )
    inputs.tokenizer.save(directory)


class _Trained(NamedTuple):
    run: Run
    reached: Restart
    evaluations: dict[str, Evaluation]
    seconds: float
    """What the evaluation took."""


def _train(prepared: Prepared, run: Run, interruption: Interruption) -> _Trained:
    """Takes the steps that are left, and evaluates the run at its end."""
    config, packing, inputs = prepared.config, prepared.packing, prepared.inputs
    layout = prepared.layout
    eval_step = parallel.compile_eval_step(prepared.recipe, layout)
    examples = parallel.place_training_set(layout, training_set(inputs.train))
    total, seed, begin = prepared.total_steps, config.seed, prepared.restart
    program_of = functools.cache(
        functools.partial(data_parallel.compile_shared_steps, prepared.recipe, layout)
    )
    start = time.monotonic()

    def step_fn(run, step, end):
        steps, alike = parallel.steps_of_program(step, end)
        shape = packing.shape([seed], alike)
        plans = [packing.plan(seed, step, shape) for step in steps]
        run, metrics = program_of(shape)(
            run, examples, data_parallel.place_shared_plans(layout, plans)
        )
        return run, metrics, steps.stop

    def record(end: int, reported: list[Metrics]):
        if reported:
            fetched = fetch(reported)
            recorder.metrics(end, fetched)
            progress.show(end, float(fetched[-1].loss[0]))

    def reached(end: int) -> Restart:
        seconds = begin.seconds + time.monotonic() - start
        nonfinite = dataclasses.asdict(recorder.nonfinite)
        return Restart(
            None, end, seconds, recorder.diverged_at, nonfinite, recorder.marks()
        )

    def evaluate_fn(step_fn: Callable[..., Any], run: Run) -> dict[str, Evaluation]:
        size = config.eval_batch_size
        return evaluate(step_fn, run.params, inputs, size, layout)[0]

    def stoppable_step(params, batch):
        # Only together can several processes stop.
        if hosts.alone():
            interruption.check()
        return eval_step(params, batch)

    def score(end: int, run: Run) -> float:
        results = evaluate_fn(eval_step, run)
        recorder.evaluation(end, results)
        return results[inputs.judged].scores[inputs.task.metric]

    with (
        RunRecorder(config, total, begin, hosts.is_first()) as recorder,
        Progress(total, begin.step, hosts.is_first()) as progress,
        checkpoint.Checkpoints(
            *(_checkpoints(config), config.checkpoint_seconds),
            *(config.keep or 1, config.keep_best),
        ) as checkpoints,
    ):
        count = config.evaluations
        scored_at = {-(-total * (i + 1) // count) for i in range(count - 1)}
        ends = sorted({*range(_CHUNK, total, _CHUNK), total, *scored_at})
        ends = [end for end in ends if end > begin.step]
        pending: tuple[int, list[Metrics]] = (0, [])
        saved = begin.step
        agreed = hosts.Agreement()
        stopped = interruption.came if hosts.alone() else lambda: False
        for end, stepped, metrics in train(step_fn, run, begin.step, ends, stopped):
            record(*pending)
            run, pending = stepped, (end, metrics)
            # A signal may come when all is done that this step asks for.
            scored = end in scored_at and metrics
            value = score(end, run) if scored else None
            due = hosts.is_first() and checkpoints.due()
            signum, due = agreed(interruption.signum, int(due))
            best = config.keep_best and scored
            if end > saved and (best or signum or due):
                saved = end
                record(*pending)
                pending = (end, [])
                notes = reached(end).notes(config, inputs, layout.description)
                checkpoints.save(end, run, notes, value)
            if signum:
                checkpoints.wait()
                raise Interrupted(signum)
        record(*pending)
        done, begun = reached(total), time.monotonic()
        try:
            evaluations = evaluate_fn(stoppable_step, run)
            signum, _ = agreed(interruption.signum, 0)
            if signum:
                raise Interrupted(signum)
        except Interrupted:
            if saved < total:
                notes = done.notes(config, inputs, layout.description)
                checkpoints.save(total, run, notes)
            checkpoints.wait()
            raise
        checkpoints.wait()
        return _Trained(run, done, evaluations, time.monotonic() - begun)


def _checkpoints(config: FinetuneConfig) -> Path:
    return config.workdir / "checkpoint"


def _say(line: str) -> None:
    if hosts.is_first():
        print(line, file=sys.stderr)
