"""Run configuration: frozen dataclasses, presets, methods, checks. No JAX here."""

from cwgnc_train.config.cache_folder import cache_folder, make_private
from cwgnc_train.config.checks import (
    check_finetune,
    check_hosts,
    check_numbers,
    check_predict,
    check_reproduce,
    check_stability,
)
from cwgnc_train.config.errors import UserError, listed, shown, suggest
from cwgnc_train.config.finetune import PRESETS, FinetuneConfig
from cwgnc_train.config.methods import METHODS, find_method
from cwgnc_train.config.recipe import (
    CLIP_NUMBERS,
    DataConfig,
    OptimizerConfig,
    RegularizationConfig,
    RunSpec,
)
from cwgnc_train.config.stability import (
    OverridesConfig,
    ReproduceConfig,
    StabilityConfig,
)
from cwgnc_train.config.tools import (
    ComponentsConfig,
    PredictConfig,
    RacingConfig,
    ReportConfig,
    UnfreezeConfig,
)
from cwgnc_train.config.training import (
    CheckpointsConfig,
    DevicesConfig,
    HostsConfig,
    TrainingConfig,
)

__all__ = (
    "CLIP_NUMBERS",
    "METHODS",
    "PRESETS",
    "CheckpointsConfig",
    "ComponentsConfig",
    "DataConfig",
    "DevicesConfig",
    "FinetuneConfig",
    "HostsConfig",
    "OptimizerConfig",
    "OverridesConfig",
    "PredictConfig",
    "RacingConfig",
    "RegularizationConfig",
    "ReportConfig",
    "ReproduceConfig",
    "RunSpec",
    "StabilityConfig",
    "TrainingConfig",
    "UnfreezeConfig",
    "UserError",
    "cache_folder",
    "check_finetune",
    "check_hosts",
    "check_numbers",
    "check_predict",
    "check_reproduce",
    "check_stability",
    "find_method",
    "listed",
    "make_private",
    "shown",
    "suggest",
)
