"""Ratings: users are rows, items are columns; effects first, then a compressed network on what is left."""

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from lowdim_jax.fitting import Fit, fit
from lowdim_jax.networks import Weights, entries
from lowdim_jax.problems.base import top_singular_value
from lowdim_jax.problems.matrix_completion import ObservedCompletion, observed_completion
from lowdim_jax.ratings.data import Ratings, hold_out
from lowdim_jax.theory import max_learning_rate

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
HELD_OUT = 0.05
"""Fraction of the training ratings on which depth, width, start and stopping are chosen."""


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

    Examples
    --------
    >>> import numpy as np
    >>> from lowdim_jax import ratings
    >>> users, items, values = np.array([0, 0, 1]), np.array([0, 1, 0]), np.array([5.0, 3.0, 2.0])
    >>> data = ratings.Ratings(users, items, values, ("ann", "bob"), ("one", "two"))
    >>> model = ratings.model_of(data, ratings.estimate_effects(data))
    >>> model.lowest, model.highest, bool(model.rmse(data) < 1.5)
    (2.0, 5.0, True)
    """

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

    Examples
    --------
    >>> import numpy as np
    >>> from lowdim_jax import ratings
    >>> rng = np.random.default_rng(0)
    >>> users, items = (part.ravel() for part in np.indices((12, 8)))
    >>> values = np.clip(3 + rng.normal(size=12)[users] * rng.normal(size=8)[items], 1, 5)
    >>> data = ratings.Ratings(users, items, values, tuple(range(12)), tuple(range(8)))
    >>> model, _ = ratings.fit_ratings(data, depths=(2,), widths=(2,))
    >>> bool(model.rmse(data) < 1)
    True
    """
    for depth in depths:
        if depth not in STARTS:
            raise ValueError(f"depths has {depth}, expected some of {', '.join(map(str, STARTS))}")
    widths = tuple(dict.fromkeys(min(width, *ratings.shape) for width in widths))
    train, held = hold_out(ratings, HELD_OUT, seed=seed)
    effects = estimate_effects(train)
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

    effects = estimate_effects(ratings)
    problem = residual_problem(ratings, effects)
    final = _train(problem, depth, width, steps=chosen.best_step)
    explained = np.asarray(entries(final.weights, ratings.users, ratings.items))
    effects = estimate_effects(ratings, minus=explained)
    return model_of(ratings, effects, final.weights), chosen


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
    return RatingModel(effects, weights, float(ratings.values.min()), float(ratings.values.max()))


def _train(problem: ObservedCompletion, depth: int, width: int, **settings) -> Fit:
    top = float(top_singular_value(problem))
    return fit(
        problem,
        depth=depth,
        rank=width,
        scale=(STARTS[depth] * top) ** (1 / depth),
        learning_rate=EDGE_FRACTION * float(max_learning_rate(top, depth=depth)),
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
