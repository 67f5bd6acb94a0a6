"""Files of ratings: users are rows, items are columns."""

import csv
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from operator import methodcaller
from pathlib import Path

import numpy as np

TOO_LARGE = 1e15
"""A rating of this size is no rating: its square would be near the end of single precision."""


@dataclass(frozen=True)
class Ratings:
    """Ratings `values[k]` by user `users[k]` of item `items[k]`, and the names behind the numbers."""

    users: np.ndarray
    items: np.ndarray
    values: np.ndarray
    user_names: tuple[str, ...]
    item_names: tuple[str, ...]

    @property
    def shape(self) -> tuple[int, int]:
        """Numbers of users and items."""
        return len(self.user_names), len(self.item_names)

    def part(self, chosen: np.ndarray) -> "Ratings":
        """The chosen ratings, of the same users and items."""
        return replace(
            self, users=self.users[chosen], items=self.items[chosen], values=self.values[chosen]
        )


def hold_out(ratings: Ratings, fraction: float, /, *, seed: int) -> tuple[Ratings, Ratings]:
    """Ratings to train on, and a random `fraction` of them held out."""
    held = np.random.default_rng(seed).permutation(len(ratings.values)) < fraction * len(ratings.values)
    if held.all() or not held.any():
        raise ValueError(
            f"number of ratings is {len(ratings.values)}: too few to hold out {fraction:.0%} of them"
        )
    return ratings.part(~held), ratings.part(held)


def read_ratings(*paths: str | Path) -> tuple[Ratings, ...]:
    """Ratings of files `user item rating [time]`, separated by tabs, `::`, commas or blanks.

    The first line tells which; what follows the rating is ignored. A first line whose rating is no number
    is a header: its columns may then be in any order, named `user`, `item` (or `movie`) and `rating`, with
    endings like `Id`. All files share their numbering of users and items, so that those of a test file
    without any training rating are there, too.

    Raises
    ------
    ValueError
        If a file cannot be read or a line is malformed or repeats a user and an item, by its number.
    """
    tables = [_read_lines(Path(path)) for path in paths]
    user_names, item_names = (
        tuple(dict.fromkeys(str(row[side]) for table in tables for row in table)) for side in (0, 1)
    )
    numbers = [{name: k for k, name in enumerate(names)} for names in (user_names, item_names)]
    return tuple(
        Ratings(
            np.array([numbers[0][row[0]] for row in table]),
            np.array([numbers[1][row[1]] for row in table]),
            np.array([row[2] for row in table]),
            user_names,
            item_names,
        )
        for table in tables
    )


def _read_lines(path: Path) -> list[tuple[str, str, float]]:
    """User, item and rating of every line."""
    lines = _lines(path)
    split, columns, table, first_at = _separator(lines[0]), (0, 1, 2), [], {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        here = f"ratings {str(path)!r}, line {number}"
        fields = [field.strip() for field in split(line)]
        if number == 1 and not _is_number(fields[2:3]):
            columns = _header(fields, here, line)
            continue
        user, item, rating = ([*fields, "", "", ""][column] for column in columns)
        if not (user and item and _is_number([rating])):
            raise ValueError(f"{here}: expected user, item and rating, found {line!r}")
        if (user, item) in first_at:
            raise ValueError(
                f"{here}: user {user} has rated item {item} before, in line {first_at[user, item]}"
            )
        first_at[user, item] = number
        table.append((user, item, float(rating)))
    if not table:
        raise ValueError(f"ratings {str(path)!r} holds no rating")
    return table


def _lines(path: Path) -> list[str]:
    try:
        content = path.read_bytes()
        return re.split("\r\n?|\n", content.decode("utf-8-sig"))
    except OSError as error:
        raise ValueError(f"ratings {str(path)!r} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        number = content.count(b"\n", 0, error.start) + 1
        raise ValueError(f"ratings {str(path)!r}, line {number}: this is not UTF-8 text") from error


def _separator(line: str) -> Callable[[str], list[str]]:
    """How to split lines that look like this one into fields."""
    for mark in ("\t", "::"):
        if mark in line:
            return methodcaller("split", mark)
    return (lambda line: next(csv.reader([line]))) if "," in line else str.split


def _is_number(fields: list[str]) -> bool:
    try:
        return len(fields) == 1 and abs(float(fields[0])) < TOO_LARGE
    except ValueError:
        return False


def _header(fields: list[str], here: str, line: str) -> tuple[int, int, int]:
    """Where a header has user, item and rating."""
    places = []
    for what, pattern in (("user", "user"), ("item", "item|movie"), ("rating", "rating|score|stars")):
        found = [place for place, field in enumerate(fields) if re.match(pattern, field, re.IGNORECASE)]
        if len(found) != 1:
            raise ValueError(
                f"{here}: expected user, item and rating, or a header with one column named {what}, "
                f"found {line!r}"
            )
        places += found
    return tuple(places)
