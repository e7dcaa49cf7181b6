"""A file of records that outlives the process at any moment."""

import fcntl
import hashlib
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cwgnc_train.config import UserError
from cwgnc_train.records.files import checked_line, parse_lines, write_whole


class RecordFile:
    """A file of JSON lines, open for more; a context manager.

    Each line is written at once. If the process died inside one, its torn rest is
    removed before lines are written or dropped. A file that is only looked at is left
    as it was, or missing.

    ``lines`` are those that were there when it was opened. A process for which it is
    not ``written`` reads them, and writes nothing. A changed line, one that is no JSON
    object, or another process that writes is a UserError.
    """

    def __init__(self, path: Path, written: bool = True):
        self._path, self._written = path, written
        self._is_new = written and not path.exists()
        self._open()
        try:
            content = self._content()
            whole = content[: content.rfind(b"\n") + 1]
            self.lines = parse_lines(path, whole)
        except BaseException:
            self._file.close()
            raise
        self._is_torn = len(whole) < len(content)
        self._count(whole)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        if self._is_new and not self._bytes:
            self._path.unlink(missing_ok=True)  # Before others can lock it.
        self._file.close()

    def append(self, record: dict[str, Any]) -> None:
        """Writes a record."""
        if not self._written:
            return
        line = checked_line(record)
        self._remove_torn()
        self._file.write(line)
        self._file.flush()
        self._bytes += len(line)
        self._digest.update(line)

    def sync(self) -> None:
        """Returns when all lines have reached the disk."""
        if self._written:
            os.fsync(self._file.fileno())

    def mark(self) -> dict[str, Any]:
        """Describes all lines so far, which have then reached the disk."""
        self.sync()
        return {"bytes": self._bytes, "sha256": self._digest.hexdigest()}

    def problem(self, mark: dict[str, Any]) -> str | None:
        """Says what is wrong if the file does not begin with what was marked."""
        begin = self._content()[: mark["bytes"]]
        same = hashlib.sha256(begin).hexdigest() == mark["sha256"]
        return None if same else f"{self._path} has changed or lacks records"

    def drop(self, unwanted: Callable[[dict[str, Any]], bool]) -> None:
        """Removes the lines of which ``unwanted`` says so."""
        if not self._written:
            return
        self._remove_torn()
        content = self._content()
        texts = content.splitlines(keepends=True)
        lines = zip(texts, parse_lines(self._path, content), strict=True)
        kept = b"".join(text for text, record in lines if not unwanted(record))
        if len(kept) < len(content):
            write_whole(self._path, kept)
            self._file.close()
            self._open()
            self._count(kept)

    def _remove_torn(self) -> None:
        if self._is_torn:
            self._file.truncate(self._bytes)
            self._is_torn = False

    def _open(self) -> None:
        if not self._written:
            self._file = self._path.open("rb") if self._path.exists() else io.BytesIO()
            return
        self._file = self._path.open("a+b")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            what = f"another process is writing {self._path}"
            raise UserError(f"{what}; wait for it or end it") from None

    def _content(self) -> bytes:
        self._file.seek(0)
        return self._file.read()

    def _count(self, content: bytes) -> None:
        self._bytes, self._digest = len(content), hashlib.sha256(content)
