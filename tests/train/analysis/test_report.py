import base64
import json
import math
import re

import numpy as np
import pandas as pd
import pytest

from cwgnc_train.analysis import write_report
from tests.train.analysis.conftest import (
    METRICS,
    Page,
    demo_records,
    run_record,
    table,
    write_study,
)


@pytest.fixture(scope="module")
def report(demo_study):
    return write_report(demo_study)


@pytest.fixture(scope="module")
def runs(demo_study):
    lines = (demo_study / "records.jsonl").read_text().splitlines()
    rows = [record for record in map(json.loads, lines) if record["kind"] == "run"]
    for row in rows:
        row["score"] = row["scores"]["validation"][row["metric"]]
        row["held"] = row["scores"]["holdout"][row["metric"]]
        row["max_norm"] = float(row["max_norm"])
    return pd.DataFrame(rows)


def test_the_page_stands_alone(report):
    text = report.read_text(encoding="utf-8")
    page = Page(text)
    assert not page.open
    assert page.links
    assert all(link.startswith("data:image/svg+xml;base64,") for link in page.links)
    assert not {"script", "link", "iframe"} & set(page.tags)
    assert not re.search(r"https?://|url\(|@import", text)
    for link in page.links:
        assert b"</svg>" in base64.b64decode(link.partition(",")[2])


def test_figures_and_tables_are_files_too(report):
    for folder, kinds in (("figures", "png svg"), ("tables", "csv md")):
        names = [
            sorted(path.stem for path in (report.parent / folder).glob(f"*.{kind}"))
            for kind in kinds.split()
        ]
        assert names[0] == names[1]
        assert len(names[0]) == len(set(names[0])) > 0
    figures = {path.stem for path in (report.parent / "figures").iterdir()}
    kinds = "scores thresholds score_over_time clip_rate loss".split()
    assert figures == {f"{kind}_{task}" for kind in kinds for task in ("cola", "mrpc")}


@pytest.mark.slow
def test_the_same_records_give_the_same_files(report, demo_study, tmp_path):
    again = write_report(demo_study, tmp_path)
    assert again == tmp_path / "report.html"
    for path in report.parent.rglob("*.*"):
        other = tmp_path / path.relative_to(report.parent)
        assert path.read_bytes() == other.read_bytes(), path.name


def test_table_1_has_the_numbers_of_the_chosen_cells(report, runs):
    rows = table(report, "table1").query("source == 'this study'")
    assert len(rows) == 6
    keys = ["learning_rate", "max_norm"]
    for row in rows.itertuples():
        same = runs[(runs["task"] == row.task) & (runs["method"] == row.method)]
        best = same.groupby(keys)["held"].mean().idxmax()
        assert (row.learning_rate, row.max_norm) == best
        scores = same.set_index(keys)["score"].loc[[best]]
        assert row.runs == len(scores) == 6
        for name in ("mean", "max", "min", "median"):
            assert getattr(row, name) == pytest.approx(getattr(scores, name)())
        assert row.std == pytest.approx(np.std(scores))
        assert math.isnan(row.mean_low) and math.isnan(row.std_high)
        line = {"cola": 0, "mrpc": 0.8122}[row.task]
        assert row.failed == (scores <= line).sum()


def test_the_papers_rows_are_marked_as_such(report):
    rows = table(report, "table1")
    paper = rows[rows["source"] != "this study"]
    assert len(paper) == 6
    assert paper["source"].str.startswith("paper: BERT-large-uncased, 25 runs").all()
    cell = paper.query("task == 'cola' and method == 'cwgnc'").iloc[0]
    assert list(cell[["std", "mean", "max"]]) == pytest.approx([0.017, 0.622, 0.65])
    assert cell["source"].endswith("5 epochs")
    quoted = paper[paper["source"].str.endswith("25 runs, quoted from Mosbach et al.")]
    assert set(quoted["method"]) == {"devlin"}  # the paper ran its other rows here
    marked = Page(report.read_text()).rows
    shown = [text for key in marked if "paper" in key for text in marked[key]]
    assert len(shown) == 6
    assert all("[paper: BERT-large-uncased, 25 runs" in text for text in shown)
    text = (report.parent / "tables" / "table1.md").read_text()
    assert text.count("[paper: BERT-large-uncased, 25 runs") == 6


