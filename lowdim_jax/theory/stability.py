"""Stability of gradient descent: sharpness, the largest rate, what happens beyond it (docs/theory.md 5)."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from lowdim_jax._host import as_array, on_host
from lowdim_jax.theory._arguments import broadcast, check, check_integer
from lowdim_jax.theory.modes import fit_time


def sharpness(top: ArrayLike, /, *, depth: int, alpha: ArrayLike = 1.0) -> Float[Array, "..."]:
    """Fastest rate of the flow at the minimum it reaches, `L σ*_1^{2 − 2/L} α^{min(1, 2/L)}`.

    It is the tangent kernel `K` at `σ*_1 = top`, the largest singular value of the target: the
    largest eigenvalue of the Hessian, each factor scaled by its relative learning rate
    (docs/theory.md 5.1; 5.2 for `α ≠ 1`). Exact for `α = 1` and for `L ≤ 2`, otherwise the limit
    `ε → 0`, where the outer factors end at `√α` times the middle ones.
    """
    check_integer("depth", depth, least=1)
    check("top", top, lambda v: v >= 0, "at least 0")
    check("alpha", alpha, lambda v: v >= 0, "at least 0")
    top, alpha = on_host((top, alpha))
    if isinstance(top, jax.Array) or isinstance(alpha, jax.Array):
        top, alpha = broadcast(top, alpha)
    return as_array(depth * top ** (2 - 2 / depth) * alpha ** min(1.0, 2 / depth))


def max_learning_rate(
    top: ArrayLike, /, *, depth: int, alpha: ArrayLike = 1.0
) -> Float[Array, "..."]:
    """Learning rate `2 / sharpness` below which the minimum attracts gradient descent."""
    with np.errstate(divide="ignore"):  # α = 0 is stable at any rate
        return as_array(2 / on_host(sharpness(top, depth=depth, alpha=alpha)))


def explicit_steps(
    targets: Float[ArrayLike, " r"],
    /,
    *,
    depth: int,
    scale: ArrayLike,
    tolerance: ArrayLike,
    alpha: ArrayLike = 1.0,
    step_rate: float = 1.0,
) -> Float[Array, " r"]:
    """Steps until each component is fitted when stability, not accuracy, limits their length.

    `fit_time(σ*_i) · sharpness(σ*_1) / step_rate` (docs/theory.md 2.6): once component 1 is fitted,
    no explicit method can make steps longer than `step_rate / sharpness`, however slowly component
    `i` moves. The rate `step_rate` is 1 for gradient descent at half the edge of stability, 2 at
    the edge, and about 3 for Runge-Kutta methods of order 4 or 5.
    """
    wait = fit_time(targets, depth=depth, scale=scale, tolerance=tolerance, alpha=alpha)
    return wait * sharpness(jnp.max(jnp.asarray(targets)), depth=depth, alpha=alpha) / step_rate


def two_cycle(
    target: ArrayLike, /, *, depth: int, learning_rate: ArrayLike
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """The two singular values between which a mode oscillates beyond the edge of stability.

    `σ = ρ^L` for the two roots `ρ` of `ρ^L (1 + z^{2L−1}) / (1 + z^{L−1}) = σ*`, with
    `z = 1 + η (σ* − ρ^L) ρ^{L−2}`: one below and one above `σ*`. A mode with
    `η ≤ 2 / (L σ*^{2−2/L})` does not oscillate, and both are `σ*`. The cycle attracts up to about 1.23
    times that edge (docs/theory.md 5.3).

    Parameters
    ----------
    target, learning_rate
        `σ*` and `η`.
    depth
        `L ≥ 2`: for one layer the map is linear and diverges beyond its edge.

    Raises
    ------
    ValueError
        If an argument is out of range.
    """
    check_integer("depth", depth, least=2)
    check("target", target, lambda v: v >= 0, "at least 0")
    check("learning_rate", learning_rate, lambda v: v >= 0, "at least 0")
    target, rate = broadcast(target, learning_rate)

    def low(z):
        return target * (1 + z ** (depth - 1)) / (1 + z ** (2 * depth - 1))

    def halve(_, bracket):
        below, above = bracket
        z = (below + above) / 2
        push = rate * (target - low(z)) * low(z) ** (1 - 2 / depth)
        overshoots = push > z - 1
        return jnp.where(overshoots, z, below), jnp.where(overshoots, above, z)

    # The ratio z of the two roots: the step from the lower one is (z − 1) ρ long, or longer before z.
    bracket = jnp.ones_like(target), 2 + rate * target ** (2 - 2 / depth)
    z, _ = jax.lax.fori_loop(0, 2 * jnp.finfo(target.dtype).nmant, halve, bracket)
    return low(z), low(z) * z**depth
