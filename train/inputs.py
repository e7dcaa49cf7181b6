"""What runs are made from: the examples as tokens, and the pretrained weights."""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np

from cwgnc_jax import models
from train import batches, tasks
from train.config import DataConfig, OptimizerConfig, RegularizationConfig
from train.examples import load_examples
from train.steps import Recipe
from train.token_cache import CachedTokenizer


@dataclasses.dataclass(frozen=True)
class Inputs:
    """All that is read before runs of a task can start."""

    task: tasks.Task
    sets: dict[str, batches.TokenArrays]
    """By name: "train", and those that are scored, of one length all of them."""
    tokenizer: CachedTokenizer
    checkpoint: models.Checkpoint

    @property
    def train(self) -> batches.TokenArrays:
        """The examples to train on."""
        return self.sets["train"]

    @property
    def scored(self) -> dict[str, batches.TokenArrays]:
        """The sets that runs are scored on, by name."""
        return {name: arrays for name, arrays in self.sets.items() if name != "train"}

    @property
    def judged(self) -> str:
        """The name of the set whose score decides whether a run failed."""
        return next(name for name in self.scored if name.startswith("validation"))

    @property
    def layers(self) -> int:
        """How many layers the encoder has."""
        return self.checkpoint.config.num_hidden_layers

    @functools.cached_property
    def data_digest(self) -> str:
        """Changes with any token or label."""
        return _digest(
            part
            for name, arrays in self.sets.items()
            for part in (name.encode(), *dataclasses.astuple(arrays))
        )

    @functools.cached_property
    def weights_digest(self) -> str:
        """Changes with any weight that training starts from."""
        return _digest(jax.tree.leaves(self.checkpoint.params))

    def majority_lines(self) -> dict[str, dict[str, float]]:
        """The majority classifier's scores on each set that is scored."""
        return {
            name: tasks.majority_line(self.task, _labels(arrays))
            for name, arrays in self.scored.items()
        }

    def recipe(
        self,
        optimizer: OptimizerConfig,
        regularization: RegularizationConfig,
        dtype: str,
        remat: bool,
    ) -> Recipe:
        """What is fixed when a step for runs of this task is compiled."""
        return Recipe(
            model=self.checkpoint.config,
            regression=self.task.regression,
            components=optimizer.components,
            b1=optimizer.b1,
            b2=optimizer.b2,
            dtype=dtype,
            mixout=regularization.mixout > 0,
            prior_decay=optimizer.prior_decay > 0,
            layer_decay=optimizer.layer_decay < 1,
            nonfinite=optimizer.nonfinite,
            remat=remat,
        )


def load_inputs(
    data: DataConfig,
    load_checkpoint: Callable[[int], models.Checkpoint],
    cache: bool,
) -> Inputs:
    """Reads and checks a task's examples and the model's weights.

    Args:
      data: Which texts and labels.
      load_checkpoint: Loads the weights for a number of labels.
      cache: Whether tokens are kept on disk; nothing else is written.

    Returns:
      The inputs.

    Raises:
      ValueError: If the data or the weights are wrong; the message says what was
        expected, what came and how to mend it.
      OSError: If a file is missing or a hub cannot be reached.
    """
    task, examples = load_examples(data)
    checkpoint = load_checkpoint(task.num_labels)
    batches.check_length(data.max_length, checkpoint.config.max_length)
    tokenizer = CachedTokenizer(checkpoint.directory, cache)
    tokens = {
        name: tokenizer.encode(part.texts, data.max_length)
        for name, part in examples.items()
    }

    def padded(name: str, length: int | None = None) -> batches.TokenArrays:
        labels = examples[name].labels
        return batches.pad(tokens[name], labels, data.max_length, length)

    sets = {name: padded(name) for name in tokens}
    # One length for all that is evaluated: no set needs programs of its own.
    evaluated = [name for name in sets if name != "train"]
    length = max(sets[name].input_ids.shape[1] for name in evaluated)
    sets |= {name: padded(name, length) for name in evaluated}
    return Inputs(task, sets, tokenizer, checkpoint)


def _digest(parts: Iterable[Any]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part if isinstance(part, bytes) else np.asarray(part).tobytes())
    return digest.hexdigest()[:16]


def _labels(arrays: batches.TokenArrays) -> np.ndarray:
    assert arrays.labels is not None
    return arrays.labels
