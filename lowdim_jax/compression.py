"""Compressed networks: from a loss of a matrix to a narrow network that learns the same thing."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from lowdim_jax._host import as_array, is_traced, on_host
from lowdim_jax._krylov import leading_triplets
from lowdim_jax.initialization import spectral
from lowdim_jax.linalg import SMALL, LowRank, as_matrix, estimate_rank, is_sparse, leading_svd
from lowdim_jax.networks import Weights, compressed_widths
from lowdim_jax.problems.base import Problem

FEW = 8
"""Components of a surrogate that are looked at first, for those that stand above its noise."""


def compress(
    problem: Problem | LowRank | ArrayLike, /, *, depth: int, scale: ArrayLike, rank: int | None = None
) -> Weights:
    """Compressed network of a problem, spectrally initialized (docs/theory.md 1.2, 1.3).

    Parameters
    ----------
    problem
        A problem, or the surrogate matrix itself: dense, `LowRank` or SciPy sparse.
    depth
        Number of layers `L ≥ 2`.
    scale
        `ε`, positive.
    rank
        `r̂`, width of every hidden layer; by default twice the estimated rank of the surrogate, the
        paper's choice, capped by the matrix's smaller side. Where the surrogate only estimates the
        matrix, components that noise alone would show are not counted (docs/theory.md 1.7). The
        default needs concrete values.

    Returns
    -------
    Weights `(ε V̂ᵀ, ε I, …, ε I, ε Û)`.

    Raises
    ------
    ValueError
        If `rank`, `depth` or `scale` is out of range.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, lowdim_jax as ld
    >>> target = ld.random_target(jax.random.key(0), (300, 200), jnp.array([10.0, 7.0, 5.0]))
    >>> network = ld.compress(ld.factorization(target), depth=3, scale=0.1)
    >>> ld.widths(network)  # twice the rank
    (200, 6, 6, 300)
    """
    place = getattr(problem, "place", tuple)
    source: Any = on_host(problem)
    if not (isinstance(source, Problem) or is_sparse(source)):
        source = as_matrix("surrogate", source)
    if rank is not None:
        _, rank, *_ = compressed_widths(*source.shape, depth=depth, rank=rank)
    with jax.ensure_compile_time_eval() if rank is None else nullcontext():
        if rank is None and isinstance(source, Problem):
            rank = min(2 * len(visible_components(source).parts.singular_values), *source.shape)
        matrix = _surrogate(source, rank)
        if not is_traced(matrix) and not np.any(on_host(matrix.singular_values)):
            raise ValueError("surrogate is zero: there is no component to start from")
        if rank is None:
            rank = min(2 * estimate_rank(matrix), *source.shape)
    return place(spectral(matrix, rank=rank, depth=depth, scale=scale))


class Visible(NamedTuple):
    """Components of a problem's surrogate that stand above its noise, one at least.

    Attributes
    ----------
    parts
        The components.
    above
        How many stand above, which may be none.
    edge
        The largest singular value that noise would have; None where the surrogate has no noise.

    Examples
    --------
    >>> import jax.numpy as jnp, lowdim_jax as ld
    >>> problem = ld.factorization(jnp.diag(jnp.array([3.0, 2.0, 0.0, 0.0])))
    >>> visible_components(problem).parts.singular_values
    Array([3., 2.], dtype=float32)
    """

    parts: LowRank
    above: int
    edge: float | None


def visible_components(problem: Problem, /, *, margin: float = 1.0) -> Visible:
    """Components of the surrogate above `margin` times the noise edge (docs/theory.md 1.7).

    The edge is what random signs leave of the data, `problem.noise_edge()`. A large component hides small
    ones, as signs keep its energy; where all entries are observed it is taken off, and the rest looked at
    again. Where a problem has no edge, components above rounding count.

    Examples
    --------
    >>> import jax.numpy as jnp, lowdim_jax as ld
    >>> problem = ld.factorization(jnp.diag(jnp.array([3.0, 2.0, 0.0, 0.0])))
    >>> visible_components(problem).above
    2
    """
    edge_of = getattr(problem, "noise_edge", getattr(problem, "surrogate_error", None))
    if edge_of is None:
        parts = problem.surrogate()
        count = estimate_rank(parts)
        return Visible(parts.truncate(count), count, None)
    edge = float(edge_of())
    parts = surrogate_above(problem, margin * edge)
    count = int(np.sum(np.asarray(parts.singular_values) > margin * edge))
    if float(getattr(problem, "fraction", 0)) == 1:
        parts = problem.surrogate()
        count, edge = _deflated_count(problem, parts, count, edge, margin)
    return Visible(parts.truncate(max(count, 1)), count, edge)


def surrogate_above(problem: Problem, level: float, /) -> LowRank:
    """Components of the surrogate above a level, one at least; others may be among them.

    Where the surrogate is large, no others are computed, and these to four digits: a start needs no more.

    Examples
    --------
    >>> import jax.numpy as jnp, lowdim_jax as ld
    >>> problem = ld.factorization(jnp.diag(jnp.arange(20.0)))
    >>> surrogate_above(problem, 15.5).singular_values[:5]
    Array([19., 18., 17., 16., 15.], dtype=float32)
    """
    if (matrix := _large_surrogate(problem)) is not None:
        return leading_triplets(matrix, above=level)
    wanted, most = FEW, min(problem.shape)
    while True:
        parts = _of_shape(problem.surrogate(min(wanted, most)), problem.shape)
        if wanted >= most or not np.all(np.asarray(parts.singular_values) > level):
            return parts
        wanted *= 4


def leading_surrogate(problem: Problem, rank: int, /) -> LowRank:
    """Leading components of the surrogate; to three digits where it is large.

    Examples
    --------
    >>> import jax.numpy as jnp, lowdim_jax as ld
    >>> leading_surrogate(ld.factorization(jnp.diag(jnp.arange(20.0))), 2).singular_values
    Array([19., 18.], dtype=float32)
    """
    matrix = _large_surrogate(problem)
    if matrix is None:
        return _of_shape(problem.surrogate(rank), problem.shape)
    return leading_triplets(matrix, least=rank, accuracy=1e-3)


def _of_shape(parts: LowRank, shape: tuple[int, int]) -> LowRank:
    """Without the zero rows that fill up blocks over devices, where this process can see them all."""
    if parts.shape == shape or not parts.left.is_fully_addressable:
        return parts
    left, right = np.asarray(parts.left)[: shape[0]], np.asarray(parts.right)[: shape[1]]
    return LowRank(*map(as_array, (left, np.asarray(parts.singular_values), right)))


def _large_surrogate(problem: Any) -> Any:
    """The surrogate matrix, where it is one of concrete values that is too large to be decomposed."""
    d_out, d_in = problem.shape
    if d_out * d_in <= SMALL or not hasattr(problem, "surrogate_matrix") or is_traced(problem):
        return None
    return on_host(problem.surrogate_matrix())


def _deflated_count(problem: Any, parts: LowRank, count: int, edge: float, margin: float):
    """Number of components where all entries are observed, and the edge below the last of them."""
    whole = on_host(parts)
    values, most = np.asarray(parts.singular_values), estimate_rank(parts)
    left_times_values = whole.left * whole.singular_values[None, :]
    above = min(count, most)
    while above > 0 and count < most:
        left, right = left_times_values[:, :count], whole.right[:, :count].T
        edge = float(problem.residual((as_array(right), as_array(left))).noise_edge())
        above = int(np.sum(values[count:most] > margin * edge))
        count += above
    return min(count, most), edge


def _surrogate(problem: Any, rank: int | None) -> LowRank:
    if isinstance(problem, Problem):
        return problem.surrogate(rank)
    return leading_svd(problem, rank)


def loss_surrogate(
    matrix_loss: Callable[[jax.Array], jax.Array], shape: tuple[int, int], /, *, dtype=None
) -> Float[Array, "d_out d_in"]:
    """Surrogate matrix `−∇ℓ(0)` of any differentiable loss of a matrix (docs/theory.md 1.3).

    Its leading singular vectors initialize a compressed network for that loss. For factorization it
    is the target, for sensing `Σ y_i A_i`, for completion the observed entries filled with zeros.

    >>> import jax.numpy as jnp
    >>> loss_surrogate(lambda matrix: jnp.sum((matrix - 2.0) ** 2), (1, 2))
    Array([[4., 4.]], dtype=float32)
    """
    return -jax.grad(matrix_loss)(jnp.zeros(shape, dtype))
