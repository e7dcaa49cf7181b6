"""The training loop: runs of a group, from their first step to their results."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cwgnc_train.engine import checkpoints as ckpt
from cwgnc_train.engine import hosts
from cwgnc_train.engine.evaluation import evaluate
from cwgnc_train.engine.group import RunGroup
from cwgnc_train.engine.interruption import Interrupted, Interruption
from cwgnc_train.engine.programs import Programs, steps_of_program
from cwgnc_train.engine.progress import Progress
from cwgnc_train.engine.recorder import Recorder, Results
from cwgnc_train.engine.step import Metrics, RunState

# Metrics are fetched so many steps at a time, and never those of the steps just
# dispatched, so that the device does not wait for the host.
_CHUNK = 10


@dataclasses.dataclass(frozen=True)
class Start:
    """Where runs stand: before their first step, or at a checkpoint."""

    step: int = 0
    seconds: float = 0.0
    own_seconds: float = 0.0
    records: dict[str, Any] = dataclasses.field(default_factory=dict)
    """The recorder's state."""
    checkpoint: Path | None = None


@dataclasses.dataclass(frozen=True)
class Trained:
    """Runs at their end."""

    states: RunState
    results: Results
    step: int
    seconds: float
    own_seconds: float


@dataclasses.dataclass
class Training:
    """Trains a group of runs in one process."""

    group: RunGroup
    start: Start
    programs: Programs
    recorder: Recorder
    checkpoints: ckpt.Checkpoints
    progress: Progress
    interruption: Interruption

    def __post_init__(self):
        self._clock = self.programs.clock
        self._inputs = self.group.of_task.inputs
        self._agreed = hosts.Agreement()
        self._scored_at = self.group.of_task.scored_at(self.group.first)
        self._pending: tuple[int, int, list[Metrics]] | None = None
        self._saved_at = self.start.step
        self._own = self.start.own_seconds
        self._evaluation = self.programs.evaluation(self.group)
        self._begun = self._clock()

    def train(self) -> Trained:
        """Takes the steps that are left, and evaluates the runs.

        Raises Interrupted if a signal came; the runs have been saved.
        """
        group, start = self.group, self.start
        self.recorder.begin(group.runs, start.step, start.records)
        # What was saved at the end of an iteration has the optimizer state of that one.
        iteration = max(start.step - 1, 0) // group.iteration_steps
        started, end = group.start(iteration), start.step
        if start.checkpoint is not None:
            started = ckpt.restore(start.checkpoint, started)
            self.progress.skip(start.step * len(group.runs))
        states = started
        for end, reached, states, reported in self._steps(started, iteration):
            self._flush()
            self._pending = end, reached, reported
            taken = sum(metrics.loss.shape[1] for metrics in reported)
            self.progress.took(taken * len(group.runs), end, group.total_steps)
            scored = end in self._scored_at and end < group.total_steps and reported
            score = self._score(end, states) if scored else None
            self._save_if_due(end, states, score)
            if all(self.recorder.gave_up(run) for run in group.runs):
                break
        self._flush()
        self.recorder.means(group, end)
        results = self._final_evaluation(end, states)
        self.checkpoints.wait()
        return Trained(states, results, end, self._seconds(), self._own)

    def _steps(
        self, states: RunState, first: int
    ) -> Iterator[tuple[int, int, RunState, list[Metrics]]]:
        """Takes all steps that are left, without waiting for the device.

        Yields the number of steps done, the iteration, the runs, and the metrics of the
        steps since the last time, which are still being computed.
        """
        group, each = self.group, self.group.iteration_steps
        step = self.start.step
        for iteration in range(first, group.of_task.iterations(group.first)):
            if iteration > first:
                states = group.start_after(states, iteration)
            for end in self._ends(step, (iteration + 1) * each):
                reported = []
                while step < end and not (hosts.alone() and self.interruption.signum):
                    program, batches, step = self._program(iteration, step, end)
                    states, metrics = program(states, *batches)
                    reported.append(metrics)
                yield step, iteration, states, reported

    def _ends(self, step: int, last: int) -> list[int]:
        """The numbers of steps at which to look up, to the end of an iteration."""
        every = self.group.of_task.training.record_every
        # Counted anew in each iteration, which is a fine-tuning of its own.
        first = last - self.group.iteration_steps
        ends = {*range(first, last, _CHUNK), *range(first, last, every), last}
        return sorted(end for end in ends | self._scored_at if step < end <= last)

    def _program(self, iteration: int, step: int, end: int):
        group, first = self.group, iteration * self.group.iteration_steps
        taken = steps_of_program(group.layout.platform, step - first, end - first)
        steps, alike = (range(first + x.start, first + x.stop) for x in taken)
        measured = [group.of_task.is_measured(group.first, number) for number in steps]
        if any(measured):
            steps = range(step, step + 1)
        program, batches = self.programs.train_steps(
            group, iteration, steps, group.batch_shape(alike), measured[0]
        )
        return program, batches, steps.stop

    def _flush(self) -> None:
        """Records the steps of the last time."""
        if self._pending is None:
            return
        end, iteration, reported = self._pending
        self._pending = None
        if reported:
            loss = self.recorder.metrics(self.group, iteration, end, reported)
            self.progress.loss = loss
        every = self.group.of_task.training.record_every
        in_iteration = end % self.group.iteration_steps
        if in_iteration % every == 0 or end in self._scored_at:
            self.recorder.means(self.group, end)

    def _score(self, end: int, states: RunState) -> float:
        """Evaluates runs; returns the best score."""
        self._flush()
        began = self._clock()
        results = evaluate(self._evaluation, states.params, self._inputs)
        self.recorder.evaluation(self.group, end, results)
        self._own += self._clock() - began
        judged, metric = self._inputs.judged, self._inputs.task.metric
        of_runs = results[: len(self.group.runs)]
        return max(result[judged].scores[metric] for result in of_runs)

    def _final_evaluation(self, end: int, states: RunState) -> Results:
        began = self._clock()
        # Several processes can only stop together.
        check = self.interruption.check if hosts.alone() else lambda: None
        try:
            results = evaluate(self._evaluation, states.params, self._inputs, check)
            signum, _ = self._agreed(self.interruption.signum, 0)
            if signum:
                raise Interrupted(signum)
        except Interrupted:
            if self._saved_at < end:
                self._save(end, states, None)
            self.checkpoints.wait()
            raise
        self.recorder.evaluation(self.group, end, results)
        self._own += self._clock() - began
        return results

    def _save_if_due(self, end: int, states: RunState, score: float | None) -> None:
        due = int(hosts.is_primary() and self.checkpoints.due())
        signum, due = self._agreed(self.interruption.signum, due)
        config = self.group.of_task.training.checkpoints
        best = config.keep_best and score is not None
        unfinished = end < self.group.total_steps
        if end > self._saved_at and (best or signum or (due and unfinished)):
            self._save(end, states, score)
        if signum:
            self.checkpoints.wait()
            raise Interrupted(signum)

    def _save(self, end: int, states: RunState, score: float | None) -> None:
        self._flush()
        began, group = self._clock(), self.group
        self._saved_at = end
        notes = {
            "step": end,
            "runs": [run.name for run in group.runs],
            "layout": {"runs": group.layout.runs, "group": group.layout.group},
            "start": {
                "step": end,
                "seconds": self._seconds(),
                "own_seconds": self._own,
                "records": self.recorder.state(),
            },
            # Whoever reads the checkpoint finds the records of all steps before it.
            "marks": self.recorder.marks(),
            "fingerprint": ckpt.fingerprint(group.layout),
        }
        self.checkpoints.save(end, states, notes, score)
        self._own += self._clock() - began

    def _seconds(self) -> float:
        return self.start.seconds + self._clock() - self._begun
