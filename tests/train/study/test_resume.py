"""Runs of ``finetune`` that were interrupted and go on."""

import functools
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cwgnc_train.commands import run
from cwgnc_train.engine import Checkpoints, Inputs, loop
from cwgnc_train.records import verify_manifest
from cwgnc_train.study import worker
from tests.train.study.conftest import (
    at_call,
    everything,
    of_kind,
    records,
    signal_at,
    steps_taken,
)

NAME = "own/finetune/lr=0.003/max_norm=0.05/seed=1"


@pytest.fixture(scope="module")
def arguments(tiny_model, tiny_data):
    train_file, validation_file = tiny_data

    def build(workdir, *more, **changes):
        values = {
            "model": tiny_model,
            "train-file": train_file,
            "validation-file": validation_file,
            "text-columns": "text",
            "preset": "code",
            "epochs": 4,
            "learning-rate": 3e-3,
            "dropout": 0.1,
            "max-length": 16,
            "padding": "max_length",
            "record-every": 5,
            "norms-every": 4,
            "eval-batch-size": 10,
            "keep": 9,
            "workdir": workdir,
        } | {k.replace("_", "-"): v for k, v in changes.items()}
        pairs = [(f"--{k}", str(v)) for k, v in values.items() if v is not None]
        return ["finetune", *(part for pair in pairs for part in pair), *more]

    return build


@pytest.fixture
def flags(arguments, tmp_path):
    return functools.partial(arguments, tmp_path / "run")


@pytest.fixture(scope="module")
def unbroken(arguments, tmp_path_factory):
    """A run without interruption; it is too short for checkpoints."""
    workdir = tmp_path_factory.mktemp("unbroken")
    assert run(arguments(workdir)) == 0
    assert not (workdir / "checkpoints").exists()
    return workdir


@pytest.fixture(scope="module")
def stopped_once(arguments, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("stopped")
    with pytest.MonkeyPatch.context() as patch:
        assert stop(patch, arguments(workdir), 2) == 143
        assert stop(patch, arguments(workdir, "--resume"), 2) == 143
    assert checkpoints(workdir) == ["2", "4"]
    return workdir


@pytest.fixture
def stopped(stopped_once, tmp_path):
    """A run of twelve steps with checkpoints of steps 2 and 4."""
    return Path(shutil.copytree(stopped_once, tmp_path / "run"))


def killed():
    raise SystemExit


def stop(monkeypatch, flags, number, signum=signal.SIGTERM):
    """Runs a command that a signal comes to in a step, counted from 1."""
    with monkeypatch.context() as patch:
        signal_at(patch, number, signum)
        return run(flags)


def checkpoints(workdir):
    [folder] = (workdir / "checkpoints").iterdir()
    assert folder.name == NAME.replace("/", ",")
    return sorted((path.name for path in folder.iterdir()), key=int)


def digests(folder):
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


def lasting(workdir):
    """What a run must have in common with an unbroken one."""
    results = json.loads((workdir / "results.json").read_text())
    del results["seconds"], results["finished_at"]
    model = digests(workdir / "model")
    return everything(workdir), results, {path.name: model[path] for path in model}


def test_a_stopped_run_goes_on_to_the_same_bits(
    flags, unbroken, stopped, monkeypatch, capsys
):
    assert stop(monkeypatch, flags("--resume"), 3, signal.SIGINT) == 130
    assert "SIGINT; the same command with --resume goes on" in capsys.readouterr().err
    assert run(flags("--resume")) == 0
    assert lasting(stopped) == lasting(unbroken)
    # Components and predictions have no times in them.
    for name in ("components.jsonl", "predictions.jsonl"):
        assert (stopped / name).read_bytes() == (unbroken / name).read_bytes()
    # There is nothing left to do.
    before = digests(stopped)
    assert run(flags("--resume")) == 0
    assert digests(stopped) == before


@pytest.mark.parametrize(("batch", "signum"), [(1, signal.SIGTERM), (2, signal.SIGINT)])
def test_a_signal_in_the_last_evaluation_costs_nothing_but_it(
    flags, unbroken, tmp_path, monkeypatch, capsys, signum, batch
):
    real, calls = loop.evaluate, []

    def evaluate(program, params, inputs, *check):
        def counted():
            calls.append(1)
            check[0]()
            if len(calls) == batch:
                os.kill(os.getpid(), signum)

        # Those before the end cannot be interrupted.
        return real(program, params, inputs, *(counted for _ in check))

    with monkeypatch.context() as patch:
        patch.setattr(loop, "evaluate", evaluate)
        assert run(flags("--resume")) == 128 + signum
    # The next batch is not begun.
    assert len(calls) == 2
    assert "the same command with --resume goes on" in capsys.readouterr().err
    assert checkpoints(tmp_path / "run") == ["12"]
    [path] = (tmp_path / "run" / "checkpoints").glob("*/12")
    assert verify_manifest(path) is None
    assert not (tmp_path / "run" / "results.json").exists()
    taken = steps_taken(monkeypatch)
    assert run(flags("--resume")) == 0
    assert not taken
    assert lasting(tmp_path / "run") == lasting(unbroken)


def test_records_after_the_checkpoint_are_made_anew(flags, unbroken, stopped):
    for name in ("records", "components", "predictions"):
        with (stopped / f"{name}.jsonl").open("a") as file:
            for step in (5, 12):
                line = {"kind": "metrics", "run": NAME, "step": step, "loss": 1.0}
                file.write(json.dumps(line) + "\n")
            file.write('{"step": 6, "lo')
    assert run(flags("--resume")) == 0
    assert lasting(stopped) == lasting(unbroken)


def test_a_run_killed_before_its_first_checkpoint_starts_again(
    flags, tmp_path, monkeypatch
):
    flags = functools.partial(flags, record_every=1)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "study.json.tmp").write_text("{")
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        at_call(patch, 7, killed)
        run(flags("--resume"))
    assert not (tmp_path / "run" / "checkpoints").exists()
    assert run(flags()) == 2
    assert run(flags("--resume")) == 0
    lines = of_kind(records(tmp_path / "run"), "metrics")
    assert [line["step"] for line in lines] == [*range(1, 13)]


