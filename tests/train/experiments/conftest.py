"""Studies of a tiny model on a tiny task in CoLA's files."""

import dataclasses
import json

import pytest

from tests.train.conftest import sentences
from train.experiments import worker
from train.experiments.plan import StabilityConfig
from train.experiments.stability import prepare_study, run_study

VOLATILE = ("seconds", "own_seconds", "finished_at", "crc32")


@pytest.fixture(scope="module", autouse=True)
def _programs_are_kept(compilation_cache):
    """Studies compile the same few programs again and again."""


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
    return StabilityConfig(
        model=str(tiny_model),
        workdir=workdir,
        tasks=("cola",),
        data_dir=tiny_glue,
        methods=("cwgnc_code",),
        max_norms=(0.05, float("inf")),
        learning_rates=(3e-3,),
        seeds=2,
        holdout=0.1,
        batch_size=8,
        epochs=2,
        evaluations=3,
        record_every=3,
        max_length=16,
        devices=1,
    )


def study(config, **changes):
    config = dataclasses.replace(config, **changes)
    run_study(prepare_study(config))
    return records(config.workdir)


def records(workdir):
    text = (workdir / "records.jsonl").read_text()
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


def interrupt_at(monkeypatch, calls, error=KeyboardInterrupt):
    """The training step raises in its n-th call; evaluation and the rest go on."""

    def interrupt():
        raise error

    at_call(monkeypatch, calls, interrupt)


def at_call(monkeypatch, calls, action):
    """Before the n-th training step there is an action."""
    real, count = worker.train, 0

    def train(step_fn, *arguments):
        def counted(runs, step, end):
            nonlocal count
            count += 1
            if count == calls:
                action()
            return step_fn(runs, step, end)

        return real(counted, *arguments)

    monkeypatch.setattr(worker, "train", train)
