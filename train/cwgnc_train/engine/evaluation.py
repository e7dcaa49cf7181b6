"""Scores of runs on whole sets of examples."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from cwgnc_train.data import (
    BatchIndices,
    Task,
    TokenArrays,
    collapsed,
    evaluation_batches,
    join_tables,
    score,
)
from cwgnc_train.engine.inputs import Inputs
from cwgnc_train.engine.layout import Layout, place


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """How one run does on one set."""

    scores: dict[str, float]
    """The task's metrics by name."""
    collapsed: bool
    """Whether the run predicts the same whatever the text."""
    logits: Float[np.ndarray, "examples labels"]


class EvaluationBatches:
    """All examples of some sets in batches of one shape, so that one program serves.

    Args:
      sets: By name; their arrays have one length.
      batch_size: Examples per batch.
      multiple: What the numbers of rows and of examples must be divisible by.
    """

    def __init__(
        self, sets: Mapping[str, TokenArrays], batch_size: int, multiple: int = 1
    ):
        self._sets = dict(sets)
        self.table = join_tables(list(sets.values()))
        """The tokens of all sets, one set after the other."""
        self.shape, self._batches = evaluation_batches(
            [arrays.lengths for arrays in sets.values()],
            row_length=max(arrays.input_ids.shape[1] for arrays in sets.values()),
            batch_size=batch_size,
            multiple=multiple,
        )

    def __len__(self) -> int:
        return len(self._batches)

    def indices(self, layout: Layout, number: int) -> BatchIndices:
        """Puts the indices of a batch on every device."""
        return place(self._batches[number], layout.whole())

    def by_set(self, logits: list[Any]) -> dict[str, Float[np.ndarray, "r e l"]]:
        """Puts the logits of all batches into the order of their sets.

        Args:
          logits: Of each batch, ``[runs, slots, labels]``.

        Returns:
          ``[runs, examples, labels]`` by the name of the set.
        """
        counts = [int(batch.weights.sum()) for batch in self._batches]
        joined = np.concatenate(
            [part[:, :count] for part, count in zip(logits, counts, strict=True)],
            axis=1,
        )
        taken = np.concatenate(
            [
                batch.examples[:count]
                for batch, count in zip(self._batches, counts, strict=True)
            ]
        )
        ordered = joined[:, np.argsort(taken)]
        ends = np.cumsum([len(arrays) for arrays in self._sets.values()])
        parts = np.split(ordered, ends[:-1], axis=1)
        return dict(zip(self._sets, parts, strict=True))


def evaluate(
    program: Callable[..., dict[str, Any]],
    params: Any,
    inputs: Inputs,
    check: Callable[[], None] = lambda: None,
) -> list[dict[str, Evaluation]]:
    """Scores runs on every set but the training set.

    Args:
      program: See ``programs.EvaluationProgram``.
      params: The parameters of all runs, with a leading axis over runs.
      inputs: The task and its sets.
      check: Called before each batch; may raise to end the evaluation.

    Returns:
      For each run its evaluation by the name of the set.
    """
    by_set = program(params, check)
    runs = len(next(iter(by_set.values())))
    return [
        {
            name: _evaluation(inputs.task, logits[run], inputs.scored[name].labels)
            for name, logits in by_set.items()
        }
        for run in range(runs)
    ]


def predictions_of(
    task: Task, logits: Float[np.ndarray, "*runs examples labels"]
) -> np.ndarray:
    """Returns the classes of the largest logits, or the numbers themselves."""
    return logits[..., 0] if task.regression else logits.argmax(-1)


def _evaluation(task: Task, logits: np.ndarray, labels: Any) -> Evaluation:
    predictions = predictions_of(task, logits)
    return Evaluation(
        scores=score(task, predictions, labels),
        collapsed=collapsed(predictions),
        logits=logits,
    )
