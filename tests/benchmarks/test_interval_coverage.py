import json
from pathlib import Path

import pytest

from benchmarks import interval_coverage
from benchmarks.interval_coverage import (
    DECIDING,
    LEAST,
    RUNS,
    false_positives,
    share_coverage,
    simulate,
)
from cwgnc_train.analysis.score_intervals import MEAN_RUNS, STD_RUNS, WILSON_RUNS

PUBLISHED = Path(interval_coverage.__file__).parent / "results/interval_coverage.json"
SHOWN = {"mean, Student": MEAN_RUNS, "std, Bonett": STD_RUNS}


@pytest.mark.parametrize("interval", SHOWN)
def test_an_interval_is_shown_where_its_published_coverage_is_enough(interval):
    rows = [
        row
        for row in json.loads(PUBLISHED.read_text())["coverage"]
        if row["interval"] == interval and row["scores"] in DECIDING
    ]
    assert {row["scores"] for row in rows} == set(DECIDING)
    worst = {
        runs: min(row["coverage"] for row in rows if row["runs"] == runs)
        for runs in {row["runs"] for row in rows}
    }
    enough = SHOWN[interval]
    assert min(worst[runs] for runs in worst if runs >= enough) >= LEAST
    assert worst[max(runs for runs in worst if runs < enough)] < LEAST


def test_wilsons_interval_is_shown_where_it_covers_enough():
    rows = [row for row in share_coverage(RUNS) if row["interval"] == "share, Wilson"]
    low = {row["runs"] for row in rows if row["coverage"] < LEAST}
    assert low and max(low) < WILSON_RUNS


def test_exact_intervals_cover_as_often_as_they_say():
    found = {
        (row["interval"], row["scores"]): row["coverage"] for row in simulate(2000, [8])
    }
    # Three standard errors of 2,000 draws.
    for interval in ("mean, Student", "std, χ²"):
        assert found[interval, "normal"] == pytest.approx(0.95, abs=0.015)
    assert found["std, bootstrap (BCa)", "normal"] < 0.85


def test_the_coverage_of_a_share_worked_by_hand():
    # Of three runs of which each fails with probability 1 / 2: Wilson's interval of
    # none failed ends at z² / (3 + z²) = 0.56, so all four hold 1 / 2.
    rows = share_coverage([3])
    found = {(row["interval"], row["scores"]): row["coverage"] for row in rows}
    assert found["share, Wilson", "50 % fail"] == pytest.approx(1)
    # That of two failed begins at 0.208, and two or three fail of three with 0.104.
    assert found["share, Wilson", "20 % fail"] == pytest.approx(1 - 0.104)


@pytest.mark.slow
def test_the_tests_of_a_report_find_little_where_there_is_nothing():
    rows = false_positives(200, [10])
    found = {(row["test"], row["scores"]): row["share"] for row in rows}
    for test in ("Brown–Forsythe", "Welch", "Mann–Whitney", "Wilcoxon"):
        # Three standard errors above 5 % of 200.
        assert max(found[test, scores] for scores in DECIDING) < 0.1
    assert found["Pitman–Morgan with Pearson's correlation", "20 % failed"] > 0.12
