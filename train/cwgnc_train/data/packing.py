"""How the examples of a batch lie in rows, planned on the host."""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from cwgnc_train.config import PaddingName
from cwgnc_train.data.order import batch_examples, steps_per_epoch
from cwgnc_train.data.tokens import TokenArrays

_PerExample = Int[np.ndarray, " examples"]
Shape = tuple[int, int]  # Rows and length of a batch.

# Each size that batches may have is one more program to compile.
_SIZES = 3
_SAMPLED_BATCHES = 512


class BatchIndices(NamedTuple):
    """Which examples a batch takes, and where each lies in its rows.

    Padding slots have weight 0 and point past the last row. A batch in parts has a
    leading axis over parts.
    """

    examples: Int[Any, "*parts slots"]
    cls_positions: Int[Any, "*parts slots"]  # Where each begins: row * length + column.
    weights: Float[Any, "*parts slots"]


@dataclasses.dataclass(frozen=True)
class Packing:
    """How the examples of a training set lie in rows.

    With ``packed``, examples share rows of one length; with ``longest`` and
    ``max_length`` each has its own row. The shapes depend on the training set alone, so
    no run changes the shapes of another.
    """

    padding: PaddingName
    lengths: _PerExample  # Of each example of the training set.
    batch_size: int
    shapes: tuple[Shape, ...]  # The smallest first; the last one holds any batch.
    usual: Shape  # The smallest that holds all batches of the sample.
    parts: int  # A batch is split into so many, nearly equal, with rows of their own.

    def shape(self, seeds: Sequence[int], steps: Sequence[int]) -> Shape:
        """Chooses the shape of the batches of one program from its runs' data seeds.

        A single run takes the smallest that holds its batches. That of several must not
        depend on a run's neighbours: it is the usual one, unless a batch exceeds it.
        """
        chosen = 0 if len(seeds) == 1 else self.shapes.index(self.usual)
        for seed, step in itertools.product(seeds, steps):
            for examples in self._parts(seed, step):
                while not self._fits(examples, self.shapes[chosen]):
                    chosen += 1
        return self.shapes[chosen]

    def batch_indices(self, seed: int, step: int, shape: Shape) -> BatchIndices:
        """Lays the examples of a step, counted from 0 over all epochs, into rows."""
        slots, _ = self.shapes[-1]  # It has a row for each example.
        parts = [
            _filled(examples, self._lay(examples, shape[1])[0], slots, shape)
            for examples in self._parts(seed, step)
        ]
        if self.parts == 1:
            return parts[0]
        return BatchIndices(*map(np.stack, zip(*parts, strict=True)))

    def _parts(self, seed: int, step: int) -> list[np.ndarray]:
        batch = batch_examples(len(self.lengths), seed, step, self.batch_size)
        return np.array_split(batch, self.parts)

    def _lay(self, examples: np.ndarray, row_length: int) -> tuple[np.ndarray, int]:
        if self.padding == "packed":
            return first_fit(self.lengths[examples], row_length)
        return np.arange(len(examples)) * row_length, len(examples)

    def _fits(self, examples: np.ndarray, shape: Shape) -> bool:
        longest = self.lengths[examples].max(initial=0)
        return longest <= shape[1] and self._lay(examples, shape[1])[1] <= shape[0]


