"""Deep matrix factorization: the loss `½‖W_L ⋯ W_1 − Φ‖_F²` of a known target `Φ`."""

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lowdim_jax._tracing import is_traced, on_host
from lowdim_jax.linalg import LowRank, as_matrix, frobenius_norm, low_rank, svd
from lowdim_jax.networks import check_fits, end_to_end, end_to_end_factors
from lowdim_jax.theory import edge_of_stability


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Factorization:
    """Matrix factorization problem; build it with `factorization`.

    With a `LowRank` target and a network with a hidden layer, neither the loss nor its gradient
    forms an array of the target's shape: cost and memory are `O((d_out + d_in) r̂)` each.
    """

    target: Float[Array, "d_out d_in"] | LowRank

    def loss(self, weights: Sequence[jax.Array], /) -> Float[Array, ""]:
        """`½‖W − Φ‖_F²`: a sum over entries, not a mean (docs/theory.md, notation)."""
        return _squared_error(self.target, weights) / 2

    def recovery_error(self, weights: Sequence[jax.Array], /) -> Float[Array, ""]:
        """Relative Frobenius error `‖W − Φ‖_F / ‖Φ‖_F`."""
        return relative_error(self.target, weights)

    def surrogate(self) -> Float[Array, "d_out d_in"] | LowRank:
        """`−∇ℓ(0) = Φ`: the target is its own surrogate (docs/theory.md 1.3)."""
        return self.target

    def singular_values(self) -> Float[Array, " r"]:
        """Singular values `σ*_i` of the target, descending."""
        return svd(self.target).singular_values

    def stable_learning_rate(self, *, depth: int, alpha=1.0) -> Float[Array, ""]:
        """Largest `η` at which gradient descent converges (docs/theory.md 5.1, 5.2)."""
        return edge_of_stability(self.singular_values()[0], depth=depth, alpha=alpha)


def factorization(target, /) -> Factorization:
    """Matrix factorization problem for a dense or a factored target.

    Parameters
    ----------
    target
        Array of shape `(d_out, d_in)`; or a `LowRank`; or a tuple `(U, s, V)` of shapes
        `(d_out, r), (r,), (d_in, r)` for `Φ = U diag(s) Vᵀ`, whose columns need not be orthonormal.

    Raises
    ------
    ValueError
        If the target is not a matrix, is empty, zero, or has entries that are not finite.
    """
    if isinstance(target, tuple) and len(target) == 3:
        target = low_rank(*target)
    target = as_matrix("target", target)
    norm = frobenius_norm(on_host(target))
    if not is_traced(norm) and norm == 0:
        raise ValueError("target is zero: there is no component to learn")
    return Factorization(target)


def relative_error(truth, weights: Sequence[jax.Array], /) -> Float[Array, ""]:
    """`‖W − Φ‖_F / ‖Φ‖_F`, for any problem that knows its truth `Φ`.

    Raises
    ------
    ValueError
        If `truth` is None: the problem was built from data alone.
    """
    if truth is None:
        raise ValueError("truth is None: build the problem with truth=Φ to measure a recovery error")
    return jnp.sqrt(_squared_error(truth, weights)) / frobenius_norm(truth)


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


def _squared_error(target: jax.Array | LowRank, weights: Sequence[jax.Array]) -> jax.Array:
    check_fits(weights, target.shape)
    if not isinstance(target, LowRank):
        return jnp.sum((end_to_end(weights) - target) ** 2)
    if len(weights) == 1:
        return jnp.sum((weights[0] - target.dense()) ** 2)
    # Split W = A B along the target's singular spaces. The three parts are orthogonal, and each is
    # a difference of small things: expanding ‖W‖² − 2⟨W, Φ⟩ + ‖Φ‖² would lose half the digits.
    a, b = end_to_end_factors(weights)
    a_in = target.left.T @ a
    b_in = b @ target.right
    a_out = a - target.left @ a_in
    b_out = b - b_in @ target.right.T
    core = a_in @ b_in - jnp.diag(target.singular_values)
    return (
        jnp.sum(core**2)
        + jnp.sum((a_in @ b_out) ** 2)
        + jnp.sum((a_out.T @ a_out) * (b @ b.T))
    )
