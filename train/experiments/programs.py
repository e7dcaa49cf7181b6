"""The compiled programs of a study, each compiled once."""

import time
from collections.abc import Callable
from typing import Any

import jax

from train import batches, parallel
from train.evaluation import inputs_of
from train.experiments.plan import PlannedRun
from train.experiments.study import Study
from train.parallel import Layout
from train.progress import StudyProgress


class Programs:
    """Compiles what the runs of a study need, and keeps it.

    Args:
      study: The study.
      progress: Is told what was compiled, and for how long.
    """

    def __init__(self, study: Study, progress: StudyProgress):
        self._study, self._progress = study, progress
        self._compiled: dict[Any, Any] = {}
        self.seconds = 0.0
        """What compiling has taken so far."""

    def clear(self) -> None:
        """Gives the memory of all programs back."""
        self._compiled.clear()

    def train_step(
        self, run: PlannedRun, layout: Layout, iteration: int, measured: bool
    ) -> Any:
        """The compiled step of an iteration; runs of one shape share it."""
        study, size = self._study, self._study.config.batch_size
        recipe = study.recipe(run, iteration)
        length = study.inputs[run.task].train.input_ids.shape[1]
        key = (recipe, run.regularization.dropout is None, length, layout, measured)
        if key not in self._compiled:
            copies = [run] * layout.runs
            shapes = jax.eval_shape(lambda: study.start(copies, layout, iteration))
            self._compiled[key] = self._compile(
                parallel.compile_train_step(recipe, layout, measured),
                parallel.placed(layout, shapes),
                parallel.place_batch(layout, study.batch(copies, 0)),
                what=f"{layout.runs} x {size} x {length} tokens"
                + ", measured" * measured,
            )
        return self._compiled[key]

    def eval_step(self, run: PlannedRun, layout: Layout) -> Callable[..., Any]:
        """Evaluation, compiled for every length of its batches."""
        inputs, size = self._study.inputs[run.task], self._study.config.eval_batch_size
        recipe = self._study.recipe(run)
        key = (run.task, recipe.dtype, layout)
        if key not in self._compiled:
            copies = [run] * layout.runs
            shapes = jax.eval_shape(lambda: self._study.start(copies, layout))
            params = parallel.placed(layout, shapes).params
            step = parallel.compile_eval_step(recipe, layout)
            of_length = {
                _length(batch): inputs_of(batch)
                for arrays in inputs.scored.values()
                for _, batch in batches.eval_batches(arrays, size)
            }
            compiled = {
                length: self._compile(
                    *(step, params, parallel.place_batch(layout, batch, shared=True)),
                    what=f"evaluation of {layout.runs} x {size} x {length} tokens",
                )
                for length, batch in of_length.items()
            }
            self._compiled[key] = lambda params, batch: compiled[_length(batch)](
                params, batch
            )
        return self._compiled[key]

    def _compile(self, step: Any, *arguments: Any, what: str) -> Any:
        start = time.monotonic()
        compiled = step.lower(*arguments).compile()
        seconds = time.monotonic() - start
        self.seconds += seconds
        self._progress.say(f"compiled for {what} in {seconds:.1f} s")
        return compiled


def _length(batch: batches.Batch) -> int:
    return batch["input_ids"].shape[1]
