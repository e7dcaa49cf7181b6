"""Studies that were interrupted, or are to have more runs."""

import random
import shutil
import signal
import subprocess
import sys
import time

import pytest

from cwgnc_train.config import UserError
from cwgnc_train.engine import Checkpoints, Interrupted, Recorder
from cwgnc_train.study import worker
from tests.train.configs import replaced
from tests.train.study.conftest import (
    everything,
    interrupt_at,
    lasting,
    of_kind,
    records,
    signal_at,
    steps_taken,
    study,
)


def runs_begun(monkeypatch):
    """Returns a list that the names of runs are added to when they begin."""
    real, begun = Recorder.begin, []

    def begin(self, runs, *rest):
        begun.extend(run.name for run in runs)
        real(self, runs, *rest)

    monkeypatch.setattr(Recorder, "begin", begin)
    return begun


@pytest.mark.parametrize(
    ("methods", "together", "seeds", "interrupted"),
    [
        # Its thresholds are part of the state.
        pytest.param(("olmo",), 1, 1, (4,), marks=pytest.mark.slow),
        pytest.param(("cwgnc_code",), 1, 2, (5, 4, 12), marks=pytest.mark.slow),
        pytest.param(("cwgnc_code",), 3, 2, (5, 4, 12), marks=pytest.mark.slow),
        pytest.param(
            ("adagc", "aggc", "autoclip", "zclip"),
            *(3, 2, (5, 4, 12)),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_an_interrupted_study_goes_on_to_the_same_bits(
    config, methods, together, seeds, interrupted, monkeypatch
):
    changes = {"runs_per_program": together, "checkpoint_seconds": 0.0}
    changes |= {"methods": methods, "seeds": seeds, "epochs": seeds}
    study(config, **changes)
    broken = changes["workdir"] = config.workdir.with_name("broken")
    for calls in interrupted:
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            interrupt_at(patch, calls)
            study(config, **changes)
    with monkeypatch.context() as patch:
        steps = steps_taken(patch)
        study(config, **changes)
    assert steps[0] > 0  # it went on from a checkpoint
    assert everything(broken) == everything(config.workdir)
    assert not (broken / "checkpoints").exists()


def test_checkpoints_are_written_when_they_are_due(config, monkeypatch):
    saved = []
    monkeypatch.setattr(Checkpoints, "save", lambda self, step, *a: saved.append(step))
    study(config, seeds=1, max_norms=(0.05,))
    assert not saved
    study(config, seeds=1, max_norms=(1.0,), checkpoint_seconds=0.0)
    assert saved == [3, 4, 6, 7, 9]


def test_a_signal_ends_a_study_with_a_checkpoint_and_it_goes_on(config, monkeypatch):
    config = replaced(config, max_norms=(0.05,))
    study(config)
    broken = replaced(config, workdir=config.workdir.with_name("broken"))
    for calls, signum in ((5, signal.SIGTERM), (12, signal.SIGINT)):
        with monkeypatch.context() as patch:
            signal_at(patch, calls, signum)
            with pytest.raises(Interrupted, match=signal.Signals(signum).name):
                study(broken)
        assert (broken.workdir / "checkpoints").exists()
    study(broken)
    assert everything(broken.workdir) == everything(config.workdir)


def test_a_study_goes_on_from_damage_only_when_it_is_told_to(config, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt_at(patch, 5)
        study(config, checkpoint_seconds=0.0)
    [folder] = (config.workdir / "checkpoints").iterdir()
    for path in folder.iterdir():
        (path / "_CHECKPOINT_METADATA").write_text("{}")
    before = (config.workdir / "records.jsonl").read_bytes()
    message = "_CHECKPOINT_METADATA has changed.*remove .*checkpoints"
    with pytest.raises(UserError, match=message):
        study(config)
    assert (config.workdir / "records.jsonl").read_bytes() == before
    shutil.rmtree(folder)
    study(config)


def die_once(monkeypatch, module, name, when=lambda *arguments: True):
    """A function is not called and the process dies in its place."""
    real = getattr(module, name)

    def died(*arguments):
        if when(*arguments):
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(module, name, died)


@pytest.mark.parametrize(
    ("methods", "gone"),
    [
        pytest.param(("cwgnc_code",), False, id="whole, the last run"),
        pytest.param(("cwgnc_code", "full"), True, id="half removed, the first run"),
    ],
)
def test_a_kill_between_results_and_removal_leaves_nothing_behind(
    config, monkeypatch, methods, gone
):
    changes = {"methods": methods, "max_norms": (0.05,), "seeds": 1}
    changes["checkpoint_seconds"] = 0.0
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        die_once(patch, worker, "remove_checkpoints")
        study(config, **changes)
    [folder] = (config.workdir / "checkpoints").iterdir()
    assert len(of_kind(records(config.workdir), "run")) == 1
    if gone:
        folder = folder.rename(folder.with_name(folder.name + ".gone"))
        next(folder.glob("*/manifest.json")).unlink()
    first = lasting(records(config.workdir))
    with monkeypatch.context() as patch:
        begun = runs_begun(patch)
        lines = study(config, **changes)
    # Only the other runs are made, and nothing is left.
    assert len(begun) == len(methods) - 1 == len(of_kind(lines, "run")) - 1
    assert all(line in lasting(lines) for line in first)
    assert not (config.workdir / "checkpoints").exists()


@pytest.mark.slow
def test_records_that_were_not_marked_are_taken_back(config, monkeypatch):
    """A process may die between two lines of the results of runs that end together."""
    changes = {"runs_per_program": 2, "max_norms": (0.05,), "checkpoint_seconds": 0.0}
    changes["epochs"] = 1
    study(config, **changes)
    broken = replaced(config, workdir=config.workdir.with_name("broken"))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        die_once(
            patch,
            Recorder,
            "_result",
            lambda self, group, run, result: run.seed == 2,
        )
        study(broken, **changes)
    assert len(of_kind(records(broken.workdir), "run")) == 1
    study(broken, **changes)
    names = [run["run"] for run in of_kind(records(broken.workdir), "run")]
    assert len(names) == len(set(names)) == 2
    for name in ("evaluation", "metrics"):
        mine = of_kind(records(broken.workdir), name)
        assert len(mine) == len(of_kind(records(config.workdir), name))
    assert not (broken.workdir / "checkpoints").exists()


@pytest.mark.slow
def test_runs_that_are_not_wanted_this_time_keep_their_checkpoint(config, monkeypatch):
    changes = {"max_norms": (0.05,), "seeds": 1}
    both = {"methods": ("full", "cwgnc_code"), "checkpoint_seconds": 0.0}
    with monkeypatch.context() as patch:
        signal_at(patch, 5)
        with pytest.raises(Interrupted):
            study(config, **changes, **both)
    study(config, **changes, methods=("cwgnc_code",))
    assert (config.workdir / "checkpoints").exists()
    with monkeypatch.context() as patch:
        steps = steps_taken(patch)
        study(config, **changes, **both)
    assert steps == [*range(5, 10)]
    assert not (config.workdir / "checkpoints").exists()


@pytest.mark.slow
def test_checkpoints_that_are_kept_do_not_hinder_a_study(config, monkeypatch):
    """The marks in them cover lines that other runs have taken back since."""
    changes = {"max_norms": (0.05,), "seeds": 1, "epochs": 1}
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt_at(patch, 4)
        study(config, **changes, methods=("full",))
    assert of_kind(records(config.workdir), "metrics")
    changes |= {"methods": ("cwgnc_code", "full")}
    changes |= {"keep": 1, "checkpoint_seconds": 0.0}
    study(config, **changes)
    assert len(list((config.workdir / "checkpoints").iterdir())) == 2
    lines = study(config, **changes | {"seeds": 2})
    assert len(of_kind(lines, "run")) == 4


def test_finished_runs_are_not_repeated_and_more_seeds_run_only_the_new(
    config, monkeypatch
):
    first = study(config)
    begun = runs_begun(monkeypatch)
    assert study(config) == first and not begun
    more = study(config, seeds=3, max_norms=(0.05, 1.0, float("inf")))
    assert len(begun) == 5 and len(of_kind(more, "run")) == 9
    assert more[: len(first)] == first


@pytest.mark.slow
def test_a_study_killed_at_random_moments_ends_with_the_same_bits(config):
    def command(workdir):
        flags = ["--model", config.model, "--tasks", "cola"]
        flags += ["--data-dir", str(config.data.data_dir), "--holdout", "0.1"]
        flags += ["--methods", "cwgnc_code", "devlin", "--seeds", "2", "--epochs", "2"]
        flags += ["--max-norms", "0.05", "inf", "--learning-rates", "3e-3"]
        flags += ["--batch-size", "8", "--evaluations", "3", "--record-every", "3"]
        flags += ["--max-length", "16", "--devices", "1", "--checkpoint-seconds", "0"]
        flags += ["--workdir", str(workdir), "--resume"]
        return [sys.executable, "-m", "cwgnc_train", "stability", *flags]

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
    assert everything(killed) == everything(unbroken)
    assert not (killed / "checkpoints").exists()
