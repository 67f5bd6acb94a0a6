"""Which check tests which numbered statement of docs/theory.md."""

import re
from collections.abc import Sequence

from theory_checks.registry import Check

NOT_CHECKED: dict[str, str] = {}
"""Statements without a check, and the reason."""


def statements(theory: str) -> dict[str, str]:
    """Numbers and titles of the statements in the text of docs/theory.md."""
    return dict(re.findall(r"^### (\d+\.\d+) (.+)$", theory, re.MULTILINE))


def checks_of(number: str, checks: Sequence[Check]) -> list[Check]:
    """The checks that cite a statement."""
    return [check for check in checks if number in check.source.split(", ")]


def table(theory: str, checks: Sequence[Check]) -> str:
    """Markdown table, one row a statement: its checks, and what each must fail with."""
    rows = ["| statement | check | must fail with |", "|---|---|---|"]
    for number, title in statements(theory).items():
        found = checks_of(number, checks)
        names = "<br>".join(f"`{check.name}`" for check in found)
        controls = "<br>".join("; ".join(check.controls) for check in found)
        reason = f"none: {NOT_CHECKED[number]}" if number in NOT_CHECKED else ""
        rows.append(f"| {number} {title} | {names or reason} | {controls} |")
    return "\n".join(rows) + "\n"
