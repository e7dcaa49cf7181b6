"""How many runs go together: what a program needs against what a device has."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import psutil
from jax.sharding import Mesh

from train.parallel import Layout

# Enough to fill the matrix units of a GPU.
_MOST_IN_A_GROUP = 8
# The rest is for what the analysis does not see: fragments, other programs.
_USABLE = 0.9


def choose_layout(
    wanted: Literal["auto"] | int,
    count: int,
    mesh: Mesh | None,
    backend: str,
    needed: Callable[[Layout], int],
    free: int,
) -> tuple[Layout, str]:
    """Decides how many runs share a program, and how they lie in it.

    A CPU gains little from more than one run at a time, so each of its devices takes
    one unless more are asked for. Elsewhere a device takes up to eight together, as
    many as fit.

    Args:
      wanted: The number of runs, or "auto".
      count: How many runs there are to make.
      mesh: The devices; None for a single one.
      backend: "cpu", "gpu" or "tpu".
      needed: The bytes that the compiled program of a layout takes on a device.
      free: The bytes that a device has left.

    Returns:
      The layout, and why it was chosen.

    Raises:
      ValueError: If the wanted number cannot be split evenly over the devices.
    """
    devices = 1 if mesh is None else mesh.shape["run"]
    group = _MOST_IN_A_GROUP
    if wanted != "auto":
        layout = Layout(wanted, group, mesh)
        return layout, f"as asked for, in groups of {min(group, wanted // devices)}"
    if backend == "cpu":
        layout = Layout(devices, group, mesh)
        why = "a CPU gains little from more"
        return layout, why + _need(needed(layout), free)
    # Programs of about equal size: 25 runs go as 7, 7, 7 and 4, not as 8, 8, 8 and 1.
    programs = -(-count // (group * devices))
    runs = _multiple(-(-count // programs), devices)
    while True:
        layout = Layout(runs, group, mesh)
        bytes_ = needed(layout)
        if bytes_ <= _USABLE * free or runs == devices:
            break
        runs = fewer(runs, devices, _USABLE * free / bytes_)
    why = f"{count} runs to make, at most {group} together on a device"
    return layout, why + _need(bytes_, free)


def fewer(runs: int, devices: int, share: float = 0.5) -> int:
    """The next smaller number of runs to try, a multiple of the devices."""
    smaller = min(int(runs * share), runs - devices)
    return max(devices, smaller // devices * devices)


def bytes_needed(compiled: Any) -> int:
    """What a compiled program takes on each device, arguments and results included."""
    analysis = compiled.memory_analysis()
    return (
        analysis.argument_size_in_bytes
        + analysis.output_size_in_bytes
        + analysis.temp_size_in_bytes
        - analysis.alias_size_in_bytes
    )


def bytes_free(devices: Sequence[jax.Device]) -> int:
    """What the fullest of the devices has left."""
    statistics = [device.memory_stats() for device in devices]
    if all(stats and "bytes_limit" in stats for stats in statistics):
        return min(s["bytes_limit"] - s["bytes_in_use"] for s in statistics)
    # Devices of a CPU share its memory.
    return psutil.virtual_memory().available // len(devices)


def is_out_of_memory(error: Exception) -> bool:
    """Whether the device reported that its memory is used up."""
    return "RESOURCE_EXHAUSTED" in str(error)


def _need(needed: int, free: int) -> str:
    gib = 2**30
    return f"; the program takes {needed / gib:.2f} GiB of {free / gib:.1f} GiB free"


def _multiple(runs: int, devices: int) -> int:
    return -(-runs // devices) * devices
