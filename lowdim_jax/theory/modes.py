"""One singular value of the compressed network: its flow, its descent, its times (docs/theory.md 2).

With a spectral initialization every singular value `σ` moves alone (docs/theory.md 2.1): it is
the product of `L` scalar factors `x_l` that start at the initialization scale `ε`, and under
gradient flow

    σ̇ = K(σ) (σ* − σ),    K = Σ_l α_l (σ / x_l)²,

where `K` is the tangent kernel and `α_l` the relative learning rate of factor `l`: `α` for the two
outer factors, 1 for those between. With one rate for all, `K = L σ^{2 − 2/L}`.

Times are flow times: one step of gradient descent of learning rate `η` advances the flow by `η`.
Arguments broadcast against each other, and every function composes with `jit`, `vmap` and `grad`.
Precision is that of the arguments; `ε^L` may be below its smallest number. An argument out of range
raises `ValueError` with its name; values that are traced are not checked.
"""

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from lowdim_jax.theory._arguments import broadcast, cast, check, check_integer
from lowdim_jax.theory._mode import Mode, descend, flow_time, flow_value


def mode_time(
    level: ArrayLike, target: ArrayLike, /, *, depth: int, scale: ArrayLike, alpha: ArrayLike = 1.0
) -> Float[Array, "..."]:
    """Flow time at which a singular value that starts at `ε^L` reaches `level`.

    `t = ∫ dσ / (K(σ) (σ* − σ))` from `ε^L` to `level` (docs/theory.md 2.2; 2.5 for `α ≠ 1`): in
    closed form for `L ≤ 2`, to rounding by power series for `L ≥ 3`, by Gauss-Legendre quadrature if
    `α ≠ 1`. Its derivative in `level` is `1 / (K(σ) (σ* − σ))`, exactly.

    Parameters
    ----------
    level, target
        `σ` and `σ*`, non-negative.
    depth
        `L ≥ 1`, static.
    scale
        `ε > 0`, initial value of every factor.
    alpha
        `α ≥ 0`, ratio of outer to middle learning rate. With `α = 0` only the middle factors learn,
        so it takes `L ≥ 3`. The number 1 (not an array of ones) is the cheapest.

    Returns
    -------
    Times, of the arguments' common shape; `inf` where `level` is not between start and target.

    Raises
    ------
    ValueError
        If `depth` is not an integer of at least 1, or another argument is out of range.

    Examples
    --------
    >>> from lowdim_jax import theory
    >>> round(float(theory.mode_time(2.0, 4.0, depth=2, scale=0.1)), 4)
    0.7486
    """
    check("level", level, lambda v: v >= 0, "at least 0")
    mode, level = _mode(target, depth, scale, alpha, level)
    return flow_time(mode, level, jnp.abs(mode.target - level))


def mode_trajectory(
    t: ArrayLike, target: ArrayLike, /, *, depth: int, scale: ArrayLike, alpha: ArrayLike = 1.0
) -> Float[Array, "..."]:
    """Singular value `σ(t)` under gradient flow from `σ(0) = ε^L`: the inverse of `mode_time`.

    In closed form for `L ≤ 2` (docs/theory.md 2.3), by Newton's method for `L ≥ 3` (2.2, 2.5).

    Parameters
    ----------
    t
        Flow times, non-negative, of any shape that broadcasts against `target`.
    target, depth, scale, alpha
        As in `mode_time`, and with the same errors.

    Returns
    -------
    Singular values, of the arguments' common shape. For `L ≥ 3` the decay of a mode whose target is
    zero is not followed below `u^4 ε^L`, with `u` the rounding unit.

    Examples
    --------
    >>> import jax.numpy as jnp, numpy as np
    >>> from lowdim_jax import theory
    >>> np.asarray(theory.mode_trajectory(jnp.array([0.0, 5.0, 10.0]), 1.0, depth=3, scale=0.2)).round(3)
    array([0.008, 0.913, 1.   ], dtype=float32)
    """
    check("t", t, lambda v: v >= 0, "at least 0")
    mode, t = _mode(target, depth, scale, alpha, t)
    return flow_value(mode, t)


