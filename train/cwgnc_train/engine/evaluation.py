"""Scores of runs on whole sets of examples."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from cwgnc_train.data import (
    BatchIndices,
    Task,
    TokenArrays,
    collapsed,
    evaluation_batches,
    score,
    token_table,
)
from cwgnc_train.engine.inputs import Inputs
from cwgnc_train.engine.layout import Layout, place


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """How one run does on one set."""

    scores: dict[str, float]  # The task's metrics by name.
    collapsed: bool  # Whether the run predicts the same whatever the text.
    logits: Float[np.ndarray, "examples labels"]


class EvaluationBatches:
    """All examples of some sets, of one length, in batches of one shape."""

    def __init__(
        self, sets: Mapping[str, TokenArrays], batch_size: int, layout: Layout
    ):
        self._sets, self._layout = dict(sets), layout
        # The tokens of all sets, one set after the other.
        self.table = layout.place_table(token_table(*sets.values()))
        self.shape, self._batches = evaluation_batches(
            [arrays.lengths for arrays in sets.values()],
            row_length=max(arrays.input_ids.shape[1] for arrays in sets.values()),
            batch_size=batch_size,
            multiple=layout.data_devices,
        )

    def placed(self) -> Iterator[BatchIndices]:
        """Yields the indices of each batch, put on every device."""
        return (place(batch, self._layout.whole()) for batch in self._batches)

    def logits(
        self,
        program: Callable[..., Any],
        params: Any,
        check: Callable[[], None] = lambda: None,
    ) -> dict[str, Float[np.ndarray, "runs examples labels"]]:
        """Computes the logits of all sets, by name, from the parameters of all runs.

        ``program`` is one of ``programs.compile_eval_step``; ``check`` is called before
        each batch and may raise to end the evaluation.
        """
        parts = []
        for indices in self.placed():
            check()
            parts.append(program(params, self.table, indices))
        # Padding slots are left out, and examples put into the order of their sets.
        counted = np.concatenate([batch.weights > 0 for batch in self._batches])
        examples = np.concatenate([batch.examples for batch in self._batches])
        joined = np.concatenate(jax.device_get(parts), axis=1)[:, counted]
        ordered = joined[:, np.argsort(examples[counted])]
        ends = np.cumsum([len(arrays) for arrays in self._sets.values()])
        by_set = np.split(ordered, ends[:-1], axis=1)
        return dict(zip(self._sets, by_set, strict=True))


def evaluate(
    program: Callable[..., dict[str, Any]], params: Any, inputs: Inputs, *check: Any
) -> list[dict[str, Evaluation]]:
    """Scores runs on every set but the training set, by the name of the set.

    ``program`` takes ``params`` and ``check`` as :meth:`EvaluationBatches.logits` does.
    """

    def evaluation(name: str, logits: np.ndarray) -> Evaluation:
        labels: Any = inputs.scored[name].labels
        predictions = predictions_of(inputs.task, logits)
        scores = score(inputs.task, predictions, labels)
        return Evaluation(scores, collapsed(predictions), logits)

    by_set = program(params, *check)
    return [
        {name: evaluation(name, x) for name, x in zip(by_set, of_run, strict=True)}
        for of_run in zip(*by_set.values(), strict=True)
    ]


def predictions_of(
    task: Task, logits: Float[np.ndarray, "*runs examples labels"]
) -> np.ndarray:
    """Returns the classes of the largest logits, or the numbers themselves."""
    return logits[..., 0] if task.regression else logits.argmax(-1)
