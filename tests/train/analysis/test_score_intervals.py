import math

import numpy as np
import pytest
from scipy import stats

from cwgnc_train.analysis.score_intervals import (
    MEAN_RUNS,
    STD_RUNS,
    WILSON_RUNS,
    bonett,
    mean_interval,
    share_interval,
    std_interval,
)

SCORES = np.random.default_rng(0).normal(0.7, 0.02, 60)


def test_the_interval_of_a_mean_is_scipys():
    sample = SCORES[:MEAN_RUNS]
    expected = stats.ttest_1samp(sample, 0).confidence_interval(0.95)
    assert mean_interval(sample) == pytest.approx(tuple(expected))


def test_the_interval_of_a_deviation_worked_by_hand():
    # 0 and 1 in turn: mean and trimmed mean 1 / 2, s² = 5 / 19, kurtosis 1.
    c = 20 / (20 - 1.959964)
    half = 1.959964 * c * math.sqrt((1 - 17 / 20) / 19)
    ends = [math.sqrt(c * 5 / 19 * math.exp(sign * half)) for sign in (-1, 1)]
    assert std_interval([0, 1] * 10) == pytest.approx(ends)


def test_the_kurtosis_is_about_the_trimmed_mean():
    # Of eight scores 1 / (2 √4) = a quarter goes at either end: 0 is left.
    low, high = bonett(np.array([[0, 0, 0, 0, 0, 0, 0, 1.0]]))
    c = 8 / (8 - 1.959964)
    kurtosis = 8 * 1 / (7 * 0.125) ** 2
    half = 1.959964 * c * math.sqrt((kurtosis - 5 / 8) / 7)
    assert math.log(high.item() / low.item()) == pytest.approx(half)


def test_too_few_runs_have_no_interval():
    for interval, enough in ((mean_interval, MEAN_RUNS), (std_interval, STD_RUNS)):
        assert all(map(math.isnan, interval(SCORES[: enough - 1])))
        assert all(map(math.isfinite, interval(SCORES[:enough])))
        assert all(map(math.isnan, interval([])))


def test_scores_that_do_not_vary_have_no_interval():
    assert all(map(math.isnan, mean_interval([0.5] * 30)))
    assert all(map(math.isnan, std_interval([0.5] * 30)))


@pytest.mark.parametrize(("failed", "runs"), [(0, 25), (2, 6), (13, 25), (50, 50)])
def test_the_interval_of_a_share_is_wilsons(failed, runs):
    # The roots of (p - q)² = z² q (1 - q) / n, by hand.
    z, p = stats.norm.ppf(0.975), failed / runs
    roots = np.roots([1 + z**2 / runs, -2 * p - z**2 / runs, p**2])
    assert share_interval(failed, runs) == pytest.approx(tuple(sorted(roots)))


def test_the_share_of_very_few_runs_has_the_exact_interval():
    # With all n failed: the share q at which that has a probability of 2.5 %.
    runs = WILSON_RUNS - 1
    assert share_interval(runs, runs) == pytest.approx((0.025 ** (1 / runs), 1))
    assert all(map(math.isnan, share_interval(0, 0)))
