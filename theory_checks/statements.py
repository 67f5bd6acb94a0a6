"""The numbered statements of docs/theory.md, which comes with the package: a check names those it tests."""

import re
from functools import cache
from importlib.resources import files

_HEADING = re.compile(r"^(#{2,3}) (?:(\d+\.\d+) )?(.*)$", re.MULTILINE)


def statement(number: str, /) -> str:
    """A statement as Markdown, its heading first.

    Parameters
    ----------
    number
        For example `"2.1"`.

    Raises
    ------
    ValueError
        If there is no such statement.

    Examples
    --------
    >>> print(statement("2.1").partition("\\n")[0])
    2.1 Decoupling
    """
    if number not in _statements():
        raise ValueError(f"there is no statement {number!r}; there are {', '.join(_statements())}")
    return _statements()[number]


@cache
def _statements() -> dict[str, str]:
    """Text of each statement by its number, in order."""
    text = files("theory_checks").joinpath("theory.md").read_text(encoding="utf-8")
    headings = [*_HEADING.finditer(text)]
    ends = [heading.start() for heading in headings[1:]] + [len(text)]
    return {
        heading[2]: f"{heading[2]} {heading[3]}\n\n{text[heading.end() : end].strip()}"
        for heading, end in zip(headings, ends, strict=True)
        if heading[2]
    }
