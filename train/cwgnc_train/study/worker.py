"""Carrying out a study: which runs go together, where they go on, what is kept."""

import contextlib
import dataclasses
import itertools
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from cwgnc_train.config import RunSpec, UserError
from cwgnc_train.engine import (
    Checkpoints,
    Interruption,
    Layout,
    Programs,
    Progress,
    Recorder,
    RunGroup,
    Start,
    Trained,
    Training,
    find_checkpoint,
    fingerprint,
    hosts,
    memory,
    other_fingerprint,
    remove_checkpoints,
    save_model,
)
from cwgnc_train.records import write_json
from cwgnc_train.study.study import Study


def run_study(study: Study) -> dict[str, dict[str, Any]]:
    """Makes all runs of a study that are not finished yet, and records them.

    Returns the records of all finished runs of its folder, by name. Raises a UserError
    if the records or all checkpoints are damaged, another process is at work on the
    study, or a device cannot hold even one run; an OSError if something cannot be
    written; Interrupted if a signal came: what has been done is on the disk.
    """
    primary = hosts.is_primary()
    hosts.check_same(f"{study.description} {study.layout.description} {study.runs}")
    # Now every process has looked at the folder, and the first one may write into it.
    with hosts.together("write to --workdir"):
        if primary:
            study.workdir.mkdir(parents=True, exist_ok=True)
            write_json(study.workdir / "study.json", study.description)
    with contextlib.ExitStack() as stack:
        with hosts.together("open the records"):
            recorder = stack.enter_context(
                Recorder(study.workdir, study.training, written=primary)
            )
        before = [run for run in study.runs if run.name in recorder.finished]
        todo = [run for run in study.runs if run.name not in recorder.finished]
        progress = Progress(
            runs=len(study.runs),
            done=len(before),
            failed=_failed(recorder, before),
            run_steps=sum(study.tasks[x.task].total_steps(x) for x in todo),
            shown=primary,
        )
        with progress, Interruption() as interruption:
            _Worker(study, recorder, progress, interruption).work(todo)
        return recorder.finished


