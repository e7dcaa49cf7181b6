"""Several real processes, joined over the loopback address, that train together."""

import dataclasses
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors.numpy

from cwgnc_jax import models
from cwgnc_train.commands import run
from cwgnc_train.engine import hosts

ROOT = Path(__file__).parent.parent.parent.parent

PRIMITIVES = """
import sys
from jax.experimental import multihost_utils
from cwgnc_train.config import HostsConfig, UserError
from cwgnc_train.engine import hosts

address, me = sys.argv[1], int(sys.argv[2])
hosts.join(HostsConfig(address, 2, me))
assert not hosts.alone() and hosts.is_primary() == (me == 0)
assert hosts.largest(me, -3e10 * me) == (1, 0)
agreed = hosts.Agreement()
print(agreed(15 * me, 0), agreed(0, 1 - me), agreed(0, 0))
for block in range(2):
    try:
        with hosts.together("start"):
            if block and me:
                raise OSError("no data")
            print("past the block")
    except (UserError, OSError) as error:
        print(error)
hosts.check_same("seed 1")
try:
    hosts.check_same(f"seed {me}")
except UserError as error:
    print(error)
multihost_utils.sync_global_devices("end")
"""


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """Where the processes keep compiled programs."""
    return tmp_path_factory.mktemp("compiled")


