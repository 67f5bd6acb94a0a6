"""What a run found: progress and a table in the terminal, `report.json` and `report.html`."""

import json
import sys
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from lowdim_jax._command import replace_files
from theory_checks.compare import read_report
from theory_checks.page import LABELS, page
from theory_checks.writing import seconds

if TYPE_CHECKING:
    from theory_checks.coverage import Row
    from theory_checks.registry import Check
    from theory_checks.runner import Result

STYLES = {"pass": "green", "fail": "bold red", "vacuous": "bold yellow", "error": "bold magenta",
          "not-applicable": "cyan"}
WHOLE_RUN = 1e6
"""Seconds of the past that the time left is estimated from: all. One check can outlast rich's half minute."""


def track(results: Iterable["Result"], checks: Sequence["Check"]) -> Iterator["Result"]:
    """Pass `results` on, showing on stderr which of `checks` is running, how many are done, what is left."""
    console = Console(stderr=True)
    if not console.is_terminal:
        for done, result in enumerate(results, 1):
            line = f"[{done}/{len(checks)}] {LABELS[result.outcome]:7}  {result.name}"
            print(f"{line}  {seconds(result.seconds)}", file=sys.stderr, flush=True)
            yield result
        return
    finished: set[str] = set()

    def running() -> str:
        """The first check that is not done: of two processes it is one of the two that run."""
        left = [check.name for check in checks if check.name not in finished] or [checks[-1].name]
        return f"check {min(len(finished) + 1, len(checks))} of {len(checks)}: {left[0]}"

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=None),
        TimeElapsedColumn(),
        TextColumn("left, about", style="dim"),
        TimeRemainingColumn(elapsed_when_finished=False),
    )
    bar = Progress(*columns, console=console, transient=True, speed_estimate_period=WHOLE_RUN)
    with bar as progress:
        task = progress.add_task(running(), total=len(checks))
        for result in results:
            finished.add(result.name)
            progress.console.print(_finished(result))
            progress.update(task, completed=len(finished), description=running())
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
    sentence = f"{verdict['sentence']}, in {seconds(verdict['seconds'])}"
    console.print(Text(sentence, "bold green" if verdict["ok"] else "bold red"))
    for path in paths:
        console.print(Text(f"report: {path}"), soft_wrap=True)


def write(
    folder: Path, about: dict[str, Any], results: Sequence["Result"], coverage: Sequence["Row"] = ()
) -> tuple[Path, Path]:
    """Write `report.html` and `report.json` to `folder`; returns their paths.

    Older ones are replaced only once both new ones are written. The report of a run that was interrupted
    does not replace one with more in it: it becomes `report.incomplete.html` and `.json`.
    """
    report = about | {
        "complete": "incomplete" not in about,
        "verdict": _verdict(about, results),
        "checks": [result.summary() for result in results],
        "coverage": [row.summary() for row in coverage],
    }
    name = "report.incomplete" if _is_poorer(report, folder / "report.json") else "report"
    shown, data = folder / f"{name}.html", folder / f"{name}.json"
    with _drawing():
        texts = {
            shown: page(report, [result.curves for result in results]),
            data: json.dumps(report, indent=2, allow_nan=False) + "\n",
        }
    with replace_files(*texts) as temporary:
        for path, text in zip(temporary, texts.values(), strict=True):
            path.write_text(text, encoding="utf-8", errors="replace")
    return shown, data


@contextmanager
def _drawing() -> Iterator[None]:
    """Says in a terminal that the report is drawn: with many curves that takes seconds."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield
        return
    with console.status("drawing the report"):
        yield


def _is_poorer(report: dict[str, Any], path: Path) -> bool:
    """Whether an incomplete report would replace one that is complete, or has more checks."""
    if report["complete"]:
        return False
    try:
        before = read_report(path)
    except ValueError:
        return False
    return bool(before.get("complete")) or len(before["checks"]) > len(report["checks"])


def _verdict(about: dict[str, Any], results: Sequence["Result"]) -> dict[str, Any]:
    outcomes = [result.outcome for result in results]
    controls = [control for result in results for control in result.controls]
    passed, refuted = outcomes.count("pass"), sum(control.refuted for control in controls)
    incomplete = about.get("incomplete")
    without = outcomes.count("not-applicable")
    return {
        "ok": passed + without == len(results) and not incomplete,
        "sentence": (f"Incomplete, {incomplete}: " if incomplete else "")
        + f"{passed} of {len(results) - without} checks hold{' so far' if incomplete else ''}, "
        + (f"{without} {'does' if without == 1 else 'do'} not apply, " if without else "")
        + f"{refuted} of {len(controls)} controls refuted "
        + f"on {about['device'].rpartition(': ')[2]} ({about['dtype']})",
        "checks": len(results),
        "passed": passed,
        "failed": outcomes.count("fail"),
        "vacuous": outcomes.count("vacuous"),
        "not_applicable": without,
        "errors": outcomes.count("error"),
        "controls": len(controls),
        "controls_refuted": refuted,
        "seconds": round(about.get("seconds", sum(result.seconds for result in results)), 3),
    }


def _finished(result: "Result") -> Text:
    """A line that stays on screen: how a check ended, its time, and what went wrong."""
    label = Text(f"{LABELS[result.outcome]:8}", STYLES[result.outcome])
    line = label.append(f"{result.name}  {seconds(result.seconds)}", "default not bold")
    return line.append(f"\n        {result.detail}") if result.detail else line


def _detail(result: "Result") -> Text:
    label = Text(LABELS[result.outcome], STYLES[result.outcome])
    return label.append(f" {result.name}: {result.detail}", "default not bold")
