"""How one singular value moves: its flow time as an integral, its value after a time, its descent.

Below the target s = ln(σ / (σ* − σ)), above it s = −ln(σ − σ*); both grow, ṡ = K(σ) max(1, σ*/σ).
Close to the target ṡ is constant, far from it an exponential of s; between, 1/ṡ is analytic in
the strip |Im s| < π/2, so that Gauss-Legendre quadrature converges geometrically on panels of
fixed width. Nothing cancels or overflows, at any time and from either side, σ* = 0 included. (For
α = 1 the integral is elementary, logarithms at the L-th roots of unity, but their sum cancels for
short times and for starts far above the target.)
"""

from dataclasses import dataclass, field, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array


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
def flow_time(mode, level):
    """Time from the start to `level`; infinite for one that is not on the way to the target."""
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
def flow_value(mode, t):
    """Singular value after the time `t`."""
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
