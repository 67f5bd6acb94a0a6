"""Deep linear and compressed layers with the interface of `nnx.Linear`, and conversions between them.

Inside, a layer is one of the library's networks: a tuple of matrices `W_l` of shape
`(d_l, d_{l−1})`, input to output. `nnx.Linear` keeps the transpose, `kernel = Wᵀ` of shape
`(in_features, out_features)`.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn.dtypes import promote_dtype

from lowdim_jax.initialization import balanced, from_singular_vectors, orthogonal
from lowdim_jax.linalg import svd
from lowdim_jax.networks import (
    Weights,
    compressed_widths,
    end_to_end,
    forward,
    full_widths,
    widths,
)

Initializer = Callable[..., Any]


class DeepLinear(nnx.Module):
    """Deep linear network `y = W_L ⋯ W_1 x + b` in place of an `nnx.Linear`.

    Every hidden layer is `min(in_features, out_features)` wide, unless `hidden` says otherwise.

    Parameters
    ----------
    in_features, out_features, use_bias, dtype, param_dtype, bias_init, rngs
        As for `nnx.Linear`.
    depth
        `L`, number of factors.
    hidden
        Width between the factors.
    scale
        `ε`: by default the factors start at `ε` times Haar-random (semi-)orthogonal matrices.
    kernel_init
        Start of each factor instead, called with the shape `(d_{l−1}, d_l)` as for `nnx.Linear`;
        `scale` then plays no part.

    Raises
    ------
    ValueError
        If a width, `depth` or `scale` is out of range.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> from lowdim_jax import nn
    >>> layer = nn.DeepLinear(6, 4, depth=3, rngs=nnx.Rngs(0))
    >>> layer(jnp.ones((2, 6))).shape, len(layer.weights)
    ((2, 4), 3)
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        depth: int = 3,
        hidden: int | None = None,
        scale: float = 1.0,
        use_bias: bool = True,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        kernel_init: Initializer | None = None,
        bias_init: Initializer = nnx.initializers.zeros,
        rngs: nnx.Rngs,
    ):
        spaces = full_widths(out_features, in_features, depth=depth, hidden=hidden)

        def start(key, exact):
            return orthogonal(key, spaces, scale=scale, dtype=exact)

        self._set_up(spaces, start, use_bias, dtype, param_dtype, kernel_init, bias_init, rngs)

    def _set_up(self, spaces, start, use_bias, dtype, param_dtype, kernel_init, bias_init, rngs):
        self.in_features, self.out_features = spaces[0], spaces[-1]
        self.use_bias, self.dtype, self.param_dtype = use_bias, dtype, param_dtype
        key = rngs.params()
        if kernel_init is None:
            weights = start(key, at_least_single(param_dtype))
        else:
            shapes = list(pairwise(spaces))
            keys = jax.random.split(key, len(shapes))
            weights = [kernel_init(k, shape, param_dtype).T for k, shape in zip(keys, shapes, strict=True)]
        self.factors = nnx.List([nnx.Param(weight.astype(param_dtype)) for weight in weights])
        bias = nnx.Param(bias_init(rngs.params(), spaces[-1:], param_dtype)) if use_bias else None
        self.bias = nnx.data(bias)

    @property
    def weights(self) -> Weights:
        """The layer as a network of the library: `(W_1, …, W_L)`."""
        return tuple(factor[...] for factor in self.factors)

    def set_weights(self, weights: Sequence[jax.Array], /) -> None:
        """Replace the factors by those of a network of the same widths.

        Raises
        ------
        ValueError
            If depth or widths differ.
        """
        if widths(weights) != widths(self.weights):
            raise ValueError(f"weights has widths {widths(weights)}, expected {widths(self.weights)}")
        for factor, weight in zip(self.factors, weights, strict=True):
            factor[...] = weight.astype(self.param_dtype)

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Apply the network to the last axis."""
        bias = self.bias[...] if self.bias is not None else None
        x, bias, *weights = promote_dtype((inputs, bias, *self.weights), dtype=self.dtype)
        if x.shape[-1] != self.in_features:
            raise ValueError(
                f"inputs has shape {x.shape}, expected {self.in_features} features in its last axis"
            )
        columns = x.reshape(-1, self.in_features).T
        y = forward(weights, columns).T.reshape(*x.shape[:-1], self.out_features)
        return y if bias is None else y + jnp.broadcast_to(bias, y.shape)

    def merge(self) -> nnx.Linear:
        """The same map as one `nnx.Linear`: its kernel is the end-to-end matrix, transposed."""
        with jax.default_matmul_precision("highest"):
            matrix = end_to_end(self.weights)
        return _linear(matrix, self)


class CompressedLinear(DeepLinear):
    """Compressed deep linear network in place of an `nnx.Linear` (docs/theory.md 1.2).

    Its `(in + out) r̂ + (L − 2) r̂²` weights start at `(ε V̂ᵀ, ε I, …, ε I, ε Û)` with random
    orthonormal `Û, V̂`; `spectral_start` puts those of the layer's surrogate in their place. The
    outer factors may learn at another rate than the middle ones: see `partition`.

    Parameters
    ----------
    rank
        `r̂`, the width between the factors.
    depth
        `L ≥ 2`, number of factors.
    in_features, out_features, scale, use_bias, dtype, param_dtype, kernel_init, bias_init, rngs
        As for `DeepLinear`.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> from lowdim_jax import nn
    >>> layer = nn.CompressedLinear(60, 40, rank=3, rngs=nnx.Rngs(0))
    >>> layer(jnp.ones((2, 60))).shape
    (2, 40)
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        rank: int,
        depth: int = 3,
        scale: float = 1.0,
        use_bias: bool = True,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        kernel_init: Initializer | None = None,
        bias_init: Initializer = nnx.initializers.zeros,
        rngs: nnx.Rngs,
    ):
        spaces = compressed_widths(out_features, in_features, depth=depth, rank=rank)

        def start(key, exact):
            right, left = (
                orthogonal(k, (rank, features), scale=1.0, dtype=exact)[0]
                for k, features in zip(jax.random.split(key), (in_features, out_features), strict=True)
            )  # of one shape where the layer is square, and so one compiled program
            return from_singular_vectors(left, right, depth=depth, scale=scale)

        self._set_up(spaces, start, use_bias, dtype, param_dtype, kernel_init, bias_init, rngs)


