"""Pages of what compilers make of our programs, and of the check on a GPU."""

import json
import subprocess
import sys

import jax
import pytest

from benchmarks import compiled_page, compiled_rows, gpu_check, gpu_numbers
from cwgnc_jax import models
from cwgnc_train.plan import find_slice
from tests.benchmarks.conftest import CONFIG

ROW = compiled_rows.Row("h100", "large", data_devices=8, batch=64, layers=2)
FOUND = {
    **vars(ROW),
    **{"commit": "abc", "versions": {"jax": "0.10.2"}},
    **{"arguments": 4e9, "temporaries": 5e9, "new": 1e9},
    **{"kernels": 1700, "seconds": 0.0125, "cycles": 0, "flops": 2e12},
    **{"bytes": 3e10, "of_rate": 0.55, "of_bandwidth": 0.4, "padding": 1.02},
    "parts": {"matrix products": [0.01, 900], "clip": [0.0025, 3], "rest": [1e-6, 1]},
    "collectives": [["all-reduce", 2_000_000, 1], ["all-reduce", 1_000_000, 3]],
}


def test_a_page_says_of_each_program_that_it_is_an_estimate():
    page = compiled_page.page({"rows": [FOUND]})
    assert "nothing here was measured" in page
    assert "## NVIDIA H100 80GB HBM3, h100" in page
    assert "| program, estimated |" in page
    [line] = [line for line in page.splitlines() if line.startswith("| BERT-large")]
    assert line == (
        "| BERT-large of 2 layers, bfloat16, step of 64 × 128 over 8 devices | "
        "1,700 | 12.50 | "
        "55 % | 10.00 | 1.02 | matrix products 80 %, clip 20 % | "
        "4 all-reduce of 5.0 MB |"
    )
    assert "- jax 0.10.2; commit abc" in page


def test_a_page_sets_programs_beside_those_of_an_earlier_commit():
    earlier = FOUND | {"commit": "old", "seconds": 0.02, "kernels": 2000}
    page = compiled_page.page({"rows": [FOUND], "earlier": [earlier]})
    lines = [line for line in page.splitlines() if line.startswith("| h100: BERT")]
    assert ["| old | 20.00 | 2,000 |" in line for line in lines] == [True, False]
    assert ["| abc | 12.50 | 1,700 |" in line for line in lines] == [False, True]
    assert "commit old" in page


def test_the_rows_are_of_known_accelerators_and_each_once():
    rows = compiled_rows.all_rows(["h100", "v5e"], list(compiled_rows.MODELS))
    assert len({row.key for row in rows}) == len(rows)
    assert {find_slice(row.on).devices for row in rows} == {1, 8}
    for row in rows:
        assert compiled_rows.Row(**json.loads(row.key)) == row


RESULT = {
    "machine": {
        **{"device": "NVIDIA H200", "processor": "x", "cores": 16},
        **{"load_average": 0.0, "commit": "abc", "versions": {"jax": "0.11.2"}},
    },
    "numbers": [
        {
            **{"runs": 8, "padding": "packed", "max_norm": "0.05"},
            **{"precision": "tf32", "loss_off": 1e-3, "params_off": 2e-4},
            **{"equal": False, "seconds": 9.0},
        }
    ],
    "steps": [
        {
            **{"size": "large", "precision": "bfloat16", "batch": 16, "runs": 1},
            **{"seconds_per_step": 0.02, "examples_per_second": 800.0},
            **{"estimated_seconds": 0.016, "of_rate": 0.4},
            **{"clip and adam_seconds": 0.0044, "adam_seconds": 0.004},
        }
    ],
    "seeds": [
        {
            **{"size": "large", "precision": "bfloat16", "batch": 16, "runs": 8},
            **{"seconds_per_step": 0.1, "examples_per_second": 1280.0},
        }
    ],
    "torch": [
        {
            **{"size": "large", "precision": "bfloat16", "batch": 16},
            **{"side": "torch, as the paper", "seconds_per_step": 0.05},
            **{"times_ours": 2.5, "spread": 1.1},
        },
        {"checked": "bfloat16"},
        {"stopped": "the time was up"},
    ],
}


def test_the_page_of_the_check_sets_what_was_estimated_beside_what_was_measured():
    page = gpu_check.page(RESULT)
    for line in (
        "Stopped: the time was up.",
        "| tf32 | 8 | packed | 0.05 | 1.0e-03 | 2.0e-04 | **no** |",
        "| BERT-large, bfloat16, 16 | 20.00 | 800 | 16.00 | 1.25 | 40 % | 2.0 % |",
        "compared before, with MiniLM's shape: bfloat16.",
        "25 seeds of BERT-large on RTE, three epochs, 8 runs together: 2.4 minutes",
        "| BERT-large, bfloat16, 16 | torch, as the paper | 50.00 | 2.50 | 1.10 |",
    ):
        assert line in page


def test_a_part_that_outlasts_the_time_is_ended_and_said():
    rows = list(gpu_check.lines_of(gpu_check.Clock(0.0), "gpu_steps", "--help"))
    assert rows == [{"stopped": "gpu_steps: the time was up"}]


def test_a_part_that_fails_is_said():
    rows = list(gpu_check.lines_of(gpu_check.Clock(1.0), "gpu_steps", "--none"))
    assert rows == [{"stopped": "gpu_steps ended with status 2"}]


@pytest.mark.slow
def test_the_numbers_of_a_device_are_compared_with_the_processors(tmp_path):
    params = models.init_params(CONFIG, jax.random.key(0))
    models.save_pretrained(tmp_path, CONFIG, params)
    rows = list(gpu_numbers.compare(str(tmp_path), batch=2, runs=2))
    assert len(rows) == 16
    # Here the device is the processor.
    assert all(row["equal"] for row in rows)
    exact = [row for row in rows if row["precision"] == "float32"]
    assert len(exact) == 8 and all(row["params_off"] == 0 for row in exact)


@pytest.mark.slow
def test_our_steps_are_timed_on_whatever_device_there_is():
    command = [sys.executable, "-m", "benchmarks.gpu_steps", "--size", "quick"]
    command += ["--batch-size", "2", "--precision", "bfloat16", "--updates"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    row = json.loads(done.stdout)
    assert row["examples_per_second"] == pytest.approx(2 / row["seconds_per_step"])
    assert row["clip and adam_seconds"] > 0
    assert "estimated_seconds" not in row  # of a processor
