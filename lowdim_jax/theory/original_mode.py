"""One component of the original network, whatever its width: three scalars (docs/theory.md 3.7)."""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from lowdim_jax.theory._arguments import broadcast, check, check_integer


class OriginalMode(NamedTuple):
    """What one component of the target makes of an original network's end-to-end matrix `W`.

    Examples
    --------
    >>> from lowdim_jax import theory
    >>> mode = theory.original_mode(3.0, 2.0, depth=2, scale=0.1)
    >>> bool(mode.leading > mode.trailing), round(float(mode.alignment), 2)
    (True, 1.0)
    """

    along: Float[Array, "..."]
    """`u*ᵀ W v*`."""
    leading: Float[Array, "..."]
    """`x^L`, the singular value of `W` that rises to `σ*`."""
    trailing: Float[Array, "..."]
    """`y^L`, the one that the component pushes down: below those that no component moves."""
    alignment: Float[Array, "..."]
    """`⟨u, u*⟩ = ⟨v, v*⟩ = cos φ`, of the leading singular vectors."""


def original_mode(
    t: ArrayLike,
    target: ArrayLike,
    /,
    *,
    depth: int,
    scale: ArrayLike,
    overlap: ArrayLike = 0.0,
) -> OriginalMode:
    """A component of the original network under gradient flow, from square orthogonal layers of scale `ε`.

    Exact for a target of rank one at any width, given the overlap of its vectors in the start; for higher
    rank the components separate as `d → ∞`, and what is left is of second order in the overlaps between
    them (docs/theory.md 3.7). In closed form for `L = 2` (2.7), by extrapolation of midpoint steps, to about
    1e-12, for `L ≥ 3`.

    Parameters
    ----------
    t
        Flow times, non-negative.
    target
        `σ* ≥ 0`.
    depth
        `L ≥ 2`.
    scale
        `ε > 0`.
    overlap
        `c = ⟨R_Lᵀu*, v*⟩` with `R_L` the product of the start's orthogonal factors: zero in the limit of
        infinite width, of mean 0 and variance `1/d` over random starts of width `d`; 1 makes it the
        compressed network.

    Returns
    -------
    Arrays of the arguments' common shape. Derivatives for `L ≥ 3` are forward ones only (`jax.jvp`).

    Raises
    ------
    ValueError
        If an argument is out of range.

    Examples
    --------
    >>> from lowdim_jax import theory
    >>> original = theory.original_mode(1.0, 3.0, depth=2, scale=0.1).along
    >>> compressed = theory.mode_trajectory(1.0, 3.0, depth=2, scale=0.1)
    >>> print(round(float(original), 2), round(float(compressed), 2))
    1.2 1.72
    """
    check_integer("depth", depth, least=2)
    check("t", t, lambda v: v >= 0, "at least 0")
    check("target", target, lambda v: v >= 0, "at least 0")
    check("scale", scale, lambda v: v > 0, "more than 0")
    check("overlap", overlap, lambda v: np.abs(v) <= 1, "between -1 and 1")
    if depth == 2:
        return _two_layers(*broadcast(t, target, scale, overlap))
    return _along_axes(*broadcast(t, target, scale, overlap), depth, _axes_of_time(t, target, scale, overlap))


@jax.jit
def _two_layers(t, target, scale, overlap):
    """2.7: the eigenvalues of `P` are `2x²` and `2y²`, and `u*ᵀWv* = x² cos²φ − y² sin²φ`."""
    clock = 2 * target * t
    decay = jnp.exp(-clock)
    small = clock < 1e-6
    mean = jnp.where(small, t * (1 - clock / 2), -jnp.expm1(-clock) / jnp.where(small, 1, 2 * target))
    beta = scale**2 * t

    def weight(sign):
        """`m_± e^{∓clock}` for the growing one, `m_−` for the other."""
        with_, without = 1 + sign * overlap, 1 - sign * overlap
        grown = scale**2 * with_ * mean
        return (1 + without * beta) * (decay if sign > 0 else 1) + grown

    up, down = weight(1), weight(-1)
    x = scale**2 / 2 * ((1 + overlap) + (1 - overlap) * decay) / up
    y = scale**2 / 2 * ((1 - overlap) * decay + (1 + overlap)) / down
    along = scale**2 / 2 * ((1 + overlap) / up - (1 - overlap) * decay / down)
    return OriginalMode(along, x, y, jnp.sqrt((along + y) / (x + y)))


_MIDPOINTS = (2, 4, 6, 8, 10, 12)
"""Numbers of midpoint steps that one step is extrapolated from."""
_LENGTH = 0.7
"""Length of a step, in units of the time that the fastest scalar takes."""


