"""Curves as drawings: predicted over measured lines in a small coordinate system, for the report to draw."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from matplotlib.ticker import MaxNLocator

from theory_checks.registry import Curve
from theory_checks.writing import number, power

RAMPS = (
    np.array([[0x51, 0x60, 0xBD], [0x2D, 0x7B, 0xB2], [0x25, 0x92, 0x84], [0x6F, 0x9F, 0x28]]),
    np.array([[0x59, 0x67, 0xC0], [0x30, 0x83, 0xBF], [0x27, 0x9D, 0x8D], [0x7A, 0xAE, 0x2B]]),
)
"""Colours of measured lines, first to last, on a light and on a dark page. Lightness rises, so that they
differ in grey too; every one has a contrast of 3:1 to its page (WCAG 2.2, 1.4.11)."""
MAX_LINES, MAX_POINTS, FEW_POINTS = 10, 400, 16
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 380, 250, 52, 372, 22, 208
THIN = 0.25
"""Points closer than this to the line without them are left out."""


@dataclass(frozen=True)
class Tick:
    """A number on an axis."""

    place: float
    label: str


@dataclass(frozen=True)
class Line:
    """One line: its path, its colours on a light and a dark page, and its points' places if they are few."""

    path: str
    colours: tuple[str, ...]
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Drawing:
    """A curve, ready to be drawn in a box of `WIDTH` × `HEIGHT`."""

    title: str
    xlabel: str
    ylabel: str
    labels: tuple[str, str]
    xticks: tuple[Tick, ...]
    yticks: tuple[Tick, ...]
    measured: tuple[Line, ...]
    predicted: tuple[Line, ...]
    of: int
    box: tuple[int, int, int, int, int, int] = (WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM)

    @property
    def note(self) -> str:
        """What is left out, if anything."""
        return "" if len(self.measured) == self.of else f" ({len(self.measured)} of {self.of})"


def drawing(curve: Curve) -> Drawing:
    """Place a curve's lines and ticks; at most 10 of its lines, of 400 points each."""
    x = np.asarray(curve.x, float)
    measured, predicted = (
        np.asarray(side, float).reshape(len(x), -1) for side in (curve.measured, curve.predicted)
    )
    lines, rows = _some(measured.shape[1], MAX_LINES), _some(len(x), MAX_POINTS)
    xlog, ylog = curve.xlog and bool((x > 0).any()), curve.ylog and bool((measured > 0).any())
    across = _Scale(x[rows], LEFT, RIGHT, log=xlog)
    shown = [side[rows][:, lines if side.shape[1] > 1 else [0]] for side in (measured, predicted)]
    up = _Scale(np.concatenate([side.ravel() for side in shown]), BOTTOM, TOP, log=ylog)
    colours = zip(*[ramp(colours, len(lines)) for colours in RAMPS], strict=True)
    few = len(rows) <= FEW_POINTS
    return Drawing(
        title=curve.title,
        xlabel=curve.xlabel,
        ylabel=curve.ylabel,
        labels=curve.labels,
        xticks=across.ticks(5),
        yticks=up.ticks(5),
        measured=tuple(
            _line(across.place(x[rows]), up.place(y), pair, few)
            for y, pair in zip(shown[0].T, colours, strict=True)
        ),
        predicted=tuple(_line(across.place(x[rows]), up.place(y), (), False) for y in shown[1].T),
        of=measured.shape[1],
    )


class _Scale:
    """From values to places between `start` and `stop`; NaN where a value has none."""

    def __init__(self, values: np.ndarray, start: float, stop: float, *, log: bool):
        self.start, self.stop, self.log = start, stop, log
        finite = self._unit(values)
        finite = finite[np.isfinite(finite)]
        low, high = (finite.min(), finite.max()) if len(finite) else (0.0, 1.0)
        room = 0.03 * (high - low) or 0.5
        self.low, self.high = low - room, high + room

    def place(self, values: np.ndarray) -> np.ndarray:
        fraction = (self._unit(values) - self.low) / (self.high - self.low)
        return self.start + fraction * (self.stop - self.start)

    def ticks(self, count: int) -> tuple[Tick, ...]:
        """Round numbers inside the range: whole powers of ten where a logarithmic range has some."""
        steps = MaxNLocator(count, steps=[1, 2, 5, 10], integer=self.log).tick_values(self.low, self.high)
        inside = [value for value in steps if self.low <= value <= self.high]
        if self.log and len(inside) < 2:
            values = 10.0 ** np.asarray(MaxNLocator(3).tick_values(self.low, self.high))
            values = sorted({float(f"{value:.1g}") for value in values})
            inside = [v for v in np.log10(values) if self.low <= v <= self.high]
            return self._ticks(inside, [number(float(f"{10**v:.3g}")) for v in inside])
        if self.log:
            return self._ticks(inside, [power(round(value)) for value in inside])
        return self._ticks(inside, [number(float(f"{value:.10g}")) for value in inside])

    def _ticks(self, units: list[float], labels: list[str]) -> tuple[Tick, ...]:
        span = self.stop - self.start
        places = (self.start + (unit - self.low) / (self.high - self.low) * span for unit in units)
        return tuple(Tick(round(place, 1), label) for place, label in zip(places, labels, strict=True))

    def _unit(self, values: np.ndarray) -> np.ndarray:
        values = np.asarray(values, float)
        if not self.log:
            return np.where(np.isfinite(values), values, np.nan)
        return np.log10(values, out=np.full_like(values, np.nan), where=np.isfinite(values) & (values > 0))


def _line(x: np.ndarray, y: np.ndarray, colours: tuple[str, ...], few: bool) -> Line:
    points = np.stack([x, y], axis=1)
    pieces = ["M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in _thinned(piece)) for piece in _unbroken(points)]
    dots = tuple((round(a, 1), round(b, 1)) for a, b in points.tolist() if few and a == a and b == b)
    return Line("".join(pieces), colours, dots)


def _unbroken(points: np.ndarray) -> Iterator[np.ndarray]:
    """The stretches of a line between points that have no place."""
    good = np.isfinite(points).all(axis=1)
    edges = np.flatnonzero(np.diff(np.concatenate([[False], good, [False]]).astype(int)))
    for start, stop in edges.reshape(-1, 2):
        yield points[start:stop]


def _thinned(points: np.ndarray) -> np.ndarray:
    """The points that the line needs (Douglas and Peucker's algorithm)."""
    keep = np.zeros(len(points), bool)
    keep[[0, -1]] = True
    spans = [(0, len(points) - 1)]
    while spans:
        first, last = spans.pop()
        if last - first < 2:
            continue
        chord = points[last] - points[first]
        inner = points[first + 1 : last] - points[first]
        length = float(np.hypot(*chord))
        area = np.abs(chord[0] * inner[:, 1] - chord[1] * inner[:, 0])
        away = area / length if length else np.hypot(*inner.T)
        farthest = int(np.argmax(away))
        if away[farthest] > THIN:
            middle = first + 1 + farthest
            keep[middle] = True
            spans += [(first, middle), (middle, last)]
    return points[keep]


def ramp(colours: np.ndarray, count: int) -> list[str]:
    """`count` colours along a ramp, first to last."""
    places = np.linspace(0, len(colours) - 1, count) if count > 1 else np.array([1.0])
    channels = [np.interp(places, range(len(colours)), channel) for channel in colours.T]
    return [f"#{r:02x}{g:02x}{b:02x}" for r, g, b in np.rint(channels).astype(int).T.tolist()]


def _some(count: int, most: int) -> np.ndarray:
    """At most `most` evenly spaced indices below `count`, first and last among them."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int))
