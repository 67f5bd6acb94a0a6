"""Fit ratings: effects, a compressed network, factors with their certainty; chosen on held-out ratings."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lowdim_jax._reading import short
from lowdim_jax.descent import DescentState
from lowdim_jax.fitting import Fit, fit
from lowdim_jax.networks import Weights, end_to_end, entries
from lowdim_jax.problems.base import top_singular_value
from lowdim_jax.problems.matrix_completion import ObservedCompletion
from lowdim_jax.ratings.data import Ratings, hold_out
from lowdim_jax.ratings.factors import Factors, start_factors, sweep
from lowdim_jax.ratings.model import Effects, RatingModel, estimate_effects, model_of, residual_problem
from lowdim_jax.theory import max_learning_rate

STARTS = {2: 1e-5, 3: 1e-3}
"""Depths to choose from, each with its start `ε^L` as a fraction of the largest singular value."""
WIDTHS = (20, 80)
"""Widths `r̂` to choose from."""
EDGE_FRACTION = 0.15
"""Learning rate as a fraction of the edge: small, as early stopping ends a run after some tens of steps."""
DECAY = 1 / 3
"""Weight decay as a fraction of the surrogate's noise: a singular value below it is noise in part."""
HELD_OUT = 0.05
"""Fraction of the training ratings on which everything is chosen."""
METHODS = ("network", "factors")
LARGE = 5_000_000
"""Ratings from which on the network is left out by default: it takes longer, and predicts worse."""
RANKS, FEW = (10, 20, 10, 20), 4_000_000
"""Factors of a user or an item, from each of several random starts whose predictions are averaged; fewer
starts, if ratings × starts would be more than `FEW`."""
SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""Weights of the network in its mean with the factors, to choose from."""
SWEEPS, PATIENCE, GAIN = 200, 10, 3e-4
"""Sweeps at most; they end where `PATIENCE` of them have not made the error smaller by a fraction `GAIN`."""

WORTH = 1e-4
"""Fraction by which something has to be better than effects alone."""
EXPECTED = 60
"""Sweeps that are usual, to tell how long it still takes."""

Report = Callable[[str, float], None]
"""Called with the name of a stage, and the fraction of it that is done."""


@dataclass(frozen=True)
class Chosen:
    """What was chosen on held-out training ratings, and why.

    Parameters
    ----------
    method
        `"effects"`, `"network"`, `"factors"`, or `"both"`: a weighted mean of the last two.
    errors
        Root mean squared error on the held-out ratings, by candidate.
    network
        The chosen network's fit on the other ratings; None, if none was tried.
    sweeps, starts
        Of the factors; 0, if they were not tried.
    again
        Whether effects are estimated again on what the network leaves.
    share
        The network's weight in the mean.

    Examples
    --------
    >>> str(Chosen("effects", {"effects": 0.94}))
    'effects'
    """

    method: str
    errors: dict[str, float] = field(default_factory=dict)
    network: Fit | None = None
    sweeps: int = 0
    starts: int = 0
    again: bool = False
    share: float = 0.0

    def __str__(self) -> str:
        parts = []
        if self.network is not None and self.method != "factors":
            used = self.network.settings
            again = ", effects again" if self.again else ""
            steps = f"{self.network.best_step} steps{again}"
            parts.append(f"depth {used['depth']}, width {used['rank']}, {steps}")
        if self.starts and self.method != "network":
            ranks = " + ".join(map(str, RANKS[: self.starts]))
            parts.append(f"{ranks} factors, {self.sweeps} sweeps")
        if self.method == "both":
            parts.append(f"share of the network {self.share:g}")
        return "; ".join(parts) or self.method


def fit_ratings(
    ratings: Ratings,
    /,
    *,
    depths: Sequence[int] = tuple(STARTS),
    widths: Sequence[int] = WIDTHS,
    methods: Sequence[str] | None = None,
    seed: int = 0,
    progress: Report = lambda stage, fraction: None,
) -> tuple[RatingModel, Chosen]:
    """Fit effects, and beside them a compressed network and factors, everything chosen on held-out ratings.

    Of effects alone, the network (its depth, width and number of steps, and whether effects are estimated
    again after it), the factors (their number of sweeps) and a mean of the last two, the one with the
    smallest error on 5% of the ratings is taken, and fitted once more to all. `methods` are those tried
    beside effects, by default both, and only `factors` from five million ratings on. Returns the model and
    what was chosen.

    Raises
    ------
    ValueError
        If there are too few ratings, all of them are equal, a depth has no start, or a method is none.

    Examples
    --------
    >>> import numpy as np
    >>> from lowdim_jax import ratings
    >>> rng = np.random.default_rng(0)
    >>> users, items = (part.ravel() for part in np.indices((12, 8)))
    >>> values = np.clip(3 + rng.normal(size=12)[users] * rng.normal(size=8)[items], 1, 5)
    >>> data = ratings.Ratings(users, items, values, tuple(range(12)), tuple(range(8)))
    >>> model, chosen = ratings.fit_ratings(data, depths=(2,), widths=(2,))
    >>> bool(model.rmse(data) < 1), min(chosen.errors, key=chosen.errors.get) == chosen.method
    (True, True)
    """
    for depth in depths:
        if depth not in STARTS:
            raise ValueError(f"depths has {depth}, expected some of {', '.join(map(str, STARTS))}")
    if methods is None:
        methods = METHODS if len(ratings.values) < LARGE else ("factors",)
    for method in methods:
        if method not in METHODS:
            raise ValueError(f"methods has {short(method)}, expected some of {', '.join(METHODS)}")
    if np.ptp(ratings.values) == 0:
        raise ValueError(f"every rating to learn from is {ratings.values[0]:g}: nothing is left to learn")
    power = int(np.floor(np.log10(np.abs(ratings.values).max())))
    if abs(power) > 3:  # single precision is not at its ends
        settings = {"depths": depths, "widths": widths, "methods": methods, "seed": seed}
        unit = 10.0**power
        scaled = replace(ratings, values=ratings.values / unit)
        return _in_units(*fit_ratings(scaled, **settings, progress=progress), ratings, unit)
    train, held = hold_out(ratings, HELD_OUT, seed=seed)
    progress("effects", 0.0)
    effects = estimate_effects(train)
    base = model_of(train, effects)
    errors = {"effects": base.rmse(held)}
    tried = _Tried(train, held, effects, (base.lowest, base.highest), progress)
    found, again, sweeps, starts = None, False, 0, 0
    predicted, share = {}, 0.0
    if "network" in methods:
        found, again, predicted["network"] = _choose_network(tried, depths, widths)
    if "factors" in methods:
        starts = int(np.clip(FEW // len(ratings.values), 1, len(RANKS)))
        sweeps, predicted["factors"] = _choose_sweeps(tried, starts)
    if len(predicted) == 2:
        means = {k: k * predicted["network"] + (1 - k) * predicted["factors"] for k in SHARES}
        share = min(means, key=lambda k: tried.rmse(means[k]))
        predicted["both"] = means[share]
    errors |= {name: tried.rmse(values) for name, values in predicted.items()}
    method = min(errors, key=lambda name: errors[name])
    if errors[method] > (1 - WORTH) * errors["effects"]:
        method = "effects"
    chosen = Chosen(method, errors, found, sweeps, starts, again, share)
    return _refit(ratings, chosen, progress), chosen


def _in_units(
    model: RatingModel, chosen: Chosen, ratings: Ratings, unit: float
) -> tuple[RatingModel, Chosen]:
    """A model of ratings that were divided by `unit`, and what was chosen, for the ratings themselves."""
    effects = Effects(unit * model.effects.mean, unit * model.effects.users, unit * model.effects.items)
    weights = model.weights and (*model.weights[:-1], model.weights[-1] * unit)
    errors = {name: unit * error for name, error in chosen.errors.items()}
    return model_of(ratings, effects, weights), replace(chosen, errors=errors)


class _Tried(NamedTuple):
    """What every candidate is fitted to, and judged on."""

    train: Ratings
    held: Ratings
    effects: Effects
    ends: tuple[float, float]
    progress: Report

    def rmse(self, predicted: np.ndarray) -> float:
        """Error on the held-out ratings; infinite, if something is not finite."""
        error = float(np.sqrt(np.mean((np.clip(predicted, *self.ends) - self.held.values) ** 2)))
        return error if np.isfinite(error) else np.inf


def _refit(ratings: Ratings, chosen: Chosen, progress: Report) -> RatingModel:
    """The chosen one, fitted to all ratings."""
    models = []
    if chosen.network is not None and chosen.method in ("network", "both"):
        models.append(_network_on_all(ratings, chosen.network, chosen.again, progress))
    if chosen.method in ("factors", "both"):
        models.append(fit_factors(ratings, starts=chosen.starts, sweeps=chosen.sweeps, progress=progress))
    if not models:
        return model_of(ratings, estimate_effects(ratings))
    return models[0] if len(models) == 1 else _mean(ratings, models[0], models[1], chosen.share)


def _mean(ratings: Ratings, one: RatingModel, two: RatingModel, share: float) -> RatingModel:
    """A weighted mean of models: last layers side by side, and what goes into them below one another."""
    shares, models = (share, 1 - share), (one, two)
    effects = Effects(
        sum(part * model.effects.mean for part, model in zip(shares, models, strict=True)),
        np.tensordot(shares, [model.effects.users for model in models], 1),
        np.tensordot(shares, [model.effects.items for model in models], 1),
    )
    layers = [tuple(model.weights or ()) for model in models]
    firsts = [part * end_to_end(weights[:-1]) for part, weights in zip(shares, layers, strict=True)]
    last = jnp.concatenate([weights[-1] for weights in layers], axis=1)
    return model_of(ratings, effects, (jnp.concatenate(firsts), last))


def _network_on_all(ratings: Ratings, found: Fit, again: bool, progress: Report) -> RatingModel:
    effects = estimate_effects(ratings)
    weights = _train(
        residual_problem(ratings, effects),
        found.settings["depth"],
        found.settings["rank"],
        steps=found.best_step,
        callback=_following(progress, "network on all ratings", found.best_step),
    ).weights
    if again:
        effects = estimate_effects(ratings, minus=_entries(weights, ratings))
    return model_of(ratings, effects, weights)


# --- The network -------------------------------------------------------------------------


def _choose_network(
    tried: _Tried, depths: Sequence[int], widths: Sequence[int]
) -> tuple[Fit, bool, np.ndarray]:
    """Depth, width and steps; whether effects are estimated again; and what these predict."""
    train, held = tried.train, tried.held
    problem = residual_problem(train, tried.effects)
    validate = _squared_error(held, tried.effects, tried.ends)
    widths = tuple(dict.fromkeys(min(width, *train.shape) for width in widths))
    settings = [(depth, width) for depth in depths for width in widths]
    fits: list[Fit] = []
    for k, (depth, width) in enumerate(settings, start=1):
        name = f"network of depth {depth}, width {width} ({k} of {len(settings)})"
        expected = int(fits[-1].steps[-1]) if fits else 300
        follow = _following(tried.progress, name, expected)
        fits.append(_train(problem, depth, width, validate=validate, callback=follow))
    best = min(fits, key=lambda fit: np.min(fit.validation))
    explained = _entries(best.weights, held)
    plain = tried.effects.predict(held.users, held.items) + explained
    effects = estimate_effects(train, minus=_entries(best.weights, train))
    again = effects.predict(held.users, held.items) + explained
    better = tried.rmse(again) < tried.rmse(plain)
    return best, better, again if better else plain


def _train(problem: ObservedCompletion, depth: int, width: int, **settings) -> Fit:
    top = float(top_singular_value(problem))
    with np.errstate(all="ignore"):  # of three ratings hardly anything is left
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


def _following(progress: Report, name: str, expected: int) -> Callable[[DescentState], None]:
    """A callback of `fit` that reports steps; `expected` may be passed, as early stopping ends a run."""
    progress(name, 0.0)

    def follow(state: DescentState) -> None:
        progress(name, min(int(state.step) / max(expected, 1), 0.99))

    return follow


def _squared_error(held: Ratings, effects: Effects, ends: tuple[float, float]):
    """Mean squared error on held-out ratings, as a function of the network's weights."""
    base = jnp.asarray(effects.predict(held.users, held.items), jnp.float32)
    values = jnp.asarray(held.values, jnp.float32)
    users, items = jnp.asarray(held.users), jnp.asarray(held.items)

    def validate(weights: Weights) -> jax.Array:
        return jnp.mean((jnp.clip(base + entries(weights, users, items), *ends) - values) ** 2)

    return validate


