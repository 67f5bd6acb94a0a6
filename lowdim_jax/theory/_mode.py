"""How one singular value moves: its flow time as an integral, its value after a time, its descent.

Below the target s = ln(σ / (σ* − σ)), above it s = −ln(σ − σ*); both grow, ṡ = K(σ) max(1, σ*/σ).
Close to the target ṡ is constant, far from it an exponential of s; between, 1/ṡ is analytic in
the strip |Im s| < π/2. With one rate for all factors the time is a power series on either side of
half-way (`_series`), with discrepant rates a Gauss-Legendre quadrature, which converges geometrically on
panels of fixed width. Nothing overflows, at any time and from either side, σ* = 0 included, nor where ε^L
is below the smallest number; and nothing cancels but what does in `s` itself: over a short way the
difference of two series has the digits that the level has beyond the start, as a quadrature would.
"""

import math
from dataclasses import dataclass, field, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from lowdim_jax.theory._series import beyond, passed_below, start_above, start_below


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Mode:
    """A singular value on its way, with arrays of one shape."""

    target: Array
    scale: Array
    alpha: Array | None  # None: known, when compiling, to be 1
    depth: int = field(metadata={"static": True})

    @property
    def start(self):
        return self.scale**self.depth

    @property
    def log_start(self):
        return self.depth * jnp.log(self.scale)

    @property
    def rising(self):
        return self.start < self.target

    def position(self, log_sigma, gap):
        """The variable `s` at a singular value between start and target, `gap` away from this one."""
        return jnp.where(self.rising, log_sigma, 0) - jnp.log(gap)

    @property
    def origin(self):
        return self.position(self.log_start, jnp.abs(self.target - self.start))

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
            log_kernel = 2 * (log_sigma - jnp.log(self.scale)) + jnp.log(rates)
        log_ratio = jnp.log(jnp.where(self.rising, self.target, 1)) - log_sigma
        speed = jnp.exp(log_kernel + jnp.where(self.rising, log_ratio, 0))
        return jnp.maximum(speed, jnp.finfo(speed.dtype).tiny)  # in float32 it can underflow

    def squared_factors(self, log_sigma, alpha):
        """Solve `x_o² x_m^{L−2} = σ`, `x_o² − α x_m² = (1 − α) ε²` for `x_o²`, `x_m²`, over `ε²`; `L ≥ 3`.

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
        goal = log_sigma - self.log_start
        u = 2 / self.depth * goal
        for _ in range(8):
            u = jax.lax.stop_gradient(u)  # the derivative of the root is that of the last step
            other = 1 - a + a * jnp.exp(u)
            u = u - (p * u + q * jnp.log(other) - goal) / (p + q * a * jnp.exp(u) / other)
        vanishing, other = jnp.exp(u), 1 - a + a * jnp.exp(u)
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


@jax.custom_jvp
def _elapsed(mode, origin, s):
    """Flow time from position `origin` to `s`; derivatives in both are exact, not those of a quadrature."""
    if mode.alpha is not None:
        return _duration(mode, origin, s - origin, _WHOLE_WAY)
    return jnp.where(mode.rising, _risen(mode, origin, s), _fallen(mode, origin, s))


@_elapsed.defjvp
def _elapsed_jvp(primals, tangents):
    mode, origin, s = primals
    mode_dot, origin_dot, s_dot = tangents
    time, slope = jax.jvp(lambda mode: _elapsed.fun(mode, origin, s), (mode,), (mode_dot,))
    return time, slope + s_dot / mode.speed(s) - origin_dot / mode.speed(origin)


def _risen(mode, origin, s):
    target = jnp.where(mode.rising, mode.target, 1)
    up = [jnp.where(mode.rising, position, 0) for position in (origin, s)]
    time = passed_below(up[1], mode.depth) - passed_below(up[0], mode.depth)
    return time * target ** (2 / mode.depth - 2)


def _fallen(mode, origin, s):
    target = jnp.where(mode.rising, 0, mode.target)
    down = [jnp.where(mode.rising, 0, position) for position in (origin, s)]
    return beyond(down[1], target, mode.depth) - beyond(down[0], target, mode.depth)


def _arrive(mode, time, start, end):
    """The position after `time` for `α = 1`: Newton's method on the series, from a bound of the root.

    The time is concave in `s` below the target and convex above: it converges from anywhere.
    """
    depth, up = mode.depth, mode.rising
    target_up, target_down = jnp.where(up, mode.target, 1), jnp.where(up, 0, mode.target)
    pace = target_up ** (2 - 2 / depth)

    def clock(s):
        below = passed_below(jnp.where(up, s, 0), depth) / pace
        return jnp.where(up, below, beyond(jnp.where(up, 0, s), target_down, depth))

    goal = jnp.minimum(clock(start) + time, jnp.finfo(start.dtype).max)
    guess = jnp.where(
        up, start_below(jnp.where(up, goal, 0) * pace, depth),
        start_above(jnp.where(up, 1, goal), target_down, depth),
    )

    def step(carry):
        s, _, count = carry
        moved = jnp.clip(s + (goal - clock(s)) * mode.speed(s), start, end)
        moved = jnp.where(jnp.isnan(moved), start, moved)  # the wait is longer than the largest number
        return moved, moved - s, count + 1

    def moving(carry):
        s, move, count = carry
        accuracy = jnp.finfo(s.dtype).eps ** 0.6  # squared once more by the step that is differentiated
        return jnp.any(jnp.abs(move) > accuracy * (1 + jnp.abs(s))) & (count < 50)

    s = jnp.clip(guess, start, end)
    return jax.lax.while_loop(moving, step, (s, jnp.full_like(s, jnp.inf), 0))[0]


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
def flow_time(mode, level, gap):
    """Time from the start to `level`, `gap` away from the target; infinite where it is not on the way."""
    start, target = mode.start, mode.target
    up = (start <= level) & (level < target) & (level > 0)
    passed = up | ((target < level) & (level <= start))
    at_start = jnp.abs(level - start) <= 4 * jnp.finfo(start.dtype).eps * start
    away = jnp.where(start == target, start, jnp.abs(target - start))
    level, gap = jnp.where(passed, level, start), jnp.where(passed, gap, away)
    mode = _off_target(mode)
    if mode.depth == 1:
        time = jnp.log1p((level - start) / jnp.where(mode.rising, gap, -gap)) / mode.alpha
    elif mode.depth == 2:
        signed = jnp.where(mode.rising, gap, -gap)
        time = _log1p_over(mode.target, (level - start) / (start * signed)) / (2 * mode.alpha)
        faint = _faint(mode)
        logs = jnp.log(jnp.where(faint, level * (mode.target - start), 1)) - jnp.log(jnp.where(faint, gap, 1))
        late = (logs - mode.log_start) / jnp.where(faint, 2 * mode.alpha * mode.target, 1)
        time = jnp.where(faint, late, time)
    else:
        log_level = jnp.where(passed, jnp.log(jnp.where(passed, level, 1)), mode.log_start)
        time = _elapsed(mode, mode.origin, mode.position(log_level, gap))
    return jnp.where(passed, time, jnp.where(at_start, 0, jnp.inf))


@jax.jit
def flow_value(mode, t):
    """Singular value after the time `t`."""
    start, target = mode.start, mode.target
    if mode.depth == 1:
        return start * jnp.exp(-mode.alpha * t) - target * jnp.expm1(-mode.alpha * t)
    if mode.depth == 2:
        clock = jnp.minimum(2 * mode.alpha * t, jnp.finfo(t.dtype).max)
        done = _expm1_over(target, clock)
        faint = _faint(mode)
        ahead = jnp.exp(jnp.where(faint, -target * clock - mode.log_start, 0)) + done
        return jnp.where(faint, 1 / ahead, start / (jnp.exp(-target * clock) + start * done))

    rates = 2 * (1 if mode.alpha is None else mode.alpha) + mode.depth - 2
    kernel = rates * mode.scale ** (2 * mode.depth - 2)
    resting = target + (start - target) * jnp.exp(-kernel * t)  # for start = target: the same to first order
    mode = _off_target(mode)
    origin = mode.origin
    info = jnp.finfo(start.dtype)
    faded = jnp.minimum(origin - 4 * math.log(info.eps), -math.log(info.tiny))
    end = jnp.where(mode.rising, -2 * math.log(info.eps), faded)  # here the motion is over

    find = _travel if mode.alpha is not None else _arrive
    s = find(*jax.lax.stop_gradient((mode, t, origin, jnp.maximum(end, origin))))
    over = s > end - 1
    # One more step of Newton's method, this one differentiated, has the derivatives of the inverse.
    left = jnp.where(over, 0, t) - _elapsed(mode, origin, s)
    s = jnp.where(over, s, s + mode.speed(s) * left)
    return jnp.where(start == target, resting, mode.sigma(s))


def _faint(mode):
    """Whether the start of a rising mode is a number that arithmetic takes for zero, or nearly so."""
    info = jnp.finfo(mode.scale.dtype)
    return mode.rising & (mode.start < info.tiny / info.eps)


def _log1p_over(rate, x):
    """`log(1 + rate x) / rate`, also for a rate of zero."""
    small = rate * x < jnp.sqrt(jnp.finfo(x.dtype).eps)
    safe = jnp.where(small, 1, rate)
    return jnp.where(small, x * (1 - rate * x / 2), jnp.log1p(safe * x) / safe)


def _expm1_over(rate, x):
    """`(1 − e^{−rate x}) / rate`, also for a rate of zero."""
    small = rate * x < jnp.sqrt(jnp.finfo(x.dtype).eps)
    safe, few = jnp.where(small, 1, rate), jnp.where(small, x, 0)
    return jnp.where(small, few * (1 - rate * few / 2), -jnp.expm1(-safe * x) / safe)


@partial(jax.jit, static_argnames=("records", "record_every"))
def descend(mode, rate, *, records, record_every):
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
