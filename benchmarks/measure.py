"""How the benchmarks measure: sides in turn, medians with their spread."""

import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax


def in_turn(
    sides: Mapping[str, Callable[[], Any]], rounds: int
) -> dict[str, dict[str, Any]]:
    """Times functions in turn, so that a slower minute of the machine hits them all.

    Each is called once before, untimed. What it returns is waited for.

    Args:
      sides: What to time, by name.
      rounds: How often each is timed.

    Returns:
      For each name the seconds of every round, their median and their spread, the
      largest over the smallest, and the median of the processor's seconds.
    """
    for side in sides.values():
        jax.block_until_ready(side())
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    busy: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            start, began = time.perf_counter(), time.process_time()
            jax.block_until_ready(side())
            seconds[name].append(time.perf_counter() - start)
            busy[name].append(time.process_time() - began)
    return {
        name: {
            "seconds": values,
            "median": statistics.median(values),
            "spread": max(values) / min(values),
            "processor_seconds": statistics.median(busy[name]),
        }
        for name, values in seconds.items()
    }


def median_ratio(timed: Mapping[str, Mapping[str, Any]], one: str, other: str) -> float:
    """The median over rounds of how much longer ``one`` took than ``other``."""
    pairs = zip(timed[one]["seconds"], timed[other]["seconds"], strict=True)
    return statistics.median(a / b for a, b in pairs)


def machine() -> dict[str, Any]:
    """Where and with what a benchmark runs; to be stored beside its figures."""
    versions = {"python": platform.python_version()}
    for name in ("jax", "jaxlib", "optax", "flax", "torch", "transformers"):
        versions[name] = importlib.metadata.version(name)
    return {
        "device": jax.devices()[0].device_kind,
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "load_average": os.getloadavg()[0],
        "commit": _commit(),
        "versions": versions,
    }


def provenance(result: Mapping[str, Any]) -> str:
    """Says in a page how its figures were taken, and on what."""
    where = result["machine"]
    versions = ", ".join(f"{k} {v}" for k, v in where["versions"].items())
    return (
        f"Median of {result['rounds']} rounds, the sides in turn. Machine: "
        f"{where['device']}, {where['processor']}, {where['cores']} cores, load "
        f"{where['load_average']:.1f}; {versions}; commit {where['commit']}."
    )


def publish(result: dict[str, Any], page: str, path: Path | None) -> None:
    """Prints a benchmark's page; with a path writes the figures, and the page beside.

    Args:
      result: What the JSON file is to hold.
      page: The same as Markdown.
      path: The JSON file, if one is wanted.
    """
    print(page)
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result, indent=2) + "\n")
        path.with_suffix(".md").write_text(page)


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.partition(":")[2] for line in lines if line.startswith("model name")]
    return names[0].strip() if names else platform.processor()


def _commit() -> str:
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
    )
    return done.stdout.strip() or "unknown"
