"""Tables 1 and 2: the scores of the runs, next to the paper's."""

import dataclasses
import itertools
import math

import pandas as pd

from cwgnc_train.analysis.cells import (
    PAPER_MAX_NORM,
    cells_of,
    of_cell,
    threshold_groups,
)
from cwgnc_train.analysis.labels import (
    NOTHING,
    format_mean_std,
    format_score,
    method_label,
    method_rank,
    task_label,
)
from cwgnc_train.analysis.report_tables import CELL_COLUMNS, ReportTable, make_table
from cwgnc_train.analysis.score_intervals import (
    MEAN_RUNS,
    STD_RUNS,
    mean_interval,
    share_interval,
    std_interval,
)
from cwgnc_train.analysis.study_records import StudyRecords

# Table 1 of the paper, in percent: standard deviation, mean, maximum.
PAPER = {
    "rte": {
        "devlin": (4.5, 50.9, 67.5),
        "bias_correction": (4.0, 70.6, 75.5),
        "mixout": (7.9, 65.3, 74.4),
        "mosbach": (2.7, 67.3, 71.1),
        "cwgnc": (1.3, 73.1, 75.1),
    },
    "mrpc": {
        "devlin": (3.9, 84.0, 91.2),
        "bias_correction": (2.1, 89.2, 92.2),
        "mixout": (3.8, 87.8, 91.8),
        "mosbach": (0.8, 90.3, 91.7),
        "cwgnc": (0.6, 90.5, 91.5),
    },
    "cola": {
        "devlin": (25.6, 45.6, 64.6),
        "bias_correction": (11.1, 59.2, 64.1),
        "mixout": (20.9, 51.9, 64.0),
        "mosbach": (1.8, 62.1, 65.3),
        "cwgnc": (1.7, 62.2, 65.0),
    },
}
# The paper states the epochs of two only, and did not run two others.
_PAPER_REMARKS = {
    "cwgnc": ", 5 epochs",
    "mosbach": ", 20 epochs",
    "devlin": ", quoted from Mosbach et al.",
    "mixout": ", quoted from Mosbach et al.",
}


def score_table(study: StudyRecords, cells: pd.DataFrame) -> ReportTable:
    """Makes Table 1: the scores of the chosen cells, next to the paper's.

    Args:
      study: The records.
      cells: The result of ``choose_cells``.

    Returns:
      The table. It has all cells of a method of which none was chosen.
    """
    rows = []
    for cell in cells_of(cells.loc[cells["chosen"] | cells["open"]]):
        rows.append(cell._asdict() | _summary(of_cell(study.runs, cell)))
    # The paper's row follows the last row of its method.
    with_paper = []
    for row, after in itertools.zip_longest(rows, rows[1:]):
        with_paper.append(row)
        key = (row["task"], row["method"])
        paper = PAPER.get(key[0], {}).get(key[1])
        if paper and (after is None or (after["task"], after["method"]) != key):
            with_paper.append(_paper_row(*key, paper))

    def method(row):
        if row["source"] == "this study":
            return method_label(row["method"])
        return f"{method_label(row['method'])} [{row['source']}]"

    def spread(name):
        return lambda row: _with_interval(row, name)

    def times_100(name):
        return lambda row: format_score(row[name])

    table = make_table(
        "table1",
        "Table 1: final scores × 100",
        with_paper,
        {
            "Task": CELL_COLUMNS["Task"],
            "Method": method,
            "Learning rate": CELL_COLUMNS["Learning rate"],
            "Threshold": CELL_COLUMNS["Threshold"],
            "Runs": lambda row: str(row["runs"]),
            "Std": spread("std"),
            "Mean": spread("mean"),
            **{name: times_100(name.lower()) for name in ("Max", "Min", "Median")},
            "Failed": _failed,
        },
        "Standard deviation (ddof = 0), mean and share of failed runs, with 95 % "
        f"intervals over the runs: of the deviation from {STD_RUNS} runs on, of the "
        f"mean from {MEAN_RUNS}, since with fewer they would promise too much. The "
        "table Tasks names the split that is scored. Rows marked [paper: …] are "
        "what the paper reports, of another model and other runs. The table Protocol "
        "says whether a threshold applies to each component or to the whole gradient.",
        mark=lambda row: "" if row["source"] == "this study" else "paper",
    )
    # Keeps counts whole numbers, although the paper's rows have none.
    counts = dict.fromkeys(["not_a_number", "failed", "collapsed"], "Int64")
    return dataclasses.replace(table, data=table.data.astype(counts))


