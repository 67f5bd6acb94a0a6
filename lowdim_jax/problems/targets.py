"""Target matrices: with a known spectrum, or those that a linear regression amounts to."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Real

from lowdim_jax._arrays import as_count, as_floats, as_shape
from lowdim_jax._host import AnyArray, as_array, is_traced, on_host
from lowdim_jax.linalg import LowRank, as_matrix, dense, estimate_rank, svd


def separated_target(key: jax.Array, d: int, rank: int, /, *, dtype=None) -> LowRank:
    """Rank-`r` target with a separated spectrum, as in the paper's experiments.

    Singular triplets `0, d/(2r), 2d/(2r), …` of a `d × d` standard Gaussian matrix: for `d = 100`
    and `r = 10` singular values from about 20 down to 9. Costs one dense SVD, `O(d³)`.

    Raises
    ------
    ValueError
        If `rank` is not between 1 and `d / 2`.

    Examples
    --------
    >>> import jax, lowdim_jax as ld
    >>> target = ld.separated_target(jax.random.key(0), 50, 3)
    >>> target.shape, target.singular_values.shape
    ((50, 50), (3,))
    """
    d, rank = as_count("d", d), as_count("rank", rank)
    if not 1 <= rank <= d // 2:
        raise ValueError(f"rank={rank}, expected 1 ≤ rank ≤ d/2 = {d // 2}")
    parts = on_host(svd(jax.random.normal(key, (d, d), dtype)))
    keep = np.arange(rank) * d // (2 * rank)
    return LowRank(
        *map(as_array, (parts.left[:, keep], parts.singular_values[keep], parts.right[:, keep]))
    )


def random_target(
    key: jax.Array, shape: tuple[int, int], singular_values: AnyArray, /
) -> LowRank:
    """Target of given singular values and independent Haar-random singular vectors.

    `O((d_out + d_in) r²)`: never forms the matrix.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, lowdim_jax as ld
    >>> target = ld.random_target(jax.random.key(0), (30, 20), jnp.array([3.0, 2.0]))
    >>> round(float(jnp.linalg.norm(target.dense())), 3)  # √(3² + 2²)
    3.606
    """
    d_out, d_in = as_shape("shape", shape)
    singular_values = as_floats("singular_values", singular_values)
    if singular_values.ndim != 1 or singular_values.size == 0:
        raise ValueError(f"singular_values has shape {singular_values.shape}, expected (r,), r ≥ 1")
    if not is_traced(singular_values) and np.any(np.asarray(singular_values) < 0):
        raise ValueError(f"singular_values is {singular_values}, expected non-negative numbers")
    r = len(singular_values)
    if r > min(d_out, d_in):
        raise ValueError(f"{r} singular values do not fit a {d_out}×{d_in} matrix")
    return _random_target(key, singular_values, (d_out, d_in))


@partial(jax.jit, static_argnames="shape", inline=True)
def _random_target(key, singular_values, shape) -> LowRank:
    r, dtype = len(singular_values), singular_values.dtype
    haar = jax.nn.initializers.orthogonal()
    left, right = (haar(k, (d, r), dtype) for k, d in zip(jax.random.split(key), shape, strict=True))
    return LowRank(left, -jnp.sort(-singular_values), right)


def whiten(inputs: Real[AnyArray, "d_in n"], /) -> Float[Array, "d_in n"]:
    """`(X Xᵀ)^{−1/2} X`: inputs whose second moment `X Xᵀ` is the identity, nearest to the given ones.

    Raises
    ------
    ValueError
        If the inputs do not span `d_in` dimensions (fewer samples than that, or dependent features).

    Examples
    --------
    >>> import jax, jax.numpy as jnp
    >>> x = whiten(jax.random.normal(jax.random.key(0), (3, 50)))
    >>> bool(jnp.allclose(x @ x.T, jnp.eye(3), atol=1e-5))
    True
    """
    inputs = dense(as_matrix("inputs", inputs))
    left, sigma, right = jnp.linalg.svd(inputs, full_matrices=False)
    unit = max(inputs.shape) * jnp.finfo(sigma.dtype).eps
    if len(inputs) > inputs.shape[1] or (
        not is_traced(sigma) and sigma[-1] <= unit * sigma[0]
    ):
        raise ValueError(
            f"inputs of shape {inputs.shape} span fewer than {len(inputs)} dimensions: "
            "project them onto their leading singular vectors first"
        )
    return left @ right


def regression_target(
    inputs: Real[AnyArray, "d_in n"], outputs: Real[AnyArray, "d_out n"], /
) -> LowRank:
    """Target `Φ = Y Xᵀ` of the linear regression `½‖W X − Y‖_F²` on whitened inputs.

    With `X Xᵀ = I` that loss is `½‖W − Y Xᵀ‖_F²` plus a constant (docs/theory.md 3.6): everything known
    of matrix factorization holds for it. With one-hot labels the rank is at most the number of classes.

    Parameters
    ----------
    inputs
        `X`, one sample a column, with `X Xᵀ = I`: see `whiten`.
    outputs
        `Y`, one sample a column.

    Returns
    -------
    `LowRank` of the numerical rank of `Y Xᵀ`; under `jit`, of all `min(d_out, d_in)` components.

    Raises
    ------
    ValueError
        If the numbers of samples differ or the inputs are not white.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, numpy as np
    >>> x = whiten(jax.random.normal(jax.random.key(0), (3, 50)))
    >>> outputs = jnp.array([[1.0, 2.0, 3.0]]) @ x
    >>> np.asarray(regression_target(x, outputs).dense()).round(3)  # the map behind the outputs
    array([[1., 2., 3.]], dtype=float32)
    """
    inputs, outputs = dense(as_matrix("inputs", inputs)), dense(as_matrix("outputs", outputs))
    if inputs.shape[1] != outputs.shape[1]:
        raise ValueError(
            f"inputs have shape {inputs.shape} and outputs {outputs.shape}, expected one sample a column "
            "and as many columns in both"
        )
    excess = jnp.max(jnp.abs(inputs @ inputs.T - jnp.eye(len(inputs), dtype=inputs.dtype)))
    if not is_traced(excess) and excess > 1e3 * jnp.finfo(excess.dtype).eps:
        raise ValueError(
            f"inputs are not white: an entry of X Xᵀ is {float(excess):.3g} away from the identity's; "
            "whiten(inputs) is the nearest that are"
        )
    target = svd(outputs @ inputs.T)
    return target if is_traced(excess) else target.truncate(estimate_rank(target))
