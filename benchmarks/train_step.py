"""A whole training step against torch, as the paper writes it and well, and peers.

    python -m benchmarks.train_step [--sizes minilm base large] [--tasks cola rte mrpc
        --data-dir GLUE_DIR --tokenizer DIR] [--precision float32] [--json FILE]

A step is forward, backward, clip, Adam, decay and schedule, in the shapes of MiniLM,
BERT-base and BERT-large with random weights. Each side takes the same examples: texts
of 128 tokens without padding, and batches from all over an epoch of a real task, which
each side lays out in its own way. Sides go in turn, after their losses without dropout
were compared. --quick takes less than two minutes on two cores. With --json a page is
written beside the file.
"""

import argparse
import statistics
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.arithmetic import matmul_rate, set_precision, step_flops
from benchmarks.measure import in_turn, machine, median_ratio, provenance, publish
from benchmarks.torch_step import AsThePaper, WellWritten
from benchmarks.training import (
    BATCH,
    NAMES,
    SIZES,
    Ours,
    Work,
    complete_checkpoint,
    equal_shapes,
    real_work,
    recipe_of,
)
from cwgnc_jax import models
from train import batches
from train.huge_pages import use_huge_pages

OURS = "this project"


def sides_of(
    size: str, folder: Path, precision: str, compiled: bool
) -> list[Callable[[bool], Any]]:
    """Makes each side of a size from the same weights, with dropout or without."""
    config = SIZES[size]
    checkpoint = complete_checkpoint(folder, config)
    dtype = "bfloat16" if precision == "bfloat16" else "float32"
    recipe = recipe_of(config, dtype)
    return [
        lambda dropout: Ours(checkpoint, recipe, None if dropout else 0.0),
        lambda dropout: AsThePaper(folder, precision, dropout),
        lambda dropout: WellWritten(folder, precision, dropout, compiled),
    ]


def check_equal(
    sides: Sequence[Callable[[bool], Any]], works: Sequence[Work], rtol: float
) -> None:
    """Raises if the losses differ without dropout, over a step of each work.

    A side with another Adam goes its own way from its second step on.
    """
    firsts = [Work(work.name, work.examples, work.steps[:1]) for work in works]
    expected = None
    for make in sides:
        names = dict.fromkeys(
            name for work in firsts for name in make(False).ways(work)
        )
        for name in names:
            side = make(False)
            ways = [side.ways(work) for work in firsts]
            losses = [way.get(name, way[next(iter(way))])()[0] for way in ways]
            expected = losses if expected is None else expected
            compared = slice(None if side.same_adam else 1)
            np.testing.assert_allclose(
                losses[compared], expected[compared], rtol, err_msg=name
            )


def measure_work(
    config: models.BertConfig,
    sides: Sequence[Any],
    work: Work,
    rounds: int,
    peak: float,
) -> dict[str, Any]:
    """Times all sides on the same steps."""
    ways = {name: steps for side in sides for name, steps in side.ways(work).items()}
    timed = in_turn(ways, rounds)
    lengths = [examples.lengths.tolist() for examples in work.batches()]
    count = len(lengths)
    tokens = sum(map(sum, lengths)) / count
    flops = statistics.mean(step_flops(config, step) for step in lengths)
    of_an_epoch = batches.steps_per_epoch(len(work.examples), BATCH)
    rows = []
    for name in ways:
        seconds = timed[name]["median"] / count
        rows.append(
            {
                "side": name,
                "seconds_per_step": seconds,
                "spread": timed[name]["spread"],
                "processor_seconds": timed[name]["processor_seconds"] / count,
                "examples_per_second": BATCH / seconds,
                "tokens_per_second": tokens / seconds,
                "share_of_peak": flops / seconds / peak,
                "times_ours": median_ratio(timed, name, OURS),
                "epoch_seconds": seconds * of_an_epoch if work.padded else None,
            }
        )
    return {
        "work": work.name,
        "steps": count,
        "steps_per_epoch": of_an_epoch,
        "tokens_per_example": tokens / BATCH,
        "sides": rows,
    }


def measure_size(size: str, args: argparse.Namespace, peak: float) -> dict[str, Any]:
    """Measures one size of BERT on all work."""
    config = SIZES[size]
    works = [equal_shapes(config, args.steps)] + [
        real_work(task, args.data_dir, args.tokenizer, args.steps)
        for task in args.tasks
    ]
    with tempfile.TemporaryDirectory() as folder:
        makers = sides_of(size, Path(folder), args.precision, not args.quick)
        check_equal(makers, works, 2e-2 if args.precision == "bfloat16" else 1e-3)
        sides = [make(True) for make in makers]
    return {
        "size": size,
        "work": [
            measure_work(config, sides, work, args.rounds, peak) for work in works
        ],
    }


def page(result: dict[str, Any]) -> str:
    """The figures as Markdown."""
    lines = [
        "# A training step",
        "",
        f"Batch {BATCH}, {result['precision']}, dropout on, clip 0.05. "
        f"A big square product runs at {result['matmul_rate'] / 1e9:.0f} GFLOP/s, the "
        f"peak below. {provenance(result)}",
    ]
    for size in result["sizes"]:
        for work in size["work"]:
            lines += ["", f"## {NAMES[size['size']]}, {work['work']}", ""]
            lines += [
                f"{work['steps']} steps, {work['tokens_per_example']:.1f} tokens an "
                "example.",
                "",
                "| side | s/step | examples/s | tokens/s | × ours | of the peak | "
                "epoch | spread |",
                "|---|---:|---:|---:|---:|---:|---:|---:|",
            ]
            for row in work["sides"]:
                epoch = row["epoch_seconds"]
                minutes = f"{epoch / 60:.1f} min" if epoch else ""
                lines.append(
                    f"| {row['side']} | {row['seconds_per_step']:.3f} | "
                    f"{row['examples_per_second']:.1f} | "
                    f"{row['tokens_per_second']:.0f} | {row['times_ours']:.2f} | "
                    f"{row['share_of_peak']:.2f} | {minutes} | {row['spread']:.2f} |"
                )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measures, prints the page, and writes both if asked to."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--tasks", nargs="*", choices=["cola", "rte", "mrpc"])
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--tokenizer", type=Path)
    parser.add_argument(
        "--precision", choices=["float32", "tf32", "bfloat16"], default="float32"
    )
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    args.tasks = args.tasks or []
    if args.quick:
        args.sizes, args.steps, args.rounds = ["minilm"], 2, 3
    set_precision(args.precision)
    peak = matmul_rate(args.precision)
    result = {
        "benchmark": "train_step",
        "precision": args.precision,
        "rounds": args.rounds,
        "machine": machine(),
        "matmul_rate": peak,
        "sizes": [measure_size(size, args, peak) for size in args.sizes],
    }
    publish(result, page(result), args.json)


if __name__ == "__main__":
    use_huge_pages()
    main()
