"""Gradients of a model's loss in some of its parameters, all from one backward pass."""

from collections.abc import Callable, Sequence
from functools import lru_cache
from types import BuiltinFunctionType, CodeType, FunctionType, ModuleType
from typing import Any

import equinox
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lowdim_jax._cache import Program
from lowdim_jax._host import as_array, is_traced, on_host
from lowdim_jax.linalg import LowRank, check_finite, leading_svd, svd_within
from lowdim_jax.nn.paths import part_at

LAYERS = 100
"""Times that a gradient goes through a batch, about: once for every operation of a model."""


def gradients(
    model: nnx.Module, paths: Sequence[tuple], loss: Callable, batch: tuple, /
) -> list[jax.Array]:
    """`∂ℓ/∂θ` of the parameters at these paths, in their order; the model is left as it is.

    A parameter that several layers share has a gradient of its own in each.

    The compiled program is kept for a function that reads nothing that could change but its arguments, as
    `constants_of` finds out, and models of one structure share it. Any other callable (with a closure, a
    method, a partial) is compiled anew each time.

    Raises
    ------
    ValueError
        If `batch` is no tuple or list, or the loss no scalar.
    """
    if not isinstance(batch, tuple | list):
        raise ValueError(
            f"batch is of type {type(batch).__name__}, expected a tuple of what is passed on after the model"
        )
    wanted = set(paths)
    graph, chosen, rest = nnx.split(_untied(model, paths), lambda path, _: path in wanted, ...)
    constants = constants_of(loss)
    program = _program(loss) if constants is None else _kept_program(loss, constants)
    found = dict(nnx.to_flat_state(program(graph, chosen, rest, tuple(batch), times=LAYERS)))
    return [found[path][...] for path in paths]


def _untied(model: nnx.Module, paths: Sequence[tuple]) -> nnx.Module:
    copy = nnx.clone(model)
    for *names, name in paths:
        layer = part_at(copy, tuple(names))
        setattr(layer, name, getattr(layer, name).copy())
    return copy


def constants_of(function: Any, /) -> tuple | None:
    """Numbers and texts that a function reads from its module; None if it reads what may change unseen.

    Functions that it calls by their name are followed. A closure, defaults, attributes, and globals other
    than functions, classes, modules, numbers and texts may change.

    Examples
    --------
    >>> from lowdim_jax.nn.gradients import constants_of
    >>> constants_of(lambda model, x: model(x).sum()), constants_of(lambda model, at=[1.0]: at[0])
    ((), None)
    """
    found: dict[tuple[int, str], Any] = {}
    seen: set[int] = set()

    def changes(value) -> bool:
        if not isinstance(value, FunctionType):
            return not isinstance(value, ModuleType | type | BuiltinFunctionType)
        if id(value) in seen:
            return False
        seen.add(id(value))
        if value.__closure__ or value.__defaults__ or value.__kwdefaults__ or vars(value):
            return True
        for name in _names(value.__code__) & value.__globals__.keys():
            read = value.__globals__[name]
            if isinstance(read, int | float | complex | str | bytes | None):
                found[id(value.__globals__), name] = read
            elif changes(read):
                return True
        return False

    if not isinstance(function, FunctionType) or changes(function):
        return None
    return tuple((*place, type(read), read) for place, read in sorted(found.items()))


def _names(code: CodeType) -> set[str]:
    """Globals and attributes that a piece of code names, with what is defined in it."""
    inner = [_names(part) for part in code.co_consts if isinstance(part, CodeType)]
    return set(code.co_names).union(*inner)


def _program(loss: Callable, constants: tuple = ()) -> Any:
    def loss_of(chosen, graph, rest, batch):
        value = loss(nnx.merge(graph, chosen, rest, copy=True), *batch)
        if not isinstance(value, jax.Array) or value.shape or not jnp.issubdtype(value.dtype, jnp.floating):
            is_array = isinstance(value, jax.Array)
            given = f"{value.dtype}{list(value.shape)}" if is_array else type(value).__name__
            raise ValueError(f"loss(model, *batch) gives {given}, expected a real scalar")
        return value

    return Program(
        lambda graph, chosen, rest, batch: jax.grad(loss_of)(chosen, graph, rest, batch), static_argnums=0
    )


_kept_program = lru_cache(maxsize=16)(_program)


def leading_components(matrix: jax.Array | np.ndarray, rank: int, /) -> LowRank:
    """Leading `rank` singular triplets, to single precision and cheaper than by a full one.

    Of a float32 matrix in this machine's memory with more than `2 rank` components they are eigenvectors
    of the smaller Gram matrix in float64, which loses half the digits and keeps single precision for
    `σ_r ≥ 10⁻⁴ σ_1`. Any other matrix goes to `linalg.leading_svd`.
    """
    here = on_host(matrix)
    few = svd_within(here, 2 * rank) if 1 <= 8 * rank <= min(here.shape) else None
    if few is not None:  # such as of a layer before a classifier of few classes
        return few.truncate(rank)
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


def check_gradient(
    name: str, gradient: jax.Array, where: str, /, *, advice: str = "", may_vanish: bool = False
) -> jax.Array:
    """The gradient itself, unless it vanishes or is not finite; traced ones are checked when they run.

    Of a stack `(copies, …)` each member is looked at. `may_vanish` lets a gradient of 0 pass, unless it
    is traced; `advice` ends the error's text.

    Raises
    ------
    ValueError
        If it has no singular vectors to start from.
    """
    vanishes = (
        f"{name} has the gradient 0 {where}, so no singular vectors to start from: does a ReLU without "
        f"bias follow it, or does the loss not depend on it?{advice}"
    )
    if is_traced(gradient):
        bad = jnp.logical_not(jnp.isfinite(gradient).all() & jnp.any(gradient != 0, axis=(-2, -1)).all())
        return equinox.error_if(gradient, bad, f"{vanishes} Or it is not finite.")
    check_finite(f"the gradient {where} of {name}", gradient)
    alive = np.any(np.asarray(gradient), axis=(-2, -1))
    if not alive.all() and not may_vanish:
        member = f" in member {int(np.argmin(alive))} of its stack" if alive.size > 1 else ""
        raise ValueError(vanishes.replace(" has the gradient 0", f" has the gradient 0{member}", 1))
    return gradient
