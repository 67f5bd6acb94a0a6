"""Adapters: a frozen layer plus a trained low-rank delta of two or three factors, over a whole model.

`adapt` puts them in, `merge` takes them out. docs/adapt-a-model.md shows it from start to end.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lowdim_jax._host import is_traced
from lowdim_jax.initialization import check_scale
from lowdim_jax.networks import check_depth
from lowdim_jax.nn.conversion import Factored
from lowdim_jax.nn.deltas import (
    Delta,
    above_noise,
    chosen_ranks,
    delta_of,
    energies_of,
    random_directions,
    start_directions,
    start_factors,
    surrogates_of,
    targets,
)
from lowdim_jax.nn.kernels import kernel_of
from lowdim_jax.nn.layers import DeepLinear
from lowdim_jax.nn.paths import Pattern, replace_everywhere
from lowdim_jax.nn.ranks import check_rank_choice
from lowdim_jax.nn.report import AdaptedLayer, Report


class DeltaParam(nnx.Param):
    """Type of an adapter's factors: `nnx.Optimizer(model, tx, wrt=nn.DeltaParam)` trains them alone.

    Examples
    --------
    >>> from flax import nnx
    >>> from lowdim_jax import nn
    >>> import optax
    >>> model = nnx.Sequential(nnx.Linear(6, 5, rngs=nnx.Rngs(0)))
    >>> _ = nn.adapt(model, "layers.0", rank=2, start="random", rngs=nnx.Rngs(1))
    >>> optimizer = nnx.Optimizer(model, optax.sgd(0.1), wrt=nn.DeltaParam)  # the layer itself stays
    >>> len(nnx.to_flat_state(nnx.state(model, nn.DeltaParam)))
    2
    """


class DeltaStart(nnx.Variable):
    """Type of the factors that an adapter started from, where it subtracts them; never trained.

    Examples
    --------
    >>> from flax import nnx
    >>> from lowdim_jax import nn
    >>> model = nnx.Sequential(nnx.Linear(6, 5, rngs=nnx.Rngs(0)))
    >>> _ = nn.adapt(model, "layers.0", rank=2, start="random", zero="offset", rngs=nnx.Rngs(1))
    >>> len(nnx.to_flat_state(nnx.state(model, nn.DeltaStart)))
    2
    """


class Adapted(nnx.Module):
    """A layer plus `alpha` times its delta, with the call of the layer: `y = base(x) + α Δ(x)`.

    Made by `adapt`. What else the layer has (`in_features`, …) is found here, too; its `kernel` (or
    `embedding`) is the sum.

    Attributes
    ----------
    base
        The layer as it was.
    delta
        The trained factors, all of them `DeltaParam`.
    offset
        The factors at the start, whose product is subtracted, or None.
    alpha
        `α`, static.

    Examples
    --------
    >>> from flax import nnx
    >>> from lowdim_jax import nn
    >>> model = nnx.Sequential(nnx.Linear(6, 5, rngs=nnx.Rngs(0)))
    >>> _ = nn.adapt(model, "layers.0", rank=2, start="random", rngs=nnx.Rngs(1))
    >>> type(model.layers[0]).__name__, model.layers[0].rank
    ('Adapted', 2)
    """

    def __init__(self, base: nnx.Module, delta: Delta, offset: Delta | None, *, alpha: float):
        self.base, self.delta, self.alpha = base, delta, alpha
        self.offset = nnx.data(offset)

    @property
    def rank(self) -> int:
        """`r`, width between the factors."""
        return getattr(self.delta.inward, kernel_of(self.base).name).shape[-1]

    @property
    def depth(self) -> int:
        """Number of factors."""
        return 2 + len(self.delta.middle)

    def __call__(self, inputs: jax.Array, out_sharding: Any = None) -> jax.Array:
        """Apply the layer and its delta."""
        y = self.base(inputs, out_sharding=out_sharding)  # type: ignore[operator]
        return self._added(y, lambda delta: delta(inputs, out_sharding=out_sharding))

    def attend(self, query: jax.Array, out_sharding: Any = None) -> jax.Array:
        """Products with all embeddings, of an adapted `nnx.Embed`."""
        y = self.base.attend(query, out_sharding=out_sharding)  # type: ignore[attr-defined]
        return self._added(y, lambda delta: delta.attend(query, out_sharding))

    def _added(self, y, apply: Callable[[Delta], jax.Array]):
        added = apply(self.delta)
        if self.offset is not None:
            added = added - apply(self.offset)
        return y + jnp.asarray(self.alpha, y.dtype) * added.astype(y.dtype)

    def merge(self) -> Any:
        """The layer alone, its kernel the sum: same outputs up to rounding, same kind and options."""
        layer = nnx.clone(self.base)
        kernel = kernel_of(layer)
        weights = getattr(layer, kernel.name)
        added = self.delta.matrices(kernel)
        if self.offset is not None:
            added = added - self.offset.matrices(kernel)
        total = weights[...].astype(added.dtype) + jnp.asarray(self.alpha, added.dtype) * kernel.kernel(added)
        weights[...] = total.astype(weights.dtype)
        return layer

    def __getattr__(self, name: str) -> Any:
        base = vars(self).get("base")
        if base is None or name.startswith("_"):
            raise AttributeError(name)
        if name in ("kernel", "embedding") and hasattr(base, name):
            return getattr(self.merge(), name)[...]
        return getattr(base, name)


def adapt(
    model: nnx.Module,
    pattern: Pattern,
    /,
    *,
    rank: int | Mapping[str, int] | Literal["noise"] | None = 8,
    depth: int = 2,
    start: Literal["surrogate", "random"] = "surrogate",
    loss: Callable | None = None,
    batch: tuple = (),
    zero: Literal["last", "offset"] | None = "last",
    alpha: float = 1.0,
    scale: float = 1.0,
    energy: float = 0.9,
    budget: int | None = None,
    rngs: nnx.Rngs | None = None,
) -> Report:
    """Give every matching layer a trainable low-rank delta, in place.

    Layer `W` becomes `W + α W_L ⋯ W_1` with factors of type `DeltaParam`: two make a LoRA, three a
    deep one. From `start="surrogate"` the outer factors are `ε` times the leading singular vectors of
    the layer's surrogate `−∂ℓ/∂W` at the model's weights (docs/theory.md 1.3), all surrogates from one
    gradient of the whole model; the middle ones are `ε I`.

    Parameters
    ----------
    model
        Holds layers of the kinds `nnx.Linear`, `LinearGeneral`, `Einsum`, `Conv` and `Embed`. A stack
        made by `nnx.vmap` has one delta for each member, a layer used in several places has one.
    pattern
        Regular expression that the whole path must fit, or a function of path and layer.
    rank
        `r`, cut to the smaller side of a layer; or one for each path, as in `Report.ranks`; or None:
        chosen a layer, see `energy` and `budget`; or `"noise"`: the number of components that the
        surrogate has above the noise of its batch, `σ_i > ‖(S_1 − S_2)/2‖₂` with the surrogates `S_1,
        S_2` of the batch's two halves, whose mean is then the surrogate. For a loss that is a mean over
        the first axis of every array of the batch.
    depth
        Number of factors, at least 2.
    start
        `"random"` takes random orthonormal directions instead, and needs `rngs`.
    loss, batch
        `loss(model, *batch)`, a scalar, for the surrogate.
    zero
        How the delta is exactly zero at the start: `"last"` starts the last factor at zero, `"offset"`
        keeps the factors of the start and subtracts their product, None does not: it is then `α ε^L`
        times a partial isometry.
    alpha
        `α`, finite and not zero.
    scale
        `ε`, positive. Adam, whose steps do not depend on the size of what they change, turns the
        directions of a small one sooner.
    energy
        With `rank=None`: the smallest rank that holds this share of the surrogate's `Σ σ_i²`.
    budget
        With `rank=None`: number of parameters in all, spent where a component's `σ_i²`, the first-order
        decrease of the loss that it brings, is largest for its parameters. `energy` plays no part.
    rngs
        For a random start, of all layers or of those whose gradient is 0 on this batch.

    Returns
    -------
    What was matched and what it got; `print` it.

    Raises
    ------
    ValueError
        If nothing matches, a setting is out of range, or a gradient is not finite or 0; given `rngs`, if
        all are 0.

    Examples
    --------
    >>> model = nnx.Sequential(nnx.Linear(6, 5, rngs=nnx.Rngs(0)))
    >>> print(adapt(model, "layers.0", rank=2, start="random", rngs=nnx.Rngs(1)))
    layers.0: Linear 5×6, rank 2, 22 parameters
    1 layer, 22 parameters
    """
    _check(depth, start, zero, scale, alpha, loss, rngs)
    check_rank_choice(rank, energy, budget, chosen_from_surrogate=start == "surrogate")
    found, skipped = targets(model, pattern, (Adapted, Delta))
    surrogates = None
    if start == "surrogate" and loss is not None:
        if isinstance(rank, str):
            surrogates, rank = above_noise(model, found, loss, batch, some_vanish=rngs is not None)
        else:
            surrogates = surrogates_of(model, found, loss, batch, some_vanish=rngs is not None)
    rule = {"depth": depth, "energy": energy, "budget": budget}
    ranks = chosen_ranks(found, rank, lambda: map(energies_of, surrogates or ()), **rule)
    lines, new = [], {}
    for index, (path, (layer, kernel, _)) in enumerate(found.items()):
        r = ranks[path]
        if surrogates is None:
            left, right, kept = *random_directions(rngs, kernel, r), math.nan
        else:
            left, right, kept = start_directions(surrogates[index], kernel, r, rngs)
        dtype = getattr(layer, kernel.name).dtype
        factors = start_factors(left, right, depth=depth, scale=scale, dtype=dtype)
        offset = delta_of(layer, kernel, factors, DeltaStart) if zero == "offset" else None
        if zero == "last":
            factors = [*factors[:-1], 0 * factors[-1]]
        delta = delta_of(layer, kernel, factors, DeltaParam)
        new[id(layer)] = Adapted(layer, delta, offset, alpha=float(alpha))
        size, copies = sum(factor.size for factor in factors), math.prod(kernel.stack)
        lines.append(AdaptedLayer(path, type(layer).__name__, kernel.shape, copies, r, size, kept))
    replace_everywhere(model, new)
    return Report(tuple(lines), skipped)


def merge(model: nnx.Module, /) -> int:
    """Turn every adapted, compressed or deep linear layer back into a plain one, in place.

    Returns
    -------
    Number of layers merged. The outputs change by rounding only.

    Raises
    ------
    ValueError
        If the model has no such layer.

    Examples
    --------
    >>> from flax import nnx
    >>> from lowdim_jax import nn
    >>> model = nnx.Sequential(nnx.Linear(6, 5, rngs=nnx.Rngs(0)))
    >>> _ = nn.adapt(model, "layers.0", rank=2, start="random", rngs=nnx.Rngs(1))
    >>> nn.merge(model), type(model.layers[0]).__name__
    (1, 'Linear')
    """
    kinds = Adapted, Factored, DeepLinear
    found = [layer for _, layer in nnx.iter_modules(model) if isinstance(layer, kinds)]
    name = type(model).__name__
    if not found:
        raise ValueError(f"the {name} has no adapted, compressed or deep linear layer to merge")
    if any(layer is model for layer in found):
        raise ValueError(f"the model is itself a {name}: its method merge() returns the plain layer")
    replace_everywhere(model, {id(layer): layer.merge() for layer in found})
    return len(found)


def _check(depth, start, zero, scale, alpha, loss, rngs) -> None:
    check_depth(depth, least=2)
    check_scale(scale)
    real = isinstance(alpha, int | float | np.number | jax.Array) and not isinstance(alpha, bool)
    if is_traced(alpha) or not real or not math.isfinite(alpha) or alpha == 0:
        raise ValueError(f"alpha={alpha!r}, expected a finite number other than 0")
    if start not in ("surrogate", "random"):
        raise ValueError(f"start={start!r}, expected 'surrogate' or 'random'")
    if zero not in ("last", "offset", None):
        raise ValueError(f"zero={zero!r}, expected 'last', 'offset' or None")
    if start == "surrogate" and not callable(loss):
        raise ValueError(f"loss={loss!r}, expected loss(model, *batch) for the start from its gradient")
    if start == "random" and not isinstance(rngs, nnx.Rngs):
        raise ValueError(f"rngs={rngs!r}, expected an nnx.Rngs for the random start")


