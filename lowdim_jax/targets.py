"""Target matrices with a known spectrum, to train on."""

import jax
import jax.numpy as jnp
import numpy as np

from lowdim_jax._tracing import is_traced
from lowdim_jax.linalg import LowRank, check_finite, svd


def separated_target(key: jax.Array, d: int, rank: int, /, *, dtype=None) -> LowRank:
    """Rank-`r` target with a separated spectrum, as in the paper's experiments.

    Singular triplets `0, d/(2r), 2d/(2r), …` of a `d × d` standard Gaussian matrix: for `d = 100`
    and `r = 10` singular values from about 20 down to 9. Costs one dense SVD, `O(d³)`.

    Raises
    ------
    ValueError
        If `rank` is not between 1 and `d / 2`.
    """
    if not 1 <= rank <= d // 2:
        raise ValueError(f"rank={rank}, expected 1 ≤ rank ≤ d/2 = {d // 2}")
    parts = svd(jax.random.normal(key, (d, d), dtype))
    keep = jnp.arange(rank) * d // (2 * rank)
    return LowRank(parts.left[:, keep], parts.singular_values[keep], parts.right[:, keep])


def random_target(
    key: jax.Array, shape: tuple[int, int], singular_values: jax.Array, /
) -> LowRank:
    """Target of given singular values and independent Haar-random singular vectors.

    `O((d_out + d_in) r²)`: never forms the matrix.
    """
    d_out, d_in = shape
    if jnp.ndim(singular_values) != 1 or jnp.size(singular_values) == 0:
        raise ValueError(f"singular_values has shape {jnp.shape(singular_values)}, expected (r,), r ≥ 1")
    check_finite("singular_values", singular_values)
    if not is_traced(singular_values) and np.any(np.asarray(singular_values) < 0):
        raise ValueError(f"singular_values is {singular_values}, expected non-negative numbers")
    r = len(singular_values)
    if r > min(shape):
        raise ValueError(f"{r} singular values do not fit a {d_out}×{d_in} matrix")
    key_left, key_right = jax.random.split(key)
    haar = jax.nn.initializers.orthogonal()
    dtype = singular_values.dtype
    return LowRank(
        haar(key_left, (d_out, r), dtype), -jnp.sort(-singular_values), haar(key_right, (d_in, r), dtype)
    )
