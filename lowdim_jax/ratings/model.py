"""A model of ratings: effects and a matrix of low rank; predicts, recommends, is saved and loaded."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from lowdim_jax.networks import Weights, entries
from lowdim_jax.problems.matrix_completion import ObservedCompletion, observed_completion
from lowdim_jax.ratings.data import Ratings
from lowdim_jax.ratings.stored import read_model, write_model

RIDGE = 5.0
"""Ratings that pull an effect towards zero: an effect of `n` ratings is shrunk by `n / (n + RIDGE)`."""
TOGETHER = 2**18
"""Ratings that are predicted at once: their factors side by side would be large."""


@dataclass(frozen=True)
class Effects:
    """What a rating owes to its user and to its item alone: `mean + users[i] + items[j]`.

    Examples
    --------
    >>> import numpy as np
    >>> effects = Effects(3.0, np.array([0.5, -0.5]), np.array([1.0]))
    >>> effects.predict(np.array([0, 1]), np.array([0, 0]))
    array([4.5, 3.5])
    """

    mean: float
    users: np.ndarray
    items: np.ndarray

    def predict(self, users: np.ndarray, items: np.ndarray) -> np.ndarray:
        """Ratings by effects alone."""
        return self.mean + self.users[users] + self.items[items]


@dataclass(frozen=True)
class RatingModel:
    """Effects and a network: a rating is `mean + user + item + W[user, item]`, cut to the scale's ends.

    Users and items are numbers, in the order of `user_names` and `item_names`; −1 is one without a name here.
    `rated_users` and `rated_items` are the pairs that were learned from, by which unseen ones are known.

    Examples
    --------
    >>> import numpy as np
    >>> from lowdim_jax import ratings
    >>> users, items, values = np.array([0, 0, 1]), np.array([0, 1, 0]), np.array([5.0, 3.0, 2.0])
    >>> data = ratings.Ratings(users, items, values, ("ann", "bob"), ("one", "two"))
    >>> model = ratings.model_of(data, ratings.estimate_effects(data))
    >>> model.lowest, model.highest, bool(model.rmse(data) < 1.5)
    (2.0, 5.0, True)
    >>> items, predicted = model.recommend(model.numbers(["bob"], ["two"])[0][0], top=3)
    >>> items, predicted.round(1)
    (array([1]), array([3.]))
    """

    effects: Effects
    weights: Weights | None
    lowest: float
    highest: float
    user_names: tuple[str, ...]
    item_names: tuple[str, ...]
    rated_users: np.ndarray
    rated_items: np.ndarray

    def numbers(self, users: Sequence[str], items: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Numbers of users and items, by their names; −1 for a name that no rating had."""
        return tuple(
            np.array([known.get(name, -1) for name in asked], int)
            for known, asked in zip(self._numbers, (users, items), strict=True)
        )  # pyright: ignore[reportReturnType]

    def unseen(self, users: np.ndarray, items: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Which users, and which items, had no rating to learn from."""
        user_counts, item_counts = self._counts
        return user_counts[users] == 0, item_counts[items] == 0

    def predict(self, users: np.ndarray, items: np.ndarray) -> np.ndarray:
        """Predicted ratings; of a user or an item without ratings, by what is known of the other."""
        effects, known = self.effects, (np.asarray(users) >= 0) & (np.asarray(items) >= 0)
        predicted = effects.mean + np.where(users >= 0, effects.users[users], 0)
        predicted = predicted + np.where(items >= 0, effects.items[items], 0)
        if self.weights is not None:
            for begin in range(0, len(users), TOGETHER):
                part = slice(begin, begin + TOGETHER)
                rows, columns = np.maximum(users[part], 0), np.maximum(items[part], 0)
                predicted[part] += np.where(known[part], np.asarray(entries(self.weights, rows, columns)), 0)
        return np.clip(predicted, self.lowest, self.highest)

    def recommend(self, user: int, /, *, top: int, rated: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """The `top` items of highest predicted rating, without those that the user has `rated`; and these.

        Items beyond the scale's end are ordered by what they would be without it.
        """
        predicted = self.effects.mean + self.effects.items
        if user >= 0:
            predicted = predicted + self.effects.users[user]
            if self.weights is not None:
                row = np.asarray(self.weights[-1])[user]
                for layer in self.weights[-2::-1]:
                    row = row @ np.asarray(layer)
                predicted = predicted + row
        choice = self._counts[1][:-1] > 0
        if user >= 0 and not rated:
            first, last = np.searchsorted(self.rated_users, [user, user + 1])
            choice[self.rated_items[first:last]] = False
        items = np.flatnonzero(choice)
        items = items[np.argsort(-predicted[items], kind="stable")[:top]]
        return items, np.clip(predicted[items], self.lowest, self.highest)

    def rmse(self, ratings: Ratings) -> float:
        """Root mean squared error of predicted ratings."""
        return _rmse(self.predict(ratings.users, ratings.items), ratings.values)

    def save(self, path: str | Path, /) -> None:
        """Write the model to one file, `.npz` without anything but arrays; docs/ratings.md says which."""
        arrays = {
            "mean": np.array(self.effects.mean, float),
            "user_effects": self.effects.users,
            "item_effects": self.effects.items,
            "scale": np.array([self.lowest, self.highest], float),
            "users": np.array(self.user_names, str),
            "items": np.array(self.item_names, str),
            "rated_items": self.rated_items,
            "rated_ends": np.searchsorted(self.rated_users, np.arange(len(self.user_names)), "right"),
        }
        write_model(Path(path), arrays, self.weights or ())

    @classmethod
    def load(cls, path: str | Path, /) -> "RatingModel":
        """Read a model that was saved.

        Raises
        ------
        ValueError
            In one sentence, if the file cannot be read, is no model, of another version, or damaged.
        """
        arrays, weights = read_model(Path(path))
        counts = np.diff(arrays["rated_ends"].astype(np.int64), prepend=0)
        return cls(
            Effects(float(arrays["mean"]), arrays["user_effects"], arrays["item_effects"]),
            weights or None,
            float(arrays["scale"][0]),
            float(arrays["scale"][1]),
            tuple(arrays["users"].tolist()),
            tuple(arrays["items"].tolist()),
            np.repeat(np.arange(len(counts), dtype=np.int32), counts),
            arrays["rated_items"],
        )

    @cached_property
    def _numbers(self) -> tuple[dict[str, int], dict[str, int]]:
        both = self.user_names, self.item_names
        users, items = ({name: k for k, name in enumerate(names)} for names in both)
        return users, items

    @cached_property
    def _counts(self) -> tuple[np.ndarray, np.ndarray]:
        """Ratings of every user and item; a last one is for −1 and has none."""
        return (
            np.bincount(self.rated_users, minlength=len(self.user_names) + 1),
            np.bincount(self.rated_items, minlength=len(self.item_names) + 1),
        )


def estimate_effects(ratings: Ratings, /, *, minus: np.ndarray | None = None, sweeps: int = 15) -> Effects:
    """Global mean, and shrunken user and item effects by alternating means.

    `minus` are values that something else explains already, one a rating.

    Examples
    --------
    >>> import numpy as np
    >>> from lowdim_jax import ratings
    >>> users, items, values = np.array([0, 0, 1]), np.array([0, 1, 0]), np.array([5.0, 3.0, 2.0])
    >>> data = ratings.Ratings(users, items, values, ("ann", "bob"), ("one", "two"))
    >>> effects = ratings.estimate_effects(data)
    >>> round(float(effects.mean), 3), bool(effects.users[0] > effects.users[1])
    (3.333, True)
    """
    values = ratings.values if minus is None else ratings.values - minus
    mean = float(values.mean())
    users, items = np.zeros(ratings.shape[0]), np.zeros(ratings.shape[1])
    for _ in range(sweeps):
        items = _shrunken_means(ratings.items, values - mean - users[ratings.users], len(items))
        users = _shrunken_means(ratings.users, values - mean - items[ratings.items], len(users))
    return Effects(mean, users, items)


def residual_problem(ratings: Ratings, effects: Effects, /) -> ObservedCompletion:
    """What effects leave of the ratings, as a completion problem, in single precision.

    Examples
    --------
    >>> import numpy as np
    >>> from lowdim_jax import ratings
    >>> users, items, values = np.array([0, 0, 1]), np.array([0, 1, 0]), np.array([5.0, 3.0, 2.0])
    >>> data = ratings.Ratings(users, items, values, ("ann", "bob"), ("one", "two"))
    >>> ratings.residual_problem(data, ratings.estimate_effects(data)).shape
    (2, 2)
    """
    if np.ptp(ratings.values) == 0:
        raise ValueError(f"every rating to learn from is {ratings.values[0]:g}: nothing is left to learn")
    left = ratings.values - effects.predict(ratings.users, ratings.items)
    return observed_completion(
        ratings.users, ratings.items, left.astype(np.float32), shape=ratings.shape
    )


def model_of(ratings: Ratings, effects: Effects, weights: Weights | None = None, /) -> RatingModel:
    """Model that predicts ratings between the lowest and the highest one given.

    Examples
    --------
    >>> import numpy as np
    >>> from lowdim_jax import ratings
    >>> users, items, values = np.array([0, 0, 1]), np.array([0, 1, 0]), np.array([5.0, 3.0, 2.0])
    >>> data = ratings.Ratings(users, items, values, ("ann", "bob"), ("one", "two"))
    >>> model = ratings.model_of(data, ratings.estimate_effects(data))
    >>> model.predict(np.array([1]), np.array([1])).round(1)
    array([3.])
    """
    order = np.argsort(ratings.users, kind="stable")
    return RatingModel(
        effects,
        weights,
        float(ratings.values.min()),
        float(ratings.values.max()),
        tuple(map(str, ratings.user_names)),
        tuple(map(str, ratings.item_names)),
        ratings.users[order].astype(np.int32),
        ratings.items[order].astype(np.int32),
    )


def _rmse(predicted: np.ndarray, values: np.ndarray) -> float:
    return float(np.sqrt(np.mean((predicted - values) ** 2)))


def _shrunken_means(owner: np.ndarray, values: np.ndarray, owners: int) -> np.ndarray:
    counts = np.bincount(owner, minlength=owners)
    return np.bincount(owner, values, minlength=owners) / (counts + RIDGE)
