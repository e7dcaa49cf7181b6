import contextlib
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from train.caches import cache_folder, keep_programs

ROOT = Path(__file__).parents[2]
SETTINGS = (
    "jax_compilation_cache_dir",
    "jax_compilation_cache_max_size",
    "jax_persistent_cache_min_compile_time_secs",
)
# A command, and what became of it.
COMMAND = """
import collections, json, sys
import jax
from train.__main__ import main
count = collections.Counter()
jax.monitoring.register_event_listener(lambda event, **_: count.update([event]))
status = main(sys.argv[1:])
print(json.dumps({
    "status": status,
    "hits": count["/jax/compilation_cache/cache_hits"],
    "misses": count["/jax/compilation_cache/cache_misses"],
    "transformers": "transformers" in sys.modules,
}))
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where JAX is to keep programs; it is not told so beyond the test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    before = {name: getattr(jax.config, name) for name in SETTINGS}
    jax.config.update("jax_compilation_cache_dir", None)
    yield tmp_path / "cache" / "cwgnc_jax" / "programs"
    for name, value in before.items():
        jax.config.update(name, value)


def files(folder):
    return {path for path in folder.rglob("*") if path.is_file()}


def test_the_folder_is_that_of_the_user(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder("tokens") == tmp_path / "cwgnc_jax" / "tokens"
    monkeypatch.setenv("HOME", "/home/me")
    for value in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        assert cache_folder("tokens") == Path("/home/me/.cache/cwgnc_jax/tokens")


def test_without_a_home_there_is_no_cache(folder, monkeypatch):
    def home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", home)
    assert cache_folder("tokens") is None
    keep_programs()
    assert jax.config.jax_compilation_cache_dir is None


def test_programs_are_kept_in_a_folder_of_the_users_alone(folder):
    keep_programs()
    assert jax.config.jax_compilation_cache_dir == str(folder)
    assert jax.config.jax_compilation_cache_max_size > 0
    assert folder.stat().st_mode & 0o777 == 0o700


def test_a_folder_that_jax_was_given_is_left_alone(folder, tmp_path):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "other"))
    before = {name: getattr(jax.config, name) for name in SETTINGS}
    keep_programs()
    assert {name: getattr(jax.config, name) for name in SETTINGS} == before
    assert not folder.exists()


@pytest.mark.parametrize("writable", [True, False])
def test_where_nothing_can_be_written_no_program_is_kept(folder, writable, monkeypatch):
    if writable:
        folder.parent.mkdir(parents=True)
        folder.write_text("a file")
    else:
        # Who may do everything, as in many containers, is not held by permissions.
        monkeypatch.setattr(os, "access", lambda path, mode: False)
    keep_programs()
    assert jax.config.jax_compilation_cache_dir is None


def test_programs_cut_off_in_writing_are_removed(folder):
    folder.mkdir(parents=True)
    for name in ("whole-cache", "whole-atime", "torn-cache", ".lockfile"):
        (folder / name).write_text("")
    keep_programs()
    left = {path.name for path in folder.iterdir()}
    assert left == {"whole-cache", "whole-atime", ".lockfile"}


@pytest.fixture(scope="module")
def finetuned(tiny_model, tiny_data, tmp_path_factory):
    """The same run three times: nothing kept, everything kept, and without a cache."""
    folder, results = tmp_path_factory.mktemp("runs"), []
    flags = ["--model", tiny_model, "--train-file", tiny_data[0]]
    flags += ["--validation-file", tiny_data[1], "--text-columns", "text"]
    flags += ["--epochs", 1, "--max-length", 16, "--dropout", 0.1]
    for name, cache, more in (
        ("cold", "cache", []),
        ("warm", "cache", []),
        ("none", "no_cache", ["--no-cache"]),
    ):
        flags_of_one = ["finetune", *flags, *more, "--workdir", folder / name]
        process = subprocess.run(
            [sys.executable, "-W", "error", "-c", COMMAND, *map(str, flags_of_one)],
            cwd=ROOT,
            env=os.environ
            | {
                "XDG_CACHE_HOME": str(folder / cache),
                "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
            },
            capture_output=True,
            text=True,
        )
        assert process.returncode == 0, process.stderr
        results.append(json.loads(process.stdout.splitlines()[-1]))
        assert results[-1].pop("status") == 0
    return folder, *results


def test_the_second_run_compiles_nothing_that_takes_time(finetuned):
    _, cold, warm, none = finetuned
    assert cold["misses"] >= 2 and warm["hits"] >= cold["misses"]
    assert warm["misses"] == none["misses"] == none["hits"] == 0


def test_the_second_run_needs_no_tokenizer(finetuned):
    _, cold, warm, none = finetuned
    assert cold["transformers"] and none["transformers"]
    assert not warm["transformers"]


def test_without_a_cache_nothing_is_kept(finetuned):
    folder = finetuned[0]
    kept = {path.parent.name for path in files(folder / "cache" / "cwgnc_jax")}
    assert kept >= {"programs", "tokens"}
    assert not (folder / "no_cache" / "cwgnc_jax").exists()


def test_a_cache_changes_no_bit(finetuned):
    contents = []
    for name in ("cold", "warm", "none"):
        folder = finetuned[0] / name
        with contextlib.suppress(FileNotFoundError):
            (folder / "results.json").unlink()
        contents.append(
            {
                str(path.relative_to(folder)): hashlib.sha256(
                    path.read_bytes()
                ).digest()
                for path in files(folder)
                if path.name not in ("results.json", "config.json", "curves.png")
            }
        )
    assert {"metrics.jsonl", "model/model.safetensors"} <= contents[0].keys()
    assert contents[0] == contents[1] == contents[2]
