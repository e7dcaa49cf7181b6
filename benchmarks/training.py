"""What the benchmarks of training steps share: models, the work, our side."""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.measure import provenance
from benchmarks.sides import ARRAYS
from cwgnc_jax import models
from cwgnc_train.config import (
    PRESETS,
    DataConfig,
    OptimizerConfig,
    RegularizationConfig,
)
from cwgnc_train.data import (
    BatchIndices,
    CachedTokenizer,
    TokenArrays,
    batch_examples,
    load_examples,
    pad_tokens,
    steps_per_epoch,
    token_table,
)
from cwgnc_train.engine import (
    Hparams,
    Layout,
    RunState,
    StepConfig,
    compile_train_steps,
    example_losses,
    make_hparams,
    make_mesh,
    memory,
    start_runs,
)

MINILM = models.BertConfig(
    vocab_size=30522,
    hidden_size=384,
    num_hidden_layers=6,
    num_attention_heads=12,
    intermediate_size=1536,
)
BASE = models.BertConfig()
LARGE = models.BertConfig(
    hidden_size=1024,
    num_hidden_layers=24,
    num_attention_heads=16,
    intermediate_size=4096,
)
SIZES = {"minilm": MINILM, "base": BASE, "large": LARGE}
CONFIGS = SIZES | {"quick": dataclasses.replace(MINILM, num_hidden_layers=2)}
"""The sizes, and what ``--quick`` takes in their place."""
NAMES = {
    "minilm": "MiniLM",
    "base": "BERT-base",
    "large": "BERT-large",
    "quick": "MiniLM of two layers",
}

MAX_NORM = 0.05
LEARNING_RATE = 1e-4
TOTAL_STEPS = 1000
"""The learning rate falls linearly from the one to 0 over the other, on all sides."""
LENGTH = 128
"""To which the paper's code pads, and at which all sides truncate."""
BATCH = 16
SEED = 0


@dataclasses.dataclass(frozen=True)
class Work:
    """Steps of a training set that all sides take, each of a batch of its examples."""

    name: str
    examples: TokenArrays
    steps: tuple[int, ...]
    batch: int = BATCH

    @property
    def padded(self) -> bool:
        """Whether examples differ in length."""
        return not self.examples.attention_mask.all()

    @property
    def steps_per_epoch(self) -> int:
        """Batches of an epoch, the last partial one included."""
        return steps_per_epoch(len(self.examples), self.batch)

    def rows(self) -> np.ndarray:
        """Which examples each step takes, integers of shape (steps, batch)."""
        count = len(self.examples)
        rows = [batch_examples(count, SEED, step, self.batch) for step in self.steps]
        return np.stack(rows)

    def batches(self) -> list[TokenArrays]:
        """The examples of each step."""
        return [taken(self.examples, rows) for rows in self.rows()]

    @classmethod
    def of(cls, arrays: Mapping[str, np.ndarray]) -> "Work":
        """From the arrays that a side in a process of its own is given."""
        examples = TokenArrays(*(arrays[name] for name in ARRAYS))
        batch = arrays["rows"].shape[1]
        return cls("", examples, tuple(arrays["steps"].tolist()), batch)


class Steps:
    """Runs of one layout, ready to step: the preset of the paper's code.

    Args:
      checkpoint: What the runs start from.
      config: What is fixed at compilation.
      texts: The batches of all runs, one behind the other; the same in every step.
      seeds: One for each run.
      layout: How the runs lie; None for one run on one device.
      dropout: Replaces the model's rates.
      measured: Whether every step measures the components.
    """

    def __init__(
        self,
        checkpoint: models.Checkpoint,
        config: StepConfig,
        texts: TokenArrays,
        seeds: Sequence[int] = (0,),
        layout: Layout | None = None,
        dropout: float | None = None,
        measured: bool = False,
    ):
        layout = layout or one_run()
        rows, length = len(texts) // layout.runs, texts.input_ids.shape[1]
        own = np.arange(rows, dtype=np.int32)
        batches = [
            [BatchIndices(own + run * rows, own * length, np.ones(rows, np.float32))]
            for run in range(layout.runs)
        ]
        self.states = start(checkpoint, config, seeds, layout, dropout)
        self.inputs = (
            layout.place_table(token_table(texts)),
            layout.place_indices(batches),
        )
        began = time.perf_counter()
        steps = compile_train_steps(config, layout, (rows, length), measured)
        self.step_fn = steps.lower(self.states, *self.inputs).compile()
        self.compile_seconds = time.perf_counter() - began
        self.bytes = memory.bytes_needed(self.step_fn)

    def step(self) -> np.ndarray:
        """Takes a step and waits for it; the losses before it."""
        self.states, metrics = self.step_fn(self.states, *self.inputs)
        return jax.device_get(metrics.loss)[:, 0]


