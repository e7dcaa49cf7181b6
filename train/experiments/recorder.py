"""What is recorded of a study's runs while they go on."""

import dataclasses
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import jax
import numpy as np

from train import tasks
from train.evaluation import Evaluation
from train.experiments.plan import PlannedRun
from train.experiments.record_file import RecordFile
from train.experiments.study import Study
from train.loop import environment
from train.parallel import Layout
from train.records import plain
from train.steps import Metrics

_CURVES = tuple(name for name in Metrics._fields if name != "norms")


class Recorder:
    """Turns what runs report into lines of the study's records.

    Args:
      study: The study.
      file: Its records, open.
    """

    def __init__(self, study: Study, file: RecordFile):
        self.file = file
        self.environment = environment()
        self.environment["devices"] = 1 if study.mesh is None else study.mesh.size
        self._study = study
        self._finished = {
            line["run"]: line for line in file.lines if line.get("kind") == "run"
        }

    def is_finished(self, run: PlannedRun) -> bool:
        """Whether a run's results are recorded."""
        return run.name in self._finished

    def failed(self, run: PlannedRun) -> bool:
        """Whether a finished run has failed."""
        return self._finished[run.name]["failed"]

    def layouts(self, program: str, wanted: Any) -> list[Layout]:
        """The layouts chosen for a program so far, on as many devices."""
        devices = self.environment["devices"]
        return [
            Layout(line["runs"], line["group"], self._study.mesh)
            for line in self.file.lines
            if line.get("kind") == "layout"
            and (line["program"], line["wanted"]) == (program, wanted)
            and line["devices"] == devices
        ]

    def layout(self, program: str, layout: Layout, wanted: Any, why: str) -> None:
        """Records how many runs go together, and why."""
        self.file.append(
            {
                "kind": "layout",
                "program": program,
                "runs": layout.runs,
                "group": layout.group,
                "wanted": wanted,
                "devices": self.environment["devices"],
                "why": why,
            }
        )

    def metrics(
        self, runs: Sequence[PlannedRun], end: int, reported: list[Metrics]
    ) -> dict[str, int]:
        """Records the means over some steps.

        Args:
          runs: The runs, as they lie in the metrics.
          end: The number of steps done.
          reported: The metrics of the last of them, one for each step.

        Returns:
          For each run with a loss that is not finite its first such step.
        """
        fetched = jax.device_get([m._replace(norms={}) for m in reported])
        diverged = {}
        for index, run in enumerate(runs):
            curves = {
                name: [float(getattr(metrics, name)[index]) for metrics in fetched]
                for name in _CURVES
            }
            steps = enumerate(curves["loss"], end - len(fetched) + 1)
            bad = [step for step, loss in steps if not np.isfinite(loss)]
            if bad:
                diverged[run.name] = bad[0]
            means = {name: float(np.mean(values)) for name, values in curves.items()}
            self.file.append({"kind": "metrics", "run": run.name, "step": end} | means)
        return diverged

    def evaluation(
        self, runs: Sequence[PlannedRun], end: int, results: list[dict[str, Evaluation]]
    ) -> None:
        """Records the scores of runs after a number of steps."""
        for run, result in zip(runs, results, strict=False):
            for split, evaluation in result.items():
                key = {"kind": "evaluation", "run": run.name, "step": end}
                self.file.append(key | {"split": split} | evaluation._asdict())

    def finished(
        self,
        run: PlannedRun,
        result: dict[str, Evaluation],
        *,
        seconds: float,
        own_seconds: float,
        diverged_at: int | None,
        together: int,
    ) -> None:
        """Records a run's results.

        Args:
          run: The run.
          result: Its last evaluation.
          seconds: Its share of the time that its program took.
          own_seconds: What of it went into evaluations and checkpoints.
          diverged_at: The first step whose loss was not finite.
          together: How many runs its program holds.
        """
        inputs, config = self._study.inputs[run.task], self._study.config
        lines, metric = inputs.majority_lines(), inputs.task.metric
        judged = result[inputs.judged]
        line = {
            "kind": "run",
            "run": run.name,
            "task": run.task,
            "metric": metric,
            "method": run.method,
            **dataclasses.asdict(run.optimizer),
            **dataclasses.asdict(run.regularization),
            "seed": run.seed,
            "data_seed": run.data_seed,
            "epochs": run.epochs,
            "batch_size": config.batch_size,
            "train_examples": len(inputs.train),
            "steps": self._study.total_steps(run),
            "scores": {split: e.scores for split, e in result.items()},
            "majority_line": lines,
            "failed": tasks.has_failed(
                judged.scores[metric], lines[inputs.judged][metric]
            ),
            "collapsed": judged.collapsed,
            "diverged_at_step": diverged_at,
            "seconds": round(seconds, 2),
            "own_seconds": round(own_seconds, 2),
            "runs_per_program": together,
            **self.environment,
            "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        self.file.append(line)
        self._finished[run.name] = plain(line)

    def cells(self, runs: Sequence[PlannedRun]) -> list[str]:
        """A line on each cell of these runs of which all runs are finished."""
        texts = []
        for cell in dict.fromkeys(run.cell for run in runs):
            names = [run.name for run in self._study.runs if run.cell == cell]
            if not all(name in self._finished for name in names):
                continue
            lines = [self._finished[name] for name in names]
            judged = self._study.inputs[lines[0]["task"]].judged
            metric = lines[0]["metric"]
            scores = [100 * line["scores"][judged][metric] for line in lines]
            failed = sum(line["failed"] for line in lines)
            texts.append(
                f"{cell}: {len(lines)} runs, {metric} x 100 mean "
                f"{np.mean(scores):.1f} std {np.std(scores):.1f}, {failed} failed"
            )
        return texts
