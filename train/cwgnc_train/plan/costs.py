"""What a compiled program costs on an accelerator: an estimate for each kernel.

A GPU's kernel takes the longest of three: the bytes that it moves at the bandwidth that
kernels reach, its products at the rate that they reach, and a launch. For a TPU the
compiler itself estimates the cycles of each kernel. Neither is a measurement.
"""

import collections
import dataclasses
import math
import re

from cwgnc_train.plan.accelerators import Accelerator
from cwgnc_train.plan.program import Array, Computation, Instruction, Program

MATRIX_SHARE = 0.7
"""Of the published rate, what products reach."""
BANDWIDTH_SHARE = 0.9
"""Of the published bandwidth, what kernels reach."""
LAUNCH = 2e-6
"""Seconds between two kernels of a GPU."""

# What moves and computes nothing.
_FREE = frozenset(
    {
        *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "iota"),
        *("after-all", "partition-id", "opt-barrier"),
    }
)
_COLLECTIVES = (
    *("all-reduce", "reduce-scatter", "all-gather", "all-to-all"),
    "collective-permute",
)
_LOOKUPS = ("gather", "dynamic-slice", "slice")
_IN_PLACE = ("scatter", "dynamic-update-slice")
# By JAX's names of functions and the scopes that our code opens.
_PARTS = (
    ("random bits", r"threefry|random_bits|/xor|share_words"),
    ("norms", r"component_norms"),
    ("clip", r"component_clip"),
    ("update", r"scale_by_adam|/update/|vmap\(update\)"),
    ("embeddings", r"_take|scatter|Embeddings"),
    ("attention", r"softmax|bhqk|bhkd"),
)


@dataclasses.dataclass(frozen=True)
class Kernel:
    """One kernel of a step, and how often it runs."""

    name: str
    part: str
    scope: str
    times: int
    seconds: float
    """Of one time."""
    bytes: int
    flops: float
    cycles: int = 0


@dataclasses.dataclass(frozen=True)
class Collective:
    """An exchange between devices."""

    kind: str
    bytes: int
    """Of its result, on each device."""
    times: int
    scope: str


@dataclasses.dataclass(frozen=True)
class Costs:
    """What a program costs on each device."""

    kernels: list[Kernel]
    collectives: list[Collective]

    @property
    def seconds(self) -> float:
        """The estimate, one kernel after another."""
        return sum(kernel.times * kernel.seconds for kernel in self.kernels)

    @property
    def cycles(self) -> int:
        """A TPU's; 0 of a GPU."""
        return sum(kernel.times * kernel.cycles for kernel in self.kernels)

    @property
    def count(self) -> int:
        """How many kernels run."""
        return sum(kernel.times for kernel in self.kernels)

    @property
    def flops(self) -> float:
        """Operations of all products."""
        return sum(kernel.times * kernel.flops for kernel in self.kernels)

    @property
    def bytes(self) -> int:
        """What all kernels read and write."""
        return sum(kernel.times * kernel.bytes for kernel in self.kernels)

    def parts(self) -> dict[str, tuple[float, int]]:
        """Seconds and number of kernels of each part, the longest first."""
        seconds: dict[str, float] = collections.defaultdict(float)
        count: dict[str, int] = collections.defaultdict(int)
        for kernel in self.kernels:
            seconds[kernel.part] += kernel.times * kernel.seconds
            count[kernel.part] += kernel.times
        names = sorted(seconds, key=lambda name: -seconds[name])
        return {name: (seconds[name], count[name]) for name in names}


def estimate(program: Program, accelerator: Accelerator) -> Costs:
    """Estimates what a program costs on each device that it was compiled for."""
    kernels, collectives = [], []
    for computation, instruction, times in program.steps():
        opcode = instruction.opcode.removesuffix("-start")
        if opcode in _COLLECTIVES:
            size = max(array.bytes for array in instruction.results)
            collectives.append(Collective(opcode, size, times, instruction.scope))
            seconds = 2 * size / accelerator.link + LAUNCH
            kernels.append(
                _kernel(instruction, times, "exchange", seconds=seconds, moved=2 * size)
            )
        elif accelerator.platform == "tpu":
            if (cycles := _cycles(instruction)) is not None:
                flops, _ = _products(program, computation, instruction)
                seconds = cycles / accelerator.clock
                kernels.append(
                    _kernel(
                        instruction,
                        times,
                        _part(instruction, flops),
                        seconds=seconds,
                        moved=_moved(program, computation, instruction),
                        flops=flops,
                        cycles=cycles,
                    )
                )
        elif opcode not in _FREE and not instruction.opcode.endswith("-done"):
            flops, dtype = _products(program, computation, instruction)
            moved = _moved(program, computation, instruction)
            seconds = max(
                moved / (BANDWIDTH_SHARE * accelerator.bandwidth),
                flops / (MATRIX_SHARE * accelerator.rates[dtype]),
                LAUNCH,
            )
            part = _part(instruction, flops)
            kernels.append(
                _kernel(
                    instruction, times, part, seconds=seconds, moved=moved, flops=flops
                )
            )
    return Costs(kernels, collectives)


