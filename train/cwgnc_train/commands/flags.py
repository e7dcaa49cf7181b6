"""From flags to a config, and what several commands print."""

from collections.abc import Sequence
from typing import Any, TypeVar

import tyro

Config = TypeVar("Config")


def parse(
    command: str, config: type[Config], flags: Sequence[str], default: Any = None
) -> Config:
    """Reads the flags of a command.

    Args:
      command: The command's name.
      config: The dataclass of its flags.
      flags: What the user gave.
      default: An instance to take defaults from instead of the dataclass.

    Returns:
      The config. A wrong flag or ``--help`` ends the process.
    """
    given = {} if default is None else {"default": default}
    return tyro.cli(config, prog=f"cwgnc {command}", args=flags, **given)


def use_cache(cache: bool) -> None:
    """Keeps compiled programs on disk, if wanted."""
    from cwgnc_train.engine import keep_programs

    if cache:
        keep_programs()


def print_scores(
    scores: dict[str, dict[str, Any]], lines: dict[str, dict[str, Any]]
) -> None:
    """Prints scores beside the majority classifier's."""
    for name, metrics in scores.items():
        for metric, value in metrics.items():
            line = float(lines[name][metric])
            print(f"{name}  {metric} {float(value):.4f}  (majority line {line:.4f})")
