"""`report.html`: entries of `report.json`, and curves, as one page that needs nothing but itself."""

import io
import math
import re
from collections.abc import Iterator, Sequence
from html import escape
from importlib.resources import files
from statistics import median
from string import Template
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np

if TYPE_CHECKING:
    from theory_checks.registry import Curve

LABELS = {
    "pass": "pass", "fail": "FAIL", "vacuous": "VACUOUS", "error": "ERROR",
    "not run": "not run", "no check": "no check",
}  # fmt: skip
RAMP = ("#5560b0", "#2f86b0", "#35a39a", "#9cc463")
"""Colours of measured lines, first to last: lightness rises, so that they differ in grey too."""
MAX_LINES, MAX_POINTS, MAX_ROWS = 10, 400, 12
PANEL = (4.4, 2.9)
INK = "#010203"
"""Stands for the page's text colour while matplotlib draws."""


def page(report: dict[str, Any], curves: Sequence[Sequence["Curve"]]) -> str:
    """The page of a report, and of the curves of each of its checks."""
    verdict, entries = report["verdict"], report["checks"]
    titles = {row["statement"]: row["title"] for row in report["coverage"]}
    template = files("theory_checks").joinpath("report_template.html").read_text(encoding="utf-8")
    axis = _Axis(entries)
    return Template(template).substitute(
        title=f"Theory checks: {verdict['passed']} of {verdict['checks']} hold",
        state="ok" if verdict["ok"] else "bad",
        sentence=escape(f"{verdict['sentence']}, in {seconds(verdict['seconds'])}"),
        tiles=_tiles(verdict, entries),
        environment=_environment(report),
        axis=axis.labels(),
        rows="\n".join(_row(entry, axis) for entry in entries),
        sections="\n".join(
            _section(
                entry, axis, titles, [_panel(curve, f"c{index}-{n}-") for n, curve in enumerate(drawn)]
            )
            for index, (entry, drawn) in enumerate(zip(entries, curves, strict=True))
        ),
        coverage="\n".join(_statements(report["coverage"], entries)),
    )


def seconds(number: float) -> str:
    """A duration, to print."""
    return f"{number:.1f} s" if number < 9.95 else f"{number:.0f} s"


def _tiles(verdict: dict[str, Any], entries: list[dict[str, Any]]) -> str:
    found = [entry for entry in entries if entry["tolerance"] is not None]
    claims = [_ratio(entry["error"], entry) for entry in found]
    controls = [_ratio(control["error"], entry) for entry in found for control in entry["control"]]
    tiles = {
        "checks hold": f"{verdict['passed']} / {verdict['checks']}",
        "controls refuted": f"{verdict['controls_refuted']} / {verdict['controls']}",
        "largest error of a claim, in tolerances": _number(max(claims, default=None), 2),
        "smallest error of a control, in tolerances": _number(min(controls, default=None), 2),
    }
    return _terms(tiles)


def _environment(about: dict[str, Any]) -> str:
    versions = " · ".join(f"{name} {number}" for name, number in about["versions"].items())
    lines = about["settings"] | {"seeds": about["seeds"], "versions": versions}
    device = f"{about['device']}, {about['dtype']}, matmul precision {about['matmul_precision']}"
    lines["default matmul precision"] = about["default_matmul"]
    return _terms({"device": escape(device)} | {name: _text(lines[name]) for name in lines})


def _terms(terms: dict[str, str]) -> str:
    return "".join(
        f"<div><dt>{escape(term.replace('_', ' '))}</dt><dd>{text}</dd></div>"
        for term, text in terms.items()
    )


def _row(entry: dict[str, Any], axis: "_Axis") -> str:
    refuted = sum(control["refuted"] for control in entry["control"])
    cells = (
        ("", _badge(entry)),
        ("num", _number(entry["error"], 2)),
        ("num", _number(entry["tolerance"], 2)),
        ("dots", axis.strip(entry, claim=True, controls=entry["control"])),
        ("num", f"{refuted}/{len(entry['control'])}" if entry["control"] else "–"),
        ("num", seconds(entry["seconds"])),
    )
    name = f'<th scope="row"><a href="#{_anchor(entry)}">{escape(entry["name"])}</a></th>'
    return (
        f"<tr>{name}" + "".join(f'<td class="{kind}">{cell}</td>' for kind, cell in cells) + "</tr>"
    )


