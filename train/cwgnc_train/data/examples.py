"""Texts and labels: GLUE from its official files or the hub, and own files."""

import contextlib
import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Num

from cwgnc_train.config import DataConfig, UserError, listed, shown
from cwgnc_train.data.order import draw_order
from cwgnc_train.data.table_files import Table, contents, read_official, read_table
from cwgnc_train.data.tasks import OfficialFiles, Task, find_task, own_task

_HUB = "nyu-mll/glue"
# A longer text is taken for a quote that is never closed.
_MOST_CHARACTERS = 1_000_000
_LARGEST_NUMBER = float(np.finfo(np.float32).max)
# Control characters and line breaks would break tables of predictions.
_LABEL = re.compile("[^\x00-\x1f\x7f-\x9f\u2028\u2029]{1,1000}")
# More different labels than this, and than a tenth of the examples, are no classes.
_MOST_CLASSES = 1000
# Draws the same order for every seed, and is the key of no seed and epoch.
_FIXED = (2**64 - 1, 2**64 - 1)


@dataclasses.dataclass(frozen=True)
class Examples:
    """Texts, and what to predict from each."""

    texts: tuple[list[str], ...]  # One list, or two lists whose items form pairs.
    labels: Num[np.ndarray, " examples"] | None
    """Class indices (int32) or numbers (float32); None if unlabelled."""
    commit: str | None = None  # Their commit on the Hugging Face hub; None for files.

    def __len__(self) -> int:
        return len(self.texts[0])


def load_examples(
    task_name: str | None, data: DataConfig
) -> tuple[Task, dict[str, Examples]]:
    """Loads a GLUE task's examples, or own ones, and says what is predicted from them.

    The sets are "train", "holdout" if a part of train is kept back, and "validation" if
    there is one. MNLI has "validation_matched" and "validation_mismatched" instead.
    """
    if task_name is not None:
        task = find_task(task_name)
        names = [name for name in task.splits if not name.startswith("test")]
        splits = {name: load_split(task, data.data_dir, name) for name in names}
    else:
        task, splits = _load_own(data)
    splits = _parts_of_train(splits.pop("train"), data) | splits
    labels = splits["train"].labels
    assert labels is not None
    if task.label_names and np.unique(labels).size < 2:
        raise UserError(
            f"{data.train_file or task.name}: expected at least two classes to train "
            f"on, but all {len(labels)} labels are {task.label_names[labels[0]]!r}"
        )
    return task, splits


def load_split(task: Task, data_dir: Path | None, split: str) -> Examples:
    """Loads one split of a GLUE task; the test splits have no labels.

    ``data_dir`` holds the official TSV files of all tasks or of this one; without it
    the hub is asked. Rows that lack columns are an error, but for QQP, whose questions
    contain line breaks: there they are dropped, as on the hub, and counted in the log.
    """
    if split not in task.splits:
        raise UserError(
            f"task {task.name} has no split {split!r}; it has {' '.join(task.splits)}"
        )
    labelled = not split.startswith("test")
    indices = task.label_names and [str(i) for i in range(task.num_labels)]
    if data_dir is None:
        # The hub has the names of the task, and indices for labels.
        table, files = _read_hub(task, split), OfficialFiles()
    else:
        files, stem = task.files, split.replace("validation", "dev")
        table = read_official(
            _task_folder(task, data_dir) / f"{stem}.tsv",
            files.column_names if labelled else (),
            drop_broken=task.name == "qqp",
        )
    return _parse(
        table,
        files.text_columns or task.text_columns,
        files.label_column if labelled else None,
        task.label_names if files.named_classes else indices,
    )


def read_file(
    path: Path,
    text_columns: Sequence[str],
    label_column: str | None = None,
    label_names: Sequence[str] | None = None,
) -> Examples:
    """Reads own examples; the file's suffix names its format.

    The formats are .csv and .tsv (with a header and the usual quotes), .jsonl, .ndjson
    and .json (an object per line; .json may also be an array of objects) and .parquet.
    Nothing is guessed: the text NA stays a text, and an empty text stays empty. Labels
    are classes in the order of ``label_names``, or numbers without it.
    """
    return _parse(read_table(path), text_columns, label_column, label_names)


def is_label(value: object) -> bool:
    """Says whether a value can name a class: a text of one line, not too long."""
    return isinstance(value, str) and _LABEL.fullmatch(value) is not None