def test_checkpoints_are_written_when_due_and_go_when_the_run_is_done(
    flags, tmp_path, monkeypatch
):
    saved = []
    real = Checkpoints.save
    monkeypatch.setattr(
        Checkpoints,
        "save",
        lambda self, step, *a: (saved.append(step), real(self, step, *a)),
    )
    assert run(flags(keep=None, checkpoint_seconds=0)) == 0
    # After evaluations and lines of losses, and after every ten steps.
    assert saved == [3, 5, 6, 9, 10]
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_the_last_checkpoints_are_kept_on_demand(flags, tmp_path):
    assert run(flags(keep=2, checkpoint_seconds=0)) == 0
    assert checkpoints(tmp_path / "run") == ["9", "10"]


def test_evaluations_before_the_end_are_recorded_and_the_best_is_kept(
    flags, tmp_path, monkeypatch
):
    more = ("--keep-best", "--evaluations", "3")
    # A signal that comes while step 5 is taken, after the evaluation at step 4.
    assert stop(monkeypatch, flags(*more, keep=1), 5) == 143
    assert run(flags(*more, "--resume", keep=1)) == 0
    lines = of_kind(records(tmp_path / "run"), "evaluation")
    assert [line["step"] for line in lines] == [4, 8, 12]
    best = max(lines[:2], key=lambda line: line["scores"]["accuracy"])["step"]
    assert set(checkpoints(tmp_path / "run")) == {str(best), "8"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 5}, "other settings: epochs was 4 and is 5. Give the same"),
        ({"b1": 0.8, "dropout": 0.2}, "b1 was 0.9 and is 0.8; dropout was 0.1 and is"),
        ({"checkpoint_seconds": -1}, "--checkpoint-seconds must be at least 0"),
        ({"keep": 0}, "--keep must be at least 1"),
    ],
    ids=str,
)
def test_a_run_with_other_settings_is_not_resumed(
    flags, stopped, capsys, changes, message
):
    before = digests(stopped)
    assert run(flags("--resume", **changes)) == 2
    assert re.search(message, capsys.readouterr().err)
    assert digests(stopped) == before


def test_a_run_on_other_data_or_of_other_weights_is_not_resumed(
    flags, stopped, capsys, monkeypatch, tiny_data, tmp_path
):
    other = tmp_path / "train.tsv"
    other.write_bytes(tiny_data[0].read_bytes())
    before = digests(stopped)
    assert run(flags("--resume", train_file=other)) == 2
    assert "train_file was" in capsys.readouterr().err
    for name in ("data", "weights"):
        with monkeypatch.context() as patch:
            patch.setattr(Inputs, f"{name}_digest", "other")
            assert run(flags("--resume")) == 2
        message = f"other {name} of task: own was .* and is other"
        assert re.search(message, capsys.readouterr().err)
    assert digests(stopped) == before


