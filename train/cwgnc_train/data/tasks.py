"""What is predicted and how it is scored: the nine GLUE tasks and own data.

All scores lie in their natural range (accuracy in [0, 1]), never times 100.
"""

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Num

from cwgnc_train.config import UserError, suggest

_Names = tuple[str, ...]
_PerExample = Num[np.ndarray, " examples"]


@dataclasses.dataclass(frozen=True)
class OfficialFiles:
    """How the official TSV files of a GLUE task are laid out."""

    label_column: str = "label"
    named_classes: bool = False  # Whether a label is its class's name, not its index.
    text_columns: _Names = ()  # If their names are not those of the task.
    column_names: _Names = ()  # All of train and dev, if without a header.


@dataclasses.dataclass(frozen=True)
class Task:
    """A text, or a pair of texts, and the class or number predicted from it."""

    name: str
    text_columns: _Names
    label_names: _Names | None  # In the order of their indices; None for a number.
    metrics: _Names  # The names of the scores, the main one first.
    files: OfficialFiles = OfficialFiles()  # Without a meaning for own data.

    @property
    def metric(self) -> str:
        """The score that a run is judged by."""
        return self.metrics[0]

    @property
    def regression(self) -> bool:
        """Whether a number is predicted, not a class."""
        return self.label_names is None

    @property
    def num_labels(self) -> int:
        """How many outputs the classifier on top of the encoder has."""
        return 1 if self.label_names is None else len(self.label_names)

    @property
    def splits(self) -> _Names:
        """The names of a GLUE task's splits."""
        if self.name != "mnli":
            return "train", "validation", "test"
        genres = "matched", "mismatched"
        return "train", *(f"{s}_{g}" for s in ("validation", "test") for g in genres)


_TEXT, _PAIR = ("sentence",), ("sentence1", "sentence2")
_QUESTIONS, _INFERENCE = ("question1", "question2"), ("premise", "hypothesis")
_ENTAILMENT = ("entailment", "not_entailment")
_THREE = ("entailment", "neutral", "contradiction")
_ACCURACY, _F1 = ("accuracy",), ("f1", "accuracy")
_MATTHEWS, _CORRELATIONS = ("matthews_correlation",), ("pearson", "spearmanr")
_NAMED = OfficialFiles(named_classes=True)
_COLA = OfficialFiles(column_names=("source", "label", "mark", "sentence"))
_MRPC = OfficialFiles("Quality", text_columns=("#1 String", "#2 String"))
_STSB, _QQP = OfficialFiles("score"), OfficialFiles("is_duplicate")
_MNLI = OfficialFiles("gold_label", named_classes=True, text_columns=_PAIR)

# Columns, classes and their order are those of nyu-mll/glue on the hub, so output 0 of
# a model fine-tuned here means what it means in any other.
_TASKS = (
    Task("cola", _TEXT, ("unacceptable", "acceptable"), _MATTHEWS, _COLA),
    Task("sst2", _TEXT, ("negative", "positive"), _ACCURACY),
    Task("mrpc", _PAIR, ("not_equivalent", "equivalent"), _F1, _MRPC),
    Task("stsb", _PAIR, None, _CORRELATIONS, _STSB),
    Task("qqp", _QUESTIONS, ("not_duplicate", "duplicate"), _F1, _QQP),
    Task("mnli", _INFERENCE, _THREE, _ACCURACY, _MNLI),
    Task("qnli", ("question", "sentence"), _ENTAILMENT, _ACCURACY, _NAMED),
    Task("rte", _PAIR, _ENTAILMENT, _ACCURACY, _NAMED),
    Task("wnli", _PAIR, _ENTAILMENT[::-1], _ACCURACY),
)
GLUE = {task.name: task for task in _TASKS}


def find_task(name: str) -> Task:
    """Returns the GLUE task of this name; another name is a UserError."""
    if name in GLUE:
        return GLUE[name]
    raise UserError(
        f"unknown task {name!r}{suggest(name, GLUE) or ':'} "
        f"the tasks are {' '.join(GLUE)}; for own data give --train-file instead"
    )


def own_task(text_columns: _Names, label_names: _Names | None) -> Task:
    """Returns the task of own data, named "own".

    Two classes are scored by accuracy and the F1 of the second class, more classes by
    accuracy and their mean F1, numbers by correlations and the mean squared error.
    """
    if label_names is None:
        metrics = ("pearson", "spearmanr", "mse")
    else:
        metrics = ("accuracy", "f1" if len(label_names) == 2 else "macro_f1")
    return Task("own", text_columns, label_names, metrics)


def score(
    task: Task, predictions: _PerExample, labels: _PerExample
) -> dict[str, float]:
    """Scores predictions, class indices or numbers, by each metric of the task.

    Predictions without information score 0 where the formula divides by zero: Matthews
    correlation and F1 of a single class, correlations of a constant or of non-finite
    numbers (of a run that diverged).

    Raises:
      ValueError: If predictions and labels differ in length, or there are none.
    """
    predictions, labels = np.asarray(predictions), np.asarray(labels)
    if predictions.shape != labels.shape or labels.ndim != 1 or not labels.size:
        raise ValueError(
            f"predictions and labels must be vectors of one length, at least 1; got "
            f"shapes {predictions.shape} and {labels.shape}"
        )
    return {name: float(_metric(name, predictions, labels)) for name in task.metrics}


def majority_line(task: Task, labels: _PerExample) -> dict[str, float]:
    """Scores the classifier that always answers the most frequent of these labels.

    A run whose final score is not above this line has failed. For numbers the answer
    is their mean, whose correlation is 0.
    """
    if task.regression:
        answer = labels.astype(np.float64).mean()
    else:
        answer = np.bincount(labels).argmax()
    return score(task, np.full(labels.shape, answer), labels)


def has_failed(score: float, line: float) -> bool:
    """Says whether a run's final score is NaN or not above the majority line."""
    return not score > line


def collapsed(predictions: _PerExample) -> bool:
    """Says whether all predictions are the same, whatever the text."""
    return np.unique(predictions).size <= 1


def _metric(name, predictions, labels):
    # scikit-learn and scipy take a second to import and only some metrics need them.
    if name == "accuracy":
        return np.mean(predictions == labels)
    if name == "mse":
        return np.mean((predictions.astype(np.float64) - labels) ** 2)
    if name in ("f1", "macro_f1"):
        from sklearn.metrics import f1_score

        # scikit-learn's default "warn" makes type checkers expect a str.
        zero: Any = 0.0
        average = "binary" if name == "f1" else "macro"
        return f1_score(labels, predictions, average=average, zero_division=zero)
    # The others divide by zero here, and their libraries warn.
    finite = np.isfinite(predictions).all()
    if not finite or collapsed(predictions) or collapsed(labels):
        return 0.0
    if name == "matthews_correlation":
        from sklearn.metrics import matthews_corrcoef

        return matthews_corrcoef(labels, predictions)
    from scipy import stats

    correlation = {"pearson": stats.pearsonr, "spearmanr": stats.spearmanr}[name]
    # In float32 the mean of nearly equal numbers has an error as large as their spread.
    x, y = predictions.astype(np.float64), labels.astype(np.float64)
    return correlation(x, y).statistic
