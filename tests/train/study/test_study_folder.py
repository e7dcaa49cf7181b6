"""What a study refuses, and leaves as it is."""

import json
import shutil

import pytest

from cwgnc_train.commands import run
from cwgnc_train.config import UserError
from tests.train.configs import replaced
from tests.train.study.conftest import of_kind, study, tiny_config


def snapshot(workdir):
    return {path.name: path.read_bytes() for path in workdir.iterdir()}


@pytest.fixture
def one(config):
    """A study of a single run."""
    return replaced(config, seeds=1, max_norms=(0.05,))


@pytest.fixture(scope="module")
def finished(tiny_model, tiny_glue, tmp_path_factory):
    """Such a study, whose run is done."""
    workdir = tmp_path_factory.mktemp("finished") / "study"
    config = tiny_config(tiny_model, tiny_glue, workdir)
    config = replaced(config, seeds=1, max_norms=(0.05,))
    study(config)
    return config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"resume": False}, "already holds runs; go on with them with --resume"),
        ({"batch_size": 4}, "other settings: batch_size was 8 and is 4"),
        (
            {"epochs": 3, "holdout": 0.2},
            "holdout was 0.1 and is 0.2; epochs was 2 and is 3",
        ),
        ({"eps": 1e-6}, "eps was None and is 1e-06"),
        ({"token_types": False}, "settings: token_types was True and is False"),
        ({"devices": 99}, "--devices 99: there are 8"),
        ({"devices": 3, "data_devices": 2}, "--data-devices must divide the 3 devices"),
        ({"batch_size": 9, "devices": 2, "data_devices": 2}, "batch_size was 8"),
        ({"model": "nowhere/at-all"}, "model was"),
    ],
    ids=str,
)
def test_a_study_of_other_settings_is_left_alone(finished, changes, message):
    before = snapshot(finished.workdir)
    with pytest.raises(UserError, match=message):
        study(finished, **changes)
    assert snapshot(finished.workdir) == before


def test_settings_are_all_but_the_axes_and_the_execution(one):
    study(one)
    settings = json.loads((one.workdir / "study.json").read_text())
    names = {"model", "batch_size", "holdout", "epochs", "record_every", "eps"}
    assert names | {"data", "weights", "commits"} <= settings.keys()
    free = {"workdir", "tasks", "seeds", "max_norms", "runs_per_program", "cache"}
    assert not free & settings.keys()
    assert settings["data"].keys() == settings["weights"].keys() == {"cola"}


def test_a_study_of_other_data_is_left_alone(one, tiny_glue, tmp_path):
    data = tmp_path / "glue"
    shutil.copytree(tiny_glue, data)
    one = replaced(one, data_dir=data)
    study(one)
    path = data / "CoLA" / "train.tsv"
    path.write_text(path.read_text().replace("cats", "dogs"))
    before = snapshot(one.workdir)
    with pytest.raises(UserError, match="other data of task: cola was"):
        study(one)
    assert snapshot(one.workdir) == before


def test_a_study_of_other_weights_is_left_alone(one, tiny_model, tmp_path):
    """Even if all its runs are finished: more of them would be of another model."""
    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)
    one = replaced(one, model=str(model))
    study(one)
    path = model / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(content)
    before = snapshot(one.workdir)
    with pytest.raises(UserError, match="other weights of task: cola was"):
        study(one, seeds=2)
    assert snapshot(one.workdir) == before


def test_more_new_layers_than_there_are_is_refused(config):
    with pytest.raises(UserError, match="reinit re-initialises 5 layers .* has 1"):
        study(config, methods=("reinit",))
    assert not config.workdir.exists()


def test_an_unknown_task_is_refused_before_anything_is_read(config):
    with pytest.raises(UserError, match="did you mean 'cola'"):
        study(config, tasks=("rte", "colla"))
    assert not config.workdir.exists()


def test_damaged_descriptions_and_foreign_folders_are_refused(config):
    config.workdir.mkdir()
    for content in ("{", "[]", "{}", '{"data": 1, "weights": {}, "commits": {}}'):
        (config.workdir / "study.json").write_text(content)
        with pytest.raises(UserError, match="study.json is damaged"):
            study(config)
    (config.workdir / "study.json").rename(config.workdir / "notes.txt")
    with pytest.raises(UserError, match="exists and is not an empty folder"):
        study(config)
    assert [path.name for path in config.workdir.iterdir()] == ["notes.txt"]


def test_a_study_that_died_at_once_is_begun_again(one):
    one.workdir.mkdir()
    (one.workdir / "study.json.tmp").write_text('{"mod')
    with pytest.raises(UserError, match="exists and is not an empty folder"):
        study(one, resume=False)
    assert len(of_kind(study(one), "run")) == 1


def test_bad_input_on_the_command_line_is_one_line(config, capsys):
    status = run(
        ["stability", "--model", config.model, "--workdir", str(config.workdir)]
        + ["--tasks", "cola", "--methods", "cwgncc"]
        + ["--data-dir", str(config.data.data_dir)]
    )
    assert status == 2 and not config.workdir.exists()
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "did you mean 'cwgnc'?" in error
