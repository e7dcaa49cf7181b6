"""Tables of tests: do methods, or thresholds, differ?"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Hashable

import pandas as pd

from cwgnc_train.analysis.cells import Cell, cells_of, of_cell, threshold_groups
from cwgnc_train.analysis.labels import (
    format_number,
    format_p_values,
    format_score,
    method_label,
)
from cwgnc_train.analysis.report_tables import CELL_COLUMNS, ReportTable, make_table
from cwgnc_train.analysis.score_statistics import MIN_RUNS, compare, holm
from cwgnc_train.analysis.study_records import StudyRecords

_SIGNIFICANT = 0.05
_TESTS = ("brown_forsythe", "welch", "mann_whitney")
_RESULTS = (*_TESTS, "std_ratio", "mean_difference", "hedges_g", "rank_biserial")
_NOTE = (
    "Each p-value is followed by its Holm-corrected value. The last column uses the "
    "corrected p-values of the Brown–Forsythe test and of Welch's test. One family of "
    "Holm's correction: "
)


def method_tests(study: StudyRecords, cells: pd.DataFrame) -> ReportTable:
    """Makes the table that compares the chosen cells of each pair of methods."""
    pairs = [
        (later, earlier)
        for _, group in cells.loc[cells["chosen"]].groupby("task", sort=False)
        for later, earlier in itertools.combinations(cells_of(group)[::-1], 2)
    ]
    rows = _compared(
        study,
        pairs,
        label=lambda cell: method_label(cell.method),
        family=lambda cell: cell.task,
    )
    return _test_table(
        "tests_methods", "Methods compared", rows, f"{_NOTE}the pairs of one task."
    )


def threshold_tests(study: StudyRecords, cells: pd.DataFrame) -> ReportTable:
    """Makes the table that compares each threshold with its method's largest one."""
    pairs = [
        (cell, group[-1]) for group in threshold_groups(cells) for cell in group[:-1]
    ]
    rows = _compared(
        study,
        pairs,
        label=lambda cell: f"{method_label(cell.method)}, {cell.threshold}",
        family=lambda cell: (cell.task, cell.method, cell.learning_rate),
    )
    return _test_table(
        "tests_thresholds",
        "Thresholds compared with the largest",
        rows,
        f"{_NOTE}the thresholds of one task, method and learning rate.",
    )


def _compared(
    study: StudyRecords,
    pairs: list[tuple[Cell, Cell]],
    label: Callable[[Cell], str],
    family: Callable[[Cell], Hashable],
) -> list[dict]:
    """Compares the scores of pairs of cells; corrects p-values family by family."""

    def scores(cell):
        return of_cell(study.runs, cell)["score"].dropna().to_list()

    rows = []
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
    return rows


def _test_table(name, title, rows, note):
    def p(test):
        return lambda row: format_p_values(row[test], row[f"{test}_holm"])

    table = make_table(
        name,
        title,
        rows,
        {
            "Task": CELL_COLUMNS["Task"],
            "A": lambda row: row["a"],
            "B": lambda row: row["b"],
            "Runs": lambda row: f"{row['a_runs']}, {row['b_runs']}",
            "Std A ÷ B": lambda row: format_number(row["std_ratio"]),
            "Brown–Forsythe p": p("brown_forsythe"),
            "Mean A − B": lambda row: format_score(row["mean_difference"]),
            "Welch p": p("welch"),
            "Hedges' g": lambda row: format_number(row["hedges_g"]),
            "Mann–Whitney p": p("mann_whitney"),
            "Rank-biserial": lambda row: format_number(row["rank_biserial"]),
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
        # The ratio is NaN if all scores of B are the same.
        claims.append(f"{'smaller' if row['std_ratio'] < 1 else 'larger'} deviation")
    if row["welch_holm"] < _SIGNIFICANT:
        claims.append(f"{'better' if row['mean_difference'] > 0 else 'worse'} mean")
    return f"A: {', '.join(claims)}" if claims else "no difference shown"