def make_packing(
    arrays: TokenArrays,
    padding: PaddingName,
    batch_size: int,
    max_length: int,
    multiple: int = 1,
    parts: int = 1,
) -> Packing:
    """Chooses the few shapes that leave the least padding in a sample of batches.

    With the padding ``max_length`` rows have that length, otherwise at most that. The
    numbers of rows and of slots of each part are divisible by ``multiple``.
    """
    lengths, longest = arrays.lengths, arrays.input_ids.shape[1]
    slots = rounded(-(-batch_size // parts), multiple)
    sampled = []
    for step in range(_SAMPLED_BATCHES):
        batch = lengths[batch_examples(len(lengths), 0, step, batch_size)]
        sampled += [part for part in np.array_split(batch, parts) if len(part)]
    if padding == "max_length":
        shapes = [(slots, max_length)]
    elif padding == "longest":
        needed = [min(longest, rounded(batch.max(), 8)) for batch in sampled]
        shapes = [(slots, length) for length in best_sizes(needed, _SIZES)]
    else:
        most = min(max_length, longest * 3 // 2)
        choices = []
        for length in (longest, *range(rounded(longest + 1, 16), most + 1, 16)):
            rows = [rounded(first_fit(batch, length)[1], multiple) for batch in sampled]
            sizes = best_sizes(rows, _SIZES)
            choices.append((_cost(sizes, rows) * length, length, sizes))
        _, length, sizes = min(choices)
        shapes = [(size, length) for size in sizes]
    usual = shapes[-1]
    any_batch = slots, longest if padding == "longest" else usual[1]
    if usual != any_batch:
        shapes.append(any_batch)
    return Packing(padding, lengths, batch_size, tuple(shapes), usual, parts)


def evaluation_batches(
    lengths: Sequence[_PerExample], row_length: int, batch_size: int, multiple: int = 1
) -> tuple[Shape, list[BatchIndices]]:
    """Packs whole sets into batches of the smallest shape that holds each of them.

    No batch mixes sets. Examples are counted over all sets, one set after another. The
    numbers of rows and of slots are divisible by ``multiple``.
    """
    batches, start = [], 0
    for of_set in lengths:
        order = np.argsort(of_set, kind="stable")
        count = steps_per_epoch(len(of_set), batch_size)
        for part in range(count):
            # Batches alike in number and in lengths.
            examples = order[part::count]
            batches.append((start + examples, *first_fit(of_set[examples], row_length)))
        start += len(of_set)
    slots = rounded(batch_size, multiple)
    shape = rounded(max(rows for *_, rows in batches), multiple), row_length
    return shape, [
        _filled(examples, positions, slots, shape) for examples, positions, _ in batches
    ]


def first_fit(lengths: _PerExample, row_length: int) -> tuple[_PerExample, int]:
    """Packs examples into rows: longest first, each into the first row with room.

    Returns where each begins, row * row_length + column, and the number of rows.
    """
    cls_positions = np.empty(len(lengths), np.int32)
    used = [0] * len(lengths)
    for example in np.argsort(-lengths, kind="stable"):
        length = int(lengths[example])
        row = next(r for r, size in enumerate(used) if size + length <= row_length)
        cls_positions[example] = row * row_length + used[row]
        used[row] += length
    return cls_positions, len(used) - used.count(0)


def best_sizes(needed: Sequence[int], count: int) -> list[int]:
    """Chooses at most ``count`` sizes so that rounding up to them costs the least."""
    *smaller, largest = np.unique(needed).tolist()
    choices = itertools.combinations(smaller, min(count - 1, len(smaller)))
    return min(([*c, largest] for c in choices), key=lambda c: _cost(c, needed))


def rounded(size: int, multiple: int) -> int:
    """Rounds up to a multiple."""
    return -(-int(size) // multiple) * multiple


def _cost(sizes: Sequence[int], needed: Sequence[int]) -> int:
    """Sums what is needed, each rounded up to one of the sizes."""
    return int(np.asarray(sizes)[np.searchsorted(sizes, needed)].sum())


def _filled(
    examples: np.ndarray, cls_positions: np.ndarray, slots: int, shape: Shape
) -> BatchIndices:
    """Fills a batch up with padding slots."""
    indices = BatchIndices(
        examples=np.zeros(slots, np.int32),
        cls_positions=np.full(slots, shape[0] * shape[1], np.int32),
        weights=np.zeros(slots, np.float32),
    )
    used = slice(len(examples))
    indices.examples[used] = examples
    indices.cls_positions[used] = cls_positions
    indices.weights[used] = 1
    return indices
