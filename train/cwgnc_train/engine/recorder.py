"""From what runs report to lines of records."""

import contextlib
import dataclasses
import functools
import importlib.metadata
import platform
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jax

import cwgnc_jax
from cwgnc_jax import models
from cwgnc_train.config import RunSpec, TrainingConfig
from cwgnc_train.data import has_failed
from cwgnc_train.engine.component_statistics import STATISTICS
from cwgnc_train.engine.course import Course
from cwgnc_train.engine.evaluation import Evaluation
from cwgnc_train.engine.group import RunGroup, TaskRuns
from cwgnc_train.engine.layout import Layout
from cwgnc_train.engine.optimizer import COMPONENT_FNS
from cwgnc_train.engine.step import Metrics, StepConfig
from cwgnc_train.engine.writers import open_writers
from cwgnc_train.records import RecordFile, plain

_FILES = ("records.jsonl", "components.jsonl", "predictions.jsonl")
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "transformers")
# For each run its evaluation by the name of the set.
Results = list[dict[str, Evaluation]]


class Recorder:
    """Writes the records of runs, and gives their numbers to the writers.

    Every process records, and one has its records ``written``. Damaged records, and
    another process that writes them, are a UserError. Use as a context manager.
    """

    def __init__(self, workdir: Path, training: TrainingConfig, written: bool = True):
        self._workdir, self._training, self._written = workdir, training, written
        self._courses: dict[str, Course] = {}
        self._writers: dict[str, list[Any]] = {}
        self._component_names = functools.cache(component_names)
        with contextlib.ExitStack() as files:
            self._files = {
                name: files.enter_context(RecordFile(workdir / name, written))
                for name in _FILES
            }
            self._close_files = files.pop_all()
        self._records, self._components, self._predictions = self._files.values()
        self.finished = {x["run"]: x for x in _of_kind(self._records, "run")}
        self._layouts = _of_kind(self._records, "layout")
        names = _of_kind(self._components, "names")
        self._named = {(line.get("task"), line.get("by")) for line in names}

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        for name in list(self._writers):
            self._close_writers(name)
        self._close_files.close()

    def layout(self, program: str, wanted: Any, layout: Layout) -> Layout | None:
        """Returns the layout last chosen for a program, on devices of this layout."""
        key = program, wanted, layout.description
        for x in reversed(self._layouts):
            if (x["program"], x["wanted"], x["devices"]) == key:
                return dataclasses.replace(layout, runs=x["runs"], group=x["group"])
        return None

    def add_layout(self, program: str, wanted: Any, layout: Layout, why: str) -> None:
        """Records how many runs go together, and why."""
        line = {
            "kind": "layout",
            "program": program,
            "runs": layout.runs,
            "group": layout.group,
            "wanted": wanted,
            "devices": layout.description,
            "why": why,
        }
        self._layouts.append(line)
        self._records.append(line)

    def begin(self, runs: Sequence[RunSpec], step: int, state: dict[str, Any]) -> None:
        """Takes the records of runs back to where they were after some steps.

        ``state`` is what :meth:`state` returned then; empty before the first step.
        """
        names = {run.name for run in runs}
        self._courses = {name: Course.of(state.get(name)) for name in names}

        def is_later(line):
            return line.get("run") in names and line.get("step", step + 1) > step

        for file in self._files.values():
            file.drop(is_later)

    def state(self) -> dict[str, Any]:
        """Returns what :meth:`begin` needs to go on from here; JSON."""
        return {name: dataclasses.asdict(x) for name, x in self._courses.items()}

    def marks(self) -> dict[str, Any]:
        """Describes the files so far, which have then reached the disk."""
        return {name: file.mark() for name, file in self._files.items()}

    def problem(self, marks: dict[str, Any]) -> str | None:
        """Says what is wrong if a file does not begin with what was marked."""
        problems = [self._files[name].problem(mark) for name, mark in marks.items()]
        return next(filter(None, problems), None)

    def metrics(
        self, group: RunGroup, iteration: int, end: int, reported: list[Metrics]
    ) -> float:
        """Takes the metrics, with axes over runs and steps, of the steps up to ``end``.

        Returns the last loss of the first run.
        """
        config = group.of_task.step_config(group.first, iteration)
        names = self._component_names(group.of_task, config)
        # One transfer for all of them.
        fetched = jax.device_get(reported)
        number = end - sum(metrics.loss.shape[1] for metrics in fetched)
        for metrics in fetched:
            for column in range(metrics.loss.shape[1]):
                number += 1
                for row, run in enumerate(group.runs):
                    # Statistics are None in most steps: a tree of the others only.
                    of_run = jax.tree.map(lambda x, r=row, c=column: x[r, c], metrics)
                    self._step(group.of_task, run, number, names, of_run)
        return float(fetched[-1].loss[0, -1])

    def _step(
        self,
        of_task: TaskRuns,
        run: RunSpec,
        number: int,
        names: list[str],
        metrics: Metrics,
    ) -> None:
        course = self._courses[run.name]
        if course.gave_up_at is not None:
            return
        key = {"run": run.name, "step": number}
        policy = run.optimizer.nonfinite
        if began := course.take(number, names, metrics, policy):
            self._records.append({"kind": "nonfinite", **key, "components": began})
        in_a_row = course.nonfinite.in_a_row
        if policy == "skip_step" and in_a_row >= self._training.give_up_after:
            course.gave_up_at = number
        every = self._training.norms_every
        if every and (number == 1 or number % every == 0):
            everything = self._add_names(of_task, run, run.optimizer.components)
            by_name, columns = {}, {}
            for field in ("norms", "coefficients"):
                values = _digits(getattr(metrics, field))
                by_name[field] = dict(zip(names, values, strict=True))
                # None for components that are frozen.
                columns[field] = [by_name[field].get(name) for name in everything]
            self._components.append({"kind": "norms", **key} | columns)
            self._write(run, {"step": number} | by_name)
        if metrics.statistics is not None:
            self._add_names(of_task, run, "by_parameter")
            rows = zip(STATISTICS, map(_digits, metrics.statistics), strict=True)
            self._components.append({"kind": "components", **key} | dict(rows))

    def _add_names(self, of_task: TaskRuns, run: RunSpec, by: str) -> list[str]:
        """Records the names behind the columns of other lines, once each."""
        config = dataclasses.replace(
            of_task.step_config(run), components=by, trained_layers=None
        )
        names = self._component_names(of_task, config)
        if (run.task, by) not in self._named:
            self._named.add((run.task, by))
            key = {"kind": "names", "task": run.task, "by": by}
            self._components.append(key | {"components": names})
        return names

    def gave_up(self, run: RunSpec) -> str | None:
        """Says why a run was given up; None if it was not."""
        course = self._courses.get(run.name)
        if course is None or course.gave_up_at is None:
            return None
        return course.nonfinite.why_given_up()

    def means(self, group: RunGroup, end: int) -> None:
        """Writes a line of the means over the steps since the last one."""
        for run in group.runs:
            means = self._courses[run.name].means()
            if means is not None:
                epoch = round(end / group.iteration_steps * run.epochs, 4)
                line = {"kind": "metrics", "run": run.name, "step": end}
                self._records.append(line | {"epoch": epoch} | means)
                self._write(run, {"step": end} | means)

    def evaluation(self, group: RunGroup, end: int, results: Results) -> None:
        """Records the scores of runs after a number of steps."""
        for run, split, found in _by_split(group, results):
            line = {
                "kind": "evaluation",
                "run": run.name,
                "step": end,
                "split": split,
                "scores": found.scores,
                "collapsed": found.collapsed,
            }
            self._records.append(line)
            self._write(run, {"step": end, split: found.scores})

    def finish(
        self,
        group: RunGroup,
        end: int,
        results: Results,
        *,
        seconds: float,
        own_seconds: float,
        saved: str | None,
    ) -> None:
        """Records the predictions and results of runs after their last step.

        Of the ``seconds`` of their program ``own_seconds`` went into evaluations and
        checkpoints. ``saved`` names the run of these whose model was saved.
        """
        for run, split, found in _by_split(group, results):
            key = {"kind": "predictions", "run": run.name, "step": end, "split": split}
            logits = [_digits(row) for row in found.logits]
            self._predictions.append(key | {"logits": logits})
        self._predictions.sync()
        count = len(group.runs)
        versions = {"python": platform.python_version()}
        versions |= {name: importlib.metadata.version(name) for name in _PACKAGES}
        for run, result in zip(group.runs, results, strict=False):
            line = self._result(group, run, result) | {
                "seconds": round(seconds / count, 2),
                "own_seconds": round(own_seconds / count, 2),
                "runs_per_program": group.layout.runs,
                "model_saved": run.name == saved,
                "device": group.layout.mesh.devices.flat[0].device_kind,
                "devices": group.layout.mesh.size,
                "versions": versions,
                "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
            }
            self._records.append(line)
            self.finished[run.name] = plain(line)
            self._close_writers(run.name)
        self._records.sync()
        self._components.sync()

    def _result(
        self, group: RunGroup, run: RunSpec, result: dict[str, Evaluation]
    ) -> dict[str, Any]:
        inputs, course = group.of_task.inputs, self._courses[run.name]
        lines, metric = inputs.majority_lines, inputs.task.metric
        judged = result[inputs.judged]
        failed = has_failed(judged.scores[metric], lines[inputs.judged][metric])
        return {
            "kind": "run",
            "run": run.name,
            "task": run.task,
            "metric": metric,
            "judged": inputs.judged,
            "method": run.method,
            **dataclasses.asdict(run.optimizer),
            "clip_numbers": run.optimizer.all_clip_numbers,
            **dataclasses.asdict(run.regularization),
            "seed": run.seed,
            "data_seed": run.data_seed,
            "epochs": run.epochs,
            "unfreezing": run.unfreezing,
            "iterations": group.of_task.iterations(run),
            "batch_size": self._training.batch_size,
            "train_examples": len(inputs.train),
            "steps": group.total_steps,
            "scores": {split: found.scores for split, found in result.items()},
            "majority_line": lines,
            "failed": failed or course.gave_up_at is not None,
            "collapsed": judged.collapsed,
            "diverged_at_step": course.diverged_at,
            "gave_up_at_step": course.gave_up_at,
            "nonfinite_steps": course.nonfinite.summary(),
            "new_parameters": list(inputs.checkpoint.new_parameters),
        }

    def _write(self, run: RunSpec, record: dict[str, Any]) -> None:
        """Gives a record of a run to its writers, which are opened for the first."""
        if not (self._written and self._training.writers):
            return
        if run.name not in self._writers:
            config = plain(dataclasses.asdict(run))
            self._writers[run.name] = open_writers(
                self._training.writers, self._workdir, run.name, config, record["step"]
            )
        for writer in self._writers[run.name]:
            writer.append(record)

    def _close_writers(self, name: str) -> None:
        with contextlib.ExitStack() as closing:
            for writer in self._writers.pop(name, []):
                closing.callback(writer.close)


def _of_kind(file: RecordFile, kind: str) -> list[dict[str, Any]]:
    return [line for line in file.lines if line.get("kind") == kind]


def _by_split(
    group: RunGroup, results: Results
) -> Iterator[tuple[RunSpec, str, Evaluation]]:
    # The copies that fill a program have results too.
    for run, result in zip(group.runs, results, strict=False):
        for split, found in result.items():
            yield run, split, found


def component_names(of_task: TaskRuns, config: StepConfig) -> list[str]:
    """Lists the components that a step's norms are of, in their order."""
    trained, _ = models.split_params(of_task.inputs.checkpoint.params, config.trains)
    return list(cwgnc_jax.component_sizes(trained, COMPONENT_FNS[config.components]))


def _digits(values: Any) -> list[float]:
    """As many digits as tell all float32 numbers apart."""
    return [float(f"{value:.9g}") for value in values]
