"""Gradual unfreezing, iteration by iteration, beside plain fine-tuning."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import rc_context

from train.analysis.components import Components
from train.analysis.iterations import (
    Group,
    iteration_scores,
    layer_profiles,
    row_of,
    unfreezing_groups,
)
from train.analysis.labels import mean_std, metric_label, number
from train.analysis.pictures import STYLE, Picture
from train.analysis.sections import Section, read_measured
from train.analysis.study import Study
from train.analysis.tables import CELL_COLUMNS, make_table
from train.analysis.unfreezing_figures import EXTREMES, draw_profiles, draw_scores

_NOTE = (
    "At iteration T of gradual unfreezing the top T layers and the heads train, all "
    "others are frozen; the embeddings thaw with the last layer. Weights carry over "
    "from iteration to iteration, or with (restart) each iteration starts from the "
    "pretrained weights; plain fine-tuning is then the last iteration."
)


def write_unfreezing(workdir: Path, output: Path | None = None) -> list[Path]:
    """Writes the figures and tables of gradual unfreezing.

    Args:
      workdir: The study's folder; it may still be written to.
      output: Where to write; the folder ``unfreezing`` in the study's by default.

    Returns:
      The paths of the files.

    Raises:
      FileNotFoundError: If there is no study, or none with statistics of components.
      ValueError: If no finished run has such statistics, or none is of gradual
        unfreezing, or a record is damaged.
    """
    study, measured = read_measured(Path(workdir))
    section = unfreezing_section(study, measured, everything=True)
    if section is None:
        raise ValueError(
            f"no finished run of {workdir} is of gradual unfreezing: its methods are "
            f"{' '.join(dict.fromkeys(study.runs['method']))}; add gu and gu_restart"
        )
    return section.write(Path(output or Path(workdir) / "unfreezing"))


def unfreezing_section(
    study: Study, measured: Components | None, everything: bool = False
) -> Section | None:
    """Draws what gradual unfreezing does, and plain fine-tuning with it.

    Args:
      study: The study.
      measured: The statistics of its components; without them the scores are drawn
        only.
      everything: Make the table of the layers as well.

    Returns:
      The section; None if no run is of gradual unfreezing.
    """
    groups = unfreezing_groups(study.runs)
    pictures: list[Picture] = []
    scores, layers = [], []
    with rc_context(STYLE):
        for group in groups:
            of_group = iteration_scores(study, group)
            if of_group:
                scores += of_group
                pictures.append(draw_scores(study, group, of_group))
            if measured is None:
                continue
            profiles = {
                kind.statistic: layer_profiles(
                    *(measured, group, kind.statistic, kind.extreme)
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


def _layer_rows(group: Group, profiles: dict[str, Any]) -> list[dict[str, Any]]:
    rows = []
    for kind, rmsd in profiles["rmsd"].items():
        _, iterations, depths = rmsd.shape
        for i, depth in np.ndindex(iterations, depths):
            row = row_of(group.runs[kind], kind, i + 1)
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
            "Mean ± std": lambda row: mean_std(row["mean"], row["std"]),
        },
    )


def _layer_table(rows):
    table = make_table(
        "unfreezing_layers",
        "Distance to the pretrained weights by layer, at the end of training",
        [row for row in rows if row["iteration"] == row["iterations"]],
        {
            **CELL_COLUMNS,
            "Layer": lambda row: str(row["layer"]),
            "Largest RMSD × 1000": _mean_std("rmsd", 1000, 3),
            "Smallest cosine": _mean_std("cosine", 1, 4),
        },
        "Mean ± std over the runs; the CSV file has every iteration. Heads and key "
        "biases are left out.",
    )
    return dataclasses.replace(table, data=pd.DataFrame(rows))


def _mean_std(name, scale, digits):
    def show(row):
        mean, std = (scale * row[f"{name}_{what}"] for what in ("mean", "std"))
        return f"{number(mean, digits)} ± {number(std, digits)}"

    return show
