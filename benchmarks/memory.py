"""The peak memory of a training step against torch, and against the least it can be.

    python -m benchmarks.memory [--sizes minilm base] [--json FILE]

Each side takes three steps of 16 texts of 128 tokens in a process of its own. On a CPU
its peak is the largest resident memory during these steps above that after all imports,
on a GPU what its allocator has handed out. --quick takes less than two minutes on two
cores. With --json a page is written beside the file.
"""

if __name__ == "__main__":
    # Before all other imports, which the process that is started anew makes again.
    from cwgnc_train.commands import use_huge_pages

    use_huge_pages()

import argparse
import dataclasses
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import jax
import torch

from benchmarks.arithmetic import LEAST, least_bytes
from benchmarks.measure import machine, publish, where
from benchmarks.torch_step import AsThePaper, WellWritten
from benchmarks.training import (
    BATCH,
    LENGTH,
    NAMES,
    SIZES,
    Steps,
    complete_checkpoint,
    equal_shapes,
    random_texts,
    step_config,
)
from cwgnc_jax import models

STEPS = 3
OURS = ("this project", "this project, --remat")
THEIRS = {"torch, as the paper": AsThePaper, "torch, well written": WellWritten}


def measure_side(name: str, size: str, directory: Path) -> dict[str, Any]:
    """Takes steps in this process; what it held, and by the compiler's account."""
    config, imported = SIZES[size], _resident()
    analysis = None
    if name in OURS:
        variant = dataclasses.replace(step_config(config), remat=name == OURS[1])
        run = Steps(_loaded(directory), variant, random_texts(config, BATCH, LENGTH))
        analysis = run.step_fn.memory_analysis()
        steps = lambda: [run.step() for _ in range(STEPS)]
    else:
        side = THEIRS[name](directory, "float32")
        [steps] = side.ways(equal_shapes(config, STEPS)).values()
    before = _resident()
    _forget_peaks()
    steps()
    return {
        "side": name,
        "before_bytes": before - imported,
        "peak_bytes": _peak(name) - imported,
        "compiler": analysis
        and {
            "kept": analysis.argument_size_in_bytes,
            "temporary": analysis.temp_size_in_bytes,
            "new": analysis.output_size_in_bytes - analysis.alias_size_in_bytes,
        },
    }


def measure_size(size: str) -> dict[str, Any]:
    """Measures all sides of a size, each in a process of its own."""
    config = SIZES[size]
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = complete_checkpoint(Path(folder), config)
        parameters = sum(leaf.size for leaf in jax.tree.leaves(checkpoint.params))
        del checkpoint
        rows = []
        for name in (*OURS, *THEIRS):
            command = [sys.executable, "-m", "benchmarks.memory", "--sizes", size]
            done = subprocess.run(
                [*command, "--side", name, "--directory", folder],
                stdout=subprocess.PIPE,
                text=True,
                check=True,
            )
            rows.append(json.loads(done.stdout.splitlines()[-1]))
    return {
        "size": size,
        "parameters": parameters,
        "least_bytes": least_bytes(config, parameters, BATCH, LENGTH),
        "sides": rows,
    }


def page(result: dict[str, Any]) -> str:
    """The figures as Markdown."""
    lines = [
        "# The memory of a training step",
        "",
        f"Batch {BATCH}, {LENGTH} tokens, float32, dropout on. {where(result)}",
    ]
    for size in result["sizes"]:
        least = size["least_bytes"]
        lines += [
            "",
            f"## {NAMES[size['size']]}, {size['parameters'] / 1e6:.1f} M parameters: "
            f"at least {_mib(least)} MiB",
            "",
            "| side, MiB | peak | × the least | before the steps | "
            "by the compiler: kept | temporary |",
            "|---|---:|---:|---:|---:|---:|",
        ]
        for row in size["sides"]:
            known = row["compiler"]
            account = [_mib(known[x]) if known else "" for x in ("kept", "temporary")]
            lines.append(
                f"| {row['side']} | {_mib(row['peak_bytes'])} | "
                f"{row['peak_bytes'] / least:.2f} | {_mib(row['before_bytes'])} | "
                f"{' | '.join(account)} |"
            )
    lines += [
        "",
        f"The least is {LEAST}.",
        "",
        "Before the steps there are the parameters, on our side the moments as well, "
        "and what building and compiling left behind in the process.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measures, prints the page, and writes both if asked to."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["minilm", "base"])
    # With these it is the process of one side.
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--directory", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if args.side:
        print(json.dumps(measure_side(args.side, args.sizes[0], args.directory)))
        return
    if args.quick:
        args.sizes = ["minilm"]
    result = {
        "benchmark": "memory",
        "machine": machine(),
        "sizes": [measure_size(size) for size in args.sizes],
    }
    publish(result, page(result), args.json)


def _loaded(directory: Path) -> models.Checkpoint:
    return models.load_pretrained(directory, num_labels=2, key=jax.random.key(0))


def _on_gpu() -> bool:
    return jax.default_backend() == "gpu"


def _resident() -> int:
    """What the process holds now; on a GPU nothing."""
    return 0 if _on_gpu() else _status("VmRSS")


def _forget_peaks() -> None:
    if _on_gpu():
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")


def _peak(name: str) -> int:
    if not _on_gpu():
        return _status("VmHWM")
    if name in OURS:
        return jax.devices()[0].memory_stats()["peak_bytes_in_use"]
    return torch.cuda.max_memory_allocated()


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    [line] = [line for line in lines if line.startswith(f"{name}:")]
    return 1024 * int(line.split()[1])


def _mib(bytes_: int) -> str:
    return f"{bytes_ / 2**20:.0f}"


if __name__ == "__main__":
    main()
