"""What a run found: progress and a table in the terminal, `report.json` and `report.html`."""

import io
import json
import math
import os
import re
import sys
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from theory_checks.registry import Check, Curve
    from theory_checks.runner import Result

LABELS = {"pass": "pass", "fail": "FAIL", "vacuous": "VACUOUS", "error": "ERROR"}
STYLES = {"pass": "green", "fail": "bold red", "vacuous": "bold yellow", "error": "bold magenta"}
RAMP = ("#5560b0", "#2f86b0", "#35a39a", "#9cc463")
"""Colours of measured lines, first to last: lightness rises, so that they differ in grey too."""
MAX_LINES, MAX_POINTS, MAX_ROWS = 10, 400, 12
PANEL = (4.4, 2.9)
INK = "#010203"
"""Stands for the page's text colour while matplotlib draws."""


def track(results: Iterable["Result"], checks: Sequence["Check"]) -> Iterator["Result"]:
    """Pass `results` on, showing on stderr which of `checks` is running and how many are done."""
    console = Console(stderr=True)
    if not console.is_terminal:
        for done, result in enumerate(results, 1):
            line = f"[{done}/{len(checks)}] {LABELS[result.outcome]:7}  {result.name}"
            print(f"{line}  {_seconds(result.seconds)}", file=sys.stderr, flush=True)
            yield result
        return
    running = [check.name for check in checks] + [""]
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(running[0], total=len(checks))
        for done, result in enumerate(results, 1):
            if not result.passed:
                progress.console.print(_detail(result))
            progress.update(task, completed=done, description=running[done])
            yield result


def print_table(results: Sequence["Result"]) -> None:
    """Print one row a check, and below the table what went wrong in those that did not pass."""
    console = Console()
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("check", overflow="fold")
    table.add_column("outcome", no_wrap=True)
    for header in ("error", "tolerance", "controls", "seconds"):
        table.add_column(header, justify="right", no_wrap=True)
    for result in results:
        evidence = result.evidence
        refuted = sum(control.refuted for control in result.controls)
        table.add_row(
            Text("\n".join(textwrap.wrap(result.name, 31, break_long_words=False))),
            Text(LABELS[result.outcome], STYLES[result.outcome]),
            f"{evidence.error:.1e}" if evidence else "–",
            f"{evidence.tolerance:.1e}" if evidence else "–",
            f"{refuted}/{len(result.controls)}" if result.controls else "–",
            f"{result.seconds:.1f}",
        )
    console.print(table)
    problems = [_detail(result) for result in results if not result.passed]
    if problems:
        console.print()
    for problem in problems:
        console.print(problem)


def print_verdict(
    about: dict[str, Any], results: Sequence["Result"], paths: Sequence[Path]
) -> None:
    """Print the run's outcome in one sentence, and where its report lies."""
    console = Console()
    verdict = _verdict(about, results)
    console.print()
    console.print(Text(verdict["sentence"], "bold green" if verdict["ok"] else "bold red"))
    for path in paths:
        console.print(Text(f"report: {path}"), soft_wrap=True)


def write(folder: Path, about: dict[str, Any], results: Sequence["Result"]) -> tuple[Path, Path]:
    """Write `report.html` and `report.json` to `folder`; returns their paths.

    Older ones are replaced only once both new ones are complete.
    """
    entries = [result.summary() for result in results]
    verdict = _verdict(about, results)
    report = about | {"complete": "incomplete" not in about, "verdict": verdict, "checks": entries}
    page, data = folder / "report.html", folder / "report.json"
    texts = {
        page: _page(about, verdict, entries, [result.curves for result in results]),
        data: json.dumps(report, indent=2, allow_nan=False) + "\n",
    }
    temporary = {path: path.with_name(f".{path.name}.{os.getpid()}") for path in texts}
    try:
        for path, text in texts.items():
            temporary[path].write_text(text, encoding="utf-8", errors="replace")
        for path in texts:
            temporary[path].replace(path)
    finally:
        for path in temporary.values():
            path.unlink(missing_ok=True)
    return page, data


