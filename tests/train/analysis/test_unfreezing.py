import json
import math

import numpy as np
import pandas as pd
import pytest

from cwgnc_train.analysis import write_report, write_unfreezing
from cwgnc_train.analysis.component_courses import ComponentCourses, locate
from cwgnc_train.analysis.sections import read_measured
from cwgnc_train.analysis.study_records import read_study
from cwgnc_train.analysis.unfreezing_iterations import (
    layer_extremes,
    unfreezing_groups,
)
from cwgnc_train.analysis.unfreezing_section import unfreezing_section
from cwgnc_train.config import UserError
from tests.train.analysis.conftest import measured_study, run_record, write_study
from tests.train.analysis.test_report import Page

FULL = "rte/full/lr=2e-05/max_norm=inf"
GU = "rte/gu/lr=2e-05/max_norm=inf"
RESTART = "rte/gu_restart/lr=2e-05/max_norm=inf"
LAYERS = 3


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    cells = {FULL: (1, 2), GU: (0, 3), RESTART: (1, 2)}
    path = tmp_path_factory.mktemp("unfreezing")
    return measured_study(path, cells, LAYERS, steps=90)


@pytest.fixture(scope="module")
def files(study):
    return write_unfreezing(study)


def table(study, name):
    return pd.read_csv(study / "unfreezing" / f"{name}.csv")


def test_the_extreme_of_a_layer_leaves_out_heads_key_biases_and_no_numbers():
    values = {
        "bert/embeddings/LayerNorm/bias": 0.3,
        "bert/embeddings/word_embeddings/embedding": 0.2,
        "bert/encoder/layer/0/attention/self/query/kernel": 0.5,
        "bert/encoder/layer/0/attention/self/key/bias": 7.0,
        "bert/encoder/layer/0/output/dense/bias": 0.4,
        "bert/encoder/layer/1/output/dense/bias": math.nan,
        "bert/encoder/layer/2/output/dense/bias": math.inf,
        "bert/encoder/layer/2/output/dense/kernel": 0.1,
        "bert/pooler/dense/kernel": 8.0,
        "classifier/kernel": 9.0,
    }
    measured = ComponentCourses(locate(list(values)), {})
    numbers = np.array(list(values.values()))
    np.testing.assert_array_equal(
        layer_extremes(measured, numbers, max), [0.3, 0.5, math.nan, 0.1]
    )
    np.testing.assert_array_equal(
        layer_extremes(measured, numbers, min), [0.2, 0.4, math.nan, 0.1]
    )


def test_figures_and_tables_are_written(files):
    names = [
        f"unfreezing_{kind}_rte_lr=2e-5_max_norm=inf"
        for kind in ("scores", "rmsd", "cosine")
    ]
    assert {path.stem for path in files} == {
        *names,
        "unfreezing_scores",
        "unfreezing_layers",
    }
    assert all(path.is_file() for path in files)


def test_the_same_records_give_the_same_files(files, study, tmp_path):
    again = write_unfreezing(study, tmp_path)
    for path, other in zip(files, again, strict=True):
        assert path.read_bytes() == other.read_bytes(), path.name


def test_scores_are_those_at_the_end_of_each_iteration(files, study):
    rows = table(study, "unfreezing_scores")
    evaluations = read_study(study).evaluations
    for row in rows.itertuples():
        last = 90 * row.iteration // row.iterations
        same = evaluations[
            (evaluations["method"] == row.method) & (evaluations["step"] == last)
        ]["score"]
        assert row.runs == len(same) == 3
        assert row.mean == pytest.approx(same.mean())
        assert row.std == pytest.approx(same.std(ddof=0))
    assert list(rows["iteration"]) == [1, 2, 3, 1, 2, 3, 1]


def test_layers_that_are_still_frozen_have_not_moved(files, study):
    rows = table(study, "unfreezing_layers")
    gu = rows[rows["method"] == "gu"].pivot(
        index="iteration", columns="layer", values="rmsd_mean"
    )
    moved = (gu[["embeddings", "1", "2", "3"]] > 0).to_numpy().tolist()
    assert moved == [
        [False, False, False, True],
        [False, False, True, True],
        [True, True, True, True],
    ]


def test_layers_have_the_largest_distance_of_the_runs_last_step(files, study):
    _, measured = read_measured(study)
    rows = table(study, "unfreezing_layers")
    rows = rows[(rows["method"] == "full") & (rows["layer"] == "2")]
    places = [
        i
        for i, part in enumerate(measured.components)
        if part.depth == 2 and not part.is_key_bias
    ]
    largest = [
        course.rmsd[-1, places].max()
        for run, course in measured.courses.items()
        if run.startswith(FULL)
    ]
    assert rows["rmsd_mean"].item() == pytest.approx(np.mean(largest))
    assert rows["rmsd_std"].item() == pytest.approx(np.std(largest))


