"""What is recorded of a study's runs while they go on."""

import contextlib
import dataclasses
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np

from train import tasks
from train.component_statistics import STATISTICS, component_names
from train.evaluation import Evaluation
from train.experiments.plan import PlannedRun
from train.experiments.record_file import RecordFile
from train.experiments.study import Study
from train.loop import environment, fetch
from train.parallel import Layout
from train.records import plain
from train.steps import CURVES, Metrics
from train.writers import Writer, open_writers


class Recorder:
    """Turns what runs report into lines of the study's records.

    The numbers of each run go to the study's writers as well. Use as a context manager.

    Args:
      study: The study.
      file: Its records, open.
      components: Its measurements of components, open; None if there are none.
    """

    def __init__(
        self, study: Study, file: RecordFile, components: RecordFile | None = None
    ):
        self._file, self._components = file, components
        self.environment = environment()
        self.environment["devices"] = 1 if study.mesh is None else study.mesh.size
        self._study = study
        self._writers: dict[str, list[Writer]] = {}
        self._finished = {
            line["run"]: line for line in file.lines if line.get("kind") == "run"
        }
        self._layouts = [line for line in file.lines if line.get("kind") == "layout"]
        if components is not None:
            params = next(iter(study.inputs.values())).checkpoint.params
            names = component_names(params)
            components.append({"kind": "names", "components": names})

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        for name in list(self._writers):
            self._close(name)

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
            for line in self._layouts
            if (line["program"], line["wanted"]) == (program, wanted)
            and line["devices"] == devices
        ]

    def layout(self, program: str, layout: Layout, wanted: Any, why: str) -> None:
        """Records how many runs go together, and why."""
        line = {
            "kind": "layout",
            "program": program,
            "runs": layout.runs,
            "group": layout.group,
            "wanted": wanted,
            "devices": self.environment["devices"],
            "why": why,
        }
        self._layouts.append(line)
        self._file.append(line)

    def metrics(
        self, runs: Sequence[PlannedRun], end: int, reported: list[Metrics]
    ) -> dict[str, int]:
        """Records the means over some steps, and the measurements among them.

        Args:
          runs: The runs, as they lie in the metrics.
          end: The number of steps done.
          reported: The metrics of the last of them, as ``loop.train`` yields them.

        Returns:
          For each run with a loss that is not finite its first such step.
        """
        fetched = fetch(
            metrics._replace(norms={}, coefficients=None) for metrics in reported
        )
        first = end - len(fetched) + 1
        for step, metrics in enumerate(fetched, first):
            if metrics.statistics is not None:
                self._measured(runs, step, metrics.statistics)
        diverged = {}
        for index, run in enumerate(runs):
            curves = {
                name: [float(getattr(metrics, name)[index]) for metrics in fetched]
                for name in CURVES
            }
            steps = enumerate(curves["loss"], first)
            bad = [step for step, loss in steps if not np.isfinite(loss)]
            if bad:
                diverged[run.name] = bad[0]
            means = {name: float(np.mean(values)) for name, values in curves.items()}
            self._file.append({"kind": "metrics", "run": run.name, "step": end} | means)
            self._write(run, {"step": end} | means)
        return diverged

    def _measured(
        self, runs: Sequence[PlannedRun], step: int, statistics: np.ndarray
    ) -> None:
        assert self._components is not None
        for run, of_run in zip(runs, statistics, strict=False):
            rows = {
                # As many digits as a float32 tells apart where it matters, near 1.
                name: [float(f"{value:.7g}") for value in row]
                for name, row in zip(STATISTICS, of_run, strict=True)
            }
            key = {"kind": "components", "run": run.name, "step": step}
            self._components.append(key | rows)

    def sync(self) -> None:
        """Returns when all records are on the disk itself."""
        self._file.sync()
        if self._components is not None:
            self._components.sync()

    def evaluation(
        self, runs: Sequence[PlannedRun], end: int, results: list[dict[str, Evaluation]]
    ) -> None:
        """Records the scores of runs after a number of steps."""
        for run, result in zip(runs, results, strict=False):
            for split, evaluation in result.items():
                key = {"kind": "evaluation", "run": run.name, "step": end}
                self._file.append(key | {"split": split} | evaluation._asdict())
                self._write(run, {"step": end, split: evaluation.scores})

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
            "unfreezing": run.unfreezing,
            "iterations": self._study.iterations(run),
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
        self._file.append(line)
        self._finished[run.name] = plain(line)
        self._close(run.name)

    def _write(self, run: PlannedRun, record: dict[str, Any]) -> None:
        """Gives a record of a run to its writers, which are opened for the first."""
        config = self._study.config
        if run.name not in self._writers:
            self._writers[run.name] = open_writers(
                *(config.writers, config.workdir, run.name),
                *(plain(dataclasses.asdict(run)), record["step"]),
            )
        for writer in self._writers[run.name]:
            writer.append(record)

    def _close(self, name: str) -> None:
        with contextlib.ExitStack() as writers:
            for writer in self._writers.pop(name, []):
                writers.enter_context(writer)

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