def _axes_of_time(t: ArrayLike, *others: ArrayLike) -> tuple[int, ...]:
    """Axes of the result along which only the time differs: one solution passes through all its points."""
    shape = np.broadcast_shapes(*map(np.shape, (t, *others)))
    fixed = np.broadcast_shapes(*map(np.shape, others))
    fixed = (1,) * (len(shape) - len(fixed)) + fixed
    return tuple(axis for axis, size in enumerate(fixed) if size == 1)


@partial(jax.jit, static_argnames=("depth", "axes"))
def _along_axes(t, target, scale, overlap, depth: int, axes: tuple[int, ...]) -> OriginalMode:
    """`_deeper` over the times of each component, sorted; in the order and shape of the arguments."""
    first = tuple(range(len(axes)))
    times = jnp.moveaxis(t, axes, first)
    inner = times.shape[len(axes) :]
    rows = times.reshape(-1, *inner)
    order = jnp.argsort(rows, axis=0)
    one_each = (jnp.moveaxis(part, axes, first).reshape(-1, *inner)[0] for part in (target, scale, overlap))
    sorted_ = _deeper(jnp.take_along_axis(rows, order, 0), *one_each, depth=depth)

    def restored(part):
        part = jnp.take_along_axis(part, jnp.argsort(order, axis=0), 0)
        return jnp.moveaxis(part.reshape(times.shape), first, axes)

    return OriginalMode(*map(restored, sorted_))


def _deeper(times, target, scale, overlap, *, depth):
    """The scalars `ln x`, `ln y`, `ln tan φ` of 3.7, in steps as long as their fastest rate allows.

    From each of the sorted `times`, a first axis, on to the next.
    """
    far = 300.0  # ln tan φ of an exactly aligned, or opposed, start
    tilt = (jnp.log1p(-overlap) - jnp.log1p(overlap)) / 2
    start = jnp.stack([jnp.log(scale), jnp.log(scale), jnp.clip(tilt, -far, far)])

    def velocity(state):
        log_x, log_y, tilt = state
        x, y = jnp.exp(log_x), jnp.exp(log_y)
        turn = sum(x ** (depth - 1 - j) * y**j for j in range(depth)) / (x + y)
        inner, outer = jax.nn.sigmoid(-2 * tilt), jax.nn.sigmoid(2 * tilt)
        return jnp.stack([
            x ** (depth - 2) * (target * inner - x**depth),
            -(y ** (depth - 2)) * (target * outer + y**depth),
            -target * turn,
        ])

    def settled(state):
        eps = jnp.finfo(times.dtype).eps
        over = state[2] < math.log(eps)
        return over & (jnp.abs(jnp.exp(depth * state[0]) - target) <= 2 * eps * target)

    def advance(carry):
        state, left = carry
        x = jnp.exp(state[0])
        rate = depth * x ** (depth - 2) * jnp.maximum(target, x**depth)
        longest = _LENGTH / jnp.maximum(rate, jnp.finfo(times.dtype).tiny)
        h = jnp.where(settled(state), 0, jnp.minimum(left, longest))
        return _extrapolated(velocity, state, h[None]), left - h

    def moving(carry):
        state, left = carry
        return jnp.any((left > 0) & ~settled(state))

    def follow(carry, pause):
        """On by `pause`; what of it a settled component had left is carried along."""
        state, idle = carry
        state, left = jax.lax.while_loop(moving, advance, (state, pause))
        idle = idle + left
        return (state, idle), (state, idle)

    pauses = jnp.diff(times, axis=0, prepend=jnp.zeros_like(times[:1]))
    _, (state, left) = jax.lax.scan(follow, (start, jnp.zeros_like(times[0])), pauses)
    state = jnp.moveaxis(state, 1, 0)
    # Settled ones: from here the smaller one only decays, y^{2−2L} growing by (2L − 2) t.
    power = 2 - 2 * depth
    log_y = state[1] + jnp.log1p(-power * left * jnp.exp(-power * state[1])) / power
    x, y, inner = jnp.exp(depth * state[0]), jnp.exp(depth * log_y), jax.nn.sigmoid(-2 * state[2])
    return OriginalMode(x * inner - y * jax.nn.sigmoid(2 * state[2]), x, y, jnp.sqrt(inner))


def _extrapolated(velocity, state, h):
    """One step of Gragg, Bulirsch and Stoer: midpoint rules of several step lengths, extrapolated to zero."""
    first = velocity(state)

    def midpoint(n):
        part = h / n

        def step(_, pair):
            before, now = pair
            return now, before + 2 * part * velocity(now)

        before, now = jax.lax.fori_loop(1, n, step, (state, state + part * first))
        return (before + now + part * velocity(now)) / 2

    table = [midpoint(n) for n in _MIDPOINTS]
    for k in range(1, len(table)):
        for j in reversed(range(k, len(table))):
            ratio = (_MIDPOINTS[j] / _MIDPOINTS[j - k]) ** 2
            table[j] = table[j] + (table[j] - table[j - 1]) / (ratio - 1)
    return table[-1]
