"""The figures of convergence racing, one cell of a study each."""

import math
from typing import NamedTuple

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import (
    MaxNLocator,
    NullFormatter,
    NullLocator,
    StrMethodFormatter,
)

from train.analysis.cells import Cell
from train.analysis.components import Components, Course, module_label
from train.analysis.convergence import (
    halfway_steps,
    mean_of_finite,
    progress,
    racers,
)
from train.analysis.labels import (
    cell_threshold,
    clips,
    method_label,
    rate,
    task_label,
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

_PANELS_PER_PAGE = 16
_POINTS = 240
_NORMS = {
    "grad_norm": "gradient norm before the clip",
    "param_norm": "parameter norm",
}


class Race(NamedTuple):
    """The runs of a cell, as their figures want them."""

    model: str
    cell: Cell
    steps: int
    """How many steps each run has."""
    sides: list[tuple[bool, list[Course]]]
    """The failed runs and the successful ones, of each kind that there is."""
    measured: Components

    def name(self, kind: str) -> str:
        """Names a picture."""
        cell = self.cell
        return (
            f"{kind}_{cell.task}_{cell.method}_lr={rate(cell.learning_rate)}"
            f"_max_norm={cell.max_norm:g}"
        )

    @property
    def setting(self) -> str:
        """The cell in words."""
        cell = self.cell
        words = f"{method_label(cell.method)}, learning rate {rate(cell.learning_rate)}"
        clip = f"threshold {cell_threshold(cell.method, cell.max_norm)}"
        clip = clip if clips(cell.method, cell.max_norm) else "no clip"
        return f"{task_label(cell.task)}, {self.model}, {words}, {clip}"

    @property
    def titles(self) -> list[str]:
        """What each side shows."""
        titles = [_runs(failed, len(courses)) for failed, courses in self.sides]
        if len(titles) == 1:
            other = "none has succeeded" if self.sides[0][0] else "none has failed"
            return [f"{titles[0]}; {other}"]
        return titles

    @property
    def sample(self) -> str:
        """What the means are taken over, in a sentence."""
        if len(self.sides) == 1:
            return f"Means over {self.titles[0]}."
        return f"Means over {self.titles[0]} (left) and {self.titles[1]} (right)."


def draw_race(race: Race) -> Picture:
    """Draws how far every component has come at every step."""
    measured = race.measured
    rows = [i for i in measured.places() if racers(measured)[i]]
    depths = np.array([measured.components[i].depth for i in rows])
    grid = np.linspace(0, race.steps, _POINTS + 1)
    height = float(np.clip(1.3 + 0.055 * len(rows), 3, 9.2))
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    panels = figure.subplots(1, len(race.sides), sharey=True, squeeze=False)[0]
    colors = colormaps["cividis"].with_extremes(bad="0.85")
    for axes, title, (_, courses) in zip(panels, race.titles, race.sides, strict=True):
        shares = mean_of_finite(
            np.stack([progress(c.steps, c.rmsd, grid) for c in courses])
        )
        half = mean_of_finite(
            np.stack([halfway_steps(c.steps, c.rmsd) for c in courses])
        )
        mesh = axes.imshow(
            np.ma.masked_invalid(shares[:, rows].T),
            extent=(0, race.steps, -0.5, len(rows) - 0.5),
            origin="lower",
            aspect="auto",
            interpolation="none",
            cmap=colors,
            vmin=0,
            vmax=1,
        )
        places = np.arange(len(rows))
        axes.vlines(
            half[rows], places - 0.5, places + 0.5, color="white", linewidth=1.4
        )
        axes.hlines(
            np.flatnonzero(np.diff(depths)) + 0.5,
            *(0, race.steps),
            color="white",
            linewidth=0.4,
        )
        axes.set(title=title, xlabel="step", xlim=(0, race.steps))
        axes.spines[:].set_visible(False)
        axes.tick_params("y", length=0)
    middles = [np.flatnonzero(depths == depth).mean() for depth in np.unique(depths)]
    panels[0].set_yticks(
        middles, [_depth_label(measured, depth) for depth in np.unique(depths)]
    )
    panels[0].set_ylabel("layer")
    bar = figure.colorbar(
        mesh,
        ax=list(panels),
        location="bottom",
        label="distance to the weights at the start, as a share of the final distance",
        aspect=50,
        shrink=0.7,
        pad=0.01,
    )
    bar.outline.set_visible(False)
    bar.ax.axvline(0.5, color="white", linewidth=1.4)
    set_title(figure, f"{race.setting}\nThe race of the components")
    return Picture(
        race.name("race"),
        race.cell.task,
        f"{race.setting}: how far every component has come. A row is a component, from "
        "the embeddings at the bottom to the heads on top; in a layer come kernels, "
        "then scales, then biases, each in the order of the forward pass. Colour is "
        "the root-mean-square difference to the weights at the start, as a share of "
        "what it is at the run's end; the white tick is where a component is half-way. "
        "Ticks in one line: all converge in step. Grey: the component does not move, "
        f"or is not a number. Key biases are left out. {race.sample}",
        figure,
    )


def draw_halfway(race: Race) -> Picture:
    """Draws when each component type of each layer is half-way."""
    measured = race.measured
    kinds = [kind for kind in _layer_kinds(measured) if not kind.is_key_bias]
    layers = measured.layers
    tables = []
    for _, courses in race.sides:
        half = mean_of_finite(
            np.stack([halfway_steps(c.steps, c.rmsd) for c in courses])
        )
        table = np.full((layers, len(kinds)), np.nan)
        for column, kind in enumerate(kinds):
            for place in measured.places(kind=kind.kind):
                depth = measured.components[place].depth
                if 1 <= depth <= layers:
                    table[depth - 1, column] = 100 * half[place] / race.steps
        tables.append(table)
    finite = np.concatenate([table[np.isfinite(table)] for table in tables])
    low, high = (finite.min(), finite.max()) if len(finite) else (0, 100)
    height = 2.4 + max(1.2, 0.16 * layers)
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    panels = figure.subplots(1, len(tables), sharey=True, squeeze=False)[0]
    colors = colormaps["cividis"].with_extremes(bad="0.85")
    for axes, title, table in zip(panels, race.titles, tables, strict=True):
        mesh = axes.imshow(
            np.ma.masked_invalid(table),
            origin="lower",
            aspect="auto",
            interpolation="none",
            cmap=colors,
            vmin=low,
            vmax=high,
            extent=(-0.5, len(kinds) - 0.5, 0.5, layers + 0.5),
        )
        axes.set_xticks(range(len(kinds)), [kind.label for kind in kinds], rotation=90)
        axes.set_title(title)
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)
    panels[0].set_yticks(layer_ticks(layers))
    panels[0].set_ylabel("layer")
    bar = figure.colorbar(
        *(mesh, None, list(panels)),
        label="half-way [% of the steps]",
        aspect=30,
        pad=0.015,
    )
    bar.outline.set_visible(False)
    set_title(figure, f"{race.setting}\nWhere components are half-way")
    return Picture(
        race.name("halfway"),
        race.cell.task,
        f"{race.setting}: the step at which a component of a layer reaches half its "
        "final root-mean-square difference to the weights at the start, in per cent of "
        "the run's steps. One colour all over: all converge in step. Grey: the "
        "component does not move, or is not a number. Key biases, embeddings and heads "
        f"are left out. {race.sample}",
        figure,
    )


