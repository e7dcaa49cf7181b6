"""Files as tables of columns that can name the file and line of each row.

So whatever is wrong with a row is reported where it can be mended.
"""

import collections
import csv
import dataclasses
import difflib
import io
import json
import logging
import re
import reprlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

_logger = logging.getLogger(__name__)

# Of a name that was mistyped the nearest one is looked for among so many.
_MOST_COMPARED = 1000
# A few bytes of parquet can stand for any number of rows and bytes. So many are taken
# in any case; more must be at most so many for each byte of the file.
_ROWS, _ROWS_PER_BYTE = 10**6, 10
_BYTES, _BYTES_PER_BYTE = 2**28, 100
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 60


@dataclasses.dataclass(frozen=True)
class Table:
    """Columns by name; at least one row."""

    source: str
    names: Sequence[str]
    read: Callable[[str], list]
    lines: Sequence[int]
    unit: str = "line"
    commit: str | None = None
    """The commit on the Hugging Face hub that it is of; None for a file."""

    def __post_init__(self):
        if len(set(self.names)) < len(self.names):
            [(name, count)] = collections.Counter(self.names).most_common(1)
            raise ValueError(
                f"{self.source} has {count} columns named {name!r:.60}; rename all "
                f"but one"
            )
        if not self.lines:
            raise ValueError(f"{self.source} has no examples, only column names")

    def column(self, name: str) -> list:
        """Returns the values of a column, or raises a ValueError if it is not there."""
        if name not in self.names:
            compared = self.names[:_MOST_COMPARED]
            near = difflib.get_close_matches(name, compared, n=1)
            raise ValueError(
                f"{self.source} has no column {name!r}"
                f"{f', did you mean {near[0]!r}?' if near else ';'} it has "
                f"{listed(self.names) or 'none'}"
            )
        return self.read(name)

    def where(self, row: int, column: str) -> str:
        """Names a cell for a message."""
        return f"{self.source}, {self.unit} {self.lines[row]}, column {column!r}"


def read_table(path: Path) -> Table:
    """Reads a file in the format that its suffix names; see ``read_file``."""
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise ValueError(
            f"{path}: unknown suffix {path.suffix!r}, expected one of "
            f"{' '.join(_READERS)}"
        )
    return reader(path)


def read_official(path: Path, names: list[str] | None, drop_broken: bool) -> Table:
    """Reads an official GLUE file.

    Args:
      path: The file.
      names: The columns of a file without header; None if the first line names them.
      drop_broken: Whether to leave out rows with too few or too many columns.

    Returns:
      The table.
    """
    # Not csv: the official files have no quoting, but texts with lone double quotes.
    # And not splitlines: the texts contain U+0085 and its like.
    lines = [line.removesuffix("\r") for line in _read_text(path).split("\n")]
    rows = [(n, line.split("\t")) for n, line in enumerate(lines, start=1) if line]
    if names is None:
        names = rows.pop(0)[1] if rows else []
    broken = [(n, row) for n, row in rows if len(row) != len(names)]
    if broken and not drop_broken:
        line, row = broken[0]
        raise ValueError(
            f"{path}, line {line}: expected {len(names)} columns separated by tabs, "
            f"got {len(row)}"
        )
    if broken:
        _logger.warning(
            "%s: dropped %d of %d rows, which do not have %d columns (the first on "
            "line %d)", path, len(broken), len(rows), len(names), broken[0][0],
        )  # fmt: skip
        rows = [(n, row) for n, row in rows if len(row) == len(names)]
    return _of_rows(path, names, [row for _, row in rows], [n for n, _ in rows])


def listed(names: Iterable[str]) -> str:
    """Quotes the names for a message, at most five of them and the start of each."""
    names = [f"{name!r:.60}" for name in names]
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more


def contents(folder: Path) -> str:
    """Says for a message what a folder holds."""
    if not folder.is_dir():
        return f"{folder} is not a folder"
    names = sorted(entry.name for entry in folder.iterdir())
    return f"{folder} has {listed(names) or 'nothing in it'}"


def shown(value: Any) -> str:
    """Shows a wrong value in a message, the start of it if it is long or deep."""
    return "nothing" if value is None or value == "" else _SHORT.repr(value)


def _existing(path: Path) -> Path:
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; expected a file")
    if not path.exists():
        raise FileNotFoundError(f"no file {path}; {contents(path.parent)}")
    if not path.stat().st_size:
        raise ValueError(f"{path} is empty; expected column names and examples")
    return path


