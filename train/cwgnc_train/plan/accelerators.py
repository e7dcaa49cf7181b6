"""Accelerators: what compilers and estimates need to know of them."""

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Literal

from cwgnc_train.config import UserError, suggest

_GB = 10**9


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


def _gpu(
    name: str,
    title: str,
    *,
    memory: int,
    bandwidth: float,
    bfloat16: float,
    float32: float,
    link: float,
    clock: float,
    **description: int,
) -> Accelerator:
    # In tf32 the matrix units have half the rate; in float32 others do the work.
    rates = {"bfloat16": bfloat16, "tf32": bfloat16 / 2, "float32": float32}
    return Accelerator(
        name, title, "cuda", memory, bandwidth, rates, link, clock, description
    )


def _tpu(
    name: str,
    title: str,
    *,
    memory: int,
    bandwidth: float,
    bfloat16: float,
    link: float,
    clock: float,
    smallest: str,
) -> Accelerator:
    # A product of float32 takes one pass in bfloat16 by default, and six in float32.
    rates = {"bfloat16": bfloat16, "tf32": bfloat16, "float32": bfloat16 / 6}
    return Accelerator(
        name,
        title,
        "tpu",
        memory,
        bandwidth,
        rates,
        link,
        clock,
        smallest=smallest,
    )


_HOPPER = {
    "major": 9,
    "core_count": 132,
    "fpus_per_core": 128,
    "threads_per_core_limit": 2048,
    "shared_memory_per_core": 233_472,
    "shared_memory_per_block_optin": 232_448,
    "l2_cache_size": 52_428_800,
}

ACCELERATORS = {
    each.name: each
    for each in (
        _gpu(
            "h100",
            "NVIDIA H100 80GB HBM3",
            memory=84_942_979_072,
            bandwidth=3352 * _GB,
            bfloat16=989e12,
            float32=67e12,
            link=450e9,
            clock=1.98e9,
            **_HOPPER,
        ),
        _gpu(
            "h200",
            "NVIDIA H200 141GB HBM3e",
            memory=151_397_597_184,
            bandwidth=4800 * _GB,
            bfloat16=989e12,
            float32=67e12,
            link=450e9,
            clock=1.98e9,
            **_HOPPER,
        ),
        _gpu(
            "a100",
            "NVIDIA A100-SXM4-80GB",
            memory=85_100_068_864,
            bandwidth=2039 * _GB,
            bfloat16=312e12,
            float32=19.5e12,
            link=300e9,
            clock=1.41e9,
            major=8,
            core_count=108,
            fpus_per_core=64,
            threads_per_core_limit=2048,
            shared_memory_per_core=167_936,
            shared_memory_per_block_optin=166_912,
            l2_cache_size=41_943_040,
        ),
        _gpu(
            "l4",
            "NVIDIA L4",
            memory=23_580_639_232,
            bandwidth=300 * _GB,
            bfloat16=121e12,
            float32=30.3e12,
            link=32e9,
            clock=2.04e9,
            major=8,
            minor=9,
            core_count=58,
            fpus_per_core=128,
            threads_per_core_limit=1536,
            shared_memory_per_core=102_400,
            shared_memory_per_block_optin=101_376,
            l2_cache_size=50_331_648,
        ),
        _tpu(
            "v5e",
            "TPU v5e",
            memory=16 * 2**30,
            bandwidth=819 * _GB,
            bfloat16=197e12,
            link=200e9,
            clock=1.5e9,
            smallest="2x2",
        ),
        _tpu(
            "v5p",
            "TPU v5p",
            memory=95 * 2**30,
            bandwidth=2765 * _GB,
            bfloat16=459e12,
            link=600e9,
            clock=1.75e9,
            smallest="2x2x1",
        ),
        _tpu(
            "v6e",
            "TPU v6e",
            memory=32 * 2**30,
            bandwidth=1640 * _GB,
            bfloat16=918e12,
            link=448e9,
            clock=1.75e9,
            smallest="2x2",
        ),
    )
}
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