def mode_descent(
    target: ArrayLike,
    /,
    *,
    depth: int,
    scale: ArrayLike,
    learning_rate: ArrayLike,
    steps: int,
    record_every: int = 1,
    alpha: ArrayLike = 1.0,
) -> Float[Array, "n ..."]:
    """Singular value under gradient descent: the exact map, not an approximation by the flow.

    `x_l ← x_l + α_l η (σ* − σ) σ / x_l` for all factors at once, `σ = x_1 ⋯ x_L` (docs/theory.md
    2.1). Step `k` approximates the flow at time `η k` to first order in `η`.

    Parameters
    ----------
    target, depth, scale, alpha
        As in `mode_time`, and with the same errors.
    learning_rate
        `η > 0`.
    steps, record_every
        Number of steps, and steps between records; static.

    Returns
    -------
    `σ` at steps `0, k, 2k, …` along a new first axis, for `k = record_every`. Beyond the edge of
    stability it may become infinite or NaN.

    Examples
    --------
    >>> import numpy as np
    >>> from lowdim_jax import theory
    >>> run = theory.mode_descent(1.0, depth=2, scale=0.5, learning_rate=0.5, steps=6, record_every=3)
    >>> np.asarray(run).round(3)
    array([0.25 , 0.951, 1.   ], dtype=float32)
    """
    check_integer("steps", steps, least=0)
    check_integer("record_every", record_every, least=1)
    check("learning_rate", learning_rate, lambda v: v > 0, "more than 0")
    mode, rate = _mode(target, depth, scale, alpha, learning_rate)
    return descend(mode, rate, records=steps // record_every, record_every=record_every)


def fit_time(
    target: ArrayLike,
    /,
    *,
    depth: int,
    scale: ArrayLike,
    tolerance: ArrayLike,
    alpha: ArrayLike = 1.0,
) -> Float[Array, "..."]:
    """Flow time from which on a component is fitted, `|σ − σ*| ≤ tolerance · σ*`.

    This is `mode_time` to `(1 − tolerance) σ*`, or to `(1 + tolerance) σ*` for a component that
    starts above its target. It is 0 for one that starts fitted and `inf` for a target of zero
    (docs/theory.md 1.6).

    Examples
    --------
    >>> import jax.numpy as jnp, numpy as np
    >>> from lowdim_jax import theory
    >>> times = theory.fit_time(jnp.array([4.0, 2.0]), depth=2, scale=0.01, tolerance=0.05)
    >>> np.asarray(times).round(3)
    array([1.693, 3.212], dtype=float32)
    """
    check("tolerance", tolerance, lambda v: v > 0, "more than 0")
    mode, tolerance = _mode(target, depth, scale, alpha, tolerance)
    start, slack = mode.start, tolerance * mode.target
    fitted = jnp.abs(start - mode.target) <= slack
    above = start > mode.target
    # Where the slack is lost in rounding, the level is the target's neighbour: the gap is what counts then.
    share = jnp.maximum(tolerance, jnp.finfo(start.dtype).eps)
    level = jnp.where(above, 1 + share, 1 - share) * mode.target
    gap = jnp.where(fitted, jnp.abs(mode.target - start), slack)
    time = flow_time(mode, jnp.where(fitted, start, level), gap)
    return jnp.where(fitted, 0, time)


def fit_time_small_scale(
    target: ArrayLike, /, *, depth: int, scale: ArrayLike, tolerance: ArrayLike = 0.5
) -> Float[Array, "..."]:
    """Leading order of `fit_time` as `ε → 0` (docs/theory.md 2.4): incremental learning as a law.

    - `L ≥ 3`: `ε^{−(L − 2)} / ((L − 2) σ*)`, whatever the tolerance `c`;
    - `L = 2`: `(ln(σ* / ε²) + ln((1 − c) / c)) / (2 σ*)`;
    - `L = 1`: `ln(1 / c)`, the same for all components.

    A target of zero is never fitted: `inf`.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from lowdim_jax import theory
    >>> theory.fit_time_small_scale(jnp.array([4.0, 2.0]), depth=4, scale=0.01).round(0)  # inversely as σ*
    Array([1250., 2500.], dtype=float32)
    """
    check("tolerance", tolerance, lambda v: (v > 0) & (v < 1), "between 0 and 1")
    mode, c = _mode(target, depth, scale, 1.0, tolerance)
    target = jnp.where(mode.target > 0, mode.target, 1)
    if depth == 1:
        time = -jnp.log(c)
    elif depth == 2:
        time = (jnp.log((1 - c) / c * target) - 2 * jnp.log(mode.scale)) / (2 * target)
    else:
        time = mode.scale ** (2 - depth) / ((depth - 2) * target)
    return jnp.where(mode.target > 0, time, jnp.inf)


def plateau_losses(targets: Float[ArrayLike, " r"], /) -> Float[Array, " r+1"]:
    """Loss plateaus `½ Σ_{j > i} σ*_j²` while `i = 0, …, r` components are fitted.

    `targets` are the singular values `σ*_j` in the order in which they are fitted (docs/theory.md
    1.6).

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from lowdim_jax import theory
    >>> theory.plateau_losses(jnp.array([3.0, 2.0, 1.0]))
    Array([7. , 2.5, 0.5, 0. ], dtype=float32)
    """
    (targets,) = cast(targets)
    if targets.ndim != 1:
        raise ValueError(f"targets has shape {targets.shape}, expected (r,)")
    return jnp.pad(jnp.cumsum(targets[::-1] ** 2 / 2)[::-1], (0, 1))


def _mode(target, depth, scale, alpha, other) -> tuple[Mode, Array]:
    """A mode and one more array, checked and brought to one shape and data type."""
    check_integer("depth", depth, least=1)
    check("target", target, lambda v: v >= 0, "at least 0")
    check("scale", scale, lambda v: v > 0, "more than 0")
    check("alpha", alpha, lambda v: v >= 0, "at least 0")
    if depth <= 2:
        check("alpha", alpha, lambda v: v > 0, f"more than 0: all {depth} factors are outer ones")
    elif isinstance(alpha, int | float) and alpha == 1:
        target, scale, other = broadcast(target, scale, other)
        return Mode(target, scale, None, depth), other
    target, scale, alpha, other = broadcast(target, scale, alpha, other)
    return Mode(target, scale, alpha, depth), other
