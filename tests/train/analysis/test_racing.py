import math

import numpy as np
import pandas as pd
import pytest

from cwgnc_train.analysis import write_racing, write_unfreezing
from cwgnc_train.analysis.component_courses import ComponentCourses, Course, locate
from cwgnc_train.analysis.convergence import (
    distance_shares,
    finite_mean,
    halfway_steps,
    racing_index,
)
from cwgnc_train.analysis.racing_section import racing_section
from cwgnc_train.analysis.sections import read_measured
from cwgnc_train.config import UserError
from tests.train.analysis.conftest import (
    components_record,
    measured_study,
    run_record,
    write_components,
    write_study,
)

FULL = "rte/full/lr=2e-05/max_norm=inf"
CWGNC = "rte/cwgnc/lr=2e-05/max_norm=0.05"
GU = "rte/gu/lr=2e-05/max_norm=inf"
KINDS = ("query/kernel", "value/kernel", "output/kernel")


def racing(steps, columns, kinds=KINDS):
    """The components and course of a run, by the distances of each component."""
    names = [f"bert/encoder/layer/0/attention/self/{kind}" for kind in kinds]
    rmsd = np.array(columns, float).T
    ones = np.ones_like(rmsd)
    course = Course(
        steps=np.array(steps), rmsd=rmsd, cosine=ones, grad_norm=ones, param_norm=ones
    )
    return ComponentCourses(locate(names), {"a": course}), course


def test_halfway_lies_between_the_measured_steps():
    # Half of 4 is 2: between 1 (step 1) and 3 (step 11), so at 6. Half of 2 is reached
    # between 0 (step 0) and 1.6 (step 1), so at 1 / 1.6.
    steps, rmsd = np.array([1, 11, 21]), np.array([[1, 1.6], [3, 1.9], [4, 2.0]])
    np.testing.assert_allclose(halfway_steps(steps, rmsd), [6, 0.625])


def test_halfway_is_where_half_is_first_reached():
    steps, rmsd = np.array([10, 20, 30]), np.array([[6.0], [1.0], [4.0]])
    np.testing.assert_allclose(halfway_steps(steps, rmsd), [10 / 3])


def test_of_a_plateau_at_half_the_first_step_counts():
    steps, rmsd = np.array([10, 20, 30, 40]), np.array([[1.0], [2.0], [2.0], [4.0]])
    np.testing.assert_allclose(halfway_steps(steps, rmsd), [20])


def test_what_ends_at_its_start_or_nowhere_has_no_halfway_and_no_shares():
    steps, nan, inf = np.array([10, 20]), math.nan, math.inf
    ends = [(0.2, 0.0), (0.0, 0.0), (0.2, inf), (0.2, nan), (0.0, 0.4)]
    rmsd = np.array(ends).T
    np.testing.assert_allclose(halfway_steps(steps, rmsd), [nan] * 4 + [15])
    shares = distance_shares(steps, rmsd, np.array([5, 15, 20]))
    np.testing.assert_allclose(shares[:, :4], nan)
    np.testing.assert_allclose(shares[:, 4], [0, 0.5, 1])
    # A number that is missing on the way takes its surroundings along.
    lost = distance_shares(np.array([10, 20, 30]), np.array([[nan], [2], [4]]), steps)
    np.testing.assert_allclose(lost[:, 0], [nan, 0.5])
    halfway = halfway_steps(np.array([10, 20, 30]), np.array([[nan], [2], [4]]))
    np.testing.assert_allclose(halfway, [nan])


def test_the_mean_is_over_what_is_finite():
    values = [[1, 3, math.nan], [math.inf, 5, math.nan], [math.nan, 10, -math.inf]]
    np.testing.assert_allclose(finite_mean(np.array(values)), [1, 6, math.nan])


def test_the_share_of_the_distance_is_half_where_halfway_is():
    steps, rmsd = np.array([1, 11, 21]), np.array([[1, 1.6], [3, 1.9], [4, 2.0]])
    shares = distance_shares(steps, rmsd, halfway_steps(steps, rmsd))
    np.testing.assert_allclose(np.diag(shares), 0.5)


def test_the_index_of_an_example_worked_by_hand():
    # Half-way at steps 10, 30 and 20 of 40: shares 0.25, 0.75 and 0.5, whose standard
    # deviation is the root of (0.0625 + 0.0625 + 0) / 3.
    columns = [[2, 3, 4, 4], [0, 0, 1, 2], [1, 2, 3, 4]]
    measured, course = racing([10, 20, 30, 40], columns)
    assert racing_index(measured, course, 40) == pytest.approx(math.sqrt(0.125 / 3))


def test_the_index_leaves_out_what_ends_at_its_start_alone():
    # Halfway at 10, 5 and 15 of 20 steps; the last comes back to where it started.
    columns = [[1, 1], [0.8, 0.8], [0, 1], [0.3, 0]]
    kinds = (*KINDS, "output/bias")
    shares = np.array([0.25, 0.25, 0.75])
    index = racing_index(*racing([10, 20], columns, kinds), 20)
    assert index == pytest.approx(shares.std())


def test_the_index_of_one_pace_is_zero():
    measured, course = racing([10, 20], [[1, 2], [5, 10], [0.1, 0.2]])
    assert racing_index(measured, course, 20) == 0


def test_key_biases_and_frozen_components_are_left_out():
    columns = [[2, 3, 4, 4], [0, 0, 1, 2]]
    expected = racing_index(*racing([10, 20, 30, 40], columns, KINDS[:2]), 40)
    assert expected == pytest.approx(0.25)
    extra = [[0, 0, 0, 0], [9, 1, 0, math.nan]]
    kinds = (*KINDS[:2], "output/bias", "key/bias")
    assert racing_index(*racing([10, 20, 30, 40], columns + extra, kinds), 40) == (
        expected
    )


