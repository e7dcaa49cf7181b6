"""Tables read from files, which know the line of each row for error messages."""

import codecs
import collections
import csv
import dataclasses
import functools
import io
import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from cwgnc_train.config import UserError, listed, shown, suggest

_logger = logging.getLogger(__name__)
_Parsed = TypeVar("_Parsed")

# A parquet file of a few bytes can claim to hold any number of rows and bytes. Beyond
# these numbers it may hold only 10 rows and 100 bytes per byte of the file.
_ROWS, _BYTES = 10**6, 2**28
_JSON_PROBLEMS = {
    RecursionError: "brackets are nested too deeply",
    UnicodeEncodeError: "a text has half a surrogate pair, which is not a character",
}


@dataclasses.dataclass(frozen=True)
class Table:
    """Columns of at least one row."""

    source: str  # Where it comes from, for messages.
    names: Sequence[str]
    read: Callable[[str], list]  # Returns the values of a column.
    lines: Sequence[int]  # The number of each row in the source.
    unit: str = "line"  # What these numbers count.
    commit: str | None = None  # Its commit on the Hugging Face hub; None for a file.

    def __post_init__(self):
        for name, count in collections.Counter(self.names).items():
            if count > 1:
                twice = f"{count} columns named {name!r:.60}"
                raise UserError(f"{self.source} has {twice}; rename all but one")
        if not self.lines:
            raise UserError(f"{self.source} has no examples, only column names")

    def parsed(self, column: str, parse: Callable[[Any], _Parsed]) -> list[_Parsed]:
        """Parses the values of a column.

        A missing column is a UserError. So is a ValueError of ``parse``, with its cell.
        """
        if column not in self.names:
            near, known = suggest(column, self.names), listed(self.names) or "none"
            raise UserError(
                f"{self.source} has no column {column!r}{near or ';'} it has {known}"
            )
        parsed = []
        for line, value in zip(self.lines, self.read(column), strict=True):
            try:
                parsed.append(parse(value))
            except ValueError as error:
                place = f"{self.source}, {self.unit} {line}, column {column!r}"
                raise UserError(f"{place}: {error}") from None
        return parsed


def read_table(path: Path) -> Table:
    """Reads a file; its suffix names its format."""
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        known = " ".join(_READERS)
        raise UserError(
            f"{path}: unknown suffix {path.suffix!r}, expected one of {known}"
        )
    return reader(path)


def read_official(path: Path, names: Sequence[str], drop_broken: bool) -> Table:
    """Reads an official GLUE file; ``names`` are the columns of one without a header.

    Rows with too few or too many columns are an error, or are left out.
    """
    # Not csv: the official files have no quoting, but texts with lone double quotes.
    # Nor splitlines: the texts contain U+0085 and other line breaks of Unicode.
    lines = [line.removesuffix("\r") for line in _read_text(path).split("\n")]
    rows = {n: line.split("\t") for n, line in enumerate(lines, start=1) if line}
    names = names or rows.pop(min(rows))
    broken = [n for n, row in rows.items() if len(row) != len(names)]
    if broken and drop_broken:
        _logger.warning(
            f"{path}: dropped {len(broken)} of {len(rows)} rows, which do not have "
            f"{len(names)} columns (the first on line {broken[0]})"
        )
        rows = {n: row for n, row in rows.items() if len(row) == len(names)}
    return _of_rows(path, names, rows, "columns are separated by tabs")


def contents(folder: Path) -> str:
    """Describes what a folder holds, for messages."""
    if not folder.is_dir():
        return f"{folder} is not a folder"
    names = sorted(entry.name for entry in folder.iterdir())
    return f"{folder} has {listed(names) or 'nothing in it'}"


def _read_bytes(path: Path) -> bytes:
    if path.is_dir():
        raise UserError(f"{path} is a folder; expected a file")
    if not path.exists():
        raise UserError(f"no file {path}; {contents(path.parent)}")
    raw = path.read_bytes()
    if not raw.removeprefix(codecs.BOM_UTF8).strip():
        raise UserError(f"{path} is empty; expected column names and examples")
    return raw


def _read_text(path: Path) -> str:
    raw = _read_bytes(path)
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        byte = f"byte {error.start} ({raw[error.start]:#04x})"
        raise UserError(f"{path}: {byte} is not UTF-8; convert it to UTF-8") from None
    if "\0" in text:
        place = f"{path}: byte {raw.index(0)}"
        raise UserError(f"{place} is NUL; expected a text file in UTF-8")
    return text.removeprefix("\ufeff")


