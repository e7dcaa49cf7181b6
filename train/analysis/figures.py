"""The figures of a study, one file a task and kind."""

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import pandas as pd
from matplotlib import colormaps, rc_context
from matplotlib.figure import Figure

from train.analysis.cells import Cell, cells_of, of_cell, threshold_groups
from train.analysis.labels import (
    clips,
    method_label,
    metric_label,
    rate,
    task_label,
    threshold,
)
from train.analysis.pictures import PALETTE, STYLE, WIDTH, Picture, set_title
from train.analysis.study import Study

MOST_CELLS = 8
"""A panel draws no more cells than this."""
MOST_PANELS = 6
"""A figure has no more panels than this."""

_FAILED = {"marker": "x", "linewidth": 1.1, "s": 26}
_SUCCEEDED = {"marker": "o", "edgecolor": "none", "s": 16, "alpha": 0.75}


@dataclasses.dataclass(frozen=True)
class _Panel:
    title: str
    cells: list[Cell]
    label: Callable[[Cell], str]
    heading: str | None
    """What the labels are; None if they say it themselves."""
    colors: list


def draw_figures(study: Study, cells: pd.DataFrame) -> list[Picture]:
    """Draws all figures that the records suffice for.

    Args:
      study: The study.
      cells: The result of ``choose_cells``.

    Returns:
      The figures, task by task.
    """
    pictures = []
    with rc_context(STYLE):
        for task in study.runs["task"].unique():
            of_task = cells[cells["task"] == task]
            panels = _panels(of_task)
            groups = threshold_groups(of_task)
            pictures += [
                _distribution(study, task, panels),
                _thresholds(study, task, groups),
                _scores_over_time(study, task, panels),
                _clip_rates(study, task, panels),
                _loss(study, task, panels),
            ]
    return [picture for picture in pictures if picture]


