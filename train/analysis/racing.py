"""Convergence racing: do the components of a run converge in step?"""

from pathlib import Path

import pandas as pd
from matplotlib import rc_context

from train.analysis.cells import CELL, cells_of, of_cell
from train.analysis.components import Components
from train.analysis.convergence import racing_index
from train.analysis.labels import NOTHING, number
from train.analysis.pictures import SMALL, Picture
from train.analysis.racing_figures import (
    Race,
    draw_halfway,
    draw_norms_by_layer,
    draw_norms_by_type,
    draw_race,
)
from train.analysis.sections import Section, read_measured
from train.analysis.study import Study
from train.analysis.tables import CELL_COLUMNS, Table

REPORTED_RACES = 2
"""The report draws the races of no more cells of a task than this."""

_NOTE = (
    "A component is half-way at the step, linearly interpolated between two measured "
    "ones, at which its root-mean-square difference (RMSD) to the weights that the run "
    "started from first reaches half of what it is at the run's end. The racing index "
    "of a run is the standard deviation (ddof = 0) over its components of these steps, "
    "as shares of the run's steps: 0 if all components converge in step, larger the "
    "more some run ahead of others. Key biases are left out, since their gradient is "
    "zero but for rounding, and so are components that end where they started "
    "(frozen). A run has no index if fewer than two components are left or one of "
    "their RMSDs is not a finite number."
)
_UNFREEZING_NOTE = (
    " Runs of gradual unfreezing are left out: their components start at different "
    "times by design."
)

_SELECTION = (
    f"Drawn are, of each task, at most {REPORTED_RACES} cells whose failed and "
    "successful runs compare best, and of the first one the norms of the kernels. The "
    "command racing draws all cells and all components."
)


def write_racing(workdir: Path, output: Path | None = None) -> list[Path]:
    """Writes all figures and the table of convergence racing.

    Args:
      workdir: The study's folder; it may still be written to.
      output: Where to write; the folder ``racing`` in the study's by default.

    Returns:
      The paths of the files.

    Raises:
      FileNotFoundError: If there is no study, or none with statistics of components.
      ValueError: If no finished run has such statistics, or all are of gradual
        unfreezing, or a record is damaged.
    """
    study, measured = read_measured(Path(workdir))
    section = racing_section(study, measured, everything=True)
    if section is None:
        raise ValueError(
            f"every finished run of {workdir} with per-component statistics is of "
            f"gradual unfreezing, whose components start at different times by design; "
            f"add another method to the study, such as full, or use the command "
            f"unfreeze"
        )
    return section.write(Path(output or Path(workdir) / "racing"))


def racing_section(
    study: Study, measured: Components, everything: bool = False
) -> Section | None:
    """Draws the races of a study's cells and computes their racing indices.

    Args:
      study: The study.
      measured: The statistics of its components.
      everything: Draw all component types of all cells. Otherwise of each task the
        cells whose failed and successful runs are best compared, and of the types of
        the first cell the kernels.

    Returns:
      The section; None if no run has what it needs.
    """
    runs = study.runs[study.runs["run"].isin(measured.courses)]
    unfreezing = runs["iterations"] > 1
    runs = runs[~unfreezing]
    if runs.empty:
        return None
    pictures: list[Picture] = []
    with rc_context(SMALL):
        for _, of_task in runs.groupby("task", sort=False):
            cells = cells_of(of_task)
            if not everything:
                cells = sorted(cells, key=lambda cell: _telling(of_cell(runs, cell)))
                cells = cells[:REPORTED_RACES]
            for cell in cells:
                race = _race(study, cell, of_cell(runs, cell), measured)
                pictures += [draw_race(race), draw_halfway(race)]
                if everything or cell == cells[0]:
                    for statistic in ("grad_norm", "param_norm"):
                        pictures += draw_norms_by_type(race, statistic, everything)
                        if everything:
                            pictures += draw_norms_by_layer(race, statistic)
    note = _NOTE + _UNFREEZING_NOTE * bool(unfreezing.any())
    table = _index_table(runs, measured, note)
    return Section(
        "Convergence racing", "" if everything else _SELECTION, [table], pictures
    )


def _race(study, cell, runs, measured):
    return Race(
        study.model,
        cell,
        int(runs["steps"].max()),
        [
            (failed, [measured.courses[run] for run in runs["run"][same]])
            for failed, same in ((True, runs["failed"]), (False, ~runs["failed"]))
            if same.any()
        ],
        measured,
    )


def _telling(runs):
    """Sorts first the cell that has most runs of both kinds, then most runs."""
    failed = runs["failed"].sum()
    return -min(failed, len(runs) - failed), -len(runs)


def _index_table(runs, measured, note):
    data = runs[[*CELL, "run", "seed", "data_seed", "score", "failed", "steps"]].assign(
        racing_index=[
            racing_index(measured, measured.courses[run], steps)
            for run, steps in zip(runs["run"], runs["steps"], strict=True)
        ]
    )
    shown = []
    for cell in cells_of(data):
        frame = of_cell(data, cell)
        shown.append(
            {title: show(cell._asdict()) for title, show in CELL_COLUMNS.items()}
            | {
                "Runs, failed": f"{len(frame)}, {frame['failed'].sum()}",
                "Index, failed runs": _index(frame["racing_index"][frame["failed"]]),
                "Index, others": _index(frame["racing_index"][~frame["failed"]]),
            }
        )
    return Table("racing", "Racing index", data, pd.DataFrame(shown), note)


def _index(values):
    values = values.dropna()
    if values.empty:
        return NOTHING
    return f"{number(values.mean(), 3)} ± {number(values.std(ddof=0), 3)}"
