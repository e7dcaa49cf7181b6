"""What is predicted and how it is scored: the nine GLUE tasks and own data.

All scores lie in their natural range (accuracy in [0, 1]), never times 100.
"""

import dataclasses
import difflib

import numpy as np


@dataclasses.dataclass(frozen=True)
class Task:
    """A text, or a pair of texts, and the class or number predicted from it."""

    name: str
    text_columns: tuple[str, ...]
    label_names: tuple[str, ...] | None
    """The classes in the order of their indices; None if a number is predicted."""
    metrics: tuple[str, ...]
    """Names of the scores, the main one first."""

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


_PAIR = ("sentence1", "sentence2")
_ENTAILMENT = ("entailment", "not_entailment")

# Columns, classes and their order as in the hub's nyu-mll/glue, so that a model
# fine-tuned here means the same by its output 0 as any other.
GLUE: dict[str, Task] = {
    task.name: task
    for task in (
        Task(
            "cola",
            ("sentence",),
            ("unacceptable", "acceptable"),
            ("matthews_correlation",),
        ),
        Task("sst2", ("sentence",), ("negative", "positive"), ("accuracy",)),
        Task("mrpc", _PAIR, ("not_equivalent", "equivalent"), ("f1", "accuracy")),
        Task("stsb", _PAIR, None, ("pearson", "spearmanr")),
        Task(
            "qqp",
            ("question1", "question2"),
            ("not_duplicate", "duplicate"),
            ("f1", "accuracy"),
        ),
        Task(
            "mnli",
            ("premise", "hypothesis"),
            ("entailment", "neutral", "contradiction"),
            ("accuracy",),
        ),
        Task("qnli", ("question", "sentence"), _ENTAILMENT, ("accuracy",)),
        Task("rte", _PAIR, _ENTAILMENT, ("accuracy",)),
        Task("wnli", _PAIR, ("not_entailment", "entailment"), ("accuracy",)),
    )
}


def find_task(name: str) -> Task:
    """Returns the GLUE task of this name.

    Args:
      name: One of the keys of ``GLUE``.

    Returns:
      The task.

    Raises:
      ValueError: If there is no such task; the nearest name is suggested.
    """
    if name in GLUE:
        return GLUE[name]
    near = difflib.get_close_matches(name.lower(), GLUE, n=1)
    raise ValueError(
        f"unknown task {name!r}{f', did you mean {near[0]!r}?' if near else ':'} "
        f"the tasks are {' '.join(GLUE)}; for own data give --train-file instead"
    )


def own_task(
    text_columns: tuple[str, ...], label_names: tuple[str, ...] | None
) -> Task:
    """Returns the task of own data.

    Two classes are scored by accuracy and the F1 of the second one, more by accuracy
    and the mean F1 of all classes, numbers by their correlations and squared error.

    Args:
      text_columns: The column of the text, or the two columns of a pair.
      label_names: The classes; None if a number is predicted.

    Returns:
      A task named "own".
    """
    if label_names is None:
        metrics = ("pearson", "spearmanr", "mse")
    else:
        metrics = ("accuracy", "f1" if len(label_names) == 2 else "macro_f1")
    return Task("own", text_columns, label_names, metrics)


def score(task: Task, predictions: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Scores predictions against the labels.

    Predictions without any information score 0 where the formula divides by zero: the
    Matthews correlation and the F1 of a single class, the correlation of a constant
    and that of non-finite numbers (a run that diverged).

    Args:
      task: Says which scores are wanted.
      predictions: Class indices or numbers, one an example (shape ``[n]``).
      labels: The truth, likewise.

    Returns:
      The task's metrics by name, the main one first.

    Raises:
      ValueError: If the two are not of one length, or are empty.
    """
    predictions, labels = np.asarray(predictions), np.asarray(labels)
    if predictions.shape != labels.shape or labels.ndim != 1 or not labels.size:
        raise ValueError(
            f"predictions and labels must be vectors of one length, at least 1; got "
            f"shapes {predictions.shape} and {labels.shape}"
        )
    return {name: float(_METRICS[name](predictions, labels)) for name in task.metrics}


def majority_line(task: Task, labels: np.ndarray) -> dict[str, float]:
    """Scores the classifier that always answers the most frequent of these labels.

    A run whose final score is not above this line has failed: it has learnt nothing
    from the texts. For numbers the answer is their mean, whose correlation is 0.

    Args:
      task: Says which scores are wanted.
      labels: The labels that the runs are scored on (shape ``[n]``).

    Returns:
      The task's metrics by name, the main one first.
    """
    labels = np.asarray(labels)
    if task.regression:
        answer = labels.astype(np.float64).mean()
    else:
        answer = np.bincount(labels).argmax()
    return score(task, np.full(labels.shape, answer), labels)


def has_failed(score: float, line: float) -> bool:
    """Says whether a run has failed: its score is not above the majority line.

    Args:
      score: The run's final score by the task's metric.
      line: The majority classifier's score by the same metric.

    Returns:
      True also for a score that is not a number.
    """
    return not score > line


def collapsed(predictions: np.ndarray) -> bool:
    """Says whether all predictions are the same, whatever the text.

    Args:
      predictions: Class indices or numbers (shape ``[n]``).

    Returns:
      True if there is at most one distinct prediction.
    """
    return np.unique(predictions).size <= 1


# scikit-learn and scipy take a second to import, and only evaluation needs them.


def _accuracy(predictions, labels):
    return np.mean(predictions == labels)


def _f1(predictions, labels):
    from sklearn.metrics import f1_score

    return f1_score(labels, predictions, zero_division=0.0)


def _macro_f1(predictions, labels):
    from sklearn.metrics import f1_score

    return f1_score(labels, predictions, average="macro", zero_division=0.0)


def _matthews(predictions, labels):
    from sklearn.metrics import matthews_corrcoef

    # scikit-learn warns about a single class, which a collapsed run predicts.
    if collapsed(predictions) or collapsed(labels):
        return 0.0
    return matthews_corrcoef(labels, predictions)


def _correlation(name):
    def correlation(predictions, labels):
        from scipy import stats

        if collapsed(predictions) or collapsed(labels):
            return 0.0
        if not np.isfinite(predictions).all():
            return 0.0
        # Float64, since the mean of float32 numbers that are nearly equal has an
        # error as large as their spread.
        x, y = predictions.astype(np.float64), labels.astype(np.float64)
        return getattr(stats, name)(x, y).statistic

    return correlation


def _mse(predictions, labels):
    return np.mean((predictions.astype(np.float64) - labels) ** 2)


_METRICS = {
    "accuracy": _accuracy,
    "f1": _f1,
    "macro_f1": _macro_f1,
    "matthews_correlation": _matthews,
    "pearson": _correlation("pearsonr"),
    "spearmanr": _correlation("spearmanr"),
    "mse": _mse,
}
