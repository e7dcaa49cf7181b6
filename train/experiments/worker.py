"""Carries out the runs of a study, many in one program."""

import dataclasses
import functools
import itertools
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax

from train import checkpoint, memory, parallel
from train.evaluation import Evaluation, evaluate
from train.experiments.plan import PlannedRun
from train.experiments.programs import Programs
from train.experiments.recorder import Recorder
from train.experiments.study import Study
from train.interruption import Interrupted, Interruption
from train.loop import train
from train.parallel import Layout
from train.progress import StudyProgress
from train.steps import Metrics, Run


@dataclasses.dataclass(frozen=True)
class _State:
    """Where runs stand: before their first step, or at a checkpoint."""

    step: int = 0
    seconds: float = 0.0
    own_seconds: float = 0.0
    diverged_at: dict[str, int] = dataclasses.field(default_factory=dict)
    checkpoint: Path | None = None


class Worker:
    """Carries out the runs of one study in one process.

    Args:
      study: The study.
      recorder: Takes what the runs report.
      progress: Shows how far the study is.
      interruption: Says when to stop.
    """

    def __init__(
        self,
        study: Study,
        recorder: Recorder,
        progress: StudyProgress,
        interruption: Interruption,
    ):
        self._study, self._config = study, study.config
        self._recorder, self._progress = recorder, progress
        self._interruption = interruption
        self._folder = study.config.workdir / "checkpoint"
        self._programs = Programs(study, progress)

    def work(self, runs: Sequence[PlannedRun]) -> None:
        """Makes these runs, those with a checkpoint first.

        Raises:
          Interrupted: If a signal came; what has been done is on the disk.
          ValueError: If no checkpoint is whole.
          OSError: If one cannot be written.
        """
        runs = self._resume(list(runs))
        for _, alike in itertools.groupby(runs, self._study.shape):
            waiting = list(alike)
            while waiting:
                layout = self._layout(waiting)
                if self._carry_out(waiting[: layout.runs], layout, _State()):
                    waiting = waiting[layout.runs :]

    def _resume(self, runs: list[PlannedRun]) -> list[PlannedRun]:
        """Finishes what an earlier process had under way; returns the other runs."""
        found = checkpoint.latest(self._folder, self._progress.say)
        if found is None:
            return runs
        path, notes = found
        started = [run for run in runs if run.name in notes["runs"]]
        devices = 1 if self._study.mesh is None else self._study.mesh.shape["run"]
        if len(started) < len(notes["runs"]) or notes["layout_runs"] % devices:
            self._progress.say("the checkpoint is of other runs or devices: not used")
            return runs
        elsewhere = checkpoint.other_fingerprint(
            notes["fingerprint"], self._fingerprint()
        )
        if elsewhere is not None:
            self._progress.say(elsewhere)
        layout = Layout(notes["layout_runs"], notes["group"], self._study.mesh)
        state = _State(**notes["state"], checkpoint=path)
        self._progress.say(f"going on with {len(started)} runs at step {state.step}")
        done = self._carry_out(started, layout, state)
        return [run for run in runs if not (done and run in started)]

    def _layout(self, runs: list[PlannedRun]) -> Layout:
        """The layout for runs of one shape; what was chosen once is kept."""
        wanted = self._config.runs_per_program
        chosen = self._recorder.layouts(self._study.program_name(runs[0]), wanted)
        if chosen:
            return chosen[-1]
        mesh = self._study.mesh
        devices = jax.devices()[:1] if mesh is None else list(mesh.devices.flat)
        layout, why = memory.choose_layout(
            wanted,
            len(runs),
            mesh,
            jax.default_backend(),
            lambda layout: self._programs.bytes_needed(runs[0], layout),
            memory.bytes_free(devices),
        )
        self._choose(runs[0], layout, why)
        return layout

    def _choose(self, run: PlannedRun, layout: Layout, why: str) -> None:
        program = self._study.program_name(run)
        self._progress.say(f"{program}: {layout.runs} at a time ({why})")
        self._recorder.layout(program, layout, self._config.runs_per_program, why)

    def _steps(
        self, runs: list[PlannedRun], layout: Layout, state: _State, ends: list[int]
    ) -> Iterator[tuple[int, Run, list[Metrics]]]:
        """Takes all steps still to take; see ``loop.train``."""
        study, each = self._study, self._study.iteration_steps(runs[0])
        # What was saved at the end of an iteration has the optimizer state of that one.
        first = max(state.step - 1, 0) // each
        values = study.start(runs, layout, first)
        if state.checkpoint is not None:
            values = checkpoint.restore_runs(state.checkpoint, values)
        for iteration in range(first, study.iterations(runs[0])):
            if iteration > first:
                started = study.start(runs, layout, iteration)
                if runs[0].unfreezing == "carry":
                    started = started._replace(params=values.params)
                values = started
            begin = max(iteration * each, state.step)
            rest = [end for end in ends if begin < end <= (iteration + 1) * each]
            step_fn = functools.partial(self._step, runs, layout, iteration)
            for end, stepped, metrics in train(step_fn, values, begin, rest):
                values = stepped
                yield end, values, metrics

    def _step(
        self,
        runs: list[PlannedRun],
        layout: Layout,
        iteration: int,
        values: Run,
        step: int,
        end: int,
    ) -> tuple[Run, Metrics, int]:
        study = self._study
        steps, alike = parallel.steps_of_program(step, end)
        measured = [study.is_measured(runs[0], number) for number in steps]
        if any(measured):
            steps = range(step, step + 1)
        program = self._programs.train_steps(
            *(runs, layout, iteration, steps, study.batch_shape(runs, alike)),
            measured[0],
        )
        return *program(values), steps.stop

    def _carry_out(self, runs: list[PlannedRun], layout: Layout, state: _State) -> bool:
        """Makes runs together; False if they do not fit into the device's memory."""
        if self._interruption.came():
            raise Interrupted(self._interruption.signum)
        self._progress.running = len(runs)
        try:
            # Nothing is due of a program's runs but a while after they have started.
            with checkpoint.Checkpoints(
                self._folder, self._config.checkpoint_seconds, clock=self._clock
            ) as checkpoints:
                self._make(runs, layout, state, checkpoints)
        except jax.errors.JaxRuntimeError as error:
            if not memory.is_out_of_memory(error):
                raise
            smaller = memory.fewer(layout.runs, layout.run_devices)
            if smaller == layout.runs:
                raise MemoryError(
                    "a device cannot hold a single run: lower --batch-size or "
                    "--max-length, take --dtype bfloat16, or let devices share a "
                    "run's batch with --data-devices"
                ) from None
            self._programs.clear()
            self._choose(
                runs[0],
                dataclasses.replace(layout, runs=smaller),
                f"{layout.runs} did not fit into the device's memory",
            )
            return False
        finally:
            self._progress.running = 0
        return True

    def _make(
        self,
        runs: list[PlannedRun],
        layout: Layout,
        state: _State,
        checkpoints: checkpoint.Checkpoints,
    ) -> None:
        study, record = self._study, self._recorder
        # Copies of the last run fill up the program; nothing is recorded of them.
        filled = [*runs, *[runs[-1]] * (layout.runs - len(runs))]
        inputs = study.inputs[runs[0].task]
        eval_step = self._programs.eval_step(runs[0], layout)
        total, scored_at = study.total_steps(runs[0]), study.scored_at(runs[0])
        every, each = self._config.record_every, study.iteration_steps(runs[0])
        ends = {s for s in range(total) if s % each and s % each % every == 0}
        ends = sorted(ends | scored_at)
        diverged_at, own = dict(state.diverged_at), state.own_seconds
        pending: tuple[int, list[Metrics]] | None = None
        results: list[dict[str, Evaluation]] = []

        def flush():
            nonlocal pending
            if pending is not None:
                for name, step in record.metrics(runs, *pending).items():
                    diverged_at.setdefault(name, step)
            pending = None

        if state.checkpoint is not None:
            self._progress.skip(state.step * len(runs))
        start = self._clock()
        for end, values, metrics in self._steps(filled, layout, state, ends):
            flush()
            pending = (end, metrics)
            if end in scored_at:
                flush()
                began = self._clock()
                size = self._config.eval_batch_size
                results = evaluate(eval_step, values.params, inputs, size, layout)
                record.evaluation(runs, end, results)
                own += self._clock() - began
            taken = sum(of_steps.loss.shape[1] for of_steps in metrics)
            self._progress.took(taken * len(runs))
            stopping = end < total and self._interruption.came()
            if stopping or (end < total and checkpoints.due()):
                flush()
                began = self._clock()
                seconds = state.seconds + began - start
                reached = _State(end, seconds, own, diverged_at)
                # Whoever reads the checkpoint finds the records of all steps before it.
                record.sync()
                checkpoints.save(end, values, self._notes(runs, layout, reached))
                own += self._clock() - began
            if stopping:
                checkpoints.wait()
                raise Interrupted(self._interruption.signum)
        checkpoints.wait()
        seconds = state.seconds + self._clock() - start
        for run, result in zip(runs, results, strict=False):
            record.finished(
                run,
                result,
                seconds=seconds / len(runs),
                own_seconds=own / len(runs),
                diverged_at=diverged_at.get(run.name),
                together=layout.runs,
            )
        record.sync()
        checkpoint.remove_checkpoints(self._folder)
        self._progress.finished(len(runs), sum(record.failed(run) for run in runs))
        for line in record.cells(runs):
            self._progress.say(line)

    def _clock(self) -> float:
        """Seconds, those of the compiler left out."""
        return time.monotonic() - self._programs.seconds

    def _fingerprint(self) -> dict[str, Any]:
        return checkpoint.fingerprint(self._recorder.environment["devices"])

    def _notes(
        self, runs: list[PlannedRun], layout: Layout, state: _State
    ) -> dict[str, Any]:
        return {
            "runs": [run.name for run in runs],
            "layout_runs": layout.runs,
            "group": layout.group,
            "state": {
                "step": state.step,
                "seconds": state.seconds,
                "own_seconds": state.own_seconds,
                "diverged_at": state.diverged_at,
            },
            "fingerprint": self._fingerprint(),
        }
