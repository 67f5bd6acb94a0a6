"""How well the surrogate of partial measurements points at the target (docs/theory.md 1.7)."""

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from lowdim_jax.linalg import LowRank
from lowdim_jax.theory._arguments import check


def surrogate_angle(
    target: LowRank, /, *, measurements: float | None = None, observed: ArrayLike | None = None
) -> Float[Array, ""]:
    """Root mean square sine between leading left singular subspaces of surrogate and target.

    First order in the surrogate's error: `√(Σ_i σ*_i^{−2} Σ_ab (1 − ‖U*_a·‖²) Γ_ab (v*_ib)²)`, where
    `Γ_ab` is the variance of entry `a, b` of the surrogate (docs/theory.md 1.7). It falls as `1/√m` and as
    `√((1 − p)/p)`. The square is that of the sum of the squared sines of all principal angles.

    Parameters
    ----------
    target
        Thin singular value decomposition of the target.
    measurements
        `m`, for sensing with independent Gaussian measurements of variance `1/m`.
    observed
        `p`, for completion with entries observed independently. Give one of the two.

    Raises
    ------
    ValueError
        If not exactly one of `measurements` and `observed` is given, or it is out of range.

    Examples
    --------
    >>> from lowdim_jax.problems.targets import random_target
    >>> import jax, jax.numpy as jnp
    >>> target = random_target(jax.random.key(0), (12, 12), jnp.array([2.0, 1.0]))
    >>> few, many = (surrogate_angle(target, measurements=m) for m in (1000, 4000))
    >>> round(float(few / many), 4)
    2.0
    """
    if (measurements is None) == (observed is None):
        raise ValueError(f"measurements={measurements}, observed={observed}: expected one of them")
    if measurements is not None:
        check("measurements", measurements, lambda v: v >= 1, "at least 1")
        variance = jnp.full(target.shape, jnp.sum(target.singular_values**2) / measurements)
    else:
        check("observed", observed, lambda v: (v > 0) & (v <= 1), "above 0 and at most 1")
        observed = jnp.asarray(observed, target.dtype)
        variance = target.dense() ** 2 * (1 - observed) / observed
    outside = 1 - jnp.sum(target.left**2, axis=1)
    return jnp.sqrt(jnp.sum((outside @ variance @ target.right**2) / target.singular_values**2))
