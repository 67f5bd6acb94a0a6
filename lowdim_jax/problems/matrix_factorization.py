"""Deep matrix factorization: the loss `½‖W_L ⋯ W_1 − Φ‖_F²` of a known target `Φ`."""

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lowdim_jax._host import AnyArray, is_traced, on_host
from lowdim_jax.linalg import LowRank, as_matrix, leading_svd, low_rank, thin_svd
from lowdim_jax.networks import end_to_end, end_to_end_factors
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

    target: Float[AnyArray, "d_out d_in"] | LowRank

    @property
    def shape(self) -> tuple[int, int]:
        """Shape `(d_out, d_in)` of the target."""
        d_out, d_in = self.target.shape
        return d_out, d_in

    def loss(self, weights: Sequence[AnyArray], /) -> Float[Array, ""]:
        """`½‖W − Φ‖_F²`: a sum over entries, not a mean (docs/theory.md, notation)."""
        return squared_error(self.target, weights) / 2

    def recovery_error(self, weights: Sequence[AnyArray], /) -> Float[Array, ""]:
        """Relative Frobenius error `‖W − Φ‖_F / ‖Φ‖_F`."""
        return relative_error(self.target, weights)

    def surrogate(self, rank: int | None = None, /) -> LowRank:
        """Leading `rank` singular triplets of `−∇ℓ(0) = Φ`: the target is its own surrogate.

        All of them by default (docs/theory.md 1.3).
        """
        return leading_svd(self.target, rank)

    @property
    def magnitude(self) -> float:
        """Largest entry, or singular value of a factored target, in absolute value (of concrete values)."""
        target = self.target.singular_values if isinstance(self.target, LowRank) else self.target
        return float(np.abs(np.asarray(target)).max())

    def residual(self, weights: Sequence[jax.Array], /) -> "Factorization":
        """The problem of what a network leaves of the target."""
        if not isinstance(self.target, LowRank):
            return Factorization(self.target - end_to_end(weights).astype(self.target.dtype))
        a, b = end_to_end_factors(weights)
        left = self.target.left * self.target.singular_values[None, :]
        return Factorization(
            thin_svd(jnp.concatenate([left, -a], axis=1), jnp.concatenate([self.target.right.T, b]))
        )

    def scaled(self, factor: float, /) -> "Factorization":
        """The problem of the target times a factor."""
        if isinstance(self.target, LowRank):
            values = self.target.singular_values * self.target.dtype.type(factor)
            return Factorization(LowRank(self.target.left, values, self.target.right))
        return Factorization(self.target * self.target.dtype.type(factor))


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
    values = on_host(target.singular_values if isinstance(target, LowRank) else target)
    if not is_traced(values) and not values.any():
        raise ValueError("target is zero: there is no component to learn")
    return Factorization(target)
