"""Compressed networks: from a loss of a matrix to a narrow network that learns the same thing."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lowdim_jax._tracing import on_host
from lowdim_jax.initialization import spectral
from lowdim_jax.linalg import LowRank, as_matrix, is_sparse, leading_svd, svd
from lowdim_jax.networks import Weights

MAX_COMPONENTS = 100
"""Components among which the default width of a compressed network is looked for, in a sparse matrix."""


def compress(
    problem: Any, /, *, depth: int, scale, rank: int | None = None
) -> Weights:
    """Compressed network of a problem, spectrally initialized (docs/theory.md 1.2, 1.3).

    Parameters
    ----------
    problem
        Anything with a `surrogate()`, or the surrogate matrix itself.
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
    """
    problem = on_host(problem)
    surrogate_of = getattr(problem, "surrogate", None)
    matrix = problem if surrogate_of is None else surrogate_of()
    if is_sparse(matrix):
        matrix = leading_svd(matrix, min(MAX_COMPONENTS, *matrix.shape) if rank is None else rank)
    elif rank is None:
        with jax.ensure_compile_time_eval():
            matrix = svd(as_matrix("surrogate", matrix))  # one decomposition for rank and vectors
    if rank is None:
        error_of = getattr(problem, "surrogate_error", None)
        noise = None if error_of is None else float(error_of())
        rank = min(2 * estimate_rank(matrix, atol=noise), *matrix.shape)
    return spectral(matrix, rank=rank, depth=depth, scale=scale)


def surrogate(
    matrix_loss: Callable[[jax.Array], jax.Array], shape: tuple[int, int], /, *, dtype=None
) -> Float[Array, "d_out d_in"]:
    """Surrogate matrix `−∇ℓ(0)` of any differentiable loss of a matrix (docs/theory.md 1.3).

    Its leading singular vectors initialize a compressed network for that loss. For factorization it
    is the target, for sensing `Σ y_i A_i`, for completion the observed entries filled with zeros.
    """
    return -jax.grad(matrix_loss)(jnp.zeros(shape, dtype))


def estimate_rank(
    matrix: jax.Array | LowRank,
    /,
    *,
    energy: float | None = None,
    rtol: float | None = None,
    atol: float | None = None,
) -> int:
    """Number of components a matrix has, at least one, by one of three stated rules.

    Parameters
    ----------
    matrix
        Concrete, dense or `LowRank`.
    energy
        If given: the smallest `k` whose leading components hold this fraction of `Σ σ_i²`.
    rtol
        Otherwise: the number of `σ_i > rtol · σ_1`. By default `max(d_out, d_in)` times the rounding
        unit, the numerical rank.
    atol
        The number of `σ_i > atol`, for example a level of noise.

    Raises
    ------
    ValueError
        If two rules are given, or `energy` is not in `(0, 1]`.
    """
    rules = {"energy": energy, "rtol": rtol, "atol": atol}
    given = {name: value for name, value in rules.items() if value is not None}
    if len(given) > 1:
        several = " and ".join(f"{name}={value}" for name, value in given.items())
        raise ValueError(f"{several} are two rules: give one of them")
    for name in ("rtol", "atol"):
        if not given.get(name, 0) >= 0:
            raise ValueError(f"{name}={given[name]}, expected a non-negative tolerance")
    matrix = as_matrix("matrix", matrix)
    with jax.ensure_compile_time_eval():  # so that it works on concrete values under `jit`, too
        sigma = np.asarray(svd(matrix).singular_values)
    if energy is None:
        rtol = max(matrix.shape) * float(np.finfo(sigma.dtype).eps) if rtol is None else rtol
        return max(1, int(np.sum(sigma > (rtol * sigma[0] if atol is None else atol))))
    if not 0 < energy <= 1:
        raise ValueError(f"energy={energy}, expected a fraction in (0, 1]")
    held = np.cumsum(sigma**2) / np.sum(sigma**2)
    return min(int(np.sum(held < energy)) + 1, len(sigma))
