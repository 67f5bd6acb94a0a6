"""From trained dense layers to compressed ones, and what is lost by it."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lowdim_jax._host import is_traced, on_host
from lowdim_jax.linalg import check_finite
from lowdim_jax.nn.kernels import Unsupported, kernel_of
from lowdim_jax.nn.layers import (
    OPTIONS,
    CompressedLinear,
    DeepLinear,
    at_least_single,
    metadata_of,
    metadata_of_factor,
)


def compress_layer(
    layer: nnx.Linear | DeepLinear, /, *, rank: int, depth: int = 3
) -> CompressedLinear:
    """Compressed layer nearest to a trained one: its best rank-`r̂` approximation, balanced.

    The matrix `U Σ Vᵀ` of the layer, cut to `r̂` components, becomes
    `(Σ^{1/L} Vᵀ, Σ^{1/L}, …, U Σ^{1/L})`, whose factors satisfy docs/theory.md 4.1; of a component
    with `σ = 0`, which would never learn, only the last factor is zero. Bias and options are kept,
    the layer itself is left as it is. Of a stack made by `nnx.vmap`, each member is cut by itself.

    Raises
    ------
    ValueError
        If `layer` is neither an `nnx.Linear` nor a `DeepLinear`, or applies more than its kernel (a
        subclass with a call of its own, such as `nnx.LoRALinear`), if `rank` or `depth` is out of
        range, or the kernel is not finite.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> from lowdim_jax import nn
    >>> layer = nnx.Linear(5, 4, rngs=nnx.Rngs(0))
    >>> x, whole = jnp.ones((2, 5)), nn.compress_layer(layer, rank=4)
    >>> bool(jnp.allclose(layer(x), whole(x), atol=1e-5))
    True
    """
    return compressed_from(layer, matrix_of(layer), rank=rank, depth=depth)


def matrix_of(layer: Any, /) -> jax.Array:
    """The whole map of a linear layer as matrices `(…, d_out, d_in)`; refuses layers that do more.

    Raises
    ------
    ValueError
        If it is no linear layer, or has a call of its own.
    """
    if isinstance(layer, DeepLinear):
        if type(layer).__call__ is not DeepLinear.__call__:
            raise ValueError(f"layer is a {type(layer).__name__} with a call of its own, which would be lost")
        return jnp.swapaxes(layer.kernel, -1, -2)
    if not isinstance(layer, nnx.Linear):
        raise ValueError(f"layer is a {type(layer).__name__}, expected an nnx.Linear or a DeepLinear")
    try:
        kernel_of(layer)
    except Unsupported as error:
        raise ValueError(f"layer cannot be converted: {error}") from error
    return jnp.swapaxes(layer.kernel[...], -1, -2)


def compressed_from(layer, matrix: jax.Array, *, rank: int, depth: int) -> CompressedLinear:
    """Compressed layer of given matrices `(…, d_out, d_in)`, with another layer's bias and options."""
    compressed = CompressedLinear(
        layer.in_features,
        layer.out_features,
        rank=rank,
        depth=depth,
        rngs=nnx.Rngs(0),
        **{name: getattr(layer, name) for name in OPTIONS},
    )
    check_finite("the layer's kernel", matrix)
    parts = cut(matrix.astype(at_least_single(layer.param_dtype)), rank, depth)
    metadata = {} if isinstance(layer, DeepLinear) else metadata_of(layer.kernel)
    for index, part in enumerate(parts):
        placed = metadata_of_factor(metadata, index, depth)
        compressed.factors[index] = nnx.Param(part.astype(layer.param_dtype), eager_sharding=False, **placed)
    if layer.bias is not None:
        compressed.bias = nnx.clone(layer.bias)
    return compressed


def cut(matrix: jax.Array, rank: int, depth: int, /) -> Sequence[jax.Array]:
    """Balanced factors of the best rank-`r̂` approximation of matrices `(…, d_out, d_in)`."""
    here = on_host(matrix)
    xp: Any = jnp if is_traced(here) or isinstance(here, jax.Array) else np
    left, sigma, right = xp.linalg.svd(here, full_matrices=False)
    left, sigma, right = left[..., :rank], sigma[..., :rank], right[..., :rank, :]
    dead = sigma <= max(here.shape[-2:]) * xp.finfo(here.dtype).eps * sigma[..., :1]
    root = xp.where(dead, 0, sigma) ** (1 / depth)
    learns = xp.where(dead, 1, root)[..., :, None]
    middle = [learns * xp.eye(rank, dtype=here.dtype)] * (depth - 2)
    return [jnp.asarray(part) for part in (learns * right, *middle, left * root[..., None, :])]
