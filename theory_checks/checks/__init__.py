"""The checks, one module a family; importing this package registers them."""

from theory_checks.checks import (
    compression,
    conservation,
    incremental,
    modes,
    nonlinear,
    parsimony,
    precision,
    recovery,
    stability,
)

__all__ = [
    "compression",
    "conservation",
    "incremental",
    "modes",
    "nonlinear",
    "parsimony",
    "precision",
    "recovery",
    "stability",
]
