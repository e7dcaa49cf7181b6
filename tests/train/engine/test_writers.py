"""TensorBoard and Weights & Biases get the numbers of the JSON lines."""

import contextlib
import json
import os
import struct
import sys

import jax.numpy as jnp
import numpy as np
import pytest

import cwgnc_jax
from cwgnc_train.commands import run as main
from cwgnc_train.config import UserError
from cwgnc_train.engine import check_writers, writers
from cwgnc_train.engine.writers import TensorBoardWriter, WandbWriter, scalars
from cwgnc_train.records import RecordFile, parse_lines

CELL = "own/finetune/lr=2e-05/max_norm=0.05"
NAMES = [f"{CELL}/seed=1", f"{CELL}/seed=2"]


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


def wandb_records(workdir):
    """By kind what the wandb package wrote, a dict for each of its runs by name."""
    from wandb.proto.wandb_internal_pb2 import Record

    runs = {}
    for path in (workdir / "wandb").glob("offline-run-*/run-*.wandb"):
        content, place, parts, found = path.read_bytes(), 7, b"", {}
        # A log as LevelDB has it, in blocks of 32 KiB, behind a header of seven bytes.
        while place < len(content):
            left = 2**15 - place % 2**15
            if left < 7:
                place += left
                continue
            _, size, kind = struct.unpack_from("<IHB", content, place)
            parts += content[place + 7 : place + 7 + size]
            place += 7 + size
            if kind in (1, 4):  # a whole record, or the last part of one
                record, parts = Record.FromString(parts), b""
                name = record.WhichOneof("record_type")
                found.setdefault(name, []).append(getattr(record, name))
        runs[found["run"][0].display_name] = found
    return runs


def history(found):
    """By name and step what W&B shows; names with an underscore are its own."""
    shown = {}
    for line in found["history"]:
        values = {
            "/".join(item.nested_key): json.loads(item.value_json) for item in line.item
        }
        step = values.pop("step")
        for name, value in values.items():
            if not name.startswith("_"):
                assert (name, step) not in shown
                shown[name, step] = value
    return shown


@contextlib.contextmanager
def offline(folder):
    """The wandb package writes into a folder and sends nothing."""
    import wandb

    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("WANDB_")]:
            patch.delenv(name)
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("WANDB_SILENT", "true")
        for name in ("CACHE", "CONFIG", "DATA"):
            patch.setenv(f"WANDB_{name}_DIR", str(folder / "of_wandb"))
        yield patch
        wandb.teardown()


def test_steps_that_are_written_again_replace_those_before(tmp_path):
    for first_step in (1, 3):
        with contextlib.closing(TensorBoardWriter(tmp_path, first_step)) as writer:
            writer.append({"step": first_step, "loss": 0.5})
    from tensorboardX.proto.event_pb2 import SessionLog

    starts = [
        event.step
        for event in events(tmp_path)
        if event.session_log.status == SessionLog.START
    ]
    assert sorted(starts) == [1, 3]


def test_the_project_of_the_environment_is_used(tmp_path):
    with offline(tmp_path) as patch:
        patch.setenv("WANDB_PROJECT", "mine")
        WandbWriter(tmp_path, "a", {}).close()
    [run] = wandb_records(tmp_path)["a"]["run"]
    assert run.project == "mine"


def flags_of(model, data, workdir):
    pairs = {
        "model": model,
        "train-file": data[0],
        "validation-file": data[1],
        "text-columns": "text",
        "epochs": 2,
        "evaluations": 2,
        "norms-every": 4,
        "max-length": 16,
        "padding": "max_length",
        "record-every": 1,
        "workdir": workdir,
    }
    names = [(f"--{name}", str(value)) for name, value in pairs.items()]
    return ["finetune", *(part for pair in names for part in pair)]


@pytest.fixture(scope="module")
def workdir(tiny_model, tiny_data, tmp_path_factory):
    """The folder of two runs of one program, with what both packages wrote."""
    folder = tmp_path_factory.mktemp("writers")
    more = ["--seeds", "2", "--devices", "1", "--runs-per-program", "2"]
    more += ["--writers", "tensorboard", "wandb"]
    with offline(folder):
        assert main([*flags_of(tiny_model, tiny_data, folder / "run"), *more]) == 0
        # At its teardown the package itself ends what is still open.
        yield folder / "run"


