"""Studies and fine-tuning of a tiny model on a tiny task in CoLA's files."""

import json
import os
import signal

import pytest

from cwgnc_train.config import (
    DataConfig,
    DevicesConfig,
    OverridesConfig,
    StabilityConfig,
    TrainingConfig,
)
from cwgnc_train.engine import Training
from cwgnc_train.study import prepare_study, run_study
from tests.train.configs import replaced
from tests.train.conftest import sentences

VOLATILE = ("seconds", "own_seconds", "finished_at", "crc32")


@pytest.fixture(scope="module")
def tiny_glue(tmp_path_factory):
    """A folder of GLUE with a CoLA of 37 training and 20 validation examples."""
    folder = tmp_path_factory.mktemp("glue")
    (folder / "CoLA").mkdir()
    for name, rows in (("train", sentences(37)), ("dev", sentences(20, 41))):
        lines = [f"x\t{int(label == 'good')}\t\t{text}" for text, label in rows]
        (folder / "CoLA" / f"{name}.tsv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture
def config(tiny_model, tiny_glue, tmp_path) -> StabilityConfig:
    return tiny_config(tiny_model, tiny_glue, tmp_path / "study")


def tiny_config(tiny_model, tiny_glue, workdir) -> StabilityConfig:
    """Studies whose batches have one shape: there is less to compile."""
    return StabilityConfig(
        model=str(tiny_model),
        workdir=workdir,
        tasks=("cola",),
        methods=("cwgnc_code",),
        max_norms=(0.05, float("inf")),
        learning_rates=(3e-3,),
        seeds=2,
        data=DataConfig(data_dir=tiny_glue, holdout=0.1, max_length=16),
        epochs=2,
        overrides=OverridesConfig(),
        training=TrainingConfig(
            batch_size=8,
            padding="max_length",
            evaluations=3,
            record_every=3,
            devices=DevicesConfig(devices=1),
        ),
    )


def study(config, **changes):
    """Makes a study, or goes on with it; returns its records."""
    config = replaced(config, **{"resume": True} | changes)
    run_study(prepare_study(config))
    return records(config.workdir)


def records(workdir, name="records"):
    text = (workdir / f"{name}.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def of_kind(lines, kind):
    return [line for line in lines if line["kind"] == kind]


def lasting(lines):
    """Lines without what differs from one execution to the next, in a fixed order."""
    kept = [
        {name: value for name, value in line.items() if name not in VOLATILE}
        for line in lines
        if line["kind"] != "layout"
    ]
    return sorted(kept, key=json.dumps)


def everything(workdir):
    """All records of a folder that last, of all files."""
    names = ("records", "components", "predictions")
    return {name: lasting(records(workdir, name)) for name in names}


def interrupt_at(monkeypatch, calls, error=KeyboardInterrupt):
    """The training step raises in its n-th call; evaluation and the rest go on."""

    def interrupt():
        raise error

    at_call(monkeypatch, calls, interrupt)


def signal_at(monkeypatch, calls, signum=signal.SIGTERM):
    """A signal comes in the n-th training step."""
    at_call(monkeypatch, calls, lambda: os.kill(os.getpid(), signum))


def at_call(monkeypatch, calls, action):
    """Before the n-th training step there is an action."""
    real, count = Training._program, 0

    def _program(self, *arguments):
        program, batches, end = real(self, *arguments)

        def counted(*arguments):
            nonlocal count
            count += 1
            if count == calls:
                action()
            return program(*arguments)

        return counted, batches, end

    monkeypatch.setattr(Training, "_program", _program)


def steps_taken(monkeypatch):
    """Returns a list that training steps are added to, counted from 0."""
    real, taken = Training._program, []

    def _program(self, iteration, step, end):
        program, batches, end = real(self, iteration, step, end)
        taken.extend(range(step, end))
        return program, batches, end

    monkeypatch.setattr(Training, "_program", _program)
    return taken
