"""What a person sees while runs train."""

import time

import rich.console
import rich.progress


class Progress:
    """A bar on a terminal, plain lines elsewhere.

    Of all ``runs``, ``done`` were finished before; ``run_steps`` are still to take,
    over all of them. ``running`` is the number of runs under way and ``loss`` the last
    loss known of the first of them. Use as a context manager.
    """

    def __init__(
        self, runs: int, done: int, failed: int, run_steps: int, shown: bool = True
    ):
        self.running, self.loss = 0, float("nan")
        self._runs, self._done, self._failed = runs, done, failed
        self._steps, self._taken, self._shown = run_steps, 0, shown
        self._start = self._printed = time.monotonic()
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
        self._taken += run_steps
        now = time.monotonic()
        rate = self._taken / (now - self._start)
        if self._runs == 1:
            status = f"step {step}/{total}  loss {self.loss:.4f}  {rate:.2f} steps/s"
        else:
            status = (
                f"step {step}/{total}; runs: {self._done} of {self._runs} done, "
                f"{self.running} running, {self._failed} failed  "
                f"{rate:.2f} run-steps/s"
            )
        self._bar.update(self._task, completed=self._taken, status=status)
        if self._bar.disable and (now - self._printed >= 10 or step == total):
            self._printed = now
            left = (self._steps - self._taken) / rate / 60
            self.say(f"{status}  {left:.1f} min left")

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
