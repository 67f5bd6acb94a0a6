"""Statements of docs/theory.md as HTML with MathML, which browsers set without script or fonts of ours."""

import re
from functools import cache

from latex2mathml.converter import convert
from markdown_it import MarkdownIt
from markupsafe import Markup

from theory_checks.statements import statement

_FORMULA = re.compile(r"\$\$(?P<display>.+?)\$\$|\$(?P<inline>.+?)\$", re.DOTALL)
_SUPPORT = re.compile(r"\*\*?(Proof|Measured|Confirmed|Why|Derivation|Use|Consequence|Expansion|Numbers)")
_PLACE = re.compile("\ue000(\\d+)\ue001")
"""Characters of private use stand for formulas while Markdown is read, which has uses of its own for `_`."""


@cache
def claimed(number: str, /) -> Markup:
    """What a statement says, without its heading, and without proofs and measurements.

    Examples
    --------
    >>> "<math" in claimed("2.2")
    True
    """
    paragraphs = statement(number).split("\n\n")[1:]
    ends = [index for index, text in enumerate(paragraphs) if _SUPPORT.match(text)]
    return typeset("\n\n".join(paragraphs[: ends[0] if ends else None]))


def typeset(text: str, /) -> Markup:
    """Markdown with formulas between dollars, as HTML; markup in it is shown, not used."""
    formulas: list[str] = []

    def keep(found: re.Match[str]) -> str:
        latex = (found["display"] or found["inline"]).replace("\\cr", "\\\\")
        formulas.append(convert(latex, display="block" if found["display"] else "inline"))
        return f"\ue000{len(formulas) - 1}\ue001"

    reader = MarkdownIt("commonmark", {"html": False}).enable("table")
    html = reader.render(_FORMULA.sub(keep, text))
    return Markup(_PLACE.sub(lambda place: formulas[int(place[1])], html))