def start(command, count, devices, folder):
    """Starts processes that find each other by their last arguments."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    environment = os.environ | {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(folder),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "GLIBC_TUNABLES": "glibc.malloc.hugetlb=0",
    }
    return [
        subprocess.Popen(
            [sys.executable, *command(address, count, index)],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(count)
    ]


def ended(processes):
    """Exit status and output of each."""
    try:
        outputs = [process.communicate(timeout=300) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [
        (process.returncode, _without_gloo(out), err)
        for process, (out, err) in zip(processes, outputs, strict=True)
    ]


def _without_gloo(out):
    """What was printed, but for what the CPU's collectives say as they connect.

    Each device says it from a thread of its own, so that pieces of it may be mixed.
    """
    pieces = (
        r"\[Gloo\] Rank ",
        r"\d+",
        " is connected to ",
        r" peer ranks\. ",
        "Expected number of connected peer ranks is : ",
        r"\n",
    )
    of_gloo = re.compile(f"({'|'.join(pieces)})+")
    lines = out.splitlines(keepends=True)
    return "".join(line for line in lines if not of_gloo.fullmatch(line))


def test_two_processes_agree_and_fail_together(compiled):
    command = lambda address, count, index: ["-c", PRIMITIVES, address, str(index)]
    first, second = ended(start(command, 2, 1, compiled))
    assert (first[0], second[0]) == (0, 0), first[2] + second[2]
    numbers = "(0, 0) (15, 0) (0, 1)"
    other = "process 1 was asked for other runs than process 0: give all the same"
    lines = first[1].splitlines()
    assert lines[:4] == [
        *(numbers, "past the block", "past the block"),
        "process 1 could not start; it says why itself",
    ]
    assert lines[4].startswith(other)
    lines = second[1].splitlines()
    assert lines[:3] == [numbers, "past the block", "no data"]
    assert lines[3].startswith(other)


def test_a_process_that_is_alone_agrees_with_itself_at_once():
    assert hosts.alone() and hosts.is_primary()
    assert hosts.Agreement()(15, 1) == (15, 1)
    assert hosts.largest(1, 3.5) == (1, 3.5)
    with pytest.raises(OSError, match="no data"), hosts.together("start"):
        raise OSError("no data")


@pytest.fixture(scope="module")
def model(tiny_model, tmp_path_factory):
    """The tiny model, with kernels large enough to be split."""
    folder = Path(shutil.copytree(tiny_model, tmp_path_factory.mktemp("m") / "model"))
    small = models.load_pretrained(tiny_model, num_labels=2, key=jax.random.key(0))
    config = dataclasses.replace(small.config, hidden_size=64, intermediate_size=128)
    params = models.init_params(config, jax.random.key(0))
    models.save_pretrained(folder, config, params)
    return folder


@pytest.fixture(scope="module")
def flags(model, tiny_data):
    def build(workdir, command="finetune", **changes):
        values = {
            "model": model,
            "train-file": tiny_data[0],
            "validation-file": tiny_data[1],
            "text-columns": "text",
            "epochs": 4,
            "batch-size": 13,
            "eval-batch-size": 7,
            "evaluations": 1,
            "record-every": 1,
            "eps": 1e-3,
            "dropout": 0.0,
            "max-length": 16,
            "padding": "max_length",
            "workdir": workdir,
        }
        if command == "finetune":
            values |= {"preset": "code", "learning-rate": 3e-3}
        values |= {name.replace("_", "-"): value for name, value in changes.items()}
        pairs = [(f"--{name}", str(value)) for name, value in values.items()]
        return [command, *(part for pair in pairs for part in pair)]

    return build


@pytest.fixture(scope="module")
def begin(compiled):
    """Starts a command in several processes."""

    def begin(flags, count, *more, devices=1):
        def command(address, count, index):
            by_hand = ["--num-processes", str(count), "--process-id", str(index)]
            given = ["--coordinator", address, *by_hand, *more]
            return ["-m", "cwgnc_train", *flags, *given]

        return start(command, count, devices, compiled)

    return begin


@pytest.fixture(scope="module")
def alone(flags, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("alone") / "run"
    assert run(flags(workdir)) == 0
    return workdir


def lines_of(workdir, kind):
    text = (workdir / "records.jsonl").read_text()
    return [x for x in map(json.loads, text.splitlines()) if x["kind"] == kind]


def losses(workdir, seed=1):
    lines = [
        line
        for line in lines_of(workdir, "metrics")
        if line["run"].endswith(f"/seed={seed}")
    ]
    assert [line["step"] for line in lines] == [*range(1, len(lines) + 1)]
    return [line["loss"] for line in lines]


def assert_same_model(found, expected):
    one, other = (
        safetensors.numpy.load_file(workdir / "model" / "model.safetensors")
        for workdir in (found, expected)
    )
    for name in one:
        np.testing.assert_allclose(one[name], other[name], atol=1e-4, err_msg=name)


def assert_silent(processes):
    for status, out, err in processes:
        assert (status, out, err) == (0, "", "")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("count", "devices", "more"),
    [(2, 2, ()), (4, 1, ("--shard-params",))],
    ids=["2 x 2 devices", "4 x 1 devices, split"],
)
def test_processes_make_the_run_of_one_and_the_first_writes_it(
    count, devices, more, begin, flags, alone, tmp_path
):
    workdir = tmp_path / "run"
    first, *others = ended(begin(flags(workdir), count, *more, devices=devices))
    assert first[0] == 0, first[2]
    assert "majority line" in first[1]
    assert_silent(others)
    np.testing.assert_allclose(losses(workdir), losses(alone), rtol=1e-4)
    scores, others = (
        json.loads((folder / "results.json").read_text())["scores"]
        for folder in (workdir, alone)
    )
    assert scores == others
    assert_same_model(workdir, alone)


@pytest.mark.slow
def test_a_signal_to_one_process_stops_all_and_any_number_goes_on(
    begin, flags, tmp_path
):
    long = {"epochs": 40, "checkpoint_seconds": 10_000, "keep": 1}
    assert run(flags(tmp_path / "alone", **long)) == 0
    workdir = tmp_path / "run"
    processes = begin(flags(workdir, **long), 2, "--shard-params", devices=2)
    wait_for_records(workdir, processes)
    processes[1].send_signal(signal.SIGTERM)
    first, second = ended(processes)
    assert (first[0], second[0]) == (143, 143), first[2] + second[2]
    assert "interrupted by SIGTERM; the same command with --resume" in first[2]
    [folder] = (workdir / "checkpoints").iterdir()
    [path] = folder.iterdir()
    step = int(path.name)
    assert 0 < step < 120 and len(losses(workdir)) == step
    for count in (1, 4):
        copy = Path(shutil.copytree(workdir, tmp_path / f"by{count}"))
        again = flags(copy, **long)
        if count == 1:
            # The folder's own name is no setting of the run.
            assert run([*again, "--resume"]) == 0
        else:
            for status, _, err in ended(begin(again, count, "--resume")):
                assert status == 0, err
        assert len(losses(copy)) == 120
        np.testing.assert_allclose(
            losses(copy)[: step + 20],
            losses(tmp_path / "alone")[: step + 20],
            rtol=2e-2,
        )


def wait_for_records(workdir, processes):
    deadline = time.monotonic() + 200
    while not (workdir / "records.jsonl").exists() or not lines_of(workdir, "metrics"):
        assert time.monotonic() < deadline
        assert all(process.poll() is None for process in processes), ended(processes)
        time.sleep(0.01)


@pytest.mark.slow
def test_processes_train_several_seeds_and_save_the_best(begin, flags, tmp_path):
    seeds = {"seeds": 2, "holdout": 0.2}
    assert run(flags(tmp_path / "alone", **seeds)) == 0
    # Each process has a run of its own; then both share each run.
    for name, more in {"apart": (), "shared": ("--data-devices", "2")}.items():
        workdir = tmp_path / name
        first, second = ended(begin(flags(workdir, **seeds), 2, *more))
        assert first[0] == 0, first[2]
        assert "2 runs: mean" in first[1]
        assert_silent([second])
        results, expected = (
            json.loads((folder / "results.json").read_text())
            for folder in (workdir, tmp_path / "alone")
        )
        assert results["runs"] == expected["runs"]
        assert results["seed"] == expected["seed"]
        assert results["chosen_by"] == "holdout"
        for seed in (1, 2):
            others = losses(tmp_path / "alone", seed)
            np.testing.assert_allclose(losses(workdir, seed), others, rtol=1e-4)
        assert_same_model(workdir, tmp_path / "alone")


STUDY = {
    "command": "stability",
    "methods": "cwgnc_code",
    "learning_rates": 3e-3,
    "max_norms": 0.05,
    "seeds": 2,
    "epochs": 40,
}


@pytest.mark.slow
def test_processes_make_a_study_and_one_of_another_number_goes_on(
    begin, flags, tmp_path
):
    assert run(flags(tmp_path / "alone", **STUDY)) == 0
    workdir = tmp_path / "study"
    # Both processes share each of the runs, which are made one after the other.
    share = ("--data-devices", "2", "--runs-per-program", "1")
    processes = begin(flags(workdir, **STUDY), 2, *share)
    wait_for_records(workdir, processes)
    processes[1].send_signal(signal.SIGINT)
    first, second = ended(processes)
    assert (first[0], second[0]) == (130, 130), first[2] + second[2]
    again = flags(workdir, **STUDY)
    first, *others = ended(begin(again, 4, "--resume", "--data-devices", "4"))
    assert first[0] == 0, first[2]
    assert "going on with 1 runs at step" in first[2]
    assert_silent(others)
    assert not (workdir / "checkpoints").exists()
    assert len(lines_of(workdir, "run")) == 2
    for seed in (1, 2):
        others = losses(tmp_path / "alone", seed)
        np.testing.assert_allclose(losses(workdir, seed)[:30], others[:30], rtol=2e-2)
    # A study that is finished is not made again.
    first, second = ended(begin(again, 2, "--resume"))
    assert first[0] == 0, first[2]
    assert_silent([second])
    assert len(lines_of(workdir, "run")) == 2


@pytest.mark.slow
@pytest.mark.parametrize("setting", ["seed", "batch_size"])
def test_processes_with_other_settings_are_refused(setting, flags, compiled, tmp_path):
    def command(address, count, index):
        by_hand = ["--num-processes", str(count), "--process-id", str(index)]
        given = flags(tmp_path / "run", **{setting: 7 + index})
        return ["-m", "cwgnc_train", *given, "--coordinator", address, *by_hand]

    for status, _, err in ended(start(command, 2, 1, compiled)):
        assert status == 2
        assert "process 1 was asked for other runs than process 0" in err
    assert not (tmp_path / "run").exists()
