"""Tables of checks and statements on the site: mathematics set, numbers and names linked."""

import re
from html import unescape

from theory_checks.selection import all_checks
from theory_checks.writing import mathematics

PAGES = ("checks.md", "coverage.md")
_CELL = re.compile(r"<td>(.*?)</td>", re.DOTALL)
_CITED = re.compile(r"\d+\.\d+(?:, \d+\.\d+)*")
_NUMBER = re.compile(r"(\d+)\.(\d+)")
_TITLE = re.compile(r"(\d+)\.(\d+) \w.*")
_CODE = re.compile(r"<code>(.*?)</code>")
_TAG = re.compile(r"(<code>.*?</code>|<[^>]+>)")


def with_links(html: str, page: str) -> str:
    """The HTML of a page with its cells set: a check's row is its anchor on `checks.md`, a link elsewhere."""
    names = {check.name for check in all_checks()}

    def check(found: re.Match[str]) -> str:
        known = found[1] in names and page != "checks.md"
        return f'<a href="checks.html#{found[1]}">{found[0]}</a>' if known else found[0]

    def cell(found: re.Match[str]) -> str:
        text = found[1]
        if _CITED.fullmatch(text):
            return f"<td>{_NUMBER.sub(_statement, text)}</td>"
        title = _TITLE.fullmatch(text)
        if title:
            return f'<td><a href="theory.html#s{title[1]}-{title[2]}">{mathematics(unescape(text))}</a></td>'
        name = _CODE.fullmatch(text)
        if name and page == "checks.md":
            return f'<td id="{name[1]}">{text}</td>'
        parts = _TAG.split(text)
        text = "".join([part if part.startswith("<") else mathematics(unescape(part)) for part in parts])
        return f"<td>{_CODE.sub(check, text)}</td>"

    return _CELL.sub(cell, html)


def _statement(number: re.Match[str]) -> str:
    return f'<a href="theory.html#s{number[1]}-{number[2]}">{number[0]}</a>'
