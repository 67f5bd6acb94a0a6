"""Lines of user, item and rating: which layout a file has, and every line of it."""

import csv
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from lowdim_jax._reading import named, number_of, read_text, short

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
MARKS = {"\t": "tabs", "::": "'::'", ";": "semicolons", ",": "commas"}


class Layout(NamedTuple):
    """How a file is to be read: what separates its fields, and where those that count are."""

    separator: str
    split: Callable[[str], list[str]]
    columns: tuple[int, int, int]
    header: bool
    width: int

    def __str__(self) -> str:
        return f"{self.width} columns separated by {self.separator}, {'a' if self.header else 'no'} header"


def read_lines(path: Path, /) -> list[tuple[str, str, float]]:
    """User, item and rating of every line of a file; docs/inputs.md has the layouts that are taken.

    Raises
    ------
    ValueError
        In one sentence that names file and line, if it cannot be read, a line is malformed or repeats
        a user and an item, or its layout is not that of ratings.
    """
    what = f"ratings {named(path)}"
    lines = [
        (number, line)
        for number, line in enumerate(re.split("\r\n?|\n", read_text(path, what)), start=1)
        if line.strip()
    ]
    while lines and _is_comment(lines[0][1]):
        del lines[0]
    if not lines:
        raise ValueError(f"{what} holds no rating")
    layout = layout_of(lines[0][1], f"{what}, line {lines[0][0]}")
    table, first_at = [], {}
    for number, line in lines[layout.header :]:
        here = f"{what}, line {number}"
        row = _row(line, layout, here)
        if row[:2] in first_at:
            user, item = (short(name)[1:-1] for name in row[:2])
            raise ValueError(
                f"{here}: user {user} has rated item {item} before, in line {first_at[row[:2]]}"
            )
        first_at[row[:2]] = number
        table.append(row)
    if not table:
        raise ValueError(f"{what} holds no rating")
    if all(rating >= TIME and rating.is_integer() for *_, rating in table):
        raise ValueError(
            f"{what} was read as {layout}; but every rating is a whole number from {TIME:g} on, as times "
            "are: give columns in the order user, item, rating, or a header"
        )
    return table


def layout_of(line: str, here: str, /) -> Layout:
    """The layout of a file, by its first line.

    Raises
    ------
    ValueError
        If it is no header that names user, item and rating, and no line of these three either.
    """
    separator, split = _separator(line)
    fields = [field.strip() for field in split(line)]
    if len(fields) >= 3 and _is_rating(fields[2]):
        layout = Layout(separator, split, (0, 1, 2), False, len(fields))
        _check_plausible(layout, fields, here)
        return layout
    return Layout(separator, split, _header(fields, here, line, separator), True, len(fields))


def _is_comment(line: str) -> bool:
    """Whether a line before the first rating is a comment, and not one of a user whose name begins so."""
    if line.lstrip()[0] not in "#%":
        return False
    fields = _separator(line)[1](line)
    return not fields[0].strip("#% ") or not any(map(_is_rating, fields[2:3]))


def _check_plausible(layout: Layout, fields: Sequence[str], here: str) -> None:
    """Raise `ValueError` for the row of a user × item table, which begins as a line of ratings does."""
    numbers = [_is_rating(field) or field.lower() in MISSING for field in fields]
    fractions = [_is_rating(field) and not float(field).is_integer() for field in fields[:2]]
    if len(fields) > FEW_COLUMNS and all(numbers[1:]):
        why = f"more than {FEW_COLUMNS} columns of numbers are no user, item, rating and time"
    elif any(fractions):
        why = f"user {short(fields[0])} and item {short(fields[1])} are no names"
    else:
        return
    raise ValueError(f"{here} was read as {layout}; but {why}: one rating a line, or a header is expected")


def _row(line: str, layout: Layout, here: str) -> tuple[str, str, float]:
    """User, item and rating of a line."""
    fields = [field.strip() for field in layout.split(line)]
    user, item, rating = ([*fields, *[""] * (max(layout.columns) + 1)][column] for column in layout.columns)
    if not (user and item and _is_rating(rating)):
        raise ValueError(f"{here}: expected user, item and rating, found {short(line)}")
    if max(len(user), len(item)) > LONGEST_NAME:
        length = max(len(user), len(item))
        raise ValueError(f"{here} has a name of {length:,} characters, expected at most {LONGEST_NAME}")
    if len(fields) > layout.width and not layout.header and layout.separator != "blanks":
        raise ValueError(f"{here} has {len(fields)} fields, expected {layout.width} as in the first line")
    return user, item, number_of(rating)


def _separator(line: str) -> tuple[str, Callable[[str], list[str]]]:
    """What separates the fields of lines that look like this one, in words, and how to split them."""
    for mark, word in MARKS.items():
        split = partial(str.split, sep=mark) if mark == "::" else partial(_split_quoted, mark=mark)
        if mark in line and len(split(line)) >= 3:
            return word, split
    return "blanks", str.split


def _split_quoted(line: str, mark: str) -> list[str]:
    try:
        return next(csv.reader([line], delimiter=mark))
    except csv.Error:  # a field of more than 131,072 characters
        return [line]


def _is_rating(text: str) -> bool:
    try:
        return abs(number_of(text)) < LARGEST_RATING
    except ValueError:
        return False


def _header(fields: Sequence[str], here: str, line: str, separator: str) -> tuple[int, int, int]:
    """Where a header has user, item and rating."""
    plain = [re.sub("[^a-z0-9]", "", field.lower()) for field in fields]
    places = []
    for what, names in HEADERS.items():
        either = f"({'|'.join(names)})"
        forms = (f"{either}s?(id|ids|no|number|index|key)?", f"{either}.*", f".*{either}")
        exact, *loose = ([k for k, name in enumerate(plain) if re.fullmatch(form, name)] for form in forms)
        found = exact or sorted(set(loose[0] + (loose[1] if what == "rating" else [])))
        if len(found) != 1:
            raise ValueError(
                f"{here}: expected user, item and rating, or a header with one column named {what}, found "
                f"{short(line)}: {len(fields)} columns separated by {separator} "
                f"(names taken for {what}: {', '.join(names)})"
            )
        places += found
    return places[0], places[1], places[2]
