"""The flags of ``stability`` and ``reproduce``, and the runs of a study."""

import dataclasses
import itertools
from pathlib import Path

import tyro

from cwgnc_train.config.errors import UserError
from cwgnc_train.config.methods import find_method
from cwgnc_train.config.recipe import (
    CLIP_NUMBERS,
    ClipName,
    ComponentsName,
    DataConfig,
    NonfiniteName,
    OptimizerConfig,
    RegularizationConfig,
    RunSpec,
)
from cwgnc_train.config.training import TrainingConfig

# The thirty seeds of the paper's code.
CODE_SEEDS = (
    *(1, 2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 42, 43, 47, 53, 59, 61),
    *(67, 71, 73, 79, 83, 89, 97, 101, 997, 1021),
)


@dataclasses.dataclass(frozen=True)
class OverridesConfig:
    """Numbers to use instead of each method's own."""

    # Each comment here is the help of its flag.
    warmup_ratio: float | None = None  # Share of steps with a rising learning rate.
    components: ComponentsName | None = None  # What is clipped together.
    clip: ClipName | None = None  # Where a component's threshold comes from.
    clip_numbers: dict[str, float] = dataclasses.field(default_factory=dict)
    """Numbers of the learned thresholds, such as ratio 1.1 decay 0.9."""
    nonfinite: NonfiniteName | None = None
    """What to do with NaN and infinite gradients; see finetune --help."""
    b1: float | None = None  # Decay of Adam's first moment.
    b2: float | None = None  # Decay of Adam's second moment.
    eps: float | None = None
    """Added to the root of Adam's second moment before bias correction."""
    bias_correction: bool | None = None  # Adam's bias correction.
    weight_decay: float | None = None  # Decoupled weight decay.
    prior_decay: float | None = None  # Weight decay towards the initial weights.
    layer_decay: float | None = None
    """Each layer's learning rate as a share of the rate of the layer above."""
    dropout: float | None = None  # Replaces the model's own dropout rates.
    mixout: float | None = None
    """Probability that a kernel's input uses the initial weights."""
    reinit_layers: int | None = None  # Re-initialise pooler and this many top layers.

    def apply(
        self, optimizer: OptimizerConfig, regularization: RegularizationConfig
    ) -> tuple[OptimizerConfig, RegularizationConfig]:
        """Replaces the numbers that are given here."""
        given = {n: v for n, v in vars(self).items() if v is not None}
        clip = self.clip or optimizer.clip
        numbers = optimizer.clip_numbers if clip == optimizer.clip else {}
        # Methods without learned thresholds have no use for their numbers.
        own = {n: v for n, v in self.clip_numbers.items() if n in CLIP_NUMBERS[clip]}
        given["clip_numbers"] = numbers | own

        def replaced(config):
            changes = {name: given[name] for name in given if hasattr(config, name)}
            return dataclasses.replace(config, **changes)

        return replaced(optimizer), replaced(regularization)


