"""Ratings: read files of them, fit what predicts them best, predict and recommend (docs/ratings.md).

`import lowdim_jax` does not import this subpackage.
"""

from lowdim_jax.ratings.data import Ratings, hold_out, read_pairs, read_ratings
from lowdim_jax.ratings.factors import Factors, start_factors, sweep
from lowdim_jax.ratings.model import Effects, RatingModel, estimate_effects, model_of, residual_problem
from lowdim_jax.ratings.training import Chosen, fit_factors, fit_ratings

__all__ = [
    "Chosen",
    "Effects",
    "Factors",
    "RatingModel",
    "Ratings",
    "estimate_effects",
    "fit_factors",
    "fit_ratings",
    "hold_out",
    "model_of",
    "read_pairs",
    "read_ratings",
    "residual_problem",
    "start_factors",
    "sweep",
]
