"""What the suite's checks are called and claim, read from their source: a list of them needs no JAX."""

import ast
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Protocol, TypeVar

FOLDER = Path(__file__).parent / "checks"


class Named(Protocol):
    """A check, or what is listed of one."""

    @property
    def name(self) -> str: ...

    @property
    def source(self) -> str: ...


T = TypeVar("T", bound=Named)


@dataclass(frozen=True)
class Listed:
    """What is listed of a check: as in `registry.Check`, but of its controls only what is broken."""

    name: str
    claim: str
    source: str
    controls: tuple[str, ...]


def listed() -> tuple[Listed, ...]:
    """The suite's checks, in the order of the statements they test."""
    modules = [ast.parse(path.read_text(encoding="utf-8")) for path in sorted(FOLDER.glob("*.py"))]
    return in_order([one for module in modules for one in _of_module(module)])


def in_order(checks: Sequence[T], /) -> tuple[T, ...]:
    """Checks in the order of the statements they test, then of their names."""
    return tuple(sorted(checks, key=lambda check: (check.source, check.name)))


def matching(checks: Sequence[T], patterns: Sequence[str], /) -> tuple[T, ...]:
    """Checks whose name matches one of the glob patterns; all of them for no pattern.

    Raises
    ------
    ValueError
        If a pattern matches no check.
    """
    for pattern in patterns:
        if not any(fnmatchcase(check.name, pattern) for check in checks):
            known = ", ".join(check.name for check in checks)
            raise ValueError(f"no check matches {pattern!r}; there are: {known}")
    return tuple(
        check
        for check in checks
        if not patterns or any(fnmatchcase(check.name, pattern) for pattern in patterns)
    )


def _of_module(module: ast.Module) -> Iterator[Listed]:
    constants = dict(_constants(module))
    for function in module.body:
        for call in getattr(function, "decorator_list", []):
            if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "check":
                given = {word.arg: word.value for word in call.keywords}
                broken = getattr(given["controls"], "keys", [])
                name, claim, source, *controls = (
                    _value(node, constants)
                    for node in (call.args[0], given["claim"], given["source"], *broken)
                )
                yield Listed(name, claim, source, tuple(controls))


def _constants(module: ast.Module) -> Iterator[tuple[str, Any]]:
    """Numbers and strings that a module gives names to: claims quote them."""
    for line in module.body:
        if isinstance(line, ast.Assign) and isinstance(line.value, ast.Constant):
            names = [target.id for target in line.targets if isinstance(target, ast.Name)]
            yield from ((name, line.value.value) for name in names)


def _value(node: ast.expr, constants: dict[str, Any]) -> str:
    return eval(compile(ast.Expression(node), "claim", "eval"), {}, constants)
