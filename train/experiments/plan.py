"""Which runs a study is made of; imports no JAX, so that --help answers at once."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from train.config import (
    DataConfig,
    OptimizerConfig,
    RegularizationConfig,
    WriterName,
)
from train.config_checks import check_data, check_optimizer, check_regularization
from train.methods import find_method

# The thirty seeds of the paper's code.
CODE_SEEDS = (
    *(1, 2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 42, 43, 47, 53, 59, 61),
    *(67, 71, 73, 79, 83, 89, 97, 101, 997, 1021),
)


@dataclasses.dataclass(frozen=True)
class StabilityConfig:
    """Fine-tune with many seeds, thresholds and methods, and record every run."""

    model: str
    """A folder with config.json, model.safetensors and a tokenizer, or a hub id."""
    workdir: Path
    """The study's folder. The same command goes on where it was interrupted; more
    seeds, thresholds, rates, methods or tasks add runs to it."""
    tasks: tuple[str, ...]
    """GLUE tasks: cola sst2 mrpc stsb qqp mnli qnli rte wnli."""
    methods: tuple[str, ...] = ("cwgnc",)
    """What to compare: cwgnc, and with its recipe but for the clip adagc aggc olmo
    autoclip zclip global none; cwgnc_code full gu gu_restart devlin bias_correction
    mosbach mixout reinit llrd prior_decay. Those without a clip or with a global one
    also take the component-wise clip, as NAME+cwgnc."""
    max_norms: tuple[float, ...] = (0.05,)
    """Thresholds of the component-wise methods; inf for no clip."""
    learning_rates: tuple[float, ...] = (2e-5,)
    """Highest learning rates."""
    seeds: int = 25
    """Seeds 1 to this number."""
    seed_list: tuple[str, ...] = ()
    """The seeds themselves instead, or the word code for the thirty of the paper's
    code."""
    data_seeds: int = 0
    """Vary order of the data and dropout on their own: every seed then draws the
    classifier only and is combined with each data seed from 1 to this number."""
    data_dir: Path | None = None
    """A folder with the official GLUE TSV files; without it the tasks are taken from
    the Hugging Face hub."""
    holdout: float = 0.0
    """The part of the training set that is kept back and scored as well; the report
    chooses threshold and learning rate on it."""
    train_examples: int | None = None
    """Train on this many examples only, the same ones in all runs."""
    max_length: int = 128
    """Longer texts are truncated to this many tokens."""
    epochs: int | None = None
    """Passes over the training set, instead of each method's own number."""
    epochs_per_iteration: int = 3
    """Gradual unfreezing: passes over the training set in each iteration."""
    iterations: int | None = None
    """Gradual unfreezing: how many layers thaw; by default all. The embeddings thaw
    together with the last of all layers."""
    warmup_ratio: float | None = None
    """Share of all steps over which the learning rate rises, instead of each
    method's own."""
    weight_decay: float | None = None
    """Decoupled weight decay, instead of each method's own."""
    dropout: float | None = None
    """Replaces the model's own dropout rates."""
    batch_size: int = 16
    """Examples a step; the last, partial batch of an epoch is kept."""
    eval_batch_size: int = 64
    """Examples a batch of evaluation."""
    padding: Literal["packed", "longest", "max_length"] = "packed"
    """How examples lie in the rows of a batch: behind one another, or each in a row of
    its own, as long as the batch's longest example or as --max-length."""
    evaluations: int | None = None
    """Evaluations of a run, evenly spaced, the last one at its end; by default one an
    epoch."""
    record_every: int = 20
    """Steps that one line of losses and clip rates is the mean of."""
    statistics_every: int = 0
    """Steps between two measurements of every component: norms, clip coefficient,
    distance from the pretrained weights and more; 0 for none."""
    writers: tuple[WriterName, ...] = ()
    """Where the records of each run go besides records.jsonl: tensorboard, into the
    folder of that name in --workdir; wandb, as the environment variables of Weights &
    Biases say."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """The dtype of the computation; parameters are float32 in any case."""
    remat: bool = False
    """Compute the inside of each layer again in the backward pass instead of keeping
    it, for GPUs and TPUs short of memory; on a CPU XLA undoes it."""
    revision: str | None = None
    """The revision of a hub id: a branch, tag or commit."""
    runs_per_program: Literal["auto"] | int = "auto"
    """How many runs go together; auto chooses by the device and its memory."""
    devices: int | None = None
    """How many devices to use; by default all there are."""
    data_devices: int = 1
    """How many of them share the batch of a run; the others share the runs."""
    checkpoint_seconds: float | None = None
    """Time between two checkpoints of the runs under way; by default so much that they
    take 2 % of the time."""
    cache: bool = True
    """Keep tokens and compiled programs in $XDG_CACHE_HOME/cwgnc_jax or else
    ~/.cache/cwgnc_jax, so that the next command starts sooner."""


# What may differ from one start of a study to the next: which runs are wanted, and how
# they are carried out.
_FREE = frozenset(
    {
        *("workdir", "tasks", "methods", "max_norms", "learning_rates"),
        *("seeds", "seed_list", "data_seeds"),
        *("runs_per_program", "devices", "data_devices", "checkpoint_seconds"),
        *("writers", "cache"),
    }
)


@dataclasses.dataclass(frozen=True)
class PlannedRun:
    """One run of a study."""

    task: str
    method: str
    optimizer: OptimizerConfig
    regularization: RegularizationConfig
    epochs: int
    seed: int
    data_seed: int
    unfreezing: Literal["carry", "restart"] | None = None
    iterations: int | None = None
    statistics_every: int = 0

    @property
    def cell(self) -> str:
        """The name of all runs that differ in their seeds only."""
        return (
            f"{self.task}/{self.method}/lr={self.optimizer.learning_rate}/"
            f"max_norm={self.optimizer.max_norm}"
        )

    @property
    def name(self) -> str:
        """The run's name in the records."""
        data = "" if self.data_seed == self.seed else f"/data_seed={self.data_seed}"
        return f"{self.cell}/seed={self.seed}{data}"


