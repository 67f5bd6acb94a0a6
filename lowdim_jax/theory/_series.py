"""Times of a mode with one rate for all factors, `L ≥ 3`, as power series (docs/theory.md 2.2).

`q = σ/σ*` and `b = 2 − 2/L`. Below the target the time in units of `σ*^{−b}` is `∫ dq / (L q^b (1 − q))`,

    −q^{−(1−2/L)} / (L − 2) + Σ_k q^{k+2/L} / (Lk + 2)           for q ≤ 1/2,
    const − (ln p + Σ_k (b)_k p^k / (k! k)) / L,  p = 1 − q,     for q ≥ 1/2,

and above it, with `v = σ*/σ`, it is

    σ^{−b} Σ_k v^k / (L (b + k))                                 for v ≤ 1/2,
    σ*^{−b} (const − (ln w + Σ_k (1−b)_k w^k / (k! k)) / L),  w = 1 − v,   for v ≥ 1/2.

Every series is one in a number of at most 1/2, so that as many terms as bits are enough.
"""

import math
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np


@cache
def _coefficients(depth: int, terms: int):
    """Of the four series, each from its constant term on, and the two constants that join them."""
    b = 2 - 2 / depth
    k = np.arange(terms)
    low = 1 / (depth * k + 2)
    far = 1 / (depth * (b + k))

    def pochhammer(a):
        """`(a)_k / (k! k)` for k ≥ 1, and 0 for k = 0."""
        ratio = np.cumprod((a + k[:-1]) / (k[:-1] + 1))
        return np.concatenate([[0.0], ratio / k[1:]])

    near_below, near_above = pochhammer(b), pochhammer(1 - b)
    half = 0.5**k
    power = 2.0 ** (1 - 2 / depth)
    below = -power / (depth - 2) + 0.5 ** (2 / depth) * (low @ half)
    below += (math.log(0.5) + near_below @ half) / depth
    above = 2.0**-b * (far @ half) + (math.log(0.5) + near_above @ half) / depth
    return low, near_below, far, near_above, float(below), float(above)


def _horner(first, second, choose, x):
    """`Σ_k c_k x^k` with coefficients `first` where `choose`, else `second`."""
    total = jnp.zeros_like(x)
    for a, b in zip(reversed(first.tolist()), reversed(second.tolist()), strict=True):
        total = total * x + jnp.where(choose, jnp.asarray(a, x.dtype), jnp.asarray(b, x.dtype))
    return total


def _terms(dtype) -> int:
    return int(jnp.finfo(dtype).nmant) + 4


def passed_below(s, depth):
    """Time at `s = ln(q / (1 − q))`, in units of `σ*^{−b}`, but for a constant."""
    low, near, _, _, constant, _ = _coefficients(depth, _terms(s.dtype))
    early = s <= 0
    log_q, log_p = -jax.nn.softplus(-s), -jax.nn.softplus(s)
    series = _horner(low, near, early, jnp.exp(jnp.where(early, log_q, log_p)))
    log_q, log_p = jnp.where(early, log_q, 0), jnp.where(early, 0, log_p)
    wait = -jnp.exp((2 / depth - 1) * log_q) / (depth - 2) + jnp.exp(2 / depth * log_q) * series
    return jnp.where(early, wait, constant - (log_p + series) / depth)


def beyond(s, target, depth):
    """Time at `s = −ln(σ − σ*)`, above the target, but for a constant."""
    _, _, far, near, _, constant = _coefficients(depth, _terms(s.dtype))
    gap = jnp.exp(-s)
    sigma = target + gap
    distant = target <= gap
    series = _horner(far, near, distant, jnp.where(distant, target, gap) / sigma)
    power = 2 / depth - 2
    early = jnp.exp(power * jnp.log(sigma)) * series
    safe = jnp.where(distant, 1, target)
    log_w = -s - jnp.log(jnp.where(distant, 1, sigma))
    return jnp.where(distant, early, safe**power * (constant - (log_w + series) / depth))


def start_below(clock, depth):
    """A position near that at which `passed_below` is `clock`: a bound that early or late is sharp."""
    _, _, _, _, constant, _ = _coefficients(depth, _terms(clock.dtype))
    late = depth * (clock - constant)
    waiting = jnp.where(clock < 0, -(depth - 2) * clock, 1)
    log_q = -depth / (depth - 2) * jnp.log(waiting)
    early = (clock < 0) & (log_q < math.log(0.3))
    log_q = jnp.where(early, log_q, -2)
    return jnp.where(early, log_q - jnp.log1p(-jnp.exp(log_q)), late)


def start_above(time, target, depth):
    """A position near that at which `beyond` is `time`: the larger of two lower bounds of `σ − σ*`."""
    _, _, _, _, _, constant = _coefficients(depth, _terms(time.dtype))
    b = 2 - 2 / depth
    early = jnp.exp(-jnp.log(depth * b * time) / b) - target
    safe = jnp.where(target > 0, target, 1)
    log_w = depth * (constant - safe**b * time)
    usable = (target > 0) & (log_w < 0)
    w = jnp.exp(jnp.where(usable, log_w, -1))
    late = jnp.where(usable, safe * w / -jnp.expm1(jnp.where(usable, log_w, -1)), 0)
    log_late = jnp.where(usable, jnp.log(safe) + log_w, -jnp.inf)
    log_early = jnp.where(early > 0, jnp.log(jnp.where(early > 0, early, 1)), -jnp.inf)
    return -jnp.maximum(jnp.where(late > 0, jnp.log(jnp.where(late > 0, late, 1)), log_late), log_early)
