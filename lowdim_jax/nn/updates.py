"""Weight updates `W(t) − W(0)` of the layers of any nnx model: their spectrum and their subspace."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from lowdim_jax.linalg import LowRank, check_finite, subspace_angles, svd
from lowdim_jax.nn.adapters import Adapted
from lowdim_jax.nn.conversion import Factored
from lowdim_jax.nn.kernels import KINDS, Unsupported, kernel_of
from lowdim_jax.nn.layers import DeepLinear
from lowdim_jax.nn.paths import Path, layer_at, names_of

Matrices = Mapping[Path, jax.Array]


def matrices(model: nnx.Module, paths: Iterable[Path] | None = None, /) -> dict[Path, jax.Array]:
    """Weight matrices of a model as they are now, by path.

    A layer's kernel becomes a matrix `(outputs, inputs)`: a convolution's inputs are its channels
    times its window, an einsum's are the axes it sums over. A `DeepLinear`, and what `adapt` and
    `compress` make, give their end-to-end matrix; `"….factors.0"` is the path of a first factor, and
    any parameter of two or more axes can be named so (its last axis are columns). Layers stacked by
    `nnx.vmap` give one matrix each: `"blocks[0]"`, `"blocks[1]"`, ….

    Parameters
    ----------
    model
        Any.
    paths
        Of layers or parameters; by default every layer whose kernel is a matrix, and every factor.

    Raises
    ------
    ValueError
        If there is nothing at a path, or no matrix.

    Examples
    --------
    >>> from flax import nnx
    >>> from lowdim_jax import nn
    >>> model = nnx.Sequential(nnx.Linear(6, 5, rngs=nnx.Rngs(0)))
    >>> {path: w.shape for path, w in nn.matrices(model).items()}
    {'layers.0': (5, 6)}
    """
    found: dict[Path, jax.Array] = {}
    named = _with_matrix(model) if paths is None else ((path, layer_at(model, path)) for path in paths)
    for path, part in named:
        matrices = _matrices(part)
        if isinstance(matrices, str):
            raise ValueError(f"path={path!r} leads to {matrices}, expected something with a matrix")
        name = path if isinstance(path, str) else tuple(path)
        if matrices.ndim == 2:
            found[name] = matrices
        else:
            members = matrices.reshape(-1, *matrices.shape[-2:])
            label = ".".join(map(str, names_of(path)))
            found |= {f"{label}[{index}]": member for index, member in enumerate(members)}
    return found


def updates(start: Matrices, now: Matrices, /) -> dict[Path, LowRank]:
    """Singular value decompositions of `W(t) − W(0)`, from two calls of `matrices`.

    Raises
    ------
    ValueError
        If a path of the first is not in the second, a matrix has another shape now, or the difference is
        not finite.

    Examples
    --------
    >>> import numpy as np
    >>> from flax import nnx
    >>> from lowdim_jax import nn
    >>> model = nnx.Sequential(nnx.Linear(3, 2, rngs=nnx.Rngs(0)))
    >>> start = nn.matrices(model)
    >>> model.layers[0].kernel[...] += 1.0
    >>> (update,) = nn.updates(start, nn.matrices(model)).values()
    >>> np.asarray(update.singular_values).round(3)  # √6, and nothing else
    array([2.449, 0.   ], dtype=float32)
    """
    found = {}
    for path, before in start.items():
        if path not in now:
            raise ValueError(f"path={path!r} has a matrix at the start and none now")
        if now[path].shape != before.shape:
            raise ValueError(f"the matrix at {path!r} had shape {before.shape} and has {now[path].shape} now")
        change = now[path] - before
        check_finite(f"the update at {path!r}", change)
        found[path] = svd(change)
    return found


def top_energy(update: LowRank, k: int, /) -> Float[Array, ""]:
    """Fraction of `‖W(t) − W(0)‖_F²` in the `k` largest components; NaN where there is no update.

    Examples
    --------
    >>> import jax.numpy as jnp, lowdim_jax as ld
    >>> round(float(top_energy(ld.linalg.svd(jnp.diag(jnp.array([3.0, 1.0]))), 1)), 4)  # 9 of 10
    0.9
    """
    energies = update.singular_values**2
    return jnp.sum(energies[:k]) / jnp.sum(energies)


def turn(earlier: LowRank, later: LowRank, k: int, /) -> Float[Array, " k"]:
    """How far the leading subspaces of an update turned: `k` principal angles, radians, descending.

    Each is the larger of the angles between left and between right singular subspaces.

    Examples
    --------
    >>> import jax.numpy as jnp, lowdim_jax as ld
    >>> first = ld.linalg.svd(jnp.diag(jnp.array([1.0, 0.0])))
    >>> second = ld.linalg.svd(jnp.diag(jnp.array([0.0, 1.0])))
    >>> turn(first, second, 1).round(4)  # π/2
    Array([1.5708], dtype=float32)
    """
    a, b = earlier.truncate(k), later.truncate(k)
    return jnp.maximum(subspace_angles(a.left, b.left), subspace_angles(a.right, b.right))


def energy_within(update: LowRank, subspace: LowRank, k: int, /) -> Float[Array, ""]:
    """Fraction of an update's squared norm inside the leading subspaces of another.

    `‖UᵀΔW V‖_F² / ‖ΔW‖_F²` with the `k` leading left and right singular vectors `U, V` of
    `subspace`. Unlike the angles of `turn`, it weighs every direction by what the update has there.

    Examples
    --------
    >>> import jax.numpy as jnp, lowdim_jax as ld
    >>> update = ld.linalg.svd(jnp.diag(jnp.array([3.0, 1.0])))
    >>> other = ld.linalg.svd(jnp.diag(jnp.array([1.0, 0.0])))
    >>> round(float(energy_within(update, other, 1)), 4)
    0.9
    """
    fixed = subspace.truncate(k)
    core = (fixed.left.T @ update.left) * update.singular_values[None, :] @ (update.right.T @ fixed.right)
    return jnp.sum(core**2) / jnp.sum(update.singular_values**2)


def _with_matrix(model: nnx.Module) -> Iterator[tuple[str, Any]]:
    factored = [names for names, layer in nnx.iter_modules(model) if isinstance(layer, Adapted | Factored)]
    for names, layer in nnx.iter_modules(model):
        path = ".".join(map(str, names))
        if any(names[: len(outer)] == outer for outer in factored):
            if names in factored:
                yield path, layer
        elif isinstance(layer, DeepLinear):
            for index, factor in enumerate(layer.factors):
                yield f"{path}.factors.{index}".lstrip("."), factor
        elif isinstance(layer, tuple(KINDS)) and not isinstance(_matrices(layer), str):
            yield path, layer


def _matrices(part) -> jax.Array | str:
    """Matrices `(…, outputs, inputs)` of a layer or parameter, or why it has none."""
    if isinstance(part, DeepLinear):
        return jnp.swapaxes(part.kernel, -1, -2)
    if isinstance(part, Adapted | Factored):
        return _matrices(part.merge())
    if isinstance(part, nnx.Variable):
        return part.reshape(-1, part.shape[-1]) if part.ndim >= 2 else f"a parameter of shape {part.shape}"
    try:
        kernel = kernel_of(part)
    except Unsupported as error:
        return str(error)
    return jnp.swapaxes(kernel.matrices(getattr(part, kernel.name)[...]), -1, -2)
