"""Sentences of the reference: what a function returns, in words."""

import re

_SECTION = re.compile(
    r'<p><span class="doc-section-title">(Returns|Yields):</span></p>\s*<ul>(.*?)</ul>', re.DOTALL
)
_LINE = re.compile(
    r'<code>((?:(?!<code>).)*?)</code>\s*–\s*<div class="doc-md-description">\s*</div>', re.DOTALL
)
_TAG = re.compile(r"<[^>]+>")


def returned(html: str) -> str:
    """A page with what functions return as sentences: every line was taken for a type of its own."""
    return _SECTION.sub(_in_words, html)


def _in_words(section: re.Match[str]) -> str:
    lines = _LINE.findall(section[2])
    if not lines:
        return section[0]
    text = re.sub(r"`([^`]+)`", r"<code>\1</code>", " ".join([_TAG.sub("", line) for line in lines]))
    return f'<p><span class="doc-section-title">{section[1]}:</span> {text}</p>'