def _panels(cells):
    """The chosen cells, the thresholds of a method, the learning rates of a method."""
    panels = []
    compared = cells_of(cells[cells["chosen"]])
    groups = threshold_groups(cells)
    for group in groups:
        method, value = group[0].method, group[0].learning_rate
        panels.append(
            _panel(
                f"{method_label(method)} by threshold, learning rate {rate(value)}",
                group,
                lambda cell: threshold(cell.max_norm),
                "threshold",
            )
        )
    for method, group in cells[cells["open"]].groupby("method", sort=False):
        if not any(cell.method == method for cell, *_ in groups):
            panels.append(
                _panel(
                    f"{method_label(method)} by learning rate",
                    cells_of(group),
                    lambda cell: rate(cell.learning_rate),
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
        words = f"{method_label(cell.method)}\nlr {rate(cell.learning_rate)}"
        norm = cell.max_norm
        return words if math.isinf(norm) else f"{words}, threshold {threshold(norm)}"

    return _Panel("Methods", cells, label, None, PALETTE[: len(cells)])


def _distribution(study, task, panels):
    sizes = [len(panel.cells) for panel in panels]
    figure, rows = _figure(study, task, "final scores", sizes, 0.42, 0.75)
    line = study.runs["line"][study.runs["task"] == task].iloc[0]
    for (axes,), panel in zip(rows, panels, strict=True):
        for i, (cell, color) in enumerate(zip(panel.cells, panel.colors, strict=True)):
            runs = of_cell(study.runs, cell).dropna(subset="score")
            # Spread in the order of the seeds, so that no dot hides another.
            runs = runs.assign(y=i + np.linspace(-0.28, 0.28, len(runs) + 2)[1:-1])
            for failed, marker in ((False, _SUCCEEDED), (True, _FAILED)):
                drawn = runs[runs["failed"] == failed]
                axes.scatter(100 * drawn["score"], drawn["y"], color=[color], **marker)
            if len(runs):
                mean, std = 100 * runs["score"].mean(), 100 * runs["score"].std(ddof=0)
                axes.errorbar(mean, i + 0.38, xerr=std, color=color, fmt="|", capsize=3)
        axes.axvline(100 * line, color="0.4", linestyle=":")
        axes.set(title=panel.title, ylim=(len(panel.cells) - 0.4, -0.5))
        axes.set_yticks(range(len(panel.cells)), map(panel.label, panel.cells))
        axes.tick_params("y", length=0)
    rows[-1][0].set_xlabel(_score(study, task))
    handles = [
        rows[0][0].scatter([], [], color="0.3", **_SUCCEEDED),
        rows[0][0].scatter([], [], color="0.3", **_FAILED),
        rows[0][0].errorbar([], [], xerr=[], color="0.3", fmt="|", capsize=3),
        rows[0][0].plot([], [], color="0.4", linestyle=":")[0],
    ]
    labels = ["a run", "a failed run", "mean ± std", "line of failure"]
    figure.legend(handles, labels, loc="outside lower center", ncols=4)
    return Picture(
        f"scores_{task}",
        task,
        f"{task_label(task)}: the final score of every run, a dot each. A cross is a "
        "failed run, the bar under the dots the mean and one standard deviation to "
        "either side, the dotted line what a run must exceed not to have failed.",
        figure,
    )


def _thresholds(study, task, groups):
    if not groups:
        return None
    methods = list(dict.fromkeys(group[0].method for group in groups))
    figure, rows = _figure(
        study, task, "final score by threshold", [1] * len(methods), 2.4, 0.3
    )
    line = study.runs["line"][study.runs["task"] == task].iloc[0]
    for (axes,), method in zip(rows, methods, strict=True):
        groups_here = [group for group in groups if group[0].method == method]
        norms = sorted({cell.max_norm for group in groups_here for cell in group})
        finite = [norm for norm in norms if math.isfinite(norm)]
        place = {norm: norm for norm in finite} | {math.inf: 10 * finite[-1]}
        for i, group in enumerate(groups_here):
            color = PALETTE[4 - i % 5]
            # Learning rates side by side, so that their bars can be told apart.
            x = np.array([place[cell.max_norm] for cell in group]) * 1.06**i
            scores = [100 * of_cell(study.runs, cell)["score"] for cell in group]
            mean = np.array([s.mean() for s in scores])
            std = np.array([s.std(ddof=0) for s in scores])
            low, high = [s.min() for s in scores], [s.max() for s in scores]
            name = f"learning rate {rate(group[0].learning_rate)}"
            axes.vlines(x, low, high, color=color, alpha=0.45, linewidth=1)
            axes.errorbar(
                x, mean, yerr=std, color=color, marker="o", ms=4, capsize=4, label=name
            )
        axes.axhline(100 * line, color="0.4", linestyle=":", label="line of failure")
        axes.set(xscale="log", ylabel=_score(study, task), title=method_label(method))
        axes.set_xticks([place[norm] for norm in norms], map(threshold, norms))
        axes.minorticks_off()
        axes.set_xlabel("threshold (logarithmic; none = no clipping)")
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), borderaxespad=0)
    return Picture(
        f"thresholds_{task}",
        task,
        f"{task_label(task)}: mean of the final scores for each threshold, with one "
        "standard deviation to either side; the thin line reaches from the worst to "
        "the best run.",
        figure,
    )


def _scores_over_time(study, task, panels):
    # One evaluation, at the end, is what the distribution shows.
    frame = study.evaluations[study.evaluations["task"] == task]
    panels = _with_cells(
        panels, lambda cell: of_cell(frame, cell)["step"].nunique() > 1
    )
    if not panels:
        return None
    return _course(
        *(study, task, panels, frame, "score over time", "score_over_time"),
        {"score": _score(study, task)},
        "validation score during training, of what was scored more than once",
    )


