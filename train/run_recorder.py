"""What is recorded of one run while it goes on."""

import contextlib
from typing import Any

import jax
import numpy as np

from train.config import FinetuneConfig
from train.evaluation import Evaluation
from train.nonfinite import NonfiniteSteps
from train.records import HashedLines, NoLines
from train.restart import Restart, described
from train.steps import CURVES, Metrics
from train.writers import Writer, open_writers


class RunRecorder:
    """Writes ``metrics.jsonl``, and ``evaluations.jsonl`` if there are any.

    The same numbers go to the config's writers.

    What was written after the checkpoint that the run goes on from is removed first.
    Use as a context manager.

    ``diverged_at`` is the first step whose loss was not finite, where nothing is done
    about that, and ``nonfinite`` tells of steps whose gradients were not.

    Args:
      config: The run's config.
      total_steps: The run's length.
      begin: Where it goes on.
      written: Whether to write; all processes of a run judge it, and one writes.

    Raises:
      ValueError: If the records are not those of the checkpoint.
    """

    def __init__(
        self,
        config: FinetuneConfig,
        total_steps: int,
        begin: Restart,
        written: bool = True,
    ):
        self._norms_every = config.norms_every
        self._epoch_steps = total_steps // config.epochs
        self.diverged_at = begin.diverged_at
        self.nonfinite = NonfiniteSteps(**begin.nonfinite)
        self._policy, self._give_up = config.optimizer.nonfinite, config.give_up_after
        names = ["metrics.jsonl", *["evaluations.jsonl"] * (config.evaluations > 1)]
        with contextlib.ExitStack() as files:
            self._lines = {
                name: files.enter_context(
                    HashedLines(config.workdir / name, begin.records.get(name))
                )
                if written
                else NoLines()
                for name in names
            }
            self._writers: list[Writer] = [
                files.enter_context(writer)
                for writer in open_writers(
                    *(config.writers if written else (), config.workdir, ""),
                    *(described(config), begin.step + 1),
                )
            ]
            self._files = files.pop_all()

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self._files.close()

    def metrics(self, end: int, fetched: list[Metrics]) -> None:
        """Records steps.

        Args:
          end: The number of the last of them, counted from 1.
          fetched: Their metrics on the host, with an axis over runs.

        Raises:
          FloatingPointError: If too many in a row were skipped.
        """
        lines = self._lines["metrics.jsonl"]
        for number, of_runs in enumerate(fetched, end - len(fetched) + 1):
            metrics = jax.tree.map(lambda x: x[0], of_runs)
            components = self.nonfinite.see(number, metrics.norms)
            line = self._line(number, metrics)
            if components:
                line["nonfinite"] = len(components)
                if self.nonfinite.row_step == number:
                    line["nonfinite_components"] = components
            for writer in (lines, *self._writers):
                writer.append(line)
            lost = self._policy == "propagate" and not np.isfinite(metrics.loss)
            if self.diverged_at is None and lost:
                self.diverged_at = number
            if self._policy == "skip_step" and self.nonfinite.in_a_row >= self._give_up:
                self._flush(lines)
                raise FloatingPointError(self.nonfinite.why_given_up())
        self._flush(lines)

    def evaluation(self, step: int, results: dict[str, Evaluation]) -> None:
        """Records the scores after some steps."""
        lines = self._lines["evaluations.jsonl"]
        for split, evaluation in results.items():
            lines.append({"step": step, "split": split} | evaluation._asdict())
            for writer in self._writers:
                writer.append({"step": step, split: evaluation.scores})
        self._flush(lines)

    def marks(self) -> dict[str, Any]:
        """How far the files are; see ``HashedLines.mark``."""
        return {name: lines.mark() for name, lines in self._lines.items()}

    def _flush(self, lines: HashedLines | NoLines) -> None:
        for writer in (lines, *self._writers):
            writer.flush()

    def _line(self, number: int, metrics: Metrics) -> dict[str, Any]:
        line = {"step": number, "epoch": round(number / self._epoch_steps, 4)}
        for name in CURVES:
            line[name] = float(getattr(metrics, name))
        if number == 1 or number % self._norms_every == 0:
            line["norms"] = {name: float(norm) for name, norm in metrics.norms.items()}
            if metrics.coefficients is not None:
                line["coefficients"] = {
                    name: float(value) for name, value in metrics.coefficients.items()
                }
        return line
