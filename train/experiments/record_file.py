"""A study's records: lines of JSON that outlive the process at any moment."""

import fcntl
import os
from pathlib import Path
from typing import Any

from train.records import checked_line, parse_lines

# The fields by which two lines are told apart.
_IDENTITY = ("kind", "run", "step", "split", "program", "runs")


class RecordFile:
    """The file of a study's records, open for more.

    A line is written in one piece and at once. If the process died within one, its
    torn rest is removed when the file is opened again: the run that wrote it makes it
    anew. Each line ends in its checksum, so that one that was changed is noticed then.
    A line that is there already is not written twice, so that steps can be repeated
    after a restart. Use as a context manager; one process at a time.

    ``lines`` are those that were there when it was opened.

    Args:
      path: The file; made if there is none.

    Raises:
      ValueError: If a line other than a torn last one is no JSON object, or has
        changed since it was written.
      BlockingIOError: If another process has the file open.
    """

    def __init__(self, path: Path):
        self._file = path.open("a+b")
        try:
            self.lines = self._read(path)
        except BaseException:
            self._file.close()
            raise
        self._known = {_identity(line) for line in self.lines}

    def _read(self, path: Path) -> list[dict[str, Any]]:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BlockingIOError(
                f"another process is writing {path}; wait for it or end it"
            ) from None
        self._file.seek(0)
        content = self._file.read()
        whole = content[: content.rfind(b"\n") + 1]
        lines = parse_lines(path, whole)
        self._file.truncate(len(whole))
        return lines

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self._file.close()

    def append(self, record: dict[str, Any]) -> None:
        """Writes a record, unless it is there already."""
        if _identity(record) in self._known:
            return
        self._known.add(_identity(record))
        self._file.write(checked_line(record))
        self._file.flush()

    def sync(self) -> None:
        """Returns when all lines are on the disk itself."""
        os.fsync(self._file.fileno())


def _identity(record: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(record.get(name) for name in _IDENTITY)
