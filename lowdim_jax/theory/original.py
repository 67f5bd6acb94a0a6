"""The original network: how most of its singular values shrink, and how long it waits (docs/theory.md 3)."""

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from lowdim_jax.theory._arguments import broadcast, check, check_integer


def bulk_descent(
    scale: ArrayLike,
    /,
    *,
    depth: int,
    learning_rate: ArrayLike,
    steps: int,
    weight_decay: ArrayLike = 0.0,
) -> Float[Array, " steps+1 ..."]:
    """The value `ρ` of all but `2r` singular values of a layer, before each step and after the last.

    `ρ ← ρ (1 − ηλ − η ρ^{2L−2})` from `ρ = ε` (docs/theory.md 3.2): exact for gradient descent on a
    factorization target from orthogonal layers of scale `ε`, the same in every layer.

    Parameters
    ----------
    scale, learning_rate, weight_decay
        `ε ≥ 0`, `η ≥ 0` and `λ ≥ 0`; they broadcast against each other.
    depth
        `L ≥ 1`.
    steps
        Number of steps, at least 0.

    Raises
    ------
    ValueError
        If an argument is out of range.

    Examples
    --------
    >>> rho = bulk_descent(1.0, depth=2, learning_rate=0.1, steps=2)
    >>> [round(float(value), 4) for value in rho]
    [1.0, 0.9, 0.8271]
    """
    check_integer("depth", depth, least=1)
    check_integer("steps", steps, least=0)
    for name, value in (("scale", scale), ("learning_rate", learning_rate), ("weight_decay", weight_decay)):
        check(name, value, lambda v: v >= 0, "at least 0")
    return _bulk(*broadcast(scale, learning_rate, weight_decay), depth=depth, steps=steps)


@partial(jax.jit, static_argnames=("depth", "steps"), inline=True)
def _bulk(start, rate, decay, *, depth, steps):
    def step(rho, _):
        rho = rho * (1 - rate * decay - rate * rho ** (2 * depth - 2))
        return rho, rho

    _, values = jax.lax.scan(step, start, length=steps)
    return jnp.concatenate([start[None], values])


def escape_ratio(depth: float, /, *, overlap: float = 0.0) -> float:
    """How many times as long the original network waits as the compressed one, `κ_L`, for `L ≥ 3`.

    For `d → ∞`, then `ε → 0`, under gradient flow: `κ_L = k^{L−2}`, where `k > 1` makes the principal
    value of `∫_0^k s^{L−1} / (1 − s²) ds` vanish (docs/theory.md 3.7). `depth` may be infinite: there
    `κ` is the zero of the logarithmic integral. For `L = 2` see `escape_delay`.

    Parameters
    ----------
    depth
        `L ≥ 3`, or infinity.
    overlap
        `c = ⟨R_Lᵀu*, v*⟩` of the component, for a network of finite width: the principal value is `artanh c`
        then. Over random starts it has mean 0 and variance `1/d`.

    Raises
    ------
    ValueError
        If `depth` is neither an integer of at least 3 nor infinite, or `overlap` not between −1 and 1.

    Examples
    --------
    >>> round(escape_ratio(3), 6)
    1.199679
    """
    check("overlap", overlap, lambda v: np.abs(v) < 1, "between -1 and 1")
    shift = math.atanh(overlap)
    if depth == math.inf:
        from scipy.special import expi  # here, as in `_root`: importing SciPy takes long

        return _root(lambda kappa: -float(expi(np.log(kappa))) / 2 - shift)
    check_integer("depth", depth, least=3)
    powers = np.arange(2 - depth % 2, depth - 1, 2)

    def condition(k: float) -> float:
        series = np.sum(k**powers / powers)
        return float((np.arctanh(1 / k) if depth % 2 else -np.log(k**2 - 1) / 2) - series) - shift

    return _root(condition) ** (depth - 2)


def escape_delay(target: ArrayLike, /, *, overlap: ArrayLike = 0.0) -> Float[Array, "..."]:
    """Flow time by which the original network of depth 2 is later than the compressed, `ln 2 / (2σ*)`.

    In the limit `d → ∞`, then `ε → 0` (docs/theory.md 3.7): at depth 2 the wait is longer by a constant, not
    by a factor. With an overlap `c` as in `escape_ratio` it is `ln(2 / (1 + c)) / (2σ*)`.

    Raises
    ------
    ValueError
        If a target's singular value is not positive, or an overlap not between −1 and 1.

    Examples
    --------
    >>> round(float(escape_delay(2.0)), 4)
    0.1733
    """
    check("target", target, lambda v: v > 0, "above 0")
    check("overlap", overlap, lambda v: np.abs(v) < 1, "between -1 and 1")
    target, overlap = broadcast(target, overlap)
    return (math.log(2) - jnp.log1p(overlap)) / (2 * target)


def _root(falls: Callable[[float], float]) -> float:
    """The root, above 1, of a function that falls from infinity there."""
    from scipy.optimize import brentq

    low = high = 0.5  # above 1
    while falls(1 + low) < 0:
        low /= 4
    while falls(1 + high) > 0:
        high *= 2
    return 1 + float(np.asarray(brentq(lambda above: falls(1 + above), low, high, xtol=1e-15)))
