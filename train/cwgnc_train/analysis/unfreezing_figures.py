"""The figures of gradual unfreezing."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

from cwgnc_train.analysis import pictures
from cwgnc_train.analysis.convergence import finite_mean
from cwgnc_train.analysis.labels import (
    format_rate,
    method_label,
    metric_label,
    task_label,
)
from cwgnc_train.analysis.pictures import PALETTE, Picture
from cwgnc_train.analysis.study_records import StudyRecords
from cwgnc_train.analysis.unfreezing_iterations import KINDS, UnfreezingGroup

_PLACES: dict[str, int] = dict(zip((*KINDS, "full"), (1, 4, 0, 2, 5, 6), strict=True))
_COLORS = {kind: PALETTE[place] for kind, place in _PLACES.items()}
_MARKERS: dict[str, str] = dict(zip(_PLACES, "so^vPD", strict=True))


class Extreme(NamedTuple):
    """An extreme over the components of a layer, and its names in figures."""

    statistic: str
    title: str
    label: str
    function: Callable
    """``max`` or ``min``."""
    description: str


EXTREMES = (
    Extreme(
        statistic="rmsd",
        title="Distance from the pretrained weights by layer",
        label="largest RMSD",
        function=max,
        description="largest root-mean-square difference (RMSD) between the weights "
        "of a component and the pretrained ones",
    ),
    Extreme(
        statistic="cosine",
        title="Similarity to the pretrained weights by layer",
        label="smallest cosine similarity",
        function=min,
        description="smallest cosine similarity between the weights of a component "
        "and the pretrained ones",
    ),
)


def draw_iteration_scores(
    study: StudyRecords, group: UnfreezingGroup, rows: list[dict[str, Any]]
) -> Picture:
    """Draws the scores after each iteration, as in Figure 1 of the paper."""
    figure = Figure(figsize=(pictures.WIDTH, 3.1), layout="constrained")
    axes = figure.subplots()
    last, ways = group.iterations, len(group.runs.keys() - {"full"})
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
            beside = min(0.16, 0.5 / ways) * (i - (ways - 1) / 2)
            x = np.array([row["iteration"] for row in of_kind]) + beside
            axes.errorbar(
                x,
                mean,
                yerr=std,
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
    axes.axhline(line, color="0.4", linestyle=":", label="failure line")
    axes.set(
        xlabel="iteration (number of layers that train)",
        ylabel=f"{metric_label(metric)} × 100",
        xlim=(0.5, last + 0.5),
    )
    axes.set_xticks(pictures.layer_ticks(last))
    pictures.legend_beside(axes)
    title = f"{_setting(study, group)}\nScore after each iteration"
    pictures.set_title(figure, title)
    if "full" in group.runs:
        full = "The dashed line and its band are plain fine-tuning of as many epochs."
    else:
        full = "No plain fine-tuning of as many epochs was run for comparison."
    return Picture(
        _name("unfreezing_scores", group),
        group.task,
        f"{_setting(study, group)}: score after each iteration of gradual unfreezing, "
        f"with {group.epochs} epochs per iteration. Points are means over the runs, "
        f"bars one standard deviation to either side. {full} A run whose score is not "
        f"above the dotted line has failed. {_sample(group)}",
        figure,
    )


def draw_profiles(
    study: StudyRecords,
    group: UnfreezingGroup,
    profiles: dict[str, Float[np.ndarray, "runs iterations depths"]],
    kind: Extreme,
) -> Picture:
    """Draws an extreme of each layer, as in Figures 2, 4 and 5 of the paper.

    Args:
      study: The records.
      group: The runs.
      profiles: The result of ``layer_profiles``, not empty.
      kind: Which extreme it is.

    Returns:
      The picture: a panel for the end of training, then one for each way of unfreezing
      with all its iterations.
    """
    layers = next(iter(profiles.values())).shape[2] - 1
    thawing = [name for name in (*KINDS[1:], KINDS[0]) if name in profiles]
    final = [name for name in profiles if name != "restart" or "full" not in profiles]
    height = 0.7 + 2.3 * (1 + len(thawing))
    figure = Figure(figsize=(pictures.WIDTH, height), layout="constrained")
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
    if len(final) <= 3:
        panels[0].legend(
            loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0, ncols=len(final)
        )
    else:
        # More do not fit beside the title.
        panels[0].legend(loc="best", fontsize="small")
    for axes, name, letter in zip(panels[1:], thawing, "bcdef", strict=False):
        colors = pictures.ordered_colors(group.iterations)
        for i, color in enumerate(colors):
            _band(axes, x, profiles[name][:, i], color, linewidth=1.2)
        axes.set_title(f"({letter}) {_label(group, name)}: after each iteration")
        pictures.order_bar(figure, axes, group.iterations, "iteration", aspect=20)
    for axes in panels:
        axes.set_ylabel(kind.label)
    ticks = [0, *pictures.layer_ticks(layers)]
    panels[-1].set_xticks(ticks, ["emb.", *map(str, ticks[1:])])
    panels[-1].set_xlabel("layer (emb.: embeddings)")
    pictures.set_title(figure, f"{_setting(study, group)}\n{kind.title}")
    missing = ""
    if "restart" in final:
        missing = "No plain fine-tuning of as many epochs was run for comparison"
        # The last restart is the same only if it trains all layers.
        if group.iterations == layers:
            missing += "; the last iteration with restart takes its place"
        missing += ". "
    return Picture(
        _name(f"unfreezing_{kind.statistic}", group),
        group.task,
        f"{_setting(study, group)}: {kind.description}, for each layer. (a) shows the "
        "end of training, the other panels each iteration of gradual unfreezing, from "
        "the first (dark) to the last (light). Lines are means over the runs, bands "
        f"one standard deviation to either side. {missing}Left out are the heads, "
        "since the classifier starts from random weights; key biases, whose gradients "
        "are only rounding error; and components that are all zero, which have no "
        f"direction. {_sample(group)}",
        figure,
    )


def _band(axes, x, values, color, **style):
    mean = finite_mean(values)
    std = np.sqrt(finite_mean((values - mean) ** 2))
    axes.plot(x, mean, color=color, **style)
    axes.fill_between(x, mean - std, mean + std, color=color, alpha=0.15, linewidth=0)


def _label(group, kind):
    return method_label(group.runs[kind]["method"].iloc[0])


def _setting(study, group):
    threshold = group.threshold
    clip = "no clip" if threshold == "none" else f"threshold {threshold}"
    return (
        f"{task_label(group.task)}, {study.model}, learning rate "
        f"{format_rate(group.learning_rate)}, {clip}"
    )


def _sample(group):
    counts = [
        f"{_label(group, kind)} {len(frame)} ({frame['failed'].sum()} failed)"
        for kind, frame in group.runs.items()
    ]
    return f"Runs: {', '.join(counts)}."


def _name(kind, group):
    added = f"_{group.added}" if group.added else ""
    return (
        f"{kind}_{group.task}{added}_lr={format_rate(group.learning_rate)}"
        f"_max_norm={group.max_norm:g}"
    )