@dataclasses.dataclass
class _Worker:
    study: Study
    recorder: Recorder
    progress: Progress
    interruption: Interruption

    def __post_init__(self):
        self.training = self.study.training
        self.folder = self.study.workdir / "checkpoints"
        self.programs = Programs(self.progress.say)

    def work(self, runs: list[RunSpec]) -> None:
        """Makes these runs, those with a checkpoint first."""
        runs = self._resume(runs)
        for _, alike in itertools.groupby(
            runs, lambda run: self.study.tasks[run.task].kind(run)
        ):
            waiting = list(alike)
            while waiting:
                layout = self._layout(waiting)
                if self._carry_out(waiting[: layout.runs], layout, Start()):
                    waiting = waiting[layout.runs :]
        # It is not empty where checkpoints are kept.
        with contextlib.suppress(OSError):
            self.folder.rmdir()

    def _resume(self, runs: list[RunSpec]) -> list[RunSpec]:
        """Finishes what an earlier process had under way; returns the other runs."""
        waiting = {run.name: run for run in runs}
        for folder in sorted(self.folder.glob("*")):
            if folder.suffix == ".gone":
                shutil.rmtree(folder, ignore_errors=True)
            elif folder.name.replace(",", "/") in self.recorder.finished:
                # The process died after the results and before this.
                self._forget(folder)
            else:
                for name in self._go_on(folder, waiting):
                    del waiting[name]
        return list(waiting.values())

    def _go_on(self, folder: Path, waiting: dict[str, RunSpec]) -> list[str]:
        """Finishes the runs of a folder of checkpoints; returns their names."""
        say, layout = self.progress.say, self.study.layout
        found = find_checkpoint(
            folder, say, lambda notes: self.recorder.problem(notes["marks"])
        )
        hosts.check_same(str(found and found[0]))
        if found is None:
            return []
        path, notes = found
        names, together = notes["runs"], notes["layout"]["runs"]
        if not waiting.keys() >= set(names) or together % layout.run_devices:
            say(f"{path} is of other runs or devices: not used")
            return []
        elsewhere = other_fingerprint(notes["fingerprint"], fingerprint(layout))
        if elsewhere is not None:
            say(elsewhere)
        start = Start(**notes["start"], checkpoint=path)
        say(f"going on with {len(names)} runs at step {start.step}")
        runs = [waiting[name] for name in names]
        layout = dataclasses.replace(layout, **notes["layout"])
        return names if self._carry_out(runs, layout, start) else []

    def _layout(self, runs: Sequence[RunSpec]) -> Layout:
        """The layout for runs of one kind; what was chosen once is kept."""
        wanted = self.training.devices.runs_per_program
        of_task, devices = self.study.tasks[runs[0].task], self.study.layout
        layout = self.recorder.layout(of_task.program_name(runs[0]), wanted, devices)
        if layout is None:
            layout, why = memory.fit_layout(
                wanted,
                len(runs),
                devices,
                lambda x: self.programs.bytes_needed(RunGroup(of_task, (runs[0],), x)),
            )
            self._choose(runs[0], layout, why)
        return layout

    def _choose(self, run: RunSpec, layout: Layout, why: str) -> None:
        program = self.study.tasks[run.task].program_name(run)
        if len(self.study.runs) > 1:
            self.progress.say(f"{program}: {layout.runs} at a time ({why})")
        wanted = self.training.devices.runs_per_program
        self.recorder.add_layout(program, wanted, layout, why)

    def _carry_out(self, runs: Sequence[RunSpec], layout: Layout, start: Start) -> bool:
        """Makes runs together; False if they do not fit into the device's memory."""
        # Several processes can only stop together, between steps.
        if hosts.alone():
            self.interruption.check()
        group = RunGroup(self.study.tasks[runs[0].task], tuple(runs), layout)
        folder = self.folder / runs[0].name.replace("/", ",")
        self.progress.running = len(runs)
        try:
            with Checkpoints(
                folder, self.training.checkpoints, start.step, self.programs.clock
            ) as checkpoints:
                trained = Training(
                    group,
                    start,
                    programs=self.programs,
                    recorder=self.recorder,
                    checkpoints=checkpoints,
                    progress=self.progress,
                    interruption=self.interruption,
                ).train()
                checkpoints.prune()
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            smaller = memory.fewer(layout.runs, layout.run_devices)
            if smaller == layout.runs:
                raise UserError(
                    "a device cannot hold a single run: lower --batch-size or "
                    "--max-length, take --accumulate 2 or --dtype bfloat16, or let "
                    "devices share a run with --data-devices and --shard-params"
                ) from None
            self.programs.clear()
            why = f"{layout.runs} did not fit into the device's memory"
            self._choose(runs[0], dataclasses.replace(layout, runs=smaller), why)
            return False
        finally:
            self.progress.running = 0
        self._finish(group, trained)
        self._forget(folder)
        return True

    def _finish(self, group: RunGroup, trained: Trained) -> None:
        recorder, runs = self.recorder, group.runs
        saved = self._save_best(group, trained) if self.study.saves_best else None
        # Whoever finds the results finds all else as well.
        recorder.finish(
            group,
            trained.step,
            trained.results,
            seconds=trained.seconds,
            own_seconds=trained.own_seconds,
            saved=saved,
        )
        self.progress.finished(len(runs), _failed(recorder, runs))
        for run in runs:
            if why := recorder.gave_up(run):
                self.progress.say(f"{run.name}: {why}")
        for cell in dict.fromkeys(run.cell for run in runs):
            self._describe_cell(cell)

    def _save_best(self, group: RunGroup, trained: Trained) -> str | None:
        """Saves the model of the best of these runs, if it is the best so far."""
        inputs, folder = group.of_task.inputs, self.study.workdir / "model"
        chosen_by, metric = inputs.chosen_by, inputs.task.metric
        scores = {
            index: _comparable(trained.results[index][chosen_by].scores[metric])
            for index, run in enumerate(group.runs)
            if not self.recorder.gave_up(run)
        }
        if not scores:
            return None
        best = max(scores, key=lambda index: scores[index])
        params = hosts.on_host(trained.states.params, best)
        before = [
            _comparable(line["scores"][chosen_by][metric])
            for line in self.recorder.finished.values()
            if line["model_saved"]
        ]
        if folder.exists() and scores[best] <= max(before, default=-math.inf):
            return None
        if hosts.is_primary():
            save_model(folder, group.of_task, params)
        return group.runs[best].name

    def _forget(self, folder: Path) -> None:
        """Removes the checkpoints of runs that are done, unless they are wanted."""
        config = self.training.checkpoints
        if config.keep is None and not config.keep_best and hosts.is_primary():
            remove_checkpoints(folder)

    def _describe_cell(self, cell: str) -> None:
        """Prints a line on a cell of several runs if all of them are finished."""
        names = [run.name for run in self.study.runs if run.cell == cell]
        lines = [x for x in map(self.recorder.finished.get, names) if x is not None]
        if len(names) == 1 or len(lines) < len(names):
            return
        metric = lines[0]["metric"]
        scores = [100 * float(x["scores"][x["judged"]][metric]) for x in lines]
        self.progress.say(
            f"{cell}: {len(lines)} runs, {metric} x 100 mean {np.mean(scores):.1f} "
            f"std {np.std(scores):.1f}, {sum(x['failed'] for x in lines)} failed"
        )


def _failed(recorder: Recorder, runs: Sequence[RunSpec]) -> int:
    return sum(recorder.finished[run.name]["failed"] for run in runs)


def _comparable(score: Any) -> float:
    # In records a score that is no number is a string.
    score = float(score)
    return -math.inf if math.isnan(score) else score
