"""The inputs that a batch shows each layer of a model, as a metric for cutting its weights."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lowdim_jax._host import is_traced
from lowdim_jax.linalg import check_finite
from lowdim_jax.nn.kernels import Kernel, narrowed
from lowdim_jax.nn.paths import part_at, replace_everywhere


class Moment(nnx.Variable):
    """Type of the sums `Σ x xᵀ` over a layer's inputs."""


class Watched(nnx.Module):
    """A layer that sums `x xᵀ` over the vectors that its kernel is applied to.

    Those vectors (the patches of a convolution, the axes that an einsum sums over) are the outputs of
    the same layer with the identity as its kernel. Of an embedding they are unit vectors, and counts
    are enough.
    """

    def __init__(self, base: Any, kernel: Kernel):
        self.base = base
        d_in, counts = kernel.shape[1], isinstance(base, nnx.Embed)
        self.moment = Moment(jnp.zeros((*kernel.stack, d_in) if counts else (*kernel.stack, d_in, d_in)))
        eye = jnp.broadcast_to(jnp.eye(d_in, dtype=base.param_dtype), (*kernel.stack, d_in, d_in))
        shaped = Moment(eye.reshape(*kernel.stack, *kernel.input_sizes, d_in))
        self.probe = nnx.data(None if counts else narrowed(base, kernel, shaped))

    def __call__(self, inputs: jax.Array, *args: Any, **options: Any) -> jax.Array:
        """What the layer gives."""
        if self.probe is None:
            self.moment[...] = self.moment[...].at[inputs.reshape(-1)].add(1)
        else:
            rows = self.probe(inputs)
            rows = rows.reshape(-1, rows.shape[-1]).astype(jnp.float32)
            self.moment[...] = self.moment[...] + jnp.matmul(rows.T, rows, precision="highest")
        return self.base(inputs, *args, **options)

    def __getattr__(self, name: str) -> Any:
        base = vars(self).get("base")
        if base is None or name.startswith("_"):
            raise AttributeError(name)
        return getattr(base, name)


def output_components(
    model: nnx.Module, found: Mapping[str, Any], matrices: Sequence[Any], batch: tuple, /
) -> list[tuple[Any, Any]]:
    """Eigenvalues `(copies, d_out)`, descending, and eigenvectors of `W S Wᵀ` of each layer.

    With `S = Σ x xᵀ` over the layer's inputs on a batch, or the identity where there is no batch. Of all
    matrices of rank `r`, `U_r U_rᵀ W` with the `r` leading vectors is nearest to `W` in `Σ ‖(W − Ŵ) x‖²`,
    and the eigenvalues left out sum to the distance (Eckart and Young for `W S^{1/2}`).

    Raises
    ------
    ValueError
        If the batch is no tuple or list, or shows a layer no inputs or ones that are not finite.
    """
    if not isinstance(batch, tuple | list):
        raise ValueError(f"batch is of type {type(batch).__name__}, expected a tuple of what the model takes")
    moments = _moments(model, found, batch) if batch else [None] * len(matrices)
    parts = []
    for matrix, moment in zip(matrices, moments, strict=True):
        xp: Any = jnp if is_traced(matrix, moment) else np
        exact = np.float64 if xp is np else matrix.dtype
        w = xp.asarray(matrix, exact)
        if moment is None:
            gram = w @ w.swapaxes(-1, -2)
        else:
            s = xp.asarray(moment, exact)  # of an embedding, its diagonal
            gram = (w * s[:, None, :] if s.ndim == 2 else w @ s) @ w.swapaxes(-1, -2)
        values, vectors = xp.linalg.eigh(gram)
        parts.append((xp.maximum(values[..., ::-1], 0), vectors[..., ::-1].astype(matrix.dtype)))
    return parts


def _moments(model, found, batch) -> list[jax.Array]:
    watching = nnx.clone(model)
    new = {}
    for _, kernel, names in found.values():
        layer = part_at(watching, names)
        new[id(layer)] = Watched(layer, kernel)
    replace_everywhere(watching, new)
    watching(*batch)  # type: ignore[operator]
    moments = []
    for path, (_, kernel, names) in found.items():
        moment = part_at(watching, names).moment[...]
        moments.append(moment.reshape(-1, *moment.shape[len(kernel.stack) :]))
        _check_seen(path, moments[-1])
    return moments


def _check_seen(path: str, moment: jax.Array) -> None:
    if is_traced(moment):
        return
    check_finite(f"the second moment of the inputs of the layer at {path!r}", moment)
    seen = [bool(member.any()) for member in np.asarray(moment)]
    if not all(seen):
        member = f" in member {seen.index(False)} of its stack" if len(seen) > 1 else ""
        raise ValueError(
            f"the layer at {path!r} gets no inputs other than 0{member} when model(*batch) is called, so "
            "nothing tells which of its directions to keep"
        )
