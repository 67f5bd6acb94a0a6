"""How the kernel of each kind of Flax layer is a matrix, and how a layer of few outputs takes its place.

A kernel of axes (stack, inputs, outputs), in an order that depends on the layer, becomes matrices
`(…, d_in, d_out)`, one for each member of a stack that `nnx.vmap` or `nnx.scan` made.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from flax import nnx

FREE = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


class Unsupported(ValueError):
    """A layer whose kernel is no matrix, or that does something else with it; the text says what."""


class Kernel(NamedTuple):
    """A layer's kernel as a matrix.

    Attributes
    ----------
    name
        Of the parameter: `"kernel"` or `"embedding"`.
    stack
        Sizes of the leading axes that `nnx.vmap` or `nnx.scan` added; `()` mostly.
    sizes
        Of the axes of one member's kernel.
    inputs, outputs
        Which of those axes are summed over, and which appear in the output, in its order.
    """

    name: str
    stack: tuple[int, ...]
    sizes: tuple[int, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]

    @property
    def input_sizes(self) -> tuple[int, ...]:
        """Sizes of the axes that are summed over."""
        return tuple(self.sizes[axis] for axis in self.inputs)

    @property
    def output_sizes(self) -> tuple[int, ...]:
        """Sizes of the axes that appear in the output."""
        return tuple(self.sizes[axis] for axis in self.outputs)

    @property
    def shape(self) -> tuple[int, int]:
        """`(d_out, d_in)` of each matrix."""
        return math.prod(self.output_sizes), math.prod(self.input_sizes)

    def matrices(self, kernel: jax.Array, /) -> jax.Array:
        """The kernel as matrices `(…, d_in, d_out)`."""
        first = len(self.stack)
        order = (*range(first), *(first + axis for axis in (*self.inputs, *self.outputs)))
        return kernel.transpose(order).reshape(*self.stack, *self.shape[::-1])

    def kernel(self, matrices: jax.Array, /) -> jax.Array:
        """Inverse of `matrices`."""
        first, axes = len(self.stack), (*self.inputs, *self.outputs)
        back = (*range(first), *(first + axes.index(axis) for axis in range(len(axes))))
        return matrices.reshape(*self.stack, *self.input_sizes, *self.output_sizes).transpose(back)


def kernel_of(layer: Any, /) -> Kernel:
    """How this layer's kernel is a matrix.

    Parameters
    ----------
    layer
        An `nnx.Linear`, `LinearGeneral`, `Einsum`, `Conv` or `Embed`, one or a stack of them along
        leading axes. A subclass counts as its parent unless it has a call of its own.

    Raises
    ------
    Unsupported
        If it is none of those, or the matrix is not all that it applies.
    """
    for kind, describe in KINDS.items():
        if isinstance(layer, kind):
            if type(layer).__call__ is not kind.__call__:
                name = type(layer).__name__
                raise Unsupported(f"a {name} has a call of its own, not that of {kind.__name__}")
            name = "embedding" if kind is nnx.Embed else "kernel"
            sizes, inputs, outputs = describe(layer)
            return Kernel(name, _stack(getattr(layer, name).shape, sizes, layer), sizes, inputs, outputs)
    raise Unsupported(f"a {type(layer).__name__}, none of {', '.join(kind.__name__ for kind in KINDS)}")


def narrowed(layer: Any, kernel: Kernel, variable: nnx.Variable, /) -> Any:
    """The same layer with `rank` outputs and without bias: what it does to inputs, into few dimensions.

    `variable` is its kernel, of shape `(…, inputs, rank)` with the input axes in the layer's order.
    """
    rank = variable.shape[-1]
    copy = nnx.clone(layer, variables=False)
    setattr(copy, kernel.name, variable)
    sizes = (*(kernel.sizes[axis] for axis in sorted(kernel.inputs)), rank)
    if isinstance(layer, nnx.Embed):
        copy.features = rank
        return copy
    copy.bias = nnx.data(None)
    if isinstance(layer, nnx.Einsum):
        copy.einsum_str, copy.kernel_shape, copy.bias_shape = _narrowed_equation(layer), sizes, None
        return copy
    copy.use_bias = False
    copy.out_features = (rank,) if isinstance(layer, nnx.LinearGeneral) else rank
    if isinstance(layer, nnx.Conv):
        copy.kernel_shape = sizes
    return copy


def widening_equation(layer: Any, /) -> str | None:
    """Einsum of the narrowed output with a factor `(rank, outputs)`; None where the outputs go last."""
    if not isinstance(layer, nnx.Einsum):
        return None
    left, right, result = _letters(layer)
    summed = _free(layer)
    kept = [letter for letter in right if letter not in left]
    return f"{_without(left, right)}{summed},{summed}{''.join(sorted(kept, key=result.index))}->{result}"


def output_letters(layer: Any, kernel: Kernel, /) -> tuple[str, str] | None:
    """Of an einsum: the letters of its output, and which of them the kernel has; None of other layers."""
    if not isinstance(layer, nnx.Einsum):
        return None
    _, right, result = _letters(layer)
    return result, "".join(right[axis] for axis in kernel.outputs)


def _linear(layer: nnx.Linear):
    return (layer.in_features, layer.out_features), (0,), (1,)


def _general(layer: nnx.LinearGeneral):
    if layer.batch_axis:
        raise Unsupported("a LinearGeneral with batch_axis has one matrix for each element of the batch")
    sizes = (*layer.in_features, *layer.out_features)
    inputs = len(layer.in_features)
    return sizes, tuple(range(inputs)), tuple(range(inputs, len(sizes)))


def _einsum(layer: nnx.Einsum):
    if layer.einsum_str is None:
        raise Unsupported("an Einsum that gets its equation when it is called")
    left, right, result = _letters(layer)
    if "..." in right:
        raise Unsupported(f"the kernel of the Einsum {layer.einsum_str!r} has axes without a letter")
    both = [letter for letter in right if letter in left and letter in result]
    if both:
        raise Unsupported(
            f"the Einsum {layer.einsum_str!r} has one matrix for each value of {', '.join(both)}"
        )
    inputs = tuple(axis for axis, letter in enumerate(right) if letter not in result)
    outputs = sorted((a for a in range(len(right)) if a not in inputs), key=lambda a: result.index(right[a]))
    if not inputs or not outputs or any(right[axis] not in left for axis in inputs):
        raise Unsupported(f"the kernel of the Einsum {layer.einsum_str!r} is no matrix")
    return tuple(layer.kernel_shape), inputs, tuple(outputs)


def _conv(layer: nnx.Conv):
    if layer.feature_group_count != 1:
        raise Unsupported(f"a Conv with {layer.feature_group_count} groups of features")
    if layer.mask is not None:
        raise Unsupported("a Conv with a mask on its kernel")
    inputs = tuple(range(len(layer.kernel_shape) - 1))
    return tuple(layer.kernel_shape), inputs, (len(inputs),)


def _embed(layer: nnx.Embed):
    return (layer.num_embeddings, layer.features), (0,), (1,)


KINDS: dict[type, Callable] = {
    nnx.Linear: _linear,
    nnx.LinearGeneral: _general,
    nnx.Einsum: _einsum,
    nnx.Conv: _conv,
    nnx.Embed: _embed,
}


def _stack(actual: tuple[int, ...], sizes: tuple[int, ...], layer) -> tuple[int, ...]:
    extra = len(actual) - len(sizes)
    if extra < 0 or actual[extra:] != sizes:
        raise Unsupported(
            f"the kernel of a {type(layer).__name__} has shape {actual}, expected {sizes}, or that after "
            "the axes of a stack"
        )
    return actual[:extra]


def _letters(layer: nnx.Einsum) -> tuple[str, str, str]:
    operands, result = layer.einsum_str.replace(" ", "").split("->")
    left, right = operands.split(",")
    return left, right, result


def _free(layer: nnx.Einsum) -> str:
    return next(letter for letter in FREE if letter not in layer.einsum_str)


def _without(left: str, right: str) -> str:
    return "".join(letter for letter in left if letter not in right or letter == ".")


def _narrowed_equation(layer: nnx.Einsum) -> str:
    left, right, result = _letters(layer)
    new, summed = _free(layer), "".join(letter for letter in right if letter not in result)
    return f"{left},{summed}{new}->{_without(left, right)}{new}"
