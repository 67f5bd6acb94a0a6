"""Lines of user, item and rating: which layout a file has, and every line of it."""

import csv
import math
import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

from lowdim_jax._reading import number_of, short

LARGEST_RATING = 1e15
"""A rating of this size is no rating: its square would be near the end of single precision."""
LONGEST_NAME = 500
"""Characters of a name: all names are kept, and written, at the length of the longest."""
FEW_COLUMNS = 4
"""Columns of numbers that a file without a header may have: user, item, rating and time."""
TIME = 1e8
"""Whole numbers above this in every line are seconds since 1970, and no ratings."""
MISSING = ("", "na", "n/a", "nan", "null", "none", "?", "-")
HEADERS = {
    "user": ("user", "reviewer", "customer", "member", "person", "uid"),
    "item": ("item", "movie", "film", "book", "isbn", "asin", "product", "business", "track", "song",
             "artist", "album", "anime", "joke", "game", "iid"),
    "rating": ("rating", "score", "stars", "overall", "preference"),
}  # fmt: skip
"""Names of columns, to which endings like `Id` may be added, and something before `rating`."""
KINDS = tuple(HEADERS)
MARKS = {"\t": "tabs", "::": "'::'", ";": "semicolons", ",": "commas"}


class Layout(NamedTuple):
    """How a file is to be read: what separates its fields, and where those that count are."""

    separator: str
    split: Callable[[str], list[str]]
    columns: tuple[int, ...]
    header: bool
    width: int

    def __str__(self) -> str:
        return f"{self.width} columns separated by {self.separator}, {'a' if self.header else 'no'} header"


def layout_of(
    line: str, here: str, /, *, columns: Sequence[str] | None = None, kinds: Sequence[str] = KINDS
) -> Layout:
    """The layout of a file, by its first line; of user, item and rating, or of the first two of these.

    `columns` are names in the header, or numbers from 1 on.

    Raises
    ------
    ValueError
        If it is no header that names these, and no line of them either; or lacks one of `columns`.
    """
    separator, split = _separator(line, len(kinds))
    fields = [field.strip() for field in split(line)]
    if columns is not None:
        return _given(columns, fields, Layout(separator, split, (), False, len(fields)), here, kinds)
    if len(kinds) < len(KINDS):
        found = [_columns_named(fields, kind)[0] for kind in kinds]
        if all(len(places) == 1 for places in found):
            return Layout(separator, split, tuple(places[0] for places in found), True, len(fields))
        if len(fields) < len(kinds):
            raise ValueError(f"{here}: expected {' and '.join(kinds)}, found {short(line)}")
        return Layout(separator, split, tuple(range(len(kinds))), False, len(fields))
    if len(fields) >= len(KINDS) and is_rating(fields[2]):
        layout = Layout(separator, split, (0, 1, 2), False, len(fields))
        _check_plausible(layout, fields, here)
        return layout
    return Layout(separator, split, _header(fields, here, line, separator), True, len(fields))


def first_line(content: bytes, what: str, /) -> tuple[str, int, int]:
    """The first line that is neither blank nor a comment, its number, and the place where it begins.

    Raises
    ------
    ValueError
        If there is none.
    """
    place = 3 if content.startswith(b"\xef\xbb\xbf") else 0
    number = 1
    while place < len(content):
        ending = re.compile(b"\r\n?|\n").search(content, place)
        end, after = ending.span() if ending else (len(content), len(content))
        line = content[place:end].decode()
        if line.strip() and not _is_comment(line):
            return line, number, place
        place, number = after, number + 1
    raise ValueError(f"{what} holds no rating")


def _is_comment(line: str) -> bool:
    """Whether a line before the first rating is a comment, and not one of a user whose name begins so."""
    if line.lstrip()[0] not in "#%":
        return False
    fields = _separator(line)[1](line)
    return not fields[0].strip("#% ") or not any(map(is_rating, fields[2:3]))


def _check_plausible(layout: Layout, fields: Sequence[str], here: str) -> None:
    """Raise `ValueError` for the row of a user × item table, which begins as a line of ratings does."""
    numbers = [is_rating(field) or field.lower() in MISSING for field in fields]
    fractions = [is_rating(field) and not float(field).is_integer() for field in fields[:2]]
    if len(fields) > FEW_COLUMNS and all(numbers[1:]):
        why = f"more than {FEW_COLUMNS} columns of numbers are a table, for lowdim_jax.completion"
    elif any(fractions):
        why = f"user {short(fields[0])} and item {short(fields[1])} are no names"
    else:
        return
    raise ValueError(f"{here} was read as {layout}; but {why}: one rating a line, or a header is expected")


