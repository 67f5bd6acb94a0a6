"""The numbered statements of docs/theory.md, and which check tests which."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from theory_checks.registry import Check

if TYPE_CHECKING:
    from theory_checks.runner import Result

PAPER = "2311.05061"


@dataclass(frozen=True)
class Statement:
    """A statement of docs/theory.md: its heading, how it is established, and where it is from.

    `sources` are numbers of arXiv articles. A test keeps all three as they are in docs/theory.md.
    """

    title: str
    status: str
    sources: tuple[str, ...] = ()


def _paper(title: str) -> Statement:
    return Statement(title, "claimed in the paper", (PAPER,))


def _derived(title: str, *sources: str) -> Statement:
    return Statement(title, "derived here", sources)


def _known(title: str, *sources: str) -> Statement:
    return Statement(title, "known", sources)


STATEMENTS = {
    "1.1": _paper("Observation"),
    "1.2": _paper("Compressed network (C-DLN)"),
    "1.3": _paper("Spectral initialization"),
    "1.4": _paper("Discrepant learning rates"),
    "1.5": _paper("Dominance"),
    "1.6": Statement("Incremental fitting", "definition"),
    "1.7": _derived("Accuracy of the surrogate"),
    "2.1": _derived("Decoupling"),
    "2.2": _derived("Mode time, any depth", "1312.6120"),
    "2.3": _known("Closed form for two factors", "1312.6120"),
    "2.4": _derived("Small-initialization scaling"),
    "2.5": _derived("Discrepant rates"),
    "2.6": _derived("Stiffness"),
    "2.7": _known("Two layers in closed form", "2409.14623"),
    "3.1": _derived("Gauge"),
    "3.2": _derived("Lossless reduction", "2306.01154", "2406.04112"),
    "3.3": _derived("The reduced network as prediction"),
    "3.4": _derived("Any width without a large matrix"),
    "3.5": _derived("Rectangular networks"),
    "3.6": _known("Whitened data"),
    "3.7": _derived("How much faster is the compressed network?"),
    "3.8": _derived("Any loss, any data, any width"),
    "3.9": _derived("Compressed networks reduce, too"),
    "3.10": _derived("Features compress geometrically", "2311.02960"),
    "4.1": _known("Balancedness", "1802.06509"),
    "4.2": _known("Exact drift under gradient descent", "2502.20531"),
    "4.3": _known("Singular values of the original network", "1905.13655"),
    "4.4": _known("Descent approaches flow"),
    "5.1": _known("Edge of stability", "2502.20531"),
    "5.2": _derived("Edge with discrepant rates"),
    "5.3": _derived("Two-cycle beyond the edge", "2502.20531"),
    "6.1": _known("The product starts small"),
    "6.2": _known("Matrix products on GPUs"),
    "6.3": _known("Matrix products on TPUs"),
    "6.4": _known("Orthogonal layers"),
    "6.5": _known("Times near escape"),
}

NOT_CHECKED = {
    "6.4": "a rule for whoever writes a check, not a prediction",
    "6.5": "a rule for whoever writes a check, not a prediction",
}
"""Statements without a check, and the reason."""


@dataclass(frozen=True)
class Row:
    """One statement in a run: the checks that test it, and their results as far as they ran."""

    number: str
    statement: Statement
    checks: tuple[Check, ...]
    results: tuple["Result", ...]
    reason: str

    @property
    def outcome(self) -> str:
        """`"pass"` if every check of it passed; otherwise what went wrong, or is missing."""
        if not self.checks:
            return "no check"
        found = {result.outcome for result in self.results}
        worst = next((bad for bad in ("error", "fail", "vacuous") if bad in found), "pass")
        if found == {"not-applicable"}:
            worst = "not-applicable"
        ran = len(self.results) == len(self.checks)
        return worst if ran or worst != "pass" else "not run"

    def summary(self) -> dict[str, object]:
        """The statement's entry in `report.json`."""
        return {
            "statement": self.number,
            "title": self.statement.title,
            "status": self.statement.status,
            "sources": list(self.statement.sources),
            "checks": [check.name for check in self.checks],
            "outcome": self.outcome,
            "reason": self.reason or None,
        }


def rows(checks: Sequence[Check], results: Iterable["Result"] = ()) -> list[Row]:
    """One row a statement, in order, from all checks there are and the results of those that ran."""
    found = {result.name: result for result in results}
    return [
        Row(
            number,
            statement,
            citing := checks_of(number, checks),
            tuple(found[check.name] for check in citing if check.name in found),
            NOT_CHECKED.get(number, ""),
        )
        for number, statement in STATEMENTS.items()
    ]


def checks_of(number: str, checks: Sequence[Check]) -> tuple[Check, ...]:
    """The checks that cite a statement."""
    return tuple(check for check in checks if number in check.source.split(", "))


def sides(checks: Sequence[Check]) -> str:
    """Markdown table, one row a check: what its predicted and its measured side rest on."""
    lines = ["| check | predicted side | measured side | pinned by |", "|---|---|---|---|"]
    for check in sorted(checks, key=lambda check: check.name):
        predicted, measured = check.rests_on or ("", "")
        pin = f"`{check.pinned_by}`" if check.pinned_by else ""
        lines.append(f"| `{check.name}` | {predicted} | {measured} | {pin} |")
    return "\n".join(lines) + "\n"


def table(checks: Sequence[Check]) -> str:
    """Markdown table, one row a statement: its checks, and what each must fail with."""
    lines = ["| statement | check | must fail with |", "|---|---|---|"]
    for row in rows(checks):
        names = "<br>".join(f"`{check.name}`" for check in row.checks)
        controls = "<br>".join("; ".join(check.controls) for check in row.checks)
        without = f"none: {row.reason}"
        lines.append(f"| {row.number} {row.statement.title} | {names or without} | {controls} |")
    return "\n".join(lines) + "\n"
