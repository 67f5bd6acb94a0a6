"""Predictions for the compressed network and for stability, as functions of scalars and arrays.

With a spectral initialization every singular value `σ` moves alone (docs/theory.md 2.1): it is
the product of `L` scalar factors `x_l` that start at the initialization scale `ε`, and under
gradient flow

    σ̇ = K(σ) (σ* − σ),    K = Σ_l α_l (σ / x_l)²,

where `K` is the tangent kernel and `α_l` the relative learning rate of factor `l`: `α` for the two
outer factors, 1 for those between. With one rate for all, `K = L σ^{2 − 2/L}`.

Times are flow times: one step of gradient descent of learning rate `η` advances the flow by `η`.
Arguments broadcast against each other, and every function composes with `jit`, `vmap` and `grad`.
Precision is that of the arguments, in which `ε^L` must be representable. An argument out of range
raises `ValueError` with its name; values that are traced are not checked.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from lowdim_jax._mode import Mode, descend, flow_time, flow_value
from lowdim_jax._tracing import as_array, on_host

# --- One singular value under gradient flow and gradient descent ----------------------------------


def mode_time(
    level: ArrayLike, target: ArrayLike, /, *, depth: int, scale: ArrayLike, alpha: ArrayLike = 1.0
) -> Float[Array, "..."]:
    """Flow time at which a singular value that starts at `ε^L` reaches `level`.

    `t = ∫ dσ / (K(σ) (σ* − σ))` from `ε^L` to `level` (docs/theory.md 2.2; 2.5 for `α ≠ 1`): in
    closed form for `L ≤ 2`, by Gauss-Legendre quadrature to rounding for `L ≥ 3`.

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
    """
    _check("level", level, lambda v: v >= 0, "at least 0")
    mode, level = _mode(target, depth, scale, alpha, level)
    return flow_time(mode, level)


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
    """
    _check("t", t, lambda v: v >= 0, "at least 0")
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
    """
    _check_integer("steps", steps, least=0)
    _check_integer("record_every", record_every, least=1)
    _check("learning_rate", learning_rate, lambda v: v > 0, "more than 0")
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
    """
    _check("tolerance", tolerance, lambda v: v > 0, "more than 0")
    mode, tolerance = _mode(target, depth, scale, alpha, tolerance)
    start, slack = mode.start, tolerance * mode.target
    level = jnp.where(start < mode.target, mode.target - slack, mode.target + slack)
    fitted = jnp.abs(start - mode.target) <= slack
    return flow_time(mode, jnp.where(fitted, start, level))


def fit_time_small_scale(
    target: ArrayLike, /, *, depth: int, scale: ArrayLike, tolerance: ArrayLike = 0.5
) -> Float[Array, "..."]:
    """Leading order of `fit_time` as `ε → 0` (docs/theory.md 2.4): incremental learning as a law.

    - `L ≥ 3`: `ε^{−(L − 2)} / ((L − 2) σ*)`, whatever the tolerance `c`;
    - `L = 2`: `(ln(σ* / ε²) + ln((1 − c) / c)) / (2 σ*)`;
    - `L = 1`: `ln(1 / c)`, the same for all components.
    """
    _check("tolerance", tolerance, lambda v: (v > 0) & (v < 1), "between 0 and 1")
    mode, c = _mode(target, depth, scale, 1.0, tolerance)
    if depth == 1:
        return -jnp.log(c)
    if depth == 2:
        odds = (1 - c) / c
        return jnp.log(odds * mode.target / mode.scale**2) / (2 * mode.target)
    return mode.scale ** (2 - depth) / ((depth - 2) * mode.target)


def plateau_losses(targets: Float[ArrayLike, " r"], /) -> Float[Array, " r+1"]:
    """Loss plateaus `½ Σ_{j > i} σ*_j²` while `i = 0, …, r` components are fitted.

    `targets` are the singular values `σ*_j` in the order in which they are fitted (docs/theory.md
    1.6).
    """
    (targets,) = _cast(targets)
    if targets.ndim != 1:
        raise ValueError(f"targets has shape {targets.shape}, expected (r,)")
    return jnp.pad(jnp.cumsum(targets[::-1] ** 2 / 2)[::-1], (0, 1))


# --- Conservation and stability -------------------------------------------------------------------


def singular_value_rate(
    sigma: Float[Array, " r"],
    u: Float[Array, "d_out r"],
    v: Float[Array, "d_in r"],
    residual: Float[Array, "d_out d_in"],
    /,
    *,
    depth: int,
) -> Float[Array, " r"]:
    """Rate of change `σ̇_i = L σ_i^{2 − 2/L} ⟨u_i, (Φ − W) v_i⟩` in a balanced network's flow.

    Theorem 3 of Arora et al. 2019, arXiv 1905.13655 (docs/theory.md 4.3).

    Parameters
    ----------
    sigma, u, v
        Singular values and vectors (as columns) of the end-to-end matrix `W`.
    residual
        `Φ − W`; for another loss than factorization, its negative gradient at `W`.
    depth
        `L`, the number of layers.
    """
    _check_integer("depth", depth, least=1)
    aligned = jnp.einsum("ir,ij,jr->r", u, residual, v, precision=jax.lax.Precision.HIGHEST)
    return depth * sigma ** (2 - 2 / depth) * aligned


