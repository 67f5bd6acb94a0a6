"""Low-rank learning dynamics of deep linear networks, in JAX.

A network is a tuple of weight matrices, input to output. Build a problem (`factorization`), a network
(`orthogonal`, or `compress` for a narrow one), train it (`gradient_descent`, `gradient_flow`), and
compare with the closed forms of `theory`. The mathematics is in docs/theory.md.

What is not exported here stands in its room: starts in `initialization`, matrices and their decompositions
in `linalg`, what solvers train on in `problems`, the law of parsimony in `reduction`, measurements in
`spectra`. `lowdim_jax.nn`, `.ratings`, `.distributed` and `.baselines` are imported by name.
"""

from typing import TYPE_CHECKING, Any

from lowdim_jax import initialization, linalg, networks, problems, reduction, spectra, theory, window
from lowdim_jax.compression import compress
from lowdim_jax.descent import gradient_descent
from lowdim_jax.fitting import fit
from lowdim_jax.initialization import gaussian, orthogonal, spectral
from lowdim_jax.linalg import LowRank, low_rank
from lowdim_jax.networks import (
    Weights,
    compressed_widths,
    end_to_end,
    entries,
    forward,
    full_widths,
    pad,
    parameter_count,
    roles,
    widths,
)
from lowdim_jax.optimizers import GradientDescent, by_role
from lowdim_jax.problems import (
    Problem,
    completion,
    factorization,
    gaussian_measurements,
    max_learning_rate,
    observed_completion,
    random_target,
    sensing,
    separated_target,
)
from lowdim_jax.reduction import reduce, reduced_descent, sample
from lowdim_jax.sweeps import sweep
from lowdim_jax.trajectory import Trajectory

if TYPE_CHECKING:
    from lowdim_jax.flow import gradient_flow

__all__ = [
    "GradientDescent",
    "LowRank",
    "Problem",
    "Trajectory",
    "Weights",
    "by_role",
    "completion",
    "compress",
    "compressed_widths",
    "end_to_end",
    "entries",
    "factorization",
    "fit",
    "forward",
    "full_widths",
    "gaussian",
    "gaussian_measurements",
    "gradient_descent",
    "gradient_flow",
    "initialization",
    "linalg",
    "low_rank",
    "max_learning_rate",
    "networks",
    "observed_completion",
    "orthogonal",
    "pad",
    "parameter_count",
    "problems",
    "random_target",
    "reduce",
    "reduced_descent",
    "reduction",
    "roles",
    "sample",
    "sensing",
    "separated_target",
    "spectra",
    "spectral",
    "sweep",
    "theory",
    "widths",
    "window",
]


def __getattr__(name: str) -> Any:
    """`gradient_flow`, on first use: its ODE solver takes as long to import as all else. `__version__`"""
    if name == "gradient_flow":
        from lowdim_jax.flow import gradient_flow

        return gradient_flow
    if name == "__version__":
        from importlib.metadata import version

        return version("lowdim-jax")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
