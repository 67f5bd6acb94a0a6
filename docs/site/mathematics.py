"""TeX to MathML, which browsers set without a script."""

import re
from functools import cache
from html import unescape

from latex2mathml.converter import convert

_INLINE = re.compile(r'<span class="arithmatex">\\\((.*?)\\\)</span>', re.DOTALL)
_PUNCTUATED = re.compile(r"(\(?)(<math[^>]*display=\"inline\".*?</math>)([.,;:)!?’”\"]*)", re.DOTALL)
_DISPLAY = re.compile(r'<div class="arithmatex">\\\[(.*?)\\\]</div>', re.DOTALL)


def set_all(html: str) -> str:
    """A page's HTML with its mathematics set."""
    html = _DISPLAY.sub(lambda found: _set(unescape(found[1]), "block"), html)
    html = _INLINE.sub(lambda found: _set(unescape(found[1]), "inline"), html)
    return _PUNCTUATED.sub(_together, html)


def _together(found: re.Match[str]) -> str:
    """A formula and the punctuation around it on one line: browsers break next to a formula."""
    around = found[1] or found[3]
    return f'<span class="nobreak">{found[0]}</span>' if around else found[0]


@cache
def _set(tex: str, display: str) -> str:
    tex = tex.replace(r"\cr", r"\\")
    # f''^2 has two superscripts to the converter, where TeX has one.
    tex = re.sub(r"([A-Za-z])('{2,})(?=\^)", r"{\1\2}", tex)
    return convert(tex, display=display)
