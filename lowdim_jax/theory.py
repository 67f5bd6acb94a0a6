"""Predictions for the compressed network and for stability, as functions of scalars and arrays.

With a spectral initialization every singular value `σ` moves alone (docs/theory.md 2.1): it is the
product of `L` scalar factors `x_l` that start at the initialization scale `ε`, and under gradient flow

    σ̇ = K(σ) (σ* − σ),    K = Σ_l α_l (σ / x_l)²,

where `K` is the tangent kernel and `α_l` the relative learning rate of factor `l`: `α` for the two
outer factors, 1 for those between. With one rate for all, `K = L σ^{2 − 2/L}`.

Times are flow times: one step of gradient descent of learning rate `η` advances the flow by `η`.
Arguments broadcast against each other; every function composes with `jit`, `vmap` and `grad`. The
precision is that of the arguments, and the initial value `ε^L` must be representable in it.
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
    level: ArrayLike,
    target: ArrayLike,
    /,
    *,
    depth: int,
    scale: ArrayLike,
    alpha: ArrayLike = 1.0,
) -> Float[Array, "..."]:
    """Flow time at which a singular value that starts at `ε^L` reaches `level`.

    `t = ∫ dσ / (K(σ) (σ* − σ))` from `ε^L` to `level`: in closed form for `L ≤ 2`, by Gauss-Legendre
    quadrature, to rounding, for `L ≥ 3`.

    Parameters
    ----------
    level, target
        `σ` and `σ*`, non-negative.
    depth
        `L ≥ 1`, static.
    scale
        `ε > 0`, initial value of every factor.
    alpha
        `α ≥ 0`, ratio of outer to middle learning rate. `α = 0` freezes the outer factors; for
        `L ≤ 2` there are no others.

    Returns
    -------
    Times, of the arguments' common shape; `inf` where `level` is not between start and target.

    Raises
    ------
    ValueError
        If an argument is out of range. Values that are traced are not checked.

    References
    ----------
    docs/theory.md 2.2 and, for `alpha ≠ 1`, 2.5.
    """
    mode, level = _mode(target, depth, scale, alpha, level=level)
    return _time(level, mode, depth=depth)


def mode_trajectory(
    t: ArrayLike,
    target: ArrayLike,
    /,
    *,
    depth: int,
    scale: ArrayLike,
    alpha: ArrayLike = 1.0,
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
    Singular values, of the arguments' common shape. Below `eps^4 ε^L`, with `eps` the rounding unit,
    the decay of a mode whose target is zero is not followed any further.

    Raises
    ------
    ValueError
        If an argument is out of range. Values that are traced are not checked.

    References
    ----------
    docs/theory.md 2.2, 2.3 (`L = 2`) and, for `alpha ≠ 1`, 2.5.
    """
    mode, t = _mode(target, depth, scale, alpha, t=t)
    return _value(t, mode, depth=depth)


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

    `x_l ← x_l + α_l η (σ* − σ) σ / x_l` for all factors at once, `σ = x_1 ⋯ x_L`.

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
        If an argument is out of range. Values that are traced are not checked.

    References
    ----------
    docs/theory.md 2.1.
    """
    for name, value, least in (("steps", steps, 0), ("record_every", record_every, 1)):
        _check(name, value, lambda v, least=least: v >= least, f"at least {least}")
    mode, rate = _mode(target, depth, scale, alpha, learning_rate=learning_rate)
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

    Raises
    ------
    ValueError
        If an argument is out of range. Values that are traced are not checked.

    References
    ----------
    docs/theory.md 1.6, 2.2 and, for `alpha ≠ 1`, 2.5.
    """
    mode, tolerance = _mode(target, depth, scale, alpha, tolerance=tolerance)
    start, goal = mode.scale**depth, mode.target
    slack = tolerance * goal
    level = jnp.where(start < goal, goal - slack, goal + slack)
    fitted = jnp.abs(start - goal) <= slack
    return _time(jnp.where(fitted, start, level), mode, depth=depth)


