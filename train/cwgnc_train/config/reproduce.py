"""The flags of ``reproduce``."""

import dataclasses
from pathlib import Path

import tyro

from cwgnc_train.config.recipe import DataConfig
from cwgnc_train.config.training import TrainingConfig


@dataclasses.dataclass(frozen=True)
class ReproduceConfig:
    """Make Tables 1 and 2 and Figures 1 to 5 of the paper, with any model."""

    model: str
    """A folder with config.json, model.safetensors and a tokenizer, or a hub id."""
    workdir: Path
    """The study's folder; must be new or empty, except with --resume."""
    budget_minutes: float | None = None
    """Cut the protocol to about this many minutes on this machine, and say what was
    cut: first seeds, down to three, then thresholds, down to three, then training
    examples."""
    tasks: tuple[str, ...] = ("rte", "mrpc", "cola")
    """Table 1 covers all of them; Table 2 uses cola and the figures rte, if they are
    among them, otherwise the last and the first."""
    learning_rate: float = 2e-5
    """The peak learning rate of all runs: the paper's for BERT-large. A smaller model
    wants a larger one."""
    seeds: int = 25
    """Runs per cell of the tables; the figures use five at most."""
    data: tyro.conf.OmitArgPrefixes[DataConfig] = DataConfig()
    training: tyro.conf.OmitArgPrefixes[TrainingConfig] = TrainingConfig()
