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
    free: int | None = None,
) -> tuple[Layout, str]:
    """Decides how many of ``count`` runs share a program, how they lie in it, and why.

    Unless so many are ``wanted``, each device of a CPU takes one run and other devices
    take up to eight together, as many as fit: ``needed`` tells the bytes that the
    program of a layout takes on a device, ``free`` those that a device has, if not
    what its devices say.
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
    if free is None:
        # The same in all processes, so that they choose the same layout.
        [missing] = hosts.largest(-bytes_free(list(layout.mesh.local_devices)))
        free = -int(missing)
    if layout.platform == "cpu":
        runs, why = devices, "a CPU gains little from more"
    else:
        # Programs of about equal size: 25 runs go as 7, 7, 7 and 4, not 8, 8, 8 and 1.
        programs = -(-count // (_MOST_IN_A_GROUP * devices))
        runs = _multiple(-(-count // programs), devices)
        why = f"{count} runs to make, at most {_MOST_IN_A_GROUP} together on a device"
    while (taken := needed(of(runs))) > _USABLE * free and runs > devices:
        runs = fewer(runs, devices, _USABLE * free / taken)
    why += f"; the program takes {taken / 2**30:.2f} GiB of {free / 2**30:.1f} GiB free"
    return of(runs), why


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


def _multiple(runs: int, devices: int) -> int:
    return -(-runs // devices) * devices
