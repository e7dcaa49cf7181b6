"""What a study could have shown, held against simulated studies."""

import math

import numpy as np
import pytest
from scipy import stats

from cwgnc_train.analysis import write_report
from cwgnc_train.analysis.power import detectable_difference, detectable_share
from tests.train.analysis.conftest import run_record, table, write_study


@pytest.mark.parametrize("runs", [5, 10, 25])
def test_the_share_is_found_in_80_percent_of_studies(runs):
    share = detectable_share(runs, runs)
    failed = np.arange(runs + 1)
    found = [
        stats.fisher_exact([[k, runs - k], [0, runs]])[1] < 0.05
        for k in failed.tolist()
    ]
    assert stats.binom.pmf(failed, runs, share) @ found == pytest.approx(0.8)


def test_three_runs_show_no_share_and_four_almost_only_that_of_all():
    # Three of three against none: 1 of 20 splits at either end, p = 0.1.
    assert math.isnan(detectable_share(3, 3))
    # Four of four, p = 2 / 70, is the only finding.
    assert detectable_share(4, 4) == pytest.approx(0.8 ** (1 / 4))


@pytest.mark.parametrize(("sizes", "spreads"), [((6, 6), (1, 1)), ((25, 10), (1, 3))])
def test_the_difference_is_found_in_80_percent_of_studies(sizes, spreads):
    samples = [
        spread * stats.zscore(np.arange(size), ddof=1)
        for size, spread in zip(sizes, spreads, strict=True)
    ]
    difference = detectable_difference(*samples)
    rng = np.random.default_rng(0)
    a, b = (
        rng.normal(0, spread, (20000, size))
        for size, spread in zip(sizes, spreads, strict=True)
    )
    p_values = stats.ttest_ind(a + difference, b, axis=1, equal_var=False).pvalue
    # Welch's degrees of freedom are those of each sample, not the true ones.
    assert np.mean(p_values < 0.05) == pytest.approx(0.8, abs=0.03)


def test_a_difference_in_standard_deviations_as_in_tables_of_power():
    # Cohen's table: d = 0.81 for 25 runs each, α = 0.05 and a power of 0.8.
    sample = stats.zscore(np.arange(25), ddof=1)
    assert detectable_difference(sample, sample) == pytest.approx(0.81, abs=0.005)


def test_scores_that_do_not_vary_and_too_few_say_nothing():
    assert math.isnan(detectable_difference([0.5] * 5, [0.6] * 5))
    assert math.isnan(detectable_difference([0.5, 0.6], [0.6, 0.5, 0.7]))


def test_the_report_says_what_it_could_have_shown(tmp_path):
    records = [
        run_record(f"rte/{method}/lr=2e-05/max_norm=1/seed={i}", 0.7 + i / 100)
        for method, runs in (("devlin", 3), ("cwgnc", 10), ("mosbach", 10))
        for i in range(runs)
    ]
    report = write_report(write_study(tmp_path, records))
    rows = table(report, "power")
    row = rows.query("a_method == 'cwgnc' and b_method == 'mosbach'").iloc[0]
    assert row["detectable_share"] == detectable_share(10, 10)
    scores = [0.7 + i / 100 for i in range(10)]
    assert row["detectable_difference"] == detectable_difference(scores, scores)
    # The harder one of the two ways around.
    row = rows.query("a_method == 'cwgnc' and b_method == 'devlin'").iloc[0]
    assert row["detectable_share"] == max(
        detectable_share(10, 3), detectable_share(3, 10)
    )
    text = report.read_text(encoding="utf-8")
    assert "<h3>What this many runs could have shown</h3>" in text
    assert "<td>10, 10</td><td>58 %</td><td>4.0</td>" in text
