"""Deep linear and compressed layers with the interface of `nnx.Linear`.

Inside, a layer is one of the library's networks: a tuple of matrices `W_l` of shape
`(d_l, d_{l−1})`, input to output. `nnx.Linear` keeps the transpose, `kernel = Wᵀ` of shape
`(in_features, out_features)`.
"""

import operator
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn.dtypes import promote_dtype as flax_promote_dtype
from jax.sharding import NamedSharding, PartitionSpec

from lowdim_jax._host import is_traced
from lowdim_jax.initialization import from_singular_vectors, orthogonal
from lowdim_jax.networks import Weights, compressed_widths, full_widths, widths

Initializer = Callable[..., Any]
OPTIONS = (
    "use_bias", "dtype", "param_dtype", "precision", "dot_general", "promote_dtype", "preferred_element_type",
)  # fmt: skip
"""What a layer made from another one has in common with it."""


class DeepLinear(nnx.Module):
    """Deep linear network `y = W_L ⋯ W_1 x + b` in place of an `nnx.Linear`.

    Every hidden layer is `min(in_features, out_features)` wide, unless `hidden` says otherwise.

    Parameters
    ----------
    in_features, out_features, use_bias, dtype, param_dtype, precision, bias_init, dot_general,
    promote_dtype, preferred_element_type, rngs, bias_metadata
        As for `nnx.Linear`; `dot_general` and `promote_dtype` are called once for each factor, with
        the arguments that `nnx.Linear` calls them with.
    depth
        `L`, number of factors.
    hidden
        Width between the factors.
    scale
        `ε`: by default the factors start at `ε` times Haar-random (semi-)orthogonal matrices. Where
        `scale` is None, `ε` is such that the outputs have the variance of the inputs, as from
        `nnx.Linear`'s default: see `variance_scale`.
    kernel_init
        Start of each factor instead, called with the shape `(d_{l−1}, d_l)` as for `nnx.Linear`;
        `scale` then plays no part. Factors that would all be zero never learn: then the last one is
        zero and the others start as without `kernel_init`.
    kernel_metadata
        As for `nnx.Linear`. Mesh axes, here or from a partitioned initializer, are those of a kernel
        `(in_features, out_features)`: the first factor is split along the inputs' axis, the last one
        along the outputs'.

    Raises
    ------
    ValueError
        If a width, `depth` or `scale` is out of range.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> from lowdim_jax import nn
    >>> layer = nn.DeepLinear(6, 4, depth=3, rngs=nnx.Rngs(0))
    >>> layer(jnp.ones((2, 6))).shape, [factor.shape for factor in layer.factors]
    ((2, 4), [(4, 6), (4, 4), (4, 4)])
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        depth: int = 3,
        hidden: int | None = None,
        scale: float | None = None,
        use_bias: bool = True,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        precision: Any = None,
        kernel_init: Initializer | None = None,
        bias_init: Initializer = nnx.initializers.zeros,
        dot_general: Callable = jax.lax.dot_general,
        promote_dtype: Callable = flax_promote_dtype,
        preferred_element_type: Any = None,
        rngs: nnx.Rngs,
        kernel_metadata: Mapping[str, Any] = MappingProxyType({}),
        bias_metadata: Mapping[str, Any] = MappingProxyType({}),
    ):
        sizes = {"in_features": in_features, "out_features": out_features, "depth": depth}
        in_features, out_features, depth = (_integer(name, value) for name, value in sizes.items())
        hidden = None if hidden is None else _integer("hidden", hidden)
        self.in_features, self.out_features = in_features, out_features
        self.use_bias, self.dtype, self.param_dtype = use_bias, dtype, param_dtype
        self.precision, self.preferred_element_type = precision, preferred_element_type
        self.dot_general, self.promote_dtype = dot_general, promote_dtype
        spaces = self._widths(depth, hidden)
        scale = variance_scale(spaces) if scale is None else scale
        key = rngs.params()
        exact = at_least_single(param_dtype)
        metadata = dict(kernel_metadata)
        if kernel_init is not None:
            shapes = list(pairwise(spaces))
            keys = jax.random.split(key, len(shapes))
            made = [kernel_init(k, shape, param_dtype) for k, shape in zip(keys, shapes, strict=True)]
            # Flax merges what a partitioned initializer says into the parameter's metadata.
            params = [nnx.Param(value, eager_sharding=False, **metadata) for value in made]
            metadata = metadata_of(params[0])
            given = [param[...].T for param in params]
            values = _alive(given, lambda: self._start(key, spaces, scale, exact))
        else:
            values = self._start(key, spaces, scale, exact)
        self.factors = nnx.List([
            _parameter(value.astype(param_dtype), metadata_of_factor(metadata, index, len(values)))
            for index, value in enumerate(values)
        ])
        bias = bias_init(rngs.params(), spaces[-1:], param_dtype) if use_bias else None
        self.bias = nnx.data(None if bias is None else nnx.Param(bias, **bias_metadata))

    def _widths(self, depth: int, hidden: int | None) -> tuple[int, ...]:
        return full_widths(self.out_features, self.in_features, depth=depth, hidden=hidden)

    def _start(self, key, spaces, scale, dtype) -> Sequence[jax.Array]:
        return orthogonal(key, spaces, scale=scale, dtype=dtype)

    @property
    def weights(self) -> Weights:
        """The layer as a network of the library: `(W_1, …, W_L)`."""
        return tuple(factor[...] for factor in self.factors)

    @property
    def depth(self) -> int:
        """`L`, number of factors."""
        return len(self.factors)

    @property
    def rank(self) -> int:
        """Largest rank that the end-to-end matrix can have: the smallest width."""
        return min(min(factor.shape[-2:]) for factor in self.factors)

    @property
    def kernel(self) -> jax.Array:
        """End-to-end kernel `(in_features, out_features)`, computed each time."""
        product, *others = (jnp.swapaxes(weight, -1, -2) for weight in self.weights)
        with jax.default_matmul_precision("highest"):
            for factor in others:
                product = product @ factor
        return product

    def set_weights(self, weights: Sequence[jax.Array], /) -> None:
        """Replace the factors by those of a network of the same widths.

        Raises
        ------
        ValueError
            If depth or widths differ.
        """
        if widths(weights) != widths(self.weights):
            raise ValueError(f"weights has widths {widths(weights)}, expected {widths(self.weights)}")
        for factor, weight in zip(self.factors, weights, strict=True):
            factor[...] = weight.astype(self.param_dtype)

    def __call__(self, inputs: jax.Array, out_sharding: Any = None) -> jax.Array:
        """Apply the network to the last axis.

        Raises
        ------
        ValueError
            If that axis has another size than `in_features`.
        """
        bias = self.bias[...] if self.bias is not None else None
        x, between = inputs, _between(out_sharding)
        kind = {} if self.preferred_element_type is None else {
            "preferred_element_type": self.preferred_element_type
        }
        for index, weight in enumerate(self.weights):
            x, kernel, bias = self.promote_dtype((x, weight.T, bias), dtype=self.dtype)
            if x.shape[-1] != kernel.shape[0]:
                raise ValueError(
                    f"inputs has shape {inputs.shape}, expected {self.in_features} features in its last axis"
                )
            given = x.dtype
            sharding = out_sharding if index == self.depth - 1 else between
            axes = (((x.ndim - 1,), (0,)), ((), ()))
            x = self.dot_general(x, kernel, axes, precision=self.precision, out_sharding=sharding, **kind)
            if index < self.depth - 1:
                x = x.astype(given)
        return x if bias is None else x + jnp.reshape(bias, (1,) * (x.ndim - 1) + (-1,))

    def merge(self) -> nnx.Linear:
        """The same map as one `nnx.Linear` with the layer's options: its kernel is the product."""
        first, last = (self.factors[index].get_metadata().get("out_sharding") for index in (0, -1))
        metadata = metadata_of(self.factors[0])
        if first is not None and last is not None:
            metadata["out_sharding"] = (tuple(first)[-1], tuple(last)[-2])
        bias = self.bias
        kept = {} if bias is None else metadata_of(bias)
        options: dict[str, Any] = {name: getattr(self, name) for name in OPTIONS}
        options["use_bias"] = bias is not None
        layer = nnx.Linear(
            self.in_features,
            self.out_features,
            kernel_init=lambda *_: self.kernel.astype(self.param_dtype),
            bias_init=lambda *_: None if bias is None else bias[...],
            kernel_metadata=metadata,
            bias_metadata=kept,
            rngs=nnx.Rngs(0),
            **options,
        )
        if (kind := type(self.factors[0])) is not nnx.Param:  # such as one that is never trained
            layer.kernel = kind(layer.kernel[...], eager_sharding=False, **metadata)
        return layer


