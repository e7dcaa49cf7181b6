import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

from cwgnc_train import study
from cwgnc_train.commands import run
from cwgnc_train.config import cache_folder
from cwgnc_train.engine import keep_programs

ROOT = Path(__file__).parents[3]
SETTINGS = (
    "jax_compilation_cache_dir",
    "jax_compilation_cache_max_size",
    "jax_persistent_cache_min_compile_time_secs",
)
# A command, and what became of it.
COMMAND = """
import collections, json, sys
import jax
from cwgnc_train.commands import run
from cwgnc_train.engine import seconds_saved
count = collections.Counter()
jax.monitoring.register_event_listener(lambda event, **_: count.update([event]))
with seconds_saved() as saved:
    status = run(sys.argv[1:])
print(json.dumps({
    "status": status,
    "saved": len(saved),
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
    compilation_cache.reset_cache()
    yield tmp_path / "cache" / "cwgnc_jax" / "programs"
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


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


@pytest.mark.parametrize("is_file", [True, False])
def test_where_nothing_can_be_written_no_program_is_kept(folder, is_file, monkeypatch):
    if is_file:
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


@pytest.fixture
def flags(tiny_model, tiny_data):
    """A run of a single step."""
    flags = ["--model", tiny_model, "--train-file", tiny_data[0]]
    flags += ["--validation-file", tiny_data[1], "--text-columns", "text"]
    flags += ["--epochs", 1, "--train-examples", 16, "--max-length", 8]
    return list(map(str, flags))


def contents(folder):
    """The files of a run without times; two that only summarise are left out."""
    summaries = ("results.json", "curves.png")
    volatile = re.compile(
        rb'"(seconds|own_seconds|finished_at|crc32)": ("[^"]*"|[\d.]+),? ?'
    )
    return {
        str(path.relative_to(folder)): volatile.sub(b"", path.read_bytes())
        for path in files(folder)
        if path.parent != folder or path.name not in summaries
    }


@pytest.mark.slow
def test_a_second_run_neither_compiles_nor_tokenizes_and_has_the_same_bits(
    flags, tmp_path
):
    results = []
    for name in ("cold", "warm"):
        arguments = ["finetune", *flags, "--workdir", str(tmp_path / name)]
        process = subprocess.run(
            [sys.executable, "-W", "error", "-c", COMMAND, *arguments],
            cwd=ROOT,
            env=os.environ
            | {
                "XDG_CACHE_HOME": str(tmp_path / "cache"),
                "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
            },
            capture_output=True,
            text=True,
        )
        assert process.returncode == 0, process.stderr
        results.append(json.loads(process.stdout.splitlines()[-1]))
    cold, warm = results
    assert cold["status"] == warm["status"] == 0
    # The training step and the evaluation at least.
    assert warm["hits"] >= cold["misses"] >= 2
    assert (cold["saved"], warm["saved"]) == (cold["hits"], warm["hits"])
    assert cold["transformers"] and not warm["transformers"]
    assert {
        "records.jsonl",
        "predictions.jsonl",
        "model/model.safetensors",
    } <= contents(tmp_path / "cold").keys()
    assert contents(tmp_path / "cold") == contents(tmp_path / "warm")


@pytest.mark.parametrize("more", [[], ["--no-cache"]])
def test_without_a_cache_nothing_is_kept(folder, flags, tmp_path, monkeypatch, more):
    # Training is left out: it keeps nothing of another kind.
    module = sys.modules[study.finetune.__module__]
    monkeypatch.setattr(module, "run_study", lambda prepared: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(["finetune", *flags, *more, "--workdir", str(tmp_path / "run")])
    if more:
        assert jax.config.jax_compilation_cache_dir is None
        assert not folder.parent.exists()
    else:
        assert jax.config.jax_compilation_cache_dir == str(folder)
        assert files(folder.parent / "tokens")
