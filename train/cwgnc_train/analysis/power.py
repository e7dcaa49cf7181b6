"""What differences a study of this many runs could have shown.

The level is that of one test, before any correction.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import optimize, stats

from cwgnc_train.analysis.score_statistics import MIN_RUNS

ALPHA = 0.05
POWER = 0.8


def detectable_share(failing: int, other: int) -> float:
    """Computes which share of failed runs would be told from none.

    Say that no run of one cell fails. Fisher's exact test then finds a difference from
    some number k of failed runs of the other cell on. With which probability q of
    failing are there so many in 80 % of studies? It solves P(Binomial(n, q) ≥ k) = 0.8.

    Args:
      failing: The runs of the cell that fails.
      other: The runs of the cell that never does.

    Returns:
      The share; NaN if not even a cell that always fails would be told from it.
    """
    counts = range(1, failing + 1)
    least = next((k for k in counts if _fisher(k, failing, other) < ALPHA), None)
    if least is None:
        return math.nan
    # The binomial tail from k on is the distribution of a beta variable.
    return float(stats.beta.ppf(POWER, least, failing - least + 1))


def detectable_difference(first: Sequence[float], second: Sequence[float]) -> float:
    """Computes which difference of the means Welch's test would have found.

    With the variances s² that were seen, the error of the difference is
    e = √(s₁² / n₁ + s₂² / n₂) with Welch's degrees of freedom. For the difference δ the
    statistic has the noncentral t distribution of shift δ / e, which is to exceed the
    limit of the test with a probability of 80 %. Each sample has degrees of freedom of
    its own, so the probability is about 70 % with three runs each, and 78 % with five.

    Args:
      first: The scores of one cell's runs.
      second: The scores of another cell's runs.

    Returns:
      The difference; NaN for fewer than ``MIN_RUNS`` scores, or if none vary.
    """
    if min(len(first), len(second)) < MIN_RUNS:
        return math.nan
    parts = [np.var(scores, ddof=1) / len(scores) for scores in (first, second)]
    error = math.sqrt(sum(parts))
    if error < 1e-12:
        return math.nan
    squares = zip(parts, (first, second), strict=True)
    degrees = sum(parts) ** 2 / sum(
        part**2 / (len(scores) - 1) for part, scores in squares
    )
    limit = stats.t.ppf(1 - ALPHA / 2, degrees)

    # The other tail is left out: it has less than 0.1 % where this one has 80.
    most = limit * math.sqrt(stats.chi2.ppf(0.95, degrees) / degrees) + 3
    shift: Any = optimize.brentq(
        lambda shift: stats.nct.sf(limit, degrees, shift) - POWER, 0, most
    )
    return float(error * shift)


def _fisher(failed, runs, other):
    result: Any = stats.fisher_exact([[failed, runs - failed], [0, other]])
    return result.pvalue
