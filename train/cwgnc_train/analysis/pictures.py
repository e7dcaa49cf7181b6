"""The style, colours and files that all figures share."""

import dataclasses
import re
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps, rc_context
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure

# The palette of Okabe and Ito, which colour-blind readers can tell apart.
PALETTE = "#D55E00 #E69F00 #009E73 #56B4E9 #0072B2 #CC79A7 #000000 #999999".split()
STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.titlesize": 10,
    "legend.frameon": False,
    # The same records give the same file, byte for byte.
    "svg.hashsalt": "cwgnc",
    # A dollar in the name of a file or method does not start a formula.
    "text.parse_math": False,
}
SMALL: dict[Any, Any] = STYLE | {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.linewidth": 0.6,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "lines.linewidth": 1,
}
"""The style of figures with many small panels."""
WIDTH = 7.4
"""The width of a figure in inches."""


@dataclasses.dataclass(frozen=True)
class Picture:
    """A figure, its caption and the name of its files."""

    name: str
    task: str
    caption: str
    """What the figure shows, also for readers who cannot see it."""
    figure: Figure

    def write(self, folder: Path) -> list[Path]:
        """Writes the PNG and the SVG file; returns their paths."""
        stem = file_stem(self.name)
        paths = [folder / f"{stem}.{kind}" for kind in ("png", "svg")]
        with rc_context(STYLE):
            self.figure.savefig(paths[0], dpi=150)
            # The second file has the layout of the first.
            self.figure.set_layout_engine("none")
            self.figure.savefig(paths[1], dpi=150, metadata={"Date": None})
        return paths


def file_stem(name: str) -> str:
    """Makes a safe file name out of any name; different names stay different."""
    stem = re.sub(r"[^\w.=+-]", "_", name, flags=re.ASCII)[:100]
    return stem if stem == name else f"{stem}_{zlib.crc32(name.encode()):08x}"


def set_title(figure: Figure, title: str) -> None:
    """Writes a title above the whole figure."""
    figure.suptitle(title, x=0.01, horizontalalignment="left")


def legend_beside(axes: Any, **settings: Any) -> None:
    """Draws the legend to the right of the axes."""
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), borderaxespad=0, **settings)


def ordered_colors(number: int) -> list:
    """Returns colours that show an order, none of them too pale to print."""
    return list(colormaps["viridis"](np.linspace(0, 0.9, number)))


def order_bar(figure: Figure, axes: Any, number: int, label: str, **shape: Any) -> None:
    """Draws the key to ``ordered_colors``, counting from 1 at the bottom."""
    edges = np.arange(number + 1) + 0.5
    scale = ScalarMappable(
        BoundaryNorm(edges, number), ListedColormap(ordered_colors(number))
    )
    bar = figure.colorbar(
        scale,
        ax=axes,
        ticks=layer_ticks(number),
        label=label,
        pad=0.015,
        **shape,
    )
    bar.minorticks_off()
    bar.ax.tick_params(length=0)
    bar.outline.set_visible(False)


def layer_ticks(number: int) -> list[int]:
    """Returns the layers, or iterations, that get a tick."""
    every = 1 if number <= 12 else 2 if number <= 24 else 6
    return list(range(every, number + 1, every))
