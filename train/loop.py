"""The training loop, and one run from its config to its results."""

import dataclasses
import functools
import importlib.metadata
import platform
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from cwgnc_jax import models
from train import batches, parallel, tasks
from train.analysis.curves import draw_curves
from train.config import FinetuneConfig, check_finetune
from train.evaluation import evaluate
from train.inputs import Inputs, load_inputs
from train.optimizer import hyperparameters
from train.packing import Packing, make_packing, training_set
from train.parallel import ONE_RUN
from train.progress import Progress
from train.records import append_line, check_workdir, write_json
from train.steps import CURVES, Metrics, Recipe, Run

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


def prepare(config: FinetuneConfig) -> Prepared:
    """Reads and checks all that a run needs, and writes nothing but cached tokens.

    Args:
      config: The run's config.

    Returns:
      The run, ready to start.

    Raises:
      ValueError: If a setting, the data or the weights are wrong; the message says
        what was expected, what came and how to mend it.
      OSError: If a file is missing or a hub cannot be reached.
    """
    check_finetune(config)
    check_workdir(config.workdir)
    inputs = load_inputs(
        config.data,
        # The parameters that the weights lack are drawn when the run starts.
        lambda num_labels: models.load_pretrained(
            config.model,
            num_labels=num_labels,
            key=jax.random.key(0),
            new_head=config.new_head,
            revision=config.revision,
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
        *(inputs.train, config.padding, config.batch_size, config.data.max_length)
    )
    return Prepared(config, inputs, recipe, packing, config.epochs * steps)


def start_run(prepared: Prepared) -> Run:
    """A prepared run before its first step, as the only one of its program."""
    config = prepared.config
    return parallel.init_runs(
        prepared.recipe,
        prepared.inputs.checkpoint,
        [(config.seed, config.seed)],
        [
            hyperparameters(
                config.optimizer, config.regularization, prepared.total_steps
            )
        ],
        ONE_RUN,
        config.regularization.reinit_layers,
    )


def train(
    step_fn: Callable[[Run, int, int], tuple[Run, Metrics, int]],
    runs: Run,
    first: int,
    ends: Iterable[int],
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

    Yields:
      The number of steps done, the runs, and the metrics of the steps since the last
      time. They are still being computed: fetch those of an earlier time first.
    """
    step = first
    for end in ends:
        metrics = []
        while step < end:
            runs, of_steps, step = step_fn(runs, step, end)
            metrics.append(of_steps)
        yield end, runs, metrics


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
    workdir.mkdir(parents=True, exist_ok=True)
    write_json(workdir / "config.json", dataclasses.asdict(config))
    start = time.monotonic()
    run, diverged_at = _train(prepared, start_run(prepared))
    trained = time.monotonic()
    [evaluations] = evaluate(
        parallel.compile_eval_step(prepared.recipe),
        run.params,
        inputs,
        config.eval_batch_size,
    )
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
        "diverged_at_step": diverged_at,
        "steps": prepared.total_steps,
        "seconds": {
            "training": round(trained - start, 1),
            "evaluation": round(time.monotonic() - trained, 1),
        },
        "new_parameters": list(inputs.checkpoint.new_parameters),
        **environment(),
    }
    save_model(workdir / "model", inputs, jax.tree.map(lambda x: x[0], run.params))
    write_json(workdir / "results.json", results)
    draw_curves(workdir)
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


def _train(prepared: Prepared, run: Run) -> tuple[Run, int | None]:
    config, packing = prepared.config, prepared.packing
    examples = parallel.place_training_set(ONE_RUN, training_set(prepared.inputs.train))
    total, seed = prepared.total_steps, config.seed
    program_of = functools.cache(
        functools.partial(parallel.compile_train_steps, prepared.recipe, ONE_RUN)
    )
    diverged_at = None

    def step_fn(run, step, end):
        steps, alike = parallel.steps_of_program(step, end)
        shape = packing.shape([seed], alike)
        plans = [packing.plan(seed, step, shape) for step in steps]
        run, metrics = program_of(shape)(
            run, examples, parallel.place_plans(ONE_RUN, [plans])
        )
        return run, metrics, steps.stop

    def record(end: int, reported: list[Metrics]):
        nonlocal diverged_at
        fetched = fetch(reported)
        for number, of_runs in enumerate(fetched, end - len(fetched) + 1):
            metrics = jax.tree.map(lambda x: x[0], of_runs)
            append_line(file, _record(number, metrics, prepared))
            if diverged_at is None and not np.isfinite(metrics.loss):
                diverged_at = number
        file.flush()
        if fetched:
            progress.show(end, float(fetched[-1].loss[0]))

    with (
        (config.workdir / "metrics.jsonl").open("w") as file,
        Progress(total) as progress,
    ):
        ends = [*range(_CHUNK, total, _CHUNK), total]
        pending: tuple[int, list[Metrics]] = (0, [])
        for end, stepped, metrics in train(step_fn, run, 0, ends):
            record(*pending)
            run, pending = stepped, (end, metrics)
        record(*pending)
    return run, diverged_at


def _record(number: int, metrics: Metrics, prepared: Prepared):
    config = prepared.config
    steps = prepared.total_steps // config.epochs
    record = {"step": number, "epoch": round(number / steps, 4)}
    for name in CURVES:
        record[name] = float(getattr(metrics, name))
    if number == 1 or number % config.norms_every == 0:
        record["norms"] = {name: float(norm) for name, norm in metrics.norms.items()}
    return record
