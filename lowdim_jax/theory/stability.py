"""Stability of gradient descent: sharpness, the largest rate, what happens beyond it (docs/theory.md 5)."""

import math
from collections.abc import Callable
from functools import partial

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

    Examples
    --------
    >>> from lowdim_jax import theory
    >>> float(theory.sharpness(4.0, depth=2))
    8.0
    """
    check_integer("depth", depth, least=1)
    check("top", top, lambda v: v >= 0, "at least 0")
    check("alpha", alpha, lambda v: v >= 0, "at least 0")
    top, alpha = on_host((top, alpha))
    if isinstance(top, jax.Array) or isinstance(alpha, jax.Array):
        top, alpha = broadcast(top, alpha)
    return as_array(depth * top ** (2 - 2 / depth) * alpha ** min(1.0, 2 / depth))


def training_sharpness(
    value: ArrayLike, target: ArrayLike, /, *, depth: int
) -> Float[Array, "..."]:
    """Sharpness while component 1 has singular value `value`, `L σ^{2−2/L} − (L−1)(σ* − σ) σ^{1−2/L}`.

    The top eigenvalue of a balanced mode's Hessian off its minimum (docs/theory.md 5.1), once the first
    term outweighs the second, as it does from most of the rise on. At `σ = σ*` it is `sharpness`.

    Parameters
    ----------
    value, target
        `σ ≥ 0` and `σ* ≥ 0`; they broadcast against each other.
    depth
        `L ≥ 2`.

    Raises
    ------
    ValueError
        If an argument is out of range.

    Examples
    --------
    >>> float(training_sharpness(1.0, 4.0, depth=2)), float(training_sharpness(4.0, 4.0, depth=2))
    (-1.0, 8.0)
    """
    check_integer("depth", depth, least=2)
    check("value", value, lambda v: v >= 0, "at least 0")
    check("target", target, lambda v: v >= 0, "at least 0")
    value, target = broadcast(value, target)
    rank_one = depth * value ** (2 - 2 / depth)
    return rank_one - (depth - 1) * (target - value) * value ** (1 - 2 / depth)


def max_learning_rate(
    top: ArrayLike, /, *, depth: int, alpha: ArrayLike = 1.0
) -> Float[Array, "..."]:
    """Learning rate `2 / sharpness` below which the minimum attracts gradient descent.

    Examples
    --------
    >>> from lowdim_jax import theory
    >>> float(theory.max_learning_rate(4.0, depth=2))
    0.25
    >>> float(theory.max_learning_rate(4.0, depth=2, alpha=4.0))
    0.0625
    """
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

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from lowdim_jax import theory
    >>> theory.explicit_steps(jnp.array([4.0, 2.0]), depth=3, scale=0.1, tolerance=0.05).round(0)
    Array([48., 97.], dtype=float32)
    """
    wait = fit_time(targets, depth=depth, scale=scale, tolerance=tolerance, alpha=alpha)
    return wait * sharpness(jnp.max(jnp.asarray(targets)), depth=depth, alpha=alpha) / step_rate


