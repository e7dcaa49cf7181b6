"""The page of claims, from the results that are committed and from some made up."""

import json

import pytest

from benchmarks import summary


def row(side, times_ours, epoch_seconds=None):
    return {"side": side, "times_ours": times_ours, "epoch_seconds": epoch_seconds}


def test_claims_are_met_or_missed():
    works = [
        {"work": "16 x 128", "sides": [row("torch, as the paper", 0.99)]},
        {"work": "cola", "sides": [row("torch, as the paper", 6.01, 60.0)]},
        {"work": "mrpc", "sides": [row("torch, as the paper", 1.5, 60.0)]},
    ]
    result = {"sizes": [{"size": "minilm", "work": works}]}
    slower, cola = summary.claims_of_steps("train_step")(result)
    assert (slower.asked, slower.met) == (1.0, False)
    assert (cola.asked, cola.met) == (6.0, True)


def test_of_several_layouts_the_best_counts():
    rows = [
        {"runs": 2, "layout": "vmap", "cost": 1.2},
        {"runs": 2, "layout": "map", "cost": 1.1},
        {"runs": 1, "layout": "one", "cost": 1.0},
    ]
    [claim] = summary.claims_of_many_runs({"together": rows})
    assert claim.met and claim.measured == 1.1 and "map" in claim.text


def test_the_committed_page_is_made_from_the_committed_results():
    results = {
        path.stem: json.loads(path.read_text())
        for path in summary.RESULTS.glob("*.json")
    }
    reasons = (summary.RESULTS / "reasons.md").read_text()
    committed = (summary.RESULTS / "README.md").read_text()
    assert committed == summary.page(results, reasons)


def test_no_results_are_a_line(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["summary", "--results", str(tmp_path)])
    with pytest.raises(SystemExit, match="run make benchmarks first"):
        summary.main()
