"""What changed between two runs of the checks, from their `report.json`."""

import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lowdim_jax._reading import because, named, read_text

ENTRY = {"name", "outcome", "passed", "error", "tolerance"}
"""What an entry of a check has to have."""


def read_report(path: Path) -> dict[str, Any]:
    """A report, as a dictionary.

    Raises
    ------
    ValueError
        If the file is missing, is no JSON, or was not written by `theory-checks run`.
    """
    what = f"report {named(path)}"
    text = read_text(path, what)
    try:
        report = json.loads(text)
        without_times(report)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{what} is no JSON file: {because(error)}") from error
    if not _is_report(report):
        raise ValueError(f"{what} was not written by theory-checks run")
    return report


def _is_report(report: Any) -> bool:
    """Whether a value has all that is compared, each of its type."""
    return (
        isinstance(report, dict)
        and isinstance(report.get("versions"), dict)
        and isinstance(report.get("settings"), dict)
        and {"device", "dtype", "matmul_precision", "seeds"} <= set(report)
        and isinstance(checks := report.get("checks"), list)
        and all(isinstance(entry, dict) and set(entry) >= ENTRY for entry in checks)
        and all(isinstance(entry[name], str) for entry in checks for name in ("name", "outcome"))
    )


def without_times(report: dict[str, Any]) -> dict[str, Any]:
    """What has to be the same in two runs of the same seed, device and versions: all but the times.

    Times are every value named `seconds`, the date and command of a run, and, in a check that is `timed`,
    what was measured.
    """
    clocked = {"error", "errors_by_seed", "measured", "detail"}

    def strip(value: Any, also: set[str]) -> Any:
        if isinstance(value, list):
            return [strip(item, also) for item in value]
        if not isinstance(value, dict):
            return value
        also = also | (clocked if value.get("timed") else set())
        left_out = {"seconds", "run"} | also
        return {name: strip(item, also) for name, item in value.items() if name not in left_out}

    return strip(report, set())


def settings_changed(before: dict[str, Any], after: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Device, precision, versions, seeds and settings that differ, by name."""
    flat = [
        {name: report[name] for name in ("device", "dtype", "matmul_precision", "seeds")}
        | report["versions"]
        | report["settings"]
        for report in (before, after)
    ]
    names = dict.fromkeys([*flat[0], *flat[1]])
    values = {name: (flat[0].get(name), flat[1].get(name)) for name in names}
    return {name: pair for name, pair in values.items() if pair[0] != pair[1]}


def checks_changed(before: dict[str, Any], after: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """Name and both entries of every check whose outcome or error differs; None where it did not run."""
    entries = [{entry["name"]: entry for entry in report["checks"]} for report in (before, after)]
    names = dict.fromkeys([*entries[0], *entries[1]])

    def found(entry):
        return None if entry is None else (entry["outcome"], without_times(entry).get("errors_by_seed"))

    pairs = ((name, entries[0].get(name), entries[1].get(name)) for name in names)
    return [(name, a, b) for name, a, b in pairs if found(a) != found(b)]


def worse(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Checks that passed before and do not now, and all that are not there any more."""
    fine = ("pass", "not-applicable")
    passed = {entry["name"]: entry["outcome"] in fine for entry in after["checks"]}
    lost = [name for entry in before["checks"] if not passed.get(name := entry["name"], False)]
    held = {entry["name"] for entry in before["checks"] if entry["passed"]}
    return [name for name in lost if name in held or name not in passed]


def print_comparison(before: dict[str, Any], after: dict[str, Any]) -> None:
    """Print what differs: settings first, then a row a check."""
    console = Console()
    changed = settings_changed(before, after)
    for name, (old, new) in changed.items():
        console.print(f"{name}: {old} → {new}", markup=False)
    rows = checks_changed(before, after)
    if not rows:
        same = without_times(before) == without_times(after)
        console.print(f"the same errors and outcomes in all {len(after['checks'])} checks"
                      + (", and the same report up to times" if same else ""))
        return
    table = Table("check", "outcome", "error before", "error after", "tolerance", box=None)
    for name, old, new in rows:
        outcomes = [entry["outcome"] if entry else "not run" for entry in (old, new)]
        outcome = outcomes[0] if outcomes[0] == outcomes[1] else " → ".join(outcomes)
        table.add_row(Text(name), Text(outcome), _error(old), _error(new), _number((new or old)["tolerance"]))
    console.print(table)
    there, lost = {entry["name"] for entry in after["checks"]}, worse(before, after)
    sentences = (
        ("no longer hold", [name for name in lost if name in there]),
        ("no longer there", [name for name in lost if name not in there]),
    )
    for sentence, names in sentences:
        if names:
            console.print(f"{sentence}: {', '.join(names)}", markup=False)
    if not lost:
        console.print("every check that held still holds")


def _error(entry: dict[str, Any] | None) -> str:
    return "–" if entry is None else _number(entry["error"])


def _number(value: Any) -> str:
    return f"{value:.1e}" if isinstance(value, int | float) else str(value)
