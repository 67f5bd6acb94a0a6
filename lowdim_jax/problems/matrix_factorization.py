"""Deep matrix factorization: the loss `½‖W_L ⋯ W_1 − Φ‖_F²` of a known target `Φ`."""

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import numpy as np
from jaxtyping import Array, Float

from lowdim_jax._host import is_traced, on_host
from lowdim_jax.linalg import LowRank, as_matrix, frobenius_norm, leading_svd, low_rank
from lowdim_jax.problems.base import relative_error, squared_error


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Factorization:
    """Matrix factorization problem; build it with `factorization`.

    With a `LowRank` target and a network with a hidden layer, neither the loss nor its gradient
    forms an array of the target's shape: cost and memory are `O((d_out + d_in) r̂)` each.

    Examples
    --------
    >>> import jax.numpy as jnp, lowdim_jax as ld
    >>> problem = ld.factorization(jnp.diag(jnp.array([3.0, 4.0])))
    >>> round(float(problem.recovery_error((jnp.diag(jnp.array([3.0, 0.0])),))), 4)  # 4 of 5
    0.8
    """

    target: Float[Array, "d_out d_in"] | LowRank

    @property
    def shape(self) -> tuple[int, int]:
        """Shape `(d_out, d_in)` of the target."""
        d_out, d_in = self.target.shape
        return d_out, d_in

    def loss(self, weights: Sequence[jax.Array], /) -> Float[Array, ""]:
        """`½‖W − Φ‖_F²`: a sum over entries, not a mean (docs/theory.md, notation)."""
        return squared_error(self.target, weights) / 2

    def recovery_error(self, weights: Sequence[jax.Array], /) -> Float[Array, ""]:
        """Relative Frobenius error `‖W − Φ‖_F / ‖Φ‖_F`."""
        return relative_error(self.target, weights)

    def surrogate(self, rank: int | None = None, /) -> LowRank:
        """Leading `rank` singular triplets of `−∇ℓ(0) = Φ`: the target is its own surrogate.

        All of them by default (docs/theory.md 1.3).
        """
        return leading_svd(self.target, rank)


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

    Examples
    --------
    >>> import jax, jax.numpy as jnp, lowdim_jax as ld
    >>> target = ld.random_target(jax.random.key(0), (5000, 4000), jnp.array([3.0, 2.0]))
    >>> ld.factorization(target).shape  # factored: 5000 × 4000 numbers are never formed
    (5000, 4000)
    """
    factors = isinstance(target, tuple) or (isinstance(target, list) and np.ndim(target[:1]) == 3)
    if factors and len(target) == 3:
        target = low_rank(*target)
    target = as_matrix("target", target)
    norm = frobenius_norm(on_host(target))
    if not is_traced(norm) and norm == 0:
        raise ValueError("target is zero: there is no component to learn")
    return Factorization(target)
