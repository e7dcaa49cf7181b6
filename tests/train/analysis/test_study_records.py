import json
import math

import pandas as pd
import pytest

from cwgnc_train.analysis.cells import CELL, cells_of, choose_cells, threshold_groups
from cwgnc_train.analysis.study_records import read_study
from cwgnc_train.config import UserError
from tests.train.analysis.conftest import (
    demo_records,
    run_record,
    with_holdout,
    write_study,
)

RUN = "mrpc/cwgnc/lr=2e-05/max_norm=0.05/seed="


def read(tmp_path, *records, **options):
    return read_study(write_study(tmp_path, records), **options)


def test_a_run_fails_if_it_is_not_above_the_line(tmp_path):
    scores = [0.8122, 0.8123, "nan", 0.5]
    records = [run_record(f"{RUN}{i}", score) for i, score in enumerate(scores)]
    records[3]["failed"] = False
    assert list(read(tmp_path, *records).runs["failed"]) == [True, False, True, True]


def test_the_lines_of_the_torch_version_let_collapsed_runs_of_mrpc_pass(tmp_path):
    run = run_record(RUN + "1", 0.8122)
    assert list(read(tmp_path, run).runs["failed"]) == [True]
    assert list(read(tmp_path, run, legacy_lines=True).runs["failed"]) == [False]


def test_other_tasks_keep_the_line_of_the_data(tmp_path):
    run = run_record(RUN + "1", 0.8122) | {"task": "qqp"}
    assert list(read(tmp_path, run, legacy_lines=True).runs["line"]) == [0.8122]


def test_unfinished_runs_are_counted_and_left_out(tmp_path):
    unfinished = {"kind": "metrics", "run": RUN + "2", "step": 20, "loss": 0.5}
    study = read(tmp_path, run_record(RUN + "1", 0.9), unfinished)
    assert study.unfinished == 1
    assert list(study.runs["run"]) == [RUN + "1"]
    assert study.metrics.empty


def test_an_infinite_threshold_is_the_last_one(tmp_path):
    records = demo_records(("cola",), ("cwgnc",), rates=(2e-5,), seeds=1)
    study = read(tmp_path, *reversed(records))
    assert list(study.runs["max_norm"]) == [0.05, 1, math.inf]
    (group,) = threshold_groups(choose_cells(study.runs))
    assert [cell.max_norm for cell in group] == [0.05, 1, math.inf]


def test_the_score_is_that_of_the_judged_split(tmp_path):
    run = run_record(RUN + "1", 0.9, judged="validation_matched")
    for name in ("scores", "majority_line"):
        run[name] = {
            "holdout": {"f1": 0.1},
            "validation_matched": {"f1": 0.7},
            "validation_mismatched": {"f1": 0.2},
        }
    evaluations = [
        {"kind": "evaluation", "run": RUN + "1", "step": 5, "split": split}
        | {"scores": scores, "collapsed": False}
        for split, scores in run["scores"].items()
    ]
    study = read(tmp_path, *evaluations, run)
    assert study.runs["score"].item() == 0.7
    assert study.evaluations["score"].item() == 0.7


def test_steps_written_twice_count_once(tmp_path):
    line = {"kind": "metrics", "run": RUN + "1", "step": 20}
    study = read(
        tmp_path,
        {**line, "loss": 9},
        {**line, "loss": "inf"},
        run_record(RUN + "1", 0.9),
    )
    assert study.metrics["loss"].isna().tolist() == [True]


def test_a_torn_last_line_is_left_out(tmp_path):
    write_study(tmp_path, [run_record(RUN + "1", 0.9)])
    with (tmp_path / "records.jsonl").open("a") as file:
        file.write('{"kind": "run", "ru')
    assert len(read_study(tmp_path).runs) == 1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"kind": "run", "ru', "expected a JSON object"),
        (b"[1]", "expected a JSON object"),
        (b"\xff\x00", "expected a JSON object"),
        (b'{"kind": "metrics", "step": 2}', "lacks 'run'"),
        (b'{"kind": "metrics", "run": "a", "step": 2, "loss": "x"}', "'x'"),
        (
            b'{"kind": "evaluation", "run": "a", "step": 2, "split": "", "scores": 1}',
            "kind 'evaluation' is wrong: 'int' object",
        ),
        (
            json.dumps(
                run_record(RUN + "3", 0.5) | {"scores": {"holdout": {}}}
            ).encode(),
            "lacks 'validation'",
        ),
    ],
)
def test_a_damaged_line_is_named(tmp_path, line, message):
    write_study(tmp_path, [run_record(RUN + "1", 0.9), run_record(RUN + "2", 0.9)])
    path = tmp_path / "records.jsonl"
    first, second = path.read_bytes().splitlines()
    path.write_bytes(b"\n".join([first, line, second, b""]))
    with pytest.raises(UserError, match=f"records.jsonl, line 2: .*{message}") as error:
        read_study(tmp_path)
    assert "\n" not in str(error.value)


def test_a_run_finished_twice_is_refused(tmp_path):
    run = run_record(RUN + "1", 0.9)
    with pytest.raises(UserError, match=f"{RUN}1 finished twice"):
        read(tmp_path, run, run)


def test_a_folder_without_a_study_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"has no study\.json"):
        read_study(tmp_path)