def _clip_rates(study, task, panels):
    frame = study.metrics[study.metrics["task"] == task]
    panels = _with_cells(panels, lambda cell: clips(cell.method, cell.max_norm))
    # Without its cells that were not clipped a panel may add nothing to a later one.
    panels = [
        panel
        for i, panel in enumerate(panels)
        if not any(set(panel.cells) <= set(later.cells) for later in panels[i + 1 :])
    ]
    columns = ["clip_rate_components", "clip_rate_elements"]
    if not panels or frame[columns].isna().all(axis=None):
        return None
    return _course(
        *(study, task, panels, frame, "how much was clipped", "clip_rate"),
        {name: f"{name.rpartition('_')[2]} clipped [%]" for name in columns},
        "share of the components, and of all elements of the gradient in components, "
        "whose norm was above the threshold",
        bounds=(0, 100),
        ylim=(-3, 103),
    )


def _with_cells(panels, belongs):
    """The panels with some of their cells only, those without any left out."""
    fewer = []
    for panel in panels:
        pairs = zip(panel.cells, panel.colors, strict=True)
        kept = [(cell, color) for cell, color in pairs if belongs(cell)]
        if kept:
            cells, colors = map(list, zip(*kept, strict=True))
            fewer.append(dataclasses.replace(panel, cells=cells, colors=colors))
    return fewer


def _loss(study, task, panels):
    frame = study.metrics[study.metrics["task"] == task]
    if frame["loss"].isna().all():
        return None
    return _course(
        *(study, task, panels, frame, "training loss", "loss"),
        {"loss": "training loss"},
        "training loss",
        scale=1,
    )


def _course(
    study,
    task,
    panels,
    frame,
    title,
    name,
    columns,
    what,
    scale=100,
    bounds=(None, None),
    **settings,
):
    """Means over steps with a band of a standard deviation, a row of axes a panel."""
    figure, rows = _figure(
        study, task, title, [1] * len(panels), 2.1, 0.3, len(columns)
    )
    for row, panel in zip(rows, panels, strict=True):
        for axes, (column, label) in zip(row, columns.items(), strict=True):
            for cell, color in zip(panel.cells, panel.colors, strict=True):
                steps = of_cell(frame, cell).groupby("step")[column]
                mean, std = scale * steps.mean(), scale * steps.std(ddof=0)
                low, high = (mean - std).clip(*bounds), (mean + std).clip(*bounds)
                style = "-" if clips(cell.method, cell.max_norm) else "--"
                (line,) = axes.plot(
                    *(mean.index, mean), color=color, linestyle=style, linewidth=1.6
                )
                line.set_label(panel.label(cell))
                axes.fill_between(
                    *(mean.index, low, high),
                    color=color,
                    alpha=0.12,
                    linewidth=0,
                )
                # Edges tell bands apart that lie upon each other.
                for edge in (low, high):
                    axes.plot(
                        *(mean.index, edge), color=color, linewidth=0.5, alpha=0.6
                    )
            axes.set(ylabel=label, **settings)
        row[0].set_title(panel.title)
        row[-1].legend(
            title=panel.heading,
            loc="upper left",
            bbox_to_anchor=(1.01, 1),
            borderaxespad=0,
            alignment="left",
        )
    for axes in rows[-1]:
        axes.set_xlabel("step")
    return Picture(
        f"{name}_{task}",
        task,
        f"{task_label(task)}: {what}. Lines are means over the runs, bands one "
        "standard deviation to either side.",
        figure,
    )


def _figure(study, task, title, sizes, inches, extra, columns=1):
    heights = [size * inches + extra for size in sizes]
    figure = Figure(figsize=(WIDTH, sum(heights) + 1), layout="constrained")
    rows = figure.subplots(
        *(len(sizes), columns),
        height_ratios=heights,
        sharex=True,
        sharey=columns > 1,
        squeeze=False,
    )
    set_title(figure, f"{task_label(task)}, {study.model}: {title}")
    return figure, rows


def _score(study, task):
    metric = study.runs["metric"][study.runs["task"] == task].iloc[0]
    return f"{metric_label(metric)} × 100"
