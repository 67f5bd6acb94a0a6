"""How every figure looks: one palette, one set of sizes, drawn without a display.

Colours are from Okabe and Ito's palette, which stays apart under the common colour vision
deficiencies; what they stand for is the same in every figure. Every line has a contrast of at least 3:1 to
the paper, and lines that share a panel differ in more than their hue, for print in grey.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

ORIGINAL = "#0072B2"
COMPRESSED = "#D55E00"
EXACT_RANK = "#009E73"
OTHER_RANK = "#CC79A7"
SECOND = "#3A88C0"
"""A second line of the original network."""
DARK = "#222222"
GREY = "#777777"
GRID = "#DDDDDD"
DARKEST, LIGHTEST = 13.0, 3.05
"""Contrasts to white of the first and the last of several shades."""

MEASURED: dict[str, Any] = {"linewidth": 2.0, "solid_capstyle": "round"}
THIN: dict[str, Any] = {"linewidth": 1.4}
THICK: dict[str, Any] = {"linewidth": 2.8}
"""The original and the compressed network where both are solid lines: apart in grey, too."""
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


def luminance(colour: Any) -> float:
    """Relative luminance of a colour, from 0 for black to 1 for white (WCAG 2.2)."""
    channels = np.array(to_rgb(colour))
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def contrast(colour: Any, other: Any = "white") -> float:
    """Contrast ratio of two colours, from 1 to 21 (WCAG 2.2)."""
    low, high = sorted((luminance(colour), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def shades(colour: str, count: int) -> list[tuple[float, float, float]]:
    """`count` shades of a colour, dark to light: one for each component, in order, even in contrast."""
    full = np.array(to_rgb(colour))
    to_colour, to_white = np.linspace(0, 1, 60)[:, None], np.linspace(1, 0, 60)[:, None]
    ramp = np.concatenate([to_colour * full, 1 - to_white * (1 - full)])
    known = [-np.log(contrast(shade)) for shade in ramp]  # grows along the ramp
    wanted = -np.linspace(np.log(DARKEST), np.log(LIGHTEST), count)
    red, green, blue = (np.interp(wanted, known, channel).tolist() for channel in ramp.T)
    return list(zip(red, green, blue, strict=True))


def legend_above(figure: Figure, handles: Iterable[Any], **options: Any) -> None:
    """One legend for all panels, in a row above them."""
    handles = list(handles)
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), **options)


def thousands(axes: Axes) -> None:
    """Few ticks on the horizontal axis, 12000 written as 12,000."""
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter("{x:,.0f}")
