"""Initial weights of one scale `ε`, as tuples of matrices.

Orthogonal, Gaussian and uniform initializations of the same `scale` have the same (expected)
Frobenius norm per layer, `ε √min(d_l, d_{l−1})`, so that they can be compared.
"""

from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Real

from lowdim_jax._arrays import as_count
from lowdim_jax._host import AnyArray, as_array, is_traced, on_host
from lowdim_jax.linalg import LowRank, as_matrix, extend_orthonormal, svd
from lowdim_jax.networks import Weights, check_depth, compressed_widths


def orthogonal(key: jax.Array, widths: Sequence[int], /, *, scale, dtype=None) -> Weights:
    """Haar-random (semi-)orthogonal layers times `scale`: `W_l = ε Q_l`.

    Parameters
    ----------
    key
        Random key.
    widths
        `(d_0, …, d_L)`, input to output. A rectangular layer has orthonormal rows or columns,
        whichever are fewer, so all its singular values are `ε`.
    scale
        `ε`, positive.
    dtype
        Of the weights; JAX's default float if left out.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, lowdim_jax as ld
    >>> first, last = ld.orthogonal(jax.random.key(0), (4, 4, 3), scale=0.1)
    >>> jnp.linalg.norm(first, axis=1).round(3), last.shape
    (Array([0.1, 0.1, 0.1, 0.1], dtype=float32), (3, 4))
    """
    return _per_layer(key, widths, scale, dtype, _orthogonal)


def gaussian(key: jax.Array, widths: Sequence[int], /, *, scale, dtype=None) -> Weights:
    """Independent `N(0, ε² / max(d_l, d_{l−1}))` entries: the orthogonal layer's expected norm.

    Examples
    --------
    >>> import jax, lowdim_jax as ld
    >>> [w.shape for w in ld.gaussian(jax.random.key(0), (5, 4, 3), scale=0.1)]
    [(4, 5), (3, 4)]
    """

    return _per_layer(key, widths, scale, dtype, _gaussian)


def uniform(key: jax.Array, widths: Sequence[int], /, *, scale, dtype=None) -> Weights:
    """Independent uniform entries of variance `ε² / max(d_l, d_{l−1})`, mean zero.

    Examples
    --------
    >>> import jax, jax.numpy as jnp
    >>> (w,) = uniform(jax.random.key(0), (30, 30), scale=1.0)
    >>> bool(jnp.max(jnp.abs(w)) <= (3 / 30) ** 0.5)
    True
    """

    return _per_layer(key, widths, scale, dtype, _uniform)


def identity(widths: Sequence[int], /, *, scale, dtype=None) -> Weights:
    """`W_l = ε I`, with a rectangular identity for rectangular layers.

    Examples
    --------
    >>> identity((3, 2, 2), scale=0.5)[0]
    Array([[0.5, 0. , 0. ],
           [0. , 0.5, 0. ]], dtype=float32)
    """
    return _per_layer(jax.random.key(0), widths, scale, dtype, _identity)


def spectral(
    surrogate: Real[AnyArray, "d_out d_in"] | LowRank, /, *, rank: int, depth: int, scale
) -> Weights:
    """Spectral initialization of a compressed network (docs/theory.md 1.3).

    `W_1 = ε V̂ᵀ`, `W_l = ε I` between, `W_L = ε Û`, with `Û, V̂` the leading `rank` singular vectors
    of the surrogate matrix.

    Parameters
    ----------
    surrogate
        `−∇ℓ(0)`, the negative gradient of the loss at the zero matrix, up to a positive factor;
        for matrix factorization the target itself. Dense or `LowRank`; where it has fewer than
        `rank` components the rest are random directions orthogonal to them.
    rank
        `r̂`, the width of every hidden layer.
    depth
        Number of layers `L ≥ 2`.
    scale
        `ε`, positive.

    Returns
    -------
    Weights of shapes `(r̂, d_in), (r̂, r̂), …, (d_out, r̂)`.

    Raises
    ------
    ValueError
        If `rank`, `depth` or `scale` is out of range.

    Examples
    --------
    >>> import jax.numpy as jnp, lowdim_jax as ld
    >>> network = ld.spectral(jnp.diag(jnp.array([5.0, 3.0, 0.0])), rank=2, depth=3, scale=0.1)
    >>> ld.widths(network)
    (3, 2, 2, 3)
    >>> abs(ld.end_to_end(network)).round(4)
    Array([[0.001, 0.   , 0.   ],
           [0.   , 0.001, 0.   ],
           [0.   , 0.   , 0.   ]], dtype=float32)
    """
    surrogate = as_matrix("surrogate", surrogate)
    d_out, d_in = surrogate.shape
    _, rank, *_ = compressed_widths(d_out, d_in, depth=depth, rank=rank)
    parts = on_host(svd(surrogate))
    left, right = parts.left[:, :rank], parts.right[:, :rank]
    if left.shape[1] < rank:
        key_left, key_right = jax.random.split(jax.random.key(0))
        left = extend_orthonormal(left, rank, key=key_left)
        right = extend_orthonormal(right, rank, key=key_right)
    return from_singular_vectors(left, right, depth=depth, scale=scale)