def one_run() -> Layout:
    """One run on one device."""
    return Layout(make_mesh(jax.devices()[:1]))


def start(
    checkpoint: models.Checkpoint,
    config: StepConfig,
    seeds: Sequence[int] = (0,),
    layout: Layout | None = None,
    dropout: float | None = None,
    learning_rate: float = LEARNING_RATE,
) -> RunState:
    """Runs before their first step, with the preset of the paper's code."""
    return start_runs(
        config,
        checkpoint,
        [(seed, seed) for seed in seeds],
        [_hparams(dropout, learning_rate)] * len(seeds),
        layout or one_run(),
    )


def _hparams(dropout: float | None, learning_rate: float) -> Hparams:
    hparams = make_hparams(
        PRESETS["code"].complete(OptimizerConfig()),
        RegularizationConfig(dropout),
        TOTAL_STEPS,
    )
    return hparams._replace(learning_rate=np.float32(learning_rate))


def step_config(model: models.EncoderConfig, dtype: str = "float32") -> StepConfig:
    """A classifier's step with the clip by parameter."""
    return StepConfig(model, False, "by_parameter", 0.9, 0.999, dtype)


def loss_of(config: StepConfig, texts: TokenArrays) -> Callable[..., jax.Array]:
    """The mean loss of texts, with dropout, as a function of parameters and a key."""
    labels = jnp.asarray(texts.labels)

    def loss(params, key):
        output = models.apply(
            config.model,
            params,
            texts.input_ids,
            texts.attention_mask,
            texts.token_type_ids,
            key=key,
            dtype=config.dtype,
        )
        return jnp.mean(example_losses(config, output.logits, labels))

    return loss


def complete_checkpoint(
    directory: Path, config: models.BertConfig
) -> models.Checkpoint:
    """Writes random weights, the classifier's too, that all sides start from."""
    params = models.init_params(config, jax.random.key(0))
    models.save_pretrained(directory, config, params)
    return models.load_pretrained(directory, num_labels=2, key=jax.random.key(0))


def random_texts(config: models.EncoderConfig, count: int, length: int) -> TokenArrays:
    """Random tokens without padding."""
    rng = np.random.default_rng(0)
    shape = (count, length)
    return TokenArrays(
        rng.integers(5, config.vocab_size, shape).astype(np.int32),
        np.ones(shape, np.int32),
        np.zeros(shape, np.int32),
        rng.integers(0, 2, count).astype(np.int32),
    )


def equal_shapes(config: models.BertConfig, steps: int, batch: int = BATCH) -> Work:
    """Steps of random tokens, all texts of the greatest length."""
    texts = random_texts(config, steps * batch, LENGTH)
    return Work(f"{batch} × {LENGTH}, no padding", texts, tuple(range(steps)), batch)


def real_work(
    task: str, data_dir: Path, tokenizer: Path, steps: int, batch: int
) -> Work:
    """Steps from all over an epoch of a task, without its last, partial batch."""
    _, examples = load_examples(task, DataConfig(data_dir=data_dir))
    train = examples["train"]
    encoded = CachedTokenizer(tokenizer, cache=False).encode(train.texts, LENGTH)
    tokens = pad_tokens(encoded, train.labels, LENGTH)
    chosen = np.linspace(0, len(tokens) // batch - 1, steps).round().astype(int)
    return Work(task, tokens, tuple(chosen.tolist()), batch)


def setting(result: Mapping[str, Any]) -> str:
    """Says in a page what was trained, how it was timed, and on what."""
    return (
        f"Model: {result['model']} ({result['parameters'] / 1e6:.1f} M parameters), "
        f"batch {result['batch']}, {result['length']} tokens, float32, dropout on, "
        f"clip {MAX_NORM}. {provenance(result)}"
    )


def taken(arrays: TokenArrays, rows: np.ndarray | slice) -> TokenArrays:
    """Some of the examples."""
    return TokenArrays(*(array[rows] for array in dataclasses.astuple(arrays)))