def _load_own(data: DataConfig) -> tuple[Task, dict[str, Examples]]:
    assert data.train_file is not None
    table = read_table(data.train_file)
    names = None
    if not data.regression:
        distinct = set(table.parsed(data.label_column, _label))
        if len(distinct) > max(_MOST_CLASSES, len(table.lines) // 10):
            raise UserError(
                f"{table.source}, column {data.label_column!r}: {len(distinct)} "
                f"different labels in {len(table.lines)} examples are no classes; name "
                f"another --label-column, or give --regression if they are numbers"
            )
        integers = all(re.fullmatch(r"[+-]?\d{1,18}", name) for name in distinct)
        names = tuple(sorted(distinct, key=lambda n: (int(n) if integers else 0, n)))
    columns = data.text_columns, data.label_column, names
    splits = {"train": _parse(table, *columns)}
    if data.validation_file is not None:
        splits["validation"] = read_file(data.validation_file, *columns)
    return own_task(data.text_columns, names), splits


def _parts_of_train(train: Examples, data: DataConfig) -> dict[str, Examples]:
    parts, total, count = {}, len(train), data.train_examples
    if data.holdout:
        kept = round(data.holdout * total)
        if not 0 < kept < total:
            raise UserError(
                f"--holdout {data.holdout} of {total} training examples keeps {kept} "
                f"back and leaves {total - kept} to train on; both must be at least 1"
            )
        parts["holdout"], train = _draw(train, kept)
    if count is not None:
        if count > len(train):
            there = f"there are only {len(train)} training examples"
            raise UserError(f"--train-examples {count}: {there}")
        train, _ = _draw(train, count)
    return {"train": train} | parts


def _draw(examples: Examples, count: int) -> tuple[Examples, Examples]:
    """Draws examples, the same for every seed; returns them, and the others."""
    labels, order = examples.labels, draw_order(_FIXED, len(examples))
    assert labels is not None

    def taken(rows: np.ndarray) -> Examples:
        texts = tuple([column[row] for row in rows] for column in examples.texts)
        return dataclasses.replace(examples, texts=texts, labels=labels[rows])

    return taken(np.sort(order[:count])), taken(np.sort(order[count:]))


def _parse(
    table: Table,
    text_columns: Sequence[str],
    label_column: str | None,
    label_values: Sequence[str] | None,
) -> Examples:
    def class_index(value: Any) -> int:
        label = _label(value)
        if label not in indices:
            hint = "; -1 marks an unlabelled test split" if label == "-1" else ""
            raise ValueError(
                f"unknown label {label!r:.60}, expected one of {listed(indices)}{hint}"
            )
        return indices[label]

    texts = tuple(table.parsed(name, _text) for name in text_columns)
    if label_column is None:
        labels = None
    elif label_values is None:
        labels = np.array(table.parsed(label_column, _number), np.float32)
    else:
        indices = {value: index for index, value in enumerate(label_values)}
        labels = np.array(table.parsed(label_column, class_index), np.int32)
    return Examples(texts, labels, table.commit)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"expected a text, got {shown(value)}")
    if len(value) > _MOST_CHARACTERS:
        raise ValueError(
            f"expected a text of at most {_MOST_CHARACTERS:,} characters, got "
            f"{len(value):,}; cut it, or look for a quote that is not closed"
        )
    return value


def _number(value: Any) -> float:
    with contextlib.suppress(TypeError, ValueError, OverflowError):
        if not isinstance(value, bool) and abs(float(value)) <= _LARGEST_NUMBER:
            return float(value)
    raise ValueError(f"expected a finite number as label, got {shown(value)}")


def _label(value: Any) -> str:
    # A column of integers that once had a gap holds floats.
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    missing = value is None or value != value or isinstance(value, list | dict)
    label = "" if missing else str(value).strip()
    if not is_label(label):
        raise ValueError(
            f"expected a label, got {shown(value)}; labels are lines of at most 1000 "
            f"characters"
        )
    return label


def _task_folder(task: Task, data_dir: Path) -> Path:
    entries = sorted(data_dir.iterdir()) if data_dir.is_dir() else []
    for entry in entries:
        if entry.name.lower().replace("-", "") == task.name and entry.is_dir():
            return entry
    if any(entry.suffix == ".tsv" for entry in entries):
        return data_dir
    raise UserError(
        f"no folder {task.name.upper()} or {task.name} (hyphens do not matter) with "
        f"the official TSV files of task {task.name}; {contents(data_dir)}"
    )


def _read_hub(task: Task, split: str) -> Table:
    import datasets
    import huggingface_hub

    commit = None
    try:
        if not huggingface_hub.is_offline_mode():
            # Once, since load_dataset tries six times, for half a minute.
            commit = huggingface_hub.HfApi().dataset_info(_HUB, timeout=10).sha
        # Without trust_remote_code: the data are parquet files and need no script.
        dataset = datasets.load_dataset(_HUB, task.name, revision=commit)[split]
    except Exception as error:  # its HTTP library differs from version to version
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise UserError(
            f"cannot get task {task.name} from the hub ({reason}); without a network "
            f"give --data-dir with the official TSV files, or set HF_HUB_OFFLINE=1 if "
            f"{_HUB} is in the cache, or train on own data with --train-file"
        ) from None
    names = getattr(dataset.features.get("label"), "names", None)
    if names and tuple(names) != task.label_names:
        expected = (
            f"expected the classes {listed(task.label_names or ())} in this order"
        )
        raise UserError(f"{_HUB}, {task.name}: {expected}, got {listed(names)}")
    # Offline, the addresses of the cached files tell the commit.
    sources = " ".join(dataset.info.download_checksums or ())
    cached = re.search(rf"{_HUB}@([0-9a-f]{{40}})/", sources)
    return Table(
        f"{_HUB}, {task.name}, {split}",
        dataset.column_names,
        lambda name: list(dataset[name]),
        lines=range(1, len(dataset) + 1),
        unit="row",
        commit=commit or (cached[1] if cached else None),
    )
