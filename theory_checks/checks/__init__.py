"""The checks, one module a family; importing this package registers them."""

from theory_checks.checks import (
    any_width,
    closed_forms,
    compression,
    conservation,
    incremental,
    measurements,
    modes,
    nonlinear,
    parsimony,
    precision,
    recovery,
    solvers,
    stability,
    starts,
)

__all__ = [
    "any_width",
    "closed_forms",
    "compression",
    "conservation",
    "incremental",
    "measurements",
    "modes",
    "nonlinear",
    "parsimony",
    "precision",
    "recovery",
    "solvers",
    "stability",
    "starts",
]
