"""Texts and labels: GLUE from its official files or the hub, and own files."""

import dataclasses
import math
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from train.config import DataConfig
from train.tables import Table, contents, listed, read_official, read_table, shown
from train.tasks import Task, find_task, own_task

_HUB = "nyu-mll/glue"
# What is longer is no text of which the first tokens are read, but a lost quote.
_MOST_CHARACTERS = 1_000_000
_LONGEST_LABEL = 1000
# Control characters and line breaks, which would tear tables of predictions.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")
# So many classes, or a tenth of the examples, may be classes; more are something else.
_MOST_CLASSES = 1000


@dataclasses.dataclass(frozen=True)
class Examples:
    """Texts, and what is to be predicted from each."""

    texts: tuple[list[str], ...]
    """One list of texts, or two of one length whose items form pairs."""
    labels: np.ndarray | None
    """Class indices (int32) or numbers (float32); None if unlabelled."""
    commit: str | None = None
    """The commit on the Hugging Face hub that they are of; None for files."""

    def __len__(self) -> int:
        return len(self.texts[0])


def load_examples(data: DataConfig) -> tuple[Task, dict[str, Examples]]:
    """Loads the training and validation examples of a run.

    Args:
      data: A GLUE task, from ``data_dir`` or else the hub; or own files.

    Returns:
      The task, and its examples under the keys "train", "holdout" (if a part of train
      is kept back) and "validation"; MNLI has "validation_matched" and
      "validation_mismatched" instead.

    Raises:
      OSError: If a file is missing or cannot be read, or the hub cannot be reached.
      ValueError: If the contents are not what the task needs.
    """
    if data.task is not None:
        task = find_task(data.task)
        splits = {
            split: load_split(task, data.data_dir, split)
            for split in _splits(task)
            if not split.startswith("test")
        }
    else:
        task, splits = _load_own(data)
    if data.holdout:
        splits = _keep_back(splits, data.holdout)
    if data.train_examples is not None:
        splits["train"] = _first(splits["train"], data.train_examples)
    classes = np.unique(splits["train"].labels)
    if task.label_names and classes.size < 2:
        raise ValueError(
            f"{data.train_file or task.name}: expected at least two classes to train "
            f"on, but all {len(splits['train'])} labels are "
            f"{task.label_names[classes[0]]!r}"
        )
    return task, splits


def load_split(task: Task, data_dir: Path | None, split: str) -> Examples:
    """Loads one split of a GLUE task; the test splits have no labels.

    Rows of the official QQP files that lack columns are dropped and counted in the
    log, as the hub drops them: their questions contain line breaks. In the files of
    the other tasks they are an error.

    Args:
      task: One of the values of ``GLUE``.
      data_dir: The folder of the official TSV files, or of those of this task alone;
        None for the hub.
      split: "train", "validation" or "test"; for MNLI the latter two end in
        "_matched" or "_mismatched".

    Returns:
      The examples in the order of the file.

    Raises:
      OSError: If a file is missing or cannot be read, or the hub cannot be reached.
      ValueError: If the contents are not those of this task, or it has no such split.
    """
    if split not in _splits(task):
        raise ValueError(
            f"task {task.name} has no split {split!r}; it has {' '.join(_splits(task))}"
        )
    labelled = not split.startswith("test")
    if data_dir is None:
        # The hub stores the index of a class, not its name.
        values = task.label_names and [str(i) for i in range(task.num_labels)]
        label = "label" if labelled else None
        return _examples(_read_hub(task, split), task.text_columns, label, values)
    form = _OFFICIAL[task.name]
    folder = _task_folder(task.name, Path(data_dir))
    path = folder / f"{split.replace('validation', 'dev')}.tsv"
    table = read_official(
        path, form.names if labelled else None, drop_broken=task.name == "qqp"
    )
    return _examples(table, form.texts, form.label if labelled else None, form.values)


