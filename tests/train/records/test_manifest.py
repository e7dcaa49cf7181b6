"""The manifest of a folder: whether its files are those that were written."""

import os

import pytest

from cwgnc_train.records import verify_manifest, write_manifest


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "folder"
    (path / "inner").mkdir(parents=True)
    (path / "a").write_bytes(b"abc")
    (path / "inner" / "b").write_bytes(b"")
    write_manifest(path)
    return path


def cut(path):
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: None, None),
        (lambda f: (f / "inner" / "b").unlink(), "inner/b is missing"),
        (lambda f: (f / "inner" / "b").write_bytes(b"x"), "inner/b has changed"),
        (lambda f: cut(f / "a"), "a has changed"),
        (lambda f: (f / "c").touch(), "c is not in manifest.json"),
        (lambda f: (f / "manifest.json").unlink(), "manifest.json is missing"),
        (lambda f: cut(f / "manifest.json"), "manifest.json is no JSON"),
        (
            lambda f: (f / "manifest.json").write_text("[]"),
            "manifest.json is no JSON object",
        ),
    ],
)
def test_any_change_of_a_folder_is_named(folder, damage, message):
    damage(folder)
    assert verify_manifest(folder) == message


def test_a_file_that_cannot_be_read_is_damage(folder):
    os.remove(folder / "manifest.json")
    (folder / "manifest.json").mkdir()
    assert verify_manifest(folder) == "cannot be read: Is a directory"
