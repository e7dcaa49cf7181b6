"""Convergence racing: do the components of a run converge at the same pace?"""

from pathlib import Path

from matplotlib import rc_context
from pandas import DataFrame

from cwgnc_train.analysis.cells import CELL, cells_of, of_cell
from cwgnc_train.analysis.component_courses import ComponentCourses
from cwgnc_train.analysis.convergence import no_key_biases, racing_index
from cwgnc_train.analysis.labels import format_mean_std
from cwgnc_train.analysis.norm_figures import draw_norms_by_layer, draw_norms_by_type
from cwgnc_train.analysis.pictures import SMALL, Picture
from cwgnc_train.analysis.racing_figures import Race, draw_halfway, draw_race
from cwgnc_train.analysis.report_tables import CELL_COLUMNS, ReportTable
from cwgnc_train.analysis.sections import Section, read_measured
from cwgnc_train.analysis.study_records import StudyRecords
from cwgnc_train.config import UserError

REPORTED_RACES = 2
"""The most cells of a task whose races the report shows."""

_NOTE = (
    "A component is halfway at the step where its root-mean-square difference (RMSD) "
    "from the initial weights first reaches half its final value, interpolated "
    "linearly between measured steps. The racing index of a run is the standard "
    "deviation (ddof = 0) of these steps over its components, as fractions of the "
    "run's steps. It is 0 if all components converge at the same pace, and grows the "
    "more some run ahead of others. Two kinds of components are left out: key biases, "
    "whose gradients are only rounding error, and components that end where they "
    "started, such as frozen ones. A run has no index if fewer than two components are "
    "left or any of their RMSDs is not finite."
)
_UNFREEZING_NOTE = (
    " Runs of gradual unfreezing are left out, since their components start at "
    "different times by design."
)
_SELECTION = (
    f"For each task, the figures show at most {REPORTED_RACES} cells: those that best "
    "allow failed and successful runs to be compared. The norms are those of the "
    "kernels in the first cell. The command racing draws all cells and all components."
)


def write_racing(workdir: Path, output: Path | None = None) -> list[Path]:
    """Writes all figures and the table of convergence racing.

    Args:
      workdir: The folder of the records; runs may still be writing to it.
      output: Where to write. Default: the folder ``racing`` in ``workdir``.

    Returns:
      The paths of the files.

    Raises:
      UserError: If the folder has no records, no finished run has statistics of its
        components, all such runs are of gradual unfreezing, or a record is damaged.
    """
    study, measured = read_measured(Path(workdir))
    section = racing_section(study, measured, everything=True)
    if section is None:
        raise UserError(
            f"in {workdir}, every finished run with per-component statistics is of "
            f"gradual unfreezing, whose components start at different times by design; "
            f"add another method to the study, such as full, or use the command "
            f"unfreeze"
        )
    return section.write(Path(output or Path(workdir) / "racing"))


def racing_section(
    study: StudyRecords, measured: ComponentCourses, everything: bool = False
) -> Section | None:
    """Draws the races of the cells and computes the racing index of each run.

    Args:
      study: The records.
      measured: The statistics of the components.
      everything: Whether to draw all cells and component types. Otherwise only the
        cells that best allow failed and successful runs to be compared are drawn, and
        the norms of the kernels in the first of them.

    Returns:
      The section; None if there is no run to draw.
    """
    runs = study.runs.loc[study.runs["run"].isin(measured.courses)]
    unfreezing = runs["iterations"] > 1
    runs = runs.loc[~unfreezing]
    if runs.empty or not no_key_biases(measured).any():
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
                pictures += [draw_race(race), *draw_halfway(race)]
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
    sides = [
        (failed, [measured.courses[run] for run in runs["run"][same]])
        for failed, same in ((True, runs["failed"]), (False, ~runs["failed"]))
        if same.any()
    ]
    return Race(
        model=study.model,
        cell=cell,
        steps=int(runs["steps"].max()),
        sides=sides,
        measured=measured,
    )


def _telling(runs):
    """Sorts the cell first that has most runs of the rarer outcome, then most runs."""
    failed = runs["failed"].sum()
    return -min(failed, len(runs) - failed), -len(runs)


def _index_table(runs, measured, note):
    data = runs[[*CELL, "run", "seed", "data_seed", "score", "failed", "steps"]].assign(
        racing_index=[
            racing_index(measured, measured.courses[run], steps)
            for run, steps in zip(runs["run"], runs["steps"], strict=True)
        ]
    )

    def index(values):
        return format_mean_std(values.mean(), values.std(ddof=0), scale=1, digits=3)

    shown = []
    for cell in cells_of(data):
        frame = of_cell(data, cell)
        shown.append(
            {title: show(cell._asdict()) for title, show in CELL_COLUMNS.items()}
            | {
                "Runs, failed": f"{len(frame)}, {frame['failed'].sum()}",
                "Index, failed runs": index(frame["racing_index"][frame["failed"]]),
                "Index, others": index(frame["racing_index"][~frame["failed"]]),
            }
        )
    return ReportTable("racing", "Racing index", data, DataFrame(shown), note)
