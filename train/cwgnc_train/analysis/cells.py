"""Cells of a study, and the choice of hyperparameters among them."""

from typing import NamedTuple

import numpy as np
import pandas as pd

from cwgnc_train.analysis.labels import threshold_label


class Cell(NamedTuple):
    """The settings shared by runs that differ only in their seeds."""

    task: str
    method: str
    learning_rate: float
    max_norm: float
    clip: str
    """Either "fixed", or the name of a clip that learns its thresholds."""

    @property
    def threshold(self) -> str:
        """The threshold as text; "none" without a clip."""
        return threshold_label(self.max_norm, self.clip)

    @property
    def clips(self) -> bool:
        """Whether gradients are clipped at all."""
        return self.threshold != "none"


CELL = list(Cell._fields)

PAPER_MAX_NORM = 0.05
"""The threshold behind the paper's own results, fixed before any run of a study."""


def choose_cells(runs: pd.DataFrame) -> pd.DataFrame:
    """Chooses one cell for each task and method by the holdout scores.

    The highest mean wins; ties go to the smaller standard deviation, then the smaller
    learning rate, then the smaller threshold. A cell with a NaN score comes last. The
    scores that decide whether a run failed play no part.

    Without holdout scores, the paper's threshold is chosen if all cells share one
    learning rate and that threshold is among them. Otherwise nothing is chosen, unless
    there is only one cell.

    Args:
      runs: The finished runs.

    Returns:
      One row per cell, with the columns of the cell and

      - runs, holdout_mean, holdout_std;
      - chosen: whether it is the chosen cell of its task and method;
      - planned: whether it was chosen because it has the paper's threshold;
      - open: whether its task and method have several cells and none was chosen.
    """
    holdout = runs.groupby(CELL, sort=False)["holdout_score"]
    cells = holdout.agg(
        runs="size",
        holdout_mean=lambda scores: scores.mean(skipna=False),
        holdout_std=lambda scores: scores.std(ddof=0, skipna=False),
    ).reset_index()
    chosen, planned = [], []
    for key, group in cells.groupby(["task", "method"], sort=False):
        task, method = key  # pyright: ignore[reportGeneralTypeIssues]  # a tuple
        same = (runs["task"] == task) & (runs["method"] == method)
        if len(group) == 1:
            chosen.append(group.index[0])
        elif runs.loc[same, "has_holdout"].all():
            # Rounding makes ties of means that differ only in the order of their sum.
            order = group.assign(
                mean=-group["holdout_mean"].round(12),
                std=group["holdout_std"].round(12),
            ).sort_values(["mean", "std", "learning_rate", "max_norm"])
            chosen.append(order.index[0])
        elif len(set(group["learning_rate"])) == 1:
            planned += group.loc[group["max_norm"] == PAPER_MAX_NORM].index.to_list()
    chosen += planned
    cells["planned"] = cells.index.isin(planned)
    cells["chosen"] = cells.index.isin(chosen)
    decided = cells.groupby(["task", "method"])["chosen"].transform("any")
    return cells.assign(open=~decided)


def threshold_groups(cells: pd.DataFrame) -> list[list[Cell]]:
    """Finds the methods that ran with several thresholds.

    Args:
      cells: The result of ``choose_cells``.

    Returns:
      The cells of each task, method and learning rate, by ascending threshold. Where a
      learning rate was chosen, only that one is returned.
    """
    groups = []
    for _, group in cells.groupby(["task", "method"], sort=False):
        rates = group.loc[group["chosen"] | group["open"], "learning_rate"]
        for value in rates.unique():
            group_cells = cells_of(group.loc[group["learning_rate"] == value])
            if len(group_cells) > 1:
                groups.append(group_cells)
    return groups


def of_cell(frame: pd.DataFrame, cell: Cell) -> pd.DataFrame:
    """Returns the rows of one cell."""
    return frame.loc[
        np.logical_and.reduce([frame[key] == cell[i] for i, key in enumerate(CELL)])
    ]


def cells_of(frame: pd.DataFrame) -> list[Cell]:
    """Lists the cells of a frame, in its order."""
    return [Cell(*row) for row in frame[CELL].drop_duplicates().itertuples(index=False)]