def test_table_2_has_every_threshold_at_the_chosen_rate(report, runs):
    chosen = table(report, "table1").query("source == 'this study'")
    rows = table(report, "table2")
    for task, group in rows.groupby("task"):
        same = chosen[(chosen["task"] == task) & (chosen["method"] == "cwgnc")]
        rate = same["learning_rate"].item()
        assert list(group["learning_rate"].unique()) == [rate]
        assert list(group["max_norm"]) == [0.05, 1, math.inf]
        of_rate = runs[(runs["task"] == task) & (runs["learning_rate"] == rate)]
        means = (
            of_rate[of_rate["method"] == "cwgnc"].groupby("max_norm")["score"].mean()
        )
        assert list(group["mean"]) == pytest.approx(list(means))
    assert "none" in (report.parent / "tables" / "table2.md").read_text()


def test_the_clip_table_has_the_mean_rate_of_all_steps(report, demo_study):
    lines = (demo_study / "records.jsonl").read_text().splitlines()
    lines = [line for line in map(json.loads, lines) if line["kind"] == "metrics"]
    rows = table(report, "clip_rates")
    assert len(rows) == 2 * 2 * (1 + 1 + 2)  # that without a threshold is not clipped
    for row in rows.itertuples():
        cell = f"{row.task}/{row.method}/lr={row.learning_rate:g}"
        cell += f"/max_norm={row.max_norm:g}/"
        mine = [line for line in lines if line["run"].startswith(cell)]
        for name in ("components", "elements"):
            rates = [line[f"clip_rate_{name}"] for line in mine]
            assert getattr(row, f"{name}_mean") == pytest.approx(np.mean(rates))


def test_records_of_few_steps_weigh_less_in_the_clip_table(tmp_path):
    run = "rte/cwgnc/lr=2e-05/max_norm=1/seed=1"
    steps = [(20, 1.0), (25, 0.5), (40, 0.0)]
    lines = [
        {"kind": "metrics", "run": run, "step": step, "loss": 0.5}
        | {"clip_rate_components": rate, "clip_rate_elements": rate}
        for step, rate in steps
    ]
    rows = table(
        write_report(write_study(tmp_path, [run_record(run, 0.7), *lines])),
        "clip_rates",
    )
    assert rows["components_mean"].item() == pytest.approx((20 + 2.5) / 40)


def test_learned_thresholds_are_called_so_and_have_their_clip_rates(tmp_path):
    cells = ["adagc", "none", "zclip"]
    runs = [f"rte/{method}/lr=2e-05/max_norm=inf/seed=1" for method in cells]
    lines = [
        {"kind": "metrics", "run": run, "step": step, "loss": 0.5}
        | {"clip_rate_components": 0.25, "clip_rate_elements": 0.5}
        for run in runs
        for step in (20, 40)
    ]
    report = write_report(
        write_study(tmp_path, [*(run_record(run, 0.7) for run in runs), *lines])
    )
    assert table(report, "clip_rates")["method"].tolist() == ["zclip", "adagc"]
    text = (report.parent / "tables" / "table1.md").read_text()
    assert "AdaGC | 2e-5 | learned |" in text and "no clip | 2e-5 | none |" in text
    assert (report.parent / "figures" / "clip_rate_rte.png").exists()
    assert "How much was clipped" in report.read_text()


def test_without_a_holdout_every_cell_is_listed(tmp_path):
    records = demo_records(("cola",), ("devlin", "cwgnc"), seeds=1, holdout=False)
    report = write_report(write_study(tmp_path, records))
    assert "Nothing was chosen by scores." in report.read_text()
    assert len(table(report, "table1").query("source == 'this study'")) == 8
    assert not (report.parent / "tables" / "selection.csv").exists()


def test_the_report_counts_what_is_not_finished(tmp_path):
    records = [
        run_record("rte/cwgnc/lr=2e-05/max_norm=1/seed=1", 0.7),
        {"kind": "metrics", "run": "rte/cwgnc/lr=2e-05/max_norm=1/seed=2", "step": 20},
    ]
    text = write_report(write_study(tmp_path, records)).read_text()
    assert "1 finished, of which 0 failed" in text
    assert "1 more have started" in text


def test_one_run_is_enough(tmp_path):
    run = run_record("rte/own_<method>/lr=2e-05/max_norm=inf/seed=1", 0.7)
    report = write_report(write_study(tmp_path, [run]))
    text = report.read_text()
    assert "own &lt;method&gt;" in text
    assert "There was nothing to choose" in text
    assert all(table(report, "table1")["std"].isna())
    assert [path.name for path in (report.parent / "figures").glob("*.png")] == [
        "scores_rte.png"
    ]


