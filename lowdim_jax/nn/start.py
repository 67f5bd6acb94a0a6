"""Spectral initialization of a layer inside a network (docs/theory.md 1.3)."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from lowdim_jax import compression
from lowdim_jax._host import is_traced
from lowdim_jax.initialization import spectral
from lowdim_jax.linalg import check_finite, leading_svd
from lowdim_jax.nn.layers import CompressedLinear, DeepLinear, at_least_single
from lowdim_jax.nn.paths import Path, layer_at, replace_layer


def layer_surrogate(
    model: nnx.Module, path: Path, loss: Callable, /, *batch
) -> Float[Array, "d_out d_in"]:
    """Surrogate matrix of one layer: `−∇ℓ(0)`, over a batch (docs/theory.md 1.3).

    `ℓ(W)` is the loss of the whole model as a function of that layer's end-to-end matrix `W`, all
    other parameters as they are. The layer's own weights play no part. It is zero where a ReLU
    follows the layer at once and its bias is not positive: at `W = 0` such units are dead.

    Parameters
    ----------
    model
        Left as it is.
    path
        Where the layer is, as in `"head.network"` or `("head", "network")`; an `nnx.Linear`, a
        `DeepLinear` or a `CompressedLinear`.
    loss
        `loss(model, *batch)`, a scalar.
    batch
        What else the loss takes: arrays.

    Raises
    ------
    ValueError
        If there is no such layer.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> from lowdim_jax import nn
    >>> model = nnx.Sequential(nn.CompressedLinear(3, 2, rank=1, use_bias=False, rngs=nnx.Rngs(0)))
    >>> loss = lambda model, x, y: jnp.sum((model(x) - y) ** 2) / 2
    >>> nn.layer_surrogate(model, "layers.0", loss, jnp.eye(3), jnp.ones((3, 2)))  # −∇ℓ(0) = Yᵀ X
    Array([[1., 1., 1.],
           [1., 1., 1.]], dtype=float32)
    """
    layer = _linear_layer(model, path)
    plain = layer.merge() if isinstance(layer, DeepLinear) else nnx.clone(layer)
    graph, state = nnx.split(replace_layer(nnx.clone(model), path, plain))
    return _negative_gradient(graph, path, loss, state, batch)


@partial(jax.jit, static_argnums=(0, 1, 2))  # models of one structure share one program
def _negative_gradient(graph, path, loss, state, batch):
    def matrix_loss(matrix):
        probe = nnx.merge(graph, state, copy=True)
        layer_at(probe, path).kernel[...] = matrix.T
        return loss(probe, *batch)

    layer = layer_at(nnx.merge(graph, state, copy=True), path)
    shape = layer.out_features, layer.in_features
    return compression.loss_surrogate(matrix_loss, shape, dtype=layer.param_dtype)


def spectral_start(
    model: nnx.Module, path: Path, loss: Callable, /, *batch, scale: float = 1.0
) -> None:
    """Start a compressed layer of a model from the singular vectors of its surrogate, in place.

    Rank and depth are the layer's. Where the surrogate has fewer components than that (a layer
    before a classifier has one less than classes), the rest are orthonormal to them and arbitrary.

    Parameters
    ----------
    model, path, loss, batch
        As for `layer_surrogate`.
    scale
        `ε`, positive.

    Raises
    ------
    ValueError
        If the layer is not a `CompressedLinear`, `scale` is not positive, or the gradient vanishes
        or is not finite.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> from lowdim_jax import nn
    >>> model = nnx.Sequential(nn.CompressedLinear(3, 2, rank=1, use_bias=False, rngs=nnx.Rngs(0)))
    >>> loss = lambda model, x, y: jnp.sum((model(x) - y) ** 2) / 2
    >>> nn.spectral_start(model, "layers.0", loss, jnp.eye(3), jnp.ones((3, 2)))
    >>> model.layers[0].merge().kernel[...].round(4)  # one component, along Yᵀ X
    Array([[0.4082, 0.4082],
           [0.4082, 0.4082],
           [0.4082, 0.4082]], dtype=float32)
    """
    layer = layer_at(model, path)
    if not isinstance(layer, CompressedLinear):
        raise ValueError(f"the layer at {path!r} is a {type(layer).__name__}, expected a CompressedLinear")
    matrix = layer_surrogate(model, path, loss, *batch).astype(at_least_single(layer.param_dtype))
    check_finite(f"the gradient at W = 0 of the layer at {path!r}", matrix)
    if not is_traced(matrix) and not jnp.any(matrix):
        raise ValueError(
            f"the layer at {path!r} has the gradient 0 at W = 0, so no singular vectors to start from: "
            "does a ReLU without bias follow it?"
        )
    rank, depth = len(layer.weights[0]), len(layer.weights)
    leading = leading_svd(matrix, rank)
    layer.set_weights(spectral(leading, rank=rank, depth=depth, scale=scale))


def _linear_layer(model: nnx.Module, path: Path) -> nnx.Linear | DeepLinear:
    layer = layer_at(model, path)
    if not isinstance(layer, nnx.Linear | DeepLinear):
        raise ValueError(f"the layer at {path!r} is a {type(layer).__name__}, expected a linear layer")
    return layer
