"""Commands as pages and recipes quote them, read as the command line reads them."""

import tyro

from cwgnc_train import config

CONFIGS = {
    "finetune": config.FinetuneConfig,
    "predict": config.PredictConfig,
    "components": config.ComponentsConfig,
    "stability": config.StabilityConfig,
    "report": config.ReportConfig,
    "racing": config.RacingConfig,
    "unfreeze": config.UnfreezeConfig,
    "plan": config.PlanConfig,
    "reproduce": config.ReproduceConfig,
}


def parse(name, flags):
    """The config of a command."""
    return tyro.cli(CONFIGS[name], args=flags)
