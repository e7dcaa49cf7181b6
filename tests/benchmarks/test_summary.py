"""The page of claims, from the results that are committed and from some made up."""

import json

import pytest

from benchmarks import claims, summary


def row(side, times_ours, epoch_seconds=None):
    return {"side": side, "times_ours": times_ours, "epoch_seconds": epoch_seconds}


def test_claims_are_met_or_missed():
    works = [
        {"work": "16 x 128", "sides": [row("torch, as the paper", 0.99)]},
        {"work": "cola", "sides": [row("torch, as the paper", 6.01, 60.0)]},
        {"work": "mrpc", "sides": [row("torch, as the paper", 1.5, 60.0)]},
    ]
    result = {"sizes": [{"size": "minilm", "work": works}]}
    slower, cola = claims.claims_of_steps("train_step")(result)
    assert (slower.asked, slower.met) == (1.0, False)
    assert (cola.asked, cola.met) == (6.0, True)


def test_of_several_layouts_the_best_counts():
    rows = [
        {"runs": 2, "layout": "vmap", "cost": 1.2},
        {"runs": 2, "layout": "map", "cost": 1.1},
        {"runs": 1, "layout": "one", "cost": 1.0},
    ]
    [claim] = claims.claims_of_many_runs({"together": rows})
    assert claim.met and claim.measured == 1.1 and "map" in claim.text


def test_on_a_gpu_the_fastest_of_torch_counts_and_rates_are_asked():
    def result(batch, seconds_each):
        ours = {"side": "this project", "examples_per_second": 1 / seconds_each}
        sides = [
            ours | {"share_of_peak": 0.7},
            row("torch, as the paper", 9.0),
            row("torch, well written", 1.2),
            row("torch, well written, compiled", 0.9),
        ]
        work = [{"work": "16 x 128", "sides": sides}]
        sizes = [{"size": "large", "work": work}]
        return {"precision": "bfloat16", "batch": batch, "sizes": sizes}

    read = claims.claims_of_steps_on_gpu("train_step_bfloat16")
    paper, best, rate = read(result(16, 1 / 1400))
    assert paper.met and rate.met and not best.met
    assert "compiled" in best.text and rate.asked == 1300
    *_, rate, share = read(result(64, 1 / 1900))
    assert (rate.met, share.met) == (False, True)


def test_a_gpu_has_claims_of_its_own():
    commands = [
        {"task": "rte", "runs": 25, "cached": cached, "seconds": seconds}
        for cached, seconds in ((False, 200.0), (True, 119.0))
    ]
    machine = {"device": "NVIDIA", "processor": "", "cores": 1, "load_average": 0.0}
    machine |= {"versions": {}, "commit": ""}
    result = {"machine": machine, "commands": commands}
    page = summary.page({"bert_large": result}, "")
    assert "asked on a GPU" in page and "119 s | met" in page and "200" not in page


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
