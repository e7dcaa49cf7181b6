"""From the command to the score, against the torch version on the same flags.

    python -m benchmarks.finetune --model DIR --data-dir GLUE_DIR
        [--tasks rte mrpc cola] [--epochs 3] [--train-examples N] [--json FILE]

Reading, tokenization, compilation, training, evaluation and writing are all in it. This
project's command runs twice: with an empty cache folder and with what the first one
left there. --quick takes less than two minutes on two cores. With --json a page is
written beside the file.
"""

if __name__ == "__main__":
    # Before all other imports, which the process that is started anew makes again.
    from cwgnc_train.commands import use_huge_pages

    use_huge_pages()

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.measure import machine, publish, where
from benchmarks.training import LEARNING_RATE

TASKS = ("rte", "mrpc", "cola")
COLD, WARM = "this project, nothing cached", "this project, cached"
TORCH = "torch version"


def measure_task(task: str, args: argparse.Namespace) -> dict[str, Any]:
    """Runs all commands of a task, one after the other."""
    flags = [
        *("--model", args.model, "--task", task, "--data-dir", args.data_dir),
        *("--epochs", args.epochs, "--learning-rate", LEARNING_RATE, "--seed", 1),
    ]
    if args.train_examples:
        flags += ["--train-examples", args.train_examples]
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ours = ["cwgnc_train", "finetune", "--preset", "code", *flags, "--workdir"]
        for side in (COLD, WARM):
            workdir = folder / side
            row = timed([*ours, workdir], folder / "cache")
            found = json.loads((workdir / "results.json").read_text())
            seconds, steps = found["seconds"], found["steps"]
            metric = found["metric"]
            rows.append({"side": side, **row, **_scored(found, metric, seconds)})
        result = folder / "torch.json"
        row = timed(["benchmarks.torch_version", *flags, "--json", result], folder)
        found = json.loads(result.read_text())
        rows.append({"side": TORCH, **row, **_scored(found, metric, found["seconds"])})
    return {"task": task, "metric": metric, "steps": steps, "sides": rows}


def timed(command: Sequence[Any], cache: Path) -> dict[str, float]:
    """Runs a module of this interpreter, and times it."""
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        [sys.executable, "-m", *map(str, command)],
        stdout=subprocess.DEVNULL,
        env=os.environ | {"XDG_CACHE_HOME": str(cache)},
        check=True,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "seconds": time.perf_counter() - start,
        "processor_seconds": after.ru_utime
        + after.ru_stime
        - before.ru_utime
        - before.ru_stime,
    }


def _scored(found: Any, metric: str, seconds: Any) -> dict[str, float]:
    score = found["scores"]["validation"][metric]
    return {
        "score": score,
        "training_seconds": seconds["training"],
        "evaluation_seconds": seconds["evaluation"],
    }


def page(result: dict[str, Any]) -> str:
    """The figures as Markdown."""
    cut = f"epochs: {result['epochs']}"
    if result["train_examples"]:
        cut += f", training examples: {result['train_examples']}"
    lines = [
        "# From the command to the score",
        "",
        f"{result['model']}, the preset of the paper's code, {cut}; "
        f"once each. {where(result)}",
    ]
    for task in result["tasks"]:
        warm = next(row for row in task["sides"] if row["side"] == WARM)
        lines += [
            "",
            f"## {task['task']}, {task['steps']} steps",
            "",
            f"| | seconds | × cached | training | evaluation | the rest | processor | "
            f"{task['metric']} |",
            "|---|---:|---:|---:|---:|---:|---:|---:|",
        ]
        for row in task["sides"]:
            inside = row["training_seconds"] + row["evaluation_seconds"]
            lines.append(
                f"| {row['side']} | {row['seconds']:.1f} | "
                f"{row['seconds'] / warm['seconds']:.2f} | "
                f"{row['training_seconds']:.1f} | {row['evaluation_seconds']:.1f} | "
                f"{row['seconds'] - inside:.1f} | {row['processor_seconds']:.1f} | "
                f"{row['score']:.3f} |"
            )
    lines += [
        "",
        "On this project's side compilation is in training and in evaluation. The "
        "torch version pads to 128 tokens and measures every parameter in every step, "
        "as the paper's code does. Classifier and dropout are drawn by different "
        "generators, so that the scores are those of two seeds.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measures, prints the page, and writes both if asked to."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--train-examples", type=int)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if args.quick:
        args.tasks, args.epochs, args.train_examples = ["rte"], 1, 64
    result = {
        "benchmark": "finetune",
        "model": args.model.name,
        "epochs": args.epochs,
        "train_examples": args.train_examples,
        "machine": machine(),
        "tasks": [measure_task(task, args) for task in args.tasks],
    }
    publish(result, page(result), args.json)


if __name__ == "__main__":
    main()
