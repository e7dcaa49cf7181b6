"""What all figures share: their style, their colours and their files."""

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

# Okabe and Ito's palette, which the colour-blind tell apart.
PALETTE = "#D55E00 #E69F00 #009E73 #56B4E9 #0072B2 #CC79A7 #000000 #999999".split()
STYLE = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.titlesize": 10,
    "legend.frameon": False,
    # The same records give the same file, byte for byte.
    "svg.hashsalt": "cwgnc",
    # A dollar in the name of a file or method begins no formula.
    "text.parse_math": False,
}
SMALL = STYLE | {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.linewidth": 0.6,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "lines.linewidth": 1,
}
"""The style of figures of many small panels."""
WIDTH = 7.4
"""Of a figure, in inches."""


@dataclasses.dataclass(frozen=True)
class Picture:
    """A figure under the name of its files."""

    name: str
    task: str
    caption: str
    """What is seen, for those who read the report and those who cannot see it."""
    figure: Figure

    def write(self, folder: Path) -> list[Path]:
        """Writes the PNG and the SVG file."""
        stem = file_stem(self.name)
        paths = [folder / f"{stem}.{kind}" for kind in ("png", "svg")]
        with rc_context(STYLE):
            self.figure.savefig(paths[0], dpi=150)
            self.figure.savefig(paths[1], dpi=150, metadata={"Date": None})
        return paths


def file_stem(name: str) -> str:
    """The name as that of a file in the folder it is written to, whatever is in it."""
    stem = re.sub(r"[^\w.=+-]", "_", name, flags=re.ASCII)[:100]
    # Names that differ are those of different files.
    return stem if stem == name else f"{stem}_{zlib.crc32(name.encode()):08x}"


def set_title(figure: Figure, title: str) -> None:
    """Writes the title over the whole figure."""
    figure.suptitle(title, x=0.01, horizontalalignment="left")


def ordered_colors(number: int) -> list:
    """Returns so many colours that tell an order, none too pale to print."""
    return list(colormaps["viridis"](np.linspace(0, 0.9, number)))


def order_bar(
    figure: Figure, axes: Any, number: int, label: str, **shape: float
) -> None:
    """Draws the key to ``ordered_colors``: things counted from 1, the first lowest."""
    edges = np.arange(number + 1) + 0.5
    scale = ScalarMappable(
        BoundaryNorm(edges, number), ListedColormap(ordered_colors(number))
    )
    bar = figure.colorbar(
        *(scale, None, axes),
        ticks=layer_ticks(number),
        label=label,
        pad=0.015,
        **shape,
    )
    bar.minorticks_off()
    bar.ax.tick_params(length=0)
    bar.outline.set_visible(False)


def layer_ticks(number: int) -> list[int]:
    """Returns which of so many layers, or iterations, a tick is written at."""
    every = 1 if number <= 12 else 2 if number <= 24 else 6
    return list(range(every, number + 1, every))