def test_keep_best_needs_evaluations(flags, capsys):
    for changes in ({"evaluations": 1}, {"epochs": 1}):
        assert run(flags("--keep-best", **changes)) == 2
        assert "give --evaluations 2 or more" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "study.json",
            b"",
            "study.json is damaged: expected .* a JSON object; restore",
        ),
        ("study.json", b"[]", "study.json is damaged: expected .* as a JSON object"),
        ("study.json", b"{}", "study.json is damaged: expected the study's settings"),
        ("study.json", None, "study.json is missing: expected the settings"),
        ("records.jsonl", b"", "records.jsonl has changed or lacks records"),
        ("components.jsonl", b"", "components.jsonl has changed or lacks records"),
        ("records.jsonl", None, "No whole checkpoint is left: restore one, or remove"),
        ("components.jsonl", b"{\n", "components.jsonl, line 1: expected a JSON obj"),
    ],
)
def test_damaged_files_are_named_and_nothing_is_touched(
    flags, stopped, capsys, name, content, message
):
    path = stopped / name
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    before = digests(stopped)
    assert run(flags("--resume")) == 2
    captured = capsys.readouterr().err
    assert captured.count("\n") == 1 and re.search(message, captured)
    after = digests(stopped)
    if content is None and path in after:
        # Where it is missing there is an empty one, which is locked.
        assert path.stat().st_size == 0
        del after[path]
    assert after == before


def test_the_newest_whole_checkpoint_and_records_are_used(
    flags, unbroken, stopped, capsys
):
    path = stopped / "components.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    assert [json.loads(line)["kind"] for line in lines] == ["names", "norms", "norms"]
    path.write_bytes(b"".join(lines[:2]))
    assert run(flags("--resume")) == 0
    said = capsys.readouterr().err
    assert re.search(r"4 is damaged: .*components.jsonl has changed.*: not u", said)
    assert "at step 2" in said
    assert lasting(stopped) == lasting(unbroken)


def test_a_checkpoint_that_was_not_written_to_its_end_is_not_used(
    flags, unbroken, stopped, capsys
):
    [manifest] = stopped.glob("checkpoints/*/4/manifest.json")
    manifest.unlink()
    assert run(flags("--resume")) == 0
    said = capsys.readouterr().err
    assert re.search(r"4 was not written to its end: not used", said)
    assert "at step 2" in said
    assert lasting(stopped) == lasting(unbroken)


def test_a_resume_elsewhere_says_so_and_goes_on(flags, stopped, capsys, monkeypatch):
    real = worker.fingerprint
    monkeypatch.setattr(
        worker, "fingerprint", lambda layout: real(layout) | {"device": "abacus"}
    )
    assert run(flags("--resume")) == 0
    said = capsys.readouterr().err
    assert said.count("not to the same bits") == 1 and "is 'abacus'" in said


def test_a_workdir_that_holds_a_run_names_resume(flags, stopped, capsys):
    before = digests(stopped)
    assert run(flags()) == 2
    assert "go on with them with --resume" in capsys.readouterr().err
    assert digests(stopped) == before


def test_a_second_signal_ends_at_once():
    code = (
        "import os, signal, time\nfrom cwgnc_train.engine import Interruption\n"
        "with Interruption() as interruption:\n"
        "  os.kill(os.getpid(), signal.SIGTERM)\n"
        "  assert interruption.signum == signal.SIGTERM\n"
        "  os.kill(os.getpid(), signal.SIGINT)\n"
        "  time.sleep(60)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60)
    assert done.returncode == -signal.SIGINT
    assert b"the next signal ends at once" in done.stderr


@pytest.mark.slow
def test_a_full_disk_ends_with_a_message_and_the_last_checkpoint_whole(
    arguments, tmp_path
):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", disk])
    if mounted.returncode:
        # A person without the right to mount has the simulated full disk of
        # test_checkpoints.py; where CI runs nothing may go untested.
        assert "CI" not in os.environ, "CI must be allowed to mount a small tmpfs"
        pytest.skip("mounting a small tmpfs is not allowed here")
    try:
        command = [sys.executable, "-m", "cwgnc_train"]
        command += arguments(disk / "run", "--resume", checkpoint_seconds=0, epochs=40)
        # So that only some checkpoints fit.
        (disk / "filler").write_bytes(bytes(500_000))
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 2, done.stderr
        assert re.search("error: cannot write the checkpoint of step", done.stderr)
        assert "the last one is" in done.stderr and "Traceback" not in done.stderr
        kept = list((disk / "run" / "checkpoints").glob("*/*/manifest.json"))
        assert kept and not any(verify_manifest(path.parent) for path in kept)
        (disk / "filler").unlink()
        subprocess.run(["mount", "-o", "remount,size=64m", disk], check=True)
        assert subprocess.run(command).returncode == 0
        assert (disk / "run" / "results.json").exists()
    finally:
        subprocess.run(["umount", disk], check=True)