def planned_runs(config: StabilityConfig) -> list[PlannedRun]:
    """Lists the runs of a study, cell by cell.

    Args:
      config: The study's config.

    Returns:
      The runs in the order in which they are carried out.
    """
    seeds = _seeds(config)
    pairs = [(seed, seed) for seed in seeds]
    if config.data_seeds:
        data_seeds = range(1, config.data_seeds + 1)
        pairs = [(seed, data_seed) for seed in seeds for data_seed in data_seeds]
    runs = []
    for task in config.tasks:
        for name in config.methods:
            unfreezing = find_method(name).unfreezing
            epochs = config.epochs or find_method(name).epochs
            if unfreezing:
                epochs = config.epochs_per_iteration
            regularization = _regularization(config, name)
            rest = (unfreezing, config.iterations, config.statistics_every)
            for optimizer in _optimizers(config, name):
                recipe = (task, name, optimizer, regularization, epochs)
                runs += [PlannedRun(*recipe, *pair, *rest) for pair in pairs]
    return runs


def data_config(config: StabilityConfig, task: str) -> DataConfig:
    """The data of one of the study's tasks."""
    return DataConfig(
        task=task,
        data_dir=config.data_dir,
        holdout=config.holdout,
        max_length=config.max_length,
        train_examples=config.train_examples,
    )


def protocol(config: StabilityConfig) -> dict[str, Any]:
    """The settings that all runs of a study share, now and later."""
    settings = dataclasses.asdict(config)
    return {name: value for name, value in settings.items() if name not in _FREE}


def check_stability(config: StabilityConfig) -> None:
    """Raises a ValueError that names the flag and the mend, if a setting is wrong."""
    for flag, values in (
        ("--tasks", config.tasks),
        ("--methods", config.methods),
        ("--max-norms", config.max_norms),
        ("--learning-rates", config.learning_rates),
    ):
        if not values:
            raise ValueError(f"{flag} names nothing, so there is no run to make")
        _check_distinct(flag, values)
    for task in config.tasks:
        check_data(data_config(config, task))
    for method in config.methods:
        find_method(method)
    if config.seeds < 1 or config.data_seeds < 0:
        raise ValueError(
            f"--seeds must be at least 1 and --data-seeds at least 0, got "
            f"{config.seeds} and {config.data_seeds}: no run to make"
        )
    _check_distinct("--seed-list", _seeds(config))
    for method in config.methods:
        check_regularization(_regularization(config, method))
        for optimizer in _optimizers(config, method):
            check_optimizer(optimizer)
    for flag, value in (
        ("--epochs", config.epochs),
        ("--epochs-per-iteration", config.epochs_per_iteration),
        ("--iterations", config.iterations),
        ("--batch-size", config.batch_size),
        ("--eval-batch-size", config.eval_batch_size),
        ("--evaluations", config.evaluations),
        ("--record-every", config.record_every),
        ("--runs-per-program", config.runs_per_program),
        ("--devices", config.devices),
    ):
        if isinstance(value, int) and value < 1:
            raise ValueError(f"{flag} must be at least 1, got {value}")
    if config.statistics_every < 0:
        raise ValueError(
            f"--statistics-every must be 0 or more, got {config.statistics_every}"
        )
    if config.checkpoint_seconds is not None and not config.checkpoint_seconds >= 0:
        raise ValueError(
            f"--checkpoint-seconds must be 0 or more, got {config.checkpoint_seconds}"
        )


def _seeds(config: StabilityConfig) -> list[int]:
    if not config.seed_list:
        return list(range(1, config.seeds + 1))
    if config.seed_list == ("code",):
        return list(CODE_SEEDS)
    seeds = []
    for word in config.seed_list:
        if not (word.isascii() and word.isdigit() and int(word) < 2**63):
            raise ValueError(
                f"--seed-list takes whole numbers in [0, 2**63), or the word code; "
                f"got {word!r}"
            )
        seeds.append(int(word))
    return seeds


def _regularization(config: StabilityConfig, name: str) -> RegularizationConfig:
    regularization = find_method(name).regularization
    if config.dropout is None:
        return regularization
    return dataclasses.replace(regularization, dropout=config.dropout)


def _optimizers(config: StabilityConfig, name: str) -> list[OptimizerConfig]:
    method = find_method(name)
    changes = {
        field: getattr(config, field)
        for field in ("warmup_ratio", "weight_decay")
        if getattr(config, field) is not None
    }
    max_norms = config.max_norms if method.swept else (method.optimizer.max_norm,)
    return [
        dataclasses.replace(
            method.optimizer, learning_rate=rate, max_norm=max_norm, **changes
        )
        for rate in config.learning_rates
        for max_norm in max_norms
    ]


def _check_distinct(flag: str, values: Sequence[Any]) -> None:
    repeated = [value for i, value in enumerate(values) if value in values[:i]]
    if repeated:
        raise ValueError(f"{flag} names {repeated[0]} twice; name each once")
