"""What a person sees while a run goes on."""

import sys
import time

import rich.console
import rich.progress


class Progress:
    """A bar with loss, rate and time left on a terminal, plain lines elsewhere.

    Use as a context manager.
    """

    def __init__(self, total_steps: int):
        self._total = total_steps
        self._start = self._printed = time.monotonic()
        self._bar = None
        if sys.stderr.isatty():
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
        rate = step / (now - self._start)
        status = f"loss {loss:.4f}  {rate:.2f} steps/s"
        if self._bar:
            self._bar.update(self._task, completed=step, status=status)
        elif now - self._printed >= 10 or step == self._total:
            self._printed = now
            left = (self._total - step) / rate
            print(
                f"step {step}/{self._total}  {status}  {left / 60:.1f} min left",
                file=sys.stderr,
                flush=True,
            )
