"""What a study refuses, and leaves as it is."""

import dataclasses
import shutil

import pytest

from tests.train.experiments.conftest import (
    of_kind,
    study,
)
from train.__main__ import main


def snapshot(workdir):
    return {path.name: path.read_bytes() for path in workdir.iterdir()}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 4}, "other settings: batch_size was 8 and is 4"),
        ({"epochs": 3, "holdout": 0.2}, "holdout was 0.1 and is 0.2; epochs was 2"),
        ({"runs_per_program": 3, "devices": 2}, "3 runs cannot be split evenly"),
        ({"devices": 99}, "--devices 99: there are 8"),
        ({"batch_size": 9, "devices": 2, "data_devices": 2}, "batch_size was 8"),
        ({"model": "nowhere/at-all"}, "model was"),
    ],
)
def test_a_study_of_other_settings_is_left_alone(config, changes, message):
    study(config, seeds=1, max_norms=(0.05,))
    before = snapshot(config.workdir)
    with pytest.raises(ValueError, match=message):
        study(config, **changes)
    assert snapshot(config.workdir) == before


def test_a_study_of_other_data_is_left_alone(config, tiny_glue, tmp_path):
    data = tmp_path / "glue"
    shutil.copytree(tiny_glue, data)
    config = dataclasses.replace(config, data_dir=data, seeds=1, max_norms=(0.05,))
    study(config)
    path = data / "CoLA" / "train.tsv"
    path.write_text(path.read_text().replace("cats", "dogs"))
    with pytest.raises(ValueError, match="other data of task: cola was"):
        study(config)


def test_more_new_layers_than_there_are_is_refused(config):
    with pytest.raises(ValueError, match="'reinit' draws the top 5 layers .* has 2"):
        study(config, methods=("reinit",))
    assert not config.workdir.exists()


def test_an_unknown_task_is_refused_before_anything_is_read(config):
    with pytest.raises(ValueError, match="did you mean 'cola'"):
        study(config, tasks=("rte", "colla"))
    assert not config.workdir.exists()


def test_damaged_descriptions_and_foreign_folders_are_refused(config):
    config.workdir.mkdir()
    (config.workdir / "study.json").write_text("{")
    with pytest.raises(ValueError, match="study.json is damaged"):
        study(config)
    (config.workdir / "study.json").rename(config.workdir / "notes.txt")
    with pytest.raises(FileExistsError, match="exists and is no empty folder"):
        study(config)


def test_a_study_that_died_at_once_is_begun_again(config):
    config.workdir.mkdir()
    (config.workdir / "study.json.tmp").write_text('{"mod')
    lines = study(config, seeds=1, max_norms=(0.05,))
    assert len(of_kind(lines, "run")) == 1


def test_bad_input_on_the_command_line_is_one_line(config, capsys):
    status = main(
        ["stability", "--model", config.model, "--workdir", str(config.workdir)]
        + ["--tasks", "cola", "--methods", "cwgncc", "--data-dir", str(config.data_dir)]
    )
    assert status == 2 and not config.workdir.exists()
    assert capsys.readouterr().err.count("\n") == 1
