"""The flags of ``cwgnc plan``."""

import dataclasses
from typing import Annotated

import tyro

from cwgnc_train.config.finetune import FinetuneConfig
from cwgnc_train.config.stability import StabilityConfig

_Finetune = Annotated[
    FinetuneConfig, tyro.conf.subcommand("finetune", prefix_name=False)
]
_Stability = Annotated[
    StabilityConfig, tyro.conf.subcommand("stability", prefix_name=False)
]


@dataclasses.dataclass(frozen=True)
class PlanConfig:
    """Estimate what a command would need on accelerators that are not here."""

    command: tyro.conf.OmitArgPrefixes[_Finetune | _Stability]
    on: tuple[str, ...] = ("h100",)
    """Accelerators: h100 h200 a100 l4 v5e v5p v6e; several are h100:8 or v5e:2x4."""