def _of_rows(
    path: Path, names: Sequence[str], rows: dict[int, list[str]], fix: str
) -> Table:
    """Makes a table of rows by line; ``fix`` says what to do if columns lack."""
    for line, row in rows.items():
        if len(row) != len(names):
            what = f"expected {len(names)} columns in each row, got {len(row)}"
            raise UserError(f"{path}, line {line}: {what}; {fix}")

    def read(name):
        index = names.index(name)
        return [row[index] for row in rows.values()]

    return Table(str(path), names, read, list(rows))


def _read_csv(path: Path, delimiter: str = ",") -> Table:
    text = _read_text(path)
    # By default csv refuses texts of more than 131,072 characters.
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))
    # Not pandas, which silently pads or truncates ragged rows. Strict, because a lone
    # quote would otherwise swallow the rows after it.
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    rows, line = {}, 1
    try:
        for row in reader:
            if row:
                rows[line] = row
            line = reader.line_num + 1
    except csv.Error as error:
        raise UserError(
            f"{path}, line {line}: {error}; a text with double quotes needs double "
            f"quotes around it, and its own doubled"
        ) from None
    fix = f"put double quotes around texts with {delimiter!r} or line breaks"
    return _of_rows(path, rows.pop(min(rows)), rows, fix)


def _read_json(path: Path) -> Table:
    text = _read_text(path)
    if path.suffix.lower() == ".json" and text.lstrip().startswith("["):
        unit, rows = "row", dict(enumerate(_parse_json(text, str(path)), start=1))
    else:
        # Not splitlines: JSON strings may contain U+2028.
        unit, lines = "line", enumerate(text.split("\n"), start=1)
        rows = {n: _parse_json(x, f"{path}, line {n}") for n, x in lines if x.strip()}
    for n, row in rows.items():
        if not isinstance(row, dict):
            expected = "expected an object of column names and values"
            raise UserError(f"{path}, {unit} {n}: {expected}, got {shown(row)}")
    values = rows.values()
    names = list(dict.fromkeys(name for row in values for name in row))
    return Table(
        str(path), names, lambda n: [row.get(n) for row in values], list(rows), unit
    )


def _parse_json(text: str, place: str) -> Any:
    def unique(pairs):
        content = dict(pairs)
        if len(content) < len(pairs):
            [(twice, _)] = collections.Counter(n for n, _ in pairs).most_common(1)
            raise UserError(f"{place}: an object has {twice!r:.60} more than once")
        return content

    try:
        content = json.loads(text, object_pairs_hook=unique)
        # An escape that may be half of a surrogate pair.
        if "\\ud" in text.lower():
            json.dumps(content, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        reason = f"not JSON, {_JSON_PROBLEMS.get(type(error), error)}"
        raise UserError(f"{place}: {reason}; expected one object per line") from None
    return content


def _read_parquet(path: Path) -> Table:
    import pyarrow
    from pyarrow import parquet

    raw = _read_bytes(path)
    try:
        file = parquet.ParquetFile(pyarrow.BufferReader(raw))
        size, found = len(raw), file.metadata
        groups = map(found.row_group, range(found.num_row_groups))
        unpacked = sum(group.total_byte_size for group in groups)
        most_rows, most_bytes = max(_ROWS, 10 * size), max(_BYTES, 100 * size)
        if found.num_rows > most_rows or unpacked > most_bytes:
            raise UserError(
                f"{path} has {size} bytes and claims to hold {found.num_rows} rows of "
                f"{unpacked} bytes; write the file again"
            )
        table = file.read()
        table.validate(full=True)
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"{path} is not a parquet file: {reason}") from None

    def read(name):
        column = table.column(name)
        try:
            return column.to_pylist()
        except (pyarrow.ArrowException, OverflowError, ValueError) as error:
            place = f"{path}: column {name!r:.60} of type {column.type}"
            raise UserError(f"{place} cannot be read: {error}") from None

    rows = range(1, table.num_rows + 1)
    return Table(str(path), table.column_names, read, rows, "row")


_READERS = {
    ".csv": _read_csv,
    ".tsv": functools.partial(_read_csv, delimiter="\t"),
    **dict.fromkeys((".json", ".jsonl", ".ndjson"), _read_json),
    ".parquet": _read_parquet,
}
