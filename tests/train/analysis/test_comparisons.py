"""Which cells a report compares, and what it says of them."""

import math

import numpy as np
import pytest
from scipy import stats

from cwgnc_train.analysis import write_report
from cwgnc_train.analysis.comparisons import TESTS
from cwgnc_train.analysis.score_intervals import mean_interval, std_interval
from tests.train.analysis.conftest import demo_records, run_record, table, write_study

LINE = 0.527
FAILING = [LINE] * 10 + [0.69, 0.71] * 5


def cell_records(cell: str, scores, **changes) -> list[dict]:
    """Makes the records of a cell task/method/lr=…/max_norm=… by its scores."""
    return [
        run_record(f"{cell}/seed={i}", score, **changes)
        for i, score in enumerate(scores)
    ]


def shown(report, name) -> str:
    return (report.parent / "tables" / f"{name}.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """Two methods: half of the twenty runs of the first fail, none of the second."""
    stable = [0.70 + i / 1000 for i in range(20)]
    records = [
        *cell_records("rte/devlin/lr=2e-05/max_norm=1", FAILING),
        *cell_records("rte/cwgnc/lr=2e-05/max_norm=0.05", stable),
    ]
    return write_report(write_study(tmp_path_factory.mktemp("study"), records))


def test_shares_of_failed_runs_are_tested(report):
    (row,) = table(report, "tests_methods_failed").to_dict("records")
    assert (row["a_method"], row["b_method"]) == ("cwgnc", "devlin")
    assert (row["a_failed"], row["b_failed"]) == (0, 10)
    assert row["fisher"] == stats.fisher_exact([[0, 20], [10, 10]]).pvalue
    text = shown(report, "tests_methods_failed")
    assert "| 0 of 20 | 10 of 20 |" in text
    assert "| A fails less (Fisher) |" in text


def test_table_1_has_the_interval_of_the_share_of_failed_runs(report):
    row = table(report, "table1").query("method == 'devlin'").iloc[0]
    expected = stats.binomtest(10, 20).proportion_ci(method="wilson")
    assert (row["failed_low"], row["failed_high"]) == pytest.approx(tuple(expected))
    assert "| 10 (50 % [30, 70]) |" in shown(report, "table1")


def test_table_1_has_intervals_where_runs_are_many_enough(report):
    row = table(report, "table1").query("method == 'devlin'").iloc[0]
    assert (row["std_low"], row["std_high"]) == std_interval(FAILING)
    assert (row["mean_low"], row["mean_high"]) == mean_interval(FAILING)
    std, mean = (row[f"{name}_low"] * 100 for name in ("std", "mean"))
    text = shown(report, "table1")
    assert f"[{std:.1f}, " in text and f"[{mean:.1f}, " in text


def test_the_verdict_says_which_way_and_by_which_test(report):
    text = shown(report, "tests_methods_std")
    assert "| A varies less (Brown–Forsythe, Pitman–Morgan) |" in text
    text = shown(report, "tests_methods_mean")
    assert "| A scores better (Welch, Mann–Whitney, Wilcoxon) |" in text


def test_without_a_failed_run_the_share_is_not_tested(tmp_path):
    records = [
        *cell_records("rte/devlin/lr=2e-05/max_norm=1", [0.6, 0.7, 0.65]),
        *cell_records("rte/cwgnc/lr=2e-05/max_norm=0.05", [0.7, 0.71, 0.69]),
    ]
    report = write_report(write_study(tmp_path, records))
    (row,) = table(report, "tests_methods_failed").to_dict("records")
    assert math.isnan(row["fisher"])
    assert "| – | no difference shown |" in shown(report, "tests_methods_failed")


def test_one_correction_covers_all_tests_of_a_report(demo_study, tmp_path):
    report = write_report(demo_study, tmp_path)
    tables = [table(report, f"tests_{kind}_mean") for kind in ("methods", "thresholds")]
    assert list(tables[0]["a_method"][:3]) == ["cwgnc", "cwgnc", "bias_correction"]
    raw, corrected = (
        np.concatenate([rows[f"{test}{end}"] for rows in tables for test in TESTS])
        for end in ("", "_holm")
    )
    made = ~np.isnan(raw)
    # Holm's method: reject, from the smallest on, while p ≤ α / (tests that are left).
    order = np.argsort(raw[made])
    for level in (0.01, 0.05, 0.2, 0.7):
        limits = level / np.arange(made.sum(), 0, -1)
        kept = np.cumprod(raw[made][order] <= limits)
        assert list(corrected[made][order] <= level) == list(kept.astype(bool))
    assert f"One\ncorrection covers all {made.sum()} tests" in report.read_text()


def test_too_few_runs_are_not_tested(tmp_path):
    records = demo_records(("cola",), rates=(2e-5,), thresholds=(0.05,), seeds=2)
    report = write_report(write_study(tmp_path, records))
    for name in ("failed", "std", "mean"):
        text = shown(report, f"tests_methods_{name}")
        assert text.count("too few runs, 3 needed") == 3
    assert not any(table(report, "tests_methods_failed")["fisher"].notna())


def test_runs_of_the_same_seeds_are_paired(tmp_path):
    first = [(1, 1, 0.70), (2, 2, 0.71), (2, 9, 0.60), (3, 3, 0.74), (4, 4, "nan")]
    second = [(4, 4, 0.5), (3, 3, 0.71), (2, 2, 0.70), (1, 1, 0.68), (7, 7, 0.9)]
    records = [
        run_record(f"rte/{method}/lr=2e-05/max_norm=1/seed={seed}", score)
        | {"data_seed": data_seed, "run": f"{method} {seed} {data_seed}"}
        for method, cell in (("devlin", second), ("cwgnc", first))
        for seed, data_seed, score in cell
    ]
    report = write_report(write_study(tmp_path, records))
    (row,) = table(report, "tests_methods_mean").to_dict("records")
    assert (row["a_runs"], row["a_scores"], row["b_scores"]) == (5, 4, 5)
    assert row["pairs"] == 3
    # All three differences are positive: 2 of 8 sign patterns.
    assert row["wilcoxon"] == pytest.approx(2 / 8)
    assert row["matched_biserial"] == 1
    assert (
        row["welch"]
        == stats.ttest_ind(
            [0.7, 0.71, 0.6, 0.74], [0.5, 0.71, 0.7, 0.68, 0.9], equal_var=False
        ).pvalue
    )


def test_a_seed_that_ran_twice_has_no_partner(tmp_path):
    records = [
        run_record(f"rte/{method}/lr=2e-05/max_norm=1/seed={seed}", 0.7 + i / 100)
        | {"run": f"{method} {i}"}
        for method, seeds in (("devlin", (1, 2, 3, 4)), ("cwgnc", (1, 1, 2, 3, 4)))
        for i, seed in enumerate(seeds)
    ]
    report = write_report(write_study(tmp_path, records))
    assert table(report, "tests_methods_mean")["pairs"].item() == 3


def compared(tmp_path, cells):
    """Compares cells of three runs each; returns rate and thresholds of each pair."""
    records = [
        record
        for cell in cells
        for record in cell_records(f"rte/{cell}", [0.7, 0.71, 0.6])
    ]
    rows = table(write_report(write_study(tmp_path, records)), "tests_methods_mean")
    columns = ["a_learning_rate", "b_learning_rate", "a_max_norm", "b_max_norm"]
    return list(rows[columns].itertuples(index=False, name=None))


def test_where_nothing_was_chosen_methods_are_compared_at_each_learning_rate(tmp_path):
    cells = [
        *(f"devlin/lr={rate}/max_norm=1" for rate in ("2e-05", "5e-05", "0.0001")),
        *(f"cwgnc/lr={rate}/max_norm=0.05" for rate in ("1e-05", "2e-05", "5e-05")),
    ]
    assert compared(tmp_path, cells) == [
        (2e-5, 2e-5, 0.05, 1),
        (5e-5, 5e-5, 0.05, 1),
    ]
    text = (tmp_path / "report/report.html").read_text(encoding="utf-8")
    assert "Compared with other methods at each learning rate that both have" in text
    assert "There is nothing to compare" not in text
    text = (tmp_path / "report/tables/tests_methods_mean.md").read_text("utf-8")
    assert "| RTE | 5e-5 | CWGNC, 0.05 | Devlin et al., 1 |" in text


def test_methods_are_compared_at_the_thresholds_that_both_have(tmp_path):
    cells = [
        *(f"own/lr=2e-05/max_norm={norm}" for norm in (1, 2)),
        *(f"cwgnc/lr=2e-05/max_norm={norm}" for norm in (1, 2, "inf")),
    ]
    assert sorted(compared(tmp_path, cells)) == [(2e-5, 2e-5, 1, 1), (2e-5, 2e-5, 2, 2)]


def test_beside_a_method_with_one_threshold_the_papers_is_compared(tmp_path):
    cells = [
        *(f"devlin/lr={rate}/max_norm=1" for rate in ("2e-05", "5e-05")),
        *(f"cwgnc/lr=2e-05/max_norm={norm}" for norm in (0.01, 0.05, 1)),
        *(f"cwgnc/lr=5e-05/max_norm={norm}" for norm in (0.1, 1)),
    ]
    assert compared(tmp_path, cells) == [(2e-5, 2e-5, 0.05, 1), (5e-5, 5e-5, 1, 1)]


def test_chosen_cells_are_compared_though_their_rates_differ(tmp_path):
    cells = ["devlin/lr=2e-05/max_norm=1", "cwgnc/lr=5e-05/max_norm=0.05"]
    assert compared(tmp_path, cells) == [(5e-5, 2e-5, 0.05, 1)]
    text = (tmp_path / "report/tables/tests_methods_mean.md").read_text("utf-8")
    assert "| RTE | chosen | CWGNC | Devlin et al. |" in text
