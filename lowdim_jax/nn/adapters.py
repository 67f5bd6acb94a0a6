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
from jax.sharding import NamedSharding, PartitionSpec

from lowdim_jax._host import as_array, is_traced, on_host
from lowdim_jax.initialization import check_scale
from lowdim_jax.linalg import svd
from lowdim_jax.networks import check_depth
from lowdim_jax.nn.gradients import check_gradient, gradients, leading_components
from lowdim_jax.nn.kernels import KINDS, Kernel, Unsupported, kernel_of, narrowed, widening_equation
from lowdim_jax.nn.layers import DeepLinear, at_least_single
from lowdim_jax.nn.paths import Pattern, matching, names_of, replace_everywhere
from lowdim_jax.nn.ranks import check_rank_choice, ranks_within
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


class Delta(nnx.Module):
    """Product of factors in place of a layer: the layer into `rank` dimensions, then matrices.

    Attributes
    ----------
    inward
        A layer of the base's kind and options with `rank` outputs and no bias.
    middle
        `(rank, rank)` each.
    outward
        `(rank, *outputs)`.

    Examples
    --------
    >>> from flax import nnx
    >>> from lowdim_jax import nn
    >>> model = nnx.Sequential(nnx.Linear(6, 5, rngs=nnx.Rngs(0)))
    >>> _ = nn.adapt(model, "layers.0", rank=2, start="random", rngs=nnx.Rngs(1))
    >>> type(model.layers[0].delta).__name__
    'Delta'
    """

    def __init__(self, inward: nnx.Module, middle: list, outward: nnx.Variable, equation: str | None):
        self.inward, self.middle, self.outward = inward, nnx.List(middle), outward
        self.equation = equation

    def __call__(self, inputs: jax.Array, out_sharding: Any = None) -> jax.Array:
        """What the layer adds, before `alpha`."""
        return self.widen(self.inward(inputs), out_sharding)  # type: ignore[operator]

    def widen(self, x: jax.Array, out_sharding: Any = None) -> jax.Array:
        """From `rank` dimensions to the layer's outputs."""
        precision = getattr(self.inward, "precision", None)
        for factor in self.middle:
            x = jnp.matmul(x, factor[...].astype(x.dtype), precision=precision)
        last = self.outward[...].astype(x.dtype)
        if self.equation is not None:
            return jnp.einsum(self.equation, x, last, precision=precision, out_sharding=out_sharding)
        axes = (((x.ndim - 1,), (0,)), ((), ()))
        return jax.lax.dot_general(x, last, axes, precision=precision, out_sharding=out_sharding)

    def matrices(self, kernel: Kernel, /) -> jax.Array:
        """The product as matrices `(…, d_in, d_out)`."""
        d_out, d_in = kernel.shape
        exact = at_least_single(self.outward.dtype)
        parts = getattr(self.inward, kernel.name), *self.middle, self.outward
        first, *middle, last = (part[...].astype(exact) for part in parts)
        product = first.reshape(*kernel.stack, d_in, -1)
        with jax.default_matmul_precision("highest"):
            for factor in (*middle, last.reshape(*kernel.stack, -1, d_out)):
                product = product @ factor
        return product


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

        def products(delta):
            x = query
            for factor in (delta.outward, *reversed(delta.middle)):
                x = x @ factor[...].T.astype(x.dtype)
            return delta.inward.attend(x, out_sharding=out_sharding)

        return self._added(y, products)

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
    rank: int | Mapping[str, int] | None = 8,
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
        chosen a layer, see `energy` and `budget`.
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
        `α`.
    scale
        `ε`, positive.
    energy
        With `rank=None`: the smallest rank that holds this share of the surrogate's `Σ σ_i²`.
    budget
        With `rank=None`: number of parameters in all, spent where a component's `σ_i²`, the first-order
        decrease of the loss that it brings, is largest for its parameters. `energy` plays no part.
    rngs
        For a random start.

    Returns
    -------
    What was matched and what it got; `print` it.

    Raises
    ------
    ValueError
        If nothing matches, a setting is out of range, or a gradient vanishes or is not finite.

    Examples
    --------
    >>> model = nnx.Sequential(nnx.Linear(6, 5, rngs=nnx.Rngs(0)))
    >>> print(adapt(model, "layers.0", rank=2, start="random", rngs=nnx.Rngs(1)))
    layers.0: Linear 5×6, rank 2, 22 parameters
    1 layers, 22 parameters
    """
    _check(depth, start, zero, scale, loss, rngs)
    check_rank_choice(rank, energy, budget, chosen_from_surrogate=start == "surrogate")
    found, skipped = _targets(model, pattern)
    surrogates = _surrogates(model, found, loss, batch) if start == "surrogate" else None
    ranks = _ranks(found, rank, depth, surrogates, energy, budget)
    lines, new = [], {}
    for index, (path, (layer, kernel)) in enumerate(found.items()):
        r = ranks[path]
        if surrogates is None:
            left, right, kept = *_random_directions(rngs, kernel, r), math.nan
        else:
            left, right, kept = _leading(surrogates[index], r)
        dtype = getattr(layer, kernel.name).dtype
        factors = _factors(left, right, depth, scale, dtype)
        offset = _delta(layer, kernel, factors, DeltaStart) if zero == "offset" else None
        if zero == "last":
            factors = [*factors[:-1], 0 * factors[-1]]
        new[id(layer)] = Adapted(layer, _delta(layer, kernel, factors, DeltaParam), offset, alpha=alpha)
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
    found = [layer for _, layer in nnx.iter_modules(model) if isinstance(layer, Adapted | DeepLinear)]
    name = type(model).__name__
    if not found:
        raise ValueError(f"the {name} has no adapted, compressed or deep linear layer to merge")
    if any(layer is model for layer in found):
        raise ValueError(f"the model is itself a {name}: its method merge() returns the plain layer")
    replace_everywhere(model, {id(layer): layer.merge() for layer in found})
    return len(found)


def _check(depth, start, zero, scale, loss, rngs) -> None:
    check_depth(depth, least=2)
    check_scale(scale)
    if start not in ("surrogate", "random"):
        raise ValueError(f"start={start!r}, expected 'surrogate' or 'random'")
    if zero not in ("last", "offset", None):
        raise ValueError(f"zero={zero!r}, expected 'last', 'offset' or None")
    if start == "surrogate" and loss is None:
        raise ValueError("loss=None, expected loss(model, *batch) for the start from its gradient")
    if start == "random" and rngs is None:
        raise ValueError("rngs=None, expected an nnx.Rngs for the random start")


def _targets(model, pattern) -> tuple[dict[str, tuple[Any, Kernel]], dict[str, str]]:
    """Layers to adapt with their kernels, and why others whose path fits are not."""
    found, skipped = {}, {}
    inside = [names for names, layer in nnx.iter_modules(model) if isinstance(layer, Adapted)]
    for path, layer in matching(model, pattern):
        names = names_of(path)
        if any(names[: len(outer)] == outer for outer in inside):
            if names in inside:
                skipped[path] = "it is adapted already"
        elif isinstance(layer, tuple(KINDS)):
            try:
                found[path] = layer, kernel_of(layer)
            except Unsupported as error:
                skipped[path] = str(error)
    if not found:
        reasons = "".join(f"; {path}: {reason}" for path, reason in skipped.items())
        raise ValueError(f"pattern={pattern!r} fits no layer of the {type(model).__name__} to adapt{reasons}")
    if "" in found:
        raise ValueError(f"the model is itself the {type(model).__name__} to adapt: put it inside a module")
    return found, skipped


def _surrogates(model, found, loss, batch) -> list[np.ndarray | jax.Array]:
    """`−∂ℓ/∂W` of every layer, as matrices `(copies, d_out, d_in)`."""
    paths = [(*names_of(path), kernel.name) for path, (_, kernel) in found.items()]
    slopes, matrices = gradients(model, paths, loss, batch), []
    for (path, (_, kernel)), gradient in zip(found.items(), slopes, strict=True):
        d_out, d_in = kernel.shape
        surrogate = -kernel.matrices(gradient).reshape(-1, d_in, d_out).swapaxes(-1, -2)
        surrogate = check_gradient(f"the layer at {path!r}", surrogate, "at the model's weights")
        matrices.append(on_host(surrogate.astype(at_least_single(surrogate.dtype))))
    return matrices


def _ranks(found, rank, depth, surrogates, energy, budget) -> dict[str, int]:
    most = {path: min(kernel.shape) for path, (_, kernel) in found.items()}
    if isinstance(rank, Mapping):
        missing = sorted(found.keys() - rank.keys())
        if missing:
            raise ValueError(f"rank has no entry for {', '.join(missing)}")
        return {path: min(int(rank[path]), most[path]) for path in found}
    if rank is not None:
        return {path: min(int(rank), limit) for path, limit in most.items()}
    shapes = {path: kernel.shape for path, (_, kernel) in found.items()}
    energies = {
        path: np.sum([np.asarray(svd(jnp.asarray(m)).singular_values) ** 2 for m in matrices], axis=0)
        for path, matrices in zip(found, surrogates, strict=True)
    }
    copies = {path: math.prod(kernel.stack) for path, (_, kernel) in found.items()}
    return ranks_within(energies, shapes, copies, depth=depth, energy=energy, budget=budget)


def _leading(matrices, rank: int):
    """Leading singular vectors `(copies, d, rank)` of each matrix, and the share of energy they keep."""
    parts = [leading_components(matrix, rank) for matrix in matrices]
    parts = [on_host(part) for part in parts]
    xp = parts[0].left.__array_namespace__()
    left, right = (xp.stack([getattr(part, side) for part in parts]) for side in ("left", "right"))
    kept = sum((part.singular_values**2).sum() for part in parts) / (matrices**2).sum()
    return left, right, kept if is_traced(kept) else float(kept)


def _random_directions(rngs: nnx.Rngs | None, kernel: Kernel, rank: int):
    assert rngs is not None

    def draw(size):
        normal = on_host(jax.random.normal(rngs.params(), (math.prod(kernel.stack), size, rank)))
        return normal.__array_namespace__().linalg.qr(normal)[0]

    return tuple(map(draw, kernel.shape))


def _factors(left, right, depth: int, scale, dtype) -> list[jax.Array]:
    """`(copies, …)`: inward `ε V̂`, middle `ε I`, outward `ε Ûᵀ`, each acting on rows from the right."""
    copies, _, rank = left.shape
    middle = np.broadcast_to(np.eye(rank, dtype=left.dtype), (copies, rank, rank))
    parts = [right, *[middle] * (depth - 2), left.swapaxes(-1, -2)]
    scale = scale if is_traced(scale) else left.dtype.type(scale)
    return [as_array((scale * part).astype(dtype)) for part in parts]


def _delta(layer, kernel: Kernel, factors: list[jax.Array], kind: type) -> Delta:
    first, *middle, last = factors
    rank = first.shape[-1]
    # The input axes in the layer's order: those of `Kernel.inputs` are.
    first = first.reshape(*kernel.stack, *kernel.input_sizes, rank)
    last = last.reshape(*kernel.stack, rank, *kernel.output_sizes)
    middle = [factor.reshape(*kernel.stack, rank, rank) for factor in middle]
    stack, inputs, outputs = _specs(layer, kernel)
    variable = _placing(layer, kernel, kind)
    return Delta(
        narrowed(layer, kernel, variable(first, (*stack, *inputs, None))),
        [variable(factor, (*stack, None, None)) for factor in middle],
        variable(last, (*stack, None, *outputs)),
        widening_equation(layer),
    )


def _specs(layer, kernel: Kernel):
    """Mesh axes of the kernel's stack, inputs and outputs; all None where it has none."""
    spec = _spec(getattr(layer, kernel.name))
    first = len(kernel.stack)
    spec = (*(spec or ()), *(None,) * (first + len(kernel.sizes)))
    return (
        spec[:first],
        tuple(spec[first + axis] for axis in kernel.inputs),
        tuple(spec[first + axis] for axis in kernel.outputs),
    )


def _spec(weights: nnx.Variable) -> tuple | None:
    named = weights.get_metadata().get("out_sharding")
    if named is not None:
        return tuple(named)
    sharding = None if is_traced(weights[...]) else getattr(weights[...], "sharding", None)
    return tuple(sharding.spec) if isinstance(sharding, NamedSharding) else None


def _placing(layer, kernel: Kernel, kind: type) -> Callable:
    """Maker of variables that lie on the mesh as the kernel's matching axes do."""
    weights = getattr(layer, kernel.name)
    named = weights.get_metadata().get("out_sharding") is not None
    sharding = None if is_traced(weights[...]) else getattr(weights[...], "sharding", None)

    def make(value, spec):
        if isinstance(sharding, NamedSharding):
            value = jax.device_put(value, NamedSharding(sharding.mesh, PartitionSpec(*spec)))
        return kind(value, eager_sharding=False, **({"out_sharding": spec} if named else {}))

    return make
