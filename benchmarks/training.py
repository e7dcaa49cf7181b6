"""What the benchmarks of training steps share: the model, the batch, our side."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from benchmarks.measure import provenance
from cwgnc_jax import models
from train import memory, parallel
from train.config import PRESETS, RegularizationConfig
from train.optimizer import hyperparameters
from train.parallel import ONE_RUN, Layout
from train.steps import Recipe

MINILM = models.BertConfig(
    vocab_size=30522,
    hidden_size=384,
    num_hidden_layers=6,
    num_attention_heads=12,
    intermediate_size=1536,
)
LEARNING_RATE = 1e-4


class Steps:
    """Runs of one layout, ready to step: the preset of the paper's code.

    Args:
      checkpoint: What the runs start from.
      recipe: What is fixed at compilation.
      batch: The batch of every step, with a leading axis of runs.
      seeds: One for each run.
      layout: How the runs lie.
      dropout: Replaces the model's rates.
      measured: Whether every step measures the components.
    """

    def __init__(
        self,
        checkpoint: models.Checkpoint,
        recipe: Recipe,
        batch: dict[str, np.ndarray],
        seeds: Sequence[int] = (0,),
        layout: Layout = ONE_RUN,
        dropout: float | None = None,
        measured: bool = False,
    ):
        numbers = hyperparameters(
            PRESETS["code"].optimizer, RegularizationConfig(dropout), 1000
        )
        numbers = numbers._replace(learning_rate=np.float32(LEARNING_RATE))
        self.runs = parallel.init_runs(
            *(recipe, checkpoint, [(seed, seed) for seed in seeds]),
            *([numbers] * layout.runs, layout),
        )
        self.batch = parallel.place_batch(layout, batch)
        start = time.perf_counter()
        step = parallel.compile_train_step(recipe, layout, measured)
        self.step_fn = step.lower(self.runs, self.batch).compile()
        self.compile_seconds = time.perf_counter() - start
        self.bytes = memory.bytes_needed(self.step_fn)

    def step(self) -> np.ndarray:
        """Takes a step and waits for it; the losses before it."""
        self.runs, metrics = self.step_fn(self.runs, self.batch)
        return jax.device_get(metrics.loss)


def recipe_of(config: models.BertConfig) -> Recipe:
    """A classifier's recipe with the clip by parameter, in float32."""
    return Recipe(config, False, "by_parameter", 0.9, 0.999, "float32")


def batch_of(config: models.BertConfig, runs: int, rows: int, length: int):
    """Random tokens without padding, ``[runs, rows, length]``."""
    rng = np.random.default_rng(0)
    shape = (runs, rows, length)
    return {
        "input_ids": rng.integers(5, config.vocab_size, shape).astype(np.int32),
        "attention_mask": np.ones(shape, np.int32),
        "token_type_ids": np.zeros(shape, np.int32),
        "labels": rng.integers(0, 2, (runs, rows)).astype(np.int32),
        "weights": np.ones((runs, rows), np.float32),
    }


def setting(result: Mapping[str, Any]) -> str:
    """Says in a page what was trained, how it was timed, and on what."""
    return (
        f"Model: {result['model']} ({result['parameters'] / 1e6:.1f} M parameters), "
        f"batch {result['batch']}, {result['length']} tokens, float32, dropout on, "
        f"clip 0.05. {provenance(result)}"
    )