def finetune_study(folder, settings, **changes):
    name = "rte/finetune/lr=2e-05/max_norm=0.05/seed="
    records = [
        run_record(f"{name}{seed}", 0.7, **{"task": "own", "train_examples": 90})
        | changes
        for seed in (1, 2)
    ]
    write_study(folder, records)
    (folder / "study.json").write_text(json.dumps(settings))
    return folder


def test_a_folder_of_finetune_has_a_report(tmp_path):
    settings = {
        "model": "models/bert-tiny",
        "task": None,
        "train_file": "secret/place/reviews.csv",
        "holdout": 0.1,
        "max_length": 64,
        "train_examples": 90,
        "dropout": 0.2,
        "dtype": "bfloat16",
        "data": {"own": "4567"},
        "commits": {"model": "0123"},
    }
    report = write_report(finetune_study(tmp_path, settings))
    text = report.read_text()
    assert "<h1>Fine-tuning bert-tiny: own data</h1>" in text
    for name, value in {
        "Training file": "reviews.csv",
        "Longest text": "64 tokens",
        "Training examples": "90",
        "Holdout": "10 % of the training set",
        "Dropout": "0.2",
        "Precision": "bfloat16",
    }.items():
        assert f"<dt>{name}</dt><dd>{value}</dd>" in text
    assert "secret" not in text
    assert table(report, "table1")["method"].tolist() == ["finetune"]
    assert "fine-tuning, own settings | 2e-5 | 0.05 | 2 |" in (
        report.parent / "tables" / "table1.md"
    ).read_text(encoding="utf-8")


def test_a_report_needs_no_settings(tmp_path):
    text = write_report(finetune_study(tmp_path, {})).read_text()
    assert "unknown model" in text


def test_a_learned_threshold_is_called_so_whatever_the_method(tmp_path):
    report = write_report(finetune_study(tmp_path, {}, clip="adagc"))
    text = (report.parent / "tables" / "table1.md").read_text(encoding="utf-8")
    assert "| 2e-5 | learned | 2 |" in text
    text = (report.parent / "tables" / "protocol.md").read_text(encoding="utf-8")
    assert "| learned |" in text and "| adagc |" in text


def test_runs_that_were_given_up_are_listed(tmp_path):
    names = [f"rte/cwgnc/lr=2e-05/max_norm=1/seed={seed}" for seed in (1, 2)]
    records = [run_record(names[0], 0.7), run_record(names[1], 0.7, gave_up_at_step=30)]
    report = write_report(write_study(tmp_path, records))
    text = report.read_text()
    assert "of which 1 failed, 0 collapsed, 0 diverged, 1 given up" in text
    text = (report.parent / "tables" / "failures.md").read_text(encoding="utf-8")
    assert "| 2 (70.0) | – | – | 2 (30) |" in text


def test_the_report_says_which_lines_it_used(tmp_path):
    runs = [
        run_record(f"{task}/cwgnc/lr=2e-05/max_norm=1/seed=1", 0.78) for task in METRICS
    ]
    report = write_report(write_study(tmp_path, runs))
    assert "failure lines are computed from the data" in report.read_text()
    assert table(report, "failures")["task"].tolist() == ["mrpc"]
    report = write_report(tmp_path, tmp_path / "legacy", legacy_lines=True)
    assert "constants of the torch version for\nCoLA, MRPC, RTE" in report.read_text()
    assert table(report, "tasks")["line"].tolist() == [0, 0.75, 0.53]
    assert not (report.parent / "tables" / "failures.csv").exists()


def test_no_folder_of_the_machine_is_in_the_report(report):
    assert "models/bert-tiny" not in report.read_text()


def test_seeds_of_the_data_follow_behind_a_stroke(tmp_path):
    names = [f"rte/cwgnc/lr=2e-05/max_norm=1/seed={i}" for i in (1, 2)]
    records = [run_record(names[0], 0.1), run_record(names[1], 0.2, data_seed=7)]
    report = write_report(write_study(tmp_path, records))
    text = (report.parent / "tables" / "failures.md").read_text()
    assert "| 1 (10.0), 2/7 (20.0) |" in text
