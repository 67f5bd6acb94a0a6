"""How the report writes numbers, durations and mathematics."""

import re
from typing import Any

from markupsafe import Markup, escape

SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
SPACE = "\N{NO-BREAK SPACE}"
SHIFTS = {"": 0, "_": 3, "^": -4}
"""How far below the line subscripts and superscripts of a drawing stand, in its units."""

_LETTER = "A-Za-z\u0370-\u03ff"
_MARKS = "\u0302\u0303\u0304"
_BASE = rf"(?:(?:(?<![\w.])|(?<=ᵀ))[{_LETTER}][{_MARKS}ᵀ*]*|(?<=[)\]|‖⟩}}∘]))"
_ONE = rf"[_^](?:\{{[^{{}}]*\}}|−?(?:\([^()]*\)|[{_LETTER}0-9]+))"
_SCRIPTS = re.compile(rf"(?:{_BASE})(?P<scripts>{_ONE}(?:{_ONE})?)")
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
    shapes = {"": Markup("{}"), "_": Markup("<sub>{}</sub>"), "^": Markup("<sup>{}</sup>")}
    looks = {True: Markup("<i>{}</i>"), False: Markup("{}")}
    return Markup("").join(
        shapes[level].format(Markup("").join([looks[is_letter].format(run) for is_letter, run in runs]))
        for level, runs in _set(text)
    )


def drawn_mathematics(text: str) -> Markup:
    """The same inside an SVG `text` element, which has no `sub` and no `sup`: pieces that are shifted.

    >>> str(drawn_mathematics("t_i"))
    '<tspan font-style="italic">t</tspan><tspan dy="3" font-size="9" font-style="italic">i</tspan>'
    """
    parts, height = [], 0
    for level, runs in _set(text):
        for is_letter, run in runs:
            wanted = SHIFTS[level]
            look = {
                "dy": f"{wanted - height}" if wanted != height else "",
                "font-size": "9" if level else "",
                "font-style": "italic" if is_letter else "",
            }
            named = Markup(" ").join([Markup('{}="{}"').format(*item) for item in look.items() if item[1]])
            parts.append(Markup("<tspan {}>{}</tspan>").format(named, run) if named else escape(run))
            height = wanted
    return Markup("").join(parts)


def _set(text: str) -> list[tuple[str, list[tuple[bool, str]]]]:
    """Pieces of a text, on the line (`""`), below (`"_"`) or above (`"^"`): runs that are letters or not."""
    pieces, last = [], 0
    for found in _SCRIPTS.finditer(text):
        pieces.append(("", _symbols(text[last : found.start("scripts")])))
        for one in re.findall(_ONE, found["scripts"]):
            script = one[1:].strip("{}")
            letter = len(script) == 1 and script.isalpha()
            pieces.append((one[0], [(True, script)] if letter else _symbols(script)))
        last = found.end()
    return [*pieces, ("", _symbols(text[last:]))]


def _symbols(text: str) -> list[tuple[bool, str]]:
    """Runs of text, those marked that are single letters: variables."""
    runs, last = [], 0
    for found in _SYMBOL.finditer(text):
        runs += [(False, text[last : found.start()]), (True, found["symbol"])]
        last = found.end()
    return [run for run in [*runs, (False, text[last:])] if run[1]]