def _section(
    entry: dict[str, Any], axis: "_Axis", titles: dict[str, str], panels: list[str]
) -> str:
    detail = f'<p class="detail">{escape(entry["detail"])}</p>' if entry["detail"] else ""
    evidence = _headline(entry) + _errors(entry, axis) if entry["tolerance"] is not None else ""
    return f"""<section id="{_anchor(entry)}">
<h2>{escape(entry["name"])} {_badge(entry)}</h2>
<p class="claim">{escape(entry["claim"])}</p>
<p class="source">{_source(entry["source"], titles)} · {seconds(entry["seconds"])}</p>
{detail}
<div class="evidence">{evidence}</div>
<div class="curves">{"".join(panels)}</div>
</section>"""


def _source(source: str, titles: dict[str, str]) -> str:
    """The statements a check cites, each a link to its row of the coverage table."""

    def link(number: re.Match) -> str:
        title = titles.get(number[0])
        return f'<a href="#statement-{number[0]}">{number[0]} {escape(title)}</a>' if title else number[0]

    return re.sub(r"\d+\.\d+", link, escape(source))


def _statements(coverage: list[dict[str, Any]], entries: list[dict[str, Any]]) -> Iterator[str]:
    """Rows of the coverage table: a statement, and a line for each of its checks."""
    found = {entry["name"]: entry for entry in entries}
    for row in coverage:
        sources = "".join(
            f' <a href="https://arxiv.org/abs/{number}">{number}</a>' for number in row["sources"]
        )
        cells = [_tested(found.get(name), name) for name in row["checks"]]
        cells = cells or [f'<td colspan="3">no check: {escape(row["reason"] or "none is registered")}</td>']
        head = (
            f'<th scope="row" rowspan="{len(cells)}" id="statement-{row["statement"]}">'
            f'{row["statement"]} {escape(row["title"])}<small>{row["status"]}{sources}</small></th>'
        )
        yield f'<tr class="first">{head}{cells[0]}</tr>' + "".join(f"<tr>{cell}</tr>" for cell in cells[1:])


def _tested(entry: dict[str, Any] | None, name: str) -> str:
    if entry is None:
        return f"<td>{escape(name)}</td><td>not run</td><td></td>"
    controls = entry["control"]
    refuted = f"{sum(control['refuted'] for control in controls)}/{len(controls)}" if controls else "–"
    link = f'<a href="#{_anchor(entry)}">{escape(name)}</a>'
    return f'<td>{link}</td><td>{_badge(entry)}</td><td class="num">{refuted}</td>'


def _headline(entry: dict[str, Any]) -> str:
    pairs = list(_pairs("", entry["predicted"], entry["measured"]))
    rows = "".join(
        f'<tr><th scope="row">{escape(label)}</th>'
        f'<td class="num">{_number(predicted)}</td><td class="num">{_number(measured)}</td></tr>'
        for label, predicted, measured in pairs[:MAX_ROWS]
    )
    more = len(pairs) - MAX_ROWS
    note = f'<p class="note">{more} more in report.json</p>' if more > 0 else ""
    head = '<tr><th></th><th class="num">predicted</th><th class="num">measured</th></tr>'
    table = f'<table class="headline"><thead>{head}</thead><tbody>{rows}</tbody></table>'
    return f"<div>{table}{note}</div>"


def _errors(entry: dict[str, Any], axis: "_Axis") -> str:
    rows = [(f"claim: {entry['quantity']}", entry["error"], axis.strip(entry, True, []))]
    for control in entry["control"]:
        strip = axis.strip(entry, False, [control])
        rows.append((f"control: {control['broken']}", control["error"], strip))
    body = "".join(
        f'<tr><th scope="row">{escape(label)}</th><td class="dots">{strip}</td>'
        f'<td class="num">{_number(error, 2)}</td></tr>'
        for label, error, strip in rows
    )
    return f"""<div><table class="errors">
<thead><tr><th></th><th class="dots">{axis.labels()}</th><th class="num">error</th></tr></thead>
<tbody>{body}</tbody></table>
<p class="note">Tolerance {_number(entry["tolerance"], 2)}: {escape(entry["tolerance_reason"])}.
{_spread(entry)}</p></div>"""


