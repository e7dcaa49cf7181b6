"""How long a command takes before it trains, and BERT-large's step to compile.

    python -m benchmarks.startup --model DIR [--json FILE]

The command fine-tunes for a single step of 16 sentences, evaluates 16 and saves the
model, with an empty cache folder and with what the first one left there. --quick takes
less than two minutes on two cores. With --json a page is written beside the file.
"""

if __name__ == "__main__":
    # Before all other imports, which the process that is started anew makes again.
    from cwgnc_train.commands import use_huge_pages

    use_huge_pages()

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measure import machine, publish, where
from benchmarks.training import (
    BATCH,
    LENGTH,
    NAMES,
    SIZES,
    one_run,
    random_texts,
    step_config,
)
from cwgnc_train.data import BatchIndices, token_table
from cwgnc_train.engine import compile_train_steps
from cwgnc_train.plan import abstract_runs
from examples.acceptability import write_corpus


def measure_command(model: Path, rounds: int) -> list[dict[str, float]]:
    """Times a command of one step, with nothing cached and then with all."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_corpus(folder, seed=0, train=BATCH, validation=BATCH)
        flags = [
            *("finetune", "--model", model, "--text-columns", "sentence"),
            *("--train-file", folder / "train.tsv", "--epochs", 1),
            *("--validation-file", folder / "validation.tsv", "--workdir"),
        ]
        environment = os.environ | {"XDG_CACHE_HOME": str(folder / "cache")}
        return [
            timed([*flags, folder / f"run{number}"], environment)
            for number in range(1 + rounds)
        ]


def timed(command: Sequence[Any], environment: Mapping[str, str]) -> dict[str, float]:
    """Seconds until the application has taken its first step, and until it ends."""
    start, found = time.perf_counter(), {}
    process = subprocess.Popen(
        [sys.executable, "-m", "cwgnc_train", *map(str, command)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=environment,
        text=True,
    )
    assert process.stderr
    for line in process.stderr:
        if line.startswith("step 1/"):
            found["first_step"] = time.perf_counter() - start
    if process.wait():
        raise RuntimeError(f"{command} ended with status {process.returncode}")
    return {**found, "end": time.perf_counter() - start}


def measure_compilation(size: str) -> dict[str, Any]:
    """Seconds to trace and to compile the step of a size, from shapes alone."""
    config, layout = step_config(SIZES[size]), one_run()
    numbers = np.arange(BATCH, dtype=np.int32)
    batch = BatchIndices(numbers, numbers * LENGTH, np.ones(BATCH, np.float32))
    inputs = (
        token_table(random_texts(config.model, BATCH, LENGTH)),
        layout.place_indices([[batch]]),
    )
    start = time.perf_counter()
    steps = compile_train_steps(config, layout, (BATCH, LENGTH))
    lowered = steps.lower(abstract_runs(config, layout), *inputs)
    lowered_at = time.perf_counter()
    lowered.compile()
    return {
        "size": size,
        "trace": lowered_at - start,
        "compile": time.perf_counter() - lowered_at,
    }


def page(result: dict[str, Any]) -> str:
    """The figures as Markdown."""
    cold, warm = result["cold"], result["warm"]

    def median(name):
        return statistics.median(row[name] for row in warm)

    lines = [
        "# Before the first step",
        "",
        f"Medians of {len(warm)} times each, once where nothing is cached. "
        f"{where(result)}",
        "",
        f"`cwgnc --help` takes {statistics.median(result['help']):.2f} s.",
        "",
        f"| {result['model']}, a single step of {BATCH} sentences, then an evaluation "
        "and the model saved | the step is taken | the end |",
        "|---|---:|---:|",
        f"| nothing cached | {cold['first_step']:.1f} s | {cold['end']:.1f} s |",
        f"| tokens and programs cached | {median('first_step'):.1f} s | "
        f"{median('end'):.1f} s |",
        "",
        f"| the step of {BATCH} × {LENGTH} tokens | traced | compiled |",
        "|---|---:|---:|",
    ]
    for row in result["compilation"]:
        lines.append(
            f"| {NAMES[row['size']]} | {row['trace']:.1f} s | {row['compile']:.1f} s |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measures, prints the page, and writes both if asked to."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if args.quick:
        args.sizes, args.rounds = ["minilm"], 3
    cold, *warm = measure_command(args.model, args.rounds)
    result = {
        "benchmark": "startup",
        "model": args.model.name,
        "machine": machine(),
        "help": [timed(["--help"], os.environ)["end"] for _ in range(args.rounds)],
        "cold": cold,
        "warm": warm,
        "compilation": [measure_compilation(size) for size in args.sizes],
    }
    publish(result, page(result), args.json)


if __name__ == "__main__":
    main()
