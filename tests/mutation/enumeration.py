"""Mutants of the library, made by cosmic-ray: which there are, and the source of one."""

import ast
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
SETTINGS = tomllib.loads((Path(__file__).parent / "operators.toml").read_text("utf-8"))
ARITHMETIC = {"term", "arith_expr", "power", "expr", "and_expr", "xor_expr", "shift_expr"}
"""Kinds of nodes whose operators are arithmetic."""


@dataclass(frozen=True, order=True)
class Mutant:
    """The `occurrence`-th place of a module that an operator changes."""

    module: str
    operator: str
    occurrence: int
    line: int
    code: str
    equivalent: str = ""

    @property
    def path(self) -> str:
        """The file, from the root of the repository."""
        return f"lowdim_jax/{self.module}.py"

    @property
    def name(self) -> str:
        """What a results file calls it."""
        return f"{self.module}:{self.operator}:{self.occurrence}"

    def source(self) -> str:
        """The whole module with this one change."""
        from cosmic_ray.mutating import mutate_code

        source = (ROOT / self.path).read_text("utf-8")
        changed = mutate_code(source, _operator(self.operator), self.occurrence)
        assert changed is not None, self
        return changed


    @property
    def function(self) -> str:
        """The outermost function or method that the place is in; `""` at the level of the module."""
        found = ""
        for name, first, last in _functions(self.path):
            if first <= self.line <= last:
                found = name
        return found


@cache
def _functions(path: str) -> list[tuple[str, int, int]]:
    """Name, first and last line, decorators included, of the functions and methods of a module."""
    found = []

    def visit(body, prefix):
        for node in body:
            if isinstance(node, ast.ClassDef):
                visit(node.body, f"{prefix}{node.name}.")
            elif isinstance(node, ast.FunctionDef):
                first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
                found.append((prefix + node.name, first, node.end_lineno or node.lineno))

    visit(ast.parse((ROOT / path).read_text("utf-8")).body, "")
    return found


def mutants() -> list[Mutant]:
    """All mutants of all modules, in order."""
    return [mutant for module in SETTINGS["modules"] for mutant in _of_module(module)]


def _of_module(module: str) -> Iterator[Mutant]:
    from cosmic_ray.ast import ast_nodes, get_ast

    source = (ROOT / f"lowdim_jax/{module}.py").read_text("utf-8")
    lines, unseen = source.splitlines(), _unseen(source)
    nodes = list(ast_nodes(get_ast(source)))
    for name in SETTINGS["operators"]:
        operator, occurrence = _operator(name), 0
        for node in nodes:
            for (line, column), _ in operator.mutation_positions(node):
                why = next((why for span, why in unseen if span[0] <= (line, column) < span[1]), "")
                if "Binary" in name and node.parent.type not in ARITHMETIC:
                    why = "no program: a star or a slash of a parameter list"
                yield Mutant(module, name, occurrence, line, lines[line - 1].strip(), why)
                occurrence += 1


def _operator(name: str):
    from cosmic_ray.plugins import get_operator

    return get_operator(f"core/{name}")()


def _unseen(source: str) -> list[tuple[tuple[tuple[int, int], tuple[int, int]], str]]:
    """Spans of a module whose change no behaviour can show, and why: annotations and messages."""
    spans = []
    for node in ast.walk(ast.parse(source)):
        found: list[tuple[ast.AST | None, str]] = []
        if isinstance(node, ast.arg | ast.AnnAssign):
            found.append((node.annotation, "an annotation"))
        if isinstance(node, ast.FunctionDef):
            found.append((node.returns, "an annotation"))
        if isinstance(node, ast.JoinedStr):
            found.append((node, "the wording of a message"))
        for part, why in found:
            if isinstance(part, ast.expr):
                end = part.end_lineno or part.lineno, part.end_col_offset or part.col_offset
                spans.append((((part.lineno, part.col_offset), end), why))
    return spans
