"""TensorBoard and Weights & Biases have the numbers that the JSON lines have."""

import importlib.machinery
import json
import struct
import sys
import types

import jax.numpy as jnp
import numpy as np
import pytest

import cwgnc_jax
from train.__main__ import main
from train.records import HashedLines, read_lines
from train.writers import TensorBoardWriter, WandbWriter, scalars

pytestmark = pytest.mark.usefixtures("compilation_cache")


def events(folder):
    """The events of all event files of a folder, in the order of writing."""
    from tensorboardX.proto.event_pb2 import Event

    found = []
    for path in sorted(folder.glob("events.out.tfevents.*")):
        content, place = path.read_bytes(), 0
        while place < len(content):
            # Length, its checksum, the event and its checksum.
            [size] = struct.unpack_from("<Q", content, place)
            found.append(Event.FromString(content[place + 12 : place + 12 + size]))
            place += 12 + size + 4
    return found


def values(folder):
    """By tag and step what TensorBoard shows."""
    return {
        (value.tag, event.step): value.simple_value
        for event in events(folder)
        for value in event.summary.value
    }


@pytest.fixture
def flags(tiny_model, tiny_data, tmp_path):
    train_file, validation_file = tiny_data
    pairs = {
        "model": tiny_model,
        "train-file": train_file,
        "validation-file": validation_file,
        "text-columns": "text",
        "epochs": 2,
        "evaluations": 2,
        "norms-every": 4,
        "max-length": 16,
        "padding": "max_length",
        "workdir": tmp_path / "run",
    }
    names = [(f"--{name}", str(value)) for name, value in pairs.items()]
    return ["finetune", *(part for pair in names for part in pair)]


def expected_of_run(workdir):
    expected = {}
    for line in read_lines(workdir / "metrics.jsonl"):
        for name, value in line.items():
            if name == "norms":
                for component, norm in value.items():
                    expected[f"norms/{component}", line["step"]] = norm
            elif isinstance(value, float):
                expected[name, line["step"]] = value
    for line in read_lines(workdir / "evaluations.jsonl"):
        for name, value in line["scores"].items():
            expected[f"{line['split']}/{name}", line["step"]] = value
    return expected


def test_an_event_file_has_the_values_of_the_json_lines(flags, tmp_path):
    assert main([*flags, "--writers", "tensorboard"]) == 0
    shown = values(tmp_path / "run/tensorboard")
    expected = expected_of_run(tmp_path / "run")
    assert len(expected) > 6 * 6 + 2 * 20
    assert shown.keys() == expected.keys()
    for key, value in expected.items():
        assert shown[key] == np.float32(value), key


def test_steps_that_are_written_again_replace_those_before(tmp_path):
    for first_step in (1, 3):
        with TensorBoardWriter(tmp_path, first_step) as writer:
            writer.append({"step": first_step, "loss": 0.5})
    from tensorboardX.proto.event_pb2 import SessionLog

    starts = [
        event.step
        for event in events(tmp_path)
        if event.session_log.status == SessionLog.START
    ]
    assert sorted(starts) == [1, 3]


@pytest.fixture
def wandb(monkeypatch):
    """A module in its place that keeps what it is told."""
    stub = types.ModuleType("wandb")
    stub.__spec__ = importlib.machinery.ModuleSpec("wandb", None)
    stub.runs = []

    def init(**settings):
        run = types.SimpleNamespace(settings=settings, lines=[], finished=False)
        run.define_metric = lambda name, step_metric: None
        run.log = run.lines.append
        run.finish = lambda: setattr(run, "finished", True)
        stub.runs.append(run)
        return run

    stub.init = init
    monkeypatch.setitem(sys.modules, "wandb", stub)
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    return stub


def test_weights_and_biases_gets_the_values_of_the_json_lines(flags, tmp_path, wandb):
    assert main([*flags, "--writers", "wandb"]) == 0
    [run] = wandb.runs
    assert run.finished
    assert run.settings["project"] == "cwgnc_jax" and run.settings["name"] == "run"
    assert run.settings["config"]["optimizer"]["max_norm"] == 0.05
    shown = {
        (name, line["step"]): value
        for line in run.lines
        for name, value in line.items()
        if name != "step"
    }
    assert shown == expected_of_run(tmp_path / "run")


def test_the_project_of_the_environment_is_used(tmp_path, wandb, monkeypatch):
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    with WandbWriter(tmp_path, "a", {}):
        pass
    assert wandb.runs[0].settings["project"] == "mine"


def test_a_missing_package_is_named_with_its_extra(
    flags, tmp_path, capsys, monkeypatch
):
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert main([*flags, "--writers", "wandb"]) == 2
    error = capsys.readouterr().err
    assert "--writers wandb needs the package wandb" in error and "'.[wandb]'" in error
    assert error.count("\n") == 1 and not (tmp_path / "run").exists()


def test_a_clip_report_goes_through_every_writer(tmp_path):
    tx = cwgnc_jax.component_clip_by_global_norm(1.0, eps=0, keep_report=True)
    grads = {"loud": jnp.array([3.0, 4.0]), "quiet": jnp.array([0.6, 0.8])}
    _, state = tx.update(grads, tx.init(grads))
    record = {"step": 7} | cwgnc_jax.clip_report(state).scalars()
    path = tmp_path / "clip.jsonl"
    with HashedLines(path) as lines, TensorBoardWriter(tmp_path, 7) as tensorboard:
        for writer in (lines, tensorboard):
            writer.append(record)
    assert json.loads(path.read_text()) == record
    shown = values(tmp_path)
    assert shown["clip/norm/loud", 7] == 5.0
    assert shown["clip/clipped/loud", 7] == 1.0
    assert shown["clip/rate_components", 7] == 0.5
    assert len(shown) == len(record) - 1


def test_numbers_of_a_record_are_found_by_name():
    record = {"step": 3, "loss": 0.5, "norms": {"a/b": 1.0}, "names": ["a"], "why": "x"}
    assert dict(scalars(record)) == {"loss": 0.5, "norms/a/b": 1.0}
