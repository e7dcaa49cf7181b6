"""Tables of tests: failed runs, standard deviations, and means."""

import dataclasses
from collections.abc import Iterator
from typing import Any

from cwgnc_train.analysis.labels import (
    NOTHING,
    format_number,
    format_p_values,
    format_rate,
    format_score,
    format_share,
)
from cwgnc_train.analysis.report_tables import CELL_COLUMNS, ReportTable, make_table
from cwgnc_train.analysis.score_statistics import MIN_RUNS

_SIGNIFICANT = 0.05
_TITLES = {
    "methods": "Methods compared",
    "thresholds": "Thresholds compared with the largest",
}
# Shown in the tables' own words.
_HIDDEN = ["a", "b", "kind", "a_task", "b_task"]


def comparison_tables(rows: list[dict[str, Any]]) -> Iterator[ReportTable]:
    """Makes the tables of all comparisons.

    Args:
      rows: The result of ``compare_cells``.

    Yields:
      For methods and for thresholds one table each on failed runs, standard deviations
      and means; and one table of what the comparisons could have shown.
    """
    for kind in _TITLES:
        of_kind = [row for row in rows if row["kind"] == kind]
        yield _failed_table(kind, of_kind)
        yield _std_table(kind, of_kind)
        yield _mean_table(kind, of_kind)
    yield _power_table(rows)


def _failed_table(kind, rows):
    def failed(side):
        return lambda row: f"{row[f'{side}_failed']} of {row[f'{side}_runs']}"

    columns = {
        "Failed A": failed("a"),
        "Failed B": failed("b"),
        "Fisher p": _p("fisher"),
        "At 5 %": _verdict(
            "runs",
            {"fisher": ("Fisher", _more_failed)},
            ("fails more", "fails less"),
        ),
    }
    return _table(kind, "failed", "failed runs", rows, columns)


def _std_table(kind, rows):
    columns = {
        "Runs": _both("scores"),
        "Std A": lambda row: format_score(row["a_std"]),
        "Std B": lambda row: format_score(row["b_std"]),
        "Std A ÷ B": lambda row: format_number(row["std_ratio"]),
        "Brown–Forsythe p": _p("brown_forsythe"),
        "Shared seeds": lambda row: str(row["pairs"]),
        "Pitman–Morgan p": _p("pitman_morgan"),
        "At 5 %": _verdict(
            "scores",
            {
                "brown_forsythe": ("Brown–Forsythe", _larger_std),
                "pitman_morgan": (
                    "Pitman–Morgan",
                    lambda row: row["spread_correlation"],
                ),
            },
            ("varies more", "varies less"),
        ),
    }
    return _table(kind, "std", "standard deviation", rows, columns)


def _mean_table(kind, rows):
    columns = {
        "Runs": _both("scores"),
        "Mean A − B": lambda row: format_score(row["mean_difference"]),
        "Hedges' g": lambda row: format_number(row["hedges_g"]),
        "Welch p": _p("welch"),
        "Rank-biserial": lambda row: format_number(row["rank_biserial"]),
        "Mann–Whitney p": _p("mann_whitney"),
        "Shared seeds": lambda row: str(row["pairs"]),
        "Matched-pairs rank-biserial": lambda row: format_number(
            row["matched_biserial"]
        ),
        "Wilcoxon p": _p("wilcoxon"),
        "At 5 %": _verdict(
            "scores",
            {
                "welch": ("Welch", lambda row: row["mean_difference"]),
                "mann_whitney": ("Mann–Whitney", lambda row: row["rank_biserial"]),
                "wilcoxon": ("Wilcoxon", lambda row: row["matched_biserial"]),
            },
            ("scores better", "scores worse"),
        ),
    }
    return _table(kind, "mean", "mean score", rows, columns)


def _power_table(rows):
    keys = ["a_method", "a_learning_rate", "a_max_norm", "a_clip", "a_runs"]
    keys += [f"b{key[1:]}" for key in keys]
    keys = ["task", "kind", *keys, "detectable_share", "detectable_difference"]
    table = make_table(
        "power",
        "What this many runs could have shown",
        rows,
        _PAIR
        | {
            "Runs": _both("runs"),
            "Failed runs of one, none of the other": lambda row: format_share(
                row["detectable_share"]
            ),
            "Difference of the means": lambda row: format_score(
                row["detectable_difference"]
            ),
        },
        "The differences that one test finds at 5 % in 80 % of such studies, before "
        "the correction; after it they are larger. Failed runs: the share that "
        "Fisher's test tells from none. Means: what Welch's test finds if standard "
        "deviations are as they were seen. A smaller difference may well exist where "
        f"“no difference shown” stands. {NOTHING}: this many runs can show none.",
    )
    data = table.data.reindex(columns=keys)
    return dataclasses.replace(table, data=data)


def _table(kind, name, title, rows, columns):
    table = make_table(
        f"tests_{kind}_{name}",
        f"{_TITLES[kind]}: {title}",
        rows,
        _PAIR | columns,
    )
    # Every file has all numbers of its pairs: they belong together.
    return dataclasses.replace(
        table, data=table.data.drop(columns=_HIDDEN, errors="ignore")
    )


def _rate(row):
    return "chosen" if row["chosen"] else format_rate(row["a_learning_rate"])


_PAIR = {
    "Task": CELL_COLUMNS["Task"],
    "Learning rate": _rate,
    "A": lambda row: row["a"],
    "B": lambda row: row["b"],
}


def _both(name):
    return lambda row: f"{row[f'a_{name}']}, {row[f'b_{name}']}"


def _p(test):
    return lambda row: format_p_values(row[test], row[f"{test}_holm"])


def _more_failed(row):
    return row["a_failed"] / row["a_runs"] - row["b_failed"] / row["b_runs"]


def _larger_std(row):
    return row["a_std"] - row["b_std"]


def _verdict(counted, tests, words):
    """Says which corrected p-values are below 5 %, and which way each points.

    Args:
      counted: What there must be enough of: "runs" or "scores".
      tests: The name of each test, and the effect of A over B from a row.
      words: What A does if the effect is positive, and if not.

    Returns:
      A function from a row to text.
    """

    def verdict(row):
        if min(row[f"a_{counted}"], row[f"b_{counted}"]) < MIN_RUNS:
            return f"too few runs, {MIN_RUNS} needed"
        found: dict[str, list[str]] = {}
        for test, (name, effect) in tests.items():
            if row[f"{test}_holm"] < _SIGNIFICANT:
                found.setdefault(words[int(effect(row) <= 0)], []).append(name)
        claims = [f"{word} ({', '.join(names)})" for word, names in found.items()]
        return f"A {', '.join(claims)}" if claims else "no difference shown"

    return verdict