def _verdict(about: dict[str, Any], results: Sequence["Result"]) -> dict[str, Any]:
    outcomes = [result.outcome for result in results]
    controls = [control for result in results for control in result.controls]
    passed, refuted = outcomes.count("pass"), sum(control.refuted for control in controls)
    seconds = sum(result.seconds for result in results)
    incomplete = about.get("incomplete")
    return {
        "ok": passed == len(results) and not incomplete,
        "sentence": (f"Incomplete, {incomplete}: " if incomplete else "")
        + f"{passed} of {len(results)} checks hold{' so far' if incomplete else ''}, "
        + f"{refuted} of {len(controls)} controls refuted, in {_seconds(seconds)} "
        + f"on {about['device'].rpartition(': ')[2]} ({about['dtype']})",
        "checks": len(results),
        "passed": passed,
        "failed": outcomes.count("fail"),
        "vacuous": outcomes.count("vacuous"),
        "errors": outcomes.count("error"),
        "controls": len(controls),
        "controls_refuted": refuted,
        "seconds": round(seconds, 3),
    }


def _detail(result: "Result") -> Text:
    label = Text(LABELS[result.outcome], STYLES[result.outcome])
    return label.append(f" {result.name}: {result.detail}", "default not bold")


def _seconds(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"


# The page: everything below turns entries of report.json, and curves, into HTML.


def _page(
    about: dict[str, Any],
    verdict: dict[str, Any],
    entries: list[dict[str, Any]],
    curves: list[Sequence["Curve"]],
) -> str:
    template = files("theory_checks").joinpath("report_template.html").read_text(encoding="utf-8")
    axis = _Axis(entries)
    return Template(template).substitute(
        title=f"Theory checks: {verdict['passed']} of {verdict['checks']} hold",
        state="ok" if verdict["ok"] else "bad",
        sentence=escape(verdict["sentence"]),
        tiles=_tiles(verdict, entries),
        environment=_environment(about),
        axis=axis.labels(),
        rows="\n".join(_row(entry, axis) for entry in entries),
        sections="\n".join(
            _section(
                entry, axis, [_panel(curve, f"c{index}-{n}-") for n, curve in enumerate(drawn)]
            )
            for index, (entry, drawn) in enumerate(zip(entries, curves, strict=True))
        ),
    )


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
        ("num", _seconds(entry["seconds"])),
    )
    name = f'<th scope="row"><a href="#{_anchor(entry)}">{escape(entry["name"])}</a></th>'
    return (
        f"<tr>{name}" + "".join(f'<td class="{kind}">{cell}</td>' for kind, cell in cells) + "</tr>"
    )


def _section(entry: dict[str, Any], axis: "_Axis", panels: list[str]) -> str:
    detail = f'<p class="detail">{escape(entry["detail"])}</p>' if entry["detail"] else ""
    evidence = _headline(entry) + _errors(entry, axis) if entry["tolerance"] is not None else ""
    return f"""<section id="{_anchor(entry)}">
<h2>{escape(entry["name"])} {_badge(entry)}</h2>
<p class="claim">{escape(entry["claim"])}</p>
<p class="source">{escape(entry["source"])} · {_seconds(entry["seconds"])}</p>
{detail}
<div class="evidence">{evidence}</div>
<div class="curves">{"".join(panels)}</div>
</section>"""


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
    seeds = ", ".join(_number(error, 2) for error in entry["errors_by_seed"])
    return f"""<div><table class="errors">
<thead><tr><th></th><th class="dots">{axis.labels()}</th><th class="num">error</th></tr></thead>
<tbody>{body}</tbody></table>
<p class="note">Tolerance {_number(entry["tolerance"], 2)}: {escape(entry["tolerance_reason"])}.
Errors by seed: {seeds}.</p></div>"""


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
        yield from _pairs(f"{label} {key}".strip(), left, right)


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
        axes.legend([thick[len(thick) // 2], thin[0]], ["measured", "predicted"], **place)
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