def fit_time_small_scale(
    target: ArrayLike, /, *, depth: int, scale: ArrayLike, tolerance: ArrayLike = 0.5
) -> Float[Array, "..."]:
    """Leading order of `fit_time` as `ε → 0`: the law behind incremental learning.

    - `L ≥ 3`: `ε^{−(L − 2)} / ((L − 2) σ*)`, whatever the tolerance `c`;
    - `L = 2`: `(ln(σ* / ε²) + ln((1 − c) / c)) / (2 σ*)`;
    - `L = 1`: `ln(1 / c)`: all components are learned at the same time.

    Raises
    ------
    ValueError
        If an argument is out of range. Values that are traced are not checked.

    References
    ----------
    docs/theory.md 2.4.
    """
    mode, c = _mode(target, depth, scale, 1.0, tolerance=tolerance)
    if depth == 1:
        return -jnp.log(c)
    if depth == 2:
        return (jnp.log(mode.target / mode.scale**2) + jnp.log1p(-c) - jnp.log(c)) / (
            2 * mode.target
        )
    return 1 / ((depth - 2) * mode.scale ** (depth - 2) * mode.target)


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
    energy = jnp.asarray(targets) ** 2 / 2
    if energy.ndim != 1:
        raise ValueError(f"targets has shape {energy.shape}, expected (r,)")
    return jnp.pad(jnp.cumsum(energy[::-1])[::-1], (0, 1))


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
    _check_depth(depth)
    aligned = jnp.einsum("ir,ij,jr->r", u, residual, v, precision=jax.lax.Precision.HIGHEST)
    return depth * sigma ** (2 - 2 / depth) * aligned


def balance_step(
    factors: Float[Array, "... L"], target: ArrayLike, /, *, learning_rate: ArrayLike
) -> Float[Array, "... L L"]:
    """Imbalances `b_ij = x_i² − x_j²` of scalar factors after one step of gradient descent.

    `b_ij ← b_ij (1 − η² (σ − σ*)² σ² / (x_i x_j)²)`: exact, where gradient flow conserves them.

    Parameters
    ----------
    factors
        `x_1, …, x_L` along the last axis, before the step.
    target
        `σ*`, of the shape of the other axes.

    References
    ----------
    docs/theory.md 4.2.
    """
    factors = jnp.asarray(factors)
    depth = factors.shape[-1]
    one = jnp.eye(depth, dtype=bool)
    left_out = one[:, None, :] | one[None, :, :]  # without a division, for factors of zero
    others = jnp.prod(
        jnp.where(left_out, 1, jnp.expand_dims(factors, (-3, -2))), axis=-1
    )
    step = jnp.asarray(learning_rate * (target - jnp.prod(factors, axis=-1)))
    squares = factors**2
    imbalance = squares[..., :, None] - squares[..., None, :]
    return imbalance * (1 - (step[..., None, None] * others) ** 2)


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
    docs/theory.md 5.1 and, for `alpha ≠ 1`, 5.2.
    """
    _check_depth(depth)
    top, alpha = _broadcast(top, alpha)
    _check("top", top, lambda v: v >= 0, "non-negative singular values")
    _check("alpha", alpha, lambda v: v >= 0, "a non-negative ratio of learning rates")
    return depth * top ** (2 - 2 / depth) * alpha ** min(1.0, 2 / depth)


def edge_of_stability(
    top: ArrayLike, /, *, depth: int, alpha: ArrayLike = 1.0
) -> Float[Array, "..."]:
    """Learning rate `2 / sharpness` below which gradient descent converges to the minimum.

    References
    ----------
    docs/theory.md 5.1 and, for `alpha ≠ 1`, 5.2.
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

    `fit_time(σ*_i) · sharpness(σ*_1) / step_rate`: from the time component 1 is fitted, an explicit
    method can make no step longer than `step_rate / sharpness`, while component `i` still waits.

    Parameters
    ----------
    targets
        `(r,)`: singular values of the target, in any order.
    depth, scale, tolerance, alpha
        As in `fit_time`; scalars.
    step_rate
        Step length times fastest rate: 1 for gradient descent at half the edge of stability, 2 at the
        edge, about 3 for Runge-Kutta methods of order 4 or 5.

    References
    ----------
    docs/theory.md 2.6.
    """
    wait = fit_time(targets, depth=depth, scale=scale, tolerance=tolerance, alpha=alpha)
    fastest = sharpness(jnp.max(jnp.asarray(targets)), depth=depth, alpha=alpha)
    return wait * jnp.expand_dims(fastest / step_rate, 0)


# --- How: time as an integral over a variable in which the motion is nearly uniform -----------------
#
# Below the target s = ln(σ / (σ* − σ)), above it s = −ln(σ − σ*); both grow, ṡ = K(σ) max(1, σ*/σ).
# Close to the target ṡ is constant, far from it an exponential of s: 1/ṡ is analytic in the strip
# |Im s| < π/2, so Gauss-Legendre quadrature converges geometrically, at a rate set by the panel's
# width alone. Nothing overflows or cancels, at any time and from either side, and σ* = 0 is no
# exception. (For α = 1 the integral is elementary, a sum of logarithms over the L-th roots of unity,
# but that sum cancels for short times and for starts far above the target.)


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


_WHOLE_WAY = _gauss_legendre(panels=8, order=48)  # reaches rounding over |Δs| < 150, and α = 1/2
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


def _log_kernel(log_sigma, mode, depth):
    if mode.alpha is None:
        return jnp.log(depth) + (2 - 2 / depth) * log_sigma
    outer, middle = _squared_factors(log_sigma, mode, depth)
    return jnp.log(2 * mode.alpha / outer + (depth - 2) / middle) + 2 * log_sigma


def _squared_factors(log_sigma, mode, depth):
    """Solve `x_o² x_m^{L−2} = σ` and `x_o² − α x_m² = (1 − α) ε²` for `x_o²` and `x_m²`, `L ≥ 3`.

    The unknown is the logarithm `u` of the square that can vanish, the outer one if `α > 1`, in units
    of `ε²`. The other one is `1 − a + a e^u`, all terms positive, and the equation to solve,
    `p u + q ln(1 − a + a e^u) = ln(σ / ε^L)`, convex with slopes between `p` and `L/2`: Newton's
    method converges from anywhere, and eight steps reach rounding from the solution for `α = 1`.
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
        slope = p + q * a * jnp.exp(u) / other
        u = u - (p * u + q * jnp.log(other) - goal) / slope
    first, other = mode.scale**2 * jnp.exp(u), mode.scale**2 * (1 - a + a * jnp.exp(u))
    return jnp.where(slow, other, first), jnp.where(slow, first, other)


