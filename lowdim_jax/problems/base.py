"""What a problem is: a loss of the end-to-end matrix, and a surrogate that a network can start from."""

from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lowdim_jax._host import AnyArray
from lowdim_jax._products import product, written_out
from lowdim_jax.linalg import LowRank, as_matrix, dense, frobenius_norm
from lowdim_jax.networks import check_fits, end_to_end, narrowest_hidden, widths
from lowdim_jax.theory import stability

SMALL = 40_000
"""Entries of a dense target below which its products take no longer than those of the layers."""


@runtime_checkable
class Problem(Protocol):
    """A loss of a network's end-to-end matrix that tells a network where to start.

    `compress`, `fit`, `gradient_descent`, `gradient_flow` and `sweep` take anything with these members: the
    problems of this package, those spread over devices, and a class of your own. Where its arrays are to be
    traced rather than compiled in, register it with `jax.tree_util.register_dataclass`.

    A problem may have more. `noise_edge()`, the largest singular value that the surrogate would have without
    structure: `compress` and `fit` count components above it. `recovery_error(weights)`, where the truth is
    known. `place(weights)`, which puts a network on the devices that the problem is on. For `fit` to look for
    what a first fit did not see, and to tell noise: `count`, the number of data; `residual(weights)`, the
    problem of what a network leaves of them; `split(fraction, seed=)`, two problems of a part each;
    `magnitude`, the largest of the data, and `scaled(factor)`, the problem of the data times a factor.

    Examples
    --------
    >>> import jax.numpy as jnp, lowdim_jax as ld
    >>> problem = ld.factorization(jnp.diag(jnp.array([3.0, 2.0])))
    >>> problem.shape, isinstance(problem, Problem)
    ((2, 2), True)
    >>> float(problem.loss((jnp.zeros((2, 2)),)))  # ½ (3² + 2²)
    6.5
    """

    @property
    def shape(self) -> tuple[int, int]:
        """Shape `(d_out, d_in)` of the end-to-end matrix."""
        ...

    def loss(self, weights: Any, /) -> Float[Array, ""]:
        """The loss of a network."""
        ...

    def surrogate(self, rank: int | None = None, /) -> LowRank:
        """Leading `rank` singular triplets of `−∇ℓ(0)`, the negative gradient at the zero matrix.

        Without `rank`, as many as the problem can afford (docs/theory.md 1.3).
        """
        ...


def loss_of(objective: Problem | Callable, /) -> Callable:
    """The loss that a solver trains: a problem's `loss`, or the function that it was given.

    Raises
    ------
    ValueError
        If it is neither.

    Examples
    --------
    >>> import jax.numpy as jnp, lowdim_jax as ld
    >>> problem = ld.factorization(jnp.eye(2))
    >>> loss_of(problem) == problem.loss, loss_of(max) is max
    (True, True)
    """
    loss = getattr(objective, "loss", objective)
    if not callable(loss):
        raise ValueError(f"objective is a {type(objective).__name__}, expected a problem or a function")
    return loss


def check_problem(problem: Any, /) -> None:
    """Refuse what is no problem, such as the matrix itself.

    Raises
    ------
    ValueError
        If it has no loss, surrogate or shape.

    Examples
    --------
    >>> import jax.numpy as jnp, lowdim_jax as ld
    >>> check_problem(ld.factorization(jnp.eye(2)))
    """
    if not isinstance(problem, Problem):
        kind = type(problem).__name__
        raise ValueError(f"problem is a {kind}, expected a problem, such as that of completion(matrix)")


def top_singular_value(problem: Problem, /) -> Float[Array, ""]:
    """`σ_1` of the surrogate, the estimate of the matrix's scale that needs no truth.

    >>> import jax.numpy as jnp, lowdim_jax as ld
    >>> float(ld.problems.top_singular_value(ld.factorization(jnp.diag(jnp.array([3.0, 2.0])))))
    3.0
    """
    return problem.surrogate(1).singular_values[0]


def max_learning_rate(problem: Problem, /, *, depth: int, alpha: Any = 1.0) -> Float[Array, ""]:
    """Largest `η` at which gradient descent is stable at the minimum, `2 / (L σ_1^{2−2/L} α^{2/L})`.

    With `σ_1` of the surrogate (docs/theory.md 5.1, 5.2): exact for factorization. For sensing and
    completion the sharpness at the minimum exceeds the one this is the edge for by what the
    measurements depart from an isometry on low-rank matrices: take a fraction, 0.3 for example.

    >>> import jax.numpy as jnp, lowdim_jax as ld
    >>> float(ld.max_learning_rate(ld.factorization(jnp.diag(jnp.array([4.0, 2.0]))), depth=2))
    0.25
    """
    check_problem(problem)
    return stability.max_learning_rate(top_singular_value(problem), depth=depth, alpha=alpha)


