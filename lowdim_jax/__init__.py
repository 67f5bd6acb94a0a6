"""Low-rank learning dynamics of deep linear networks, in JAX.

A network is a tuple of weight matrices, input to output. Build a problem (`factorization`), a network
(`orthogonal`, or `compress` for a narrow one), train it (`gradient_descent`, `gradient_flow`), and
compare with the closed forms of `theory`. The mathematics is in docs/theory.md.
"""

from typing import TYPE_CHECKING, Any

from lowdim_jax import baselines, ratings, spectra, theory
from lowdim_jax.completion import (
    Completion,
    ObservedCompletion,
    completion,
    entries,
    observed_completion,
)
from lowdim_jax.compression import compress, estimate_rank, surrogate
from lowdim_jax.descent import DescentState, gradient_descent
from lowdim_jax.factorization import Factorization, factorization
from lowdim_jax.initialization import (
    balanced,
    from_singular_vectors,
    gaussian,
    identity,
    orthogonal,
    spectral,
    uniform,
)
from lowdim_jax.linalg import LowRank, low_rank
from lowdim_jax.networks import (
    Weights,
    activations,
    compressed_widths,
    count_parameters,
    end_to_end,
    end_to_end_factors,
    forward,
    full_widths,
    parameter_count,
    roles,
    validate,
    widths,
)
from lowdim_jax.optimizers import SGD, by_role
from lowdim_jax.recovery import Fit, fit
from lowdim_jax.reduction import (
    ReducedFactorization,
    ReducedLayer,
    Reduction,
    cores,
    reduce,
    reduce_identity,
    reduced_descent,
    sample,
)
from lowdim_jax.sensing import Sensing, gaussian_measurements, sensing
from lowdim_jax.sweep import Sweep, pad, sweep
from lowdim_jax.targets import random_target, regression_target, separated_target, whiten
from lowdim_jax.trajectory import Status, Trajectory

if TYPE_CHECKING:
    from lowdim_jax.flow import gradient_flow

__all__ = [
    "SGD",
    "Completion",
    "DescentState",
    "Factorization",
    "Fit",
    "LowRank",
    "ObservedCompletion",
    "ReducedFactorization",
    "ReducedLayer",
    "Reduction",
    "Sensing",
    "Status",
    "Sweep",
    "Trajectory",
    "Weights",
    "activations",
    "balanced",
    "baselines",
    "by_role",
    "completion",
    "compress",
    "compressed_widths",
    "cores",
    "count_parameters",
    "end_to_end",
    "end_to_end_factors",
    "entries",
    "estimate_rank",
    "factorization",
    "fit",
    "forward",
    "from_singular_vectors",
    "full_widths",
    "gaussian",
    "gaussian_measurements",
    "gradient_descent",
    "gradient_flow",
    "identity",
    "low_rank",
    "observed_completion",
    "orthogonal",
    "pad",
    "parameter_count",
    "random_target",
    "ratings",
    "reduce",
    "reduce_identity",
    "reduced_descent",
    "regression_target",
    "roles",
    "sample",
    "sensing",
    "separated_target",
    "spectra",
    "spectral",
    "surrogate",
    "sweep",
    "theory",
    "uniform",
    "validate",
    "whiten",
    "widths",
]


def __getattr__(name: str) -> Any:
    """`gradient_flow`, on first use: its ODE solver takes as long to import as all the rest."""
    if name == "gradient_flow":
        from lowdim_jax.flow import gradient_flow

        return gradient_flow
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