def _spread(entry: dict[str, Any]) -> str:
    errors = [math.inf if error == "nan" else float(error) for error in entry["errors_by_seed"]]
    clock = " Measured with a clock: it differs from run to run." if entry["timed"] else ""
    if len(errors) == 1:
        return f"One run, whatever the number of seeds.{clock}"
    least, middle, most = (_number(q, 2) for q in (min(errors), median(errors), max(errors)))
    return f"Errors of {len(errors)} seeds: {least} to {most}, median {middle}.{clock}"


def _anchor(entry: dict[str, Any]) -> str:
    return escape("check-" + quote(entry["name"], safe=""))


def _badge(entry: dict[str, Any]) -> str:
    return f'<span class="badge {entry["outcome"]}">{LABELS[entry["outcome"]]}</span>'


def _number(value: Any, digits: int = 6) -> str:
    if value is None:
        return "–"
    if isinstance(value, str | bool):
        return escape({"inf": "∞", "-inf": "−∞"}.get(str(value), str(value)))
    mantissa, _, exponent = f"{value:.{digits}g}".replace("inf", "∞").partition("e")
    factor = mantissa.replace("-", "−")
    if not exponent:
        return factor
    return (
        _power(int(exponent)) if factor == "1" else f"{factor}&nbsp;·&nbsp;{_power(int(exponent))}"
    )


def _power(exponent: int) -> str:
    return "10" + str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(_number(item, 4) for item in value)
    return _number(value, 4)


def _pairs(label: str, predicted: Any, measured: Any) -> Iterator[tuple[str, Any, Any]]:
    """Line up nested values leaf by leaf; one number against many goes with each."""
    sides = [
        dict(enumerate(side, 1)) if isinstance(side, list) else side
        for side in (predicted, measured)
    ]
    keys = dict.fromkeys(key for side in sides if isinstance(side, dict) for key in side)
    if not keys:
        yield label, predicted, measured
    for key in keys:
        left, right = (side.get(key) if isinstance(side, dict) else side for side in sides)
        name = f"({key})" if isinstance(key, int) else key  # a number counts the items of a list
        yield from _pairs(f"{label} {name}".strip(), left, right)


class _Axis:
    """Logarithmic axis shared by all checks: errors in multiples of each check's tolerance."""

    def __init__(self, entries: list[dict[str, Any]]):
        found = [entry for entry in entries if entry["tolerance"] is not None]
        errors = [
            _ratio(error, entry)
            for entry in found
            for error in (entry["error"], *(control["error"] for control in entry["control"]))
        ]
        logs = [math.log10(error) for error in errors if 0 < error < math.inf]
        self.low = max(-9, math.floor(min([-1.5, *logs])))
        self.high = min(9, math.ceil(max([1.5, *logs])))

    def place(self, ratio: float) -> float:
        """Position in percent; what lies beyond the axis, as infinity and all below zero do, at its end."""
        log = math.log10(ratio) if 0 < ratio < math.inf else (math.inf if ratio > 0 else -math.inf)
        log = min(max(log, self.low), self.high)
        return round(3 + 94 * (log - self.low) / (self.high - self.low), 2)

    def labels(self) -> str:
        """The axis' labels, as a strip to put above the others."""
        labels = {self.low: _power(self.low), 0: "tolerance", self.high: _power(self.high)}
        places = ((self.place(10.0**decade), label) for decade, label in labels.items())
        texts = "".join(f'<text x="{x}%" y="90%">{label}</text>' for x, label in places)
        return f"<svg>{texts}</svg>"

    def strip(self, entry: dict[str, Any], claim: bool, controls: list[dict[str, Any]]) -> str:
        """Errors of a claim and of controls as dots around the tolerance."""
        if entry["tolerance"] is None:
            return ""
        tolerance = self.place(1)
        parts = [f'<rect class="holds" width="{tolerance}%" height="100%"/>']
        for decade in range(self.low, self.high + 1):
            kind = "decade" if decade else "tolerance"
            x = self.place(10.0**decade)
            parts.append(f'<line class="{kind}" x1="{x}%" x2="{x}%" y2="100%"/>')
        for control in controls:
            x = self.place(_ratio(control["error"], entry))
            kind = "control" if control["refuted"] else "control missed"
            parts.append(f'<circle class="{kind}" cx="{x}%" cy="50%" r="4"/>')
        if claim:
            seeds = [self.place(_ratio(error, entry)) for error in entry["errors_by_seed"]]
            span = f'x1="{min(seeds)}%" x2="{max(seeds)}%" y1="50%" y2="50%"'
            ratio = _ratio(entry["error"], entry)
            kind = "measured" if ratio <= 1 else "measured missed"
            parts.append(f'<line class="seeds" {span}/>')
            parts.append(f'<circle class="{kind}" cx="{self.place(ratio)}%" cy="50%" r="4.5"/>')
        return f'<svg aria-hidden="true">{"".join(parts)}</svg>'


