"""The examples of a batch in rows: planned on the host, put together on the device."""

import dataclasses
from collections.abc import Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from train import batches
from train.batches import TokenArrays

Padding = Literal["packed", "longest", "max_length"]
Shape = tuple[int, int]
"""Rows and length of a batch."""

# A run compiles a program for each size that its batches may have.
_SIZES = 3
_SAMPLED_BATCHES = 512


class TrainingSet(NamedTuple):
    """A training set on the device."""

    input_ids: jax.Array  # shape=(examples, length), dtype=jnp.int32
    token_type_ids: jax.Array  # shape=(examples, length), dtype=jnp.int32
    lengths: jax.Array  # shape=(examples,), dtype=jnp.int32
    labels: jax.Array  # shape=(examples,)


class Plan(NamedTuple):
    """Which examples a step takes, and where they lie in its rows.

    Of a batch in parts everything has a leading axis of these.
    """

    examples: np.ndarray  # shape=(batch,), dtype=np.int32
    first_tokens: np.ndarray  # shape=(batch,), dtype=np.int32; row * length + column
    weights: np.ndarray  # shape=(batch,), dtype=np.float32; 0 fills up


@dataclasses.dataclass(frozen=True)
class Packing:
    """How the examples of a training set are laid into rows.

    ``packed`` puts them behind one another into rows of one length, ``longest`` and
    ``max_length`` each into a row of its own. A batch has the smallest shape that holds
    it of the few there are. They follow from the training set alone, so that no other
    run changes the shapes of a run's batches.
    """

    padding: Padding
    lengths: np.ndarray
    """Of each example of the training set."""
    batch_size: int
    shapes: tuple[Shape, ...]
    """The smallest first; the last one holds any batch."""
    usual: Shape
    """The one that held all batches of those drawn to choose the shapes."""
    parts: int = 1
    """Into how many parts a batch is split, each in rows of its own."""
    multiple: int = 1
    """What the numbers of rows and of examples of a part are divisible by."""

    def shape(self, seeds: Sequence[int], steps: Sequence[int]) -> Shape:
        """The shape of the steps of one program.

        Args:
          seeds: Draw the order of the data of each run in it.
          steps: Taken by it.

        Returns:
          Rows and length. With one run it is the smallest shape that holds its batches.
          With several it must not depend on the neighbours of a run, and so it is the
          usual one for all steps, which hardly any batch exceeds.
        """
        chosen = 0 if len(seeds) == 1 else self.shapes.index(self.usual)
        for seed in seeds:
            for step in steps:
                for examples in self._parts(seed, step):
                    while not self._fits(examples, self.shapes[chosen]):
                        chosen += 1
        return self.shapes[chosen]

    def plan(self, seed: int, step: int, shape: Shape) -> Plan:
        """Takes the examples of a step and lays them into rows.

        Args:
          seed: Draws the order of the data.
          step: Counts from 0 over all epochs.
          shape: As :meth:`shape` returned it.

        Returns:
          The plan.
        """
        plans = [self._plan(part, shape) for part in self._parts(seed, step)]
        return (
            plans[0]
            if self.parts == 1
            else Plan(*map(np.stack, zip(*plans, strict=True)))
        )

    def _plan(self, examples: np.ndarray, shape: Shape) -> Plan:
        size = rounded(-(-self.batch_size // self.parts), self.multiple)
        # What fills up lies behind the last row, that is nowhere.
        plan = Plan(
            np.zeros(size, np.int32),
            np.full(size, shape[0] * shape[1], np.int32),
            np.zeros(size, np.float32),
        )
        count = len(examples)
        plan.examples[:count] = examples
        plan.weights[:count] = 1
        if self.padding == "packed":
            plan.first_tokens[:count] = first_fit(self.lengths[examples], shape[1])[0]
        else:
            plan.first_tokens[:count] = np.arange(count) * shape[1]
        return plan

    def _parts(self, seed: int, step: int) -> list[np.ndarray]:
        count = len(self.lengths)
        return batches.parts_of(count, seed, step, self.batch_size, self.parts)

    def _fits(self, examples: np.ndarray, shape: Shape) -> bool:
        lengths = self.lengths[examples]
        if self.padding == "packed":
            return first_fit(lengths, shape[1])[1] <= shape[0]
        return lengths.max(initial=0) <= shape[1]


def make_packing(
    arrays: TokenArrays,
    padding: Padding,
    batch_size: int,
    max_length: int,
    multiple: int = 1,
    parts: int = 1,
) -> Packing:
    """Chooses the few shapes that batches of a training set may have.

    They are those that leave the least padding in batches drawn for the purpose.

    Args:
      arrays: The training set.
      padding: How examples lie in rows.
      batch_size: Examples a batch.
      max_length: The length of rows for ``max_length``.
      multiple: What the numbers of rows and of examples must be divisible by; what is
        missing is filled up with examples of weight 0.
      parts: Into how many parts a batch is split, each in rows of its own.

    Returns:
      The packing.
    """
    lengths, longest = arrays.lengths, arrays.input_ids.shape[1]
    whole = rounded(-(-batch_size // parts), multiple)
    if padding == "max_length":
        shape = (whole, max_length)
        return Packing(padding, lengths, batch_size, (shape,), shape, parts, multiple)
    drawn = [
        lengths[part]
        for step in range(_SAMPLED_BATCHES)
        for part in batches.parts_of(len(lengths), 0, step, batch_size, parts)
        if len(part)
    ]
    if padding == "longest":
        sizes = [min(longest, rounded(batch.max(), 8)) for batch in drawn]
        shapes = [(whole, size) for size in best_sizes(sizes, _SIZES)]
    else:
        most = min(max_length, longest * 3 // 2)
        of_lengths = [
            _packed_shapes(drawn, length, multiple)
            for length in (longest, *range(rounded(longest + 1, 16), most + 1, 16))
        ]
        shapes, _ = min(of_lengths, key=lambda found: found[1])
    usual = shapes[-1]
    row_for_each = whole, usual[1] if padding == "packed" else longest
    if usual != row_for_each:
        shapes.append(row_for_each)
    return Packing(
        *(padding, lengths, batch_size, tuple(shapes), usual, parts, multiple)
    )


def _packed_shapes(
    drawn: Sequence[np.ndarray], length: int, multiple: int
) -> tuple[list[Shape], int]:
    """The best shapes with rows of this length, and the tokens that they hold in all.

    Args:
      drawn: The lengths of the examples of each batch.
      length: Of the rows.
      multiple: What the number of rows must be divisible by.
    """
    needed = [rounded(first_fit(batch, length)[1], multiple) for batch in drawn]
    sizes = np.asarray(best_sizes(needed, _SIZES))
    taken = sizes[np.searchsorted(sizes, needed)]
    return [(int(size), length) for size in sizes], int(taken.sum()) * length


def first_fit(lengths: np.ndarray, row_length: int) -> tuple[np.ndarray, int]:
    """Lays examples into rows: the longest first, each into the first row with room.

    Args:
      lengths: Of the examples, none above ``row_length``.
      row_length: Of the rows.

    Returns:
      Where each example begins, row * row_length + column, and the number of rows.
    """
    first_tokens = np.empty(len(lengths), np.int32)
    used: list[int] = []
    for example in np.argsort(-lengths, kind="stable"):
        length = int(lengths[example])
        fitting = (
            row for row, column in enumerate(used) if column + length <= row_length
        )
        row = next(fitting, len(used))
        if row == len(used):
            used.append(0)
        first_tokens[example] = row * row_length + used[row]
        used[row] += length
    return first_tokens, len(used)


def best_sizes(needed: Sequence[int], count: int) -> list[int]:
    """Chooses at most ``count`` sizes so that rounding up to them costs the least.

    Args:
      needed: The sizes that occurred.
      count: How many sizes there may be.

    Returns:
      The sizes, rising; the last is the largest that occurred.
    """
    sizes, counts = np.unique(np.asarray(needed), return_counts=True)
    # cost[k][j]: of rounding all up to sizes[j] up to k of them, sizes[j] being one.
    best: list[tuple[float, list[int]]] = [
        (float(sizes[j] * counts[: j + 1].sum()), [j]) for j in range(len(sizes))
    ]
    for _ in range(count - 1):
        best = [
            min(
                [best[j]]
                + [
                    (
                        best[i][0] + float(sizes[j] * counts[i + 1 : j + 1].sum()),
                        [*best[i][1], j],
                    )
                    for i in range(j)
                ]
            )
            for j in range(len(sizes))
        ]
    return [int(sizes[j]) for j in best[-1][1]]


def training_set(arrays: TokenArrays) -> TrainingSet:
    """The training set as :func:`packed_batch` reads it."""
    return TrainingSet(
        arrays.input_ids, arrays.token_type_ids, arrays.lengths, arrays.labels
    )


def packed_batch(
    examples: TrainingSet, plan: Plan, shape: Shape
) -> dict[str, jax.Array]:
    """Gathers the batch of a plan, on the device.

    Args:
      examples: The training set.
      plan: Which examples, and where they begin.
      shape: Rows and length, of each part if there are several.

    Returns:
      ``input_ids``, ``token_type_ids`` and ``attention_mask``, which numbers the
      examples, of this shape; ``first_tokens``, ``labels`` and ``weights`` of each
      example. Of parts everything has a leading axis.
    """
    if plan.weights.ndim == 2:
        # One after the other: which token goes where takes much more than the tokens.
        return jax.lax.map(lambda part: packed_batch(examples, part, shape), plan)
    rows, length = shape
    cells = jnp.arange(rows * length)[:, None]
    first = plan.first_tokens[None]
    inside = (first <= cells) & (cells < first + examples.lengths[plan.examples][None])
    slot = jnp.argmax(inside, axis=1)
    taken = jnp.any(inside, axis=1)
    row = jnp.where(taken, plan.examples[slot], 0)
    column = jnp.where(taken, cells[:, 0] - plan.first_tokens[slot], 0)

    def gathered(table):
        return jnp.where(taken, table[row, column], 0).reshape(shape)

    return {
        "input_ids": gathered(examples.input_ids),
        "token_type_ids": gathered(examples.token_type_ids),
        "attention_mask": jnp.where(taken, slot + 1, 0).reshape(shape),
        "first_tokens": jnp.minimum(plan.first_tokens, rows * length - 1),
        "labels": examples.labels[plan.examples],
        "weights": plan.weights,
    }


def rounded(size: int, multiple: int) -> int:
    """The next multiple that is not smaller."""
    return -(-int(size) // multiple) * multiple
