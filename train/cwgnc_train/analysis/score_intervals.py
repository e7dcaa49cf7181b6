"""Intervals for the scores of runs, and from how many runs on they hold.

``benchmarks/interval_coverage.py`` simulates how often each interval holds the truth.
An interval called 95 % that holds it in fewer than 90 % of studies is not shown, which
sets the smallest numbers of runs here.
"""

import math
from typing import Any

import numpy as np
from scipy import stats

LEVEL = 0.95
MEAN_RUNS = 12
"""Fewer runs show no interval of their mean."""
STD_RUNS = 20
"""Fewer runs show no interval of their standard deviation."""
WILSON_RUNS = 5
"""Fewer runs show the exact interval of the share of failed runs."""


def mean_interval(scores: Any) -> tuple[float, float]:
    """Computes Student's 95 % interval of the mean.

    Args:
      scores: The scores of the runs, without NaN.

    Returns:
      The ends of the interval; NaN for fewer than ``MEAN_RUNS`` scores, or if they do
      not vary.
    """
    return _shown(student, scores, MEAN_RUNS)


def std_interval(scores: Any) -> tuple[float, float]:
    """Computes Bonett's 95 % interval of the standard deviation.

    Args:
      scores: The scores of the runs, without NaN.

    Returns:
      The ends of the interval; NaN for fewer than ``STD_RUNS`` scores, or if they do
      not vary.
    """
    return _shown(bonett, scores, STD_RUNS)


def share_interval(failed: int, runs: int) -> tuple[float, float]:
    """Computes the 95 % interval of the share of runs that fail.

    Wilson's interval holds the shares q for which the observed share p is no further
    from q than 1.96 √(q (1 - q) / n). So it stays in [0, 1], and it has a length even
    if no run failed. Fewer than ``WILSON_RUNS`` runs get the exact interval of Clopper
    and Pearson.

    Args:
      failed: How many runs failed.
      runs: How many there are.

    Returns:
      The ends of the interval; NaN without runs.

    Examples:
      >>> [round(end, 3) for end in share_interval(0, 25)]
      [0.0, 0.133]
    """
    if not runs:
        return math.nan, math.nan
    method = "wilson" if runs >= WILSON_RUNS else "exact"
    low, high = stats.binomtest(failed, runs).proportion_ci(LEVEL, method)
    return float(low), float(high)


def student(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Computes Student's interval of the mean over the last axis: m ± t s / √n."""
    runs = scores.shape[-1]
    mean, error = scores.mean(-1), stats.sem(scores, axis=-1)
    half = stats.t.ppf((1 + LEVEL) / 2, runs - 1) * error
    return mean - half, mean + half


def bonett(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Computes Bonett's interval of the standard deviation over the last axis.

    With z = 1.96, c = n / (n - z), the variance s² (ddof 1), and the kurtosis
    g = n Σ (x - m)⁴ / (Σ (x - mean)²)², in which m is the mean without the share
    1 / (2 √(n - 4)) at either end, it is

      exp((log(c s²) ± z c √((g - (n - 3) / n) / (n - 1))) / 2).

    Unlike that of the χ² distribution it does not presume a normal distribution.

    Args:
      scores: At least five along the last axis.

    Returns:
      The ends of the intervals.

    References:
      Bonett, Approximate confidence interval for standard deviation of nonnormal
      distributions, Computational Statistics & Data Analysis 50, 2006.
    """
    runs = scores.shape[-1]
    z = stats.norm.ppf((1 + LEVEL) / 2)
    correction = runs / (runs - z)
    trimmed = stats.trim_mean(scores, 1 / (2 * math.sqrt(runs - 4)), axis=-1)
    variance = scores.var(-1, ddof=1)
    fourth = ((scores - trimmed[..., None]) ** 4).sum(-1)
    kurtosis = runs * fourth / ((runs - 1) * variance) ** 2
    excess = np.maximum(kurtosis - (runs - 3) / runs, 0)
    half = z * correction * np.sqrt(excess / (runs - 1))
    centre = np.log(correction * variance)
    return np.exp((centre - half) / 2), np.exp((centre + half) / 2)


def _shown(interval, scores, enough):
    sample = np.asarray(scores, np.float64)
    if sample.size < enough or not np.ptp(sample):
        return math.nan, math.nan
    low, high = interval(sample[None])
    return float(low[0]), float(high[0])
