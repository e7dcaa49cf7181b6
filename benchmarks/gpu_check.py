"""The check on a real GPU: the same numbers, how fast, and how good the estimates are.

    python -m benchmarks.gpu_check --model DIR --json FILE [--minutes 8] [--rehearse]

In this order, until the time is up: the step's numbers against the processor's; our
steps, and what their programs were estimated to take; 25 seeds; the same steps beside
torch's. Each part is a process of its own. What is known is written after each, the
page beside the file, so that a stop loses nothing. --rehearse takes tiny shapes, for a
CPU.
"""

import argparse
import dataclasses
import functools
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.measure import in_turn, median_ratio, publish, where
from benchmarks.sides import Side
from benchmarks.torch_step import PAPER, WELL
from benchmarks.train_step import check_equal
from benchmarks.training import (
    CONFIGS,
    LEARNING_RATE,
    LENGTH,
    NAMES,
    complete_checkpoint,
    equal_shapes,
)

OURS = "this project"
SEEDS = 25
# Of RTE, three epochs in batches of 16, as the paper's code has it.
STEPS_OF_A_RUN = 3 * 156


@dataclasses.dataclass(frozen=True)
class Case:
    """Steps that are timed."""

    size: str
    precision: str
    batch: int = 16


# What is most worth knowing comes first: the time may end at any of them.
CASES = (
    Case("large", "bfloat16"),
    Case("base", "bfloat16"),
    Case("minilm", "bfloat16"),
    Case("large", "bfloat16", 64),
    Case("base", "tf32"),
    Case("base", "float32"),
    Case("minilm", "float32"),
    Case("minilm", "tf32"),
    Case("large", "tf32"),
    Case("base", "bfloat16", 64),
    Case("minilm", "bfloat16", 64),
    Case("large", "float32"),
)
TINY = (Case("quick", "bfloat16", 2), Case("quick", "float32", 2))


class Clock:
    """What is left of the time.

    Args:
      minutes: All of it.
    """

    def __init__(self, minutes: float):
        self._end = time.monotonic() + 60 * minutes

    def left(self) -> float:
        """Seconds."""
        return self._end - time.monotonic()


