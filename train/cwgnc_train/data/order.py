"""The order of the data: the examples of a step, a pure function of seed and step."""

import functools

import numpy as np
from jaxtyping import Int


def steps_per_epoch(examples: int, batch_size: int) -> int:
    """Counts the batches of an epoch, a last partial one included."""
    return -(-examples // batch_size)


def batch_examples(
    count: int, seed: int, step: int, batch_size: int
) -> Int[np.ndarray, " batch"]:
    """Returns the examples of a step, whatever was asked for before.

    Each epoch visits each of ``count`` examples once, in an order of its own; its last
    step takes what is left. Steps count from 0 over all epochs.
    """
    epoch, position = divmod(step, steps_per_epoch(count, batch_size))
    start = position * batch_size
    return _epoch_order(seed, epoch, count)[start : start + batch_size]


def draw_order(key: tuple[int, int], count: int) -> Int[np.ndarray, " count"]:
    """Draws an order of ``count`` items that depends on the key alone."""
    # Every version of NumPy draws the same raw words, which is not promised of
    # Generator.permutation.
    words = np.random.Philox(key=np.array(key, np.uint64)).random_raw(count)
    return np.argsort(words).astype(np.int32)


# More epochs than a sweep has seeds, whose runs step through their data together.
@functools.lru_cache(maxsize=64)
def _epoch_order(seed: int, epoch: int, count: int) -> Int[np.ndarray, " count"]:
    # Each epoch has a key of its own, so no earlier epoch need be drawn.
    return draw_order((seed, epoch), count)
