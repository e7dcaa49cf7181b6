"""What ``cwgnc plan`` prints."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cwgnc_train.plan import Need

# Of a part of the memory, what makes it smaller.
_ACTIVATIONS = "--accumulate 2, --remat or --dtype bfloat16"
_LOWERS = {
    "parameters": "--shard-params over --data-devices",
    "moments": "--shard-params over --data-devices",
    "initial parameters": "--shard-params over --data-devices",
    "training set, batches": "--train-examples",
    "activations, gradients": _ACTIVATIONS,
}


def need_lines(needs: Iterable[Need]) -> Iterator[str]:
    """Yields the lines for each kind of runs on each accelerator, as they are found."""
    yield "estimates from the compilers' programs; nothing here was measured"
    for need in needs:
        yield ""
        yield f"{_devices(need)}: {need.program}"
        yield from (f"  {line}" for line in _lines(need))


def _devices(need: Need) -> str:
    count, title = need.on.devices, need.on.accelerator.title
    return f"{count} x {title}" if count > 1 else title


def _lines(need: Need) -> Iterator[str]:
    used, usable = sum(need.bytes.values()), need.on.accelerator.usable
    parts = ", ".join(f"{name} {_gb(size)}" for name, size in need.bytes.items())
    yield f"memory     {_gb(used)} of {_gb(usable)} a device: {parts}"
    if not need.costs.kernels:
        yield f"           does not fit with the activations: try {_ACTIVATIONS}"
        yield f"           the compiler says: {need.why:.200}"
        return
    if not need.fits:
        largest = max(need.bytes, key=lambda name: need.bytes[name])
        yield f"           does not fit: most are {largest}; try {_LOWERS[largest]}"
        return
    layout = need.layout
    yield f"together   {layout.runs} of {need.runs} runs ({need.why})"
    rate = layout.runs / need.step_seconds
    yield (
        f"step       {1e3 * need.step_seconds:.2f} ms, {rate:.0f} steps of runs a "
        f"second; {need.steps} steps a run"
    )
    yield f"total      {_time(need.seconds)} for all runs; reading and compiling apart"
    yield f"bottleneck {need.bottleneck} of the step"
    yield f"rests on   {need.texts}; {_pricing(need)}"


def _pricing(need: Need) -> str:
    if need.on.accelerator.platform == "tpu":
        return "the compiler's own cycles for each kernel"
    return "a roofline for each kernel, products without autotuning"


def _gb(size: float) -> str:
    return f"{size / 1e9:.2f} GB"


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"
