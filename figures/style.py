"""How every figure looks: one palette, one set of sizes, drawn without a display.

Colours are from Okabe and Ito's palette, which stays apart under the common colour vision
deficiencies; what they stand for is the same in every figure.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

ORIGINAL = "#0072B2"
COMPRESSED = "#D55E00"
EXACT_RANK = "#009E73"
OTHER_RANK = "#CC79A7"
DARK = "#222222"
GRID = "#DDDDDD"

MEASURED: dict[str, Any] = {"linewidth": 2.0, "solid_capstyle": "round"}
PREDICTED: dict[str, Any] = {"color": DARK, "linewidth": 1.1, "linestyle": (0, (4, 2.5))}

WIDE = 9.0  # inches; 900 pixels on a page at 100 pixels an inch
DPI = 200

RC: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "mathtext.fontset": "dejavusans",
    "font.size": 9.5,
    "axes.titlesize": 10.5,
    "axes.labelsize": 9.5,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#555555",
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": "#333333",
    "ytick.color": "#333333",
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "svg.hashsalt": "lowdim_jax",
}


def new_figure(width: float = WIDE, height: float = 3.4) -> Figure:
    """An empty figure of a size in inches, laid out by constraints."""
    return Figure(figsize=(width, height), layout="constrained")


def shades(colour: str, count: int) -> list[tuple[float, float, float, float]]:
    """`count` shades of a colour, dark to light: one for each component, in order."""
    full = np.array(to_rgb(colour))
    ends = [0.72 * full, full, 0.25 * full + 0.75]
    ramp = LinearSegmentedColormap.from_list("shades", ends)
    return [ramp(position) for position in np.linspace(0, 0.92, count)]


def legend_above(figure: Figure, handles: Iterable[Any], **options: Any) -> None:
    """One legend for all panels, in a row above them."""
    handles = list(handles)
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), **options)


def thousands(axes: Axes) -> None:
    """Few ticks on the horizontal axis, 12000 written as 12,000."""
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter("{x:,.0f}")