def _entries(weights: Weights, ratings: Ratings) -> np.ndarray:
    """`W` at all ratings, a block at a time."""
    blocks = np.array_split(np.arange(len(ratings.values)), len(ratings.values) // 2**18 + 1)
    parts = [entries(weights, ratings.users[part], ratings.items[part]) for part in blocks]
    return np.concatenate([np.asarray(part) for part in parts])


# --- The factors -------------------------------------------------------------------------


def _choose_sweeps(tried: _Tried, starts: int) -> tuple[int, np.ndarray]:
    """The number of sweeps with the smallest error of the mean over starts, and what it predicts."""
    held = tried.held
    runs = _runs(tried.train, starts)
    errors: list[float] = []
    best = np.zeros(0)
    name = f"factors from {starts} start{'s' if starts > 1 else ''}"
    while len(errors) < SWEEPS:
        if min(errors, default=0) > (1 - GAIN) * min(errors[:-PATIENCE], default=np.inf):
            break
        tried.progress(name, min(len(errors) / EXPECTED, 0.99))
        for run in runs:
            sweep(run)
        predicted = np.mean([run.predict(held.users, held.items) for run in runs], axis=0)
        errors.append(tried.rmse(predicted))
        if errors[-1] == min(errors):
            best = predicted
    return int(np.argmin(errors)) + 1, best


def _runs(ratings: Ratings, starts: int) -> list[Factors]:
    return [
        start_factors(ratings, rank=min(rank, *ratings.shape), seed=seed)
        for seed, rank in enumerate(RANKS[:starts])
    ]


def fit_factors(
    ratings: Ratings,
    /,
    *,
    starts: int,
    sweeps: int,
    progress: Report = lambda stage, fraction: None,
) -> RatingModel:
    """Variational factors, the average over random starts: their factors side by side make one network.

    Examples
    --------
    >>> import numpy as np
    >>> from lowdim_jax import ratings
    >>> users, items = (part.ravel() for part in np.indices((12, 8)))
    >>> values = 3.0 + np.sin(users) * np.cos(items)
    >>> data = ratings.Ratings(users, items, values, tuple(range(12)), tuple(range(8)))
    >>> model = ratings.fit_factors(data, starts=2, sweeps=40)
    >>> [layer.shape for layer in model.weights], bool(model.rmse(data) < 0.01)
    ([(16, 8), (12, 16)], True)
    """
    runs = _runs(ratings, starts)
    for k in range(sweeps):
        progress("factors on all ratings", k / sweeps)
        for run in runs:
            sweep(run)
    effects = Effects(
        runs[0].mean,
        np.mean([run.unit * run.users.mean[:, 0] for run in runs], axis=0, dtype=float),
        np.mean([run.unit * run.items.mean[:, 0] for run in runs], axis=0, dtype=float),
    )
    first = jnp.concatenate([run.weights[0] for run in runs]) / starts
    last = jnp.concatenate([run.weights[1] for run in runs], axis=1)
    return model_of(ratings, effects, (first, last))
