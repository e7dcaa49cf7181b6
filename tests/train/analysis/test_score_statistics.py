import math

import numpy as np
import pytest
from scipy import stats

from cwgnc_train.analysis.score_statistics import Comparison, compare, holm, interval

A = [0.62, 0.60, 0.63, 0.61, 0.62, 0.60]
B = [0.55, 0.64, 0.40, 0.66, 0.58, 0.49]


def comparison(first, second) -> Comparison:
    result = compare(first, second)
    assert result is not None
    return result


def test_holm_of_an_example_worked_by_hand():
    # Sorted 0.005 0.01 0.03 0.04, times 4 3 2 1: 0.02 0.03 0.06 0.04, the last of
    # which must not be below the one before.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_holm_ends_at_one_and_leaves_out_nan():
    assert holm([0.7, 0.6]) == [1, 1]
    assert holm([0.02, math.nan, 0.01]) == pytest.approx(
        [0.02, math.nan, 0.02], nan_ok=True
    )
    assert holm([]) == []


def test_the_tests_are_those_of_scipy():
    result = comparison(A, B)
    assert result.brown_forsythe == stats.levene(A, B, center="median").pvalue
    assert result.welch == stats.ttest_ind(A, B, equal_var=False).pvalue
    assert result.mann_whitney == stats.mannwhitneyu(A, B).pvalue


def test_effect_sizes_worked_by_hand():
    result = comparison([1, 2, 3], [2, 4, 6])
    assert result.std_ratio == pytest.approx(0.5)
    assert result.mean_difference == pytest.approx(-2)
    # Pooled variance (1 + 4) / 2, and 1 - 3 / (4 * 6 - 9) for the small samples.
    assert result.hedges_g == pytest.approx(-2 / math.sqrt(2.5) * 0.8)
    # Of nine pairs the first is larger in 1 and equal in 1.
    assert result.rank_biserial == pytest.approx((1 - 7) / 9)


def test_two_runs_are_too_few():
    assert compare([0.1, 0.2], A) is None
    assert all(map(math.isnan, interval([0.1, 0.2], "mean")))


def test_constant_samples_raise_no_warning():
    result = comparison([0.5] * 4, [0.6] * 4)
    assert math.isnan(result.welch)
    assert math.isnan(result.brown_forsythe)
    assert math.isnan(result.hedges_g)
    assert result.rank_biserial == -1
    assert comparison([0.5] * 4, B).brown_forsythe < 1
    assert math.isnan(comparison(B, [0.5] * 4).std_ratio)
    assert interval([0.5] * 4, "mean") == (0.5, 0.5)
    assert interval([0.5] * 4, "std") == (0, 0)


@pytest.mark.parametrize("statistic", ["mean", "std"])
def test_intervals_are_those_of_scipy(statistic):
    expected = stats.bootstrap(
        (B,), getattr(np, statistic), rng=np.random.default_rng(0)
    ).confidence_interval
    assert interval(B, statistic) == tuple(expected)


@pytest.mark.parametrize("scores", [[0, 0, 1], [0, 0, 0, 0, 0.6], [0, 1, 0, 1]])
def test_intervals_of_nearly_constant_samples_are_numbers(scores):
    for statistic in ("mean", "std"):
        low, high = interval(scores, statistic)
        assert low <= getattr(np, statistic)(scores) <= high