def test_captions_count_the_runs(study):
    section = unfreezing_section(*read_measured(study))
    assert section is not None
    assert [picture.name.split("_")[1] for picture in section.pictures] == [
        *("scores", "rmsd", "cosine")
    ]
    for picture in section.pictures:
        assert "gradual unfreezing (restart) 3 (1 failed)" in picture.caption
        assert "plain fine-tuning 3 (1 failed)" in picture.caption
        assert "bert-tiny" in picture.caption


def test_without_plain_fine_tuning_the_last_restart_stands_for_it(tmp_path):
    study = measured_study(tmp_path, {GU: (0, 1), RESTART: (0, 1)}, steps=40)
    section = unfreezing_section(*read_measured(study))
    assert section is not None
    _, rmsd, _ = section.pictures
    assert "the last iteration with restart takes its place" in rmsd.caption
    legend = rmsd.figure.axes[0].get_legend()
    assert legend is not None
    labels = [text.get_text() for text in legend.texts]
    assert labels == ["gradual unfreezing (restart)", "gradual unfreezing"]


@pytest.mark.slow
def test_all_ways_of_unfreezing_are_drawn_side_by_side(tmp_path):
    ways = ("gu", "gu_state", "gu_schedule", "gu_state_schedule", "gu_restart", "full")
    cells = {f"rte/{way}/lr=2e-05/max_norm=inf": (0, 1) for way in ways}
    study = measured_study(tmp_path, cells, steps=40)
    [group] = unfreezing_groups(read_study(study).runs)
    assert list(group.runs) == [
        *("restart", "carry", "carry_state", "carry_schedule"),
        *("carry_state_schedule", "full"),
    ]
    section = unfreezing_section(*read_measured(study))
    assert section is not None
    scores, rmsd, _ = section.pictures
    for words in ("(moments kept)", "(one schedule)", "(moments kept, one schedule)"):
        assert words in scores.caption
    # The end of training, and the five ways iteration by iteration.
    assert len([axes for axes in rmsd.figure.axes if axes.get_title("left")]) == 6


def test_only_like_is_compared_with_like(tmp_path):
    cells = {
        GU: {},
        "rte/gu+cwgnc/lr=2e-05/max_norm=0.05": {},
        FULL: {"epochs": 3},
        "rte/full/lr=5e-05/max_norm=inf": {"epochs": 3},
        "rte/full+cwgnc/lr=2e-05/max_norm=0.05": {"epochs": 5},
    }
    records = [
        run_record(
            *(f"{cell}/seed=1", 0.6),
            **{"epochs": 3, "iterations": 2, "unfreezing": "carry"}
            if "/gu" in cell
            else changes,
        )
        for cell, changes in cells.items()
    ]
    groups = unfreezing_groups(read_study(write_study(tmp_path, records)).runs)
    found = {group.added: group.runs for group in groups}
    assert {added: list(runs) for added, runs in found.items()} == {
        "": ["carry", "full"],
        "cwgnc": ["carry"],
    }
    assert list(found[""]["full"]["learning_rate"]) == [2e-5]


def test_runs_that_are_no_numbers_leave_gaps(tmp_path):
    measured_study(tmp_path, {GU: (0, 2)}, steps=40)
    path = tmp_path / "components.jsonl"
    first, *lines = map(json.loads, path.read_text().splitlines())
    for line in lines:
        wrong = len(line["rmsd"]) if line["run"].endswith("=0") else 2
        line["rmsd"][:wrong], line["cosine"][:wrong] = ["inf"] * wrong, ["nan"] * wrong
    path.write_text("".join(json.dumps(line) + "\n" for line in [first, *lines]))
    assert len(write_unfreezing(tmp_path)) == 10


def test_a_study_without_unfreezing_is_refused(tmp_path):
    measured_study(tmp_path, {FULL: (0, 1)}, steps=40)
    message = "is of gradual unfreezing: the methods are full; add gu"
    with pytest.raises(UserError, match=message):
        write_unfreezing(tmp_path)


def test_the_report_of_unfreezing_runs_has_its_sections(study, tmp_path):
    text = write_report(study, tmp_path / "a").read_text()
    assert "<h2>Convergence racing</h2>" in text
    assert "<h2>Gradual unfreezing</h2>" in text
    assert "<td>3 × 3</td>" in text
    page = Page(text)
    assert not page.open
    assert len(page.links) == len(list((tmp_path / "a" / "figures").glob("*.svg")))


def test_a_report_of_scores_alone_has_no_section_of_components(tmp_path):
    plain = write_study(tmp_path, [run_record(f"{FULL}/seed=1", 0.7)])
    text = write_report(plain).read_text()
    assert "Convergence racing" not in text
    assert "Gradual unfreezing" not in text


def test_a_report_without_unfreezing_has_no_section_of_it(tmp_path):
    raced = measured_study(tmp_path, {FULL: (0, 1)}, 1, few=False, steps=40)
    text = write_report(raced).read_text()
    assert "<h2>Convergence racing</h2>" in text
    assert "Gradual unfreezing" not in text
