"""Columns of user, item and rating out of a file: whole blocks of it at once, by arrays of its bytes.

Lines that all look like the first one, which is nearly every file, are cut by the positions of their
separators, and the bytes of a field are packed into words of eight, so that NumPy finds the few different
names among the many: a fraction of a microsecond a rating. A block with anything else in it, from a quote
in a name to a line without rating, is read line by line (`lines.row_of`), which knows every layout and
names what is malformed.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lowdim_jax._reading import named, number_of, read_utf8
from lowdim_jax.ratings.lines import (
    KINDS,
    MARKS,
    TIME,
    Layout,
    first_line,
    is_rating,
    layout_of,
    row_of,
)

BLOCK = 2**22
"""Bytes that are cut at once, up to the next end of a line."""
LONG = 64
"""Bytes of a field, from which on its block is read line by line."""
WORDS = {word: mark for mark, word in MARKS.items()}
_NEWLINE, _RETURN, _QUOTE = b'\n\r"'
_MASKS = np.array([(1 << 8 * kept) - 1 for kept in range(8)] + [2**64 - 1], "u8")


class Table(NamedTuple):
    """Ratings of a file, by numbers of users and items, and the line that each is from."""

    users: np.ndarray
    items: np.ndarray
    values: np.ndarray
    lines: np.ndarray


Numbers = dict[str, int]
"""Names of users, or of items, and their numbers in order of appearance."""
Field = tuple[list[str], np.ndarray, int]
"""The different texts of a column, which of them every line has, and how many lines had theirs quoted."""


def read_table(
    path: Path,
    numbers: tuple[Numbers, Numbers],
    /,
    *,
    columns: Sequence[str] | None = None,
    kinds: Sequence[str] = KINDS,
    progress: Callable[[float], None] = lambda fraction: None,
) -> Table:
    """Users, items and ratings of a file, numbered along with those that `numbers` has.

    Without ratings where `kinds` has none: their values are NaN.

    Raises
    ------
    ValueError
        In one sentence that names file and line, if it cannot be read, a line is malformed, or its layout
        is not that of ratings.
    """
    what = f"ratings {named(path)}"
    content = read_utf8(path, what)
    line, number, place = first_line(content, what)
    layout = layout_of(line, f"{what}, line {number}", columns=columns, kinds=kinds)
    parts = []
    for begin, end in _blocks(content, place):
        block = content[begin:end]
        header = layout.header and begin == place
        part, after = _fast(block, layout, number, header) or _slow(block, layout, number, header, what)
        parts.append(_numbered(part, numbers))
        number = after
        progress(end / len(content))
    table = Table(*(np.concatenate(column) for column in zip(*parts, strict=True)))
    if not len(table.values):
        raise ValueError(f"{what} holds no rating")
    if len(kinds) == len(KINDS) and np.all((table.values >= TIME) & (table.values % 1 == 0)):
        raise ValueError(
            f"{what} was read as {layout}; but every rating is a whole number from {TIME:g} on, as times "
            "are: give columns in the order user, item, rating, or a header"
        )
    return table


def _blocks(content: bytes, place: int) -> Iterator[tuple[int, int]]:
    while place < len(content):
        end = content.find(b"\n", place + BLOCK) + 1 or len(content)
        yield place, end
        place = end


class _Part(NamedTuple):
    """A block's columns, before its names have numbers."""

    users: Field
    items: Field
    values: np.ndarray
    lines: np.ndarray


def _numbered(part: _Part, numbers: tuple[Numbers, Numbers]) -> Table:
    users, items = (
        np.array([known.setdefault(name, len(known)) for name in names], np.int32)[which]
        for (names, which, _), known in zip(part[:2], numbers, strict=True)
    )
    return Table(users, items, part.values, part.lines)


# --- Line by line ------------------------------------------------------------------------


def _slow(block: bytes, layout: Layout, number: int, header: bool, what: str) -> tuple[_Part, int]:
    """The columns of a block, and the number of the line after it."""
    lines = re.split("\r\n?|\n", block.decode())
    rows, places = [], []
    for at, line in enumerate(lines[header:], start=number + header):
        if line.strip():
            rows.append(row_of(line, layout, f"{what}, line {at}"))
            places.append(at)
    users, items, values = zip(*rows, strict=True) if rows else ((), (), ())
    part = _Part(_distinct(users), _distinct(items), np.array(values, float), np.array(places, np.int64))
    return part, number + len(lines) - 1


def _distinct(texts: Sequence[str]) -> Field:
    known: Numbers = {}
    which = [known.setdefault(text, len(known)) for text in texts]
    return list(known), np.array(which, int), 0


# --- By arrays ---------------------------------------------------------------------------