class CompressedLinear(DeepLinear):
    """Compressed deep linear network in place of an `nnx.Linear` (docs/theory.md 1.2).

    Its `(in + out) r̂ + (L − 2) r̂²` weights start at `(ε V̂ᵀ, ε I, …, ε I, ε Û)` with random
    orthonormal `Û, V̂`; `spectral_start` puts those of the layer's surrogate in their place. The
    outer factors may learn at another rate than the middle ones: see `partition`.

    Parameters
    ----------
    in_features, out_features
        As for `nnx.Linear`.
    rank
        `r̂`, the width between the factors.
    depth
        `L ≥ 2`, number of factors.
    options
        As for `DeepLinear`, `hidden` excepted.

    Raises
    ------
    ValueError
        If `rank`, `depth` or `scale` is out of range.

    Examples
    --------
    >>> from flax import nnx
    >>> from lowdim_jax import nn
    >>> layer = nn.CompressedLinear(64, 32, rank=4, rngs=nnx.Rngs(0))
    >>> layer.rank, layer.depth, layer.kernel.shape, layer.merge().kernel.shape
    (4, 3, (64, 32), (64, 32))
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        rank: int,
        depth: int = 3,
        rngs: nnx.Rngs,
        **options: Any,
    ):
        if "hidden" in options:
            raise TypeError("a CompressedLinear has no argument hidden: its hidden width is rank")
        rank = _integer("rank", rank)
        super().__init__(in_features, out_features, depth=depth, hidden=rank, rngs=rngs, **options)

    def _widths(self, depth: int, hidden: int | None) -> tuple[int, ...]:
        assert hidden is not None
        return compressed_widths(self.out_features, self.in_features, depth=depth, rank=hidden)

    def _start(self, key, spaces, scale, dtype) -> Sequence[jax.Array]:
        rank = spaces[1]
        right, left = (
            orthogonal(k, (rank, features), scale=1.0, dtype=dtype)[0]
            for k, features in zip(jax.random.split(key), (spaces[0], spaces[-1]), strict=True)
        )  # of one shape where the layer is square, and so one compiled program
        return from_singular_vectors(left, right, depth=len(spaces) - 1, scale=scale)


def variance_scale(spaces: Sequence[int], /) -> float:
    """Scale `ε` at which a network of orthogonal factors keeps the variance of its inputs.

    A Haar-random semi-orthogonal `W_l` keeps the share `min(1, d_l / d_{l−1})` of a vector's squared
    norm on average. Entries of the output have the inputs' variance where
    `ε^{2L} Π_l min(1, d_l / d_{l−1}) = d_L / d_0`. Of a compressed network this is
    `ε = (d_out / r̂)^{1/2L}`.

    Examples
    --------
    >>> from lowdim_jax.nn.layers import variance_scale
    >>> variance_scale((64, 64, 64)), round(variance_scale((64, 4, 64)), 6)
    (1.0, 2.0)
    """
    kept = 1.0
    for before, after in pairwise(spaces):
        kept *= min(1.0, after / before)
    return (spaces[-1] / spaces[0] / kept) ** (0.5 / (len(spaces) - 1))


def at_least_single(dtype: Any, /) -> Any:
    """The data type, or float32 where it is narrower: decompositions know none below that."""
    return dtype if jnp.finfo(dtype).bits >= 32 else jnp.float32


def metadata_of(variable: nnx.Variable, /) -> dict[str, Any]:
    """What a variable was given when it was made, without Flax's own switches."""
    switches = "hijax", "ref", "eager_sharding"
    return {name: value for name, value in variable.get_metadata().items() if name not in switches}


