"""Other methods on the same ratings, their one setting chosen on held-out ratings, as ours are."""

from collections.abc import Callable
from typing import NamedTuple

from lowdim_jax.baselines import alternating_minimization, burer_monteiro, soft_impute
from lowdim_jax.networks import Weights
from lowdim_jax.problems.base import top_singular_value
from lowdim_jax.problems.matrix_completion import ObservedCompletion
from lowdim_jax.ratings.data import Ratings, hold_out
from lowdim_jax.ratings.model import RatingModel, estimate_effects, model_of, residual_problem
from lowdim_jax.ratings.training import HELD_OUT, Report

RANK = 10
BEYOND = 8
"""Values that are tried beyond the ends of a grid, while the best one is at an end."""


def effects_alone(ratings: Ratings, /) -> RatingModel:
    """User and item effects, without a network.

    Examples
    --------
    >>> import numpy as np
    >>> from lowdim_jax.ratings import Ratings
    >>> data = Ratings(np.array([0, 1]), np.array([0, 0]), np.array([4.0, 2.0]), ("ann", "bob"), ("film",))
    >>> effects_alone(data).weights is None
    True
    """
    return model_of(ratings, estimate_effects(ratings))


class Baseline(NamedTuple):
    """A method that completes what effects leave, the values of its one setting, and what it is called."""

    solve: Callable[[ObservedCompletion, float], Weights]
    grid: tuple[float, ...]
    what: str


def chosen_baseline(
    ratings: Ratings, name: str, /, *, seed: int, progress: Report
) -> tuple[RatingModel, str]:
    """One of `BASELINES`, its setting chosen on held-out ratings, then fitted to all.

    Where the best value is at an end of the grid, the grid goes on, in steps of the same ratio.

    Examples
    --------
    >>> import numpy as np
    >>> from lowdim_jax.ratings import Ratings
    >>> users, items = (part.ravel() for part in np.indices((12, 8)))
    >>> values = np.round(3 + np.sin(users) * np.cos(items), 1)
    >>> data = Ratings(users, items, values, tuple(range(12)), tuple(range(8)))
    >>> model, chosen = chosen_baseline(data, "soft-impute", seed=0, progress=lambda stage, fraction: None)
    >>> chosen.split()[:3], bool(model.rmse(data) < 1)
    (['penalty', '/', 'σ_1'], True)
    """
    solve, grid, what = BASELINES[name]
    part, held = hold_out(ratings, HELD_OUT, seed=seed)
    effects = [estimate_effects(data) for data in (part, ratings)]
    problems = [residual_problem(*both) for both in zip((part, ratings), effects, strict=True)]
    errors: dict[float, float] = {}

    def model(which: int, value: float) -> RatingModel:
        return model_of((part, ratings)[which], effects[which], solve(problems[which], value))

    waiting = list(grid)
    while waiting:
        value = waiting.pop(0)
        progress(f"{name}, {what} {value:.3g}", len(errors) / (len(errors) + len(waiting) + 1))
        errors[value] = model(0, value).rmse(held)
        if not waiting and len(errors) < len(grid) + BEYOND:
            tried = sorted(errors)
            best = min(errors, key=lambda value: errors[value])
            if best == tried[0]:
                waiting.append(best * tried[0] / tried[1])
            elif best == tried[-1]:
                waiting.append(best * tried[-1] / tried[-2])
    best = min(errors, key=lambda value: errors[value])
    progress(f"{name} on all ratings", 0.0)
    return model(1, best), f"{what} {best:.3g}"


def _als(problem: ObservedCompletion, ridge: float) -> Weights:
    return alternating_minimization(problem, rank=RANK, ridge=ridge)


def _factors(problem: ObservedCompletion, steps: float) -> Weights:
    return burer_monteiro(problem, rank=RANK, steps=max(round(steps), 1)).weights


def _nuclear(problem: ObservedCompletion, fraction: float) -> Weights:
    top = problem.fraction * float(top_singular_value(problem))  # of P_Ω(Y), not divided by p
    return soft_impute(problem, penalty=fraction * top, rank=min(4 * RANK, *problem.shape))


BASELINES = {
    "alternating minimization": Baseline(_als, (6.0, 9.0, 12.0, 18.0, 27.0), "ridge"),
    "two factors, small Gaussian start": Baseline(_factors, (25, 30, 35, 40, 50), "steps"),
    "soft-impute": Baseline(_nuclear, (0.3, 0.4, 0.5), "penalty / σ_1"),
}
