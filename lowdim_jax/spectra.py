"""Measurements on matrices and along trajectories: spectra, alignment, fit times, effective rank."""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Real

from lowdim_jax._host import AnyArray
from lowdim_jax.linalg import LowRank, as_factors, svd, thin_svd
from lowdim_jax.networks import check_fits, end_to_end, end_to_end_factors, widths


class Alignment(NamedTuple):
    """Leading singular values of a network and how its singular vectors align with a target's.

    Attributes
    ----------
    singular_values
        `(r,)`: `σ_i`, descending.
    left
        `(r,)`: `|⟨u_i, u*_i⟩|`.
    right
        `(r,)`: `|⟨v_i, v*_i⟩|`.

    Examples
    --------
    >>> import jax.numpy as jnp, lowdim_jax as ld
    >>> target = ld.linalg.svd(jnp.diag(jnp.array([3.0, 2.0])))
    >>> seen = ld.spectra.alignment((jnp.diag(jnp.array([3.0, 1.0])),), target)
    >>> seen.singular_values, seen.left
    (Array([3., 1.], dtype=float32), Array([1., 1.], dtype=float32))
    """

    singular_values: Float[AnyArray, "*n r"]
    left: Float[AnyArray, "*n r"]
    right: Float[AnyArray, "*n r"]


def network_svd(weights: Sequence[AnyArray], /) -> LowRank:
    """Thin singular value decomposition of the end-to-end matrix.

    Goes through thin QR factorizations where a hidden layer is narrower than the matrix, so that a
    compressed network's `d_out × d_in` matrix is never formed.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> network_svd((2 * jnp.eye(2), jnp.diag(jnp.array([1.0, 3.0])))).singular_values
    Array([6., 2.], dtype=float32)
    """
    d_in, *hidden, d_out = widths(weights)
    if hidden and min(hidden) < min(d_out, d_in):
        return thin_svd(*end_to_end_factors(weights))
    return svd(end_to_end(weights))


def singular_values(weights: Sequence[AnyArray], /, *, rank: int | None = None):
    """Leading `rank` singular values of the end-to-end matrix, all of them by default.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> singular_values((2 * jnp.eye(2), jnp.diag(jnp.array([1.0, 3.0]))), rank=1)
    Array([6.], dtype=float32)
    """
    return network_svd(weights).singular_values[:rank]


def alignment(weights: Sequence[AnyArray], target: LowRank, /) -> Alignment:
    """Singular values `σ_i` and alignments `|⟨u_i, u*_i⟩|, |⟨v_i, v*_i⟩|` with a rank-`r` target.

    Components are matched by order, so this is meaningless where singular values coincide, as they
    do at an orthogonal initialization (docs/theory.md 6). Components that a network narrower than the
    target cannot have are zeros: size and alignments.

    Examples
    --------
    >>> import jax.numpy as jnp, lowdim_jax as ld
    >>> target = ld.linalg.svd(jnp.diag(jnp.array([3.0, 2.0]))).truncate(1)
    >>> alignment((jnp.array([[1.0, 0.0], [1.0, 0.0]]),), target).left.round(4)  # cos 45°
    Array([0.7071], dtype=float32)
    """
    target = as_factors("target", target)
    check_fits(weights, target.shape)
    parts = network_svd(weights).truncate(len(target.singular_values))
    there = len(parts.singular_values)
    found = (
        parts.singular_values,
        jnp.abs(jnp.sum(parts.left * target.left[:, :there], axis=0)),
        jnp.abs(jnp.sum(parts.right * target.right[:, :there], axis=0)),
    )
    missing = len(target.singular_values) - there
    return Alignment(*(jnp.pad(part, (0, missing)) for part in found) if missing else found)


def modes(weights: Sequence[AnyArray], target: LowRank, /) -> Float[Array, " r"]:
    """`u*_iᵀ W v*_i`: the target's components in the network.

    Unlike singular values these are accurate in float32 long before a component has risen above the
    rounding of the largest one (docs/theory.md 6), and they need no matching.

    Examples
    --------
    >>> import jax.numpy as jnp, lowdim_jax as ld
    >>> target = ld.linalg.svd(jnp.diag(jnp.array([3.0, 2.0])))
    >>> modes((jnp.diag(jnp.array([1.5, 1e-6])),), target)
    Array([1.5e+00, 1.0e-06], dtype=float32)
    """
    target = as_factors("target", target)
    check_fits(weights, target.shape)
    if len(weights) == 1:
        return jnp.einsum("ir,ij,jr->r", target.left, weights[0], target.right)
    a, b = end_to_end_factors(weights)
    return jnp.sum((a.T @ target.left) * (b @ target.right), axis=0)


