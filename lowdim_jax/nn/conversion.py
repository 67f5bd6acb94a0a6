"""From dense layers to compressed ones, one by one or a whole model, and what is lost by it."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lowdim_jax._host import as_array, is_traced, on_host
from lowdim_jax.initialization import check_scale
from lowdim_jax.linalg import check_finite
from lowdim_jax.networks import check_depth, compressed_widths
from lowdim_jax.nn.deltas import (
    Delta,
    chosen_ranks,
    delta_of,
    energies_of,
    random_directions,
    start_directions,
    start_factors,
    surrogates_of,
    targets,
)
from lowdim_jax.nn.kernels import Kernel, Unsupported, kernel_of, output_letters
from lowdim_jax.nn.layers import (
    OPTIONS,
    CompressedLinear,
    DeepLinear,
    at_least_single,
    metadata_of,
    metadata_of_factor,
    variance_scale,
)
from lowdim_jax.nn.metric import output_components
from lowdim_jax.nn.paths import Pattern, replace_everywhere
from lowdim_jax.nn.ranks import check_rank_choice
from lowdim_jax.nn.report import AdaptedLayer, Report

CHANGED = ("use_bias", "out_features", "kernel_shape", "einsum_str", "bias_shape", "features")
"""What a layer of few outputs says of itself that the whole one does not."""


class Factored(nnx.Module):
    """A layer whose kernel is a product of factors, with the call of the layer. Made by `compress`.

    Attributes
    ----------
    delta
        The factors.
    bias
        The layer's, or None.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> from lowdim_jax import nn
    >>> model = nnx.Sequential(nnx.Conv(6, 8, (3, 3), rngs=nnx.Rngs(0)))
    >>> _ = nn.compress(model, "layers.0", rank=2)
    >>> type(model.layers[0]).__name__, model(jnp.ones((1, 5, 5, 6))).shape
    ('Factored', (1, 5, 5, 8))
    """

    def __init__(self, layer: Any, kernel: Kernel, delta: Delta):
        self.delta = delta
        self.bias = nnx.data(getattr(layer, "bias", None))
        self.axes = kernel
        self.letters = output_letters(layer, kernel)
        self.changed = tuple((name, getattr(layer, name)) for name in CHANGED if hasattr(layer, name))

    @property
    def rank(self) -> int:
        """`r̂`, width between the factors."""
        return getattr(self.delta.inward, self.axes.name).shape[-1]

    @property
    def depth(self) -> int:
        """`L`, number of factors."""
        return 2 + len(self.delta.middle)

    def __call__(self, inputs: jax.Array, out_sharding: Any = None) -> jax.Array:
        """Apply the layer."""
        y = self.delta(inputs, out_sharding)
        if self.bias is None:
            return y
        bias = self.bias[...].astype(y.dtype)
        if self.letters is None:
            return y + bias.reshape((1,) * (y.ndim - bias.ndim) + bias.shape)
        result, own = self.letters
        result = result.replace("...", "." * (y.ndim - len(result.replace("...", ""))))
        sizes = zip(result, y.shape, strict=True)
        return y + bias.reshape([size if letter in own else 1 for letter, size in sizes])

    def attend(self, query: jax.Array, out_sharding: Any = None) -> jax.Array:
        """Products with all embeddings, of an `nnx.Embed`."""
        return self.delta.attend(query, out_sharding)

    def merge(self) -> Any:
        """The layer with its kernel the product: same kind and options."""
        outward = self.delta.outward
        kernel = self.axes._replace(stack=outward.shape[: outward.ndim - 1 - len(self.axes.outputs)])
        layer: Any = nnx.clone(self.delta.inward, variables=False)
        for name, value in self.changed:
            setattr(layer, name, value)
        if not isinstance(layer, nnx.Embed):
            layer.bias = nnx.data(None if self.bias is None else nnx.clone(self.bias))
        product = kernel.kernel(self.delta.matrices(kernel))
        setattr(layer, kernel.name, type(outward)(product.astype(outward.dtype)))
        return layer


def compress(
    model: nnx.Module,
    pattern: Pattern,
    /,
    *,
    rank: int | Mapping[str, int] | None = None,
    depth: int = 3,
    start: Literal["cut", "surrogate", "random"] = "cut",
    batch: tuple = (),
    loss: Callable | None = None,
    scale: float | None = None,
    energy: float = 0.9,
    budget: int | None = None,
    rngs: nnx.Rngs | None = None,
) -> Report:
    """Replace every matching layer by a compressed one, in place.

    An `nnx.Linear` becomes a `CompressedLinear`, an `nnx.LinearGeneral`, `Einsum`, `Conv` or `Embed` a
    `Factored`. Bias and options are kept; `merge` makes plain layers of them again.

    Parameters
    ----------
    model, pattern
        As for `adapt`.
    rank
        `r̂`, cut to the smaller side of a layer; or one for each path; or None: the smallest that keeps
        `energy`, or the best within a `budget`.
    depth
        `L ≥ 2`, number of factors.
    start
        `"cut"`: the nearest matrix of that rank to what is there, balanced, for a trained model.
        `"surrogate"`: `ε` times the leading singular vectors of the loss's gradient at the model's
        weights, all from one gradient, or `"random"` ones, for training from scratch.
    batch
        With `"cut"`: nearest is meant for the layer's outputs on this batch, `min ‖(W − Ŵ) X‖_F`, as
        `model(*batch)` shows the layer its inputs `X`; without a batch it is `‖W − Ŵ‖_F`. With
        `"surrogate"`: what the loss takes.
    loss
        `loss(model, *batch)`, for the surrogate.
    scale
        `ε`, for a start that is not a cut. None keeps the size of activations: `ε = (d_out / r̂)^{1/2L}`
        for random directions, which see `r̂/d_in` of the inputs, and 1 for those of a surrogate, which
        see nearly all of them.
    energy, budget
        As for `adapt`, of `W`, or of `W X` where a batch is given.
    rngs
        For a random start, of all layers or of those whose gradient is 0 on this batch.

    Returns
    -------
    What was matched, and the share of energy that each layer kept.

    Raises
    ------
    ValueError
        If nothing matches, a setting is out of range, or a kernel or gradient is not finite.

    Examples
    --------
    >>> from flax import nnx
    >>> from lowdim_jax import nn
    >>> model = nnx.Sequential(nnx.Linear(6, 5, rngs=nnx.Rngs(0)))
    >>> print(nn.compress(model, "layers.0", rank=5))
    layers.0: Linear 5×6, rank 5, 80 parameters, energy 1.000
    1 layer, 80 parameters
    """
    check_depth(depth, least=2)
    if start not in ("cut", "surrogate", "random"):
        raise ValueError(f"start={start!r}, expected 'cut', 'surrogate' or 'random'")
    if start == "surrogate" and not callable(loss):
        raise ValueError(f"loss={loss!r}, expected loss(model, *batch) for the start from its gradient")
    if start == "random" and not isinstance(rngs, nnx.Rngs):
        raise ValueError(f"rngs={rngs!r}, expected an nnx.Rngs for the random start")
    if scale is not None:
        check_scale(scale)
    if isinstance(rank, str):
        raise ValueError(f"rank={rank!r}, expected an integer, one for each path, or None")
    check_rank_choice(rank, energy, budget, chosen_from_surrogate=start != "random")
    found, skipped = targets(model, pattern, (DeepLinear, Factored, Delta))
    kinds = {"cut": _cuts, "surrogate": _surrogate_starts, "random": _random_starts}
    energies, factors_of = kinds[start](model, found, loss, batch, rngs)
    ranks = chosen_ranks(found, rank, energies, depth=depth, energy=energy, budget=budget)
    lines, new = [], {}
    for index, (path, (layer, kernel, _)) in enumerate(found.items()):
        d_out, d_in = kernel.shape
        r = ranks[path]
        usual = 1.0 if start == "surrogate" else variance_scale((d_in, *[r] * (depth - 1), d_out))
        epsilon = usual if scale is None else scale
        factors, kept = factors_of(index, kernel, rank=r, depth=depth, scale=epsilon)
        new[id(layer)] = _with_factors(layer, kernel, factors)
        size, copies = sum(factor.size for factor in factors), math.prod(kernel.stack)
        lines.append(AdaptedLayer(path, type(layer).__name__, kernel.shape, copies, r, size, kept))
    replace_everywhere(model, new)
    return Report(tuple(lines), skipped)


def _cuts(model, found, loss, batch, rngs) -> tuple[Callable, Callable]:
    """Energies of the layers' matrices, and their cut factors."""
    matrices = [_weights(path, layer, kernel) for path, (layer, kernel, _) in found.items()]
    parts = output_components(model, found, matrices, batch)

    def factors_of(index, kernel, *, rank, depth, scale):
        values, left = parts[index]
        near = left[..., :rank] @ (left[..., :rank].swapaxes(-1, -2) @ matrices[index])
        factors = [factor.swapaxes(-1, -2) for factor in cut(near, rank, depth)]
        total = values.sum()
        kept = values[:, :rank].sum() / total
        return factors, kept if is_traced(kept) else float(kept) if total > 0 else math.nan

    return lambda: [np.asarray(values).sum(axis=0) for values, _ in parts], factors_of


