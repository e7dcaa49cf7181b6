"""The flags of the commands that read records."""

import dataclasses
from pathlib import Path

import tyro


@dataclasses.dataclass(frozen=True)
class ReportConfig:
    """Write the tables, tests and figures of a study from its records."""

    workdir: tyro.conf.Positional[Path]
    """The study's folder."""
    output: Path | None = None
    """Where to write. Default: the folder report in the study's own."""
    legacy_lines: bool = False
    """Judge failed runs by the constants of the paper's code instead of the majority
    classifier."""


@dataclasses.dataclass(frozen=True)
class RacingConfig:
    """Draw how the components of failed and successful runs converge."""

    workdir: tyro.conf.Positional[Path]
    """The folder of a study that ran with --statistics-every."""
    output: Path | None = None
    """Where to write. Default: the folder racing in the study's own."""


@dataclasses.dataclass(frozen=True)
class UnfreezeConfig:
    """Draw what gradual unfreezing does, beside plain fine-tuning."""

    workdir: tyro.conf.Positional[Path]
    """The folder of a study that ran with --statistics-every."""
    output: Path | None = None
    """Where to write. Default: the folder unfreezing in the study's own."""
