"""The figures of convergence racing, for one cell each."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from matplotlib import colormaps
from matplotlib.figure import Figure

from cwgnc_train.analysis import pictures
from cwgnc_train.analysis.cells import Cell
from cwgnc_train.analysis.component_courses import (
    Component,
    ComponentCourses,
    Course,
)
from cwgnc_train.analysis.convergence import (
    distance_shares,
    finite_mean,
    halfway_steps,
    no_key_biases,
)
from cwgnc_train.analysis.labels import (
    format_rate,
    method_label,
    run_count,
    task_label,
)
from cwgnc_train.analysis.pictures import Picture

_POINTS = 240


class Race(NamedTuple):
    """The runs of a cell, as its figures need them."""

    model: str
    cell: Cell
    steps: int
    """The number of steps of each run."""
    sides: list[tuple[bool, list[Course]]]
    """Failed runs (True) and successful ones (False), as far as there are any."""
    measured: ComponentCourses

    def name(self, kind: str) -> str:
        """Returns the name of a picture."""
        cell = self.cell
        return (
            f"{kind}_{cell.task}_{cell.method}_lr={format_rate(cell.learning_rate)}"
            f"_max_norm={cell.max_norm:g}"
        )

    @property
    def setting(self) -> str:
        """The cell in words."""
        cell = self.cell
        clip = f"threshold {cell.threshold}" if cell.clips else "no clip"
        return (
            f"{task_label(cell.task)}, {self.model}, {method_label(cell.method)}, "
            f"learning rate {format_rate(cell.learning_rate)}, {clip}"
        )

    @property
    def titles(self) -> list[str]:
        """The titles of the sides."""
        titles = [run_count(len(courses), failed) for failed, courses in self.sides]
        if len(titles) == 1:
            other = "none has succeeded" if self.sides[0][0] else "none has failed"
            return [f"{titles[0]}; {other}"]
        return titles

    @property
    def sample(self) -> str:
        """A sentence about the runs that are averaged."""
        if len(self.sides) == 1:
            return f"Means over {self.titles[0]}."
        return f"Means over {self.titles[0]} (left) and {self.titles[1]} (right)."

    def layer_components(self) -> list[Component]:
        """Returns one component of each type that layers have, sorted."""
        kinds = {}
        for part in self.measured.components:
            if 1 <= part.depth <= self.measured.layers:
                kinds.setdefault(part.kind, part)
        return sorted(kinds.values(), key=lambda part: part.rank)

    def layer_places(self, kind: str) -> list[int]:
        """Returns the indices of the components of a type, layer by layer."""
        return [
            place
            for place in self.measured.places(kind=kind)
            if 1 <= self.measured.components[place].depth <= self.measured.layers
        ]

    def depth_label(self, depth: int) -> str:
        """Returns the name of a depth."""
        names = {0: "embeddings", self.measured.layers + 1: "heads"}
        return names.get(int(depth), str(depth))


def draw_race(race: Race) -> Picture:
    """Draws how far every component has come at every step."""
    measured = race.measured
    rows = [i for i in measured.places() if no_key_biases(measured)[i]]
    depths = np.array([measured.components[i].depth for i in rows])
    grid = np.linspace(0, race.steps, _POINTS + 1)
    height = float(np.clip(1.3 + 0.055 * len(rows), 3, 9.2))
    figure, panels = _side_by_side(race, height)
    for axes, (_, courses) in zip(panels, race.sides, strict=True):
        shares = finite_mean(
            np.stack([distance_shares(c.steps, c.rmsd, grid) for c in courses])
        )
        mesh = _mesh(
            axes,
            shares[:, rows].T,
            extent=(0, race.steps, -0.5, len(rows) - 0.5),
            limits=(0, 1),
        )
        places = np.arange(len(rows))
        half = _mean_halfway(courses)[rows]
        axes.vlines(half, places - 0.5, places + 0.5, color="white", linewidth=1.4)
        axes.hlines(
            np.flatnonzero(np.diff(depths)) + 0.5,
            xmin=0,
            xmax=race.steps,
            color="white",
            linewidth=0.4,
        )
        axes.set(xlabel="step", xlim=(0, race.steps))
        axes.tick_params("y", length=0)
    labels = {depth: race.depth_label(depth) for depth in np.unique(depths)}
    middles = [np.flatnonzero(depths == depth).mean() for depth in labels]
    panels[0].set_yticks(middles, list(labels.values()))
    bar = figure.colorbar(
        mesh,
        ax=list(panels),
        location="bottom",
        label="distance from the initial weights, as a share of the final distance",
        aspect=50,
        shrink=0.7,
        pad=0.01,
    )
    bar.outline.set_visible(False)
    bar.ax.axvline(0.5, color="white", linewidth=1.4)
    pictures.set_title(figure, f"{race.setting}\nThe race of the components")
    return Picture(
        race.name("race"),
        race.cell.task,
        f"{race.setting}: how far every component has come. Each row is a component, "
        "from the embeddings at the bottom to the heads at the top. Within a layer, "
        "kernels come first, then scales, then biases, each in the order of the "
        "forward pass. The colour is the root-mean-square difference from the initial "
        "weights, as a share of its value at the end of the run. A white tick marks "
        "where a component is halfway; if all ticks are in one line, all components "
        "converge at the same pace. Grey components do not move, or are not finite. "
        f"Key biases are left out. {race.sample}",
        figure,
    )


def draw_halfway(race: Race) -> list[Picture]:
    """Draws when each component type of each layer is halfway.

    Args:
      race: The runs.

    Returns:
      The picture; nothing if no component of a layer was measured.
    """
    measured = race.measured
    kinds = [kind for kind in race.layer_components() if not kind.is_key_bias]
    if not kinds:
        return []
    layers = measured.layers
    grids = []
    for _, courses in race.sides:
        half = _mean_halfway(courses)
        grid = np.full((layers, len(kinds)), np.nan)
        for column, kind in enumerate(kinds):
            for place in race.layer_places(kind.kind):
                depth = measured.components[place].depth
                grid[depth - 1, column] = 100 * half[place] / race.steps
        grids.append(grid)
    finite = np.concatenate([grid[np.isfinite(grid)] for grid in grids])
    limits = (finite.min(), finite.max()) if len(finite) else (0, 100)
    figure, panels = _side_by_side(race, 2.4 + max(1.2, 0.16 * layers))
    for axes, grid in zip(panels, grids, strict=True):
        mesh = _mesh(
            axes,
            grid,
            extent=(-0.5, len(kinds) - 0.5, 0.5, layers + 0.5),
            limits=limits,
        )
        axes.set_xticks(range(len(kinds)), [kind.label for kind in kinds], rotation=90)
        axes.tick_params(length=0)
    panels[0].set_yticks(pictures.layer_ticks(layers))
    bar = figure.colorbar(
        mesh,
        ax=list(panels),
        label="halfway [% of the steps]",
        aspect=30,
        pad=0.015,
    )
    bar.outline.set_visible(False)
    pictures.set_title(figure, f"{race.setting}\nWhen components are halfway")
    picture = Picture(
        race.name("halfway"),
        race.cell.task,
        f"{race.setting}: the step at which each component of a layer reaches half its "
        "final root-mean-square difference from the initial weights, in percent of "
        "the run's steps. If all colours are the same, all components converge at the "
        "same pace. Grey components do not move, or are not finite. Key biases, "
        f"embeddings and heads are left out. {race.sample}",
        figure,
    )
    return [picture]


def _mean_halfway(courses: list[Course]) -> Float[np.ndarray, " components"]:
    return finite_mean(np.stack([halfway_steps(c.steps, c.rmsd) for c in courses]))


def _side_by_side(race, height):
    figure = Figure(figsize=(pictures.WIDTH, height), layout="constrained")
    panels = figure.subplots(1, len(race.sides), sharey=True, squeeze=False)[0]
    for axes, title in zip(panels, race.titles, strict=True):
        axes.set_title(title)
    panels[0].set_ylabel("layer")
    return figure, panels


def _mesh(axes, values, extent, limits):
    low, high = limits
    mesh = axes.imshow(
        np.ma.masked_invalid(values),
        extent=extent,
        origin="lower",
        aspect="auto",
        interpolation="none",
        cmap=colormaps["cividis"].with_extremes(bad="0.85"),
        vmin=low,
        vmax=high,
    )
    axes.spines[:].set_visible(False)
    return mesh