def relative_error(truth, weights: Sequence[AnyArray], /) -> Float[Array, ""]:
    """`‖W − Φ‖_F / ‖Φ‖_F`, for any problem that knows its truth `Φ`.

    Raises
    ------
    ValueError
        If `truth` is None: the problem was built from data alone.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> float(relative_error(2 * jnp.eye(2), (jnp.eye(2),)))
    0.5
    """
    if truth is None:
        raise ValueError("truth is None: build the problem with truth=Φ to measure a recovery error")
    return jnp.sqrt(squared_error(truth, weights)) / frobenius_norm(truth)


def as_truth(truth, shape: tuple[int, ...], /):
    """The truth a caller gave with a problem, checked; None where it is not known.

    Raises
    ------
    ValueError
        If it is not a finite matrix of the problem's shape.
    """
    if truth is None:
        return None
    truth = as_matrix("truth", truth)
    if truth.shape != tuple(shape):
        raise ValueError(f"truth has shape {truth.shape}, but the matrix to recover has shape {tuple(shape)}")
    return truth


def squared_error(target: AnyArray | LowRank, weights: Sequence[AnyArray], /) -> jax.Array:
    """`‖W − Φ‖_F²`, without forming `W` where the target is factored.

    The value is a sum of squares of small things: `‖W‖² − 2⟨W, Φ⟩ + ‖Φ‖²` would lose half the digits of it.
    For a narrow network `W = A B` the derivative *is* that of the expanded form, which costs a third less:
    `A (B Bᵀ) − Φ Bᵀ` rounds as `(A B − Φ) Bᵀ` does, to `ε_mach ‖Φ‖ ‖B‖`. `A` is multiplied out transposed, as
    wide a matrix as `B`: a CPU multiplies `Aᵀ Φ` in rows, a fifth faster than in columns.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> float(squared_error(2 * jnp.eye(2), (jnp.eye(2),)))
    2.0
    """
    check_fits(weights, target.shape)
    if len(weights) == 1 or 2 * min(widths(weights)[1:-1]) > min(target.shape):
        return jnp.sum((end_to_end(weights) - dense(target)) ** 2)
    factored = isinstance(target, LowRank)
    a_t, b = _wide_factors(weights, in_rows=factored or target.size < SMALL)
    a = a_t.T
    if factored:
        a_in, b_in = target.left.T @ a, b @ target.right
        value = _error_of_factors(target, *map(jax.lax.stop_gradient, (a, b, a_in, b_in)))
        overlap = jnp.sum(a_in * (target.singular_values[:, None] * b_in.T))
    else:
        value = jnp.sum((jax.lax.stop_gradient(a) @ jax.lax.stop_gradient(b) - target) ** 2)
        overlap = jnp.sum((a_t @ target) * b)
    expanded = jnp.sum(_gram(a_t) * _gram(b)) - 2 * overlap
    return value + (expanded - jax.lax.stop_gradient(expanded))


def _wide_factors(weights: Sequence[AnyArray], *, in_rows: bool) -> tuple[jax.Array, jax.Array]:
    """`Aᵀ, B` of the end-to-end matrix `W = A B`, split as by `end_to_end_factors`.

    Both multiplied from the narrow layer outwards, which costs least; layers are transposed before that.
    """
    split = narrowest_hidden(weights)
    outer, inner = [layer.T for layer in weights[split:]], weights[:split]
    if in_rows:
        return reduce(product, written_out(outer)), reduce(product, reversed(inner))
    return reduce(jnp.matmul, outer), reduce(jnp.matmul, reversed(inner))


@jax.custom_jvp
def _gram(rows: AnyArray) -> AnyArray:
    """`M Mᵀ`, whose derivative is one product and not two: a matrix and its transpose."""
    return rows @ rows.T


@_gram.defjvp
def _gram_jvp(primals, tangents):
    (rows,), (change,) = primals, tangents
    half = change @ rows.T
    return rows @ rows.T, half + half.T


def _error_of_factors(target: LowRank, a, b, a_in, b_in) -> jax.Array:
    """`‖A B − Φ‖_F²` split along the target's singular spaces, into three parts that are orthogonal."""
    a_out = a - target.left @ a_in
    b_out = b - b_in @ target.right.T
    core = a_in @ b_in - jnp.diag(target.singular_values)
    return (
        jnp.sum(core**2)
        + jnp.sum((a_in @ b_out) ** 2)
        + jnp.sum((a_out.T @ a_out) * (b @ b.T))
    )


def held_out(count: int, fraction: float, seed: int) -> np.ndarray:
    """Which of `count` data are held out: a random `fraction` of them.

    Raises
    ------
    ValueError
        If all or none would be.

    Examples
    --------
    >>> int(held_out(20, 0.25, seed=0).sum())
    5
    """
    held = np.random.default_rng(seed).permutation(count) < round(fraction * count)
    if held.all() or not held.any():
        raise ValueError(f"fraction={fraction} of {count} entries leaves a part without any")
    return held
