"""Parts of the report that can also be written on their own."""

import dataclasses
from pathlib import Path

from cwgnc_train.analysis.component_courses import (
    ComponentCourses,
    read_component_courses,
)
from cwgnc_train.analysis.pictures import Picture
from cwgnc_train.analysis.report_tables import ReportTable
from cwgnc_train.analysis.study_records import StudyRecords, read_study
from cwgnc_train.config import UserError


@dataclasses.dataclass(frozen=True)
class Section:
    """Tables and figures under one heading."""

    title: str
    note: str
    """What a reader needs to know."""
    tables: list[ReportTable]
    pictures: list[Picture]

    def write(self, folder: Path) -> list[Path]:
        """Writes everything into one folder; returns the paths."""
        folder.mkdir(parents=True, exist_ok=True)
        paths = [path for table in self.tables for path in table.write(folder)]
        return paths + [path for item in self.pictures for path in item.write(folder)]


def read_measured(workdir: Path) -> tuple[StudyRecords, ComponentCourses]:
    """Reads the records of runs and the statistics of their components.

    Args:
      workdir: The folder of the records; runs may still be writing to it.

    Returns:
      The finished runs, and the statistics of at least one of them.

    Raises:
      UserError: If the folder has no records, no finished run has such statistics, or
        a record is damaged.
    """
    study = read_study(workdir)
    measured = read_component_courses(workdir, set(study.runs["run"]))
    if not measured.courses:
        raise UserError(
            f"no finished run in {workdir} has per-component statistics "
            f"({len(study.runs)} finished, {study.unfinished} still running); wait for "
            f"the first one with --statistics-every, or start one"
        )
    return study, measured
