"""Problems: what a network is trained on. `Problem` says what all of them have in common.

`matrix_factorization` (a known matrix), `matrix_sensing` (linear measurements), `matrix_completion` (some of
the entries, dense or as triplets), `targets` (matrices to factorize).
"""

from lowdim_jax.problems.base import Problem, loss_of, max_learning_rate, top_singular_value
from lowdim_jax.problems.matrix_completion import (
    Completion,
    ObservedCompletion,
    completion,
    observed_completion,
)
from lowdim_jax.problems.matrix_factorization import Factorization, factorization
from lowdim_jax.problems.matrix_sensing import Sensing, gaussian_measurements, sensing
from lowdim_jax.problems.targets import random_target, regression_target, separated_target, whiten

__all__ = [
    "Completion",
    "Factorization",
    "ObservedCompletion",
    "Problem",
    "Sensing",
    "completion",
    "factorization",
    "gaussian_measurements",
    "loss_of",
    "max_learning_rate",
    "observed_completion",
    "random_target",
    "regression_target",
    "sensing",
    "separated_target",
    "top_singular_value",
    "whiten",
]
