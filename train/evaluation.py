"""Scores of runs on whole sets of examples."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from train import tasks
from train.batches import Batch, TokenArrays, steps_per_epoch
from train.inputs import Inputs
from train.packing import Shape, first_fit, rounded
from train.parallel import ONE_RUN, Layout, place_batch


class Evaluation(NamedTuple):
    """How one run does on one set.

    Attributes:
      scores: The task's metrics by name.
      collapsed: Whether it predicts the same whatever the text.
    """

    scores: dict[str, float]
    collapsed: bool


@dataclasses.dataclass(frozen=True)
class EvaluationPacking:
    """How all examples of the sets that are evaluated together are laid into rows."""

    shape: Shape
    """Rows and length of every batch, so that a single program does for all."""
    slots: int
    """The most examples that a batch may have."""
    batch_size: int

    def batches(self, arrays: TokenArrays) -> Iterator[tuple[np.ndarray, Batch]]:
        """Takes all examples of a set.

        Args:
          arrays: The set.

        Yields:
          The indices of some examples, and their batch: ``input_ids``,
          ``token_type_ids`` and ``attention_mask``, which numbers the examples, of
          this shape, and ``first_tokens`` of as many examples as there may be.
        """
        for examples in _alike(arrays, self.batch_size):
            yield examples, self._batch(arrays, examples)

    def _batch(self, arrays: TokenArrays, examples: np.ndarray) -> Batch:
        rows, length = self.shape
        ids, types, mask = (np.zeros(rows * length, np.int32) for _ in range(3))
        lengths = arrays.lengths[examples]
        firsts, _ = first_fit(lengths, length)
        for slot, (example, first, size) in enumerate(
            zip(examples, firsts, lengths, strict=True)
        ):
            place = slice(first, first + size)
            ids[place] = arrays.input_ids[example, :size]
            types[place] = arrays.token_type_ids[example, :size]
            mask[place] = slot + 1
        return {
            "input_ids": ids.reshape(self.shape),
            "token_type_ids": types.reshape(self.shape),
            "attention_mask": mask.reshape(self.shape),
            "first_tokens": np.pad(firsts, (0, self.slots - len(examples))),
        }


def evaluation_packing(
    sets: Sequence[TokenArrays], batch_size: int, multiple: int = 1
) -> EvaluationPacking:
    """Chooses the one shape that all batches of some sets fit into.

    Args:
      sets: What is to be evaluated.
      batch_size: Examples a batch.
      multiple: What the number of rows must be divisible by.

    Returns:
      The packing.
    """
    length = max(arrays.input_ids.shape[1] for arrays in sets)
    rows = max(
        first_fit(arrays.lengths[examples], length)[1]
        for arrays in sets
        for examples in _alike(arrays, batch_size)
    )
    return EvaluationPacking(
        (rounded(rows, multiple), length), rounded(batch_size, multiple), batch_size
    )


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
    packing = evaluation_packing(
        list(inputs.scored.values()), batch_size, layout.data_devices
    )
    results: list[dict[str, Evaluation]] = [{} for _ in range(layout.runs)]
    for name, arrays in inputs.scored.items():
        logits = predict_logits(step_fn, params, arrays, packing, layout)
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
    arrays: TokenArrays,
    packing: EvaluationPacking,
    layout: Layout = ONE_RUN,
) -> np.ndarray:
    """Computes the logits of a whole set, ``[runs, examples, num_labels]``."""
    taken, parts = [], []
    for examples, batch in packing.batches(arrays):
        taken.append(examples)
        parts.append(step_fn(params, place_batch(layout, batch)))
    logits = np.concatenate(
        [
            of_batch[:, : len(examples)]
            for examples, of_batch in zip(taken, jax.device_get(parts), strict=True)
        ],
        axis=1,
    )
    return logits[:, np.argsort(np.concatenate(taken))]


def predictions_of(task: tasks.Task, logits: np.ndarray) -> np.ndarray:
    """The classes of the largest logits, or the numbers themselves."""
    return logits[:, 0] if task.regression else logits.argmax(-1)


def _alike(arrays: TokenArrays, batch_size: int) -> list[np.ndarray]:
    """All examples, in batches of nearly the same number and the same lengths."""
    count = steps_per_epoch(len(arrays), batch_size)
    order = np.argsort(arrays.lengths, kind="stable")
    return [order[part::count] for part in range(count)]