def threshold_table(study: StudyRecords, cells: pd.DataFrame) -> ReportTable:
    """Makes Table 2: one row per threshold and one column per task."""
    rows = [
        cell._asdict() | _summary(of_cell(study.runs, cell))
        for group in threshold_groups(cells)
        for cell in group
    ]
    columns = {
        name: CELL_COLUMNS[name] for name in ("Method", "Learning rate", "Threshold")
    }
    lines: dict[tuple, dict[str, str]] = {}

    def order(row):
        return method_rank(row["method"]), row["learning_rate"], row["max_norm"]

    for row in sorted(rows, key=order):
        key = tuple(show(row) for show in columns.values())
        score = format_mean_std(row["mean"], row["std"])
        if row["failed"]:
            score += f" ({row['failed']} of {row['runs']} failed)"
        lines.setdefault(key, {})[task_label(row["task"])] = score
    tasks = dict.fromkeys(task_label(row["task"]) for row in rows)
    shown = [
        dict(zip(columns, key, strict=True))
        | {task: scores.get(task, NOTHING) for task in tasks}
        for key, scores in lines.items()
    ]
    return ReportTable(
        "table2",
        "Table 2: final scores × 100 by threshold, mean ± std",
        pd.DataFrame(rows),
        pd.DataFrame(shown),
        "Where a learning rate was chosen, only that one is shown.",
    )


def _summary(runs):
    scores = runs["score"].dropna()
    statistics = {
        "source": "this study",
        "runs": len(runs),
        "not_a_number": int(runs["score"].isna().sum()),
    }
    # A single run would have a deviation of 0, as if all others came out the same.
    std = scores.std(ddof=0) if len(scores) > 1 else math.nan
    for name, value, interval in (
        ("std", std, std_interval),
        ("mean", scores.mean(), mean_interval),
    ):
        low, high = interval(scores)
        statistics |= {name: value, f"{name}_low": low, f"{name}_high": high}
    failed = int(runs["failed"].sum())
    low, high = share_interval(failed, len(runs))
    return statistics | {
        "max": scores.max(),
        "min": scores.min(),
        "median": scores.median(),
        "failed": failed,
        "failed_share": runs["failed"].mean(),
        "failed_low": low,
        "failed_high": high,
        "collapsed": int(runs["collapsed"].sum()),
    }


def _paper_row(task, method, numbers):
    std, mean, maximum = (value / 100 for value in numbers)
    return {
        "task": task,
        "method": method,
        "learning_rate": math.nan,
        # The paper states only the threshold of its own method.
        "max_norm": PAPER_MAX_NORM if method == "cwgnc" else math.nan,
        "clip": "fixed",
        **dict.fromkeys(_summary(_NO_RUNS), math.nan),
        "source": f"paper: BERT-large-uncased, 25 runs{_PAPER_REMARKS.get(method, '')}",
        "runs": 25,
        "std": std,
        "mean": mean,
        "max": maximum,
    }


_NO_RUNS = pd.DataFrame(columns=["score", "failed", "collapsed"], dtype=float)


def _failed(row):
    if math.isnan(row["failed"]):
        return NOTHING
    share, low, high = (
        f"{100 * row[f'failed_{key}']:.0f}" for key in ("share", "low", "high")
    )
    return f"{row['failed']} ({share} % [{low}, {high}])"


def _with_interval(row, name):
    value, low, high = (
        format_score(row[key]) for key in (name, f"{name}_low", f"{name}_high")
    )
    return value if low == NOTHING else f"{value} [{low}, {high}]"
