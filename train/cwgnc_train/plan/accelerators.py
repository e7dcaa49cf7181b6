"""Accelerators: what compilers and estimates need to know of them."""

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping
from typing import Literal

from cwgnc_train.config import UserError, suggest


@dataclasses.dataclass(frozen=True)
class Accelerator:
    """One device.

    Rates are the published ones of dense products, in operations a second by dtype;
    bandwidths are bytes a second.
    """

    name: str
    title: str
    platform: Literal["cuda", "tpu"]
    memory: int
    bandwidth: float
    rates: Mapping[str, float]
    link: float
    """What a device sends to the others of its machine or slice."""
    clock: float
    """Of the matrix units; a TPU's estimated cycles are counted in it."""
    description: Mapping[str, int] = dataclasses.field(default_factory=dict)
    """What XLA wants to know of a GPU beside that."""
    smallest: str = ""
    """The smallest topology that a TPU's compiler knows."""

    @property
    def usable(self) -> int:
        """The bytes that JAX takes of its memory, unless it is told otherwise."""
        return int((0.75 if self.platform == "cuda" else 0.95) * self.memory)


# What XLA asks about a GPU besides: capability, cores and their memory.
_HOPPER = {
    "major": 9,
    "core_count": 132,
    "fpus_per_core": 128,
    "threads_per_core_limit": 2048,
    "shared_memory_per_core": 233_472,
    "shared_memory_per_block_optin": 232_448,
    "l2_cache_size": 52_428_800,
}
_AMPERE = _HOPPER | {
    "major": 8,
    "core_count": 108,
    "fpus_per_core": 64,
    "shared_memory_per_core": 167_936,
    "shared_memory_per_block_optin": 166_912,
    "l2_cache_size": 41_943_040,
}
_ADA = _AMPERE | {
    "minor": 9,
    "core_count": 58,
    "fpus_per_core": 128,
    "threads_per_core_limit": 1536,
    "shared_memory_per_core": 102_400,
    "shared_memory_per_block_optin": 101_376,
    "l2_cache_size": 50_331_648,
}
# Memory in bytes, GB/s of memory and link, TFLOP/s in bfloat16 and float32, GHz.
_GPUS = (
    ("h100", "H100 80GB HBM3", 84_942_979_072, 3352, 450, 989, 67, 1.98, _HOPPER),
    ("h200", "H200 141GB HBM3e", 151_397_597_184, 4800, 450, 989, 67, 1.98, _HOPPER),
    ("a100", "A100-SXM4-80GB", 85_100_068_864, 2039, 300, 312, 19.5, 1.41, _AMPERE),
    ("l4", "L4", 23_580_639_232, 300, 32, 121, 30.3, 2.04, _ADA),
)
# Memory in GiB, GB/s of memory and link, TFLOP/s in bfloat16, GHz, smallest topology.
_TPUS = (
    ("v5e", 16, 819, 200, 197, 1.5, "2x2"),
    ("v5p", 95, 2765, 600, 459, 1.75, "2x2x1"),
    ("v6e", 32, 1640, 448, 918, 1.75, "2x2"),
)


def _all() -> Iterator[Accelerator]:
    for name, title, memory, bandwidth, link, bfloat16, float32, clock, more in _GPUS:
        yield Accelerator(
            name=name,
            title=f"NVIDIA {title}",
            platform="cuda",
            memory=memory,
            bandwidth=bandwidth * 1e9,
            # In tf32 the matrix units have half the rate; float32 is not theirs.
            rates=_rates(bfloat16, bfloat16 / 2, float32),
            link=link * 1e9,
            clock=clock * 1e9,
            description=more,
        )
    for name, memory, bandwidth, link, bfloat16, clock, smallest in _TPUS:
        yield Accelerator(
            name=name,
            title=f"TPU {name}",
            platform="tpu",
            memory=memory * 2**30,
            bandwidth=bandwidth * 1e9,
            # A product of float32 takes one pass in bfloat16 by default, six if exact.
            rates=_rates(bfloat16, bfloat16, bfloat16 / 6),
            link=link * 1e9,
            clock=clock * 1e9,
            smallest=smallest,
        )


def _rates(bfloat16: float, tf32: float, float32: float) -> dict[str, float]:
    in_tera = {"bfloat16": bfloat16, "tf32": tf32, "float32": float32}
    return {dtype: rate * 1e12 for dtype, rate in in_tera.items()}


ACCELERATORS = {each.name: each for each in _all()}
"""By name; figures are the vendors' data sheets'."""


@dataclasses.dataclass(frozen=True)
class Slice:
    """Devices of one kind that train together."""

    accelerator: Accelerator
    topology: str
    """How TPUs are connected, such as 2x4; how many GPUs there are, such as 1x8x1."""
    devices: int


def find_slice(name: str) -> Slice:
    """Finds devices by a name: ``h100``, ``h100:8``, ``v5e``, ``v5e:2x4``.

    Raises a UserError that lists what there is.
    """
    kind, colon, topology = name.lower().partition(":")
    accelerator = ACCELERATORS.get(kind)
    if accelerator is None:
        raise UserError(
            f"unknown accelerator {name!r}{suggest(kind, ACCELERATORS) or ';'} there "
            f"are {' '.join(ACCELERATORS)}, and several, as in h100:8 or v5e:2x4"
        )
    wanted = r"\d+" if accelerator.platform == "cuda" else r"\d+(x\d+)+"
    sizes = [int(size) for size in re.findall(r"\d+", topology)]
    if colon and not (re.fullmatch(wanted, topology) and math.prod(sizes)):
        example = "8" if accelerator.platform == "cuda" else accelerator.smallest
        raise UserError(
            f"{name!r} is no topology of {kind}; write {kind}, or {kind}:{example}"
        )
    devices = math.prod(sizes)
    if accelerator.platform == "cuda":
        return Slice(accelerator, f"1x{devices}x1", devices)
    return Slice(accelerator, topology or accelerator.smallest, devices)
