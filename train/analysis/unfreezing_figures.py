"""The figures of gradual unfreezing."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from train.analysis.convergence import mean_of_finite
from train.analysis.iterations import Group
from train.analysis.labels import (
    method_label,
    metric_label,
    rate,
    task_label,
    threshold,
)
from train.analysis.pictures import (
    PALETTE,
    WIDTH,
    Picture,
    layer_ticks,
    order_bar,
    ordered_colors,
    set_title,
)
from train.analysis.study import Study

_COLORS = {"restart": PALETTE[1], "carry": PALETTE[4], "full": PALETTE[6]}
_MARKERS = {"restart": "s", "carry": "o", "full": "D"}


class Extreme(NamedTuple):
    """What is taken of a layer's components, and how figures call it."""

    statistic: str
    title: str
    label: str
    extreme: Callable
    word: str


EXTREMES = (
    Extreme(
        "rmsd",
        "Distance to the pretrained weights by layer",
        "largest RMSD",
        max,
        "largest root-mean-square difference (RMSD)",
    ),
    Extreme(
        "cosine",
        "Similarity to the pretrained weights by layer",
        "smallest cosine similarity",
        min,
        "smallest cosine similarity",
    ),
)


def draw_scores(study: Study, group: Group, rows: list[dict[str, Any]]) -> Picture:
    """Draws the scores after each iteration (Figure 1 of the paper)."""
    figure = Figure(figsize=(WIDTH, 3.1), layout="constrained")
    axes = figure.subplots()
    last = group.iterations
    for i, kind in enumerate(group.runs):
        of_kind = [row for row in rows if row["kind"] == kind]
        mean, std = (
            100 * np.array([row[name] for row in of_kind]) for name in ("mean", "std")
        )
        label = _label(group, kind).replace("unfreezing", "\nunfreezing")
        if kind == "full" and of_kind:
            axes.axhline(mean[0], color=_COLORS[kind], linestyle="--", label=label)
            low, high = mean[0] - std[0], mean[0] + std[0]
            axes.axhspan(low, high, color="0.5", alpha=0.18, linewidth=0)
        elif of_kind:
            # Side by side, so that no bar hides another.
            x = np.array([row["iteration"] for row in of_kind]) + 0.16 * (i - 0.5)
            axes.errorbar(
                *(x, mean, std),
                color=_COLORS[kind],
                marker=_MARKERS[kind],
                markersize=4,
                capsize=3,
                linewidth=1.4,
                elinewidth=0.9,
                label=label,
            )
    frame = next(iter(group.runs.values()))
    line, metric = 100 * frame["line"].iloc[0], frame["metric"].iloc[0]
    axes.axhline(line, color="0.4", linestyle=":", label="line of failure")
    axes.set(
        xlabel="iteration (number of layers that train)",
        ylabel=f"{metric_label(metric)} × 100",
        xlim=(0.5, last + 0.5),
    )
    axes.set_xticks(layer_ticks(last))
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), borderaxespad=0)
    set_title(figure, f"{_setting(study, group)}\nScore after each iteration")
    full = (
        "; dashed and shaded, plain fine-tuning of as many epochs"
        if "full" in group.runs
        else "; the study has no plain fine-tuning of as many epochs to compare with"
    )
    return Picture(
        _name("unfreezing_scores", group),
        group.task,
        f"{_setting(study, group)}: score after each iteration of gradual unfreezing, "
        f"{group.epochs} epochs each: mean over the runs with one standard deviation "
        f"to either side{full}. The dotted line is what a run must exceed not to "
        f"have failed. {_sample(group)}",
        figure,
    )


def draw_profiles(
    study: Study, group: Group, profiles: dict[str, np.ndarray], kind: Extreme
) -> Picture:
    """Draws an extreme of each layer (Figures 2, 4 and 5 of the paper).

    Args:
      study: The study.
      group: The runs.
      profiles: The result of ``layer_profiles``, of one run of unfreezing at least.
      kind: Which extreme it is.

    Returns:
      The picture: the end of training, then a panel with all iterations of each kind.
    """
    layers = next(iter(profiles.values())).shape[2] - 1
    thawing = [name for name in ("carry", "restart") if name in profiles]
    final = [name for name in profiles if name != "restart" or "full" not in profiles]
    figure = Figure(
        figsize=(WIDTH, 0.7 + 2.3 * (1 + len(thawing))), layout="constrained"
    )
    panels = figure.subplots(1 + len(thawing), 1, sharex=True, sharey=True)
    x = np.arange(layers + 1)
    for name in final:
        marker = {
            "marker": _MARKERS[name],
            "markersize": 4,
            "label": _label(group, name),
        }
        _band(panels[0], x, profiles[name][:, -1], _COLORS[name], **marker)
    panels[0].set_title("(a) at the end of training")
    panels[0].legend(
        loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0, ncols=len(final)
    )
    for axes, name, letter in zip(panels[1:], thawing, "bc", strict=False):
        colors = ordered_colors(group.iterations)
        for i, color in enumerate(colors):
            _band(axes, x, profiles[name][:, i], color, linewidth=1.2)
        axes.set_title(f"({letter}) {_label(group, name)}: after each iteration")
        order_bar(figure, axes, group.iterations, "iteration", aspect=20)
    for axes in panels:
        axes.set_ylabel(kind.label)
    ticks = [0, *layer_ticks(layers)]
    panels[-1].set_xticks(ticks, ["emb.", *map(str, ticks[1:])])
    panels[-1].set_xlabel("layer (emb.: embeddings)")
    set_title(figure, f"{_setting(study, group)}\n{kind.title}")
    missing = ""
    if "restart" in final:
        missing = "The study has no plain fine-tuning of as many epochs"
        # Only with all layers thawed is the last restart the same.
        if group.iterations == layers:
            missing += "; the last iteration with restart stands for it"
        missing += ". "
    return Picture(
        _name(f"unfreezing_{kind.statistic}", group),
        group.task,
        f"{_setting(study, group)}: of each layer the {kind.word} of its components to "
        "the pretrained weights, (a) at the end of training, then after each iteration "
        "of gradual unfreezing, from the first (dark) to the last (light). Lines are "
        f"means over the runs, bands one standard deviation to either side. {missing}"
        "The heads are left out, since the classifier starts at random; so are key "
        "biases, whose gradient is zero but for rounding, and components that are all "
        f"zero, which have no direction. {_sample(group)}",
        figure,
    )


def _band(axes, x, values, color, **style):
    mean = mean_of_finite(values)
    std = np.sqrt(mean_of_finite((values - mean) ** 2))
    axes.plot(x, mean, color=color, **style)
    axes.fill_between(x, mean - std, mean + std, color=color, alpha=0.15, linewidth=0)


def _label(group, kind):
    return method_label(group.runs[kind]["method"].iloc[0])


def _setting(study, group):
    norm = group.max_norm
    clip = "no clip" if math.isinf(norm) else f"threshold {threshold(norm)}"
    return (
        f"{task_label(group.task)}, {study.model}, learning rate "
        f"{rate(group.learning_rate)}, {clip}"
    )


def _sample(group):
    counts = [
        f"{method_label(frame['method'].iloc[0])} {len(frame)} "
        f"({frame['failed'].sum()} failed)"
        for frame in group.runs.values()
    ]
    return f"Runs: {', '.join(counts)}."


def _name(kind, group):
    clip = f"_{group.clip}" if group.clip else ""
    return (
        f"{kind}_{group.task}{clip}_lr={rate(group.learning_rate)}"
        f"_max_norm={group.max_norm:g}"
    )