def row_of(line: str, layout: Layout, here: str, /) -> tuple[str, str, float]:
    """User, item and rating of a line; NaN, where the layout has no rating.

    Raises
    ------
    ValueError
        In one sentence that begins with `here`, if it lacks one, or looks otherwise than the first line.
    """
    fields = [field.strip() for field in layout.split(line)]
    fields += [""] * (max(layout.columns) + 1 - len(fields))
    user, item, *rating = (fields[column] for column in layout.columns)
    if not (user and item and all(map(is_rating, rating))):
        *most, last = KINDS[: len(layout.columns)]
        raise ValueError(f"{here}: expected {', '.join(most)} and {last}, found {short(line)}")
    if max(len(user), len(item)) > LONGEST_NAME:
        length = max(len(user), len(item))
        raise ValueError(f"{here} has a name of {length:,} characters, expected at most {LONGEST_NAME}")
    if len(fields) > layout.width and not layout.header and layout.separator != "blanks":
        raise ValueError(f"{here} has {len(fields)} fields, expected {layout.width} as in the first line")
    return user, item, number_of(rating[0]) if rating else math.nan


def _given(
    columns: Sequence[str], fields: Sequence[str], layout: Layout, here: str, kinds: Sequence[str]
) -> Layout:
    """The layout with the columns that somebody has named."""
    if len(columns) != len(kinds):
        raise ValueError(f"columns={','.join(columns)!r}, expected {len(kinds)}: {', '.join(kinds)}")
    if all(column.isascii() and column.isdigit() for column in columns):
        places = tuple(int(column) - 1 for column in columns)
        if min(places) < 0 or max(places) >= len(fields):
            raise ValueError(
                f"{here}: columns={','.join(columns)!r}, expected numbers from 1 to {len(fields)}: "
                f"it was read as {layout}"
            )
        if len(kinds) == len(KINDS):
            header = not is_rating(fields[places[-1]])
        else:
            header = all(k in _columns_named(fields, kind)[0] for k, kind in zip(places, kinds, strict=True))
        return layout._replace(columns=places, header=header)
    for column in columns:
        if fields.count(column) != 1:
            raise ValueError(
                f"{here}: expected a header with one column named {short(column)}, found "
                f"{short(', '.join(fields))}: {len(fields)} columns separated by {layout.separator}"
            )
    return layout._replace(columns=tuple(map(fields.index, columns)), header=True)


def _separator(line: str, least: int = len(KINDS)) -> tuple[str, Callable[[str], list[str]]]:
    """What separates the fields of lines that look like this one, in words, and how to split them."""
    for mark, word in MARKS.items():
        split = partial(str.split, sep=mark) if mark == "::" else partial(_split_quoted, mark=mark)
        if mark in line and len(split(line)) >= least:
            return word, split
    return "blanks", str.split


def _split_quoted(line: str, mark: str) -> list[str]:
    try:
        return next(csv.reader([line], delimiter=mark))
    except csv.Error:  # a field of more than 131,072 characters
        return [line]


def is_rating(text: str, /) -> bool:
    """Whether a text is a number that a rating may be."""
    try:
        return abs(number_of(text)) < LARGEST_RATING
    except ValueError:
        return False


def _columns_named(fields: Sequence[str], kind: str) -> tuple[list[int], list[int]]:
    """Columns whose names are spellings of user, item or rating; and those that only look like it."""
    plain = [re.sub("[^a-z0-9]", "", field.lower()) for field in fields]
    either = f"({'|'.join(HEADERS[kind])})"
    forms = (f"{either}s?(id|ids|no|number|index|key)?", f"{either}.*", f".*{either}")
    exact, *loose = ([k for k, name in enumerate(plain) if re.fullmatch(form, name)] for form in forms)
    return exact, sorted(set(loose[0] + (loose[1] if kind == "rating" else [])))


def _header(fields: Sequence[str], here: str, line: str, separator: str) -> tuple[int, ...]:
    """Where a header has user, item and rating."""
    places = []
    for kind, names in HEADERS.items():
        exact, loose = _columns_named(fields, kind)
        found = exact or loose
        if len(found) != 1:
            raise ValueError(
                f"{here}: expected user, item and rating, or a header with one column named {kind}, found "
                f"{short(line)}: {len(fields)} columns separated by {separator} "
                f"(names taken for {kind}: {', '.join(names)}; others are given as columns)"
            )
        places += found
    return tuple(places)