@dataclasses.dataclass(frozen=True)
class StabilityConfig:
    """Fine-tune with many seeds, thresholds and methods, and record every run."""

    model: str
    """A folder with config.json, model.safetensors and a tokenizer, or a hub id."""
    workdir: Path
    """The study's folder; must be new or empty, except with --resume. More seeds,
    thresholds, rates, methods or tasks add runs to it."""
    tasks: tuple[str, ...] = ()
    """GLUE tasks: cola sst2 mrpc stsb qqp mnli qnli rte wnli."""
    methods: tuple[str, ...] = ("cwgnc",)
    """Methods to compare: cwgnc; the same recipe with another clip (adagc aggc olmo
    autoclip zclip global none); cwgnc_code full gu gu_state gu_schedule
    gu_state_schedule gu_restart devlin bertadam bias_correction mosbach mixout reinit
    llrd prior_decay. Methods without a clip or with a global one also take the
    component-wise clip, as NAME+cwgnc."""
    max_norms: tuple[float, ...] = (0.05,)
    """Thresholds of the component-wise methods; inf for no clip."""
    learning_rates: tuple[float, ...] = (2e-5,)  # Peak learning rates.
    seeds: int = 25  # Seeds 1 to this number.
    seed_list: tuple[str, ...] = ()
    """Seeds to use instead, or the word code for the thirty of the paper's code."""
    data_seeds: int = 0
    """Vary data order and dropout on their own: each seed then draws the classifier
    only, and is combined with each data seed from 1 to this number."""
    data: tyro.conf.OmitArgPrefixes[DataConfig] = DataConfig()
    epochs: int | None = None  # Passes over the training set. Default: each method's.
    epochs_per_iteration: int = 3  # Gradual unfreezing: passes in each iteration.
    iterations: int | None = None
    """Gradual unfreezing: how many layers thaw; by default all. The embeddings thaw
    together with the last layer."""
    overrides: tyro.conf.OmitArgPrefixes[OverridesConfig] = OverridesConfig()
    training: tyro.conf.OmitArgPrefixes[TrainingConfig] = TrainingConfig()

    def runs(self) -> list[RunSpec]:
        """Lists the runs in the order they are carried out, cell by cell."""
        runs = []
        for task, name in itertools.product(self.tasks or ("own",), self.methods):
            method = find_method(name)
            epochs = self.epochs or method.epochs
            runs += [
                RunSpec(
                    task=task,
                    method=name,
                    optimizer=optimizer,
                    regularization=regularization,
                    epochs=self.epochs_per_iteration if method.unfreezing else epochs,
                    seed=seed,
                    data_seed=data_seed,
                    unfreezing=method.unfreezing,
                    iterations=self.iterations,
                    statistics_every=self.training.statistics_every,
                )
                for optimizer, regularization in self.recipes(name)
                for seed, data_seed in self._seed_pairs()
            ]
        return runs

    def recipes(self, name: str) -> list[tuple[OptimizerConfig, RegularizationConfig]]:
        """Lists a method's recipes, one for each learning rate and threshold."""
        method = find_method(name)
        optimizer, regularization = self.overrides.apply(
            method.optimizer, method.regularization
        )
        max_norms = self.max_norms if method.swept else (optimizer.max_norm,)
        return [
            (
                dataclasses.replace(optimizer, learning_rate=rate, max_norm=max_norm),
                regularization,
            )
            for rate in self.learning_rates
            for max_norm in max_norms
        ]

    def all_seeds(self) -> list[int]:
        """Lists the seeds that --seeds or --seed-list name."""
        if not self.seed_list:
            return list(range(1, self.seeds + 1))
        if self.seed_list == ("code",):
            return list(CODE_SEEDS)
        for word in self.seed_list:
            if not (word.isascii() and word.isdigit() and int(word) < 2**63):
                raise UserError(
                    f"--seed-list takes whole numbers in [0, 2**63), or the word code; "
                    f"got {word!r}"
                )
        return [int(word) for word in self.seed_list]

    def _seed_pairs(self) -> list[tuple[int, int]]:
        if not self.data_seeds:
            return [(seed, seed) for seed in self.all_seeds()]
        return list(itertools.product(self.all_seeds(), range(1, self.data_seeds + 1)))


@dataclasses.dataclass(frozen=True)
class ReproduceConfig:
    """Make Tables 1 and 2 and Figures 1 to 5 of the paper, with any model."""

    model: str
    """A folder with config.json, model.safetensors and a tokenizer, or a hub id."""
    workdir: Path  # The study's folder; must be new or empty, except with --resume.
    budget_minutes: float | None = None
    """Cut all this to about this many minutes here, and say what was cut: seeds,
    then thresholds, each down to three, then training examples."""
    tasks: tuple[str, ...] = ("rte", "mrpc", "cola")
    """Table 1 covers all of them; Table 2 uses cola and the figures rte, if they are
    among them, otherwise the last and the first."""
    learning_rate: float = 2e-5
    """Peak of all runs; the paper's code has this one for BERT-large. Small models want
    a larger one."""
    seeds: int = 25  # Runs per cell of the tables; the figures use five at most.
    data: tyro.conf.OmitArgPrefixes[DataConfig] = DataConfig()
    training: tyro.conf.OmitArgPrefixes[TrainingConfig] = TrainingConfig()
