"""Scores of runs on whole sets of examples."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from train import batches, tasks
from train.inputs import Inputs
from train.parallel import ONE_RUN, Layout, place_batch


class Evaluation(NamedTuple):
    """How one run does on one set.

    Attributes:
      scores: The task's metrics by name.
      collapsed: Whether it predicts the same whatever the text.
    """

    scores: dict[str, float]
    collapsed: bool


def evaluate(
    step_fn: Callable[..., Any],
    params: Any,
    inputs: Inputs,
    batch_size: int,
    layout: Layout = ONE_RUN,
) -> list[dict[str, Evaluation]]:
    """Scores runs on every set but the training set.

    Args:
      step_fn: See ``parallel.compile_eval_step``.
      params: The parameters of all runs, with a leading axis of runs.
      inputs: The task and its sets.
      batch_size: Examples a batch.
      layout: Where the runs lie.

    Returns:
      For each run its evaluation by the name of the set.
    """
    results: list[dict[str, Evaluation]] = [{} for _ in range(layout.runs)]
    for name, arrays in inputs.scored.items():
        logits = predict_logits(step_fn, params, arrays, batch_size, layout)
        for result, run_logits in zip(results, logits, strict=True):
            predictions = predictions_of(inputs.task, run_logits)
            result[name] = Evaluation(
                tasks.score(inputs.task, predictions, arrays.labels),
                tasks.collapsed(predictions),
            )
    return results


def predict_logits(
    step_fn: Callable[..., Any],
    params: Any,
    arrays: batches.TokenArrays,
    batch_size: int,
    layout: Layout = ONE_RUN,
) -> np.ndarray:
    """Computes the logits of a whole set, ``[runs, examples, num_labels]``."""
    rows, parts = [], []
    for of_batch, batch in batches.eval_batches(arrays, batch_size):
        rows.append(of_batch)
        parts.append(step_fn(params, place_batch(layout, inputs_of(batch))))
    logits = np.concatenate(jax.device_get(parts), axis=1)[:, : len(arrays)]
    return logits[:, np.argsort(np.concatenate(rows))]


def predictions_of(task: tasks.Task, logits: np.ndarray) -> np.ndarray:
    """The classes of the largest logits, or the numbers themselves."""
    return logits[:, 0] if task.regression else logits.argmax(-1)


def inputs_of(batch: batches.Batch) -> batches.Batch:
    """What the model reads of a batch."""
    return {name: batch[name] for name in batch if name not in ("labels", "weights")}
