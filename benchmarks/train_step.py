"""A whole training step against torch, as the paper writes it and well, and peers.

    python -m benchmarks.train_step [--sizes minilm base large] [--tasks cola rte mrpc
        --data-dir GLUE_DIR --tokenizer DIR] [--precision float32] [--batch-size 16]
        [--keras PYTHON] [--flax PYTHON] [--json FILE]

A step is forward, backward, clip, Adam, decay and schedule, in the shapes of MiniLM,
BERT-base and BERT-large with random weights. Each side takes the same examples: texts
of 128 tokens without padding, and batches from all over an epoch of a real task, which
each side lays out in its own way. Sides are processes of their own, as they are to
their users, and take their steps in turn, after their losses without dropout were
compared. That is this project and one other at a time: more would not fit into the
memory. PYTHON is the interpreter of a peer's environment. --quick takes less than two
minutes on two cores. With --json a page is written beside the file.
"""

if __name__ == "__main__":
    # Before all other imports, which the process that is started anew makes again.
    from cwgnc_train.commands import use_huge_pages

    use_huge_pages()

import argparse
import dataclasses
import functools
import statistics
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.arithmetic import matmul_rate, set_precision, step_flops
from benchmarks.measure import in_turn, machine, median_ratio, provenance, publish
from benchmarks.sides import Side
from benchmarks.torch_step import PAPER, WELL
from benchmarks.training import (
    BATCH,
    CONFIGS,
    LEARNING_RATE,
    NAMES,
    SIZES,
    Work,
    complete_checkpoint,
    equal_shapes,
    real_work,
)
from cwgnc_jax import models

OURS = "this project"
Maker = Callable[..., Side]
"""Starts a side with ``dropout`` and ``learning_rate``."""


def makers_of(folder: Path, args: argparse.Namespace) -> tuple[Maker, list[Maker]]:
    """Our side, and the others, the torch version first."""

    def maker(module, python=None, **setting) -> Maker:
        where = {"python": python} if python else {}
        return functools.partial(
            Side, module, folder, precision=args.precision, **where, **setting
        )

    others = [
        maker("torch_step", side=PAPER),
        maker("torch_step", side=WELL, compiled=not args.quick),
    ]
    for module, python in (("keras_step", args.keras), ("flax_step", args.flax)):
        if python:
            others.append(maker(module, python))
    return maker("our_step"), others


def check_equal(
    ours: Maker, others: Sequence[Maker], works: Sequence[Work], rtol: float
) -> None:
    """Raises if the losses differ without dropout.

    That is in the first step of each work, with a learning rate of 0, so that every way
    takes it from the same parameters; and against the torch version, which comes first
    and has our Adam, in the steps of the first work.
    """
    firsts = [dataclasses.replace(work, steps=work.steps[:1]) for work in works]
    expected: list[Any] = [None] * len(works)
    for make in (ours, *others):
        with make(dropout=False, learning_rate=0.0) as side:
            for index, work in enumerate(firsts):
                for name, take in side.ways(work).items():
                    losses = take()
                    if expected[index] is None:
                        expected[index] = losses
                    np.testing.assert_allclose(
                        losses, expected[index], rtol, err_msg=f"{name}, {work.name}"
                    )
    trained = []
    for make in (ours, others[0]):
        with make(dropout=False, learning_rate=LEARNING_RATE) as side:
            [take] = side.ways(works[0]).values()
            trained.append(take())
    one, other = trained
    np.testing.assert_allclose(one, other, rtol)