def _surrogate_starts(model, found, loss, batch, rngs) -> tuple[Callable, Callable]:
    surrogates = surrogates_of(model, found, loss, batch, some_vanish=rngs is not None)

    def factors_of(index, kernel, *, rank, depth, scale):
        left, right, kept = start_directions(surrogates[index], kernel, rank, rngs)
        return start_factors(left, right, depth=depth, scale=scale, dtype=left.dtype), kept

    return lambda: map(energies_of, surrogates), factors_of


def _random_starts(model, found, loss, batch, rngs) -> tuple[Callable, Callable]:
    def factors_of(index, kernel, *, rank, depth, scale):
        left, right = random_directions(rngs, kernel, rank)
        return start_factors(left, right, depth=depth, scale=scale, dtype=left.dtype), math.nan

    return list, factors_of


def _weights(path: str, layer: Any, kernel: Kernel) -> Any:
    """The layer's matrices `(copies, d_out, d_in)`."""
    weights = getattr(layer, kernel.name)[...]
    check_finite(f"the kernel of the layer at {path!r}", weights)
    d_out, d_in = kernel.shape
    matrices = kernel.matrices(weights.astype(at_least_single(weights.dtype))).reshape(-1, d_in, d_out)
    return on_host(matrices.swapaxes(-1, -2))


