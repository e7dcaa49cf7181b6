"""The flags of ``finetune``, and the presets."""

import dataclasses
from pathlib import Path
from typing import Literal

import tyro

from cwgnc_train.config.errors import UserError
from cwgnc_train.config.recipe import (
    DataConfig,
    OptimizerConfig,
    RegularizationConfig,
    RunSpec,
)
from cwgnc_train.config.training import TrainingConfig

PresetName = Literal["paper", "code"]


@dataclasses.dataclass(frozen=True)
class Preset:
    """The numbers on which the paper's text and its published code differ."""

    warmup_ratio: float
    weight_decay: float
    epochs: int

    def complete(self, optimizer: OptimizerConfig) -> OptimizerConfig:
        """Fills in the numbers that the optimizer leaves to its preset."""
        own = {"warmup_ratio": self.warmup_ratio, "weight_decay": self.weight_decay}
        missing = {name: own[name] for name in own if getattr(optimizer, name) is None}
        return dataclasses.replace(optimizer, **missing)


PRESETS: dict[PresetName, Preset] = {
    # Appendix B; warm-up and weight decay "as Devlin et al."
    "paper": Preset(warmup_ratio=0.1, weight_decay=0.01, epochs=5),
    # The published script.
    "code": Preset(warmup_ratio=0.0, weight_decay=0.0, epochs=3),
}


@dataclasses.dataclass(frozen=True)
class FinetuneConfig:
    """Fine-tune a pretrained encoder on a classification or regression task."""

    model: str
    """A folder with config.json, model.safetensors and a tokenizer, or a hub id."""
    workdir: Path
    """Folder for records and the model; must be new or empty, except with --resume."""
    task: str | None = None  # A GLUE task: cola sst2 mrpc stsb qqp mnli qnli rte wnli.
    data: tyro.conf.OmitArgPrefixes[DataConfig] = DataConfig()
    preset: PresetName = "paper"
    """Source of the default numbers: the paper's text (warm-up 0.1, weight decay 0.01,
    5 epochs), or its published code (0, 0, 3)."""
    optimizer: tyro.conf.OmitArgPrefixes[OptimizerConfig] = OptimizerConfig()
    regularization: tyro.conf.OmitArgPrefixes[RegularizationConfig] = (
        RegularizationConfig()
    )
    epochs: int | None = None  # Passes over the training set. Default: the preset's.
    seed: int = 1  # Draws the classifier's weights, the dropout and the data order.
    seeds: int = 1  # Train this many seeds, from --seed on, and keep the best model.
    training: tyro.conf.OmitArgPrefixes[TrainingConfig] = TrainingConfig()

    def __post_init__(self):
        if self.preset not in PRESETS:
            raise UserError(f"--preset: expected {[*PRESETS]}, got {self.preset!r}")
        preset = PRESETS[self.preset]
        object.__setattr__(self, "optimizer", preset.complete(self.optimizer))
        if self.epochs is None:
            object.__setattr__(self, "epochs", preset.epochs)

    @property
    def tasks(self) -> tuple[str, ...]:
        """The name of its task; none for own data."""
        return (self.task,) if self.task else ()

    def runs(self) -> list[RunSpec]:
        """Lists one run per seed."""
        assert self.epochs is not None
        return [
            RunSpec(
                task=self.task or "own",
                method="finetune",
                optimizer=self.optimizer,
                regularization=self.regularization,
                epochs=self.epochs,
                seed=seed,
                data_seed=seed,
                statistics_every=self.training.statistics_every,
            )
            for seed in range(self.seed, self.seed + self.seeds)
        ]