def _fast(block: bytes, layout: Layout, number: int, header: bool) -> tuple[_Part, int] | None:
    """As `_slow`, of a block whose lines are all alike; None, if they are not or something is odd."""
    if not block.endswith(b"\n"):
        block += b"\n"
    if header:
        begin = block.index(b"\n") + 1
        if b"\r" in block[: begin - 2]:
            return None
        block = block[begin:]
        number += 1
    if not block:
        return _Part(_distinct(()), _distinct(()), np.zeros(0), np.zeros(0, np.int64)), number
    mark = WORDS.get(layout.separator)
    if mark == "::":
        if b":::" in block or b"\x1f" in block:
            return None
        block, mark = block.replace(b"::", b"\x1f"), "\x1f"
    width = layout.width
    found = _fields_between_blanks(block, width) if mark is None else _fields(block, mark, width)
    if found is None:
        return None
    starts, ends = found
    quotes = _QUOTE if layout.separator in ("tabs", "semicolons", "commas") else None
    words = _eight_at_once(block)
    found = [_texts(block, words, starts[:, k], ends[:, k], quotes is not None) for k in layout.columns]
    fields = [field for field in found if field is not None]
    if len(fields) < len(found):
        return None
    users, items, *ratings = fields
    if quotes is not None and block.count(b'"') != 2 * sum(field[2] for field in fields):
        return None  # some are in other columns, and may hide separators
    if not all(users[0]) or not all(items[0]):
        return None
    values = np.full(len(starts), np.nan)
    if ratings:
        texts, which, _ = ratings[0]
        if not all(map(is_rating, texts)):
            return None
        values = np.array([number_of(text) for text in texts], float)[which]
    return _Part(users, items, values, np.arange(number, number + len(starts))), number + len(starts)


def _fields(block: bytes, mark: str, width: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Where the fields of every line begin and end, as two arrays lines × fields."""
    array = np.frombuffer(block, np.uint8)
    cuts = np.flatnonzero((array == ord(mark)) | (array == _NEWLINE))
    if len(cuts) % width:
        return None
    ends = cuts.reshape(-1, width)
    is_end = array[ends] == _NEWLINE
    if is_end[:, :-1].any() or not is_end[:, -1].all():
        return None
    starts = np.append(0, cuts[:-1] + 1).reshape(-1, width)
    returns = block.count(b"\r")
    if returns:
        before = array[ends[:, -1] - 1] == _RETURN
        if np.count_nonzero(before) != returns:
            return None
        ends[:, -1] -= before
    return starts, ends


def _fields_between_blanks(block: bytes, width: int) -> tuple[np.ndarray, np.ndarray] | None:
    """The same between any number of blanks; not where others than these two may be some."""
    if not block.isascii() or re.search(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]", block):
        return None
    if block.count(b"\r") != block.count(b"\r\n"):
        return None
    array = np.frombuffer(block, np.uint8)
    text = array > ord(" ")
    edges = np.flatnonzero(np.diff(text, prepend=False))
    starts, ends = edges[::2], edges[1::2]
    line_ends = np.flatnonzero(array == _NEWLINE)
    if len(starts) != len(line_ends) * width:
        return None
    starts, ends = starts.reshape(-1, width), ends.reshape(-1, width)
    if (ends[:, -1] > line_ends).any() or (starts[1:, 0] < line_ends[:-1]).any():
        return None
    return starts, ends


def _eight_at_once(block: bytes) -> np.ndarray:
    """The eight bytes from every place of a block on, as one number."""
    padded = block + bytes(LONG + 8)
    return np.ndarray((len(padded) - 7,), "<u8", padded, strides=(1,))


def _texts(
    block: bytes, words: np.ndarray, starts: np.ndarray, ends: np.ndarray, quotable: bool
) -> Field | None:
    """The different texts of a column, in order of appearance; None if one is long, or oddly quoted."""
    lengths = ends - starts
    longest = int(lengths.max(initial=0))
    if longest > LONG:
        return None
    both = words[starts] & _MASKS[np.minimum(lengths, 8)]
    _, firsts, which = np.unique(both, return_index=True, return_inverse=True)
    for word in range(8, longest, 8):
        kept = _MASKS[np.clip(lengths - word, 0, 8)]
        distinct, codes = np.unique(words[starts + word] & kept, return_inverse=True)
        _, firsts, which = np.unique(which * len(distinct) + codes, return_index=True, return_inverse=True)
    order = np.argsort(firsts)
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    which, firsts = rank[which], firsts[order]
    raw = [block[starts[k] : ends[k]] for k in firsts]
    texts, quoted = [], np.zeros(len(raw), bool)
    for k, text in enumerate(raw):
        if quotable and b'"' in text:
            if len(text) < 2 or text.count(b'"') != 2 or text[0] != _QUOTE or text[-1] != _QUOTE:
                return None
            text, quoted[k] = text[1:-1], True
        texts.append(text.decode().strip())
    return texts, which, int(np.count_nonzero(quoted[which]))


def repeated(table: Table, items: int, /) -> tuple[np.ndarray, np.ndarray] | None:
    """Ratings in order of user and item, as they were given, and which of them begin another pair."""
    keys = table.users.astype(np.int64) * items + table.items
    found: Any = np.sort(keys)
    if not np.any(found[1:] == found[:-1]):
        return None
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    return order, np.append(True, keys[1:] != keys[:-1])
