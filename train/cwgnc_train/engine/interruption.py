"""Signals that ask a process to stop after the steps under way."""

import os
import signal
import threading
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_NOTE = (
    "stopping: a checkpoint is written after the steps under way; "
    "the next signal ends at once\n"
)


class Interrupted(KeyboardInterrupt):
    """Training has stopped on a signal, with a checkpoint of all its steps."""

    def __init__(self, signum: int):
        super().__init__(f"interrupted by {signal.Signals(signum).name}")
        self.status = 128 + signum


class Interruption:
    """Turns the first SIGINT or SIGTERM into a request to stop; the next one kills.

    ``signum`` is the signal that came, 0 if none did. Outside the main thread, where
    Python handles no signals, it does nothing. Use as a context manager.
    """

    def __init__(self):
        self.signum = 0
        self._before: dict[int, Any] = {}

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():
            self._before = {s: signal.signal(s, self._note) for s in _SIGNALS}
        return self

    def __exit__(self, *exception):
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    def check(self) -> None:
        """Raises an :class:`Interrupted` if a signal came."""
        if self.signum:
            raise Interrupted(self.signum)

    def _note(self, signum: int, _frame: Any) -> None:
        self.signum = signum
        for each in self._before:
            signal.signal(each, signal.SIG_DFL)
        # A handler may have interrupted a print.
        os.write(2, _NOTE.encode())
