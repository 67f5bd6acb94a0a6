"""Files of ratings: users are rows, items are columns."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from lowdim_jax.ratings.lines import read_lines


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


def read_ratings(*paths: str | Path) -> tuple[Ratings, ...]:
    """Ratings of files `user item rating [time]`, separated by tabs, `::`, semicolons, commas or blanks.

    The first line tells which; what follows the rating is ignored. A first line whose rating is no number
    is a header: its columns may then be in any order, named `user`, `item` (or `movie`, …) and `rating`,
    with endings like `Id`. All files share their numbering of users and items, so that those of a test
    file without any training rating are there, too. docs/inputs.md has all that is taken.

    Raises
    ------
    ValueError
        If a file cannot be read, does not look like ratings, or a line is malformed or repeats a user and
        an item, by its number.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp(), "ratings.csv")
    >>> _ = path.write_text("ann,film,4\\nbob,film,2.5\\n")
    >>> (ratings,) = read_ratings(path)
    >>> ratings.values, list(ratings.user_names)
    (array([4. , 2.5]), ['ann', 'bob'])
    """
    tables = [read_lines(Path(path)) for path in paths]
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