def _ratio(error: Any, entry: dict[str, Any]) -> float:
    """`error / tolerance`; NaN counts as infinitely wrong."""
    error, tolerance = float(error), float(entry["tolerance"])
    if error == 0:
        return 0.0
    return error / tolerance if tolerance > 0 and not math.isnan(error) else math.inf


def _panel(curve: "Curve", prefix: str) -> str:
    """One curve as inline SVG: text in the page's colour and font, ids starting with `prefix`."""
    import matplotlib
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.figure import Figure

    x, rows = np.asarray(curve.x, float), _some(len(curve.x), MAX_POINTS)
    measured = np.asarray(curve.measured, float).reshape(len(x), -1)
    predicted = np.asarray(curve.predicted, float).reshape(len(x), -1)
    columns = _some(measured.shape[1], MAX_LINES)
    shades = np.linspace(0, 1, len(columns)) if len(columns) > 1 else [0.3]
    inked = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")
    style: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": prefix,
        "path.simplify_threshold": 0.3,
    }
    with matplotlib.rc_context(style | dict.fromkeys(inked, INK)):
        figure = Figure(figsize=PANEL, layout="constrained")
        axes = figure.subplots()
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_prop_cycle(color=LinearSegmentedColormap.from_list("", RAMP)(shades))
        thick = axes.plot(x[rows], measured[rows][:, columns], linewidth=4.5, alpha=0.6)
        thin = axes.plot(x[rows], predicted[rows][:, columns], c=INK, lw=1.1, dashes=(4, 2.5))
        if curve.xlog and (x > 0).any():
            axes.set_xscale("log", nonpositive="mask")
        if curve.ylog and (measured > 0).any():
            axes.set_yscale("log", nonpositive="mask")
        axes.set(xlabel=curve.xlabel, ylabel=curve.ylabel)
        place = {"loc": "lower left", "bbox_to_anchor": (0, 1), "ncols": 2, "frameon": False}
        axes.legend([thick[len(thick) // 2], thin[0]], curve.labels[::-1], **place)
        output = io.StringIO()
        no_metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(output, format="svg", transparent=True, metadata=no_metadata)
    svg = output.getvalue()
    svg = svg[svg.index("<g id=") :]
    for pattern, replacement in (
        (r' id="', f' id="{prefix}'),
        (r"url\(#", f"url(#{prefix}"),
        (r'xlink:href="#', f'href="#{prefix}'),
        (r"font-family: [^;\"]*;? ?", ""),
        (r"<!--.*?-->\s*|(?<=\n) +", ""),
        (r"(\d\.\d\d)\d+", r"\1"),
        (INK, "currentColor"),
    ):
        svg = re.sub(pattern, replacement, svg)
    box = f"0 0 {PANEL[0] * 72:g} {PANEL[1] * 72:g}"
    shown = "" if len(columns) == measured.shape[1] else f" ({len(columns)} of {measured.shape[1]})"
    return (
        f"<figure><figcaption>{escape(curve.title + shown)}</figcaption>"
        f'<svg role="img" viewBox="{box}" aria-label="{escape(curve.title)}">\n{svg}</figure>'
    )


def _some(count: int, most: int) -> np.ndarray:
    """At most `most` evenly spaced indices below `count`, first and last among them."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int))
