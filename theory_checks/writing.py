"""How the report writes numbers, durations and mathematics."""

import re
from typing import Any

from markupsafe import Markup, escape

SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
SPACE = "\N{NO-BREAK SPACE}"

_LETTER = "A-Za-z\u0370-\u03ff"
_MARKS = "\u0302\u0303\u0304"
_BASE = rf"(?:(?<![\w.])[{_LETTER}][{_MARKS}ᵀ*]*|(?<=[)\]|‖⟩}}∘]))"
_SCRIPT = re.compile(rf"(?:{_BASE})(?P<kind>[_^])(?P<script>\{{[^{{}}]*\}}|−?[{_LETTER}0-9]+)")
_SYMBOL = re.compile(
    rf"(?<![{_LETTER}_.'’`-])(?P<symbol>(?![aAI])[{_LETTER}][{_MARKS}]*)(?=[ᵀ²³⁻]*(?![\w'’-]))"
)


def seconds(number: float) -> str:
    """A duration, to print."""
    return f"{number:.1f} s" if number < 9.95 else f"{number:.0f} s"


def number(value: Any, digits: int = 6) -> str:
    """A number as on paper, `3.25 · 10⁻⁶`; other values as they are."""
    if value is None:
        return "–"
    if isinstance(value, str | bool):
        return {"inf": "∞", "-inf": "−∞"}.get(str(value), str(value))
    mantissa, _, exponent = f"{value:.{digits}g}".replace("inf", "∞").partition("e")
    factor = mantissa.replace("-", "−")
    if not exponent:
        return factor
    return power(int(exponent)) if factor == "1" else f"{factor}{SPACE}·{SPACE}{power(int(exponent))}"


def power(exponent: int) -> str:
    """A power of ten."""
    return "10" + str(exponent).translate(SUPERSCRIPTS)


def values(value: Any) -> str:
    """A number, or a list of them, in four digits."""
    return ", ".join(number(item, 4) for item in value) if isinstance(value, list) else number(value, 4)


def mathematics(text: str) -> Markup:
    """Plain text with its formulas set: `σ*_1`, `ε^{L−2}` and single letters, which are variables.

    >>> str(mathematics("σ*_1 at depth L"))
    '<i>σ</i>*<sub>1</sub> at depth <i>L</i>'
    """
    parts, last = [], 0
    for found in _SCRIPT.finditer(text):
        tag = Markup("<sub>{}</sub>" if found["kind"] == "_" else "<sup>{}</sup>")
        script = found["script"].strip("{}")
        letter = len(script) == 1 and script.isalpha()
        small = Markup("<i>{}</i>").format(script) if letter else _symbols(script)
        parts += [_symbols(text[last : found.start("kind")]), tag.format(small)]
        last = found.end()
    return Markup("").join([*parts, _symbols(text[last:])])


def _symbols(text: str) -> Markup:
    """Single letters in italics."""
    parts, last = [], 0
    for found in _SYMBOL.finditer(text):
        parts += [escape(text[last : found.start()]), Markup("<i>{}</i>").format(found["symbol"])]
        last = found.end()
    return Markup("").join([*parts, escape(text[last:])])