def _read_text(path: Path) -> str:
    raw = _existing(path).read_bytes()
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}: byte {error.start} ({raw[error.start]:#04x}) is not UTF-8; "
            f"convert the file to UTF-8"
        ) from None
    if "\0" in text:
        raise ValueError(
            f"{path}: byte {raw.index(0)} is NUL; expected a text file in UTF-8"
        )
    text = text.removeprefix("\ufeff")
    if not text.strip():
        raise ValueError(f"{path} is empty; expected column names and examples")
    return text


def _of_rows(path: Path, names, rows: list, lines: list[int]) -> Table:
    def read(name):
        index = names.index(name)
        return [row[index] for row in rows]

    return Table(str(path), names, read, lines)


def _read_csv(path: Path, delimiter: str = ",") -> Table:
    text = _read_text(path)
    # Beyond the default of 131,072 characters a text would be refused.
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))
    # Not pandas, which silently fills up or cuts off ragged rows. Strict, since a lone
    # quote would silently swallow the rows after it.
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    rows, lines, line = [], [], 1
    try:
        for row in reader:
            if row:
                rows.append(row)
                lines.append(line)
            if row and len(row) != len(rows[0]):
                raise ValueError(
                    f"{path}, line {line}: expected {len(rows[0])} columns as in the "
                    f"header, got {len(row)}; texts with {delimiter!r} or line breaks "
                    f"need double quotes around them"
                )
            line = reader.line_num + 1
    except csv.Error as error:
        raise ValueError(
            f"{path}, line {line}: {error}; a text that has double quotes needs double "
            f"quotes around it and its own doubled"
        ) from None
    return _of_rows(path, rows[0], rows[1:], lines[1:])


def _read_tsv(path: Path) -> Table:
    return _read_csv(path, "\t")


def _read_json(path: Path) -> Table:
    text = _read_text(path)
    if path.suffix.lower() == ".json" and text.lstrip().startswith("["):
        unit, rows = "row", _parse_json(text, str(path))
        lines = range(1, len(rows) + 1)
    else:
        # Not splitlines: JSON strings may contain U+2028.
        given = enumerate(text.split("\n"), start=1)
        unit, numbered = "line", [(n, line) for n, line in given if line.strip()]
        rows = [_parse_json(line, f"{path}, line {n}") for n, line in numbered]
        lines = [n for n, _ in numbered]
    for n, row in zip(lines, rows, strict=True):
        if not isinstance(row, dict):
            raise ValueError(
                f"{path}, {unit} {n}: expected an object of column names and values, "
                f"got {shown(row)}"
            )
    names = list(dict.fromkeys(name for row in rows for name in row))

    def read(name):
        return [row.get(name) for row in rows]

    return Table(str(path), names, read, lines, unit)


# How JSON spells what may be half of a pair of surrogates.
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def _parse_json(text: str, place: str) -> Any:
    def unique(pairs):
        content = dict(pairs)
        if len(content) < len(pairs):
            names = collections.Counter(name for name, _ in pairs)
            [(twice, _)] = names.most_common(1)
            raise ValueError(f"an object has {twice!r:.60} more than once")
        return content

    try:
        content = json.loads(text, object_pairs_hook=unique)
        if _SURROGATE.search(text):
            json.dumps(content, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{place}: not JSON, {error}; expected an object a line"
        ) from None
    except UnicodeEncodeError:
        raise ValueError(
            f"{place}: a text has half a surrogate pair, which is no character"
        ) from None
    except RecursionError:
        raise ValueError(
            f"{place}: brackets are nested too deeply; expected an object a line"
        ) from None
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from None
    return content


def _read_parquet(path: Path) -> Table:
    import pyarrow
    from pyarrow import parquet

    size = _existing(path).stat().st_size
    try:
        # Not read_table, which adds columns for folders named like KEY=VALUE.
        with parquet.ParquetFile(path) as file:
            found = file.metadata
            groups = map(found.row_group, range(found.num_row_groups))
            unpacked = sum(group.total_byte_size for group in groups)
            if found.num_rows > max(_ROWS, _ROWS_PER_BYTE * size) or (
                unpacked > max(_BYTES, _BYTES_PER_BYTE * size)
            ):
                raise ValueError(
                    f"{path} has {size} bytes and claims to hold {found.num_rows} rows "
                    f"of {unpacked} bytes; write it anew"
                )
            table = file.read()
        table.validate(full=True)
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{path} is not a parquet file: {reason}") from None

    def read(name):
        column = table.column(name)
        try:
            return column.to_pylist()
        except (pyarrow.ArrowException, OverflowError, ValueError) as error:
            raise ValueError(
                f"{path}: column {name!r:.60} of type {column.type} cannot be read: "
                f"{error}"
            ) from None

    rows = range(1, table.num_rows + 1)
    return Table(str(path), table.column_names, read, rows, "row")


_READERS = {
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".json": _read_json,
    ".jsonl": _read_json,
    ".ndjson": _read_json,
    ".parquet": _read_parquet,
}
