"""Several real processes, joined over the loopback address, that make one run."""

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

import numpy as np
import pytest
import safetensors.numpy

from train import hosts
from train.__main__ import main

ROOT = Path(__file__).parent.parent.parent

PRIMITIVES = """
import sys
from train import hosts
from train.config import HostsConfig

address, me = sys.argv[1], int(sys.argv[2])
hosts.join(HostsConfig(address, 2, me))
assert not hosts.alone() and hosts.is_first() == (me == 0)
agreed = hosts.Agreement()
print(agreed(15 * me, 0), agreed(0, 1 - me), agreed(0, 0))
for block in range(2):
    try:
        with hosts.together("start"):
            if block and me:
                raise OSError("no data")
            print("past the block")
    except (ValueError, OSError) as error:
        print(error)
hosts.check_same(lambda: "seed 1")
try:
    hosts.check_same(lambda: f"seed {me}")
except ValueError as error:
    print(error)
hosts.wait_for_all("end")
"""


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
    other = "process 1 was told to make another run than process 0: give all the same"
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
    assert hosts.alone() and hosts.is_first()
    assert hosts.Agreement()(15, 1) == (15, 1)
    with pytest.raises(OSError, match="no data"), hosts.together("start"):
        raise OSError("no data")


@pytest.fixture(scope="module")
def flags(tiny_model, tiny_data):
    def build(workdir, **changes):
        values = {
            "model": tiny_model,
            "train-file": tiny_data[0],
            "validation-file": tiny_data[1],
            "text-columns": "text",
            "preset": "code",
            "epochs": 4,
            "batch-size": 13,
            "eval-batch-size": 7,
            "learning-rate": 3e-3,
            "eps": 1e-3,
            "dropout": 0.0,
            "max-length": 16,
            "padding": "max_length",
            "workdir": workdir,
        } | {name.replace("_", "-"): value for name, value in changes.items()}
        pairs = [(f"--{name}", str(value)) for name, value in values.items()]
        return ["finetune", *(part for pair in pairs for part in pair)]

    return build


@pytest.fixture(scope="module")
def finetune(flags, compiled):
    """Starts ``finetune`` in several processes."""

    def begin(workdir, count, *more, devices=1, **changes):
        def command(address, count, index):
            by_hand = ["--num-processes", str(count), "--process-id", str(index)]
            return [
                *("-m", "train", *flags(workdir, **changes)),
                *("--coordinator", address, *by_hand, *more),
            ]

        return start(command, count, devices, compiled)

    return begin


@pytest.fixture(scope="module")
def alone(flags, tmp_path_factory, compilation_cache):
    workdir = tmp_path_factory.mktemp("alone") / "run"
    assert main(flags(workdir)) == 0
    return workdir


def losses(workdir):
    lines = [
        json.loads(x) for x in (workdir / "metrics.jsonl").read_text().splitlines()
    ]
    assert [line["step"] for line in lines] == [*range(1, len(lines) + 1)]
    return [line["loss"] for line in lines]


def assert_same_run(found, expected):
    np.testing.assert_allclose(losses(found), losses(expected), rtol=1e-4)
    scores, others = (
        json.loads((workdir / "results.json").read_text())["scores"]
        for workdir in (found, expected)
    )
    assert scores == others
    one, other = (
        safetensors.numpy.load_file(workdir / "model" / "model.safetensors")
        for workdir in (found, expected)
    )
    for name in one:
        np.testing.assert_allclose(one[name], other[name], atol=1e-4, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("count", "devices", "more"),
    [(2, 2, ()), (4, 1, ("--shard-params",))],
    ids=["2 x 2 devices", "4 x 1 devices, split"],
)
def test_processes_make_the_run_of_one_and_the_first_writes_it(
    count, devices, more, finetune, alone, tmp_path
):
    workdir = tmp_path / "run"
    first, *others = ended(finetune(workdir, count, *more, devices=devices))
    assert first[0] == 0, first[2]
    assert "majority line" in first[1]
    for status, out, err in others:
        assert (status, out, err) == (0, "", "")
    assert_same_run(workdir, alone)


@pytest.mark.slow
def test_a_signal_to_one_process_stops_all_and_any_number_goes_on(
    finetune, flags, tmp_path, compilation_cache
):
    long = {"epochs": 40, "checkpoint_seconds": 10_000, "keep": 1}
    assert main(flags(tmp_path / "alone", **long)) == 0
    workdir = tmp_path / "run"
    processes = finetune(workdir, 2, "--shard-params", devices=2, **long)
    records = workdir / "metrics.jsonl"
    deadline = time.monotonic() + 200
    while not (records.exists() and records.stat().st_size):
        assert time.monotonic() < deadline
        assert all(process.poll() is None for process in processes), ended(processes)
        time.sleep(0.01)
    processes[1].send_signal(signal.SIGTERM)
    first, second = ended(processes)
    assert (first[0], second[0]) == (143, 143), first[2] + second[2]
    assert "interrupted by SIGTERM; the same command with --resume" in first[2]
    [path] = (workdir / "checkpoint").iterdir()
    step = int(path.name)
    assert 10 < step < 120 and len(losses(workdir)) == step
    for count in (1, 4):
        copy = Path(shutil.copytree(workdir, tmp_path / f"by{count}"))
        if count == 1:
            # The folder's own name is no setting of the run.
            assert main([*flags(copy, **long), "--resume"]) == 0
        else:
            for status, _, err in ended(finetune(copy, count, "--resume", **long)):
                assert status == 0, err
        assert len(losses(copy)) == 120
        np.testing.assert_allclose(
            losses(copy)[: step + 20],
            losses(tmp_path / "alone")[: step + 20],
            rtol=2e-2,
        )


@pytest.mark.slow
def test_processes_with_other_settings_are_refused(flags, compiled, tmp_path):
    def command(address, count, index):
        by_hand = ["--num-processes", str(count), "--process-id", str(index)]
        given = flags(tmp_path / "run", seed=index)
        return ["-m", "train", *given, "--coordinator", address, *by_hand]

    for status, _, err in ended(start(command, 2, 1, compiled)):
        assert status == 2
        assert "process 1 was told to make another run than process 0" in err
    assert not (tmp_path / "run").exists()