def _with_factors(layer: Any, kernel: Kernel, factors: Sequence[jax.Array]) -> CompressedLinear | Factored:
    """A layer of these factors `(copies, …)`, each acting on rows from the right."""
    dtype = getattr(layer, kernel.name).dtype
    if isinstance(layer, nnx.Linear):
        parts = [as_array(factor.swapaxes(-1, -2)) for factor in factors]
        return _compressed(layer, [part.reshape(*kernel.stack, *part.shape[1:]) for part in parts])
    typed = [as_array(factor.astype(dtype)) for factor in factors]
    return Factored(layer, kernel, delta_of(layer, kernel, typed, type(getattr(layer, kernel.name))))


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
    matrix = matrix_of(layer)
    compressed_widths(layer.out_features, layer.in_features, depth=depth, rank=rank)
    check_finite("the layer's kernel", matrix)
    return _compressed(layer, cut(matrix.astype(at_least_single(layer.param_dtype)), rank, depth))


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


def _compressed(layer: nnx.Linear | DeepLinear, factors: Sequence[jax.Array]) -> CompressedLinear:
    """Compressed layer of factors `(…, d_l, d_{l−1})`, with another layer's bias and options."""
    depth = len(factors)
    compressed = CompressedLinear(
        layer.in_features,
        layer.out_features,
        rank=factors[0].shape[-2],
        depth=depth,
        rngs=nnx.Rngs(0),
        **{name: getattr(layer, name) for name in OPTIONS},
    )
    metadata = {} if isinstance(layer, DeepLinear) else metadata_of(layer.kernel)
    kind = type(layer.factors[0] if isinstance(layer, DeepLinear) else layer.kernel)
    for index, factor in enumerate(factors):
        placed = metadata_of_factor(metadata, index, depth)
        compressed.factors[index] = kind(factor.astype(layer.param_dtype), eager_sharding=False, **placed)
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