def balance_step(
    factors: Float[ArrayLike, "... L"], target: ArrayLike, /, *, learning_rate: ArrayLike
) -> Float[Array, "... L L"]:
    """Imbalances `b_ij = x_i² − x_j²` of scalar factors after one step of gradient descent.

    `b_ij ← b_ij (1 − η² (σ − σ*)² σ² / (x_i x_j)²)`, exactly; the flow conserves them
    (docs/theory.md 4.2).

    Parameters
    ----------
    factors
        `x_1, …, x_L` along the last axis, before the step.
    target, learning_rate
        `σ*` and `η`, scalars or of the shape of the other axes.
    """
    return _imbalance(*_cast(factors, target, learning_rate))


@jax.jit
@partial(jnp.vectorize, signature="(l),(),()->(l,l)")
def _imbalance(x, target, rate):
    own = jnp.eye(len(x), dtype=bool)
    kept = ~(own[:, None, :] | own[None, :, :])
    others = jnp.prod(jnp.where(kept, x[None, None, :], 1), axis=-1)  # σ / (x_i x_j)
    drift = rate * (jnp.prod(x) - target) * others
    return (x[:, None] ** 2 - x[None, :] ** 2) * (1 - drift**2)


def sharpness(top: ArrayLike, /, *, depth: int, alpha: ArrayLike = 1.0) -> Float[Array, "..."]:
    """Fastest rate of the flow at the minimum it reaches, `L σ*_1^{2 − 2/L} α^{min(1, 2/L)}`.

    It is the tangent kernel `K` at `σ*_1 = top`, the largest singular value of the target: the
    largest eigenvalue of the Hessian, each factor scaled by its relative learning rate
    (docs/theory.md 5.1; 5.2 for `α ≠ 1`). Exact for `α = 1` and for `L ≤ 2`, otherwise the limit
    `ε → 0`, where the outer factors end at `√α` times the middle ones.
    """
    _check_integer("depth", depth, least=1)
    _check("top", top, lambda v: v >= 0, "at least 0")
    _check("alpha", alpha, lambda v: v >= 0, "at least 0")
    top, alpha = on_host((top, alpha))
    if isinstance(top, jax.Array) or isinstance(alpha, jax.Array):
        top, alpha = _broadcast(top, alpha)
    return as_array(depth * top ** (2 - 2 / depth) * alpha ** min(1.0, 2 / depth))


def edge_of_stability(
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
    _check_integer("depth", depth, least=2)
    _check("target", target, lambda v: v >= 0, "at least 0")
    _check("learning_rate", learning_rate, lambda v: v >= 0, "at least 0")
    target, rate = _broadcast(target, learning_rate)

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


# --- Arguments ------------------------------------------------------------------------------------


def _mode(target, depth, scale, alpha, other) -> tuple[Mode, Array]:
    """A mode and one more array, checked and brought to one shape and data type."""
    _check_integer("depth", depth, least=1)
    _check("target", target, lambda v: v >= 0, "at least 0")
    _check("scale", scale, lambda v: v > 0, "more than 0")
    _check("alpha", alpha, lambda v: v >= 0, "at least 0")
    if depth <= 2:
        _check("alpha", alpha, lambda v: v > 0, f"more than 0: all {depth} factors are outer ones")
    elif isinstance(alpha, int | float) and alpha == 1:
        target, scale, other = _broadcast(target, scale, other)
        return Mode(target, scale, None, depth), other
    target, scale, alpha, other = _broadcast(target, scale, alpha, other)
    return Mode(target, scale, alpha, depth), other


def _cast(*values: ArrayLike) -> list[Array]:
    """Arrays of one inexact data type, which is that of the most precise argument."""
    arrays = [jnp.asarray(value) for value in values]
    with jax.numpy_dtype_promotion("standard"):
        dtype = jnp.result_type(1.0, *arrays)
    return [array.astype(dtype) for array in arrays]


def _broadcast(*values: ArrayLike) -> list[Array]:
    return jnp.broadcast_arrays(*_cast(*values))


def _check_integer(name, value, *, least):
    if not isinstance(value, int) or value < least:
        raise ValueError(f"{name}={value}, expected an integer of at least {least}")


def _check(name, value, holds, expected):
    """Raise `ValueError` where a concrete argument is not finite or out of range."""
    if not isinstance(value, Tracer):
        value = np.asarray(value)
        bad = value[~(np.isfinite(value) & holds(value))]
        if bad.size:
            raise ValueError(f"{name}={bad.flat[0]}, expected a finite number, {expected}")
