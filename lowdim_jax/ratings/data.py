"""Files of ratings: users are rows, items are columns."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from lowdim_jax._reading import named, short
from lowdim_jax.ratings.columnar import Numbers, Table, read_table, repeated
from lowdim_jax.ratings.lines import KINDS

DUPLICATES = ("error", "first", "last", "mean")
"""What becomes of a user's several ratings of an item."""


@dataclass(frozen=True)
class Ratings:
    """Ratings `values[k]` by user `users[k]` of item `items[k]`, and the names behind the numbers.

    Examples
    --------
    >>> import numpy as np
    >>> ratings = Ratings(np.array([0, 1]), np.array([0, 0]), np.array([4.0, 2.0]), ("ann", "bob"), ("film",))
    >>> ratings.shape
    (2, 1)
    """

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
    """Ratings to train on, and a random `fraction` of them held out.

    Examples
    --------
    >>> import numpy as np
    >>> users, items = np.divmod(np.arange(20), 4)
    >>> ratings = Ratings(users, items, np.ones(20), tuple("abcde"), tuple("wxyz"))
    >>> kept, held = hold_out(ratings, 0.25, seed=0)
    >>> len(kept.values), len(held.values)
    (15, 5)
    """
    held = np.random.default_rng(seed).permutation(len(ratings.values)) < fraction * len(ratings.values)
    if held.all() or not held.any():
        raise ValueError(
            f"number of ratings is {len(ratings.values)}: too few to hold out {fraction:.0%} of them"
        )
    return ratings.part(~held), ratings.part(held)


def read_ratings(
    *paths: str | Path,
    duplicates: str = "error",
    columns: Sequence[str | int] | None = None,
    progress: Callable[[float], None] = lambda fraction: None,
) -> tuple[Ratings, ...]:
    """Ratings of files `user item rating [time]`, separated by tabs, `::`, semicolons, commas or blanks.

    The first line tells which; what follows the rating is ignored. A first line whose rating is no number
    is a header: its columns may then be in any order, named `user`, `item` (or `movie`, …) and `rating`,
    with endings like `Id`; or they are given as `columns`, three names or numbers from 1 on. All files share
    their numbering of users and items, so that those of a test file without any training rating are there,
    too. docs/inputs.md has all that is taken.

    Of a user's several ratings of an item in one file, `duplicates` says what becomes: an `error`, the
    `first`, the `last` or their `mean`. `progress` is called with the fraction of a file that is read.

    Raises
    ------
    ValueError
        If a file cannot be read, does not look like ratings, or a line is malformed or repeats a user and
        an item, by its number.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp(), "ratings.csv")
    >>> _ = path.write_text("ann,film,4\\nbob,film,2.5\\nann,film,5\\n")
    >>> (ratings,) = read_ratings(path, duplicates="last")
    >>> ratings.values, list(ratings.user_names)
    (array([5. , 2.5]), ['ann', 'bob'])
    """
    if duplicates not in DUPLICATES:
        raise ValueError(f"duplicates={short(duplicates)}, expected one of {', '.join(DUPLICATES)}")
    given = None if columns is None else tuple(map(str, columns))
    numbers: tuple[Numbers, Numbers] = {}, {}
    tables = [read_table(Path(path), numbers, columns=given, progress=progress) for path in paths]
    user_names, item_names = map(tuple, numbers)
    read = []
    for path, table in zip(paths, tables, strict=True):
        users, items, values, _ = _once(path, table, (user_names, item_names), duplicates)
        read.append(Ratings(users, items, values, user_names, item_names))
    return tuple(read)


def read_pairs(
    path: str | Path, /, *, columns: Sequence[str | int] | None = None
) -> tuple[list[str], list[str]]:
    """Names of users and items, a pair a line: a file as for `read_ratings`, with or without ratings.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp(), "pairs.csv")
    >>> _ = path.write_text("item,user\\nfilm,ann\\nplay,ann\\n")
    >>> read_pairs(path)
    (['ann', 'ann'], ['film', 'play'])
    """
    numbers: tuple[Numbers, Numbers] = {}, {}
    given = None if columns is None else tuple(map(str, columns))[:2]
    table = read_table(Path(path), numbers, columns=given, kinds=KINDS[:2])
    users, items = map(list, numbers)
    return [users[k] for k in table.users], [items[k] for k in table.items]


def _once(
    path: str | Path, table: Table, names: tuple[tuple[str, ...], tuple[str, ...]], duplicates: str
) -> Table:
    """Every user's one rating of an item."""
    found = repeated(table, len(names[1]))
    if found is None:
        return table
    order, begins = found
    firsts = order[begins]
    if duplicates == "error":
        again = int(order[~begins].min())
        user, item = table.users[again], table.items[again]
        before = int(np.flatnonzero((table.users == user) & (table.items == item))[0])
        what = f"user {short(names[0][user])[1:-1]} has rated item {short(names[1][item])[1:-1]} before"
        raise ValueError(
            f"ratings {named(path)}, line {table.lines[again]}: {what}, in line {table.lines[before]}: "
            "say which rating counts (duplicates: first, last or mean)"
        )
    values = table.values[firsts]
    if duplicates == "last":
        values = table.values[order[np.append(begins[1:], True)]]
    elif duplicates == "mean":
        pair = np.cumsum(begins) - 1
        values = np.bincount(pair, table.values[order]) / np.bincount(pair)
    place = np.argsort(firsts)
    kept = firsts[place]
    return Table(table.users[kept], table.items[kept], values[place], table.lines[kept])
