"""`report.html`: entries of `report.json`, and curves, as one page that needs nothing but itself."""

import math
from collections.abc import Iterator, Sequence
from functools import cache
from statistics import median
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined

from theory_checks.curves import drawing
from theory_checks.strips import Axis, Entry, has_errors, ratio
from theory_checks.typeset import claimed
from theory_checks.writing import drawn_mathematics, mathematics, number, power, seconds, values

if TYPE_CHECKING:
    from theory_checks.registry import Curve

LABELS = {
    "pass": "pass", "fail": "FAIL", "vacuous": "VACUOUS", "error": "ERROR",
    "not-applicable": "n/a", "not run": "not run", "no check": "no check",
}  # fmt: skip
HOLDS = {"pass": 1, "not-applicable": 2}
"""Outcomes that are no failure, in the order in which they come after those that are."""
MAX_ROWS = 12


def page(report: dict[str, Any], curves: Sequence[Sequence["Curve"]]) -> str:
    """The page of a report, and of the curves of each of its checks; those that do not hold come first."""
    checks = [
        (entry, [drawing(curve) for curve in drawn])
        for entry, drawn in zip(report["checks"], curves, strict=True)
    ]
    checks.sort(key=lambda check: HOLDS.get(check[0]["outcome"], 0))
    entries = [entry for entry, _ in checks]
    return _environment().get_template("report_template.html").render(
        report=report,
        checks=checks,
        failing=[entry for entry in entries if entry["outcome"] not in HOLDS],
        tiles=_tiles(report["verdict"], entries),
        axis=Axis(entries),
        found={entry["name"]: entry for entry in entries},
        titles={row["statement"]: row["title"] for row in report["coverage"]},
    )


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("theory_checks", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "anchor": anchor,
        "claimed": claimed,
        "drawn_math": drawn_mathematics,
        "math": mathematics,
        "number": number,
        "power": power,
        "refuted": refuted,
        "seconds": seconds,
        "spread": spread,
        "values": values,
    }
    environment.globals |= {"HOLDS": HOLDS, "LABELS": LABELS, "MAX_ROWS": MAX_ROWS, "pairs": pairs}
    return environment


def anchor(name: str) -> str:
    """The id of a check's section."""
    return "check-" + quote(name, safe="")


def refuted(controls: Sequence[dict[str, Any]]) -> str:
    """How many controls of how many were refuted."""
    return f"{sum(control['refuted'] for control in controls)}/{len(controls)}" if controls else "–"


def spread(entry: Entry) -> str:
    """Errors over seeds, in a sentence."""
    errors = [math.inf if error == "nan" else float(error) for error in entry["errors_by_seed"]]
    clock = " Measured with a clock: it differs from run to run." if entry["timed"] else ""
    if len(errors) == 1:
        return f"One number for all seeds: a mean, an extreme, or a run that needs none.{clock}"
    least, middle, most = (number(q, 2) for q in (min(errors), median(errors), max(errors)))
    return f"Errors of {len(errors)} seeds: {least} to {most}, median {middle}.{clock}"


def pairs(label: str, predicted: Any, measured: Any, *, seeds: int) -> Iterator[tuple[str, Any, Any]]:
    """Line up nested values leaf by leaf, each with its name; one number against many goes with each.

    A list under a label with an index, `σ_i`, holds one number a component, `σ_1` and so on; another
    list of as many numbers as there are seeds holds one a seed.
    """
    sides = [dict(enumerate(side)) if isinstance(side, list) else side for side in (predicted, measured)]
    keys = dict.fromkeys(key for side in sides if isinstance(side, dict) for key in side)
    if not keys:
        yield label, predicted, measured
    for key in keys:
        left, right = (side.get(key) if isinstance(side, dict) else side for side in sides)
        name = f"{label}, {key}" if label else str(key)
        if isinstance(key, int):
            name = _item(label, key, len(keys) == seeds)
        yield from pairs(name, left, right, seeds=seeds)


def _item(label: str, index: int, a_seed: bool) -> str:
    """The name of one number of a list."""
    if "_i" in label:
        return label.replace("_i", f"_{index + 1}")
    kind = f"seed {index}" if a_seed else f"no. {index + 1}"
    return f"{label}, {kind}" if label else kind


def _tiles(verdict: dict[str, Any], entries: Sequence[Entry]) -> dict[str, str]:
    found = list(filter(has_errors, entries))
    claims = [ratio(entry["error"], entry) for entry in found]
    controls = [ratio(control["error"], entry) for entry in found for control in entry["control"]]
    return {
        "checks hold": f"{verdict['passed']} / {verdict['checks']}",
        "controls refuted": f"{verdict['controls_refuted']} / {verdict['controls']}",
        "largest error of a claim, in tolerances": number(max(claims, default=None), 2),
        "smallest error of a control, in tolerances": number(min(controls, default=None), 2),
    }
