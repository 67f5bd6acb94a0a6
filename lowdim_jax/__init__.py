"""Low-rank learning dynamics of deep linear networks, in JAX.

A network is a tuple of weight matrices, input to output. Build a problem (`factorization`), a network
(`orthogonal`, or `compress` for a narrow one), train it (`gradient_descent`, `gradient_flow`), and
compare with the closed forms of `theory`. The mathematics is in docs/theory.md.

What is not exported here stands in its room: starts in `initialization`, matrices and their decompositions
in `linalg`, what solvers train on in `problems`, the law of parsimony in `reduction`, measurements in
`spectra`. `lowdim_jax.nn`, `.ratings`, `.distributed` and `.baselines` are imported by name.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lowdim_jax import initialization, linalg, networks, problems, reduction, spectra, theory, window
    from lowdim_jax.compression import compress
    from lowdim_jax.descent import gradient_descent
    from lowdim_jax.fitting import fit
    from lowdim_jax.flow import gradient_flow
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


_ROOMS = {
    "compression": ("compress",),
    "descent": ("gradient_descent",),
    "fitting": ("fit",),
    "flow": ("gradient_flow",),
    "initialization": ("gaussian", "orthogonal", "spectral"),
    "linalg": ("LowRank", "low_rank"),
    "networks": (
        "Weights",
        "compressed_widths",
        "end_to_end",
        "entries",
        "forward",
        "full_widths",
        "pad",
        "parameter_count",
        "roles",
        "widths",
    ),
    "optimizers": ("GradientDescent", "by_role"),
    "problems": (
        "Problem",
        "completion",
        "factorization",
        "gaussian_measurements",
        "max_learning_rate",
        "observed_completion",
        "random_target",
        "sensing",
        "separated_target",
    ),
    "reduction": ("reduce", "reduced_descent", "sample"),
    "sweeps": ("sweep",),
    "trajectory": ("Trajectory",),
}
"""The modules that names are from, which are attributes, too; other names are modules themselves."""


def __getattr__(name: str) -> Any:
    """Import a name on first use: command lines answer, and set JAX up, before JAX is imported."""
    if name == "__version__":
        from importlib.metadata import PackageNotFoundError, version

        try:
            return version("lowdim-jax")
        except PackageNotFoundError:  # a checkout on Python's path
            return "not installed"
    if name not in (*__all__, *_ROOMS):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    room = next((room for room, names in _ROOMS.items() if name in names), None)
    if room is None:
        return import_module(f"{__name__}.{name}")
    return globals().setdefault(name, getattr(import_module(f"{__name__}.{room}"), name))