def _parameter(value: jax.Array, metadata: dict[str, Any]) -> nnx.Param:
    """A parameter; Flax places it on the mesh in whose context this is, if it has mesh axes."""
    placed = metadata.get("out_sharding") is not None
    return nnx.Param(jnp.copy(value) if placed else value, **metadata)  # the copy lies on the mesh


def _integer(name: str, value: Any) -> int:
    if isinstance(value, bool):
        raise ValueError(f"{name}={value}, expected an integer")
    try:
        return operator.index(value)
    except TypeError as error:
        raise ValueError(f"{name}={value!r}, expected an integer") from error


def _alive(values: list[jax.Array], start: Callable) -> list[jax.Array]:
    """Factors that are not all zero, or the last one zero and the others from `start`."""
    zero = jnp.stack([jnp.logical_not(value.any()) for value in values]).all()
    if len(values) == 1 or not (is_traced(zero) or zero):
        return values
    other = [value.astype(values[0].dtype) for value in start()]
    return [*(jnp.where(zero, b, a) for a, b in zip(values[:-1], other, strict=False)), values[-1]]


def metadata_of_factor(metadata: dict[str, Any], index: int, depth: int) -> dict[str, Any]:
    """Metadata of one factor `(d_l, d_{l−1})` from those of a kernel `(inputs, outputs)`."""
    spec = nnx.Param(jnp.zeros(()), eager_sharding=False, **metadata).get_metadata().get("out_sharding")
    if spec is None:
        return metadata
    *stack, inputs, outputs = spec
    axes = *stack, outputs if index == depth - 1 else None, inputs if index == 0 else None
    kept = {name: value for name, value in metadata.items() if name not in ("sharding", "sharding_names")}
    return kept | {"out_sharding": axes}


def _between(out_sharding: Any) -> Any:
    """Placement of what is between the factors: as the output, but its features whole."""
    if isinstance(out_sharding, NamedSharding):
        return NamedSharding(out_sharding.mesh, _between(out_sharding.spec))
    return None if out_sharding is None else PartitionSpec(*tuple(out_sharding)[:-1], None)