def _speed(s, mode, depth):
    """`ṡ = K(σ) max(1, σ*/σ)`."""
    rising = mode.scale**depth < mode.target
    log_sigma = _log_sigma(s, mode, depth)
    log_target = jnp.log(jnp.where(rising, mode.target, 1))
    boost = jnp.where(rising, log_target - log_sigma, 0)
    speed = jnp.exp(_log_kernel(log_sigma, mode, depth) + boost)
    return jnp.maximum(speed, jnp.finfo(speed.dtype).tiny)  # in float32 it can underflow


def _duration(start, width, mode, depth, rule):
    """Flow time from `s = start` to `start + width`."""

    def part(node, weight):
        return weight / _speed(start + node * width, mode, depth)

    nodes, weights = (jnp.asarray(array, width.dtype) for array in rule)
    return width * jnp.sum(jax.vmap(part)(nodes, weights), axis=0)


def _travel(time, start, end, mode, depth):
    """The position after `time`: Newton's method, at most a stride at once and never past `end`."""

    def step(carry):
        s, left, _ = carry
        move = jnp.clip(left * _speed(s, mode, depth), -_STRIDE, jnp.minimum(_STRIDE, end - s))
        return s + move, left - _duration(s, move, mode, depth, _ONE_STRIDE), move

    def moving(carry):
        s, _, move = carry
        return jnp.any(jnp.abs(move) > 4 * jnp.finfo(s.dtype).eps * (1 + jnp.abs(s)))

    first_move = jnp.full_like(start, _STRIDE)
    return jax.lax.while_loop(moving, step, (start, time, first_move))[0]


@partial(jax.jit, static_argnames="depth")
def _time(level, mode, depth):
    start, target = mode.scale**depth, mode.target
    near_start = jnp.abs(level - start) <= 4 * jnp.finfo(start.dtype).eps * start
    rises = (start <= level) & (level < target)
    falls = (target < level) & (level <= start)
    level = jnp.where(rises | falls, level, start)
    gap = jnp.where(start == target, 1, target - level)  # a mode that starts at its target stays
    if depth == 1:
        time = jnp.log1p((level - start) / gap) / mode.alpha
    elif depth == 2:
        z = (level - start) / (start * gap)
        time = z * _log1p_ratio(z * target) / (2 * mode.alpha)
    else:
        mode = mode._replace(target=jnp.where(start == target, 2 * start, target))
        origin = _position(start, mode, depth)
        time = _duration(origin, _position(level, mode, depth) - origin, mode, depth, _WHOLE_WAY)
    return jnp.where(rises | falls | near_start, time, jnp.inf)


