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

from train import loop
from train.__main__ import main
from train.manifest import damage

pytestmark = pytest.mark.usefixtures("compilation_cache")


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
            "norms-every": 4,
            "keep": 9,
            "workdir": workdir,
        } | {k.replace("_", "-"): v for k, v in changes.items()}
        pairs = [(f"--{k}", str(v)) for k, v in values.items()]
        return ["finetune", *(part for pair in pairs for part in pair), *more]

    return build


@pytest.fixture
def flags(arguments, tmp_path):
    return functools.partial(arguments, tmp_path / "run")


@pytest.fixture(scope="module")
def unbroken(arguments, tmp_path_factory, compilation_cache):
    """A run without interruption; it is too short for checkpoints."""
    workdir = tmp_path_factory.mktemp("unbroken")
    assert main(arguments(workdir)) == 0
    assert not (workdir / "checkpoint").exists()
    return workdir


@pytest.fixture(scope="module")
def stopped_once(arguments, tmp_path_factory, compilation_cache):
    workdir = tmp_path_factory.mktemp("stopped")
    with pytest.MonkeyPatch.context() as patch:
        assert stop(patch, arguments(workdir), 2) == 143
        assert stop(patch, arguments(workdir, "--resume"), 2) == 143
    names = [path.name for path in (workdir / "checkpoint").iterdir()]
    assert sorted(names) == ["00000002", "00000004"]
    return workdir


@pytest.fixture
def stopped(stopped_once, tmp_path):
    """A run of twelve steps with checkpoints of steps 2 and 4."""
    return Path(shutil.copytree(stopped_once, tmp_path / "run"))


def before_step(monkeypatch, number, action):
    """Has an action before a step, counted from 1 in each process."""
    real = loop.train

    def train(step_fn, run, first, ends, stopped):
        def counted(run, step, end):
            if step == first + number - 1:
                action()
            return step_fn(run, step, end)

        return real(counted, run, first, ends, stopped)

    monkeypatch.setattr(loop, "train", train)


def killed():
    raise SystemExit


def stop(monkeypatch, flags, number, signum=signal.SIGTERM):
    with monkeypatch.context() as patch:
        before_step(patch, number, lambda: os.kill(os.getpid(), signum))
        return main(flags)


def digests(folder):
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


def lasting(workdir):
    """What a run must have in common with an unbroken one."""
    results = json.loads((workdir / "results.json").read_text())
    del results["seconds"]
    model = digests(workdir / "model")
    records = (workdir / "metrics.jsonl").read_bytes()
    return records, results, {path.name: model[path] for path in model}


def test_a_stopped_run_goes_on_to_the_same_bits(
    flags, unbroken, stopped, monkeypatch, capsys
):
    assert stop(monkeypatch, flags("--resume"), 3, signal.SIGINT) == 130
    assert "SIGINT; the same command with --resume goes on" in capsys.readouterr().err
    assert main(flags("--resume")) == 0
    assert lasting(stopped) == lasting(unbroken)
    # There is nothing left to do.
    before = digests(stopped)
    assert main(flags("--resume")) == 0
    assert digests(stopped) == before


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("batch", [1, 2])
def test_a_signal_in_the_last_evaluation_costs_nothing_but_it(
    flags, unbroken, tmp_path, monkeypatch, capsys, signum, batch
):
    real, calls = loop.evaluate, []

    def evaluate(step_fn, *rest):
        def counted(*arguments):
            calls.append(1)
            if len(calls) == batch:
                os.kill(os.getpid(), signum)
            return step_fn(*arguments)

        return real(counted, *rest)

    flags = functools.partial(flags, eval_batch_size=10)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "evaluate", evaluate)
        assert main(flags("--resume")) == 128 + signum
    assert len(calls) == batch
    assert "the same command with --resume goes on" in capsys.readouterr().err
    [path] = (tmp_path / "run" / "checkpoint").iterdir()
    assert path.name == "00000012" and damage(path) is None
    assert not (tmp_path / "run" / "results.json").exists()
    steps = []
    before_step(monkeypatch, 1, lambda: steps.append(1))
    assert main(flags("--resume")) == 0
    assert not steps
    assert lasting(tmp_path / "run") == lasting(unbroken)


