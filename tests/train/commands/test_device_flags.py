"""``finetune`` on several devices, and devices and processes that cannot be."""

import functools
import json
import re

import jax
import numpy as np
import pytest

from cwgnc_train.commands import run


@pytest.fixture
def finetune(tiny_model, tiny_data, tmp_path):
    def start(name, *more):
        flags = {
            "model": tiny_model,
            "train-file": tiny_data[0],
            "validation-file": tiny_data[1],
            "text-columns": "text",
            "preset": "code",
            "epochs": 2,
            "batch-size": 13,
            "eval-batch-size": 7,
            "learning-rate": 3e-3,
            "eps": 1e-3,
            "dropout": 0.0,
            "max-length": 16,
            "padding": "max_length",
            "record-every": 1,
            "workdir": tmp_path / name,
        }
        pairs = [(f"--{name}", str(value)) for name, value in flags.items()]
        return run(["finetune", *(part for pair in pairs for part in pair), *more])

    return start


def records_of(workdir, kind):
    text = (workdir / "records.jsonl").read_text()
    return [x for x in map(json.loads, text.splitlines()) if x["kind"] == kind]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "description"),
    [
        (["--devices", "3"], "1 x 3 by jit"),
        (["--devices", "2", "--accumulate", "13"], "1 x 2 by jit"),
        (
            ["--devices", "4", "--strategy", "pmap", "--statistics-every", "4"],
            "1 x 4 by pmap",
        ),
    ],
    ids=str,
)
def test_finetune_on_several_devices_is_finetune_on_one(
    flags, description, finetune, tmp_path
):
    assert finetune("one") == 0
    assert finetune("several", *flags) == 0
    losses, others = (
        [line["loss"] for line in records_of(tmp_path / name, "metrics")]
        for name in ("one", "several")
    )
    np.testing.assert_allclose(others, losses, rtol=1e-4)
    scores, other_scores = (
        records_of(tmp_path / name, "run")[0]["scores"] for name in ("one", "several")
    )
    assert other_scores == scores
    [chosen] = records_of(tmp_path / "several", "layout")
    assert chosen["devices"] == description
    if "--statistics-every" in flags:
        text = (tmp_path / "several" / "components.jsonl").read_text()
        lines = [x for x in map(json.loads, text.splitlines())]
        measured = [x["step"] for x in lines if x["kind"] == "components"]
        assert measured == [1, 5, 6]


@pytest.mark.slow
def test_a_run_resumed_on_other_devices_says_so(finetune, tmp_path, capsys):
    keep = ("--checkpoint-seconds", "0", "--keep", "9")
    assert finetune("run", *keep, "--devices", "2", "--shard-params") == 0
    records = tmp_path / "run" / "records.jsonl"
    lines = records.read_text().splitlines(keepends=True)
    # As if the process had died before the results.
    assert '"kind": "run"' in lines.pop()
    records.write_text("".join(lines))
    assert finetune("run", *keep, "--resume") == 0
    said = capsys.readouterr().err
    before = "1 x 2 by jit, split parameters"
    assert f"devices was '{before}' and is '1 x 1 by jit'" in said


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--devices", "9"], "--devices 9: there are 8; give at most that many"),
        (["--devices", "0"], "--devices must be at least 1"),
        (["--data-devices", "3"], "--data-devices must divide the 8 devices in use"),
        (
            ["--strategy", "pmap", "--shard-params"],
            "pmap keeps all parameters on every device: drop --shard-params",
        ),
        (
            ["--strategy", "pmap", "--runs-per-program", "2"],
            "pmap trains one run at a time: drop --runs-per-program 2",
        ),
        (["--num-processes", "2"], "need --coordinator HOST:PORT beside"),
        (["--coordinator", "here"], "must be HOST:PORT, such as .* got here"),
        (["--coordinator", "a:1"], "needs --num-processes and --process-id"),
        (
            ["--coordinator", "a:1", "--num-processes", "2", "--process-id", "2"],
            r"--process-id must lie in \[0, --num-processes 2\), got 2",
        ),
        (["--coordinator", "auto"], "auto: expected the environment of SLURM"),
    ],
    ids=str,
)
def test_devices_and_processes_that_cannot_be_are_refused(
    more, message, finetune, tmp_path, capsys, monkeypatch
):
    if "auto" in more:
        # As in a process that has not asked for devices yet.
        monkeypatch.setattr(
            jax.distributed,
            "initialize",
            functools.partial(refuse, "coordinator_address should be defined."),
        )
    assert finetune("run", *more) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "run").exists()


def refuse(message):
    raise ValueError(message)
