"""The norms of the components of one cell over the steps."""

import math

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import (
    MaxNLocator,
    NullFormatter,
    NullLocator,
    StrMethodFormatter,
)

from cwgnc_train.analysis import pictures
from cwgnc_train.analysis.component_courses import module_label
from cwgnc_train.analysis.convergence import finite_mean
from cwgnc_train.analysis.pictures import PALETTE, Picture
from cwgnc_train.analysis.racing_figures import Race

_PANELS_PER_PAGE = 16
_NORMS = {
    "grad_norm": "gradient norm before the clip",
    "param_norm": "parameter norm",
}


def draw_norms_by_type(race: Race, statistic: str, everything: bool) -> list[Picture]:
    """Draws norms over the steps, with a panel per component type and a line per layer.

    Args:
      race: The runs.
      statistic: grad_norm or param_norm.
      everything: Whether to draw all component types, not only kernels.

    Returns:
      The pictures; none if there is nothing to draw.
    """
    measured = race.measured
    colors = pictures.ordered_colors(measured.layers)
    panels = []
    for kind in race.layer_components():
        if everything or kind.leaf == "kernel":
            lines = [
                (place, colors[measured.components[place].depth - 1], "-")
                for place in race.layer_places(kind.kind)
            ]
            panels.append((kind.label, lines))

    def key(figure, axes):
        pictures.order_bar(
            figure, axes, measured.layers, "layer", shrink=0.6, aspect=40
        )

    types = "component type" if everything else "type of kernel"
    caption = (
        f"{race.setting}: {_NORMS[statistic]} over the steps. Each panel is a {types}, "
        "each line a layer, from the lowest (dark) to the highest (light). Embeddings "
        "and heads are left out. "
    )
    return _pages(race, statistic, f"{statistic}_by_type", panels, caption, key)


def draw_norms_by_layer(race: Race, statistic: str) -> list[Picture]:
    """Draws norms over the steps, with a panel per layer and a line per component type.

    Args:
      race: The runs.
      statistic: grad_norm or param_norm.

    Returns:
      The pictures.
    """
    measured = race.measured
    outside: dict[str, str] = {}
    inside: dict[str, str] = {}
    panels = []
    for depth in sorted({part.depth for part in measured.components}):
        lines = []
        colors = inside if 1 <= depth <= measured.layers else outside
        for place in measured.places(depth=depth):
            part = measured.components[place]
            if not part.is_key_bias:
                unused = PALETTE[len(colors) % len(PALETTE)]
                color = colors.setdefault(part.module, unused)
                lines.append((place, color, "--" if part.leaf == "bias" else "-"))
        label = race.depth_label(depth)
        panels.append((f"layer {label}" if label.isdigit() else label, lines))

    def key(figure, axes):
        legend = {"alignment": "left", "fontsize": 7, "title_fontsize": 8}
        for colors, title, side, columns in (
            (outside, "embeddings and heads", "right", 2),
            (inside, "layers (biases dashed)", "left", 3),
        ):
            figure.legend(
                [Line2D([], [], color=color) for color in colors.values()],
                map(module_label, colors),
                loc=f"outside lower {side}",
                ncols=columns,
                title=title,
                columnspacing=1.2,
                **legend,
            )

    caption = (
        f"{race.setting}: {_NORMS[statistic]} over the steps. Each panel is a layer, "
        "each line a component type; biases are dashed. Key biases are left out, since "
        "their gradients are only rounding error. "
    )
    return _pages(race, statistic, f"{statistic}_by_layer", panels, caption, key)


def _pages(race, statistic, name, panels, caption, key):
    across = 2 if len(race.sides) == 2 else 3
    pages = math.ceil(len(panels) / _PANELS_PER_PAGE)
    drawn = []
    for page in range(pages):
        size = math.ceil(len(panels) / pages / across) * across
        shown = panels[page * size : (page + 1) * size]
        figure = _page(race, statistic, shown, across, key)
        part = f", part {page + 1} of {pages}" if pages > 1 else ""
        what = f"{_NORMS[statistic].capitalize()}: {', '.join(race.titles)}"
        pictures.set_title(figure, f"{race.setting}\n{what}{part}")
        full_name = race.name(f"{name}_{page + 1}" if pages > 1 else name)
        drawn.append(Picture(full_name, race.cell.task, caption + race.sample, figure))
    return drawn


def _page(race, statistic, panels, across, key):
    sides = len(race.sides)
    rows = math.ceil(len(panels) / across)
    figure = Figure(figsize=(pictures.WIDTH, 1.3 + 1.15 * rows), layout="constrained")
    grid = figure.subplots(rows, across * sides, sharex=True, squeeze=False)
    means = [
        _mean_over_runs(courses, statistic, len(race.measured.components))
        for _, courses in race.sides
    ]
    for axes in grid.flat[len(panels) * sides :]:
        axes.set_axis_off()
    for i, (label, lines) in enumerate(panels):
        group = grid.flat[i * sides : (i + 1) * sides]
        for side, (axes, (steps, values)) in enumerate(zip(group, means, strict=True)):
            axes.set_yscale("log")
            if side:
                axes.sharey(group[0])
                axes.tick_params("y", labelleft=False)
            for place, color, style in lines:
                axes.plot(steps, values[:, place], color=color, linestyle=style)
            failed = "failed" if race.sides[side][0] else "successful"
            title = "" if side else label
            axes.set_title(f"{title}\n{failed}" if sides > 1 else title)
            if i + across >= len(panels):
                axes.tick_params("x", labelbottom=True)
                axes.set_xlabel("step")
        _set_ticks(group[0])
    key(figure, list(grid.flat))
    figure.supylabel(f"{_NORMS[statistic]} (log)", fontsize=8)
    return figure


def _set_ticks(axes):
    low, high = axes.get_ylim()
    # Over little more than a decade, powers of ten are too few ticks to read.
    if high < 20 * low:
        axes.yaxis.set_major_locator(MaxNLocator(3))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_locator(NullLocator())
    else:
        axes.yaxis.set_minor_formatter(NullFormatter())


def _mean_over_runs(courses, statistic, size):
    """Averages at each step over the runs that measured it; returns steps and means."""
    steps = np.unique(np.concatenate([course.steps for course in courses]))
    values = np.full((len(courses), len(steps), size), np.nan)
    for i, course in enumerate(courses):
        values[i, np.searchsorted(steps, course.steps)] = getattr(course, statistic)
    means = finite_mean(values)
    # A logarithmic axis cannot show the zero gradients of frozen components.
    return steps, np.where(means > 0, means, np.nan)
