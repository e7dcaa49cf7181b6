"""A compiled program, read from XLA's text."""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator
from typing import NamedTuple

_BYTES = {
    **dict.fromkeys(("pred", "s8", "u8", "s4", "u4", "f8e4m3fn", "f8e5m2"), 1),
    **dict.fromkeys(("bf16", "f16", "s16", "u16"), 2),
    **dict.fromkeys(("f32", "s32", "u32"), 4),
    **dict.fromkeys(("f64", "s64", "u64", "c64"), 8),
}
_SHAPE = re.compile(rf"\b({'|'.join(_BYTES)})\[([\d,]*)\](?:\{{([^}}]*)\}})?")
_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.\-]+) .*\{$")
_INSTRUCTION = re.compile(r"\s+(?:ROOT )?%([\w.\-]+) = (.*)$")
_OPCODE = re.compile(r"([\w\-]+)\((.*)$")
_CALLED = re.compile(r"\b(?:calls|to_apply|body|branch_computations)=\{?(%[^,}\s]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_CONDITION = re.compile(r"\bcondition=%([^,\s]+)")
_BOUND = re.compile(r"= s32\[\](?:\{[^}]*\})? constant\((\d+)\)")
_NAME = re.compile(r'op_name="([^"]*)"')
_TILE = re.compile(r"T\(([\d,]*)\)")


class Array(NamedTuple):
    """The shape of an array, and how it lies in memory."""

    dtype: str
    sizes: tuple[int, ...]
    layout: str = ""

    @property
    def elements(self) -> int:
        """How many elements it has."""
        return math.prod(self.sizes)

    @property
    def bytes(self) -> int:
        """What it takes, padding apart."""
        return _BYTES[self.dtype] * self.elements

    @property
    def padded_bytes(self) -> int:
        """What it takes with its innermost axes padded to whole tiles, as on a TPU."""
        order, _, tiling = self.layout.partition(":")
        tile = _TILE.search(tiling)
        if tile is None or not self.sizes:
            return self.bytes
        outward = [self.sizes[int(axis)] for axis in order.split(",") if axis]
        padded = list(outward)
        for i, size in enumerate(reversed(tile[1].split(","))):
            if i < len(outward):
                padded[i] = -(-outward[i] // int(size)) * int(size)
        return _BYTES[self.dtype] * math.prod(padded)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One instruction of a computation."""

    name: str
    opcode: str
    results: tuple[Array, ...]
    operands: tuple[str, ...]
    line: str

    @property
    def scope(self) -> str:
        """Where in the program it comes from: JAX's names of functions and scopes."""
        found = _NAME.search(self.line)
        return found[1] if found else ""

    @property
    def called(self) -> str | None:
        """The computation that it calls or repeats."""
        found = _CALLED.search(self.line)
        return found[1].lstrip("%") if found else None

    def sizes_of(self, attribute: str) -> list[int]:
        """Reads a list of numbers, such as ``lhs_contracting_dims={1}``."""
        found = re.search(rf"\b{attribute}=\{{([\d,]*)\}}", self.line)
        return [int(size) for size in found[1].split(",") if size] if found else []


Computation = dict[str, Instruction]
"""By name, in the order in which they are carried out."""


@dataclasses.dataclass(frozen=True)
class Program:
    """The computations of a module, by name."""

    computations: dict[str, Computation]
    entry: str

    def steps(self) -> Iterator[tuple[Computation, Instruction, int]]:
        """Yields what runs, one after another, and how often.

        Loops, calls and branches are gone through; what a fusion computes inside is
        part of it. Of the branches of a condition the first one counts.
        """
        yield from self._steps(self.entry, 1)

    def _steps(
        self, name: str, times: int
    ) -> Iterator[tuple[Computation, Instruction, int]]:
        computation = self.computations[name]
        for instruction in computation.values():
            called = instruction.called
            if instruction.opcode in ("while", "call", "conditional") and called:
                yield from self._steps(called, times * self._trips(instruction))
            else:
                yield computation, instruction, times

    def _trips(self, instruction: Instruction) -> int:
        """Returns how often a loop runs: what the compiler says, or its bound."""
        if found := _TRIPS.search(instruction.line):
            return int(found[1])
        if not (condition := _CONDITION.search(instruction.line)):
            return 1
        # JAX counts from 0 by 1 to a constant.
        bounds = [
            int(found[1])
            for each in self.computations[condition[1]].values()
            if (found := _BOUND.search(each.line))
        ]
        return bounds[0] if len(bounds) == 1 else 1

    @functools.cached_property
    def arrays(self) -> list[Array]:
        """All arrays that lie in memory: what is inside fusions does not."""
        return [
            array for _, instruction, _ in self.steps() for array in instruction.results
        ]


def read_program(text: str) -> Program:
    """Reads a program as ``Compiled.as_text`` gives it."""
    computations: dict[str, Computation] = {}
    entry, current = "", None
    for line in text.splitlines():
        if line.startswith(("%", "ENTRY")):
            found = _COMPUTATION.match(line)
            if found is not None:
                current = computations.setdefault(found[2], {})
                entry = found[2] if found[1] else entry
        elif line.startswith("}"):
            current = None
        elif current is not None and (found := _INSTRUCTION.match(line)):
            instruction = _instruction(found[1], found[2], line)
            if instruction is not None:
                current[instruction.name] = instruction
    if not entry:
        raise ValueError("no program: expected the text of a compiled module")
    return Program(computations, entry)


def _instruction(name: str, rest: str, line: str) -> Instruction | None:
    end = _closing(rest) + 1 if rest.startswith("(") else rest.index(" ")
    found = _OPCODE.match(rest[end:].strip())
    if found is None:
        return None
    operands = found[2][: _closing("(" + found[2]) - 1]
    return Instruction(
        name=name,
        opcode=found[1],
        results=tuple(
            Array(dtype, tuple(map(int, filter(None, sizes.split(",")))), layout)
            for dtype, sizes, layout in _SHAPE.findall(rest[:end])
        ),
        operands=tuple(re.findall(r"%([\w.\-]+)", operands)),
        line=line,
    )


def _closing(text: str) -> int:
    """Returns the place of the bracket that closes the first one."""
    depth = 0
    for place, char in enumerate(text):
        depth += (char == "(") - (char == ")")
        if not depth:
            return place
    return len(text)
