"""What a person sees while runs train."""

import time

import rich.console
import rich.progress


class Progress:
    """A bar on a terminal, plain lines elsewhere.

    Of all ``runs``, ``done`` were finished before; ``run_steps`` are still to take,
    over all of them. ``running`` is the number of runs under way and ``loss`` the last
    loss known of the first of them. The rate counts from the first steps on, without
    the compilation before them. Use as a context manager.
    """

    def __init__(
        self, runs: int, done: int, failed: int, run_steps: int, shown: bool = True
    ):
        self.running = 0
        self.loss: float | None = None
        self._runs, self._done, self._failed = runs, done, failed
        self._steps, self._taken, self._shown = run_steps, 0, shown
        self._first, self._start = 0, time.monotonic()
        self._printed = self._start
        self._console = rich.console.Console(stderr=True, highlight=False)
        self._bar = rich.progress.Progress(
            rich.progress.BarColumn(),
            rich.progress.TextColumn("{task.fields[status]}"),
            rich.progress.TimeRemainingColumn(),
            console=self._console,
            disable=not (shown and self._console.is_terminal),
        )
        self._task = self._bar.add_task("", total=run_steps, status="compiling")

    def __enter__(self):
        self._bar.start()
        return self

    def __exit__(self, *exception):
        self._bar.stop()

    def took(self, run_steps: int, step: int, total: int) -> None:
        """Counts steps over all runs; the current ones are at ``step`` of ``total``."""
        now = time.monotonic()
        if not self._taken:
            self._first, self._start = run_steps, now
        self._taken += run_steps
        if self._runs == 1:
            parts = [f"step {step}/{total}"]
            if self.loss is not None:
                parts.append(f"loss {self.loss:.4f}")
        else:
            parts = [
                f"step {step}/{total}; runs: {self._done} of {self._runs} done, "
                f"{self.running} running, {self._failed} failed"
            ]
        timed = self._taken - self._first
        if timed:
            rate = timed / (now - self._start)
            unit = "steps/s" if self._runs == 1 else "run-steps/s"
            parts.append(f"{rate:.2f} {unit}")
        status = "  ".join(parts)
        self._bar.update(self._task, completed=self._taken, status=status)
        if self._bar.disable and (now - self._printed >= 10 or step == total):
            self._printed = now
            if timed:
                left = (self._steps - self._taken) / rate / 60
                status = f"{status}  {left:.1f} min left"
            self.say(status)

    def finished(self, runs: int, failed: int) -> None:
        """Counts runs as done, and how many of them failed."""
        self._done += runs
        self._failed += failed

    def skip(self, run_steps: int) -> None:
        """Takes steps off the count that were taken before an interruption."""
        self._steps -= run_steps

    def say(self, line: str) -> None:
        """Prints a line that stays."""
        if self._shown:
            self._console.print(line, soft_wrap=True, markup=False)