def is_fitted(
    measured: Alignment, targets: Real[AnyArray, " r"], /, *, value=0.05, vector=0.05
) -> Bool[Array, "*n r"]:
    """Whether component `i` counts as fitted at each record (docs/theory.md 1.6).

    `|σ_i − σ*_i| ≤ c_val σ*_i` and `|⟨u_i, u*_i⟩|, |⟨v_i, v*_i⟩| ≥ 1 − c_vec`.

    Parameters
    ----------
    measured
        `Alignment` whose arrays have any leading axes, for example those of a trajectory.
    targets
        `(r,)`: `σ*_i`.
    value, vector
        `c_val` and `c_vec`.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> seen = Alignment(jnp.array([2.95, 0.3]), jnp.ones(2), jnp.ones(2))
    >>> is_fitted(seen, jnp.array([3.0, 2.0]))
    Array([ True, False], dtype=bool)
    """
    targets = _like(targets, measured.singular_values)
    close = jnp.abs(measured.singular_values - targets) <= value * targets
    return close & (measured.left >= 1 - vector) & (measured.right >= 1 - vector)


def dormant(sigma: Real[AnyArray, "*n r"], targets: Real[AnyArray, " r"], /, *, value=0.05):
    """Whether component `i` is still dormant at each record, `σ_i ≤ c_val σ*_i`.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> dormant(jnp.array([2.9, 0.01]), jnp.array([3.0, 2.0]))
    Array([False,  True], dtype=bool)
    """
    return sigma <= value * _like(targets, sigma)


def first_time(t: Real[AnyArray, " n"], holds: Bool[AnyArray, "n r"], /) -> Float[Array, " r"]:
    """First recorded time from which on a condition holds to the end; `inf` where it never does.

    With `holds = is_fitted(…)` these are the measured fit times `t_i`, to the resolution of the records.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> holds = jnp.array([[True], [False], [True], [True]])
    >>> first_time(jnp.array([0.0, 10.0, 20.0, 30.0]), holds)  # from there on to the end
    Array([20.], dtype=float32)
    """
    from_here_on = jnp.flip(jnp.cumprod(jnp.flip(holds, axis=0), axis=0), axis=0).astype(bool)
    ever = from_here_on[-1]
    return jnp.where(ever, t[jnp.argmax(from_here_on, axis=0)].astype(float), jnp.inf)


def crossing_time(t: Real[AnyArray, " n"], values: Real[AnyArray, "n r"], level, /):
    """Time at which each column of `values` first reaches `level`, interpolated between records.

    Linear interpolation; `inf` where the level is not reached. `level` is a scalar or of shape `(r,)`.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> crossing_time(jnp.array([0.0, 10.0]), jnp.array([[0.0], [4.0]]), 1.0)
    Array([2.5], dtype=float32)
    """
    return _crossing_time(t, values, level)


@partial(jax.jit, inline=True)
def _crossing_time(t, values, level):
    level = jnp.broadcast_to(jnp.asarray(level, values.dtype), values.shape[1:])
    reached = values >= level[None]
    after = jnp.maximum(jnp.argmax(reached, axis=0), 1)
    before = after - 1
    low = jnp.take_along_axis(values, before[None], axis=0)[0]
    high = jnp.take_along_axis(values, after[None], axis=0)[0]
    t = t.astype(values.dtype)
    gap = jnp.where(high > low, high - low, 1)
    between = t[before] + (t[after] - t[before]) * jnp.clip((level - low) / gap, 0, 1)
    between = jnp.where(reached[0], t[0], between)
    return jnp.where(jnp.any(reached, axis=0), between, jnp.inf)




def effective_rank(sigma: Real[AnyArray, "*n r"], /) -> Float[Array, "*n"]:
    """Exponential of the entropy of `σ_i / Σ σ` (Roy and Vetterli 2007): between 1 and `r`.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> effective_rank(jnp.array([2.0, 2.0, 0.0])).round(4)
    Array(2., dtype=float32)
    """
    total = jnp.sum(sigma, axis=-1, keepdims=True)
    p = sigma / jnp.where(total > 0, total, 1)
    return jnp.exp(-jnp.sum(jnp.where(p > 0, p * jnp.log(jnp.where(p > 0, p, 1)), 0), axis=-1))


def stable_rank(sigma: Real[AnyArray, "*n r"], /) -> Float[Array, "*n"]:
    """`Σ σ_i² / σ_1²`: at most the rank, and insensitive to small singular values.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> stable_rank(jnp.array([2.0, 1.0]))
    Array(1.25, dtype=float32)
    """
    largest = jnp.max(sigma, axis=-1, keepdims=True)
    relative = sigma / jnp.where(largest > 0, largest, 1)  # whose squares do not vanish
    return jnp.sum(relative**2, axis=-1)


def _like(targets: jax.Array, sigma: jax.Array) -> jax.Array:
    return jnp.broadcast_to(jnp.asarray(targets, sigma.dtype), sigma.shape)