@partial(jax.jit, static_argnames="depth")
def _value(t, mode, depth):
    start, target = mode.scale**depth, mode.target
    if depth == 1:
        return start * jnp.exp(-mode.alpha * t) - target * jnp.expm1(-mode.alpha * t)
    if depth == 2:
        z = 2 * mode.alpha * target * t
        return start / (jnp.exp(-z) + start * _saturating(2 * mode.alpha * t, target))

    stays = start == target
    mode = mode._replace(target=jnp.where(stays, 2 * start, target))
    eps = jnp.finfo(start.dtype).eps
    origin = _position(start, mode, depth)
    faded = jnp.minimum(origin - 4 * jnp.log(eps), -jnp.log(jnp.finfo(start.dtype).tiny))
    end = jnp.where(start < mode.target, -jnp.log(eps), faded)

    still, origin_, end_ = jax.lax.stop_gradient((mode, origin, end))
    t = jnp.minimum(t, _duration(origin_, end_ - origin_, still, depth, _WHOLE_WAY))
    s = _travel(jax.lax.stop_gradient(t), origin_, end_, still, depth)
    # One more step of Newton's method, this one differentiated, has the derivatives of the inverse.
    s = s + _speed(s, mode, depth) * (t - _duration(origin, s - origin, mode, depth, _WHOLE_WAY))
    return jnp.where(stays, target, jnp.exp(_log_sigma(s, mode, depth)))


def _log1p_ratio(x):
    """`log(1 + x) / x` for `x ≥ 0`."""
    small = x < jnp.sqrt(jnp.finfo(x.dtype).eps)
    safe = jnp.where(small, 1, x)
    return jnp.where(small, 1 - x / 2, jnp.log1p(safe) / safe)


def _saturating(time, rate):
    """`(1 − e^{−rate · time}) / rate` for `rate ≥ 0`."""
    x = rate * time
    small = x < jnp.sqrt(jnp.finfo(x.dtype).eps)
    return jnp.where(small, time * (1 - x / 2), -jnp.expm1(-x) / jnp.where(small, 1, rate))


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
        factors = jax.lax.fori_loop(0, record_every, step, factors)
        return factors, factors

    start = (mode.scale, mode.scale)
    _, history = jax.lax.scan(record, start, length=records)
    outer, middle = (
        jnp.concatenate([first[None], rest]) for first, rest in zip(start, history, strict=True)
    )
    return outer**ends * middle**between


# --- Arguments --------------------------------------------------------------------------------------


def _mode(target, depth, scale, alpha, **argument) -> tuple[_Mode, Array]:
    """Check the arguments of a mode and one more, named one, and bring all to one shape and dtype."""
    ((name, value),) = argument.items()
    _check_depth(depth)
    _check("target", target, lambda v: v >= 0, "non-negative singular values")
    _check("scale", scale, lambda v: v > 0, "a positive initialization scale")
    _check("alpha", alpha, lambda v: v >= 0, "a non-negative ratio of learning rates")
    if depth <= 2:
        _check("alpha", alpha, lambda v: v > 0, f"more than 0: depth={depth} has only outer factors")
    if name in ("learning_rate", "tolerance"):
        _check(name, value, lambda v: v > 0, "more than 0")
    else:
        _check(name, value, lambda v: v >= 0, "at least 0")
    if depth > 2 and isinstance(alpha, int | float) and alpha == 1:
        target, scale, value = _broadcast(target, scale, value)
        return _Mode(target, scale, None), value
    target, scale, alpha, value = _broadcast(target, scale, alpha, value)
    return _Mode(target, scale, alpha), value


def _broadcast(*values: ArrayLike) -> list[Array]:
    arrays = [jnp.asarray(value) for value in values]
    with jax.numpy_dtype_promotion("standard"):
        dtype = jnp.result_type(1.0, *arrays)
    return jnp.broadcast_arrays(*(array.astype(dtype) for array in arrays))


def _check_depth(depth):
    if not isinstance(depth, int) or depth < 1:
        raise ValueError(f"depth={depth}, expected an integer of at least 1")


def _check(name, value, holds, expected):
    """Raise `ValueError` where a concrete argument is not finite or out of range."""
    if isinstance(value, jax.core.Tracer):
        return
    value = np.asarray(value)
    bad = value[~(np.isfinite(value) & holds(value))]
    if bad.size:
        raise ValueError(f"{name}={bad.flat[0]}, expected {expected}")
