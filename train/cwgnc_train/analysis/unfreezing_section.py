"""Gradual unfreezing, iteration by iteration, compared with plain fine-tuning."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import rc_context

from cwgnc_train.analysis.component_courses import ComponentCourses
from cwgnc_train.analysis.labels import format_mean_std, metric_label
from cwgnc_train.analysis.pictures import STYLE, Picture
from cwgnc_train.analysis.report_tables import CELL_COLUMNS, make_table
from cwgnc_train.analysis.sections import Section, read_measured
from cwgnc_train.analysis.study_records import StudyRecords
from cwgnc_train.analysis.unfreezing_figures import (
    EXTREMES,
    draw_iteration_scores,
    draw_profiles,
)
from cwgnc_train.analysis.unfreezing_iterations import (
    UnfreezingGroup,
    iteration_scores,
    layer_profiles,
    row_start,
    unfreezing_groups,
)
from cwgnc_train.config import UserError

_NOTE = (
    "In iteration T of gradual unfreezing, the top T layers and the heads train while "
    "all others are frozen. The embeddings thaw together with the last layer. Weights "
    "carry over from one iteration to the next, or each iteration starts from the "
    "pretrained weights (restart). Each iteration has moments and a schedule of its "
    "own, unless the method says otherwise; the paper does not say. With restart, an "
    "iteration that trains all layers is plain fine-tuning."
)


def write_unfreezing(workdir: Path, output: Path | None = None) -> list[Path]:
    """Writes the figures and tables of gradual unfreezing.

    Args:
      workdir: The folder of the records; runs may still be writing to it.
      output: Where to write. Default: the folder ``unfreezing`` in ``workdir``.

    Returns:
      The paths of the files.

    Raises:
      UserError: If the folder has no records, no finished run has statistics of its
        components, none is of gradual unfreezing, or a record is damaged.
    """
    study, measured = read_measured(Path(workdir))
    section = unfreezing_section(study, measured, everything=True)
    if section is None:
        methods = " ".join(dict.fromkeys(study.runs["method"]))
        raise UserError(
            f"no finished run in {workdir} is of gradual unfreezing: the methods are "
            f"{methods}; add gu and gu_restart to the study"
        )
    return section.write(Path(output or Path(workdir) / "unfreezing"))


def unfreezing_section(
    study: StudyRecords, measured: ComponentCourses | None, everything: bool = False
) -> Section | None:
    """Draws the effect of gradual unfreezing, compared with plain fine-tuning.

    Args:
      study: The records.
      measured: The statistics of the components; without them, only scores are drawn.
      everything: Whether to make the table of the layers as well.

    Returns:
      The section; None if no run is of gradual unfreezing.
    """
    pictures: list[Picture] = []
    scores, layers = [], []
    with rc_context(STYLE):
        for group in unfreezing_groups(study.runs):
            of_group = iteration_scores(study, group)
            if of_group:
                scores += of_group
                pictures.append(draw_iteration_scores(study, group, of_group))
            if measured is None:
                continue
            profiles = {
                kind.statistic: layer_profiles(
                    measured, group, kind.statistic, kind.function
                )
                for kind in EXTREMES
            }
            layers += _layer_rows(group, profiles)
            pictures += [
                draw_profiles(study, group, profiles[kind.statistic], kind)
                for kind in EXTREMES
                if profiles[kind.statistic]
            ]
    tables = [_score_table(scores)] if scores else []
    if everything and layers:
        tables.append(_layer_table(layers))
    if not pictures:
        return None
    return Section("Gradual unfreezing", _NOTE, tables, pictures)


def _layer_rows(
    group: UnfreezingGroup, profiles: dict[str, Any]
) -> list[dict[str, Any]]:
    rows = []
    for kind, rmsd in profiles["rmsd"].items():
        _, iterations, depths = rmsd.shape
        for i, depth in np.ndindex(iterations, depths):
            row = row_start(group.runs[kind], kind, i + 1)
            row |= {"layer": depth or "embeddings", "runs": len(rmsd)}
            for statistic, of_kind in profiles.items():
                values = pd.Series(of_kind[kind][:, i, depth])
                row[f"{statistic}_mean"] = values.mean()
                row[f"{statistic}_std"] = values.std(ddof=0)
            rows.append(row)
    return rows


def _score_table(rows):
    return make_table(
        "unfreezing_scores",
        "Scores × 100 after each iteration",
        rows,
        {
            **CELL_COLUMNS,
            "Iteration": lambda row: f"{row['iteration']} of {row['iterations']}",
            "Score": lambda row: metric_label(row["metric"]),
            "Runs": lambda row: str(row["runs"]),
            "Mean ± std": lambda row: format_mean_std(row["mean"], row["std"]),
        },
    )


def _layer_table(rows):
    def mean_std(name, scale, digits):
        return lambda row: format_mean_std(
            row[f"{name}_mean"], row[f"{name}_std"], scale, digits
        )

    table = make_table(
        "unfreezing_layers",
        "Distance from the pretrained weights by layer, at the end of training",
        [row for row in rows if row["iteration"] == row["iterations"]],
        {
            **CELL_COLUMNS,
            "Layer": lambda row: str(row["layer"]),
            "Largest RMSD × 1000": mean_std("rmsd", 1000, 3),
            "Smallest cosine": mean_std("cosine", 1, 4),
        },
        "Mean ± std over the runs. The CSV file has all iterations. Heads and key "
        "biases are left out.",
    )
    return dataclasses.replace(table, data=pd.DataFrame(rows))
