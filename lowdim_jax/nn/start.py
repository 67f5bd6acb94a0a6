"""Spectral initialization of a layer inside a network (docs/theory.md 1.3)."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from lowdim_jax.initialization import from_singular_vectors
from lowdim_jax.nn.conversion import matrix_of
from lowdim_jax.nn.gradients import check_gradient, gradients, leading_components
from lowdim_jax.nn.layers import CompressedLinear, DeepLinear, at_least_single
from lowdim_jax.nn.paths import Path, layer_at, names_of, replace_everywhere


def layer_surrogate(
    model: nnx.Module, path: Path, loss: Callable, /, *batch: Any, at: Any = "zero"
) -> Float[Array, "d_out d_in"]:
    """Surrogate matrix of one layer: `−∇ℓ`, over a batch (docs/theory.md 1.3).

    `ℓ(W)` is the loss of the whole model as a function of that layer's end-to-end matrix `W`, all
    other parameters as they are.

    Parameters
    ----------
    model
        Left as it is.
    path
        Where the layer is, as in `"head.network"` or `("head", "network")`; an `nnx.Linear`, a
        `DeepLinear` or a `CompressedLinear`.
    loss
        `loss(model, *batch)`, a scalar. Of a function without a closure the compiled program is kept;
        any other callable is compiled anew each time, so that a change in what it holds is seen.
    batch
        What else the loss takes: arrays.
    at
        The matrix at which the gradient is taken. `"zero"`, as for the paper's rule: the layer's own
        weights then play no part, but a ReLU that follows at once passes nothing on where the bias is
        not positive. `"current"`: the layer's own matrix. Or any matrix `(d_out, d_in)`.

    Raises
    ------
    ValueError
        If there is no such layer, or `at` is none of these.

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
    if not names_of(path):
        raise ValueError(f"path={path!r} is the model itself, expected the path of one of its parts")
    layer = layer_at(model, path)
    if not isinstance(layer, nnx.Linear | DeepLinear):
        raise ValueError(f"the layer at {path!r} is a {type(layer).__name__}, expected a linear layer")
    matrix = matrix_of(layer)
    if matrix.ndim != 2:
        raise ValueError(f"the layer at {path!r} is a stack of {matrix.shape[0]} layers, expected one")
    if isinstance(at, str):
        if at not in ("zero", "current"):
            raise ValueError(f"at={at!r}, expected 'zero', 'current' or a matrix")
        at = jnp.zeros_like(matrix) if at == "zero" else matrix
    at = jnp.asarray(at, matrix.dtype)
    if at.shape != matrix.shape:
        raise ValueError(f"at has shape {at.shape}, expected {matrix.shape}")
    plain = layer.merge() if isinstance(layer, DeepLinear) else nnx.clone(layer)
    plain.kernel[...] = at.T
    probe = nnx.clone(model)
    replace_everywhere(probe, {id(layer_at(probe, path)): plain})  # a layer used in several places, in all
    names = next(names for names, part in nnx.iter_modules(probe) if part is plain)
    (gradient,) = gradients(probe, [(*names, "kernel")], loss, batch)
    return -gradient.T


def spectral_start(
    model: nnx.Module, path: Path, loss: Callable, /, *batch: Any, scale: float = 1.0, at: Any = "zero"
) -> None:
    """Start a compressed layer of a model from the singular vectors of its surrogate, in place.

    Rank and depth are the layer's. Where the surrogate has fewer components than that (a layer
    before a classifier has one less than classes), the rest are orthonormal to them and arbitrary.

    Parameters
    ----------
    model, path, loss, batch, at
        As for `layer_surrogate`. Where the gradient at zero vanishes, before a ReLU, take that at the
        `"current"` matrix of the layer's random start.
    scale
        `ε`, positive.

    Raises
    ------
    ValueError
        If the layer is not a `CompressedLinear`, `scale` is not positive, or the gradient vanishes
        or is not finite; under `jit`, an error when it runs.

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
    matrix = layer_surrogate(model, path, loss, *batch, at=at).astype(at_least_single(layer.param_dtype))
    where = "at W = 0" if isinstance(at, str) and at == "zero" else "at its matrix"
    matrix = check_gradient(f"the layer at {path!r}", matrix, where)
    leading = leading_components(matrix, layer.rank)
    layer.set_weights(from_singular_vectors(leading.left, leading.right, depth=layer.depth, scale=scale))
