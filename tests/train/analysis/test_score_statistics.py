import math

import numpy as np
import pytest
from scipy import stats

from cwgnc_train.analysis.score_statistics import (
    Comparison,
    compare,
    compare_failures,
    compare_pairs,
    holm,
)

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


def test_constant_samples_raise_no_warning():
    result = comparison([0.5] * 4, [0.6] * 4)
    assert math.isnan(result.welch)
    assert math.isnan(result.brown_forsythe)
    assert math.isnan(result.hedges_g)
    assert result.rank_biserial == -1
    assert comparison([0.5] * 4, B).brown_forsythe < 1
    assert math.isnan(comparison(B, [0.5] * 4).std_ratio)


def test_fishers_test_worked_by_hand():
    # 4 of 8 runs failed, of which all 4 in the first half: 1 of 70 splits, and its
    # mirror image is as likely.
    assert compare_failures((4, 4), (0, 4)) == pytest.approx(2 / 70)
    assert compare_failures((0, 4), (4, 4)) == pytest.approx(2 / 70)
    # 1 failed of 3 + 2 runs; in the second sample with probability 2 / 5.
    assert compare_failures((0, 3), (1, 2)) == pytest.approx(2 / 5)


def test_where_no_run_or_every_run_failed_nothing_is_tested():
    assert math.isnan(compare_failures((0, 5), (0, 9)))
    assert math.isnan(compare_failures((5, 5), (9, 9)))


def test_wilcoxons_test_worked_by_hand():
    # Ranks 1 to 5, of which that of -0.02 is 2: sums 13 and 2. Of the 32 sign patterns
    # {}, {1}, {2} have a sum of at most 2, and as many at least 13.
    differences = [0.01, -0.02, 0.03, 0.04, 0.05]
    result = compare_pairs([0.5 + d for d in differences], [0.5] * 5)
    assert result.pairs == 5
    assert result.wilcoxon == pytest.approx(6 / 32)
    assert result.matched_biserial == pytest.approx((13 - 2) / 15)


def test_the_pitman_morgan_test_correlates_sum_and_difference():
    rng = np.random.default_rng(0)
    common = rng.normal(0, 0.1, 12)
    a, b = (common + rng.normal(0, spread, 12) for spread in (0.2, 0.02))
    result = compare_pairs(a.tolist(), b.tolist())
    sums, differences = (stats.rankdata(v) for v in (a + b, a - b))
    expected = np.corrcoef(sums, differences)[0, 1]
    assert result.spread_correlation == pytest.approx(expected)
    # Student's t with n - 2 degrees of freedom.
    t = expected * math.sqrt(10 / (1 - expected**2))
    assert result.pitman_morgan == pytest.approx(2 * stats.t.sf(abs(t), 10))
    assert result.spread_correlation > 0
    assert compare_pairs(b.tolist(), a.tolist()).spread_correlation < 0
    assert math.isnan(compare_pairs(a[:9].tolist(), b[:9].tolist()).pitman_morgan)


def test_pairs_that_do_not_differ_are_not_tested():
    for result in (compare_pairs(A, A), compare_pairs([0.5] * 12, [0.6] * 12)):
        assert math.isnan(result.pitman_morgan)
    assert math.isnan(compare_pairs(A, A).wilcoxon)
    assert math.isnan(compare_pairs([0.1, 0.2], [0.3, 0.5]).wilcoxon)
    assert compare_pairs([], []).pairs == 0


def test_differences_that_are_the_same_but_for_rounding_are_ties():
    first, second = [0.3, 0.7, 0.5], [0.1, 0.5, 0.9]
    assert first[0] - second[0] != first[1] - second[1]
    result = compare_pairs(first, second)
    assert result.matched_biserial == pytest.approx((1.5 + 1.5 - 3) / 6)