def test_records_after_the_checkpoint_are_made_anew(flags, unbroken, stopped):
    with (stopped / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "loss": 1.0}\n{"step": 6, "lo')
    assert main(flags("--resume")) == 0
    assert lasting(stopped) == lasting(unbroken)


def test_a_run_killed_before_its_first_checkpoint_starts_again(
    flags, tmp_path, monkeypatch
):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json.tmp").write_text("{")
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        before_step(patch, 7, killed)
        main(flags("--resume"))
    assert not (tmp_path / "run" / "checkpoint").exists()
    assert main(flags()) == 2
    assert main(flags("--resume")) == 0
    records = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in records] == [*range(1, 13)]


def test_checkpoints_are_written_when_due_and_go_when_the_run_is_done(
    flags, tmp_path, monkeypatch
):
    saved = []
    real = loop.checkpoint.Checkpoints.save
    monkeypatch.setattr(
        loop.checkpoint.Checkpoints,
        "save",
        lambda self, step, *a: (saved.append(step), real(self, step, *a)),
    )
    arguments = [part for part in flags() if part not in ("--keep", "9")]
    assert main([*arguments, "--checkpoint-seconds", "0"]) == 0
    assert saved == [10, 12]
    assert not (tmp_path / "run" / "checkpoint").exists()


def test_evaluations_before_the_end_are_recorded_and_the_best_is_kept(
    flags, tmp_path, monkeypatch
):
    more = ("--keep-best", "--evaluations", "3")
    # A signal that comes while step 5 is taken, after the evaluation at step 4.
    assert stop(monkeypatch, flags(*more, keep=1), 5) == 143
    assert main(flags(*more, "--resume", keep=1)) == 0
    content = (tmp_path / "run" / "evaluations.jsonl").read_text()
    lines = [json.loads(line) for line in content.splitlines()]
    assert [line["step"] for line in lines] == [4, 8]
    best = max(lines, key=lambda line: line["scores"]["accuracy"])["step"]
    kept = {path.name for path in (tmp_path / "run" / "checkpoint").iterdir()}
    assert kept == {f"{best:08d}", "00000008"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 5}, "other settings: epochs was 4 and is 5. Give the same"),
        ({"seed": 2, "dropout": 0.2}, "seed was 1 and is 2; dropout was 0.1 and is"),
        ({"checkpoint_seconds": -1}, "--checkpoint-seconds must be 0 or more"),
        ({"keep": 0}, "--keep must be at least 1"),
    ],
    ids=str,
)
def test_a_run_with_other_settings_is_not_resumed(
    flags, stopped, capsys, changes, message
):
    before = digests(stopped)
    assert main(flags("--resume", **changes)) == 2
    assert re.search(message, capsys.readouterr().err)
    assert digests(stopped) == before


def test_a_run_on_other_data_or_of_other_weights_is_not_resumed(
    flags, stopped, capsys, monkeypatch, tiny_data, tmp_path
):
    other = tmp_path / "train.tsv"
    other.write_bytes(tiny_data[0].read_bytes())
    before = digests(stopped)
    assert main(flags("--resume", train_file=other)) == 2
    assert "train_file was" in capsys.readouterr().err
    for name in ("data", "weights"):
        with monkeypatch.context() as patch:
            patch.setattr(loop.Inputs, f"{name}_digest", "other")
            assert main(flags("--resume")) == 2
        assert re.search(f"{name} was .* and is other", capsys.readouterr().err)
    assert digests(stopped) == before


def test_keep_best_needs_evaluations(flags, capsys):
    assert main(flags("--keep-best")) == 2
    assert "give --evaluations 2 or more" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", b"", "config.json is damaged: expected a JSON object; restore"),
        ("config.json", b"[]", "config.json is damaged: expected a JSON object"),
        ("config.json", None, "config.json is missing: expected the settings"),
        ("metrics.jsonl", b"", "metrics.jsonl has changed or lacks records"),
        ("metrics.jsonl", None, "No whole checkpoint is left: restore one, or remove"),
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
    assert main(flags("--resume")) == 2
    captured = capsys.readouterr().err
    assert captured.count("\n") == 1 and re.search(message, captured)
    assert digests(stopped) == before


def test_the_newest_whole_checkpoint_and_records_are_used(
    flags, unbroken, stopped, capsys
):
    path = stopped / "metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:3], lines[2], lines[3]]))
    assert main(flags("--resume")) == 0
    said = capsys.readouterr().err
    assert re.search(r"00000004 is damaged: .*metrics.jsonl has changed.*: not u", said)
    assert lasting(stopped) == lasting(unbroken)


def test_a_resume_elsewhere_says_so_and_goes_on(flags, stopped, capsys, monkeypatch):
    real = loop.checkpoint.fingerprint
    monkeypatch.setattr(
        loop.checkpoint,
        "fingerprint",
        lambda devices: real(devices) | {"device": "abacus"},
    )
    assert main(flags("--resume")) == 0
    said = capsys.readouterr().err
    assert said.count("not to the same bits") == 1 and "is 'abacus'" in said


def test_a_workdir_that_holds_a_run_names_resume(flags, stopped, capsys):
    assert main(flags()) == 2
    assert "go on with it with --resume" in capsys.readouterr().err


def test_a_second_signal_ends_at_once():
    code = (
        "import os, signal, time\nfrom train.interruption import Interruption\n"
        "with Interruption() as interruption:\n"
        "  os.kill(os.getpid(), signal.SIGTERM)\n"
        "  assert interruption.signum == signal.SIGTERM\n"
        "  os.kill(os.getpid(), signal.SIGINT)\n"
        "  time.sleep(60)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=30)
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
        # test_checkpoint.py; where CI runs nothing may go untested.
        assert "CI" not in os.environ, "CI must be allowed to mount a small tmpfs"
        pytest.skip("mounting a small tmpfs is not allowed here")
    try:
        command = [sys.executable, "-m", "train"]
        command += arguments(disk / "run", "--resume", checkpoint_seconds=0, epochs=40)
        # So that only some checkpoints fit.
        (disk / "filler").write_bytes(bytes(500_000))
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 2, done.stderr
        assert re.search("error: cannot write the checkpoint of step", done.stderr)
        assert "the last one is" in done.stderr and "Traceback" not in done.stderr
        kept = list((disk / "run" / "checkpoint").iterdir())
        assert kept and not any(map(damage, kept))
        (disk / "filler").unlink()
        subprocess.run(["mount", "-o", "remount,size=64m", disk], check=True)
        assert subprocess.run(command).returncode == 0
        assert (disk / "run" / "results.json").exists()
    finally:
        subprocess.run(["umount", disk], check=True)