def expected_of(workdir, run):
    """By name and step the numbers of a run's records."""
    expected = {}
    for line in lines_of(workdir / "records.jsonl", "metrics", run):
        for name, value in line.items():
            if isinstance(value, float) and name != "epoch":
                expected[name, line["step"]] = value
    [names] = lines_of(workdir / "components.jsonl", "names")
    for line in lines_of(workdir / "components.jsonl", "norms", run):
        for field in ("norms", "coefficients"):
            for name, value in zip(names["components"], line[field], strict=True):
                expected[f"{field}/{name}", line["step"]] = value
    for line in lines_of(workdir / "records.jsonl", "evaluation", run):
        for name, value in line["scores"].items():
            expected[f"{line['split']}/{name}", line["step"]] = value
    assert len(expected) > 6 * 5 + 2 * 40
    return expected


def lines_of(path, kind, run=None):
    lines = parse_lines(path, path.read_bytes())
    return [x for x in lines if x["kind"] == kind and run in (None, x.get("run"))]


def test_an_event_file_has_the_numbers_of_its_runs_records(workdir):
    for run in NAMES:
        expected = expected_of(workdir, run)
        assert values(workdir / "tensorboard" / run) == {
            key: np.float32(value) for key, value in expected.items()
        }


def test_weights_and_biases_has_the_numbers_of_its_runs_records(workdir):
    runs = wandb_records(workdir)
    assert sorted(runs) == NAMES
    for name, found in runs.items():
        assert history(found) == expected_of(workdir, name)


def test_weights_and_biases_knows_the_run_and_its_end(workdir):
    for name, found in wandb_records(workdir).items():
        [run], [end] = found["run"], found["exit"]
        assert run.project == "cwgnc_jax" and end.exit_code == 0
        settings = {x.key: json.loads(x.value_json) for x in run.config.update}
        assert settings["optimizer"]["max_norm"] == 0.05
        assert f"{CELL}/seed={settings['seed']}" == name
        # Its axis is the step of the records, not its own count of lines.
        [axis] = found["metric"]
        assert (axis.glob_name, axis.step_metric) == ("*", "step")


def test_a_missing_package_is_named_with_its_extra(
    tiny_model, tiny_data, tmp_path, capsys, monkeypatch
):
    monkeypatch.setitem(sys.modules, "wandb", None)
    flags = flags_of(tiny_model, tiny_data, tmp_path / "run")
    assert main([*flags, "--writers", "wandb"]) == 2
    error = capsys.readouterr().err
    assert (
        "--writers wandb needs the package wandb" in error
        and "cwgnc-jax[wandb]" in error
    )
    assert error.count("\n") == 1 and not (tmp_path / "run").exists()


def test_a_folder_of_its_name_is_not_the_package(tmp_path, monkeypatch):
    # W&B keeps its runs in a folder named wandb, where commands are often started.
    (tmp_path / "not_installed").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(writers._PACKAGES, "wandb", "not_installed")
    with pytest.raises(UserError, match="needs the package not_installed"):
        check_writers(["wandb"])


def test_a_clip_report_goes_through_every_writer(tmp_path):
    tx = cwgnc_jax.component_clip_by_global_norm(1.0, eps=0, keep_report=True)
    grads = {"loud": jnp.array([3.0, 4.0]), "quiet": jnp.array([0.6, 0.8])}
    _, state = tx.update(grads, tx.init(grads))
    record = {"step": 7} | cwgnc_jax.clip_report(state, grads).scalars()
    path = tmp_path / "clip.jsonl"
    tensorboard = TensorBoardWriter(tmp_path, 7)
    with RecordFile(path) as lines, contextlib.closing(tensorboard):
        for writer in (lines, tensorboard):
            writer.append(record)
    assert parse_lines(path, path.read_bytes()) == [record]
    shown = values(tmp_path)
    assert shown["clip/norm/loud", 7] == 5.0
    assert shown["clip/clipped/loud", 7] == 1.0
    assert shown["clip/rate_components", 7] == 0.5
    assert len(shown) == len(record) - 1


def test_numbers_of_a_record_are_found_by_name():
    record = {"step": 3, "loss": 0.5, "norms": {"a/b": 1.0}, "names": ["a"], "why": "x"}
    assert dict(scalars(record)) == {"loss": 0.5, "norms/a/b": 1.0}
