"""One run from its config to its results."""

import dataclasses
import importlib.metadata
import platform
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from cwgnc_jax import models
from train import batches, tasks
from train.analysis.curves import draw_curves
from train.config import FinetuneConfig, check_finetune
from train.examples import load_examples
from train.optimizer import hyperparameters
from train.parallel import compile_eval_step, compile_train_step
from train.progress import Progress
from train.records import append_line, check_workdir, write_json
from train.steps import Metrics, Recipe, Run, init_run

# Metrics are fetched this many steps at a time, and never those of the step that was
# just dispatched, so that the device does not wait for the host.
_CHUNK = 10


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A run that is ready to start: everything it was given has been read."""

    config: FinetuneConfig
    task: tasks.Task
    sets: dict[str, batches.TokenArrays]
    tokenizer: Any
    checkpoint: models.Checkpoint
    recipe: Recipe
    dropout_key: jax.Array
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
    task, examples = load_examples(config.data)
    head_key, dropout_key = jax.random.split(jax.random.key(config.seed))
    checkpoint = models.load_pretrained(
        config.model,
        num_labels=task.num_labels,
        key=head_key,
        new_head=config.new_head,
        revision=config.revision,
    )
    batches.check_length(
        config.data.max_length, checkpoint.config.max_position_embeddings
    )
    tokenizer = batches.load_tokenizer(checkpoint.directory)
    sets = {
        name: batches.tokenize(tokenizer, part, config.data.max_length)
        for name, part in examples.items()
    }
    # One length for all that is evaluated, so that evaluation compiles once.
    evaluated = [name for name in sets if name != "train"]
    length = max(sets[name].input_ids.shape[1] for name in evaluated)
    for name in evaluated:
        if sets[name].input_ids.shape[1] < length:
            sets[name] = batches.tokenize(
                tokenizer, examples[name], config.data.max_length, length
            )
    recipe = Recipe(
        model=checkpoint.config,
        regression=task.regression,
        components=config.optimizer.components,
        b1=config.optimizer.b1,
        b2=config.optimizer.b2,
        dtype=config.dtype,
    )
    train_examples = len(sets["train"].input_ids)
    steps = batches.steps_per_epoch(train_examples, config.batch_size)
    return Prepared(
        config,
        task,
        sets,
        tokenizer,
        checkpoint,
        recipe,
        dropout_key,
        config.epochs * steps,
    )


def train_and_evaluate(prepared: Prepared) -> dict[str, Any]:
    """Runs a prepared run and writes its folder.

    Args:
      prepared: The run.

    Returns:
      What ``results.json`` holds.
    """
    config, recipe = prepared.config, prepared.recipe
    workdir = config.workdir
    workdir.mkdir(parents=True, exist_ok=True)
    write_json(workdir / "config.json", dataclasses.asdict(config))
    start = time.monotonic()
    run = init_run(
        recipe,
        # The step takes over the buffers it is given.
        jax.tree.map(jax.numpy.array, prepared.checkpoint.params),
        prepared.dropout_key,
        hyperparameters(config, prepared.total_steps),
    )
    run, diverged_at = _train(prepared, run)
    trained = time.monotonic()
    results = _evaluate(prepared, run)
    results |= {
        "diverged_at_step": diverged_at,
        "steps": prepared.total_steps,
        "seconds": {
            "training": round(trained - start, 1),
            "evaluation": round(time.monotonic() - trained, 1),
        },
        "new_parameters": list(prepared.checkpoint.new_parameters),
        "device": jax.devices()[0].device_kind,
        "versions": {"python": platform.python_version()}
        | {
            name: importlib.metadata.version(name)
            for name in ("jax", "jaxlib", "flax", "optax", "transformers")
        },
    }
    save_model(workdir / "model", prepared, run.params)
    write_json(workdir / "results.json", results)
    draw_curves(workdir)
    return results


def save_model(directory: Path, prepared: Prepared, params: Any) -> None:
    """Writes weights, config and tokenizer as torch's transformers reads them."""
    models.save_pretrained(
        directory,
        prepared.checkpoint.config,
        params,
        label_names=prepared.task.label_names,
        regression=prepared.task.regression,
        source_config=prepared.checkpoint.source_config,
    )
    prepared.tokenizer.save_pretrained(directory)


def predict_logits(step: Any, params: Any, arrays: Any, batch_size: int) -> np.ndarray:
    """Computes the logits of a whole set, ``[examples, num_labels]``."""
    parts = [
        step(params, _inputs(batch))
        for batch in batches.eval_batches(arrays, batch_size)
    ]
    return np.concatenate(jax.device_get(parts))[: len(arrays.input_ids)]


def _train(prepared: Prepared, run: Run) -> tuple[Run, int | None]:
    config, arrays = prepared.config, prepared.sets["train"]
    step_fn = compile_train_step(prepared.recipe)
    pending: list[tuple[int, Metrics]] = []
    diverged_at = None
    with (
        (config.workdir / "metrics.jsonl").open("w") as file,
        Progress(prepared.total_steps) as progress,
    ):
        for step in range(prepared.total_steps):
            batch = batches.train_batch(arrays, config.seed, step, config.batch_size)
            run, metrics = step_fn(run, batch)
            pending.append((step + 1, metrics))
            last = step + 1 == prepared.total_steps
            if len(pending) <= _CHUNK and not last:
                continue
            done, pending = (pending, []) if last else (pending[:-1], pending[-1:])
            for number, fetched in jax.device_get(done):
                record = _record(number, fetched, config, len(arrays.input_ids))
                append_line(file, record)
                if diverged_at is None and not np.isfinite(fetched.loss):
                    diverged_at = number
            file.flush()
            progress.show(number, float(fetched.loss))
    return run, diverged_at


def _record(number: int, metrics: Metrics, config: FinetuneConfig, examples: int):
    steps = batches.steps_per_epoch(examples, config.batch_size)
    record = {"step": number, "epoch": round(number / steps, 4)}
    for name, value in metrics._asdict().items():
        if name != "norms":
            record[name] = float(value)
    if number == 1 or number % config.norms_every == 0:
        record["norms"] = {name: float(norm) for name, norm in metrics.norms.items()}
    return record


def _evaluate(prepared: Prepared, run: Run) -> dict[str, Any]:
    task, config = prepared.task, prepared.config
    step_fn = compile_eval_step(prepared.recipe)
    scores, lines, one_class = {}, {}, {}
    for name, arrays in prepared.sets.items():
        if name == "train":
            continue
        logits = predict_logits(step_fn, run.params, arrays, config.eval_batch_size)
        predictions = predictions_of(task, logits)
        scores[name] = tasks.score(task, predictions, arrays.labels)
        lines[name] = tasks.majority_line(task, arrays.labels)
        one_class[name] = tasks.collapsed(predictions)
    judged = next(name for name in scores if name.startswith("validation"))
    return {
        "task": task.name,
        "metric": task.metric,
        "scores": scores,
        "majority_line": lines,
        "failed": scores[judged][task.metric] <= lines[judged][task.metric],
        "collapsed": one_class[judged],
    }


def predictions_of(task: tasks.Task, logits: np.ndarray) -> np.ndarray:
    """The classes of the largest logits, or the numbers themselves."""
    return logits[:, 0] if task.regression else logits.argmax(-1)


def _inputs(batch: batches.Batch) -> batches.Batch:
    return {name: batch[name] for name in batch if name not in ("labels", "weights")}
