"""Ratings: read files of them, fit effects and a compressed network, predict (docs/ratings.md).

`import lowdim_jax` does not import this subpackage.
"""

from lowdim_jax.ratings.data import Ratings, hold_out, read_ratings
from lowdim_jax.ratings.model import (
    Effects,
    RatingModel,
    estimate_effects,
    fit_ratings,
    model_of,
    residual_problem,
)

__all__ = [
    "Effects",
    "RatingModel",
    "Ratings",
    "estimate_effects",
    "fit_ratings",
    "hold_out",
    "model_of",
    "read_ratings",
    "residual_problem",
]
