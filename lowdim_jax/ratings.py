"""Ratings: users are rows, items are columns; effects first, then a compressed network on what is left."""

import csv
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from operator import methodcaller
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from lowdim_jax.completion import ObservedCompletion, entries, observed_completion
from lowdim_jax.networks import Weights
from lowdim_jax.recovery import Fit, fit

STARTS = {2: 1e-5, 3: 1e-3}
"""Depths to choose from, each with its start `ε^L` as a fraction of the largest singular value."""
WIDTHS = (20, 80)
"""Widths `r̂` to choose from."""
EDGE_FRACTION = 0.15
"""Learning rate as a fraction of the edge: small, as early stopping ends a run after some tens of steps."""
DECAY = 1 / 3
"""Weight decay as a fraction of the surrogate's noise: a singular value below it is noise in part."""
RIDGE = 5.0
"""Ratings that pull an effect towards zero: an effect of `n` ratings is shrunk by `n / (n + RIDGE)`."""
TOO_LARGE = 1e15
"""A rating of this size is no rating: its square would be near the end of single precision."""
HELD_OUT = 0.05
"""Fraction of the training ratings on which depth, width, start and stopping are chosen."""


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


@dataclass(frozen=True)
class Effects:
    """What a rating owes to its user and to its item alone: `mean + users[i] + items[j]`."""

    mean: float
    users: np.ndarray
    items: np.ndarray

    def predict(self, users: np.ndarray, items: np.ndarray) -> np.ndarray:
        """Ratings by effects alone."""
        return self.mean + self.users[users] + self.items[items]


@dataclass(frozen=True)
class RatingModel:
    """Effects and a network: a rating is `mean + user + item + W[user, item]`, cut to the scale's ends."""

    effects: Effects
    weights: Weights | None
    lowest: float
    highest: float

    def predict(self, users: np.ndarray, items: np.ndarray) -> np.ndarray:
        """Predicted ratings; of a user or an item without ratings, by what is known of the other."""
        predicted = self.effects.predict(users, items)
        if self.weights is not None:
            predicted = predicted + np.asarray(entries(self.weights, users, items))
        return np.clip(predicted, self.lowest, self.highest)

    def rmse(self, ratings: Ratings) -> float:
        """Root mean squared error of predicted ratings."""
        errors = self.predict(ratings.users, ratings.items) - ratings.values
        return float(np.sqrt(np.mean(errors**2)))


def fit_effects(ratings: Ratings, /, *, minus: np.ndarray | None = None, sweeps: int = 15) -> Effects:
    """Global mean, and shrunken user and item effects by alternating means.

    `minus` are values that something else explains already, one a rating.
    """
    values = ratings.values if minus is None else ratings.values - minus
    mean = float(values.mean())
    users, items = np.zeros(ratings.shape[0]), np.zeros(ratings.shape[1])
    for _ in range(sweeps):
        items = _shrunken_means(ratings.items, values - mean - users[ratings.users], len(items))
        users = _shrunken_means(ratings.users, values - mean - items[ratings.items], len(users))
    return Effects(mean, users, items)


def residual_problem(ratings: Ratings, effects: Effects, /) -> ObservedCompletion:
    """What effects leave of the ratings, as a completion problem, in single precision."""
    if np.ptp(ratings.values) == 0:
        raise ValueError(f"every rating to learn from is {ratings.values[0]:g}: nothing is left to learn")
    left = ratings.values - effects.predict(ratings.users, ratings.items)
    return observed_completion(
        ratings.users, ratings.items, left.astype(np.float32), shape=ratings.shape
    )


def hold_out(ratings: Ratings, fraction: float, /, *, seed: int) -> tuple[Ratings, Ratings]:
    """Ratings to train on, and a random `fraction` of them held out."""
    held = np.random.default_rng(seed).permutation(len(ratings.values)) < fraction * len(ratings.values)
    if held.all() or not held.any():
        raise ValueError(
            f"number of ratings is {len(ratings.values)}: too few to hold out {fraction:.0%} of them"
        )
    return ratings.part(~held), ratings.part(held)


def fit_ratings(
    ratings: Ratings,
    /,
    *,
    depths: Sequence[int] = tuple(STARTS),
    widths: Sequence[int] = WIDTHS,
    seed: int = 0,
    progress: bool = False,
) -> tuple[RatingModel, Fit]:
    """Fit effects and a compressed network, everything chosen on a part of the given ratings.

    The depth, the width and the number of steps with the smallest error on 5% of the ratings are
    chosen; with them all ratings are fitted once more, and the effects a last time on what the network
    leaves. Returns the model, and the fit that was chosen.

    Raises
    ------
    ValueError
        If there are too few ratings, all of them are equal, or a depth has no start.
    """
    for depth in depths:
        if depth not in STARTS:
            raise ValueError(f"depths has {depth}, expected some of {', '.join(map(str, STARTS))}")
    widths = tuple(dict.fromkeys(min(width, *ratings.shape) for width in widths))
    train, held = hold_out(ratings, HELD_OUT, seed=seed)
    effects = fit_effects(train)
    problem = residual_problem(train, effects)
    ends = float(ratings.values.min()), float(ratings.values.max())
    validate = _squared_error(held, effects, ends)
    fits = [
        _train(problem, depth, width, validate=validate, progress=progress)
        for depth in depths
        for width in widths
    ]
    chosen = min(fits, key=lambda fit: np.min(fit.validation))
    depth, width = chosen.settings["depth"], chosen.settings["rank"]

    effects = fit_effects(ratings)
    problem = residual_problem(ratings, effects)
    final = _train(problem, depth, width, steps=chosen.best_step)
    explained = np.asarray(entries(final.weights, ratings.users, ratings.items))
    effects = fit_effects(ratings, minus=explained)
    return model_of(ratings, effects, final.weights), chosen


def model_of(ratings: Ratings, effects: Effects, weights: Weights | None = None, /) -> RatingModel:
    """Model that predicts ratings between the lowest and the highest one given."""
    return RatingModel(effects, weights, float(ratings.values.min()), float(ratings.values.max()))


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


def _train(problem: ObservedCompletion, depth: int, width: int, **settings) -> Fit:
    top = 1 / float(problem.stable_learning_rate(depth=2))  # the edge of two factors is 1/σ_1
    return fit(
        problem,
        depth=depth,
        rank=width,
        scale=(STARTS[depth] * top) ** (1 / depth),
        learning_rate=EDGE_FRACTION * float(problem.stable_learning_rate(depth=depth)),
        weight_decay=DECAY * float(problem.surrogate_error()),
        check_every=3,
        **{"steps": 5000, **settings},
    )


def _squared_error(held: Ratings, effects: Effects, ends: tuple[float, float]):
    """Mean squared error on held-out ratings, as a function of the network's weights."""
    base = jnp.asarray(effects.predict(held.users, held.items), jnp.float32)
    values = jnp.asarray(held.values, jnp.float32)
    users, items = jnp.asarray(held.users), jnp.asarray(held.items)

    def validate(weights: Weights) -> jax.Array:
        return jnp.mean((jnp.clip(base + entries(weights, users, items), *ends) - values) ** 2)

    return validate


def _shrunken_means(owner: np.ndarray, values: np.ndarray, owners: int) -> np.ndarray:
    counts = np.bincount(owner, minlength=owners)
    return np.bincount(owner, values, minlength=owners) / (counts + RIDGE)


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
