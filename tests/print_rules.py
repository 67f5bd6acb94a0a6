"""What a figure needs to be read on paper, in grey, without its caption."""

import itertools

from matplotlib.lines import Line2D

from figures import style

LEAST_CONTRAST = 3.0
"""Of every line to the paper: WCAG 2.2, 1.4.11."""
LEAST_STEP = 1.5
"""Contrast of two lines that nothing but their colour tells apart."""
LEAST_WIDTH = 0.8
"""Difference in width, in points, that tells two lines apart."""


def assert_fit_for_print(figure) -> None:
    """Axes are named, lines stand out from the paper, and legends tell their lines apart without hue."""
    for axes in figure.axes:
        if not axes.get_visible() or not axes.has_data():
            continue
        name = axes.get_title() or axes.get_ylabel()
        assert _named(axes, "x"), f"{name}: the horizontal axis has no name"
        assert axes.get_title() or _named(axes, "y"), f"{name}: the vertical axis has no name"
        for line in axes.get_lines():
            colour = line.get_color()
            assert style.contrast(colour) >= LEAST_CONTRAST, f"{name}: {colour} is too pale"
    for legend in [*figure.legends, *(axes.get_legend() for axes in figure.axes if axes.get_legend())]:
        entries = [entry for entry in legend.legend_handles if isinstance(entry, Line2D)]
        for one, other in itertools.combinations(entries, 2):
            assert _apart(one, other), f"{one.get_label()!r} and {other.get_label()!r} differ in hue only"


def _apart(one: Line2D, other: Line2D) -> bool:
    """Whether two lines differ in dashes, markers, transparency, width or lightness."""
    wide = abs(one.get_linewidth() - other.get_linewidth()) >= LEAST_WIDTH
    light = style.contrast(one.get_color(), other.get_color()) >= LEAST_STEP
    return _shape(one) != _shape(other) or wide or light


def _named(axes, which: str) -> bool:
    """Whether an axis, or one that shares it, has a label."""
    shared = axes.get_shared_x_axes() if which == "x" else axes.get_shared_y_axes()
    return any(getattr(other, f"get_{which}label")() for other in shared.get_siblings(axes))


def _shape(line: Line2D) -> tuple:
    dashes = getattr(line, "_dash_pattern", line.get_linestyle())
    return (str(dashes), line.get_marker(), line.get_alpha())