def _kernel(
    instruction: Instruction,
    times: int,
    part: str,
    *,
    seconds: float,
    moved: int,
    flops: float = 0.0,
    cycles: int = 0,
) -> Kernel:
    return Kernel(
        instruction.name, part, instruction.scope, times, seconds, moved, flops, cycles
    )


def _cycles(instruction: Instruction) -> int | None:
    found = re.search(r'"estimated_cycles":"(\d+)"', instruction.line)
    return int(found[1]) if found else None


def _part(instruction: Instruction, flops: float) -> str:
    if flops:
        return "matrix products"
    for part, pattern in _PARTS:
        if re.search(pattern, instruction.scope):
            return part
    words = {array.dtype for array in instruction.results}
    if words & {"u32", "u16"}:
        return "random bits"
    return "copies" if not instruction.scope else "other"


def _moved(program: Program, computation: Computation, instruction: Instruction) -> int:
    """Returns the bytes that a kernel reads and writes."""
    written = sum(array.bytes for array in instruction.results)
    inside = program.computations.get(instruction.called or "", {})
    parameters = {
        _parameter(each): each.name
        for each in inside.values()
        if each.opcode == "parameter"
    }
    read = 0
    for index, name in enumerate(instruction.operands):
        arrays = computation[name].results if name in computation else ()
        whole = sum(array.bytes for array in arrays)
        read += min(whole, _looked_up(inside, parameters.get(index), whole))
    for each in inside.values() or [instruction]:
        if each.opcode in _IN_PLACE:
            # Of the array that it changes only what it writes is touched.
            place = 2 if each.opcode == "scatter" else 1
            changed = inside or computation
            of_array = changed[each.operands[0]].results[0].bytes
            of_change = changed[each.operands[place]].results[0].bytes
            read, written = read - of_array, written - of_array + 2 * of_change
    return max(read, 0) + max(written, 0)


def _looked_up(inside: Computation, name: str | None, whole: int) -> int:
    """Returns the bytes of an operand that a fusion reads: of a table some rows."""
    users = [each for each in inside.values() if name in each.operands]
    if not users:
        return whole
    read = 0
    for each in users:
        if each.opcode in ("bitcast", "reshape"):
            read += _looked_up(inside, each.name, whole)
        elif each.opcode in _LOOKUPS and each.operands[0] == name:
            read += sum(array.bytes for array in each.results)
        else:
            return whole
    return read


def _parameter(instruction: Instruction) -> int:
    found = re.search(r"parameter\((\d+)\)", instruction.line)
    return int(found[1]) if found else -1


def _products(
    program: Program, computation: Computation, instruction: Instruction
) -> tuple[float, str]:
    """Returns the operations of the products in a kernel, and their precision."""
    if instruction.opcode in ("dot", "convolution"):
        return _flops(computation, instruction), _precision(computation, instruction)
    inside = program.computations.get(instruction.called or "", {})
    if instruction.opcode == "custom-call":
        return 0.0, "bfloat16"
    found = [_products(program, inside, each) for each in inside.values()]
    dtypes = [dtype for flops, dtype in found if flops]
    return sum(flops for flops, _ in found), (dtypes or ["bfloat16"])[0]


def _flops(computation: Computation, instruction: Instruction) -> float:
    left, right = (computation[name].results[0] for name in instruction.operands[:2])
    [result] = instruction.results
    if instruction.opcode == "convolution":
        return _convolution_flops(instruction, left, right, result)
    axes = instruction.sizes_of("lhs_contracting_dims")
    return 2.0 * math.prod(left.sizes[axis] for axis in axes) * result.elements


def _convolution_flops(
    instruction: Instruction, left: Array, right: Array, result: Array
) -> float:
    """Counts the operations of a convolution, which products are on a TPU.

    Its spatial axes are those of a batch of products: with dilation each position of
    the result meets one of the kernel.
    """
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.line)
    assert labels is not None
    of_left, of_right, of_result = labels.groups()
    pairs = 1
    axes = sorted(filter(str.isdigit, of_result))
    for axis, window in zip(axes, _windows(instruction, len(axes)), strict=True):
        stride, before, dilation = window
        size = left.sizes[of_left.index(axis)]
        pairs *= sum(
            place % dilation == 0 and 0 <= place // dilation < size
            for out in range(result.sizes[of_result.index(axis)])
            for tap in range(right.sizes[of_right.index(axis)])
            for place in [out * stride + tap - before]
        )
    examples, features = (result.sizes[of_result.index(name)] for name in "bf")
    return 2.0 * examples * features * pairs * right.sizes[of_right.index("i")]


def _windows(instruction: Instruction, axes: int) -> list[tuple[int, int, int]]:
    """Returns stride, padding before, and dilation of the input, for each axis."""

    def numbers(name: str, default: int) -> list[int]:
        found = re.search(rf"\b{name}=([\d_x-]+)", instruction.line)
        if found is None:
            return [default] * axes
        return [int(each.partition("_")[0]) for each in found[1].split("x")]

    columns = numbers("stride", 1), numbers("pad", 0), numbers("lhs_dilate", 1)
    return list(zip(*columns, strict=True))


def _precision(computation: Computation, instruction: Instruction) -> str:
    left = computation[instruction.operands[0]].results[0]
    if left.dtype in ("bf16", "f16"):
        return "bfloat16"
    return "float32" if "highest" in instruction.line else "tf32"
