"""Tests for the scores of runs.

Callers leave out NaN scores.
"""

import contextlib
import math
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

MIN_RUNS = 3
"""Smaller samples are not compared."""
MIN_SPREAD_PAIRS = 10
"""The Pitman–Morgan test needs as many pairs: its p-value is an approximation."""


class Comparison(NamedTuple):
    """Two-sided tests and effect sizes for the spread and location of two samples."""

    std_ratio: float
    """Standard deviation of the first sample divided by that of the second."""
    brown_forsythe: float
    """p-value of the Brown–Forsythe test of equal variances."""
    mean_difference: float
    """Mean of the first sample minus that of the second."""
    welch: float
    """p-value of Welch's t-test of equal means."""
    hedges_g: float
    """Difference of the means in pooled standard deviations, corrected for small
    samples."""
    mann_whitney: float
    """p-value of the Mann–Whitney U test."""
    rank_biserial: float
    """Probability that a score of the first sample is the larger one, minus the
    probability that it is the smaller one; in [-1, 1]."""


class PairedComparison(NamedTuple):
    """Two-sided tests and an effect size for two samples that share their seeds."""

    pairs: int
    """The seeds that both samples have a score of."""
    wilcoxon: float
    """p-value of Wilcoxon's signed-rank test of differences around 0."""
    matched_biserial: float
    """Share of the ranks of the differences that are positive, minus the share that is
    negative; in [-1, 1]."""
    pitman_morgan: float
    """p-value of the Pitman–Morgan test of equal variances, on ranks."""
    spread_correlation: float
    """Rank correlation between sum and difference of a pair; positive if the first
    sample varies more."""


def compare_failures(first: tuple[int, int], second: tuple[int, int]) -> float:
    """Computes the p-value of Fisher's exact test of equal shares of failed runs.

    Given how many runs failed in all, it is the probability of all splits over the two
    samples that are at most as likely as the one observed.

    Args:
      first: The numbers of failed and of all runs of one cell.
      second: The same of another cell.

    Returns:
      The two-sided p-value; NaN if no run of either failed, or all did.
    """
    table = [(failed, runs - failed) for failed, runs in (first, second)]
    # Scipy calls it 1, but such a pair tests nothing and must not count as a test.
    if not all(map(sum, zip(*table, strict=True))):
        return math.nan
    return _p(stats.fisher_exact(table))


def compare(first: Sequence[float], second: Sequence[float]) -> Comparison | None:
    """Compares two samples.

    Args:
      first: The scores of one cell's runs.
      second: The scores of another cell's runs.

    Returns:
      The tests and effect sizes, NaN where one is undefined because the scores do not
      vary. None if a sample has fewer than ``MIN_RUNS`` scores.
    """
    a, b = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if min(a.size, b.size) < MIN_RUNS:
        return None
    degrees = a.size + b.size - 2
    with _quiet():
        pooled = math.sqrt((a.size * a.var() + b.size * b.var()) / degrees)
        spread = bool(max(np.ptp(a), np.ptp(b)) > 0)
        u, p_u = stats.mannwhitneyu(a, b, alternative="two-sided")
        difference = float(a.mean() - b.mean())
        return Comparison(
            std_ratio=float(a.std() / b.std()) if np.ptp(b) else math.nan,
            brown_forsythe=_p(stats.levene(a, b, center="median"), spread),
            mean_difference=difference,
            welch=_p(stats.ttest_ind(a, b, equal_var=False), spread),
            hedges_g=(1 - 3 / (4 * degrees - 1)) * difference / pooled
            if spread
            else math.nan,
            mann_whitney=float(p_u),
            rank_biserial=float(2 * u / (a.size * b.size) - 1),
        )


def compare_pairs(first: Sequence[float], second: Sequence[float]) -> PairedComparison:
    """Compares two samples whose scores belong together one by one.

    Since cov(X + Y, X - Y) = var X - var Y, two variances are equal if sum and
    difference are uncorrelated, which the Pitman–Morgan test asks. It takes Spearman's
    correlation here: with Pearson's it finds a difference where there is none in up to
    35 % of studies with failed runs (``benchmarks/interval_coverage.py``).

    Args:
      first: The scores of one cell's runs.
      second: The scores of another cell's runs with the same seeds.

    Returns:
      The tests; NaN for fewer than ``MIN_RUNS`` pairs (``MIN_SPREAD_PAIRS`` for the
      Pitman–Morgan test), or where scores do not vary.

    References:
      McCulloch, Tests for equality of variances with paired data, Communications in
      Statistics 16, 1987.
    """
    a, b = np.asarray(first, np.float64), np.asarray(second, np.float64)
    # Rounding makes ties of differences that differ only in their last bits.
    sums, differences = np.round(a + b, 12), np.round(a - b, 12)
    wilcoxon = biserial = pitman_morgan = correlation = math.nan
    with _quiet():
        if a.size >= MIN_RUNS and differences.any():
            wilcoxon = _p(stats.wilcoxon(differences))
            ranks = stats.rankdata(np.abs(differences[differences != 0]))
            signs = np.sign(differences[differences != 0])
            biserial = float(ranks @ signs / ranks.sum())
        if a.size >= MIN_SPREAD_PAIRS and np.ptp(sums) and np.ptp(differences):
            result: Any = stats.spearmanr(sums, differences)
            pitman_morgan, correlation = _p(result), float(result.statistic)
    return PairedComparison(a.size, wilcoxon, biserial, pitman_morgan, correlation)


def holm(p_values: Sequence[float]) -> list[float]:
    """Corrects the p-values of one family by Holm's method.

    The i-th smallest of m p-values is multiplied by m - i + 1, capped at 1, and raised
    to the corrected value before it if that is larger. NaNs stay NaN and do not count.

    Args:
      p_values: The family.

    Returns:
      The corrected p-values, in the same order.

    Examples:
      >>> [round(p, 3) for p in holm([0.01, 0.04, 0.03])]
      [0.03, 0.06, 0.06]
    """
    raw = np.asarray(p_values, np.float64)
    corrected = np.full(raw.shape, math.nan)
    order = np.argsort(raw)[: np.count_nonzero(~np.isnan(raw))]
    factors = np.arange(len(order), 0, -1)
    corrected[order] = np.maximum.accumulate(np.minimum(1, factors * raw[order]))
    return corrected.tolist()


def _p(result, spread=True):
    return float(result.pvalue) if spread else math.nan


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    # scipy warns about samples that do not vary, which the callers handle.
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        yield
