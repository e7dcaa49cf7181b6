"""Tests between pairs of cells: do methods, or thresholds, differ?"""

import itertools
import math
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from cwgnc_train.analysis.cells import (
    PAPER_MAX_NORM,
    Cell,
    cells_of,
    of_cell,
    threshold_groups,
)
from cwgnc_train.analysis.labels import method_label
from cwgnc_train.analysis.power import detectable_difference, detectable_share
from cwgnc_train.analysis.score_statistics import (
    MIN_RUNS,
    Comparison,
    compare,
    compare_failures,
    compare_pairs,
    holm,
)
from cwgnc_train.analysis.study_records import StudyRecords

TESTS = (
    "fisher",
    "brown_forsythe",
    "pitman_morgan",
    "welch",
    "mann_whitney",
    "wilcoxon",
)
"""The fields of a row that are p-values; each has a corrected one, such as
``welch_holm``."""


class Pair(NamedTuple):
    """Two cells that are compared."""

    kind: str
    """Either "methods" or "thresholds"."""
    chosen: bool
    """Whether both are the chosen cells of their methods."""
    a: Cell
    b: Cell


def compare_cells(study: StudyRecords, cells: pd.DataFrame) -> list[dict[str, Any]]:
    """Makes all comparisons of a report.

    The chosen cells of each pair of methods are compared. Where one of the two has no
    chosen cell, they are compared at each learning rate that both have: at the
    thresholds that both have, or if one of them has a single threshold, there with the
    other's at the paper's. Each threshold of a method is compared with its largest one.

    All tests together are one family of Holm's correction:
    the chance that a report claims any difference where there is none is at most 5 %.

    Args:
      study: The records.
      cells: The result of ``choose_cells``.

    Returns:
      For each pair its cells, numbers of runs, failed shares, effect sizes, p-values
      and what it could have shown. Those of a cell with fewer than ``MIN_RUNS`` scores
      are NaN.
    """
    rows = [_compared(study, pair) for pair in _pairs(cells)]
    keys = [(row, test) for row in rows for test in TESTS]
    corrected = holm([row[test] for row, test in keys])
    for (row, test), value in zip(keys, corrected, strict=True):
        row[f"{test}_holm"] = value
    return rows


def count_tests(rows: list[dict[str, Any]]) -> int:
    """Counts the tests that were made, which are one family of Holm's correction."""
    return sum(not math.isnan(row[test]) for row in rows for test in TESTS)


def _pairs(cells):
    for _, group in cells.groupby("task", sort=False):
        methods = list(dict.fromkeys(group["method"]))[::-1]
        for later, earlier in itertools.combinations(methods, 2):
            yield from _method_pairs(
                *(group[group["method"] == m] for m in (later, earlier))
            )
    for group in threshold_groups(cells):
        for cell in group[:-1]:
            yield Pair("thresholds", False, cell, group[-1])


def _method_pairs(a, b):
    """Pairs the chosen cells of two methods, or else those at each learning rate."""
    if a["chosen"].any() and b["chosen"].any():
        yield Pair("methods", True, *(cells_of(x[x["chosen"]])[0] for x in (a, b)))
        return
    for rate in sorted(set(a["learning_rate"]) & set(b["learning_rate"])):
        at_rate = [cells_of(x[x["learning_rate"] == rate]) for x in (a, b)]
        for pair in _same_setting(*at_rate):
            yield Pair("methods", False, *pair)


def _same_setting(a, b):
    """Pairs the cells of two methods at one learning rate."""
    same = [(x, y) for x in a for y in b if x[3:] == y[3:]]
    if min(len(a), len(b)) > 1:
        return same
    # A method with one threshold has its own, such as the global clip's; the other's
    # is the one that was fixed before any run.
    planned = [
        [x for x in cells if len(cells) == 1 or x.max_norm == PAPER_MAX_NORM]
        for cells in (a, b)
    ]
    return list(itertools.product(*planned)) or same


def _compared(study, pair):
    a, b = (of_cell(study.runs, cell) for cell in (pair.a, pair.b))
    x, y = (runs["score"].dropna().to_list() for runs in (a, b))
    result = compare(x, y)
    failed = [(int(np.count_nonzero(runs["failed"])), len(runs)) for runs in (a, b)]
    enough = min(len(a), len(b)) >= MIN_RUNS
    sides = {}
    for name, cell, runs, scores, (count, _) in zip(
        "ab", (pair.a, pair.b), (a, b), (x, y), failed, strict=True
    ):
        label = method_label(cell.method)
        if not pair.chosen:
            label += f", {cell.threshold}"
        sides |= {f"{name}_{key}": value for key, value in cell._asdict().items()}
        sides |= {name: label, f"{name}_runs": len(runs), f"{name}_failed": count}
        sides |= {
            f"{name}_scores": len(scores),
            f"{name}_std": runs["score"].std(ddof=0),
        }
    return {
        "task": pair.a.task,
        "kind": pair.kind,
        "chosen": pair.chosen,
        **sides,
        "fisher": compare_failures(*failed) if enough else math.nan,
        **{name: getattr(result, name, math.nan) for name in Comparison._fields},
        **_detectable(len(a), len(b), x, y),
        **compare_pairs(*_by_seed(a, b))._asdict(),
    }


def _detectable(a_runs, b_runs, x, y):
    shares = detectable_share(a_runs, b_runs), detectable_share(b_runs, a_runs)
    return {
        # Of the two ways around the harder one, or none if one is impossible.
        "detectable_share": max(shares)
        if not any(map(math.isnan, shares))
        else math.nan,
        "detectable_difference": detectable_difference(x, y),
    }


def _by_seed(a, b):
    """Returns the scores of the seeds that both cells have, in the same order."""
    seeds = ["seed", "data_seed"]
    columns = [*seeds, "score"]
    # A seed that a cell has twice belongs to no single run of the other.
    once = [
        runs.loc[~runs.duplicated(seeds, keep=False), columns].dropna()
        for runs in (a, b)
    ]
    pairs = once[0].merge(once[1], on=seeds, suffixes=("_a", "_b"))
    return pairs["score_a"].to_list(), pairs["score_b"].to_list()