def test_a_damaged_study_json_is_named(tmp_path):
    write_study(tmp_path, [run_record(RUN + "1", 0.9)])
    (tmp_path / "study.json").write_text("[")
    with pytest.raises(UserError, match=r"study\.json is damaged: expected"):
        read_study(tmp_path)


def test_a_study_without_a_finished_run_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"finished yet \(1 started\)"):
        read(tmp_path, {"kind": "metrics", "run": "a", "step": 20})


def test_the_holdout_chooses_and_the_validation_scores_do_not(tmp_path):
    cells = {"2e-05": (0.70, 0.95), "5e-05": (0.80, 0.85)}
    records = [
        with_holdout(
            run_record(f"cola/cwgnc/lr={rate}/max_norm=0.05/seed=1", score), held
        )
        for rate, (held, score) in cells.items()
    ]
    chosen = choose_cells(read(tmp_path, *records).runs).query("chosen")
    assert list(chosen["learning_rate"]) == [5e-5]


def test_ties_go_to_the_smaller_deviation_then_the_smaller_rate():
    scores = {1e-5: (0.6, 0.8), 2e-5: (0.7, 0.7), 5e-5: (0.7, 0.7)}
    rows = [
        ("cola", "cwgnc", rate, 0.05, "fixed", score, True)
        for rate, pair in reversed(scores.items())
        for score in pair
    ]
    names = [*CELL, "holdout_score", "has_holdout"]
    chosen = choose_cells(pd.DataFrame(rows, columns=names)).query("chosen")
    assert list(chosen["learning_rate"]) == [2e-5]


def test_a_cell_with_a_holdout_score_that_is_no_number_comes_last(tmp_path):
    held = {"2e-05": [0.1, 0.1], "5e-05": [0.9, "nan"]}
    records = [
        with_holdout(
            run_record(f"cola/cwgnc/lr={rate}/max_norm=1/seed={i}", 0.5), score
        )
        for rate, scores in held.items()
        for i, score in enumerate(scores)
    ]
    chosen = choose_cells(read(tmp_path, *records).runs).query("chosen")
    assert list(chosen["learning_rate"]) == [2e-5]


@pytest.mark.parametrize(
    ("rates", "thresholds"), [((2e-5,), (0.1, 1.0)), ((1e-5, 2e-5), (0.05,))]
)
def test_without_a_holdout_nothing_is_chosen_among_several_cells(
    tmp_path, rates, thresholds
):
    records = demo_records(
        ("cola",), ("cwgnc",), rates, thresholds, seeds=2, holdout=False
    )
    cells = choose_cells(read(tmp_path, *records).runs)
    assert not any(cells["chosen"]) and not any(cells["planned"])
    assert all(cells["open"])


def test_without_a_holdout_the_papers_threshold_is_taken(tmp_path):
    records = demo_records(
        ("cola",), ("devlin", "cwgnc"), (2e-5,), (1.0, 0.05), seeds=2, holdout=False
    )
    cells = choose_cells(read(tmp_path, *records).runs)
    assert list(cells["max_norm"]) == [1.0, 0.05, 1.0]
    assert list(cells["chosen"]) == [True, True, False]
    assert list(cells["planned"]) == [False, True, False]
    assert not any(cells["open"])


def test_a_run_that_was_given_up_has_failed(tmp_path):
    runs = [run_record(f"{RUN}{i}", 0.9) for i in range(2)]
    runs[1]["gave_up_at_step"] = 30
    assert list(read(tmp_path, *runs).runs["failed"]) == [False, True]


def test_a_holdout_that_is_reported_does_not_choose(tmp_path):
    records = [
        run_record(f"cola/cwgnc/lr={rate}/max_norm=0.05/seed=1", 0, judged="holdout")
        for rate in ("2e-05", "5e-05")
    ]
    for record in records:
        for name, value in (("scores", 0.6), ("majority_line", 0.0)):
            record[name] = {"holdout": {"matthews_correlation": value}}
    study = read(tmp_path, *records)
    assert list(study.runs["score"]) == [0.6, 0.6]
    cells = choose_cells(study.runs)
    assert all(cells["open"]) and not any(cells["chosen"])


def test_a_clip_that_learns_has_no_threshold_of_its_own(tmp_path):
    run = run_record("rte/finetune/lr=2e-05/max_norm=0.05/seed=1", 0.7, clip="adagc")
    (cell,) = cells_of(read(tmp_path, run).runs)
    assert (cell.threshold, cell.clips) == ("learned", True)
    assert not cell._replace(max_norm=math.inf, clip="fixed").clips


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("seed", 1.5, "seed must be a whole number"),
        ("seed", True, "seed must be a whole number"),
        ("learning_rate", "nan", "learning_rate must be a number"),
        ("train_examples", [], "train_examples must be of type int"),
        ("eps", "x", "eps must be of type int or float"),
        ("device", {}, "device must be of type str"),
        ("versions", "x", "versions must be of type dict"),
        ("model_saved", "x", "model_saved must be of type bool"),
        ("scores", [], "is wrong"),
        ("majority_line", {}, "lacks 'validation'"),
    ],
)
def test_fields_of_a_wrong_type_are_refused(tmp_path, name, value, message):
    record = run_record(RUN + "1", 0.9, **{name: value})
    with pytest.raises(UserError, match=f"line 1: .*{message}"):
        read(tmp_path, record)
