"""The axis of errors that all checks share: where a claim and its controls stand around the tolerance."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

NAME_ROOM = 24
"""Percent of the axis between names that do not run into each other."""

Entry = dict[str, Any]
"""The entry of a check in `report.json`."""


@dataclass(frozen=True)
class Mark:
    """A dot on the axis, at a place in percent."""

    place: float
    kind: str


@dataclass(frozen=True)
class Strip:
    """Errors of one check: a bar over its seeds (None without a claim), and dots."""

    seeds: tuple[float, float] | None
    marks: tuple[Mark, ...]


def ratio(error: Any, entry: Entry) -> float:
    """`error / tolerance`; NaN counts as infinitely wrong."""
    error, tolerance = float(error), float(entry["tolerance"])
    if error == 0:
        return 0.0
    return error / tolerance if tolerance > 0 and not math.isnan(error) else math.inf


def has_errors(entry: Entry) -> bool:
    """Whether the check got as far as an error and a tolerance."""
    return entry["tolerance"] is not None


class Axis:
    """Logarithmic axis shared by all checks: errors in multiples of each check's tolerance.

    Attributes
    ----------
    low, high
        First and last power of ten.
    """

    def __init__(self, entries: Iterable[Entry]):
        errors = [
            ratio(error, entry)
            for entry in filter(has_errors, entries)
            for error in (entry["error"], *(control["error"] for control in entry["control"]))
        ]
        logs = [math.log10(error) for error in errors if 0 < error < math.inf]
        self.low = max(-9, math.floor(min([-1.5, *logs])))
        self.high = min(9, math.ceil(max([1.5, *logs])))

    @property
    def decades(self) -> list[tuple[int, float]]:
        """Powers of ten and their places."""
        return [(decade, self.place(10.0**decade)) for decade in range(self.low, self.high + 1)]

    @property
    def ends(self) -> list[tuple[int, float]]:
        """First and last power of ten, to be named: not where that would run into the tolerance's name."""
        ends = [self.decades[0], self.decades[-1]]
        return [(decade, x) for decade, x in ends if abs(x - self.place(1.0)) > NAME_ROOM]

    def place(self, ratio: float) -> float:
        """Position in percent; what lies beyond the axis, as infinity and all below zero do, at its end."""
        log = math.log10(ratio) if 0 < ratio < math.inf else (math.inf if ratio > 0 else -math.inf)
        log = min(max(log, self.low), self.high)
        return round(3 + 94 * (log - self.low) / (self.high - self.low), 2)

    def strip(self, entry: Entry, *, claim: bool, controls: Sequence[dict[str, Any]] = ()) -> Strip:
        """Dots of controls, and with `claim` that of the claim's worst seed and a bar over all seeds."""
        marks = [
            Mark(self.place(ratio(c["error"], entry)), "control" if c["refuted"] else "control missed")
            for c in controls
        ]
        if not claim:
            return Strip(None, tuple(marks))
        seeds = [self.place(ratio(error, entry)) for error in entry["errors_by_seed"]]
        worst = ratio(entry["error"], entry)
        marks.append(Mark(self.place(worst), "measured" if worst <= 1 else "measured missed"))
        return Strip((min(seeds), max(seeds)), tuple(marks))
