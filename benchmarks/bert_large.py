"""BERT-large from the command to the result: MRPC once, and 25 seeds of RTE.

    python -m benchmarks.bert_large --tokenizer DIR --data-dir GLUE_DIR [--json FILE]

For a GPU: bfloat16, three epochs, batch 16, the values of the paper's code. The weights
are random in BERT-large's shape, which take as long as trained ones. Each command runs
twice: with an empty cache folder and with what the first one left there. --quick takes
MiniLM's shape, few examples and each command once, less than two minutes on two cores.
With --json a page is written beside the file.
"""

if __name__ == "__main__":
    # Before all other imports, which the process that is started anew makes again.
    from cwgnc_train.commands import use_huge_pages

    use_huge_pages()

import argparse
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.finetune import timed
from benchmarks.measure import machine, publish, where
from benchmarks.training import BATCH, NAMES, SIZES, complete_checkpoint
from cwgnc_train.data import CachedTokenizer

WHOLE = {"size": "large", "epochs": 3, "train_examples": None, "seeds": 25, "times": 2}
QUICK = {"size": "minilm", "epochs": 1, "train_examples": 32, "seeds": 2, "times": 1}
CACHED = {False: "nothing cached", True: "cached"}


def measure(
    scale: Mapping[str, Any], tokenizer: Path, data_dir: Path
) -> list[dict[str, Any]]:
    """Runs both commands, the second time with what the first one left."""
    with tempfile.TemporaryDirectory() as name:
        folder, seeds = Path(name), scale["seeds"]
        complete_checkpoint(folder / "model", SIZES[scale["size"]])
        loaded = CachedTokenizer(tokenizer, cache=False).loaded
        loaded.save_pretrained(folder / "model")
        shared = [
            *("--model", folder / "model", "--data-dir", data_dir),
            *("--epochs", scale["epochs"], "--batch-size", BATCH),
            *("--dtype", "bfloat16"),
        ]
        if scale["train_examples"]:
            shared += ["--train-examples", scale["train_examples"]]
        commands = {
            "mrpc": ["finetune", "--preset", "code", "--task", "mrpc"],
            "rte": [
                *("stability", "--tasks", "rte", "--seeds", seeds),
                *("--methods", "cwgnc_code", "--max-norms", 0.05),
                *("--learning-rates", 2e-5),
            ],
        }
        rows = []
        for task, command in commands.items():
            for cached in (False, True)[: scale["times"]]:
                workdir = folder / f"{task}, {CACHED[cached]}"
                row = timed(
                    ["train", *command, *shared, "--workdir", workdir], folder / task
                )
                training = None
                if task == "mrpc":
                    found = json.loads((workdir / "results.json").read_text())
                    training = found["seconds"]["training"]
                rows.append(
                    {
                        "task": task,
                        "runs": seeds if task == "rte" else 1,
                        "cached": cached,
                        **row,
                        "training_seconds": training,
                    }
                )
    return rows


def page(result: dict[str, Any]) -> str:
    """The figures as Markdown."""
    cut = f"epochs: {result['epochs']}"
    if result["train_examples"]:
        cut += f", training examples: {result['train_examples']}"
    lines = [
        "# BERT-large from the command to the result",
        "",
        f"Random weights in the shape of {NAMES[result['size']]}, batch {BATCH}, "
        f"bfloat16, {cut}, the values of the paper's code. {where(result)}",
        "",
        "| | from the command to the result | training | processor |",
        "|---|---:|---:|---:|",
    ]
    for row in result["commands"]:
        runs = f"{row['runs']} runs" if row["runs"] > 1 else "one run"
        training = row["training_seconds"]
        lines.append(
            f"| {row['task']}, {runs}, {CACHED[row['cached']]} | "
            f"{row['seconds']:.1f} s | {f'{training:.2f} s' if training else ''} | "
            f"{row['processor_seconds']:.1f} s |"
        )
    lines += ["", "Compilation is in the training."]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measures, prints the page, and writes both if asked to."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    scale = QUICK if args.quick else WHOLE
    result = {
        "benchmark": "bert_large",
        **scale,
        "machine": machine(),
        "commands": measure(scale, args.tokenizer, args.data_dir),
    }
    publish(result, page(result), args.json)


if __name__ == "__main__":
    main()
