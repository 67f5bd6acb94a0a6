"""Predictions for the compressed network and for stability, as functions of scalars and arrays.

With a spectral initialization every singular value `σ` moves alone (docs/theory.md 2.1): it is the
product of `L` scalar factors `x_l` that start at the initialization scale `ε`, and under gradient flow

    σ̇ = K(σ) (σ* − σ),    K = Σ_l α_l (σ / x_l)²,

where `K` is the tangent kernel and `α_l` the relative learning rate of factor `l`: `α` for the two
outer factors, 1 for those between. With one rate for all, `K = L σ^{2 − 2/L}`.

Times are flow times: one step of gradient descent of learning rate `η` advances the flow by `η`.
Arguments broadcast against each other, and every function composes with `jit`, `vmap` and `grad`.
Precision is that of the arguments, in which `ε^L` must be representable. An argument out of range
raises `ValueError` with its name; values that are traced are not checked.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

# --- One singular value under gradient flow and gradient descent ------------------------------------


def mode_time(
    level: ArrayLike, target: ArrayLike, /, *, depth: int, scale: ArrayLike, alpha: ArrayLike = 1.0
) -> Float[Array, "..."]:
    """Flow time at which a singular value that starts at `ε^L` reaches `level`.

    `t = ∫ dσ / (K(σ) (σ* − σ))` from `ε^L` to `level`: in closed form for `L ≤ 2`, by Gauss-Legendre
    quadrature to rounding for `L ≥ 3`.

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

    References
    ----------
    docs/theory.md 2.2 and, for `α ≠ 1`, 2.5.
    """
    _check("level", level, lambda v: v >= 0, "at least 0")
    mode, level = _mode(target, depth, scale, alpha, level)
    return _flow_time(level, mode, depth=depth)


def mode_trajectory(
    t: ArrayLike, target: ArrayLike, /, *, depth: int, scale: ArrayLike, alpha: ArrayLike = 1.0
) -> Float[Array, "..."]:
    """Singular value `σ(t)` under gradient flow from `σ(0) = ε^L`: the inverse of `mode_time`.

    Parameters
    ----------
    t
        Flow times, non-negative, of any shape that broadcasts against `target`.
    target, depth, scale, alpha
        As in `mode_time`.

    Returns
    -------
    Singular values, of the arguments' common shape. For `L ≥ 3` the decay of a mode whose target is
    zero is not followed below `u^4 ε^L`, with `u` the rounding unit.

    Raises
    ------
    ValueError
        If `depth` is not an integer of at least 1, or another argument is out of range.

    References
    ----------
    docs/theory.md 2.2, 2.3 (`L = 2`) and, for `α ≠ 1`, 2.5.
    """
    _check("t", t, lambda v: v >= 0, "at least 0")
    mode, t = _mode(target, depth, scale, alpha, t)
    return _flow_value(t, mode, depth=depth)


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

    `x_l ← x_l + α_l η (σ* − σ) σ / x_l` for all factors at once, with `σ = x_1 ⋯ x_L`.

    Parameters
    ----------
    target, depth, scale, alpha
        As in `mode_time`.
    learning_rate
        `η > 0`.
    steps, record_every
        Number of steps, and steps between records; static.

    Returns
    -------
    `σ` at steps `0, k, 2k, …` along a new first axis, for `k = record_every`. Beyond the edge of
    stability it may become infinite or NaN.

    Raises
    ------
    ValueError
        If `depth`, `steps` or `record_every` is not an integer or another argument is out of range.

    References
    ----------
    docs/theory.md 2.1.
    """
    _check_integer("steps", steps, least=0)
    _check_integer("record_every", record_every, least=1)
    _check("learning_rate", learning_rate, lambda v: v > 0, "more than 0")
    mode, rate = _mode(target, depth, scale, alpha, learning_rate)
    records = steps // record_every
    return _descend(rate, mode, depth=depth, records=records, record_every=record_every)


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

    This is `mode_time` to `(1 − tolerance) σ*`, or to `(1 + tolerance) σ*` for a component that starts
    above its target. It is 0 for one that starts fitted and `inf` for a target of zero.

    References
    ----------
    docs/theory.md 1.6, 2.2 and, for `α ≠ 1`, 2.5.
    """
    _check("tolerance", tolerance, lambda v: v > 0, "more than 0")
    mode, tolerance = _mode(target, depth, scale, alpha, tolerance)
    start, slack = mode.scale**depth, tolerance * mode.target
    level = jnp.where(start < mode.target, mode.target - slack, mode.target + slack)
    fitted = jnp.abs(start - mode.target) <= slack
    return _flow_time(jnp.where(fitted, start, level), mode, depth=depth)


def fit_time_small_scale(
    target: ArrayLike, /, *, depth: int, scale: ArrayLike, tolerance: ArrayLike = 0.5
) -> Float[Array, "..."]:
    """Leading order of `fit_time` as `ε → 0`: the law behind incremental learning.

    - `L ≥ 3`: `ε^{−(L − 2)} / ((L − 2) σ*)`, whatever the tolerance `c`;
    - `L = 2`: `(ln(σ* / ε²) + ln((1 − c) / c)) / (2 σ*)`;
    - `L = 1`: `ln(1 / c)`, the same for all components.

    References
    ----------
    docs/theory.md 2.4.
    """
    _check("tolerance", tolerance, lambda v: (0 < v) & (v < 1), "between 0 and 1")
    mode, c = _mode(target, depth, scale, 1.0, tolerance)
    if depth == 1:
        return -jnp.log(c)
    if depth == 2:
        odds = (1 - c) / c
        return jnp.log(odds * mode.target / mode.scale**2) / (2 * mode.target)
    return mode.scale ** (2 - depth) / ((depth - 2) * mode.target)


def plateau_losses(targets: Float[ArrayLike, " r"], /) -> Float[Array, " r+1"]:
    """Loss plateaus `½ Σ_{j > i} σ*_j²` while `i = 0, …, r` components are fitted.

    Parameters
    ----------
    targets
        `(r,)`: singular values `σ*_j` of the target, in the order in which they are fitted.

    References
    ----------
    docs/theory.md 1.6.
    """
    (targets,) = _broadcast(targets)
    if targets.ndim != 1:
        raise ValueError(f"targets has shape {targets.shape}, expected (r,)")
    return jnp.pad(jnp.cumsum(targets[::-1] ** 2 / 2)[::-1], (0, 1))


# --- Conservation and stability ---------------------------------------------------------------------


def singular_value_rate(
    sigma: Float[Array, " r"],
    u: Float[Array, "d_out r"],
    v: Float[Array, "d_in r"],
    residual: Float[Array, "d_out d_in"],
    /,
    *,
    depth: int,
) -> Float[Array, " r"]:
    """Rate of change `σ̇_i = L σ_i^{2 − 2/L} ⟨u_i, (Φ − W) v_i⟩` in a balanced network under the flow.

    Parameters
    ----------
    sigma, u, v
        Singular values and vectors (as columns) of the end-to-end matrix `W`.
    residual
        `Φ − W`; for another loss than factorization, its negative gradient at `W`.

    References
    ----------
    docs/theory.md 4.3; Arora et al. 2019 (arXiv 1905.13655), theorem 3.
    """
    _check_integer("depth", depth, least=1)
    aligned = jnp.einsum("ir,ij,jr->r", u, residual, v, precision=jax.lax.Precision.HIGHEST)
    return depth * sigma ** (2 - 2 / depth) * aligned


def balance_step(
    factors: Float[ArrayLike, "... L"], target: ArrayLike, /, *, learning_rate: ArrayLike
) -> Float[Array, "... L L"]:
    """Imbalances `b_ij = x_i² − x_j²` of scalar factors after one step of gradient descent.

    `b_ij ← b_ij (1 − η² (σ − σ*)² σ² / (x_i x_j)²)`, exactly; gradient flow conserves them.

    Parameters
    ----------
    factors
        `x_1, …, x_L` along the last axis, before the step.
    target, learning_rate
        `σ*` and `η`, scalars or of the shape of the other axes.

    References
    ----------
    docs/theory.md 4.2.
    """

    @partial(jnp.vectorize, signature="(l),(),()->(l,l)")
    def imbalance(x, target, rate):
        own = jnp.eye(len(x), dtype=bool)
        kept = ~(own[:, None, :] | own[None, :, :])
        others = jnp.prod(jnp.where(kept, x[None, None, :], 1), axis=-1)  # σ / (x_i x_j)
        drift = rate * (jnp.prod(x) - target) * others
        return (x[:, None] ** 2 - x[None, :] ** 2) * (1 - drift**2)

    return imbalance(*_cast(factors, target, learning_rate))


def sharpness(top: ArrayLike, /, *, depth: int, alpha: ArrayLike = 1.0) -> Float[Array, "..."]:
    """Fastest rate of the flow at the minimum it reaches, `L σ*_1^{2 − 2/L} α^{min(1, 2/L)}`.

    It is the tangent kernel `K(σ*_1)`: the largest eigenvalue of the Hessian, each factor scaled by
    its relative learning rate. Exact for `α = 1` and for `L ≤ 2`, otherwise the limit `ε → 0`, where
    the outer factors end at `√α` times the middle ones.

    Parameters
    ----------
    top
        `σ*_1`, the largest singular value of the target.

    References
    ----------
    docs/theory.md 5.1 and, for `α ≠ 1`, 5.2.
    """
    _check_integer("depth", depth, least=1)
    _check("top", top, lambda v: v >= 0, "at least 0")
    _check("alpha", alpha, lambda v: v >= 0, "at least 0")
    top, alpha = _broadcast(top, alpha)
    return depth * top ** (2 - 2 / depth) * alpha ** min(1.0, 2 / depth)


def edge_of_stability(
    top: ArrayLike, /, *, depth: int, alpha: ArrayLike = 1.0
) -> Float[Array, "..."]:
    """Learning rate `2 / sharpness` below which the minimum attracts gradient descent.

    References
    ----------
    docs/theory.md 5.1 and, for `α ≠ 1`, 5.2.
    """
    return 2 / sharpness(top, depth=depth, alpha=alpha)


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

    `fit_time(σ*_i) · sharpness(σ*_1) / step_rate`: once component 1 is fitted, an explicit method can
    make no step longer than `step_rate / sharpness`, however slowly component `i` moves.

    Parameters
    ----------
    targets
        `(r,)`: singular values of the target, in any order.
    depth, scale, tolerance, alpha
        As in `fit_time`; all but `depth` broadcast against `targets`.
    step_rate
        Step length times fastest rate: 1 for gradient descent at half the edge of stability, 2 at the
        edge, about 3 for Runge-Kutta methods of order 4 or 5.

    References
    ----------
    docs/theory.md 2.6.
    """
    wait = fit_time(targets, depth=depth, scale=scale, tolerance=tolerance, alpha=alpha)
    return wait * sharpness(jnp.max(jnp.asarray(targets)), depth=depth, alpha=alpha) / step_rate


