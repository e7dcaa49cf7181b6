"""Texts and labels: GLUE from its official files or the hub, and own files.

Every source is read into a table of columns that can name the file and line of each
row, so that whatever is wrong is reported where it can be mended.
"""

import csv
import dataclasses
import difflib
import io
import json
import logging
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from train.config import DataConfig
from train.tasks import GLUE, Task, find_task, own_task

_logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Examples:
    """Texts, and what is to be predicted from each."""

    texts: tuple[list[str], ...]
    """One list of texts, or two of one length whose items form pairs."""
    labels: np.ndarray | None
    """Class indices (int32) or numbers (float32); None if unlabelled."""

    def __len__(self) -> int:
        return len(self.texts[0])


def load_examples(data: DataConfig) -> tuple[Task, dict[str, Examples]]:
    """Loads the training and validation examples of a run.

    Args:
      data: A GLUE task, from ``data_dir`` or else the hub; or own files.

    Returns:
      The task, and its examples under the keys "train", "holdout" (if one is kept
      back) and "validation"; MNLI has "validation_matched" and
      "validation_mismatched" instead.

    Raises:
      OSError: If a file is missing or cannot be read, or the hub not be reached.
      ValueError: If the contents are not what the task needs.
    """
    if data.task is not None:
        task = find_task(data.task)
        splits = {
            split: load_split(task, data.data_dir, split)
            for split in _SPLITS[task.name == "mnli"]
            if not split.startswith("test")
        }
        origin = f"task {task.name}"
    else:
        assert data.train_file and data.validation_file  # DataConfig has checked it
        origin = str(data.train_file)
        names = None if data.regression else _class_names(data)
        task = own_task(data.text_columns, names)
        splits = {
            split: read_file(path, task.text_columns, data.label_column, names)
            for split, path in (
                ("train", data.train_file),
                ("validation", data.validation_file),
            )
        }
    if data.holdout:
        splits = _keep_back(splits, data.holdout, origin)
    classes = np.unique(splits["train"].labels)
    if not task.regression and classes.size < 2:
        raise ValueError(
            f"{origin}: expected at least two classes in the training set, but each of "
            f"its {len(splits['train'])} labels is {task.label_names[classes[0]]!r}"
        )
    return task, splits


def load_split(task: Task, data_dir: Path | None, split: str) -> Examples:
    """Loads one split of a GLUE task; the test splits have no labels.

    Args:
      task: One of the values of ``GLUE``.
      data_dir: The folder of the official TSV files; None for the hub.
      split: "train", "validation" or "test"; for MNLI the latter two end in
        "_matched" or "_mismatched".

    Returns:
      The examples in the order of the file.

    Raises:
      OSError: If a file is missing or cannot be read, or the hub not be reached.
      ValueError: If the contents are not those of this task, or the split is unknown.
    """
    splits = _SPLITS[task.name == "mnli"]
    if split not in splits:
        raise ValueError(
            f"task {task.name} has no split {split!r}; it has {' '.join(splits)}"
        )
    labelled = not split.startswith("test")
    if data_dir is None:
        table, names = _hub_table(task, split), task.label_names
        # The hub stores the index of a class.
        values = names and tuple(str(index) for index in range(len(names)))
        return _examples(table, task.text_columns, "label" if labelled else None, values)
    form = _OFFICIAL[task.name]
    stem = split.replace("validation", "dev")
    path = _task_folder(task, Path(data_dir)) / f"{stem}.tsv"
    table = _read_official(path, task.name, labelled)
    return _examples(table, form.texts, form.label if labelled else None, form.values)


def read_file(
    path: Path,
    text_columns: Sequence[str],
    label_column: str | None = None,
    label_names: Sequence[str] | None = None,
) -> Examples:
    """Reads own examples, in the format that the file's suffix names.

    The formats are .csv and .tsv (with a header and the usual quotes), .jsonl, .ndjson
    and .json (an object a line; .json may be one array of objects) and .parquet.
    Nothing is guessed: the text NA stays a text, and an empty one stays empty.

    Args:
      path: The file.
      text_columns: The column of the text, or the two columns of a pair.
      label_column: The column of the labels; None to leave them unread.
      label_names: The classes in the order of their indices; None if the labels are
        numbers.

    Returns:
      The examples in the order of the file.

    Raises:
      OSError: If the file is missing or cannot be read.
      ValueError: If its contents are not what was expected.
    """
    return _examples(_read_table(Path(path)), text_columns, label_column, label_names)