def measure_work(
    config: models.BertConfig,
    sides: Sequence[Any],
    work: Work,
    rounds: int,
    peak: float,
) -> list[dict[str, Any]]:
    """Times sides on the same steps; a row for each of their ways."""
    lengths = [examples.lengths.tolist() for examples in work.batches()]
    tokens = [sum(step) for step in lengths]
    longest = work.steps[tokens.index(max(tokens))]
    ways, warm_ups = (
        {name: steps for side in sides for name, steps in side.ways(part).items()}
        for part in (work, dataclasses.replace(work, steps=(longest,)))
    )
    timed = in_turn(ways, rounds, warm_ups)
    flops = statistics.mean(step_flops(config, step) for step in lengths)
    rows = []
    for name in ways:
        seconds = timed[name]["median"] / len(lengths)
        rows.append(
            {
                "side": name,
                "seconds_per_step": seconds,
                "spread": timed[name]["spread"],
                "processor_seconds": timed[name]["processor_seconds"] / len(lengths),
                "examples_per_second": work.batch / seconds,
                "tokens_per_second": statistics.mean(tokens) / seconds,
                "share_of_peak": flops / seconds / peak,
                "times_ours": median_ratio(timed, name, OURS),
                "epoch_seconds": seconds * work.steps_per_epoch
                if work.padded
                else None,
            }
        )
    return rows


def measure_size(size: str, args: argparse.Namespace, peak: float) -> dict[str, Any]:
    """Measures one size of BERT on all work."""
    config = CONFIGS[size]
    works = [equal_shapes(config, args.steps, args.batch_size)] + [
        real_work(task, args.data_dir, args.tokenizer, args.steps, args.batch_size)
        for task in args.tasks
    ]
    rows: dict[str, list[dict[str, Any]]] = {work.name: [] for work in works}
    versions: dict[str, dict[str, str]] = {}
    with tempfile.TemporaryDirectory() as folder:
        complete_checkpoint(Path(folder), config)
        ours, others = makers_of(Path(folder), args)
        rtol = 2e-2 if args.precision == "bfloat16" else 1e-3
        check_equal(ours, others, works, rtol)
        training = {"dropout": True, "learning_rate": LEARNING_RATE}
        for other in others:
            with ours(**training) as our_side, other(**training) as other_side:
                pair = our_side, other_side
                versions |= {side.module: side.versions for side in pair}
                for work in works:
                    of_work = measure_work(config, pair, work, args.rounds, peak)
                    known = {row["side"] for row in rows[work.name]}
                    rows[work.name] += [x for x in of_work if x["side"] not in known]
    return {
        "size": size,
        "versions": versions,
        "work": [
            {
                "work": work.name,
                "steps": len(work.steps),
                "steps_per_epoch": work.steps_per_epoch,
                "tokens_per_example": float(
                    np.mean([examples.lengths.mean() for examples in work.batches()])
                ),
                "sides": rows[work.name],
            }
            for work in works
        ],
    }


def page(result: dict[str, Any]) -> str:
    """The figures as Markdown."""
    lines = [
        "# A training step",
        "",
        f"Batch {result['batch']}, {result['precision']}, dropout on, clip 0.05. "
        f"A big square product runs at {result['matmul_rate'] / 1e9:.0f} GFLOP/s, the "
        "peak below. × ours is the median of the ratios in the rounds that a side "
        f"shared with this project. {provenance(result)}",
    ]
    for size in result["sizes"]:
        for module in sorted({"keras_step", "flax_step"} & size["versions"].keys()):
            versions = size["versions"][module].items()
            named = ", ".join(f"{name} {version}" for name, version in versions)
            lines += ["", f"{module.removesuffix('_step')} with {named}."]
        for work in size["work"]:
            lines += ["", f"## {NAMES[size['size']]}, {work['work']}", ""]
            lines += [
                f"Steps a round: {work['steps']}; tokens an example: "
                f"{work['tokens_per_example']:.1f}.",
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
    for peer in ("keras", "flax"):
        parser.add_argument(f"--{peer}", type=Path, metavar="PYTHON")
    parser.add_argument("--batch-size", type=int, default=BATCH)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    args.tasks = args.tasks or []
    if args.quick:
        args.sizes, args.batch_size, args.steps, args.rounds = ["quick"], 4, 1, 3
    set_precision(args.precision)
    peak = matmul_rate(args.precision)
    result = {
        "benchmark": "train_step",
        "precision": args.precision,
        "batch": args.batch_size,
        "rounds": args.rounds,
        "machine": machine(),
        "matmul_rate": peak,
        "sizes": [measure_size(size, args, peak) for size in args.sizes],
    }
    publish(result, page(result), args.json)


if __name__ == "__main__":
    main()
