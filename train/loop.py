"""The training loop, and one run from its config to its results."""

import dataclasses
import importlib.metadata
import platform
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from cwgnc_jax import models
from train import batches, tasks
from train.analysis.curves import draw_curves
from train.config import FinetuneConfig, check_finetune
from train.evaluation import evaluate
from train.inputs import Inputs, load_inputs
from train.optimizer import hyperparameters
from train.parallel import ONE_RUN, compile_eval_step, compile_train_step, init_runs
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
    total_steps: int


def prepare(config: FinetuneConfig) -> Prepared:
    """Reads and checks all that a run needs, and writes nothing.

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
    )
    layers, new = inputs.layers, config.regularization.reinit_layers
    if new > layers:
        raise ValueError(f"--reinit-layers {new}: {config.model} has {layers} layers")
    steps = batches.steps_per_epoch(len(inputs.train), config.batch_size)
    recipe = inputs.recipe(config.optimizer, config.regularization, config.dtype)
    return Prepared(config, inputs, recipe, config.epochs * steps)


def start_run(prepared: Prepared) -> Run:
    """A prepared run before its first step, as the only one of its program."""
    config = prepared.config
    return init_runs(
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
    step_fn: Callable[[Run, int], tuple[Run, Metrics]],
    runs: Run,
    first: int,
    ends: Iterable[int],
) -> Iterator[tuple[int, Run, list[Metrics]]]:
    """Takes steps, without waiting for the device.

    Args:
      step_fn: Takes a step, counted from 0; it takes over the runs' buffers.
      runs: The runs so far.
      first: The step to begin with.
      ends: Rising numbers of steps done, at which to yield.

    Yields:
      The number of steps done, the runs, and the metrics of the steps since the last
      time. They are still being computed: fetch those of an earlier time first.
    """
    for end in ends:
        metrics = []
        for step in range(first, end):
            runs, of_step = step_fn(runs, step)
            metrics.append(of_step)
        first = end
        yield end, runs, metrics


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
        compile_eval_step(prepared.recipe), run.params, inputs, config.eval_batch_size
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
    inputs.tokenizer.save_pretrained(directory)


def _train(prepared: Prepared, run: Run) -> tuple[Run, int | None]:
    config, arrays = prepared.config, prepared.inputs.train
    total = prepared.total_steps
    compiled = compile_train_step(prepared.recipe)
    diverged_at = None

    def step_fn(run, step):
        batch = batches.train_batch(arrays, config.seed, step, config.batch_size)
        return compiled(run, {name: array[None] for name, array in batch.items()})

    def record(end: int, reported: list[Metrics]):
        nonlocal diverged_at
        if not reported:
            return
        first = end - len(reported) + 1
        for number, of_runs in enumerate(jax.device_get(reported), first):
            metrics = jax.tree.map(lambda x: x[0], of_runs)
            append_line(file, _record(number, metrics, config, len(arrays)))
            if diverged_at is None and not np.isfinite(metrics.loss):
                diverged_at = number
        file.flush()
        progress.show(end, float(metrics.loss))

    with (
        (config.workdir / "metrics.jsonl").open("w") as file,
        Progress(total) as progress,
    ):
        ends = [*range(_CHUNK, total, _CHUNK), total]
        pending, segments = (0, []), train(step_fn, run, 0, ends)
        for segment in segments:
            record(*pending)
            end, run, metrics = segment
            pending = end, metrics
        record(*pending)
    return run, diverged_at


def _record(number: int, metrics: Metrics, config: FinetuneConfig, examples: int):
    steps = batches.steps_per_epoch(examples, config.batch_size)
    record = {"step": number, "epoch": round(number / steps, 4)}
    for name in CURVES:
        record[name] = float(getattr(metrics, name))
    if number == 1 or number % config.norms_every == 0:
        record["norms"] = {name: float(norm) for name, norm in metrics.norms.items()}
    return record
