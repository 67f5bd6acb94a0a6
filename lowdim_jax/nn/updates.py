"""Weight updates `W(t) − W(0)` of the layers of any nnx model: their spectrum and their subspace."""

import math
from collections.abc import Iterable, Mapping

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from lowdim_jax.linalg import LowRank, subspace_angles, svd
from lowdim_jax.nn.layers import DeepLinear
from lowdim_jax.nn.paths import Path, layer_at

Matrices = Mapping[Path, jax.Array]


def matrices(model: nnx.Module, paths: Iterable[Path] | None = None, /) -> dict[Path, jax.Array]:
    """Weight matrices of a model as they are now, by path.

    A layer's kernel becomes a matrix `(outputs, inputs)`: a convolution's inputs are its channels
    times its window. A `DeepLinear` gives its end-to-end matrix; `"….factors.0"` is the path of its
    first factor, and any parameter of two or more axes can be named so (its last axis are columns).

    Parameters
    ----------
    model
        Any.
    paths
        Of layers or parameters; by default every layer that has a kernel, and every factor.

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
    paths = _matrix_paths(model) if paths is None else tuple(paths)
    return {path: _matrix(layer_at(model, path), path) for path in paths}


def updates(start: Matrices, now: Matrices, /) -> dict[Path, LowRank]:
    """Singular value decompositions of `W(t) − W(0)`, from two calls of `matrices`.

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
    return {path: svd(now[path] - start[path]) for path in start}


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


def _matrix_paths(model: nnx.Module) -> list[Path]:
    paths: list[Path] = []
    for path, layer in nnx.iter_modules(model):
        names = ".".join(map(str, path))
        if isinstance(layer, DeepLinear):
            paths += [f"{names}.factors.{index}".lstrip(".") for index in range(len(layer.factors))]
        elif hasattr(layer, "kernel"):
            paths.append(names)
    return paths


def _matrix(part, path: Path) -> jax.Array:
    if isinstance(part, DeepLinear):
        return part.merge().kernel[...].T
    if isinstance(part, nnx.Variable) and part.ndim >= 2:
        return part.reshape(-1, part.shape[-1])
    if hasattr(part, "kernel"):
        outputs = part.out_features
        columns = outputs if isinstance(outputs, int) else math.prod(outputs)
        return part.kernel.reshape(-1, columns).T
    raise ValueError(f"path={path!r} leads to a {type(part).__name__}, expected something with a matrix")