def draw_norms_by_type(race: Race, statistic: str, everything: bool) -> list[Picture]:
    """Draws the norms over steps, a panel a component type and a line a layer.

    Args:
      race: The runs.
      statistic: grad_norm or param_norm.
      everything: Draw all component types, not the kernels only.

    Returns:
      The pictures; none if there is no layer.
    """
    measured = race.measured
    colors = ordered_colors(measured.layers)
    panels = []
    for kind in _layer_kinds(measured):
        if everything or kind.leaf == "kernel":
            lines = [
                (place, colors[measured.components[place].depth - 1], "-")
                for place in measured.places(kind=kind.kind)
                if 1 <= measured.components[place].depth <= measured.layers
            ]
            panels.append((kind.label, lines))
    caption = (
        f"{race.setting}: {_NORMS[statistic]} over the steps, a panel a component type "
        f"{'' if everything else 'of the kernels '}and a line a layer, from the lowest "
        "(dark) to the highest (light). Embeddings and heads are not in it. "
    )
    key = lambda figure, axes: order_bar(
        figure, axes, measured.layers, "layer", shrink=0.6, aspect=40
    )
    return _norm_pages(race, statistic, f"{statistic}_by_type", panels, caption, key)


def draw_norms_by_layer(race: Race, statistic: str) -> list[Picture]:
    """Draws the norms over steps, a panel a layer and a line a component type.

    Args:
      race: The runs.
      statistic: grad_norm or param_norm.

    Returns:
      The pictures.
    """
    measured = race.measured
    modules: list[dict[str, str]] = [{}, {}]
    panels = []
    for depth in sorted({part.depth for part in measured.components}):
        lines = []
        colors = modules[1 <= depth <= measured.layers]
        for place in measured.places(depth=depth):
            part = measured.components[place]
            if not part.is_key_bias:
                color = colors.setdefault(
                    *(part.module, PALETTE[len(colors) % len(PALETTE)])
                )
                lines.append((place, color, "--" if part.leaf == "bias" else "-"))
        label = _depth_label(measured, depth)
        panels.append((f"layer {label}" if label.isdigit() else label, lines))

    def key(figure, axes):
        names = ("embeddings and heads", "layers (biases dashed)")
        for colors, name, side in zip(modules, names, ("right", "left"), strict=True):
            handles = [Line2D([], [], color=color) for color in colors.values()]
            figure.legend(
                *(handles, map(module_label, colors)),
                loc=f"outside lower {side}",
                ncols=3 if side == "left" else 2,
                title=name,
                alignment="left",
                fontsize=7,
                title_fontsize=8,
                columnspacing=1.2,
            )

    caption = (
        f"{race.setting}: {_NORMS[statistic]} over the steps, a panel a layer and a "
        "line a component type; biases are dashed. Key biases are left out: their "
        "gradient is zero but for rounding. "
    )
    return _norm_pages(race, statistic, f"{statistic}_by_layer", panels, caption, key)


