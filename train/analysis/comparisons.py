"""The tables of the tests: do methods, or thresholds, differ?"""

import dataclasses
import itertools
import math

import pandas as pd

from train.analysis.cells import cells_of, of_cell, threshold_groups
from train.analysis.labels import (
    hundredfold,
    method_label,
    number,
    p_value,
    threshold,
)
from train.analysis.statistics import MIN_RUNS, compare, holm
from train.analysis.study import Study
from train.analysis.tables import CELL_COLUMNS, Table, make_table

_SIGNIFICANT = 0.05
_TESTS = ("brown_forsythe", "welch", "mann_whitney")
_RESULTS = (*_TESTS, "std_ratio", "mean_difference", "hedges_g", "rank_biserial")
_TEST_NOTE = (
    "Behind each arrow the p-value after Holm's correction; the last column goes by "
    "those of Brown and Forsythe's and of Welch's test."
)


def method_tests(study: Study, cells: pd.DataFrame) -> Table:
    """Makes the table that compares the chosen cells of each pair of methods."""
    pairs = [
        (later, earlier)
        for _, group in cells[cells["chosen"]].groupby("task", sort=False)
        for later, earlier in itertools.combinations(cells_of(group)[::-1], 2)
    ]
    label = lambda cell: method_label(cell.method)
    return _tests(
        "tests_methods",
        "Methods compared",
        f"{_TEST_NOTE} Holm's family: the pairs of one task.",
        *(study, pairs, label, lambda a: a.task),
    )


def threshold_tests(study: Study, cells: pd.DataFrame) -> Table:
    """Makes the table that compares each threshold with the largest of its method."""
    pairs = [
        (cell, group[-1]) for group in threshold_groups(cells) for cell in group[:-1]
    ]
    label = lambda cell: f"{method_label(cell.method)}, {threshold(cell.max_norm)}"
    return _tests(
        "tests_thresholds",
        "Thresholds compared with the largest",
        f"{_TEST_NOTE} Holm's family: the thresholds of one task, method "
        "and learning rate.",
        *(study, pairs, label, lambda cell: cell[:3]),
    )


def _tests(name, title, note, study, pairs, label, family):
    rows, scores = [], lambda cell: of_cell(study.runs, cell)["score"].dropna()
    for a, b in pairs:
        x, y = scores(a), scores(b)
        result = compare(x, y)
        rows.append(
            {
                "task": a.task,
                **{f"a_{key}": value for key, value in a._asdict().items()},
                **{f"b_{key}": value for key, value in b._asdict().items()},
                "a": label(a),
                "b": label(b),
                "family": family(a),
                "a_runs": len(x),
                "b_runs": len(y),
                **{key: getattr(result, key, math.nan) for key in _RESULTS},
            }
        )
    for test in _TESTS:
        for _, group in itertools.groupby(rows, key=lambda row: row["family"]):
            group = list(group)
            corrected = holm([row[test] for row in group])
            for row, value in zip(group, corrected, strict=True):
                row[f"{test}_holm"] = value

    def p(test):
        return lambda row: p_value(row[test], row[f"{test}_holm"])

    table = make_table(
        name,
        title,
        rows,
        {
            "Task": CELL_COLUMNS["Task"],
            "A": lambda row: row["a"],
            "B": lambda row: row["b"],
            "Runs": lambda row: f"{row['a_runs']}, {row['b_runs']}",
            "Std A ÷ B": lambda row: number(row["std_ratio"]),
            "Brown–Forsythe p": p("brown_forsythe"),
            "Mean A − B": lambda row: hundredfold(row["mean_difference"]),
            "Welch p": p("welch"),
            "Hedges' g": lambda row: number(row["hedges_g"]),
            "Mann–Whitney p": p("mann_whitney"),
            "Rank-biserial": lambda row: number(row["rank_biserial"]),
            "At 5 %": _verdict,
        },
        note,
    )
    hidden = ["a", "b", "family", "a_task", "b_task"]
    return dataclasses.replace(
        table, data=table.data.drop(columns=hidden, errors="ignore")
    )


def _verdict(row):
    if min(row["a_runs"], row["b_runs"]) < MIN_RUNS:
        return f"too few runs, {MIN_RUNS} needed"
    claims = []
    if row["brown_forsythe_holm"] < _SIGNIFICANT:
        # The ratio is not a number if B does not spread at all.
        claims.append(f"{'smaller' if row['std_ratio'] < 1 else 'larger'} deviation")
    if row["welch_holm"] < _SIGNIFICANT:
        claims.append(f"{'better' if row['mean_difference'] > 0 else 'worse'} mean")
    return f"A: {', '.join(claims)}" if claims else "no difference shown"
