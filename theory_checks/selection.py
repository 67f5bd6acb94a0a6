"""The checks there are, from the suite and from users' files; above the checks, which know only `check`."""

import runpy
from pathlib import Path
from traceback import extract_tb

import theory_checks.checks  # noqa: F401  (registers them)
from theory_checks.listing import in_order, matching
from theory_checks.registry import Check, add_own_file, registered


def load(path: Path) -> None:
    """Run a Python file that registers checks of its own with `check`.

    Raises
    ------
    ValueError
        If there is no such file, or it raises.
    """
    if not path.is_file():
        raise ValueError(f"--load {str(path)!r}: there is no such file")
    add_own_file(path)
    try:
        runpy.run_path(str(path), run_name=path.stem)
    except (Exception, SystemExit) as error:
        where = f"--load {str(path)!r}{_line_of(error, path)}"
        raise ValueError(f"{where}: {type(error).__name__}: {error}") from error


def _line_of(error: BaseException, path: Path) -> str:
    """The line of a file in which an error arose, if it did there."""
    lines = [frame.lineno for frame in extract_tb(error.__traceback__) if frame.filename == str(path)]
    number = lines[-1] if lines else getattr(error, "lineno", None)  # of a syntax error
    return "" if number is None else f", line {number}"


def all_checks() -> tuple[Check, ...]:
    """Every registered check, in the order of the statements they test."""
    return in_order(list(registered().values()))


def select(patterns: list[str]) -> tuple[Check, ...]:
    """Checks whose name matches one of the glob patterns; all of them for no pattern.

    Raises
    ------
    ValueError
        If a pattern matches no check.
    """
    return matching(all_checks(), patterns)
