"""Predictions in closed form, as functions of scalars and arrays; numbered as in docs/theory.md.

`noise` (1.7): accuracy of the surrogate. `modes` (2): singular values of the compressed network.
`two_layers` (2.7): whole networks of two layers. `original` (3): the original network's bulk, and how long it
waits. `conservation` (4): what the flow keeps. `stability` (5): sharpness, the largest stable learning rate,
the two-cycle beyond it.
"""

from lowdim_jax.theory.conservation import balance_step, singular_value_rate
from lowdim_jax.theory.modes import (
    fit_time,
    fit_time_small_scale,
    mode_descent,
    mode_time,
    mode_trajectory,
    plateau_losses,
)
from lowdim_jax.theory.noise import surrogate_angle
from lowdim_jax.theory.original import bulk_descent, escape_delay, escape_ratio
from lowdim_jax.theory.original_mode import OriginalMode, original_mode
from lowdim_jax.theory.stability import (
    explicit_steps,
    first_sign_change,
    max_learning_rate,
    sharpness,
    training_sharpness,
    two_cycle,
    two_cycle_limit,
)
from lowdim_jax.theory.two_layers import TwoLayerFlow, tangent_kernel, two_layer_flow

__all__ = [
    "OriginalMode",
    "TwoLayerFlow",
    "balance_step",
    "bulk_descent",
    "escape_delay",
    "escape_ratio",
    "explicit_steps",
    "first_sign_change",
    "fit_time",
    "fit_time_small_scale",
    "max_learning_rate",
    "mode_descent",
    "mode_time",
    "mode_trajectory",
    "original_mode",
    "plateau_losses",
    "sharpness",
    "singular_value_rate",
    "surrogate_angle",
    "tangent_kernel",
    "training_sharpness",
    "two_cycle",
    "two_cycle_limit",
    "two_layer_flow",
]
