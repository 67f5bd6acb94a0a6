"""Gradients of a model's loss in some of its parameters, all from one backward pass."""

from collections.abc import Callable, Sequence
from functools import lru_cache
from types import FunctionType
from typing import Any

import equinox
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lowdim_jax._host import as_array, is_traced, on_host
from lowdim_jax.linalg import LowRank, check_finite, leading_svd


def gradients(
    model: nnx.Module, paths: Sequence[tuple], loss: Callable, batch: tuple, /
) -> list[jax.Array]:
    """`∂ℓ/∂θ` of the parameters at these paths, in their order; the model is left as it is.

    Of a function without a closure the compiled program is kept, as `jax.jit` does, and models of one
    structure share it. Any other callable (with a closure, a method, a partial) is compiled anew each
    time: what it holds may have changed.
    """
    wanted = set(paths)
    graph, chosen, rest = nnx.split(model, lambda path, _: path in wanted, ...)
    plain = isinstance(loss, FunctionType) and loss.__closure__ is None
    program = _kept_program(loss) if plain else _program(loss)
    found = dict(nnx.to_flat_state(program(graph, chosen, rest, batch)))
    return [found[path][...] for path in paths]


def _program(loss: Callable) -> Any:
    def loss_of(chosen, graph, rest, batch):
        return loss(nnx.merge(graph, chosen, rest, copy=True), *batch)

    return jax.jit(
        lambda graph, chosen, rest, batch: jax.grad(loss_of)(chosen, graph, rest, batch), static_argnums=0
    )


_kept_program = lru_cache(maxsize=16)(_program)


def leading_components(matrix: jax.Array | np.ndarray, rank: int, /) -> LowRank:
    """Leading `rank` singular triplets, to single precision and cheaper than by a full one.

    Of a float32 matrix in this machine's memory they are eigenvectors of the smaller Gram matrix in
    float64, which loses half the digits and keeps single precision for `σ_r ≥ 10⁻⁴ σ_1`. Any other
    matrix goes to `linalg.leading_svd`.
    """
    here = on_host(matrix)
    if isinstance(here, np.ndarray) and here.dtype == np.float32 and 1 <= rank <= min(here.shape):
        wide = here.shape[0] <= here.shape[1]
        small = (here if wide else here.T).astype(np.float64)
        values, vectors = np.linalg.eigh(small @ small.T)
        sigma = np.sqrt(np.maximum(values[::-1][:rank], 0))
        if sigma[-1] >= 1e-4 * sigma[0] > 0:
            near = vectors[:, ::-1][:, :rank]
            sides = near, small.T @ near / sigma
            left, right = (as_array(side.astype(np.float32)) for side in (sides if wide else sides[::-1]))
            return LowRank(left, as_array(sigma.astype(np.float32)), right)
    return leading_svd(matrix, rank)


def check_gradient(name: str, gradient: jax.Array, where: str, /) -> jax.Array:
    """The gradient itself, unless it vanishes or is not finite; traced ones are checked when they run.

    Raises
    ------
    ValueError
        If it has no singular vectors to start from.
    """
    vanishes = (
        f"{name} has the gradient 0 {where}, so no singular vectors to start from: does a ReLU without "
        "bias follow it, or does the loss not depend on it?"
    )
    if is_traced(gradient):
        bad = jnp.logical_not(jnp.isfinite(gradient).all() & jnp.any(gradient != 0))
        return equinox.error_if(gradient, bad, f"{vanishes} Or it is not finite.")
    check_finite(f"the gradient {where} of {name}", gradient)
    if not np.any(np.asarray(gradient)):
        raise ValueError(vanishes)
    return gradient