def test_the_index_is_undefined_for_one_component_or_values_that_are_not_finite():
    assert math.isnan(racing_index(*racing([1, 2], [[1, 2]], KINDS[:1]), 2))
    for wrong in (math.nan, math.inf):
        columns = [[1, 2], [wrong, 2], [1, 2]]
        assert math.isnan(racing_index(*racing([1, 2], columns), 2))


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return measured_study(tmp_path_factory.mktemp("racing"), {FULL: (2, 2), GU: (0, 1)})


@pytest.fixture(scope="module")
def files(study):
    return write_racing(study)


def test_every_figure_is_written(files, study):
    kinds = "race halfway grad_norm_by_type grad_norm_by_layer param_norm_by_type"
    names = {
        f"{kind}_rte_full_lr=2e-5_max_norm=inf"
        for kind in [*kinds.split(), "param_norm_by_layer"]
    }
    assert {path.stem for path in files} == names | {"racing"}
    assert all(path.is_file() for path in files)
    assert {path.parent for path in files} == {study / "racing"}


@pytest.mark.slow
def test_the_same_records_give_the_same_files(files, study, tmp_path):
    again = write_racing(study, tmp_path)
    assert len(again) == len(files) == 14
    for path, other in zip(files, again, strict=True):
        assert path.read_bytes() == other.read_bytes(), path.name


def test_the_table_has_a_row_a_run_and_shows_a_row_a_cell(tmp_path):
    study = measured_study(tmp_path, {FULL: (2, 2), CWGNC: (0, 2), GU: (0, 1)})
    section = racing_section(*read_measured(study))
    assert section is not None
    section.tables[0].write(tmp_path)
    table = pd.read_csv(tmp_path / "racing.csv")
    assert list(table["method"]) == ["full"] * 4 + ["cwgnc"] * 2
    assert all(table["racing_index"] > 0)
    text = (tmp_path / "racing.md").read_text()
    index = table["racing_index"][table["failed"]]
    mean, std = index.mean(), index.std(ddof=0)
    assert f"| none | 4, 2 | {mean:.3f} ± {std:.3f} |" in text
    assert "| 0.05 | 2, 0 | – |" in text
    assert "Runs of gradual unfreezing are left out" in text


@pytest.mark.parametrize(
    ("runs", "kind"), [((1, 0), "1 failed run"), ((0, 2), "2 successful runs")]
)
def test_runs_of_one_kind_are_drawn_alone(tmp_path, runs, kind):
    section = racing_section(*read_measured(measured_study(tmp_path, {FULL: runs})))
    assert section is not None
    assert {picture.name.partition("_rte")[0] for picture in section.pictures} == {
        *("race", "halfway", "grad_norm_by_type", "param_norm_by_type")
    }
    other = "none has succeeded" if runs[0] else "none has failed"
    for picture in section.pictures:
        assert f"Means over {kind}; {other}." in picture.caption
        assert "bert-tiny" in picture.caption
    (panel, *_) = section.pictures[0].figure.axes
    assert panel.get_title(loc="left") == f"{kind}; {other}"


def test_numbers_that_are_not_finite_do_not_break_figures(tmp_path):
    names = ["bert/encoder/layer/0/attention/self/query/kernel", "classifier/kernel"]
    runs = [f"{FULL}/seed={i}" for i in range(3)]
    values = [[0.1, 0.2], [math.nan, 0.3], [math.nan, math.inf]]
    lines = [
        components_record(run, step, numbers, grad_norm=numbers, param_norm=numbers)
        for run in runs[:2]
        for step, numbers in enumerate(values[: 2 if run == runs[0] else 3], 1)
    ]
    zeros = {"grad_norm": [0, 0], "param_norm": [0, 0]}
    lines.append(components_record(runs[2], 1, [0, 0], **zeros))
    write_study(tmp_path, [run_record(run, "nan", steps=3) for run in runs])
    files = write_racing(write_components(tmp_path, names, lines))
    table = pd.read_csv(files[0])
    assert all(table["racing_index"].isna())
    assert "| 3, 3 | – | – |" in files[1].read_text()


@pytest.mark.parametrize(
    "name", ["classifier/kernel", "bert/embeddings/word_embeddings/embedding"]
)
def test_components_outside_the_layers_race_alone(tmp_path, name):
    run = f"{FULL}/seed=1"
    lines = [components_record(run, step, [step]) for step in (1, 2)]
    write_study(tmp_path, [run_record(run, 0.7, steps=2)])
    files = write_racing(write_components(tmp_path, [name], lines))
    kinds = {path.stem.partition("_rte")[0] for path in files}
    assert kinds == {"racing", "race", "grad_norm_by_layer", "param_norm_by_layer"}


@pytest.mark.parametrize("write", [write_racing, write_unfreezing])
def test_missing_records_are_named(tmp_path, write):
    with pytest.raises(UserError, match=r"has no study\.json"):
        write(tmp_path)
    write_study(tmp_path, [run_record(f"{FULL}/seed=1", 0.7)])
    with pytest.raises(UserError, match="run the command with --statistics-every 20"):
        write(tmp_path)
    line = components_record("another", 1, [0])
    write_components(tmp_path, ["classifier/bias"], [line])
    with pytest.raises(UserError, match="no finished run in"):
        write(tmp_path)


def test_gradual_unfreezing_alone_is_no_race(tmp_path):
    measured_study(tmp_path, {GU: (0, 1)}, steps=40)
    with pytest.raises(UserError, match="is of gradual unfreezing.*another method"):
        write_racing(tmp_path)