def read_file(
    path: Path,
    text_columns: Sequence[str],
    label_column: str | None = None,
    label_names: Sequence[str] | None = None,
) -> Examples:
    """Reads own examples, in the format that the file's suffix names.

    The formats are .csv and .tsv (a header, and the usual quotes), .jsonl, .ndjson and
    .json (an object a line; .json may be one array of objects) and .parquet. Nothing
    is guessed: the text NA stays a text, and an empty one stays empty.

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
    return _examples(read_table(Path(path)), text_columns, label_column, label_names)


def is_label(value: object) -> bool:
    """Whether this can name a class: a line of text, and no long one."""
    short = isinstance(value, str) and 0 < len(value) <= _LONGEST_LABEL
    return short and not _CONTROL.search(value)


def _load_own(data: DataConfig) -> tuple[Task, dict[str, Examples]]:
    table = read_table(Path(data.train_file))
    names = None
    if not data.regression:
        distinct = set(_class_labels(table, data.label_column))
        if len(distinct) > max(_MOST_CLASSES, len(table.lines) // 10):
            raise ValueError(
                f"{table.source}, column {data.label_column!r}: {len(distinct)} "
                f"different labels in {len(table.lines)} examples are no classes; name "
                f"another --label-column, or give --regression if they are numbers"
            )
        integers = all(re.fullmatch(r"[+-]?\d{1,18}", name) for name in distinct)
        names = tuple(sorted(distinct, key=lambda n: (int(n) if integers else 0, n)))
    columns = (data.text_columns, data.label_column, names)
    return own_task(data.text_columns, names), {
        "train": _examples(table, *columns),
        "validation": read_file(data.validation_file, *columns),
    }


def _keep_back(splits: dict[str, Examples], part: float) -> dict[str, Examples]:
    train, others = splits["train"], {s: splits[s] for s in splits if s != "train"}
    count = round(part * len(train))
    if not 0 < count < len(train):
        raise ValueError(
            f"--holdout {part} of {len(train)} training examples keeps {count} back "
            f"and leaves {len(train) - count} to train on; both must be at least 1"
        )
    order = _fixed_order(len(train))
    kept, rest = np.sort(order[:count]), np.sort(order[count:])
    return {"train": _take(train, rest), "holdout": _take(train, kept), **others}


def _first(train: Examples, count: int) -> Examples:
    if count > len(train):
        raise ValueError(
            f"--train-examples {count}: there are only {len(train)} training examples"
        )
    return _take(train, np.sort(_fixed_order(len(train))[:count]))


def _fixed_order(count: int) -> np.ndarray:
    # A constant key, whatever the seed of the run. The order of raw words is the same
    # in all versions of NumPy, which it does not promise of Generator.permutation.
    return np.argsort(np.random.Philox(key=2**128 - 1).random_raw(count))


def _take(examples: Examples, rows: np.ndarray) -> Examples:
    texts = tuple([column[row] for row in rows] for column in examples.texts)
    return dataclasses.replace(examples, texts=texts, labels=examples.labels[rows])


def _examples(table: Table, text_columns, label_column, label_values) -> Examples:
    texts = tuple(_texts(table, name) for name in text_columns)
    if label_column is None:
        labels = None
    elif label_values is None:
        labels = _numbers(table, label_column)
    else:
        labels = _classes(table, label_column, label_values)
    return Examples(texts, labels, table.commit)


def _texts(table: Table, column: str) -> list[str]:
    texts = table.column(column)
    for row, text in enumerate(texts):
        if not isinstance(text, str):
            raise ValueError(
                f"{table.where(row, column)}: expected a text, got {shown(text)}"
            )
        if len(text) > _MOST_CHARACTERS:
            raise ValueError(
                f"{table.where(row, column)}: expected a text of at most "
                f"{_MOST_CHARACTERS:,} characters, got {len(text):,}; cut it, or look "
                f"for a quote that is not closed"
            )
    return texts


def _numbers(table: Table, column: str) -> np.ndarray:
    def number(value) -> float:
        try:
            return math.nan if isinstance(value, bool) else float(value)
        except (TypeError, ValueError, OverflowError):
            return math.nan

    values = table.column(column)
    numbers = np.array([number(value) for value in values])
    bad = np.flatnonzero(~(np.abs(numbers) <= np.finfo(np.float32).max))
    if bad.size:
        raise ValueError(
            f"{table.where(bad[0], column)}: expected a finite number as label, got "
            f"{shown(values[bad[0]])}"
        )
    return numbers.astype(np.float32)


def _classes(table: Table, column: str, values: Sequence[str]) -> np.ndarray:
    labels = _class_labels(table, column)
    indices = {value: index for index, value in enumerate(values)}
    for row, label in enumerate(labels):
        if label not in indices:
            hint = "; -1 marks an unlabelled test split" if label == "-1" else ""
            raise ValueError(
                f"{table.where(row, column)}: unknown label {label!r:.60}, expected "
                f"one of {listed(values)}{hint}"
            )
    return np.array([indices[label] for label in labels], np.int32)


def _class_labels(table: Table, column: str) -> list[str]:
    values = table.column(column)
    labels = []
    for row, value in enumerate(values):
        # A column of integers that once had a gap holds floats.
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        missing = value is None or value != value or isinstance(value, list | dict)
        label = "" if missing else str(value).strip()
        if not label:
            raise ValueError(
                f"{table.where(row, column)}: expected a label, got {shown(value)}"
            )
        if not is_label(label):
            raise ValueError(
                f"{table.where(row, column)}: expected a label of one line and at most "
                f"{_LONGEST_LABEL} characters, got {shown(label)}"
            )
        labels.append(label)
    return labels


@dataclasses.dataclass(frozen=True)
class _Official:
    folder: str
    texts: tuple[str, ...]
    label: str
    values: tuple[str, ...] | None
    """What stands for the classes, in the order of the task's label_names."""
    names: list[str] | None = None
    """The columns of train and dev, where they have no header."""


