"""How many runs fit together: what a program needs and what a device has."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import psutil

from cwgnc_train.engine import hosts
from cwgnc_train.engine.layout import Layout

# Enough to fill the matrix units of a GPU.
_MOST_IN_A_GROUP = 8
# The rest is for what the analysis does not see: fragments, other programs.
_USABLE = 0.9


def fit_layout(
    wanted: Literal["auto"] | int,
    count: int,
    layout: Layout,
    needed: Callable[[Layout], int],
) -> tuple[Layout, str]:
    """Decides how many of ``count`` runs share a program, how they lie in it, and why.

    A CPU gains little from more than one run at a time, so each of its devices takes
    one unless more are asked for. Other devices take up to eight together, as many as
    fit: ``needed`` tells the bytes that the program of a layout takes on a device.
    """
    devices = layout.run_devices

    def of(runs: int) -> Layout:
        return dataclasses.replace(layout, runs=runs, group=_MOST_IN_A_GROUP)

    if layout.strategy == "pmap":
        return of(1), "pmap trains one run at a time"
    if wanted != "auto":
        runs = _multiple(min(wanted, count), devices)
        together = min(_MOST_IN_A_GROUP, runs // devices)
        return of(runs), f"as asked for, in groups of {together}"
    if count == 1 and devices == 1:
        return of(1), "a single run"
    # The same in all processes, so that they choose the same layout.
    [missing] = hosts.largest(-bytes_free(list(layout.mesh.local_devices)))
    free = -missing
    if layout.platform == "cpu":
        why = "a CPU gains little from more"
        return of(devices), why + _need(needed(of(devices)), free)
    # Programs of about equal size: 25 runs go as 7, 7, 7 and 4, not as 8, 8, 8 and 1.
    programs = -(-count // (_MOST_IN_A_GROUP * devices))
    runs = _multiple(-(-count // programs), devices)
    while True:
        bytes_ = needed(of(runs))
        if bytes_ <= _USABLE * free or runs == devices:
            break
        runs = fewer(runs, devices, _USABLE * free / bytes_)
    why = f"{count} runs to make, at most {_MOST_IN_A_GROUP} together on a device"
    return of(runs), why + _need(bytes_, free)


def fewer(runs: int, devices: int, share: float = 0.5) -> int:
    """Returns the next smaller number of runs to try, a multiple of the devices."""
    smaller = min(int(runs * share), runs - devices)
    return max(devices, smaller // devices * devices)


def bytes_needed(compiled: Any) -> int:
    """Returns the bytes a compiled program takes on each device."""
    analysis = compiled.memory_analysis()
    return (
        analysis.argument_size_in_bytes
        + analysis.output_size_in_bytes
        + analysis.temp_size_in_bytes
        - analysis.alias_size_in_bytes
    )


def bytes_free(
    devices: Sequence[jax.Device],  # pyright: ignore[reportInvalidTypeForm]  # no types
) -> int:
    """Returns what the fullest of the devices has left."""
    statistics = [device.memory_stats() for device in devices]
    if all(stats and "bytes_limit" in stats for stats in statistics):
        return min(s["bytes_limit"] - s["bytes_in_use"] for s in statistics)
    # Devices of a CPU share its memory.
    return psutil.virtual_memory().available // len(devices)


def _need(needed: int, free: float) -> str:
    gib = 2**30
    return f"; the program takes {needed / gib:.2f} GiB of {free / gib:.1f} GiB free"


def _multiple(runs: int, devices: int) -> int:
    return -(-runs // devices) * devices