def compress_layer(
    layer: nnx.Linear | DeepLinear, /, *, rank: int, depth: int = 3
) -> CompressedLinear:
    """Compressed layer nearest to a trained one: its best rank-`r̂` approximation, balanced.

    The matrix `U Σ Vᵀ` of the layer, cut to `r̂` components, becomes
    `(Σ^{1/L} Vᵀ, Σ^{1/L}, …, U Σ^{1/L})`, whose factors satisfy docs/theory.md 4.1. The bias and
    data types are kept, the layer itself is left as it is.

    Raises
    ------
    ValueError
        If `layer` is neither an `nnx.Linear` nor a `DeepLinear`, or `rank` or `depth` is out of
        range.

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
    if not isinstance(layer, nnx.Linear | DeepLinear):
        raise ValueError(f"layer is a {type(layer).__name__}, expected an nnx.Linear or a DeepLinear")
    compressed = CompressedLinear(
        layer.in_features,
        layer.out_features,
        rank=rank,
        depth=depth,
        bias_init=_constant(layer.bias),
        **_kept(layer),
    )
    kernel = layer.merge().kernel if isinstance(layer, DeepLinear) else layer.kernel
    matrix = kernel[...].T.astype(at_least_single(layer.param_dtype))
    compressed.set_weights(balanced(svd(matrix).truncate(rank), depth=depth))
    return compressed


def at_least_single(dtype: Any, /) -> Any:
    """The data type, or float32 where it is narrower: decompositions know none below that."""
    return dtype if jnp.finfo(dtype).bits >= 32 else jnp.float32


def _linear(matrix: jax.Array, like: nnx.Linear | DeepLinear) -> nnx.Linear:
    return nnx.Linear(
        like.in_features,
        like.out_features,
        kernel_init=lambda *_: matrix.T,
        bias_init=_constant(like.bias),
        **_kept(like),
    )


def _kept(layer: nnx.Linear | DeepLinear) -> dict[str, Any]:
    """What a layer made from another one has in common with it."""
    names = ("use_bias", "dtype", "param_dtype")
    return {name: getattr(layer, name) for name in names} | {"rngs": nnx.Rngs(0)}


def _constant(bias: nnx.Param | None) -> Initializer:
    return lambda *_: None if bias is None else bias[...]
