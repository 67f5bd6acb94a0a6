"""Compressed networks: from a loss of a matrix to a narrow network that learns the same thing."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from lowdim_jax._host import is_traced, on_host
from lowdim_jax.initialization import spectral
from lowdim_jax.linalg import LowRank, as_matrix, estimate_rank, is_sparse, leading_svd
from lowdim_jax.networks import Weights, compressed_widths
from lowdim_jax.problems.base import Problem


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
        matrix = source.surrogate(rank) if isinstance(source, Problem) else leading_svd(source, rank)
        if not is_traced(matrix) and not np.any(on_host(matrix.singular_values)):
            raise ValueError("surrogate is zero: there is no component to start from")
        if rank is None:
            error_of = getattr(source, "surrogate_error", None)
            noise = None if error_of is None else float(error_of())
            rank = min(2 * estimate_rank(matrix, atol=noise), *source.shape)
    return place(spectral(matrix, rank=rank, depth=depth, scale=scale))


def loss_surrogate(
    matrix_loss: Callable[[jax.Array], jax.Array], shape: tuple[int, int], /, *, dtype=None
) -> Float[Array, "d_out d_in"]:
    """Surrogate matrix `−∇ℓ(0)` of any differentiable loss of a matrix (docs/theory.md 1.3).

    Its leading singular vectors initialize a compressed network for that loss. For factorization it
    is the target, for sensing `Σ y_i A_i`, for completion the observed entries filled with zeros.

    >>> import jax.numpy as jnp
import numpy as np
    >>> loss_surrogate(lambda matrix: jnp.sum((matrix - 2.0) ** 2), (1, 2))
    Array([[4., 4.]], dtype=float32)
    """
    return -jax.grad(matrix_loss)(jnp.zeros(shape, dtype))
