"""What a person sees while a run goes on."""

import sys
import time

import rich.console
import rich.progress


class Progress:
    """A bar with loss, rate and time left on a terminal, plain lines elsewhere.

    Use as a context manager.

    Args:
      total_steps: All steps of the run.
      first: How many were done before.
      shown: Whether to print anything.
    """

    def __init__(self, total_steps: int, first: int = 0, shown: bool = True):
        self._total, self._first, self._shown = total_steps, first, shown
        self._start = self._printed = time.monotonic()
        self._bar = None
        if shown and sys.stderr.isatty():
            self._bar = rich.progress.Progress(
                rich.progress.TextColumn("step {task.completed:.0f}/{task.total:.0f}"),
                rich.progress.BarColumn(),
                rich.progress.TextColumn("{task.fields[status]}"),
                rich.progress.TimeRemainingColumn(),
                console=rich.console.Console(stderr=True),
            )
            self._task = self._bar.add_task("", total=total_steps, status="compiling")

    def __enter__(self):
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *exception):
        if self._bar:
            self._bar.stop()

    def show(self, step: int, loss: float) -> None:
        """Reports that ``step`` steps are done; plain lines come 10 seconds apart."""
        now = time.monotonic()
        rate = (step - self._first) / (now - self._start)
        status = f"loss {loss:.4f}  {rate:.2f} steps/s"
        if self._bar:
            self._bar.update(self._task, completed=step, status=status)
        elif self._shown and (now - self._printed >= 10 or step == self._total):
            self._printed = now
            left = (self._total - step) / rate
            print(
                f"step {step}/{self._total}  {status}  {left / 60:.1f} min left",
                file=sys.stderr,
                flush=True,
            )


class StudyProgress:
    """How far a study is: a line on a terminal, plain lines elsewhere.

    Use as a context manager.

    Args:
      done: Runs that were finished before.
      failed: How many of them failed.
      runs: All runs of the study.
      run_steps: Training steps still to take, over all runs.
    """

    def __init__(self, done: int, failed: int, runs: int, run_steps: int):
        self.done, self.failed, self.running, self._runs = done, failed, 0, runs
        self._steps, self._taken = run_steps, 0
        self._start = self._printed = time.monotonic()
        self._console = rich.console.Console(stderr=True, highlight=False)
        self._status = None
        if self._console.is_terminal:
            self._status = self._console.status("compiling")

    def __enter__(self):
        if self._status:
            self._status.start()
        return self

    def __exit__(self, *exception):
        if self._status:
            self._status.stop()

    def took(self, run_steps: int) -> None:
        """Counts steps of runs, those of a checkpoint not included."""
        self._taken += run_steps
        now = time.monotonic()
        rate = self._taken / (now - self._start)
        left = (self._steps - self._taken) / rate / 60
        text = (
            f"runs: {self.done} of {self._runs} done, {self.running} running, "
            f"{self.failed} failed  {rate:.2f} run-steps/s  {left:.1f} min left"
        )
        if self._status:
            self._status.update(text)
        elif now - self._printed >= 30:
            self._printed = now
            self.say(text)

    def finished(self, runs: int, failed: int) -> None:
        """Counts runs as done, and how many of them failed."""
        self.done += runs
        self.failed += failed

    def skip(self, run_steps: int) -> None:
        """Takes steps off the count that were taken before an interruption."""
        self._steps -= run_steps

    def say(self, line: str) -> None:
        """Prints a line that stays."""
        self._console.print(line, soft_wrap=True, markup=False)
