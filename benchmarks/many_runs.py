"""Many runs as one program against the same runs one after the other, and torch.

    python -m benchmarks.many_runs [--model DIR] [--runs 1 2 4 8] [--json FILE]

Without --model it takes random weights in the shape of MiniLM. All sides train on the
same batches with the same recipe, in turn; before that their losses are compared.
--quick takes less than two minutes on two cores. With --json a page is written beside
the file.
"""

import argparse
import dataclasses
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch
import transformers

from benchmarks.measure import in_turn, machine, median_ratio, publish
from benchmarks.torch_device import DEVICE, placed
from benchmarks.torch_version import clip_each_parameter, logits_of, make_optimizer
from benchmarks.training import (
    LEARNING_RATE,
    MINILM,
    Steps,
    one_run,
    random_texts,
    setting,
    step_config,
    taken,
)
from cwgnc_jax import models
from cwgnc_train.commands import use_huge_pages
from cwgnc_train.data import TokenArrays
from cwgnc_train.engine import Layout


class Torch:
    """The torch version's run, ready to step."""

    def __init__(self, directory: Path, texts: TokenArrays, dropout: float | None):
        changes = {}
        if dropout is not None:
            changes = dict.fromkeys(
                ("hidden_dropout_prob", "attention_probs_dropout_prob"), dropout
            )
        self.model = placed(
            transformers.BertForSequenceClassification.from_pretrained(
                directory, **changes
            )
        )
        self.model.train()
        self.optimizer = make_optimizer(
            self.model, LEARNING_RATE, eps=1e-8, weight_decay=0.0, correct_bias=True
        )
        self.batch = {
            name: torch.from_numpy(array).to(DEVICE)
            for name, array in dataclasses.asdict(texts).items()
        }

    def step(self) -> float:
        """Takes a step and waits for it; the loss before it."""
        logits = logits_of(self.model, self.batch)
        labels = self.batch["labels"].long()
        loss = torch.nn.functional.cross_entropy(logits, labels)
        self.optimizer.zero_grad()
        loss.backward()
        clip_each_parameter(self.model.parameters(), 0.05)
        self.optimizer.step()
        return loss.item()


def layouts(counts: list[int]) -> dict[str, Layout]:
    """The layouts to measure, by name: all runs together, or in groups."""
    one = one_run()
    group = 2 if one.platform == "cpu" else 4
    found = {}
    for count in counts:
        together = dataclasses.replace(one, runs=count, group=count)
        if count > 1:
            found[f"{count} runs, vmap"] = together
        if count > group:
            groups = dataclasses.replace(together, group=group)
            found[f"{count} runs, map over groups of {group}"] = groups
    return found


def measure(
    model: str | None, counts: list[int], rows: int, length: int, rounds: int
) -> dict[str, Any]:
    """Measures all layouts and returns what the JSON file holds."""
    with tempfile.TemporaryDirectory() as folder:
        if model is None:
            params = models.init_params(MINILM, jax.random.key(0))
            models.save_pretrained(folder, MINILM, params)
            model = folder
        # What is drawn anew would differ between the sides: one complete checkpoint.
        source = models.load_pretrained(model, num_labels=2, key=jax.random.key(0))
        directory = Path(folder) / "complete"
        models.save_pretrained(directory, source.config, source.params)
        checkpoint = models.load_pretrained(
            directory, num_labels=2, key=jax.random.key(0)
        )
        check_equal(checkpoint, directory, rows, length)
        rows_of = [
            measure_layout(checkpoint, name, layout, rows, length, rounds)
            for name, layout in layouts(counts).items()
        ]
        texts = random_texts(source.config, rows, length)
        alone = Steps(checkpoint, step_config(checkpoint.config), texts)
        theirs = Torch(directory, texts, None)
        timed = in_turn({"jax": alone.step, "torch": theirs.step}, rounds)
    return {
        "benchmark": "many_runs",
        "model": Path(model).name if model != folder else "MiniLM's shape, random",
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(source.params)),
        "batch": rows,
        "length": length,
        "rounds": rounds,
        "machine": machine(),
        "one run": {
            "seconds_per_step": timed["jax"]["median"],
            "compile_seconds": alone.compile_seconds,
            "bytes": alone.bytes,
            "torch_seconds_per_step": timed["torch"]["median"],
            "torch_over_jax": median_ratio(timed, "torch", "jax"),
        },
        "together": rows_of,
    }


def check_equal(checkpoint, directory, rows, length) -> None:
    """Raises if the sides do not compute the same losses without dropout."""
    texts = random_texts(checkpoint.config, rows, length)
    ours = Steps(checkpoint, step_config(checkpoint.config), texts, dropout=0.0)
    theirs = Torch(directory, texts, 0.0)
    for _ in range(3):
        np.testing.assert_allclose(ours.step()[0], theirs.step(), rtol=1e-3)


def measure_layout(checkpoint, name, layout, rows, length, rounds) -> dict[str, Any]:
    """One layout against the same runs one after the other."""
    texts = random_texts(checkpoint.config, layout.runs * rows, length)
    seeds = range(layout.runs)
    config = step_config(checkpoint.config)
    together = Steps(checkpoint, config, texts, seeds, layout)
    singles = [
        Steps(checkpoint, config, taken(texts, slice(i * rows, (i + 1) * rows)), [i])
        for i in seeds
    ]
    for single in singles[1:]:
        single.step_fn = singles[0].step_fn

    def one_after_the_other():
        return np.concatenate([single.step() for single in singles])

    np.testing.assert_allclose(together.step(), one_after_the_other(), rtol=1e-4)
    timed = in_turn({"together": together.step, "alone": one_after_the_other}, rounds)
    return {
        "layout": name,
        "runs": layout.runs,
        "run_steps_per_second": layout.runs / timed["together"]["median"],
        "one_after_the_other": layout.runs / timed["alone"]["median"],
        "cost": median_ratio(timed, "together", "alone"),
        "spread": timed["together"]["spread"],
        "compile_seconds": together.compile_seconds,
        "bytes": together.bytes,
    }


def page(result: dict[str, Any]) -> str:
    """The figures as Markdown."""
    one = result["one run"]
    lines = [
        "# Many runs in one program",
        "",
        setting(result),
        "",
        f"One run: {1 / one['seconds_per_step']:.2f} steps/s, compiled in "
        f"{one['compile_seconds']:.1f} s, {one['bytes'] / 2**30:.2f} GiB; the torch "
        f"version takes {one['torch_over_jax']:.2f} times as long a step.",
        "",
        "| layout | run-steps/s | one after the other | cost | compile | memory |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for row in result["together"]:
        lines.append(
            f"| {row['layout']} | {row['run_steps_per_second']:.2f} | "
            f"{row['one_after_the_other']:.2f} | {row['cost']:.2f} | "
            f"{row['compile_seconds']:.1f} s | {row['bytes'] / 2**30:.2f} GiB |"
        )
    lines += [
        "",
        "Cost: time together over time one after the other, in the same rounds; below "
        "1 the program of many runs is the faster one. Memory: arguments, results and "
        "intermediates as the compiler states them.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measures, prints the page, and writes both if asked to."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model")
    parser.add_argument("--runs", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--length", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if args.quick:
        args.runs, args.batch_size, args.length, args.rounds = [2], 8, 16, 3
    result = measure(args.model, args.runs, args.batch_size, args.length, args.rounds)
    publish(result, page(result), args.json)


if __name__ == "__main__":
    use_huge_pages()
    main()
