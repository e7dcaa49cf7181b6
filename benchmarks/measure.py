"""How the benchmarks measure: sides in turn, medians with their spread."""

import importlib.metadata
import json
import os
import platform
import random
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import psutil


def in_turn(
    sides: Mapping[str, Callable[[], Any]],
    rounds: int,
    warm_ups: Mapping[str, Callable[[], Any]] | None = None,
) -> dict[str, dict[str, Any]]:
    """Times functions in turn, so that a slower minute of the machine hits them all.

    The order is drawn anew in every round, so that no side always follows the same one.
    Each is called once before, untimed, and warmed up in every round: what a process
    gave back while others were at work, a virtual machine takes from it for good, and
    it is slow to come back. What a function returns is waited for.

    Args:
      sides: What to time, by name.
      rounds: How often each is timed.
      warm_ups: What is called untimed before a side is timed, if not the side itself.

    Returns:
      For each name the seconds of every round, their median and their spread, the
      largest over the smallest, and the median of the processor's seconds.
    """
    warm_ups = warm_ups or sides
    for side in sides.values():
        jax.block_until_ready(side())
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    busy: dict[str, list[float]] = {name: [] for name in sides}
    orders = random.Random(0)
    for _ in range(rounds):
        for name in orders.sample(list(sides), len(sides)):
            side = sides[name]
            jax.block_until_ready(warm_ups[name]())
            start, began = time.perf_counter(), _processor_seconds()
            jax.block_until_ready(side())
            seconds[name].append(time.perf_counter() - start)
            busy[name].append(_processor_seconds() - began)
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
        "commit": commit(),
        "versions": versions,
    }


def provenance(result: Mapping[str, Any]) -> str:
    """Says in a page how its figures were taken, and on what."""
    return f"Median of {result['rounds']} rounds, the sides in turn. {where(result)}"


def where(result: Mapping[str, Any]) -> str:
    """Says in a page on what its figures were taken."""
    found = result["machine"]
    versions = ", ".join(f"{k} {v}" for k, v in found["versions"].items())
    return (
        f"Machine: {found['device']}, {found['processor']}, {found['cores']} cores, "
        f"load {found['load_average']:.1f}; {versions}; commit {found['commit']}."
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


def _processor_seconds() -> float:
    """Of this process and of those that it has started."""
    children = psutil.Process().children(recursive=True)
    times = [child.cpu_times() for child in children]
    return time.process_time() + sum(each.user + each.system for each in times)


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.partition(":")[2] for line in lines if line.startswith("model name")]
    return names[0].strip() if names else platform.processor()


def commit() -> str:
    """Says -dirty for changes of anything but the results that benchmarks write."""

    def git(*command: str) -> str:
        folder = Path(__file__).parent
        done = subprocess.run(
            ["git", *command], cwd=folder, capture_output=True, text=True
        )
        return done.stdout.strip()

    changed = git("status", "--porcelain", "-uno", "--", ":/", ":(exclude)results")
    name = git("describe", "--always") or "unknown"
    return f"{name}-dirty" if changed else name
