"""What runs are made from: examples as tokens, and pretrained weights."""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np

import cwgnc_jax
from cwgnc_jax import models
from cwgnc_train.config import ComponentsConfig, DataConfig, UserError
from cwgnc_train.data import (
    CachedTokenizer,
    Task,
    TokenArrays,
    check_length,
    check_tokens,
    load_examples,
    majority_line,
    pad_tokens,
)
from cwgnc_train.engine.optimizer import COMPONENT_FNS


@dataclasses.dataclass(frozen=True)
class Inputs:
    """All that is read before the runs of a task can start."""

    task: Task
    sets: dict[str, TokenArrays]
    """By name: "train", and the sets that runs are scored on, which have one length."""
    tokenizer: CachedTokenizer
    checkpoint: models.Checkpoint
    data_commit: str | None = None  # The hub commit of the examples; None for files.

    @property
    def train(self) -> TokenArrays:
        """The examples to train on."""
        return self.sets["train"]

    @property
    def scored(self) -> dict[str, TokenArrays]:
        """The sets that runs are scored on, by name."""
        return {name: arrays for name, arrays in self.sets.items() if name != "train"}

    @property
    def judged(self) -> str:
        """The name of the set whose score decides whether a run failed."""
        names = [name for name in self.scored if name.startswith("validation")]
        return names[0] if names else "holdout"

    @property
    def chosen_by(self) -> str:
        """The name of the set whose score decides which run is the best."""
        return "holdout" if "holdout" in self.sets else self.judged

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

    @functools.cached_property
    def majority_lines(self) -> dict[str, dict[str, float]]:
        """The majority classifier's scores on each set that is scored."""
        lines = {}
        for name, arrays in self.scored.items():
            assert arrays.labels is not None
            lines[name] = majority_line(self.task, arrays.labels)
        return lines


def load_weights(
    model: str | Path,
    num_labels: int,
    *,
    new_head: bool = False,
    revision: str | None = None,
) -> models.Checkpoint:
    """Loads pretrained weights; new parameters are drawn later, when a run starts.

    ``new_head`` draws the classifier even if the checkpoint has one. Files that are
    missing or wrong are a UserError.
    """
    try:
        return models.load_pretrained(
            model,
            num_labels=num_labels,
            key=jax.random.key(0),
            new_head=new_head,
            revision=revision,
        )
    except models.CheckpointError as error:
        raise UserError(str(error)) from error


def list_components(config: ComponentsConfig) -> cwgnc_jax.ComponentTable:
    """Reads a model and assigns its parameters to components, a row for each."""
    checkpoint = load_weights(
        config.model, config.num_labels, new_head=True, revision=config.revision
    )
    return cwgnc_jax.explain(checkpoint.params, COMPONENT_FNS[config.components])


def load_inputs(
    task_name: str | None,
    data: DataConfig,
    load_checkpoint: Callable[[int], models.Checkpoint],
    cache: bool,
) -> Inputs:
    """Reads and checks a task's examples, or own files, and the model's weights.

    ``load_checkpoint`` loads the weights for a number of labels. Only tokens are
    written, if they are kept on disk by ``cache``. Raises a UserError if the data or
    the weights are wrong, and an OSError if a file or a hub cannot be reached.
    """
    task, examples = load_examples(task_name, data)
    checkpoint = load_checkpoint(task.num_labels)
    check_length(data.max_length, checkpoint.config.max_length)
    tokenizer = CachedTokenizer(checkpoint.directory, cache)
    texts = {
        name: tokenizer.encode(part.texts, data.max_length, data.token_types)
        for name, part in examples.items()
    }
    for encoded in texts.values():
        check_tokens(
            encoded, checkpoint.config.vocab_size, checkpoint.config.type_vocab_size
        )

    def padded(name: str, length: int | None = None) -> TokenArrays:
        labels = examples[name].labels
        return pad_tokens(texts[name], labels, data.max_length, length)

    sets = {name: padded(name) for name in texts}
    # One length for all that is scored: no set needs programs of its own.
    scored = [name for name in sets if name != "train"]
    length = max(sets[name].input_ids.shape[1] for name in scored)
    sets |= {name: padded(name, length) for name in scored}
    return Inputs(task, sets, tokenizer, checkpoint, examples["train"].commit)


def _digest(parts: Iterable[Any]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part if isinstance(part, bytes) else np.asarray(part).tobytes())
    return digest.hexdigest()[:16]