def permutation(count: int, seed: int, stream: int) -> np.ndarray:
    """Returns a random order that is a pure function of its arguments.

    The order of Philox's raw words is used, since NumPy promises to keep these the same
    in all versions, but not the methods of its ``Generator``.

    Args:
      count: The number of items to put in order.
      seed: The first half of the counter-based generator's key, not negative.
      stream: The second half: different streams of one seed are independent.

    Returns:
      The indices below ``count``, each once.
    """
    key = np.array([seed, stream], np.uint64)
    return np.argsort(np.random.Philox(key=key).random_raw(count), kind="stable")


def _keep_back(splits, holdout: float, origin: str) -> dict[str, Examples]:
    train = splits["train"]
    count = round(holdout * len(train))
    if not 0 < count < len(train):
        raise ValueError(
            f"{origin}: --holdout {holdout} of {len(train)} training examples leaves "
            f"{count} to hold out and {len(train) - count} to train on; both need at "
            f"least one"
        )
    # A stream that no epoch of train_batch ever uses.
    order = permutation(len(train), seed=0, stream=2**64 - 1)

    def take(rows):
        texts = tuple([column[row] for row in rows] for column in train.texts)
        return Examples(texts, train.labels[rows])

    parts = {"train": np.sort(order[count:]), "holdout": np.sort(order[:count])}
    return {**{name: take(rows) for name, rows in parts.items()}, **_others(splits)}


def _others(splits):
    return {name: part for name, part in splits.items() if name != "train"}


# --- a table, and the examples in it ---------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Table:
    source: str
    names: list[str]
    read: Callable[[str], list]
    lines: Sequence[int]
    unit: str = "line"

    def __post_init__(self):
        twice = [name for name in self.names if self.names.count(name) > 1]
        if twice:
            raise ValueError(
                f"{self.source}: the column {twice[0]!r} occurs "
                f"{self.names.count(twice[0])} times; rename all but one"
            )
        if not self.lines:
            raise ValueError(
                f"{self.source}: expected examples, but it has column names only"
            )

    def column(self, name: str) -> list:
        if name not in self.names:
            near = difflib.get_close_matches(name, self.names, n=1)
            raise ValueError(
                f"{self.source} has no column {name!r}"
                f"{f', did you mean {near[0]!r}?' if near else ';'} it has "
                f"{_listed(map(repr, self.names))}"
            )
        return self.read(name)

    def where(self, row: int) -> str:
        return f"{self.source}, {self.unit} {self.lines[row]}"


def _examples(table: _Table, text_columns, label_column, label_values) -> Examples:
    texts = tuple(_texts(table, name) for name in text_columns)
    if label_column is None:
        return Examples(texts, None)
    if label_values is None:
        return Examples(texts, _numbers(table, label_column))
    return Examples(texts, _classes(table, label_column, label_values))


def _texts(table: _Table, column: str) -> list[str]:
    texts = table.column(column)
    for row, text in enumerate(texts):
        if not isinstance(text, str):
            raise ValueError(
                f"{table.where(row)}: expected a text in column {column!r}, got "
                f"{_shown(text)}"
            )
    return texts


def _numbers(table: _Table, column: str) -> np.ndarray:
    values = table.column(column)
    numbers = np.empty(len(values), np.float32)
    largest = float(np.finfo(np.float32).max)
    for row, value in enumerate(values):
        try:
            number = math.nan if isinstance(value, bool) else float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not abs(number) <= largest:
            raise ValueError(
                f"{table.where(row)}: expected a finite number in column {column!r}, "
                f"got {_shown(value)}"
            )
        numbers[row] = number
    return numbers


def _classes(table: _Table, column: str, values: Sequence[str]) -> np.ndarray:
    indices = {value: index for index, value in enumerate(values)}
    labels = _class_labels(table, column)
    for row, label in enumerate(labels):
        if label not in indices:
            hint = ""
            if label == "-1":
                hint = " (-1 marks the examples of a test split that has no labels)"
            elif table.source not in map(str, values) and _is_number(label):
                hint = " (give --regression if numbers are to be predicted)"
            raise ValueError(
                f"{table.where(row)}: unknown label {label!r} in column {column!r}; "
                f"expected one of {_listed(map(repr, values))}{hint}"
            )
    return np.array([indices[label] for label in labels], np.int32)
