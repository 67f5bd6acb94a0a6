"""What gradient flow conserves, and how descent departs from it (docs/theory.md 4)."""

from functools import partial

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Real

from lowdim_jax._host import AnyArray
from lowdim_jax.theory._arguments import cast, check_integer


def singular_value_rate(
    sigma: Real[AnyArray, " r"],
    u: Real[AnyArray, "d_out r"],
    v: Real[AnyArray, "d_in r"],
    residual: Real[AnyArray, "d_out d_in"],
    /,
    *,
    depth: int,
) -> Float[Array, " r"]:
    """Rate of change `σ̇_i = L σ_i^{2 − 2/L} ⟨u_i, (Φ − W) v_i⟩` in a balanced network's flow.

    Theorem 3 of Arora et al. 2019, arXiv 1905.13655 (docs/theory.md 4.3).

    Parameters
    ----------
    sigma, u, v
        Singular values and vectors (as columns) of the end-to-end matrix `W`.
    residual
        `Φ − W`; for another loss than factorization, its negative gradient at `W`.
    depth
        `L`, the number of layers.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> sigma = jnp.array([2.0, 1.0])
    >>> residual = jnp.diag(jnp.array([1.0, 3.0]))
    >>> singular_value_rate(sigma, jnp.eye(2), jnp.eye(2), residual, depth=2)
    Array([4., 6.], dtype=float32)
    """
    check_integer("depth", depth, least=1)
    aligned = jnp.einsum("ir,ij,jr->r", u, residual, v, precision=jax.lax.Precision.HIGHEST)
    return depth * sigma ** (2 - 2 / depth) * aligned


def balance_step(
    factors: Float[ArrayLike, "... L"], target: ArrayLike, /, *, learning_rate: ArrayLike
) -> Float[Array, "... L L"]:
    """Imbalances `b_ij = x_i² − x_j²` of scalar factors after one step of gradient descent.

    `b_ij ← b_ij (1 − η² (σ − σ*)² σ² / (x_i x_j)²)`, exactly; the flow conserves them
    (docs/theory.md 4.2).

    Parameters
    ----------
    factors
        `x_1, …, x_L` along the last axis, before the step.
    target, learning_rate
        `σ*` and `η`, scalars or of the shape of the other axes.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> balance_step(jnp.array([1.0, 2.0]), 2.0, learning_rate=0.1)  # fitted: 1² − 2² stays
    Array([[ 0., -3.],
           [ 3.,  0.]], dtype=float32)
    """
    return _imbalance(*cast(factors, target, learning_rate))


@jax.jit
@partial(jnp.vectorize, signature="(l),(),()->(l,l)")
def _imbalance(x, target, rate):
    own = jnp.eye(len(x), dtype=bool)
    kept = ~(own[:, None, :] | own[None, :, :])
    others = jnp.prod(jnp.where(kept, x[None, None, :], 1), axis=-1)  # σ / (x_i x_j)
    drift = rate * (jnp.prod(x) - target) * others
    return (x[:, None] ** 2 - x[None, :] ** 2) * (1 - drift**2)