_PAIR = ("sentence1", "sentence2")
_ENTAILMENT = ("entailment", "not_entailment")
_MNLI = ("entailment", "neutral", "contradiction")
_BINARY = ("0", "1")
_GENRES = ("matched", "mismatched")
_OFFICIAL = {
    "cola": _Official(
        "CoLA", ("sentence",), "label", _BINARY, ["source", "label", "mark", "sentence"]
    ),
    "sst2": _Official("SST-2", ("sentence",), "label", _BINARY),
    "mrpc": _Official("MRPC", ("#1 String", "#2 String"), "Quality", _BINARY),
    "stsb": _Official("STS-B", _PAIR, "score", None),
    "qqp": _Official("QQP", ("question1", "question2"), "is_duplicate", _BINARY),
    "mnli": _Official("MNLI", _PAIR, "gold_label", _MNLI),
    "qnli": _Official("QNLI", ("question", "sentence"), "label", _ENTAILMENT),
    "rte": _Official("RTE", _PAIR, "label", _ENTAILMENT),
    "wnli": _Official("WNLI", _PAIR, "label", _BINARY),
}


def _splits(task: Task) -> tuple[str, ...]:
    if task.name != "mnli":
        return "train", "validation", "test"
    parts = ("validation", "test")
    return "train", *(f"{p}_{genre}" for p in parts for genre in _GENRES)


def _task_folder(name: str, data_dir: Path) -> Path:
    wanted = {name, _OFFICIAL[name].folder.lower()}
    entries = sorted(data_dir.iterdir()) if data_dir.is_dir() else []
    for entry in entries:
        if entry.name.lower() in wanted and entry.is_dir():
            return entry
    if any(entry.suffix == ".tsv" for entry in entries):
        return data_dir
    raise FileNotFoundError(
        f"no folder {_OFFICIAL[name].folder} or {name} with the official TSV files of "
        f"task {name}; {contents(data_dir)}"
    )


def _read_hub(task: Task, split: str) -> Table:
    import datasets
    import huggingface_hub

    commit = None
    try:
        if not huggingface_hub.is_offline_mode():
            # Asked first, and once: load_dataset tries six times, for half a minute.
            commit = huggingface_hub.HfApi().dataset_info(_HUB, timeout=10).sha
        # Never trust_remote_code: the data are parquet files, and no script is run.
        dataset = datasets.load_dataset(_HUB, task.name, revision=commit)[split]
    except Exception as error:  # its HTTP library differs from version to version
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise OSError(
            f"cannot get task {task.name} from the hub ({reason}); without a network "
            f"give --data-dir with the official TSV files, or set HF_HUB_OFFLINE=1 if "
            f"{_HUB} is in the cache, or train on own data with --train-file"
        ) from None
    names = getattr(dataset.features.get("label"), "names", None)
    if names and tuple(names) != task.label_names:
        raise ValueError(
            f"{_HUB}, {task.name}: expected the classes {listed(task.label_names)} in "
            f"this order, got {listed(names)}"
        )

    def read(name):
        return list(dataset[name])

    # Offline the cache says of which commit it is, in the addresses of its files.
    sources = " ".join(dataset.info.download_checksums or ())
    cached = re.search(rf"{_HUB}@([0-9a-f]{{40}})/", sources)
    return Table(
        f"{_HUB}, {task.name}, {split}",
        dataset.column_names,
        read,
        range(1, len(dataset) + 1),
        "row",
        commit or (cached and cached[1]),
    )
