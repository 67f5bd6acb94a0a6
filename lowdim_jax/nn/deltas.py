"""Low-rank factors in place of a kernel: which layers get them, from what start, and how they apply."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from lowdim_jax._host import as_array, is_traced, on_host
from lowdim_jax.linalg import svd
from lowdim_jax.nn.gradients import check_gradient, gradients, leading_components
from lowdim_jax.nn.kernels import KINDS, Kernel, Unsupported, kernel_of, narrowed, widening_equation
from lowdim_jax.nn.layers import at_least_single
from lowdim_jax.nn.paths import Pattern, matching
from lowdim_jax.nn.ranks import ranks_within


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

    def attend(self, query: jax.Array, out_sharding: Any = None) -> jax.Array:
        """Products with all rows of the product, where it stands for an `nnx.Embed`."""
        x = query
        for factor in (self.outward, *reversed(self.middle)):
            x = x @ factor[...].T.astype(x.dtype)
        return self.inward.attend(x, out_sharding=out_sharding)  # type: ignore[attr-defined]

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


class Target(NamedTuple):
    """A layer to take: itself, its kernel as a matrix, and the steps of its path."""

    layer: Any
    kernel: Kernel
    names: tuple


Found = Mapping[str, Target]


def targets(
    model: nnx.Module, pattern: Pattern, done: type | tuple[type, ...], /
) -> tuple[Found, dict[str, str]]:
    """Layers that fit with their kernels, by path, and why others whose path fits are left alone.

    Layers inside a part of type `done` are its business.

    Raises
    ------
    ValueError
        If there is no layer to take, or the model is itself the layer.
    """
    found, skipped = {}, {}
    inside = [names for names, layer in nnx.iter_modules(model) if isinstance(layer, done)]
    wrapped = _read_by_a_wrapper(model)
    for path, names, layer in matching(model, pattern):
        if id(layer) in wrapped:
            skipped[path] = f"a {wrapped[id(layer)]} around it reads its parameters"
        elif any(names[: len(outer)] == outer for outer in inside):
            if not any(names[: len(outer)] == outer != names for outer in inside):
                skipped[path] = "it has factors already"
        elif isinstance(layer, tuple(KINDS)) or _has_matrix(layer):
            try:
                found[path] = Target(layer, _real(layer, kernel_of(layer)), names)
            except Unsupported as error:
                skipped[path] = str(error)
    if not found:
        reasons = "".join(f"; {path}: {reason}" for path, reason in skipped.items())
        raise ValueError(f"pattern={pattern!r} fits no layer of the {type(model).__name__} to take{reasons}")
    if "" in found:
        raise ValueError(f"the model is itself the {type(model).__name__} to replace: put it inside a module")
    return found, skipped


def _read_by_a_wrapper(model: nnx.Module) -> dict[int, str]:
    """Layers whose parameters another one normalizes before each call, by `id`, and the name of its kind."""
    kinds = nnx.WeightNorm, nnx.SpectralNorm
    return {
        id(layer): type(wrapper).__name__
        for _, wrapper in nnx.iter_modules(model)
        if isinstance(wrapper, kinds)
        for _, layer in nnx.iter_modules(wrapper.layer_instance)
        if isinstance(layer, tuple(KINDS))
    }


def _real(layer: Any, kernel: Kernel) -> Kernel:
    dtype = getattr(layer, kernel.name).dtype
    if not jnp.issubdtype(dtype, jnp.floating):
        raise Unsupported(f"its {kernel.name} holds {dtype}, not real floating-point numbers")
    return kernel


def _has_matrix(layer: nnx.Module) -> bool:
    """Whether a layer of a kind that is not known here has what a user would take for its matrix."""
    weights = vars(layer).get("kernel", vars(layer).get("embedding"))
    return isinstance(weights, nnx.Variable) and weights.ndim > 1


def surrogates_of(
    model: nnx.Module, found: Found, loss: Callable, batch: tuple, /, *, some_vanish: bool = False
) -> list[Any]:
    """`−∂ℓ/∂W` of every layer, as matrices `(copies, d_out, d_in)`, from one gradient of the model.

    Raises
    ------
    ValueError
        If one is not finite or 0; with `some_vanish`, if one is not finite or all are 0.
    """
    paths = [(*names, kernel.name) for _, kernel, names in found.values()]
    slopes, matrices = gradients(model, paths, loss, batch), []
    some_vanish = some_vanish and any(is_traced(slope) or np.any(np.asarray(slope)) for slope in slopes)
    advice = " With rngs=nnx.Rngs(…) such a layer starts from random directions."
    how = {"may_vanish": some_vanish, "advice": "" if some_vanish else advice}
    for (path, (_, kernel, _)), gradient in zip(found.items(), slopes, strict=True):
        d_out, d_in = kernel.shape
        surrogate = -kernel.matrices(gradient).reshape(-1, d_in, d_out).swapaxes(-1, -2)
        surrogate = check_gradient(f"the layer at {path!r}", surrogate, "at the model's weights", **how)
        matrices.append(on_host(surrogate.astype(at_least_single(surrogate.dtype))))
    return matrices


def above_noise(
    model: nnx.Module, found: Found, loss: Callable, batch: tuple, /, *, some_vanish: bool = False
) -> tuple[list[Any], dict[str, int]]:
    """Surrogates, and how many components of each exceed the spectral norm of its noise, at least one.

    With `S_1, S_2` from the halves of a batch, `(S_1 − S_2)/2` has the law of the noise in their mean.

    Raises
    ------
    ValueError
        If the arrays of the batch do not agree in their first axis, or it is shorter than 2.
    """
    counts = {leaf.shape[0] if getattr(leaf, "ndim", 0) else None for leaf in jax.tree.leaves(batch)}
    count = counts.pop() if len(counts) == 1 else None
    if count is None or count < 2:
        raise ValueError("rank='noise' halves the batch, expected arrays of one length of at least 2")
    middle = count // 2
    halves = [
        surrogates_of(
            model, found, loss, jax.tree.map(lambda leaf, s=rows: leaf[s], batch), some_vanish=some_vanish
        )
        for rows in (slice(0, middle), slice(middle, 2 * middle))
    ]
    surrogates, ranks = [], {}
    for path, first, second in zip(found, *halves, strict=True):
        mean, noise = ((np.asarray(first, float) + sign * np.asarray(second, float)) / 2 for sign in (1, -1))
        level = np.linalg.norm(noise, ord=2, axis=(1, 2))
        above = np.linalg.svd(mean, compute_uv=False) > level[:, None]
        ranks[path] = max(1, int(above.sum(axis=1).max()))
        surrogates.append(mean.astype(first.dtype))
    return surrogates, ranks


def chosen_ranks(found: Found, rank: Any, energies_of: Callable, /, **rule: Any) -> dict[str, int]:
    """Rank of each layer: as given, cut to its smaller side, or from `σ_i²` as `ranks_within` says."""
    most = {path: min(target.kernel.shape) for path, target in found.items()}
    if isinstance(rank, Mapping):
        missing = sorted(found.keys() - rank.keys())
        if missing:
            raise ValueError(f"rank has no entry for {', '.join(missing)}")
        return {path: min(int(rank[path]), most[path]) for path in found}
    if rank is not None:
        return {path: min(int(rank), limit) for path, limit in most.items()}
    shapes = {path: target.kernel.shape for path, target in found.items()}
    copies = {path: math.prod(target.kernel.stack) for path, target in found.items()}
    return ranks_within(dict(zip(found, energies_of(), strict=True)), shapes, copies, **rule)


def energies_of(matrices: Any, /) -> np.ndarray:
    """`σ_i²` of matrices `(copies, d_out, d_in)`, descending, summed over the copies."""
    return np.sum([np.asarray(svd(as_array(m)).singular_values, float) ** 2 for m in matrices], axis=0)


def start_directions(
    matrices: Any, kernel: Kernel, rank: int, rngs: nnx.Rngs | None, /
) -> tuple[Any, Any, Any]:
    """As `leading_directions`, but random ones where a matrix is 0 and `rngs` are given."""
    here = rngs is not None and not is_traced(matrices)
    dead = ~np.any(np.asarray(matrices), axis=(-2, -1)) if here else np.zeros(len(matrices), bool)
    if not dead.any():
        return leading_directions(matrices, rank)
    left, right = (np.array(side) for side in random_directions(rngs, kernel, rank))
    if dead.all():
        return left, right, math.nan
    left[~dead], right[~dead], kept = leading_directions(matrices[~dead], rank)
    return left, right, kept


def leading_directions(matrices: Any, rank: int, /) -> tuple[Any, Any, Any]:
    """Leading singular vectors `(copies, d, rank)` of each matrix, and the share of energy they keep."""
    parts = [leading_components(matrix, rank) for matrix in matrices]
    parts = [on_host(part) for part in parts]
    xp = parts[0].left.__array_namespace__()
    left, right = (xp.stack([getattr(part, side) for part in parts]) for side in ("left", "right"))
    kept = sum((part.singular_values**2).sum() for part in parts) / (matrices**2).sum()
    return left, right, kept if is_traced(kept) else float(kept)


def random_directions(rngs: nnx.Rngs | None, kernel: Kernel, rank: int, /) -> tuple[Any, Any]:
    """Random orthonormal columns, left and right, `(copies, d, rank)`."""
    assert rngs is not None

    def draw(size):
        normal = on_host(jax.random.normal(rngs.params(), (math.prod(kernel.stack), size, rank)))
        return normal.__array_namespace__().linalg.qr(normal)[0]

    left, right = map(draw, kernel.shape)
    return left, right


def start_factors(left: Any, right: Any, /, *, depth: int, scale: Any, dtype: Any) -> list[jax.Array]:
    """`(copies, …)`: inward `ε V̂`, middle `ε I`, outward `ε Ûᵀ`, each acting on rows from the right."""
    copies, _, rank = left.shape
    middle = np.broadcast_to(np.eye(rank, dtype=left.dtype), (copies, rank, rank))
    parts = [right, *[middle] * (depth - 2), left.swapaxes(-1, -2)]
    scale = scale if is_traced(scale) else left.dtype.type(scale)
    return [as_array((scale * part).astype(dtype)) for part in parts]


def delta_of(layer: Any, kernel: Kernel, factors: list[jax.Array], kind: type, /) -> Delta:
    """Factors `(copies, …)`, each acting on rows from the right, in place of a layer's kernel."""
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
