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

from dataclasses import dataclass, field, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike
from jaxtyping import Array, Float

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
    return _flow_time(mode, level)


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
    return _flow_value(mode, t)


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
    return _descend(mode, rate, records=steps // record_every, record_every=record_every)


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
    return _flow_time(mode, jnp.where(fitted, start, level))


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
    top, alpha = _broadcast(top, alpha)
    return depth * top ** (2 - 2 / depth) * alpha ** min(1.0, 2 / depth)


def edge_of_stability(
    top: ArrayLike, /, *, depth: int, alpha: ArrayLike = 1.0
) -> Float[Array, "..."]:
    """Learning rate `2 / sharpness` below which the minimum attracts gradient descent."""
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

    `fit_time(σ*_i) · sharpness(σ*_1) / step_rate` (docs/theory.md 2.6): once component 1 is fitted,
    no explicit method can make steps longer than `step_rate / sharpness`, however slowly component
    `i` moves. The rate `step_rate` is 1 for gradient descent at half the edge of stability, 2 at
    the edge, and about 3 for Runge-Kutta methods of order 4 or 5.
    """
    wait = fit_time(targets, depth=depth, scale=scale, tolerance=tolerance, alpha=alpha)
    return wait * sharpness(jnp.max(jnp.asarray(targets)), depth=depth, alpha=alpha) / step_rate


# --- How: time as an integral over a variable in which the motion is nearly uniform ---------------
#
# Below the target s = ln(σ / (σ* − σ)), above it s = −ln(σ − σ*); both grow, ṡ = K(σ) max(1, σ*/σ).
# Close to the target ṡ is constant, far from it an exponential of s; between, 1/ṡ is analytic in
# the strip |Im s| < π/2, so that Gauss-Legendre quadrature converges geometrically on panels of
# fixed width. Nothing cancels or overflows, at any time and from either side, σ* = 0 included. (For
# α = 1 the integral is elementary, logarithms at the L-th roots of unity, but their sum cancels for
# short times and for starts far above the target.)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _Mode:
    """A singular value on its way, with arrays of one shape."""

    target: Array
    scale: Array
    alpha: Array | None  # None: known, when compiling, to be 1
    depth: int = field(metadata={"static": True})

    @property
    def start(self):
        return self.scale**self.depth

    @property
    def rising(self):
        return self.start < self.target

    def position(self, sigma):
        """The variable `s` at a singular value between start and target."""
        log_sigma = jnp.where(self.rising, jnp.log(sigma), 0)
        return log_sigma - jnp.log(jnp.abs(self.target - sigma))

    def sigma(self, s):
        up = self.rising  # each branch gets harmless numbers where it is not the one chosen
        below = self.target * jax.nn.sigmoid(jnp.where(up, s, 0))
        return jnp.where(up, below, self.target + jnp.exp(jnp.where(up, 0, -s)))

    def log_sigma(self, s):
        up = self.rising
        below = jnp.log(jnp.where(up, self.target, 1)) - jax.nn.softplus(jnp.where(up, -s, 0))
        return jnp.where(up, below, jnp.log(jnp.where(up, 1, self.sigma(s))))

    def speed(self, s):
        """`ṡ = K(σ) max(1, σ*/σ)`."""
        log_sigma = self.log_sigma(s)
        if self.alpha is None:
            log_kernel = jnp.log(self.depth) + (2 - 2 / self.depth) * log_sigma
        else:
            outer, middle = self.squared_factors(log_sigma, self.alpha)
            rates = 2 * self.alpha / outer + (self.depth - 2) / middle
            log_kernel = 2 * log_sigma + jnp.log(rates)
        log_ratio = jnp.log(jnp.where(self.rising, self.target, 1)) - log_sigma
        speed = jnp.exp(log_kernel + jnp.where(self.rising, log_ratio, 0))
        return jnp.maximum(speed, jnp.finfo(speed.dtype).tiny)  # in float32 it can underflow

    def squared_factors(self, log_sigma, alpha):
        """Solve `x_o² x_m^{L−2} = σ`, `x_o² − α x_m² = (1 − α) ε²` for `x_o²`, `x_m²`; `L ≥ 3`.

        The unknown `u` is the logarithm, in units of `ε²`, of the square that can vanish: the outer
        one if `α ≥ 1`, else the middle one. The other square then is `1 − a + a e^u`, and the
        equation `p u + q ln(1 − a + a e^u) = ln(σ / ε^L)` is convex with slopes between `p` and
        `L/2`: Newton's method converges from anywhere, and to rounding in eight steps from the
        root for `α = 1`.
        """
        slow = alpha < 1
        a = jnp.where(slow, alpha, 1 / jnp.where(slow, 1, alpha))
        p = jnp.where(slow, self.depth / 2 - 1, 1)
        q = self.depth / 2 - p
        goal = log_sigma - self.depth * jnp.log(self.scale)
        u = 2 / self.depth * goal
        for _ in range(8):
            u = jax.lax.stop_gradient(u)  # the derivative of the root is that of the last step
            other = 1 - a + a * jnp.exp(u)
            u = u - (p * u + q * jnp.log(other) - goal) / (p + q * a * jnp.exp(u) / other)
        vanishing, other = self.scale**2 * jnp.exp(u), self.scale**2 * (1 - a + a * jnp.exp(u))
        return jnp.where(slow, other, vanishing), jnp.where(slow, vanishing, other)


def _gauss_legendre(panels: int, order: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights on [0, 1] of a rule of `order` nodes on each of `panels` equal panels."""
    x, w = np.polynomial.legendre.leggauss(order)
    nodes = (np.arange(panels)[:, None] + (x + 1) / 2) / panels
    return nodes.ravel(), np.tile(w / 2 / panels, panels)


_WHOLE_WAY = _gauss_legendre(panels=8, order=48)
_STRIDE, _ONE_STRIDE = 2.5, _gauss_legendre(panels=1, order=16)


def _duration(mode, s, move, rule):
    """Flow time from position `s` to `s + move`."""

    def part(node, weight):
        return weight / mode.speed(s + node * move)

    nodes, weights = (jnp.asarray(array, move.dtype) for array in rule)
    return move * jnp.sum(jax.vmap(part)(nodes, weights), axis=0)


def _travel(mode, time, start, end):
    """The position after `time`: Newton's method, at most a stride at once and never past `end`."""

    def step(carry):
        s, left, _ = carry
        move = jnp.clip(left * mode.speed(s), -_STRIDE, jnp.minimum(_STRIDE, end - s))
        return s + move, left - _duration(mode, s, move, _ONE_STRIDE), move

    def moving(carry):
        s, _, move = carry
        return jnp.any(jnp.abs(move) > 4 * jnp.finfo(s.dtype).eps * (1 + jnp.abs(s)))

    return jax.lax.while_loop(moving, step, (start, time, jnp.full_like(start, _STRIDE)))[0]


def _off_target(mode):
    """A mode that starts exactly at its target, where `s` is infinite, moved away from it."""
    return replace(mode, target=jnp.where(mode.start == mode.target, 2 * mode.start, mode.target))


@jax.jit
def _flow_time(mode, level):
    start, target = mode.start, mode.target
    passed = ((start <= level) & (level < target)) | ((target < level) & (level <= start))
    at_start = jnp.abs(level - start) <= 4 * jnp.finfo(start.dtype).eps * start
    level = jnp.where(passed, level, start)
    mode = _off_target(mode)
    gap = mode.target - level
    if mode.depth == 1:
        time = jnp.log1p((level - start) / gap) / mode.alpha
    elif mode.depth == 2:
        time = _log1p_over(mode.target, (level - start) / (start * gap)) / (2 * mode.alpha)
    else:
        origin = mode.position(start)
        time = _duration(mode, origin, mode.position(level) - origin, _WHOLE_WAY)
    return jnp.where(passed | at_start, time, jnp.inf)


@jax.jit
def _flow_value(mode, t):
    start, target = mode.start, mode.target
    if mode.depth == 1:
        return start * jnp.exp(-mode.alpha * t) - target * jnp.expm1(-mode.alpha * t)
    if mode.depth == 2:
        clock = 2 * mode.alpha * t
        return start / (jnp.exp(-target * clock) + start * _expm1_over(target, clock))

    mode = _off_target(mode)
    origin = mode.position(start)
    info = jnp.finfo(start.dtype)
    faded = jnp.minimum(origin - 4 * jnp.log(info.eps), -jnp.log(info.tiny))
    end = jnp.where(mode.rising, -2 * jnp.log(info.eps), faded)  # here the motion is over

    s = _travel(*jax.lax.stop_gradient((mode, t, origin, end)))
    over = s > end - 1
    # One more step of Newton's method, this one differentiated, has the derivatives of the inverse.
    left = jnp.where(over, 0, t) - _duration(mode, origin, s - origin, _WHOLE_WAY)
    s = jnp.where(over, s, s + mode.speed(s) * left)
    return jnp.where(start == target, target, mode.sigma(s))


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


@partial(jax.jit, static_argnames=("records", "record_every"))
def _descend(mode, rate, *, records, record_every):
    """The map in two variables: all outer factors are equal, and so are all middle ones."""
    outer_count = min(mode.depth, 2)
    middle_count = mode.depth - outer_count
    alpha = 1 if mode.alpha is None else mode.alpha

    def sigma(factors):
        outer, middle = factors
        return outer**outer_count * middle**middle_count

    def step(_, factors):
        outer, middle = factors
        push = rate * (mode.target - sigma(factors))
        new_outer = outer + alpha * push * outer ** (outer_count - 1) * middle**middle_count
        if middle_count == 0:
            return new_outer, middle
        return new_outer, middle + push * outer**outer_count * middle ** (middle_count - 1)

    def record(factors, _):
        factors = jax.lax.fori_loop(0, record_every, step, factors)
        return factors, sigma(factors)

    start = (mode.scale, mode.scale)
    _, history = jax.lax.scan(record, start, length=records)
    return jnp.concatenate([sigma(start)[None], history])


# --- Arguments ------------------------------------------------------------------------------------


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
        return _Mode(target, scale, None, depth), other
    target, scale, alpha, other = _broadcast(target, scale, alpha, other)
    return _Mode(target, scale, alpha, depth), other


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
