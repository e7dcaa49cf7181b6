"""Which runs belong together, and the choice of hyperparameters among them."""

from typing import NamedTuple

import numpy as np
import pandas as pd


class Cell(NamedTuple):
    """What runs share that differ in their seed only."""

    task: str
    method: str
    learning_rate: float
    max_norm: float


CELL = list(Cell._fields)

PAPER_MAX_NORM = 0.05
"""The threshold of the paper's own results, fixed before any run of a study."""


def choose_cells(runs: pd.DataFrame) -> pd.DataFrame:
    """Chooses one cell of each task and method by the scores on the holdout.

    The highest mean wins, then the smaller standard deviation, the smaller learning
    rate, the smaller threshold. A cell with a score that is not a number comes last.
    The scores on the validation split are not looked at. Without holdout scores the
    paper's threshold is taken if it is among those of a single learning rate; else
    nothing is chosen, unless there is one cell only.

    Args:
      runs: The finished runs.

    Returns:
      A row a cell: the cell, runs, holdout_mean, holdout_std, chosen, and open, which
      says that its task and method have several cells and no way to choose. Planned
      says that the choice is the paper's threshold.
    """
    holdout = runs.groupby(CELL, sort=False)["holdout_score"]
    cells = holdout.agg(
        runs="size",
        holdout_mean=lambda scores: scores.mean(skipna=False),
        holdout_std=lambda scores: scores.std(ddof=0, skipna=False),
    ).reset_index()
    chosen, planned = [], []
    for (task, method), group in cells.groupby(["task", "method"], sort=False):
        same = (runs["task"] == task) & (runs["method"] == method)
        if len(group) == 1:
            chosen.append(group.index[0])
        elif runs["has_holdout"][same].all():
            # Rounded, so that means of the same scores in another order are a tie.
            order = group.assign(
                mean=-group["holdout_mean"].round(12),
                std=group["holdout_std"].round(12),
            ).sort_values(["mean", "std", "learning_rate", "max_norm"])
            chosen.append(order.index[0])
        elif group["learning_rate"].nunique() == 1:
            planned += group.index[group["max_norm"] == PAPER_MAX_NORM].to_list()
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
      The cells of each task, method and learning rate, the thresholds ascending; of
      the chosen learning rate only, where one was chosen.
    """
    groups = []
    for _, group in cells.groupby(["task", "method"], sort=False):
        rates = group["learning_rate"][group["chosen"] | group["open"]]
        for value in rates.unique():
            group_cells = cells_of(group[group["learning_rate"] == value])
            if len(group_cells) > 1:
                groups.append(group_cells)
    return groups


def of_cell(frame: pd.DataFrame, cell: Cell) -> pd.DataFrame:
    """Returns the rows of one cell."""
    return frame[
        np.logical_and.reduce([frame[key] == cell[i] for i, key in enumerate(CELL)])
    ]


def cells_of(frame: pd.DataFrame) -> list[Cell]:
    """Returns the cells of a frame, in its order."""
    return [Cell(*row) for row in frame[CELL].drop_duplicates().itertuples(index=False)]
