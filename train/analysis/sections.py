"""A part of the report that can also be written on its own."""

import dataclasses
from pathlib import Path

from train.analysis.components import Components, read_components
from train.analysis.pictures import Picture
from train.analysis.study import Study, read_study
from train.analysis.tables import Table


@dataclasses.dataclass(frozen=True)
class Section:
    """Tables and figures under one heading."""

    title: str
    note: str
    """What must be known to read them."""
    tables: list[Table]
    pictures: list[Picture]

    def write(self, folder: Path) -> list[Path]:
        """Writes all into one folder; returns the paths."""
        folder.mkdir(parents=True, exist_ok=True)
        paths = [path for table in self.tables for path in table.write(folder)]
        return paths + [path for item in self.pictures for path in item.write(folder)]


def read_measured(workdir: Path) -> tuple[Study, Components]:
    """Reads a study and the statistics of its components.

    Args:
      workdir: The study's folder; it may still be written to.

    Returns:
      The finished runs, and the statistics of at least one of them.

    Raises:
      FileNotFoundError: If there is no study, or none with such statistics.
      ValueError: If no finished run has statistics, or a record is damaged.
    """
    study = read_study(Path(workdir))
    measured = read_components(workdir, set(study.runs["run"]))
    if not measured.courses:
        raise ValueError(
            f"no finished run of {workdir} has per-component statistics "
            f"({len(study.runs)} finished, {study.unfinished} begun); wait for the "
            f"first one that is run with --statistics-every"
        )
    return study, measured
