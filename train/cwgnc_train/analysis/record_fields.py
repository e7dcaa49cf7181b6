"""Checked access to the fields of records."""

import contextlib
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cwgnc_train.config import UserError, shown

# Control characters and lone surrogates, which files of figures cannot hold.
_UNWRITABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


@contextlib.contextmanager
def naming_line(path: Path, number: int, kind: Any) -> Iterator[None]:
    """Turns errors about a record into user errors that name its line.

    Args:
      path: The file.
      number: The number of the line, from 1.
      kind: The kind of the record.

    Raises:
      UserError: If the record lacks a field, or has a wrong one.
    """
    try:
        yield
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
        what = "lacks" if isinstance(error, KeyError) else "is wrong:"
        raise UserError(
            f"{path}, line {number}: the record of kind {shown(kind)} {what} {error}; "
            f"restore the line"
        ) from None


def text_field(record: dict[str, Any], name: str) -> str:
    """Returns a field that must be one line of text."""
    value = record[name]
    if not isinstance(value, str) or _UNWRITABLE.search(value):
        raise ValueError(f"{name} must be a line of text, got {shown(value)}")
    return value


def count_field(record: dict[str, Any], name: str) -> int:
    """Returns a field that must be a whole number, 0 or more."""
    value = record[name]
    if type(value) is not int or not 0 <= value < 2**63:
        raise ValueError(f"{name} must be a whole number, got {shown(value)}")
    return value


def number_field(record: dict[str, Any], name: str) -> float:
    """Returns a field that must be a number; it may be infinite, but not NaN."""
    value = float(record[name])
    if math.isnan(value):
        raise ValueError(f"{name} must be a number, got NaN")
    return value


def optional_field(record: dict[str, Any], name: str, *types: type) -> Any:
    """Returns a field that may be missing or None."""
    value = record.get(name)
    if value is not None and type(value) not in types:
        names = " or ".join(kind.__name__ for kind in types)
        raise ValueError(f"{name} must be of type {names}, got {shown(value)}")
    return value


def finite_or_nan(value: Any) -> float:
    """Returns a number as it is if it is finite, and NaN otherwise.

    An infinite loss would hide all others in a mean over runs; NaN is skipped.
    """
    value = float(value)
    return value if math.isfinite(value) else math.nan
