"""A batch with each example in a row of its own, as torch trains on it."""

import numpy as np

from cwgnc_train.data import TokenArrays, batch_examples


def padded_batch(
    arrays: TokenArrays, seed: int, step: int, batch_size: int
) -> dict[str, np.ndarray]:
    """The batch of a step with each example in a row of its own.

    A smaller last one of an epoch is filled up with rows of weight 0.
    """
    examples = batch_examples(len(arrays), seed, step, batch_size)
    weights = (np.arange(batch_size) < len(examples)).astype(np.float32)
    rows = np.pad(examples, (0, batch_size - len(examples)))
    names = ("input_ids", "attention_mask", "token_type_ids", "labels")
    return {name: getattr(arrays, name)[rows] for name in names} | {"weights": weights}