def lines_of(clock: Clock, module: str, *flags: Any) -> Iterator[dict[str, Any]]:
    """Yields the lines of JSON that a part prints, as long as there is time."""
    command = [sys.executable, "-m", f"benchmarks.{module}", *map(str, flags)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        timer = threading.Timer(max(clock.left(), 0), process.kill)
        timer.start()
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("{"):
                yield json.loads(line)
        timer.cancel()
    if clock.left() < 0:
        yield {"stopped": f"{module}: the time was up"}
    elif process.returncode:
        yield {"stopped": f"{module} ended with status {process.returncode}"}


def against_torch(case: Case, rounds: int, steps: int) -> Iterator[dict[str, Any]]:
    """Yields how long torch's steps take beside ours, one side after the other."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        complete_checkpoint(folder, CONFIGS[case.size])
        work = equal_shapes(CONFIGS[case.size], steps, case.batch)
        side = functools.partial(Side, directory=folder, precision=case.precision)
        training = {"dropout": True, "learning_rate": LEARNING_RATE}
        with side("our_step", **training) as ours:
            own = ours.ways(work)
            for other in (
                {"side": PAPER},
                {"side": WELL, "compiled": case.batch == 16},
            ):
                with side("torch_step", **other, **training) as theirs:
                    ways = {**own, **theirs.ways(work)}
                    timed = in_turn(ways, rounds)
                for way in ways:
                    yield {
                        **dataclasses.asdict(case),
                        "side": way,
                        "seconds_per_step": timed[way]["median"] / steps,
                        "times_ours": median_ratio(timed, way, OURS),
                        "spread": timed[way]["spread"],
                    }


def check_equal_to_torch(case: Case) -> None:
    """Raises if the losses of ours and torch's steps differ without dropout."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        complete_checkpoint(folder, CONFIGS[case.size])

        def maker(module: str, **setting: Any) -> Any:
            return functools.partial(
                Side, module, folder, precision=case.precision, **setting
            )

        others = [maker("torch_step", side=each) for each in (PAPER, WELL)]
        work = equal_shapes(CONFIGS[case.size], 2, case.batch)
        rtol = 1e-3 if case.precision == "float32" else 2e-2
        check_equal(maker("our_step"), others, [work], rtol)


def check(args: argparse.Namespace, keep: Any) -> None:
    """Carries out the parts; ``keep(part, row)`` is told of each result."""
    clock = Clock(args.minutes)
    cases: Sequence[Case] = TINY if args.rehearse else CASES
    tiny = ("--batch-size", 2, "--runs", 2) if args.rehearse else ()
    for row in lines_of(clock, "gpu_numbers", "--model", args.model, *tiny):
        keep("numbers", row)
    for case in cases:
        if clock.left() < 0:
            break
        flags = ("--size", case.size, "--precision", case.precision)
        flags += ("--batch-size", case.batch, "--updates")
        for row in lines_of(clock, "gpu_steps", *flags):
            keep("steps", row)
    largest = cases[0]
    runs = (2,) if args.rehearse else (8, 4)
    flags = ("--size", largest.size, "--precision", largest.precision)
    flags += ("--batch-size", largest.batch, "--runs", *runs)
    for row in lines_of(clock, "gpu_steps", *flags):
        keep("seeds", row)
    # The smallest model of each precision: the larger ones differ in sizes alone.
    equal = {case.precision: case for case in cases if case.size in ("minilm", "quick")}
    for case in cases:
        if clock.left() < 0:
            keep("torch", {"stopped": "the time was up"})
            return
        try:
            if (small := equal.pop(case.precision, None)) is not None:
                check_equal_to_torch(small)
                keep("torch", {"checked": case.precision})
            for row in against_torch(case, args.rounds, args.steps):
                keep("torch", row)
        except (RuntimeError, AssertionError) as error:
            # A side that fails is told, and the next one is tried.
            keep("torch", {**dataclasses.asdict(case), "stopped": str(error)})


def page(result: dict[str, Any]) -> str:
    """The figures as Markdown."""
    lines = ["# The check on an accelerator", "", where(result), ""]
    lines += [f"Stopped: {each}." for each in _stopped(result)]
    numbers = [row for row in result["numbers"] if "equal" in row]
    if numbers:
        lines += [
            "",
            "## Numbers against float32 on the processor",
            "",
            f"MiniLM, {len(numbers)} comparisons of three steps without dropout; the "
            "loss off relatively, the parameters absolutely, the most of each.",
            "",
            "| precision | runs | rows | clip | loss off | parameters off | equal |",
            "|---|---:|---|---:|---:|---:|---|",
            *(
                f"| {row['precision']} | {row['runs']} | {row['padding']} | "
                f"{row['max_norm']} | {row['loss_off']:.1e} | {row['params_off']:.1e} |"
                f" {'yes' if row['equal'] else '**no**'} |"
                for row in numbers
            ),
        ]
    steps = [row for row in result["steps"] + result["seeds"] if "size" in row]
    if steps:
        lines += [
            "",
            f"## Our steps of {LENGTH} tokens, measured and estimated",
            "",
            "| | ms a step | examples/s | estimated ms | measured / estimated | of the "
            "published rate | clip's share |",
            "|---|---:|---:|---:|---:|---:|---:|",
            *map(_step_line, steps),
        ]
    seeds = [row for row in result["seeds"] if "size" in row]
    if seeds:
        best = max(seeds, key=lambda row: row["examples_per_second"])
        per_run = best["seconds_per_step"] / best["runs"]
        minutes = SEEDS * STEPS_OF_A_RUN * per_run / 60
        lines += [
            "",
            f"{SEEDS} seeds of {NAMES[best['size']]} on RTE, three epochs, "
            f"{best['runs']} runs together: {minutes:.1f} minutes of steps, "
            f"extrapolated from {best['seconds_per_step'] * 1e3:.1f} ms a step with "
            "rows that are full; packed rows are fewer.",
        ]
    rows = [row for row in result["torch"] if "side" in row]
    checked = [row["checked"] for row in result["torch"] if "checked" in row]
    if rows:
        lines += [
            "",
            "## Beside torch, on the same examples",
            "",
            "Losses without dropout compared before, with MiniLM's shape: "
            f"{', '.join(checked) or 'none'}.",
            "",
            "| | side | ms a step | × ours | spread |",
            "|---|---|---:|---:|---:|",
            *(
                f"| {_case(row)} | {row['side']} | {1e3 * row['seconds_per_step']:.2f} "
                f"| {row['times_ours']:.2f} | {row['spread']:.2f} |"
                for row in rows
            ),
        ]
    return "\n".join(lines) + "\n"


def _stopped(result: dict[str, Any]) -> list[str]:
    parts = ("numbers", "steps", "seeds", "torch")
    return [
        row["stopped"] for part in parts for row in result[part] if "stopped" in row
    ]


def _case(row: dict[str, Any]) -> str:
    runs = f"{row['runs']} runs × " if row.get("runs", 1) > 1 else ""
    return f"{NAMES[row['size']]}, {row['precision']}, {runs}{row['batch']}"


def _step_line(row: dict[str, Any]) -> str:
    seconds = row["seconds_per_step"]
    cells = [_case(row), f"{1e3 * seconds:.2f}", f"{row['examples_per_second']:.0f}"]
    if "estimated_seconds" in row:
        estimated = row["estimated_seconds"]
        cells += [f"{1e3 * estimated:.2f}", f"{seconds / estimated:.2f}"]
        cells += [f"{100 * row['of_rate']:.0f} %"]
    else:
        cells += ["", "", ""]
    share = ""
    if "clip and adam_seconds" in row:
        clip = row["clip and adam_seconds"] - row["adam_seconds"]
        share = f"{100 * clip / seconds:.1f} %"
    return f"| {' | '.join([*cells, share])} |"


def main() -> None:
    """Carries the check out and writes file and page after every result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rehearse", action="store_true")
    args = parser.parse_args()
    if args.rehearse:
        args.rounds, args.steps = 3, 1
    # A program that one part has compiled is not compiled again by the next, and two
    # processes share the device's memory.
    cache = tempfile.mkdtemp()
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", cache)
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", ".4")
    result: dict[str, Any] = {"benchmark": "gpu_check", "machine": _machine()}
    result |= {part: [] for part in ("numbers", "steps", "seeds", "torch")}

    def keep(part: str, row: dict[str, Any]) -> None:
        result[part].append(row)
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(result, indent=1) + "\n")
        args.json.with_suffix(".md").write_text(page(result))
        print(part, json.dumps(row), flush=True)

    check(args, keep)
    publish(result, page(result), args.json)


def _machine() -> dict[str, Any]:
    """Asked in a process of its own, since this one must not hold the device."""
    program = "import json, benchmarks.measure as m; print(json.dumps(m.machine()))"
    done = subprocess.run(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
