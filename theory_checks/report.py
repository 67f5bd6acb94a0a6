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

PAPER = "https://arxiv.org/abs/2311.05061"
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


def print_table(results: Sequence["Result"], console: Console | None = None) -> None:
    """Print one row a check, and below the table what went wrong in those that did not pass."""
    console = console or Console()
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
    about: dict[str, Any],
    results: Sequence["Result"],
    paths: Sequence[Path],
    console: Console | None = None,
) -> None:
    """Print the run's outcome in one sentence, and where its report lies."""
    console = console or Console()
    verdict = _verdict(about, results)
    console.print()
    console.print(Text(verdict["sentence"], "bold green" if verdict["ok"] else "bold red"))
    for path in paths:
        console.print(Text(f"report: {path}"), soft_wrap=True)


def write(
    folder: Path, about: dict[str, Any], results: Sequence["Result"]
) -> tuple[Path, Path]:
    """Write `report.html` and `report.json` to `folder`, both or none; returns their paths."""
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


# The page. Everything below turns entries of report.json into HTML.


def _page(
    about: dict[str, Any],
    verdict: dict[str, Any],
    entries: list[dict[str, Any]],
    curves: list[Sequence["Curve"]],
) -> str:
    decades = _decades(entries)
    css = files("theory_checks").joinpath("report.css").read_text(encoding="utf-8")
    rows = "\n".join(_summary_row(entry, decades) for entry in entries)
    sections = "\n".join(
        _section(index, entry, drawn, decades)
        for index, (entry, drawn) in enumerate(zip(entries, curves, strict=True))
    )
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>Theory checks: {verdict["passed"]} of {verdict["checks"]} hold</title>
<style>
{css}</style>
</head>
<body>
<header>
<p class="eyebrow">lowdim_jax · theory checks</p>
<h1 class="{"ok" if verdict["ok"] else "bad"}">{escape(verdict["sentence"])}.</h1>
<p>Each check trains on this machine, compares with a prediction of
<a href="{PAPER}">Efficient Compression of Overparameterized Deep Models through Low-Dimensional
Learning Dynamics</a>, and then repeats the comparison with a hypothesis broken on purpose: such a
control has to miss the tolerance, or the check proves nothing.</p>
{_tiles(verdict, entries)}
{_environment(about)}
</header>
<main>
<table class="summary">
<thead><tr><th>check<th>outcome<th class="num">error<th class="num">tolerance
<th class="dots">{_strip([], decades, axis=True)}<th class="num">controls<th class="num">time</tr>
</thead>
<tbody>
{rows}
</tbody>
</table>
<p class="key">{_KEY}</p>
{sections}
</main>
</body>
</html>
"""


_KEY = (
    "Errors on a logarithmic scale, as multiples of the tolerance; a grid line is a factor of ten. "
    '<svg class="mark"><circle class="measured" cx="6" cy="6" r="4.5"/></svg> the claim, worst '
    "seed (the bar spans the seeds), "
    '<svg class="mark"><circle class="control" cx="6" cy="6" r="4"/></svg> its controls, which '
    "belong to the right of the tolerance."
)


def _tiles(verdict: dict[str, Any], entries: list[dict[str, Any]]) -> str:
    tiles = [
        ("checks hold", f"{verdict['passed']} / {verdict['checks']}"),
        ("controls refuted", f"{verdict['controls_refuted']} / {verdict['controls']}"),
    ]
    ratios = [_ratio(entry["error"], entry) for entry in entries if entry["error"] is not None]
    broken = [_ratio(control["error"], entry) for entry in entries for control in entry["control"]]
    if ratios:
        tiles.append(("largest error, in tolerances", _number(10 ** max(ratios), 2)))
    if broken:
        tiles.append(("smallest control error, in tolerances", _number(10 ** min(broken), 2)))
    cells = "".join(f"<div><dd>{value}</dd><dt>{label}</dt></div>" for label, value in tiles)
    return f'<dl class="tiles">{cells}</dl>'


def _environment(about: dict[str, Any]) -> str:
    versions = " · ".join(f"{name} {number}" for name, number in about["versions"].items())
    lines = {
        "device": f"{about['device']}, {about['dtype']}, matmul {about['matmul_precision']}",
        "seeds": about["seeds"],
        **about["settings"],
        "versions": versions,
    }
    items = "".join(
        f"<div><dt>{escape(name.replace('_', ' '))}</dt><dd>{_text(value)}</dd></div>"
        for name, value in lines.items()
    )
    return f'<dl class="environment">{items}</dl>'


def _summary_row(entry: dict[str, Any], decades: range) -> str:
    refuted = sum(control["refuted"] for control in entry["control"])
    return (
        f'<tr><th scope="row"><a href="#{_anchor(entry)}">{escape(entry["name"])}</a></th>'
        f"<td>{_badge(entry)}</td>"
        f'<td class="num">{_number(entry["error"], 2)}</td>'
        f'<td class="num">{_number(entry["tolerance"], 2)}</td>'
        f'<td class="dots">{_strip(_claim_marks(entry) + _control_marks(entry), decades)}</td>'
        f'<td class="num">{refuted}/{len(entry["control"])}</td>'
        f'<td class="num">{_seconds(entry["seconds"])}</td></tr>'
    )


def _section(
    index: int, entry: dict[str, Any], curves: Sequence["Curve"], decades: range
) -> str:
    panels = "".join(_panel(curve, f"c{index}-{n}-") for n, curve in enumerate(curves))
    detail = f'<p class="detail">{escape(entry["detail"])}</p>' if entry["detail"] else ""
    evidence = _headline(entry) + _errors(entry, decades) if entry["tolerance"] is not None else ""
    return f"""<section id="{_anchor(entry)}">