def two_cycle(
    target: ArrayLike, /, *, depth: int, learning_rate: ArrayLike
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """The two singular values between which a mode oscillates beyond the edge of stability.

    `σ = ρ^L` for the two roots `ρ` of `ρ^L (1 + z^{2L−1}) / (1 + z^{L−1}) = σ*`, with
    `z = 1 + η (σ* − ρ^L) ρ^{L−2}`: one below and one above `σ*`. A mode with
    `η ≤ 2 / (L σ*^{2−2/L})` does not oscillate, and both are `σ*`. The cycle attracts up to
    `two_cycle_limit(depth)` times that edge (docs/theory.md 5.3). Derivatives are those of the roots.

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

    Examples
    --------
    >>> from lowdim_jax import theory
    >>> low, high = theory.two_cycle(1.0, depth=2, learning_rate=1.1)  # the edge is at 1
    >>> round(float(low), 3), round(float(high), 3)
    (0.663, 1.246)
    """
    check_integer("depth", depth, least=2)
    check("target", target, lambda v: v >= 0, "at least 0")
    check("learning_rate", learning_rate, lambda v: v >= 0, "at least 0")
    return _two_cycle(*broadcast(target, learning_rate), depth=depth)


@partial(jax.jit, static_argnames="depth", inline=True)
def _two_cycle(target, rate, *, depth):
    scaled_rate = rate * target ** (2 - 2 / depth)  # that of a target of one

    def needed(z):
        """The rate at which the roots have the ratio `z`, for a target of one; increasing in `z > 1`."""
        gap = z ** (depth - 1) * (z**depth - 1) / (1 + z ** (2 * depth - 1))  # 1 − low(z)
        return (z - 1) / (gap * _low(z, depth) ** (1 - 2 / depth))

    def halve(_, bracket):
        below, above = bracket
        z = (below + above) / 2
        too_low = needed(z) < scaled_rate
        return jnp.where(too_low, z, below), jnp.where(too_low, above, z)

    # The ratio z of the two roots: the step from the lower one is (z − 1) ρ long, or longer before z.
    bracket = jax.lax.stop_gradient((jnp.ones_like(target), 2 + scaled_rate))
    z, _ = jax.lax.fori_loop(0, 2 * jnp.finfo(target.dtype).nmant, halve, bracket)
    oscillates = (scaled_rate > 2 / depth) & (z > 1)
    # Bisection has no derivative; one step of Newton's method from the root has that of the root.
    z = jax.lax.stop_gradient(jnp.where(oscillates, z, 2))
    rate_there, slope = jax.jvp(needed, (z,), (jnp.ones_like(z),))
    moved = z + (scaled_rate - rate_there) / jax.lax.stop_gradient(slope)
    low = target * _low(moved, depth)
    return jnp.where(oscillates, low, target), jnp.where(oscillates, low * moved**depth, target)


def _low(z, depth):
    """The smaller of two singular values whose factors have the ratio `z`, for a target of one."""
    return (1 + z ** (depth - 1)) / (1 + z ** (2 * depth - 1))


def two_cycle_limit(depth: int, /) -> float:
    """Learning rate, in units of `max_learning_rate`, up to which the two-cycle attracts.

    There the product of the map's slopes at both values of `two_cycle` is −1, and the cycle doubles again
    (docs/theory.md 5.3): `√5 − 1 = 1.2361` for `L = 2`, 1.2446 for `L = 3`, 1.25165 as `L → ∞`.

    Parameters
    ----------
    depth
        `L ≥ 2`.

    Raises
    ------
    ValueError
        If `depth` is not an integer of at least 2.

    Examples
    --------
    >>> from lowdim_jax import theory
    >>> round(theory.two_cycle_limit(2), 6)
    1.236068
    """
    check_integer("depth", depth, least=2)

    def learning_rate_and_multiplier(s):
        z = math.exp(s / depth)
        low = _low(z, depth)
        gap = z ** (depth - 1) * math.expm1(s) / (1 + z ** (2 * depth - 1))
        x = low ** (1 / depth)
        rate = math.expm1(s / depth) / (gap * x ** (depth - 2))
        return rate, _map_slope(x, rate, depth) * _map_slope(x * z, rate, depth)

    # In s = L ln z, with z the ratio of the two factors; the multiplier falls from 1 at the edge.
    s = _bisect(lambda s: learning_rate_and_multiplier(s)[1] > -1, 1e-3, 4.0)
    return learning_rate_and_multiplier(s)[0] * depth / 2


def first_sign_change(depth: int, /) -> float:
    """Learning rate, in units of `max_learning_rate`, from which a mode's factor can change its sign.

    Up to it the map keeps `(0, m]`, with `m` its maximum, and every run from a small start stays positive;
    beyond it `m` is sent below zero, and almost every run comes close to `m` some time (docs/theory.md 5.3):
    `3√3/2 − 1 = 1.5981` for `L = 2`, 1.8305 for `L = 3`, growing like `ln L` later.

    Parameters
    ----------
    depth
        `L ≥ 2`.

    Raises
    ------
    ValueError
        If `depth` is not an integer of at least 2.

    Examples
    --------
    >>> from lowdim_jax import theory
    >>> round(theory.first_sign_change(3), 6)
    1.830498
    """
    check_integer("depth", depth, least=2)

    def stays_positive(multiple):
        rate = 2 * multiple / depth
        x = _bisect(lambda x: _map_slope(x, rate, depth) > 0, 0.0, 1.0)
        highest = x + rate * (1 - x**depth) * x ** (depth - 1)
        return 1 + rate * (1 - highest**depth) * highest ** (depth - 2) > 0

    beyond = 2.0
    while stays_positive(beyond):
        beyond *= 2
    return _bisect(stays_positive, 1.0, beyond)


def _map_slope(x: float, rate: float, depth: int) -> float:
    """Derivative of `x + η (1 − x^L) x^{L−1}`."""
    return 1 + rate * ((depth - 1) * x ** (depth - 2) - (2 * depth - 1) * x ** (2 * depth - 2))


def _bisect(holds: Callable[[float], bool], below: float, above: float) -> float:
    """The largest number up to which `holds`, between one where it does and one where it does not."""
    for _ in range(80):
        middle = (below + above) / 2
        below, above = (middle, above) if holds(middle) else (below, middle)
    return below