# --- How: time as an integral over a variable in which the motion is nearly uniform -----------------
#
# Below the target s = ln(σ / (σ* − σ)), above it s = −ln(σ − σ*); both grow, ṡ = K(σ) max(1, σ*/σ).
# Close to the target ṡ is constant, far from it an exponential of s; between, 1/ṡ is analytic in the
# strip |Im s| < π/2, so that Gauss-Legendre quadrature converges geometrically on panels of fixed
# width. Nothing cancels or overflows, at any time and from either side, σ* = 0 included. (For α = 1
# the integral is elementary, logarithms at the L-th roots of unity, but their sum cancels for short
# times and for starts far above the target.)


class _Mode(NamedTuple):
    """What the motion of a singular value depends on, arrays of one shape."""

    target: Array
    scale: Array
    alpha: Array | None  # None: known, when compiling, to be 1


def _gauss_legendre(panels: int, order: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights on [0, 1] of a rule of `order` nodes on each of `panels` equal panels."""
    x, w = np.polynomial.legendre.leggauss(order)
    nodes = (np.arange(panels)[:, None] + (x + 1) / 2) / panels
    return nodes.ravel(), np.tile(w / 2 / panels, panels)


_WHOLE_WAY = _gauss_legendre(panels=8, order=48)
_STRIDE, _ONE_STRIDE = 2.5, _gauss_legendre(panels=1, order=16)


def _position(sigma, mode, depth):
    """The variable `s` of a singular value between start and target."""
    rising = mode.scale**depth < mode.target
    return jnp.where(rising, jnp.log(sigma), 0) - jnp.log(jnp.abs(mode.target - sigma))


def _log_sigma(s, mode, depth):
    rising = mode.scale**depth < mode.target
    below = jnp.log(jnp.where(rising, mode.target, 1)) - jax.nn.softplus(jnp.where(rising, -s, 0))
    above = jnp.log(jnp.where(rising, 1, mode.target) + jnp.exp(jnp.where(rising, 0, -s)))
    return jnp.where(rising, below, above)


def _speed(s, mode, depth):
    """`ṡ = K(σ) max(1, σ*/σ)`."""
    log_sigma = _log_sigma(s, mode, depth)
    if mode.alpha is None:
        log_kernel = jnp.log(depth) + (2 - 2 / depth) * log_sigma
    else:
        outer, middle = _squared_factors(log_sigma, mode, depth)
        log_kernel = 2 * log_sigma + jnp.log(2 * mode.alpha / outer + (depth - 2) / middle)
    rising = mode.scale**depth < mode.target
    boost = jnp.where(rising, jnp.log(jnp.where(rising, mode.target, 1)) - log_sigma, 0)
    speed = jnp.exp(log_kernel + boost)
    return jnp.maximum(speed, jnp.finfo(speed.dtype).tiny)  # in float32 it can underflow


def _squared_factors(log_sigma, mode, depth):
    """Solve `x_o² x_m^{L−2} = σ²` on the flow's invariant: `x_o²` and `x_m²`, for `L ≥ 3`.

    The invariant is `x_o² − α x_m² = (1 − α) ε²`. The unknown `u` is the logarithm of the square that
    can vanish, in units of `ε²`: the outer one if `α ≥ 1`. The other one then is `1 − a + a e^u`, and
    `p u + q ln(1 − a + a e^u) = ln(σ / ε^L)` is convex in `u` with slopes between `p` and `L/2`.
    Newton's method converges from anywhere; from the root for `α = 1`, to rounding in eight steps.
    """
    slow = mode.alpha < 1
    a = jnp.where(slow, mode.alpha, 1 / jnp.where(slow, 1, mode.alpha))
    p = jnp.where(slow, depth / 2 - 1, 1)
    q = depth / 2 - p
    goal = log_sigma - depth * jnp.log(mode.scale)
    u = 2 / depth * goal
    for _ in range(8):
        u = jax.lax.stop_gradient(u)  # the derivative of the root is that of the last step
        other = 1 - a + a * jnp.exp(u)
        u = u - (p * u + q * jnp.log(other) - goal) / (p + q * a * jnp.exp(u) / other)
    vanishing, other = mode.scale**2 * jnp.exp(u), mode.scale**2 * (1 - a + a * jnp.exp(u))
    return jnp.where(slow, other, vanishing), jnp.where(slow, vanishing, other)


def _duration(s, move, mode, depth, rule):
    """Flow time from position `s` to `s + move`."""

    def part(node, weight):
        return weight / _speed(s + node * move, mode, depth)

    nodes, weights = (jnp.asarray(array, move.dtype) for array in rule)
    return move * jnp.sum(jax.vmap(part)(nodes, weights), axis=0)


def _travel(time, start, end, mode, depth):
    """The position after `time`: Newton's method, at most a stride at once and never past `end`."""

    def step(carry):
        s, left, _ = carry
        move = jnp.clip(left * _speed(s, mode, depth), -_STRIDE, jnp.minimum(_STRIDE, end - s))
        return s + move, left - _duration(s, move, mode, depth, _ONE_STRIDE), move

    def moving(carry):
        s, _, move = carry
        return jnp.any(jnp.abs(move) > 4 * jnp.finfo(s.dtype).eps * (1 + jnp.abs(s)))

    return jax.lax.while_loop(moving, step, (start, time, jnp.full_like(start, _STRIDE)))[0]


@partial(jax.jit, static_argnames="depth")
def _flow_time(level, mode, *, depth):
    start, target = mode.scale**depth, mode.target
    stays = start == target
    passed = ((start <= level) & (level < target)) | ((target < level) & (level <= start))
    at_start = jnp.abs(level - start) <= 4 * jnp.finfo(start.dtype).eps * start
    level = jnp.where(passed, level, start)
    gap = jnp.where(stays, 1, target - level)
    if depth == 1:
        time = jnp.log1p((level - start) / gap) / mode.alpha
    elif depth == 2:
        rise = (level - start) / (start * gap)
        time = _log1p_over(target, rise) / (2 * mode.alpha)
    else:
        mode = mode._replace(target=jnp.where(stays, 2 * start, target))
        origin = _position(start, mode, depth)
        time = _duration(origin, _position(level, mode, depth) - origin, mode, depth, _WHOLE_WAY)
    return jnp.where(passed | at_start, time, jnp.inf)


@partial(jax.jit, static_argnames="depth")
def _flow_value(t, mode, *, depth):
    start, target = mode.scale**depth, mode.target
    if depth == 1:
        return start * jnp.exp(-mode.alpha * t) - target * jnp.expm1(-mode.alpha * t)
    if depth == 2:
        clock = 2 * mode.alpha * t
        return start / (jnp.exp(-target * clock) + start * _expm1_over(target, clock))

    stays = start == target
    mode = mode._replace(target=jnp.where(stays, 2 * start, target))
    info = jnp.finfo(start.dtype)
    origin = _position(start, mode, depth)
    faded = jnp.minimum(origin - 4 * jnp.log(info.eps), -jnp.log(info.tiny))
    end = jnp.maximum(origin, jnp.where(start < target, -jnp.log(info.eps), faded))

    origin_, end_, mode_ = jax.lax.stop_gradient((origin, end, mode))
    t = jnp.minimum(t, _duration(origin_, end_ - origin_, mode_, depth, _WHOLE_WAY))
    s = _travel(jax.lax.stop_gradient(t), origin_, end_, mode_, depth)
    # One more step of Newton's method, this one differentiated, has the derivatives of the inverse.
    s = s + _speed(s, mode, depth) * (t - _duration(origin, s - origin, mode, depth, _WHOLE_WAY))
    return jnp.where(stays, target, jnp.exp(_log_sigma(s, mode, depth)))


def _log1p_over(rate, x):
    """`log(1 + rate x) / rate`, also for a rate of zero."""
    small = rate * x < jnp.sqrt(jnp.finfo(x.dtype).eps)
    safe = jnp.where(small, 1, rate)
    return jnp.where(small, x * (1 - rate * x / 2), jnp.log1p(safe * x) / safe)


def _expm1_over(rate, x):
    """`(1 − e^{−rate x}) / rate`, also for a rate of zero."""
    small = rate * x < jnp.sqrt(jnp.finfo(x.dtype).eps)
    safe = jnp.where(small, 1, rate)
    return jnp.where(small, x * (1 - rate * x / 2), -jnp.expm1(-safe * x) / safe)


@partial(jax.jit, static_argnames=("depth", "records", "record_every"))
def _descend(rate, mode, *, depth, records, record_every):
    """The map in two variables: all outer factors are equal, and so are all middle ones."""
    ends = min(depth, 2)
    between = depth - ends
    alpha = 1 if mode.alpha is None else mode.alpha

    def step(_, factors):
        outer, middle = factors
        push = rate * (mode.target - outer**ends * middle**between)
        new_outer = outer + alpha * push * outer ** (ends - 1) * middle**between
        if between == 0:
            return new_outer, middle
        return new_outer, middle + push * outer**ends * middle ** (between - 1)

    def record(factors, _):
        outer, middle = factors
        return jax.lax.fori_loop(0, record_every, step, factors), outer**ends * middle**between

    last, sigma = jax.lax.scan(record, (mode.scale, mode.scale), length=records)
    return jnp.concatenate([sigma, record(last, None)[1][None]])


# --- Arguments --------------------------------------------------------------------------------------


def _mode(target, depth, scale, alpha, other) -> tuple[_Mode, Array]:
    """A mode and one more array, checked and brought to one shape and data type."""
    _check_integer("depth", depth, least=1)
    _check("target", target, lambda v: v >= 0, "at least 0")
    _check("scale", scale, lambda v: v > 0, "more than 0")
    _check("alpha", alpha, lambda v: v >= 0, "at least 0")
    if depth <= 2:
        _check("alpha", alpha, lambda v: v > 0, f"more than 0: all {depth} factors are outer ones")
    elif isinstance(alpha, int | float) and alpha == 1:
        target, scale, other = _broadcast(target, scale, other)
        return _Mode(target, scale, None), other
    target, scale, alpha, other = _broadcast(target, scale, alpha, other)
    return _Mode(target, scale, alpha), other


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
    if not isinstance(value, jax.core.Tracer):
        value = np.asarray(value)
        bad = value[~(np.isfinite(value) & holds(value))]
        if bad.size:
            raise ValueError(f"{name}={bad.flat[0]}, expected {expected}")