def _norm_pages(race, statistic, name, panels, caption, key):
    across = 2 if len(race.sides) == 2 else 3
    pages = max(1, math.ceil(len(panels) / _PANELS_PER_PAGE))
    size = math.ceil(len(panels) / pages / across) * across
    pictures = []
    for page in range(pages):
        shown = panels[page * size : (page + 1) * size]
        figure = _norm_page(race, statistic, shown, across, key)
        part = f", part {page + 1} of {pages}" if pages > 1 else ""
        what = f"{_NORMS[statistic].capitalize()}: {', '.join(race.titles)}"
        set_title(figure, f"{race.setting}\n{what}{part}")
        number = f"_{page + 1}" if pages > 1 else ""
        pictures.append(
            Picture(
                race.name(name + number), race.cell.task, caption + race.sample, figure
            )
        )
    return pictures


def _norm_page(race, statistic, panels, across, key):
    sides = len(race.sides)
    rows = math.ceil(len(panels) / across)
    figure = Figure(figsize=(WIDTH, 1.3 + 1.15 * rows), layout="constrained")
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
        _tick(group[0])
    key(figure, list(grid.flat))
    figure.supylabel(f"{_NORMS[statistic]} (log)", fontsize=8)
    return figure


def _tick(axes):
    """Of less than a decade or so, powers of ten are too few ticks to read."""
    low, high = axes.get_ylim()
    if high < 20 * low:
        axes.yaxis.set_major_locator(MaxNLocator(3))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_locator(NullLocator())
    else:
        axes.yaxis.set_minor_formatter(NullFormatter())


def _mean_over_runs(courses, statistic, size):
    """The steps that any of the runs measured, and the means of those that did."""
    steps = np.unique(np.concatenate([course.steps for course in courses]))
    values = np.full((len(courses), len(steps), size), np.nan)
    for i, course in enumerate(courses):
        values[i, np.searchsorted(steps, course.steps)] = getattr(course, statistic)
    means = mean_of_finite(values)
    # A logarithmic axis has no place for the gradient of what is frozen.
    return steps, np.where(means > 0, means, np.nan)


def _layer_kinds(measured):
    kinds = {}
    for part in measured.components:
        if 1 <= part.depth <= measured.layers:
            kinds.setdefault(part.kind, part)
    return sorted(kinds.values(), key=lambda part: part.rank)


def _depth_label(measured, depth):
    names = {0: "embeddings", measured.layers + 1: "heads"}
    return names.get(int(depth), str(depth))


def _runs(failed, number):
    kind = "failed" if failed else "successful"
    return f"{number} {kind} run{'' if number == 1 else 's'}"
