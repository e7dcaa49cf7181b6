"""What the report says of how a study differs from the paper."""

import json

import pytest

from cwgnc_train.analysis import write_report
from cwgnc_train.config import UserError
from tests.train.analysis.conftest import run_record, table, write_study


def reproduced(folder, cut=(), budget=None, methods=("cwgnc", "mixout"), **settings):
    """The folder of a reproduction by five seeds of each method on RTE."""
    runs = [
        run_record(f"rte/{method}/lr=0.0001/max_norm=0.05/seed={seed}", 0.7)
        for method in methods
        for seed in range(1, 6)
    ]
    write_study(folder, runs, model="models/minilm", max_length=32, **settings)
    known = {"cut": list(cut), "budget_minutes": budget}
    (folder / "reproduction.json").write_text(json.dumps(known))
    return folder


def lines(report):
    rows = table(report, "paper").fillna("")
    return {row.what: (row.paper, row.study) for row in rows.itertuples()}


def test_five_seeds_of_a_small_model_do_not_look_like_the_paper(tmp_path):
    report = write_report(reproduced(tmp_path))
    found = lines(report)
    assert found["Model"] == ("BERT-large-uncased", "minilm")
    assert found["Tasks"] == ("RTE, MRPC, CoLA", "RTE")
    assert found["Runs of a cell"] == ("25", "5")
    assert found["Peak learning rate"] == ("not stated; its code has 2e-5", "1e-4")
    assert found["Longest text"][1] == "32 tokens"
    assert found["Batch"] == ("not stated; its code has 16", "16")
    assert found["Epochs"][1] == "Mixout (Lee et al.) 5, CWGNC 5"
    assert found["Threshold of CWGNC"][1] == "0.05"
    assert found["Training examples"] == ("all", "all")
    assert found["Precision"][1] == "float32"
    assert found["Cut"][1] == "nothing"
    text = report.read_text(encoding="utf-8")
    assert '<section id="paper">' in text
    # Nothing that was cut is no claim that all is the same.
    assert "in full" not in text and "paper's protocol" not in text
    assert "paper&#39;s protocol" not in text


def test_what_was_cut_is_named(tmp_path):
    cut = ["3 runs a cell instead of 25", "at most 208 training examples of a task"]
    found = lines(
        write_report(reproduced(tmp_path, cut, 90, train_examples=208, holdout=0.1))
    )
    assert found["Cut"][1] == f"{cut[0]}; {cut[1]} (to take 90 minutes)"
    assert found["Training examples"][1] == "at most 208 of a task, without the holdout"


def test_the_settings_of_mixout_are_called_assumed(tmp_path):
    found = lines(write_report(reproduced(tmp_path)))
    assert "no published code has the settings of their row" in found["Assumed"][1]
    assert "Assumed" not in lines(
        write_report(reproduced(tmp_path, methods=("cwgnc",)))
    )


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"token_types": True}, "passed"),
        ({"token_types": False}, "all zeros"),
        ({}, ""),
    ],
)
def test_token_types_are_named_since_others_had_none(tmp_path, settings, words):
    report = write_report(reproduced(tmp_path, **settings))
    assert lines(report)["Token types of pairs"] == (
        "passed by its code, by that of Mosbach et al. not",
        words or "not recorded",
    )
    text = (report.parent / "tables" / "paper.md").read_text()
    assert "That code passes no token types" in text


def test_mixouts_row_is_quoted_from_others(tmp_path):
    report = write_report(reproduced(tmp_path))
    paper = table(report, "table1").query("source != 'this study'")
    sources = dict(zip(paper["method"], paper["source"], strict=True))
    assert sources == {
        "mixout": "paper: BERT-large-uncased, 25 runs, quoted from Mosbach et al.",
        "cwgnc": "paper: BERT-large-uncased, 25 runs, 5 epochs",
    }


def test_a_study_without_rows_of_the_paper_is_not_compared_with_it(tmp_path):
    run = "rte/adagc/lr=2e-05/max_norm=inf/seed=1"
    report = write_report(write_study(tmp_path, [run_record(run, 0.7)]))
    assert not (report.parent / "tables" / "paper.csv").exists()
    beside = tmp_path / "beside"
    run = "rte/devlin/lr=2e-05/max_norm=1/seed=1"
    found = lines(write_report(write_study(beside, [run_record(run, 0.7)])))
    assert "Cut" not in found and found["Threshold of CWGNC"][1] == "–"


def test_older_records_lack_some_of_it(tmp_path):
    run = run_record("rte/cwgnc/lr=2e-05/max_norm=1/seed=1", 0.7)
    del run["batch_size"], run["epochs"]
    write_study(tmp_path, [run])
    (tmp_path / "study.json").write_text("{}")
    found = lines(write_report(tmp_path))
    for name in ("Batch", "Epochs", "Longest text", "Precision"):
        assert found[name][1] == "not recorded"


@pytest.mark.parametrize(
    "damaged", ["[", "{}", '{"cut": [1]}', '{"cut": ["x"], "budget_minutes": "x"}']
)
def test_a_damaged_file_of_a_reproduction_is_named(tmp_path, damaged):
    (reproduced(tmp_path) / "reproduction.json").write_text(damaged)
    with pytest.raises(UserError, match=r"reproduction\.json is damaged"):
        write_report(tmp_path)
