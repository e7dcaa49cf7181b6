"""Studies that were interrupted, or are to have more runs."""

import dataclasses
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest

from tests.train.experiments.conftest import (
    at_call,
    interrupt_at,
    lasting,
    of_kind,
    records,
    study,
)
from train import checkpoint
from train.experiments import worker
from train.interruption import Interrupted


@pytest.mark.parametrize(
    ("methods", "together"),
    [
        (("cwgnc_code",), 1),
        # Its thresholds are part of the state.
        (("olmo",), 1),
        pytest.param(("cwgnc_code",), 3, marks=pytest.mark.slow),
        pytest.param(("adagc", "aggc", "autoclip", "zclip"), 3, marks=pytest.mark.slow),
    ],
)
def test_an_interrupted_study_goes_on_to_the_same_bits(
    config, methods, together, monkeypatch
):
    changes = {"runs_per_program": together, "checkpoint_seconds": 0.0}
    changes["methods"] = methods
    unbroken = study(config, **changes)
    changes["workdir"] = config.workdir.with_name("broken")
    for calls in (5, 4, 12):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            interrupt_at(patch, calls)
            study(config, **changes)
    steps = []
    with monkeypatch.context() as patch:
        real = worker.train
        patch.setattr(worker, "train", lambda *a: (steps.append(a[2]), real(*a))[1])
        resumed = study(config, **changes)
    assert steps[0] > 0  # it went on from a checkpoint
    assert lasting(resumed) == lasting(unbroken)
    assert not (changes["workdir"] / "checkpoint").exists()


def test_checkpoints_are_written_when_they_are_due(config, monkeypatch):
    saved = []
    monkeypatch.setattr(
        checkpoint.Checkpoints, "save", lambda self, step, *a: saved.append(step)
    )
    study(config, seeds=1, max_norms=(0.05,))
    assert not saved
    study(config, seeds=1, max_norms=(1.0,), checkpoint_seconds=0.0)
    assert saved == [3, 4, 6, 7, 9]


def test_a_signal_ends_a_study_with_a_checkpoint_and_it_goes_on(config, monkeypatch):
    unbroken = study(config)
    config = dataclasses.replace(config, workdir=config.workdir.with_name("broken"))
    for calls, signum in ((5, signal.SIGTERM), (12, signal.SIGINT)):
        with monkeypatch.context() as patch:
            at_call(patch, calls, lambda signum=signum: os.kill(os.getpid(), signum))
            with pytest.raises(Interrupted, match=signal.Signals(signum).name):
                study(config)
        assert (config.workdir / "checkpoint").exists()
    assert lasting(study(config)) == lasting(unbroken)


def test_a_study_goes_on_from_damage_only_when_it_is_told_to(config, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt_at(patch, 5)
        study(config, checkpoint_seconds=0.0)
    [path] = (config.workdir / "checkpoint").iterdir()
    (path / "notes.json").write_text("{}")
    before = (config.workdir / "records.jsonl").read_bytes()
    with pytest.raises(ValueError, match="notes.json has changed.*remove .*checkpoint"):
        study(config)
    assert (config.workdir / "records.jsonl").read_bytes() == before
    shutil.rmtree(path.parent)
    study(config)


def test_finished_runs_are_not_repeated_and_more_seeds_run_only_the_new(
    config, monkeypatch
):
    first = study(config)
    made = []
    real = worker.Worker._make
    monkeypatch.setattr(
        worker.Worker,
        "_make",
        lambda self, runs, *a: (made.extend(runs), real(self, runs, *a))[1],
    )
    assert study(config) == first and not made
    more = study(config, seeds=3, max_norms=(0.05, 1.0, float("inf")))
    assert len(made) == 5 and len(of_kind(more, "run")) == 9
    assert more[: len(first)] == first


@pytest.mark.slow
def test_a_study_killed_at_random_moments_ends_with_the_same_bits(config):
    def command(workdir):
        names = ("model", "data_dir", "holdout", "batch_size", "epochs", "evaluations")
        names += ("record_every", "max_length", "devices", "seeds")
        flags = [f"--{n.replace('_', '-')}={getattr(config, n)}" for n in names]
        flags += ["--tasks", "cola", "--methods", "cwgnc_code", "devlin"]
        flags += ["--max-norms", "0.05", "inf", "--learning-rates", "3e-3"]
        flags += ["--checkpoint-seconds", "0", "--workdir", str(workdir)]
        return [sys.executable, "-m", "train", "stability", *flags]

    def written(workdir):
        path = workdir / "records.jsonl"
        return path.read_bytes().count(b"\n") if path.exists() else 0

    unbroken, killed = config.workdir, config.workdir.with_name("killed")
    subprocess.run(command(unbroken), check=True)
    moments = random.Random(0)
    for _ in range(4):
        process = subprocess.Popen(command(killed))
        until = written(killed) + moments.randint(3, 12)
        while written(killed) < until and process.poll() is None:
            time.sleep(moments.uniform(0.0, 0.02))
        process.kill()
        assert process.wait() == -signal.SIGKILL
    subprocess.run(command(killed), check=True)
    assert lasting(records(killed)) == lasting(records(unbroken))