<h2>{escape(entry["name"])} {_badge(entry)}</h2>
<p class="claim">{escape(entry["claim"])}</p>
<p class="source">{escape(entry["source"])} · {_seconds(entry["seconds"])}</p>
{detail}
<div class="evidence">{evidence}</div>
<div class="curves">{panels}</div>
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
    return f'<div><table class="headline"><thead>{head}</thead>{rows}</table>{note}</div>'


def _errors(entry: dict[str, Any], decades: range) -> str:
    rows = [(f"claim: {entry['quantity']}", entry["error"], _claim_marks(entry))]
    for control, mark in zip(entry["control"], _control_marks(entry), strict=True):
        rows.append((f"control: {control['broken']}", control["error"], [mark]))
    body = "".join(
        f'<tr><th scope="row">{escape(label)}</th><td class="dots">{_strip(marks, decades)}</td>'
        f'<td class="num">{_number(error, 2)}</td></tr>'
        for label, error, marks in rows
    )
    seeds = ", ".join(_number(error, 2) for error in entry["errors_by_seed"])
    return f"""<div><table class="errors">
<thead><tr><th></th><th class="dots">{_strip([], decades, axis=True)}</th>
<th class="num">error</th></tr></thead>
{body}</table>
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
    if math.isinf(value):
        return "∞"
    mantissa, _, exponent = f"{value:.{digits}g}".replace("-", "−").partition("e")
    if not exponent:
        return mantissa
    power = f"10<sup>{exponent[0].strip('+')}{exponent[1:].lstrip('0')}</sup>"
    return power if mantissa == "1" else f"{mantissa} · {power}"


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(_number(item, 4) for item in value)
    return _number(value, 4)


def _pairs(label: str, predicted: Any, measured: Any) -> Iterator[tuple[str, Any, Any]]:
    """Line up nested values leaf by leaf; a single number on one side goes with all of the other."""
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


# Errors as dots on one logarithmic axis, shared by all checks, in multiples of the tolerance.


def _ratio(error: Any, entry: dict[str, Any]) -> float:
    """log₁₀ of `error / tolerance`; infinite for zero and infinite errors."""
    error, tolerance = float(error), float(entry["tolerance"])
    if not error > 0:
        return math.inf if math.isnan(error) else -math.inf
    return math.log10(error / tolerance) if 0 < tolerance and error < math.inf else math.inf