def from_singular_vectors(
    left: Real[AnyArray, "d_out rank"], right: Real[AnyArray, "d_in rank"], /, *, depth: int, scale
) -> Weights:
    """Compressed network `(ε V̂ᵀ, ε I, …, ε I, ε Û)` from given orthonormal columns `Û, V̂`.

    Examples
    --------
    >>> import jax.numpy as jnp, lowdim_jax as ld
    >>> vectors = jnp.eye(4, 2)
    >>> ld.widths(from_singular_vectors(vectors, vectors, depth=3, scale=0.1))
    (4, 2, 2, 4)
    """
    check_scale(scale)
    left, right = on_host((left, right))
    rank = left.shape[1]
    depth = check_depth(depth, least=2)
    if right.shape[1] != rank:
        raise ValueError(
            f"left and right have shapes {left.shape} and {right.shape}, expected as many columns in both"
        )
    compressed_widths(len(left), len(right), depth=depth, rank=rank)
    xp = jnp if is_traced(left, right, scale) else np
    scale = xp.asarray(scale, left.dtype)
    middle = (scale * xp.eye(rank, dtype=left.dtype),) * (depth - 2)
    return tuple(map(as_array, (scale * right.T, *middle, scale * left)))


def balanced(matrix: Real[AnyArray, "d_out d_in"] | LowRank, /, *, depth: int) -> Weights:
    """Network `(Σ^{1/L} Vᵀ, Σ^{1/L}, …, U Σ^{1/L})` whose end-to-end matrix is the one given.

    `W_{l+1}ᵀ W_{l+1} = W_l W_lᵀ` for all `l` (docs/theory.md 4.1). The hidden layers are as wide as
    the matrix has components: cut it with `LowRank.truncate` to choose.

    Examples
    --------
    >>> import jax.numpy as jnp, lowdim_jax as ld
    >>> network = balanced(jnp.diag(jnp.array([8.0, 1.0])), depth=3)
    >>> ld.end_to_end(network).round(3)
    Array([[8., 0.],
           [0., 1.]], dtype=float32)
    """
    parts = svd(as_matrix("matrix", matrix))
    compressed_widths(*parts.shape, depth=depth, rank=len(parts.singular_values))
    depth = check_depth(depth, least=2)
    root = parts.singular_values ** (1 / depth)
    middle = (jnp.diag(root),) * (depth - 2)
    return (root[:, None] * parts.right.T, *middle, parts.left * root[None, :])


def check_scale(scale) -> None:
    """Raise `ValueError` unless a concrete `scale` is positive and finite (traced ones pass)."""
    if is_traced(scale):
        return
    values = np.asarray(scale)  # NumPy: under `jit`, JAX would trace even this
    if not np.all((values > 0) & np.isfinite(values)):
        raise ValueError(f"scale={scale}, expected a positive finite initialization scale ε")


def _per_layer(key, widths, scale, dtype, draw: Callable) -> Weights:
    check_scale(scale)
    widths = tuple(as_count("widths", width) for width in widths)
    if len(widths) < 2 or min(widths) < 1:
        raise ValueError(f"widths={tuple(widths)}, expected at least two positive widths d_0 … d_L")
    dtype = jnp.zeros((), dtype).dtype  # JAX's default float where dtype is None
    shapes = zip(widths[1:], widths, strict=False)
    keys = jax.random.split(key, len(widths) - 1)
    scale = jnp.asarray(scale, dtype)
    return tuple(_layer(k, scale, shape, draw) for k, shape in zip(keys, shapes, strict=False))


@partial(jax.jit, static_argnames=("shape", "draw"), inline=True)
def _layer(key, scale, shape, draw):
    """One layer in one program, which layers of one shape share."""
    return scale * draw(key, shape, scale.dtype)


_orthogonal = jax.nn.initializers.orthogonal()


def _gaussian(key, shape, dtype):
    return jax.random.normal(key, shape, dtype) / max(shape) ** 0.5


def _uniform(key, shape, dtype):
    bound = (3 / max(shape)) ** 0.5
    return jax.random.uniform(key, shape, dtype, -bound, bound)


def _identity(_, shape, dtype):
    return jnp.eye(*shape, dtype=dtype)
