"""The figures of a study, one file per task and kind."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import colormaps, rc_context
from matplotlib.figure import Figure

from cwgnc_train.analysis.cells import Cell, cells_of, of_cell, threshold_groups
from cwgnc_train.analysis.labels import (
    format_rate,
    method_label,
    metric_label,
    task_label,
    threshold_label,
)
from cwgnc_train.analysis.pictures import (
    PALETTE,
    STYLE,
    WIDTH,
    Picture,
    legend_beside,
    set_title,
)
from cwgnc_train.analysis.study_records import StudyRecords

MOST_CELLS = 8
"""The most cells that one panel shows."""
MOST_PANELS = 6
"""The most panels that one figure has."""

_FAILED = {"marker": "x", "linewidth": 1.1, "s": 26}
_SUCCEEDED = {"marker": "o", "edgecolor": "none", "s": 16, "alpha": 0.75}


@dataclasses.dataclass(frozen=True)
class _Panel:
    title: str
    cells: list[Cell]
    label: Callable[[Cell], str]
    heading: str | None
    """What the labels are; None if they speak for themselves."""
    colors: list


@dataclasses.dataclass(frozen=True)
class _Task:
    """A task of the study, as its figures need it."""

    study: StudyRecords
    name: str
    panels: list[_Panel]
    groups: list[list[Cell]]
    """The result of ``threshold_groups``."""

    @property
    def label(self) -> str:
        return task_label(self.name)

    @property
    def line(self) -> float:
        """The failure line."""
        return self._runs["line"].iloc[0]

    @property
    def score_label(self) -> str:
        return f"{metric_label(self._runs['metric'].iloc[0])} × 100"

    @property
    def _runs(self) -> pd.DataFrame:
        return self.of_task(self.study.runs)

    def of_task(self, frame: pd.DataFrame) -> pd.DataFrame:
        """Returns the rows of this task."""
        return frame.loc[frame["task"] == self.name]

    def figure(
        self, title: str, heights: list[float], columns: int = 1
    ) -> tuple[Figure, np.ndarray]:
        """Makes a figure with one row of axes for each height, in inches."""
        figure = Figure(figsize=(WIDTH, sum(heights) + 1), layout="constrained")
        rows = figure.subplots(
            nrows=len(heights),
            ncols=columns,
            height_ratios=heights,
            sharex=True,
            sharey=columns > 1,
            squeeze=False,
        )
        set_title(figure, f"{self.label}, {self.study.model}: {title}")
        return figure, rows


def draw_figures(study: StudyRecords, cells: pd.DataFrame) -> list[Picture]:
    """Draws all figures for which there are records.

    Args:
      study: The records.
      cells: The result of ``choose_cells``.

    Returns:
      The figures, task by task.
    """
    pictures = []
    with rc_context(STYLE):
        for name in study.runs["task"].unique():
            of_task = cells.loc[cells["task"] == name]
            groups = threshold_groups(of_task)
            task = _Task(study, name, _panels(of_task, groups), groups)
            pictures += [
                _distribution(task),
                _thresholds(task),
                _scores_over_time(task),
                _clip_rates(task),
                _loss(task),
            ]
    return [picture for picture in pictures if picture]


def _panels(cells, groups):
    """Chooses what to compare: methods, then thresholds, then learning rates."""
    panels = []
    compared = cells_of(cells[cells["chosen"]])
    for group in groups:
        method, rate = group[0].method, format_rate(group[0].learning_rate)
        panels.append(
            _panel(
                f"{method_label(method)} by threshold, learning rate {rate}",
                group,
                lambda cell: cell.threshold,
                "threshold",
            )
        )
    for method, group in cells[cells["open"]].groupby("method", sort=False):
        if not any(cell.method == method for cell, *_ in groups):
            panels.append(
                _panel(
                    f"{method_label(method)} by learning rate",
                    cells_of(group),
                    lambda cell: format_rate(cell.learning_rate),
                    "learning rate",
                )
            )
    if compared and not any(set(compared) <= set(panel.cells) for panel in panels):
        panels.insert(0, _method_panel(compared))
    return panels[:MOST_PANELS]


def _panel(title, cells, label, heading):
    kept = cells
    if len(cells) > MOST_CELLS:
        places = np.linspace(0, len(cells) - 1, MOST_CELLS).round().astype(int)
        kept = [cells[i] for i in places]
        title += f" ({MOST_CELLS} of {len(cells)})"
    colors = list(colormaps["viridis"](np.linspace(0, 0.8, len(kept))))
    return _Panel(title, kept, label, heading, colors)


def _method_panel(cells):
    cells = cells[:MOST_CELLS]

    def label(cell):
        words = f"{method_label(cell.method)}\nlr {format_rate(cell.learning_rate)}"
        return f"{words}, threshold {cell.threshold}" if cell.clips else words

    return _Panel("Methods", cells, label, None, PALETTE[: len(cells)])


def _distribution(task):
    heights = [0.42 * len(panel.cells) + 0.75 for panel in task.panels]
    figure, rows = task.figure("final scores", heights)
    for (axes,), panel in zip(rows, task.panels, strict=True):
        for i, (cell, color) in enumerate(zip(panel.cells, panel.colors, strict=True)):
            runs = of_cell(task.study.runs, cell).dropna(subset="score")
            # Spread out in the order of the seeds, so that no dot hides another.
            runs = runs.assign(y=i + np.linspace(-0.28, 0.28, len(runs) + 2)[1:-1])
            for failed, marker in ((False, _SUCCEEDED), (True, _FAILED)):
                drawn = runs[runs["failed"] == failed]
                axes.scatter(100 * drawn["score"], drawn["y"], color=[color], **marker)
            if len(runs):
                mean, std = 100 * runs["score"].mean(), 100 * runs["score"].std(ddof=0)
                axes.errorbar(mean, i + 0.38, xerr=std, color=color, fmt="|", capsize=3)
        axes.axvline(100 * task.line, color="0.4", linestyle=":")
        axes.set(title=panel.title, ylim=(len(panel.cells) - 0.4, -0.5))
        axes.set_yticks(range(len(panel.cells)), map(panel.label, panel.cells))
        axes.tick_params("y", length=0)
    rows[-1][0].set_xlabel(task.score_label)
    handles = [
        rows[0][0].scatter([], [], color="0.3", **_SUCCEEDED),
        rows[0][0].scatter([], [], color="0.3", **_FAILED),
        rows[0][0].errorbar([], [], xerr=[], color="0.3", fmt="|", capsize=3),
        rows[0][0].plot([], [], color="0.4", linestyle=":")[0],
    ]
    labels = ["a run", "a failed run", "mean ± std", "failure line"]
    figure.legend(handles, labels, loc="outside lower center", ncols=4)
    return Picture(
        f"scores_{task.name}",
        task.name,
        f"{task.label}: the final score of every run. Each dot is a run, each cross a "
        "failed run. The bar below the dots shows the mean and one standard deviation "
        "to either side. A run whose score is not above the dotted line has failed.",
        figure,
    )


def _thresholds(task):
    if not task.groups:
        return None
    methods = list(dict.fromkeys(group[0].method for group in task.groups))
    figure, rows = task.figure("final score by threshold", [2.7] * len(methods))
    for (axes,), method in zip(rows, methods, strict=True):
        groups = [group for group in task.groups if group[0].method == method]
        norms = sorted({cell.max_norm for group in groups for cell in group})
        finite = [norm for norm in norms if math.isfinite(norm)]
        place = {norm: norm for norm in finite} | {math.inf: 10 * finite[-1]}
        for i, group in enumerate(groups):
            color = PALETTE[4 - i % 5]
            # Learning rates side by side, so that their bars can be told apart.
            x = np.array([place[cell.max_norm] for cell in group]) * 1.06**i
            scores = [100 * of_cell(task.study.runs, cell)["score"] for cell in group]
            mean = np.array([s.mean() for s in scores])
            std = np.array([s.std(ddof=0) for s in scores])
            low, high = [s.min() for s in scores], [s.max() for s in scores]
            name = f"learning rate {format_rate(group[0].learning_rate)}"
            axes.vlines(x, low, high, color=color, alpha=0.45, linewidth=1)
            axes.errorbar(
                x, mean, yerr=std, color=color, marker="o", ms=4, capsize=4, label=name
            )
        axes.axhline(100 * task.line, color="0.4", linestyle=":", label="failure line")
        axes.set(xscale="log", ylabel=task.score_label, title=method_label(method))
        axes.set_xticks([place[norm] for norm in norms], map(threshold_label, norms))
        axes.minorticks_off()
        axes.set_xlabel("threshold (logarithmic; none = no clipping)")
        legend_beside(axes)
    return Picture(
        f"thresholds_{task.name}",
        task.name,
        f"{task.label}: mean of the final scores for each threshold, with one standard "
        "deviation to either side. The thin line reaches from the worst to the best "
        "run.",
        figure,
    )


def _scores_over_time(task):
    # A single evaluation, at the end, is already in the figure of final scores.
    frame = task.of_task(task.study.evaluations)
    panels = _with_cells(
        task.panels, lambda cell: of_cell(frame, cell)["step"].nunique() > 1
    )
    if not panels:
        return None
    return _course(
        task,
        panels,
        frame,
        title="score over time",
        name="score_over_time",
        columns={"score": task.score_label},
        what="score during training, for cells with more than one evaluation",
    )


def _clip_rates(task):
    frame = task.of_task(task.study.metrics)
    panels = _with_cells(task.panels, lambda cell: cell.clips)
    # Without its unclipped cells, a panel may show nothing that a later one does not.
    panels = [
        panel
        for i, panel in enumerate(panels)
        if not any(set(panel.cells) <= set(later.cells) for later in panels[i + 1 :])
    ]
    columns = ["clip_rate_components", "clip_rate_elements"]
    if not panels or frame[columns].isna().all(axis=None):
        return None
    return _course(
        task,
        panels,
        frame,
        title="how much was clipped",
        name="clip_rate",
        columns={name: f"{name.rpartition('_')[2]} clipped [%]" for name in columns},
        what="share of the components whose norm was above the threshold, and share "
        "of the gradient elements in those components",
        bounds=(0, 100),
        ylim=(-3, 103),
    )


def _with_cells(panels, belongs):
    """Returns the panels with only some of their cells, without empty panels."""
    fewer = []
    for panel in panels:
        pairs = zip(panel.cells, panel.colors, strict=True)
        kept = [(cell, color) for cell, color in pairs if belongs(cell)]
        if kept:
            cells, colors = map(list, zip(*kept, strict=True))
            fewer.append(dataclasses.replace(panel, cells=cells, colors=colors))
    return fewer


def _loss(task):
    frame = task.of_task(task.study.metrics)
    if frame["loss"].isna().all():
        return None
    return _course(
        task,
        task.panels,
        frame,
        title="training loss",
        name="loss",
        columns={"loss": "training loss"},
        what="training loss",
        scale=1,
    )


def _course(
    task: _Task,
    panels: list[_Panel],
    frame: pd.DataFrame,
    *,
    title: str,
    name: str,
    columns: dict[str, str],
    what: str,
    scale: float = 100,
    bounds: tuple[float | None, float | None] = (None, None),
    **settings: Any,
) -> Picture:
    """Draws means over the runs at each step, one row of axes per panel.

    Args:
      task: The task.
      panels: The cells to draw.
      frame: One row per run and step.
      title: The title of the figure.
      name: The beginning of its file name.
      columns: The columns of the frame to draw, and the labels of their axes.
      what: The beginning of the caption.
      scale: Multiplies the values.
      bounds: Limits of the bands.
      **settings: Goes to ``Axes.set``.

    Returns:
      The figure.
    """
    figure, rows = task.figure(title, [2.4] * len(panels), len(columns))
    for row, panel in zip(rows, panels, strict=True):
        for axes, (column, label) in zip(row, columns.items(), strict=True):
            for cell, color in zip(panel.cells, panel.colors, strict=True):
                steps = of_cell(frame, cell).groupby("step")[column]
                mean, std = scale * steps.agg("mean"), scale * steps.std(ddof=0)
                low, high = (mean - std).clip(*bounds), (mean + std).clip(*bounds)
                axes.plot(
                    mean.index,
                    mean,
                    color=color,
                    linestyle="-" if cell.clips else "--",
                    linewidth=1.6,
                    label=panel.label(cell),
                )
                axes.fill_between(
                    mean.index, low, high, color=color, alpha=0.12, linewidth=0
                )
                # Edges make overlapping bands distinguishable.
                for edge in (low, high):
                    axes.plot(mean.index, edge, color=color, linewidth=0.5, alpha=0.6)
            axes.set(ylabel=label, **settings)
        row[0].set_title(panel.title)
        legend_beside(row[-1], title=panel.heading, alignment="left")
    for axes in rows[-1]:
        axes.set_xlabel("step")
    return Picture(
        f"{name}_{task.name}",
        task.name,
        f"{task.label}: {what}. Lines are means over the runs, bands one standard "
        "deviation to either side.",
        figure,
    )
