"""Deep linear networks: a network is a tuple of weight matrices, input to output.

`weights = (W_1, …, W_L)` with `W_l` of shape `(d_l, d_{l-1})` stands for the end-to-end matrix
`W = W_L ⋯ W_1` of shape `(d_L, d_0)`. There is no class around the tuple, so `jax.tree`, optax and
orbax work on it as it is.
"""

from collections.abc import Callable, Sequence
from functools import cache
from itertools import pairwise
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Real

from lowdim_jax._arrays import as_count, as_integer
from lowdim_jax._host import AnyArray, is_traced
from lowdim_jax._products import product
from lowdim_jax._triplets import checked_indices

NARROW = 4
"""Width from which a CPU is faster where a product and its gradients read rows."""

Weights = tuple[Float[AnyArray, "out in"], ...]


def validate(weights: Sequence[AnyArray], /) -> None:
    """Raise `ValueError` unless `weights` is a chain of matrices whose widths match.

    Raises
    ------
    ValueError
        If there is no layer, a layer is not a matrix, or a layer's input width differs from the
        output width of the layer before it.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> validate((jnp.ones((3, 2)), jnp.ones((4, 3))))  # says nothing: layer 2 takes what layer 1 gives
    """
    if len(weights) == 0:
        raise ValueError("weights is empty: a network has at least one layer")
    for number, weight in enumerate(weights, start=1):
        if jnp.ndim(weight) != 2:
            raise ValueError(f"layer {number} has shape {jnp.shape(weight)}, expected a matrix")
    for number, (before, after) in enumerate(pairwise(weights), start=1):
        if after.shape[1] != before.shape[0]:
            raise ValueError(
                f"layer {number + 1} has shape {after.shape} and takes {after.shape[1]} inputs, "
                f"but layer {number} of shape {before.shape} gives {before.shape[0]} outputs"
            )


def widths(weights: Sequence[AnyArray], /) -> tuple[int, ...]:
    """Widths `(d_0, …, d_L)` of a network, input to output.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> widths((jnp.ones((3, 5)), jnp.ones((4, 3))))
    (5, 3, 4)
    """
    validate(weights)
    return (weights[0].shape[1], *(weight.shape[0] for weight in weights))


def check_fits(weights: Sequence[AnyArray], shape: tuple[int, ...], /) -> None:
    """Raise `ValueError` unless the end-to-end matrix has the shape of the target."""
    d_in, *_, d_out = widths(weights)
    if (d_out, d_in) != tuple(shape):
        raise ValueError(
            f"the network maps {d_in} inputs to {d_out} outputs, but the target has shape {tuple(shape)}"
        )


def end_to_end(weights: Sequence[AnyArray], /) -> Float[AnyArray, "d_L d_0"]:
    """End-to-end matrix `W = W_L ⋯ W_1`, multiplied in the cheapest order for its shapes.

    Parameters
    ----------
    weights
        `L` matrices, `W_l` of shape `(d_l, d_{l-1})`.

    Returns
    -------
    Array of shape `(d_L, d_0)`.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> end_to_end((2 * jnp.eye(2), 3 * jnp.eye(2)))
    Array([[6., 0.],
           [0., 6.]], dtype=float32)
    """
    validate(weights)
    if len(weights) == 1:
        return weights[0]
    if not is_traced(weights):
        return jnp.linalg.multi_dot(weights[::-1])
    dtype = jnp.result_type(*weights)
    matrices = tuple(matrix.astype(dtype) for matrix in weights[::-1])
    if min(map(min, map(jnp.shape, weights))) >= NARROW:
        return _chain(product, matrices)
    return _narrow_chain(matrices)


def _chain(multiply: Callable, matrices: tuple[AnyArray, ...]) -> AnyArray:
    """Their product, left to right, in the cheapest order."""
    if len(matrices) == 1:
        return matrices[0]
    split = _cheapest(_sides(matrices))[1]
    return multiply(_chain(multiply, matrices[:split]), _chain(multiply, matrices[split:]))


def _narrow_chain(matrices: tuple[AnyArray, ...]) -> AnyArray:
    """The same where a factor has very few columns: they are multiplied out as rows."""
    split = _cheapest(_sides(matrices))[1]
    left, right = matrices[:split], _chain(jax.lax.dot, matrices[split:])
    if split == 1:
        return jax.lax.dot(left[0], right)
    inner = _cheapest(_sides(left))[1]
    a, b = (_chain(jax.lax.dot, part) for part in (left[:inner], left[inner:]))
    rows = jax.lax.dot_general(b, a, (((0,), (1,)), ((), ())))
    return jax.lax.dot_general(rows, right, (((0,), (0,)), ((), ())))


def _sides(matrices: Sequence[AnyArray]) -> tuple[int, ...]:
    """Numbers of rows of all, and of columns of the last one."""
    return (*(matrix.shape[0] for matrix in matrices), matrices[-1].shape[1])


@cache
def _cheapest(sides: tuple[int, ...]) -> tuple[int, int]:
    """Operations of a product of matrices of these sides, and how many of them the last product has left."""
    if len(sides) == 2:
        return 0, 0
    costs = (
        (_cheapest(sides[: k + 1])[0] + _cheapest(sides[k:])[0] + sides[0] * sides[k] * sides[-1], -k)
        for k in range(1, len(sides) - 1)
    )
    cost, split = min(costs)
    return cost, -split


def end_to_end_factors(
    weights: Sequence[AnyArray], /
) -> tuple[Float[AnyArray, "d_L k"], Float[Array, "k d_0"]]:
    """Factors `A, B` of the end-to-end matrix `W = A B`, split at the narrowest hidden layer.

    For a compressed network both are thin and `W` itself is never formed.

    Returns
    -------
    `A = W_L ⋯ W_{k+1}` and `B = W_k ⋯ W_1`, with `d_k` the smallest hidden width.

    Raises
    ------
    ValueError
        If the network has one layer: there is no hidden layer to split at.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> a, b = end_to_end_factors((jnp.ones((2, 5)), jnp.ones((2, 2)), jnp.ones((4, 2))))
    >>> a.shape, b.shape
    ((4, 2), (2, 5))
    """
    split = narrowest_hidden(weights)
    return end_to_end(weights[split:]), end_to_end(weights[:split])


def narrowest_hidden(weights: Sequence[AnyArray], /) -> int:
    """Number `k` of the first of the narrowest hidden layers, whose width is `d_k`.

    Raises
    ------
    ValueError
        If the network has one layer.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> narrowest_hidden((jnp.ones((3, 5)), jnp.ones((2, 3)), jnp.ones((4, 2))))
    2
    """
    hidden = widths(weights)[1:-1]
    if not hidden:
        raise ValueError("weights has one layer: there is no hidden layer to split at")
    return 1 + hidden.index(min(hidden))


def forward(weights: Sequence[AnyArray], x: Real[AnyArray, "d_0 n"], /) -> Float[AnyArray, "d_L n"]:
    """Network output `W_L ⋯ W_1 x` for data whose columns are samples (docs/theory.md 3.6).

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> forward((2 * jnp.eye(2), 3 * jnp.eye(2)), jnp.array([[1.0], [2.0]]))
    Array([[ 6.],
           [12.]], dtype=float32)
    """
    return activations(weights, x)[-1]


def activations(
    weights: Sequence[AnyArray], x: Real[AnyArray, "d_0 n"], /
) -> tuple[Float[AnyArray, "width n"], ...]:
    """Input and output of every layer, `(x, W_1 x, W_2 W_1 x, …, W x)`: `L + 1` arrays.

    Raises
    ------
    ValueError
        If `x` is not a matrix with `d_0` rows.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> [a.shape for a in activations((jnp.ones((3, 2)), jnp.ones((1, 3))), jnp.ones((2, 7)))]
    [(2, 7), (3, 7), (1, 7)]
    """
    d_in = widths(weights)[0]
    if x.ndim != 2 or x.shape[0] != d_in:
        raise ValueError(f"x has shape {x.shape}, expected ({d_in}, n): one column a sample")
    outputs = [x]
    for weight in weights:
        outputs.append(weight @ outputs[-1])
    return tuple(outputs)


def roles(weights: Sequence, /) -> Sequence[str]:
    """Role of each layer: `"outer"` for the first and the last, `"middle"` between.

    The outer factors of a compressed network carry the singular vectors, the middle ones the
    spectrum; discrepant learning rates are set by role (docs/theory.md 1.4). A tuple for a tuple, a list for
    a list.

    Raises
    ------
    ValueError
        If `weights` is neither.

    >>> roles(("W_1", "W_2", "W_3"))
    ('outer', 'middle', 'outer')
    """
    if not isinstance(weights, tuple | list):
        raise ValueError(
            f"weights is a {type(weights).__name__}, expected a tuple or a list of layers: their roles go by "
            "position"
        )
    last = len(weights) - 1
    names = ("outer" if index in (0, last) else "middle" for index in range(last + 1))
    return list(names) if isinstance(weights, list) else tuple(names)


def parameter_count(weights: Sequence[AnyArray | jax.ShapeDtypeStruct], /) -> int:
    """Number of entries of all weights, `Σ_l d_l d_{l−1}`; of their `jax.eval_shape`, too.

    Examples
    --------
    >>> import jax, lowdim_jax as ld
    >>> parameter_count(ld.orthogonal(jax.random.key(0), (10, 3, 10), scale=1.0))
    60
    """
    return sum(prod(weight.shape) for weight in weights)


def full_widths(d_out: int, d_in: int, /, *, depth: int, hidden: int | None = None):
    """Widths of the original network: every hidden layer `min(d_out, d_in)` wide by default.

    Examples
    --------
    >>> full_widths(300, 200, depth=3)
    (200, 200, 200, 300)
    """
    depth = check_depth(depth)
    d_out, d_in = as_count("d_out", d_out, least=1), as_count("d_in", d_in, least=1)
    hidden = min(d_out, d_in) if hidden is None else as_count("hidden", hidden)
    if hidden < 1:
        raise ValueError(f"hidden={hidden}, expected a positive width")
    return (d_in, *(hidden,) * (depth - 1), d_out)


def compressed_widths(d_out: int, d_in: int, /, *, depth: int, rank: int) -> tuple[int, ...]:
    """Widths of the compressed network: every hidden layer `rank` wide (docs/theory.md 1.2).

    Its parameter count is `(d_out + d_in) r̂ + (L − 2) r̂²`.

    Raises
    ------
    ValueError
        If `depth < 2` (one matrix has no width to compress), or `rank` is not between 1 and
        `min(d_out, d_in)`.

    Examples
    --------
    >>> compressed_widths(300, 200, depth=3, rank=6)
    (200, 6, 6, 300)
    """
    depth, rank = check_depth(depth, least=2), as_count("rank", rank)
    d_out, d_in = as_count("d_out", d_out, least=1), as_count("d_in", d_in, least=1)
    if not 1 <= rank <= min(d_out, d_in):
        raise ValueError(
            f"rank={rank}, expected 1 ≤ rank ≤ {min(d_out, d_in)} for a {d_out}×{d_in} matrix"
        )
    return (d_in, *(rank,) * (depth - 1), d_out)


def check_depth(depth: int, /, *, least: int = 1) -> int:
    """The depth as Python's `int`; `ValueError` unless it is an integer of at least `least`."""
    return as_integer("depth", depth, least=least)


def entries(
    weights: Sequence[AnyArray], rows: Any, columns: Any, /
) -> Float[AnyArray, " n"]:
    """Entries `W[rows, columns]` of a network with a hidden layer, without forming `W`.

    Raises
    ------
    ValueError
        If the two are not of one length, or (where concrete) an index is no integer or out of range.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> network = (jnp.array([[1.0, 2.0]]), jnp.array([[3.0], [5.0]]))
    >>> entries(network, [0, 1], [1, 0])  # 3·2 and 5·1
    Array([6., 5.], dtype=float32)
    """
    a, b = end_to_end_factors(weights)
    rows, columns = (
        jnp.asarray(index if is_traced(index) else checked_indices(name, index, size)[0])
        for name, index, size in (("rows", rows, len(a)), ("columns", columns, b.shape[1]))
    )
    if rows.ndim != 1 or rows.shape != columns.shape:
        shapes = f"{rows.shape} and {columns.shape}"
        raise ValueError(f"rows and columns have shapes {shapes}, expected two of one length")
    return jnp.sum(a[rows] * b.T[columns], axis=1)


def pad(weights, rank: int, /):
    """A network with zero rows and columns added up to hidden width `rank`: it trains as before.

    The gradient of what is added is zero as long as it is zero on both sides, so that the padded network
    is the same one exactly, and networks of several ranks r̂ have one shape.

    Raises
    ------
    ValueError
        If a hidden layer is wider than `rank`.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> padded = pad((jnp.ones((1, 2)), jnp.ones((2, 1))), 3)
    >>> widths(padded), end_to_end(padded)
    ((2, 3, 2), Array([[1., 1.],
           [1., 1.]], dtype=float32))
    """
    wide = max(weight.shape[0] for weight in weights[:-1])
    if wide > rank:
        raise ValueError(f"rank={rank}, expected at least the hidden width {wide}")
    last = len(weights) - 1
    return tuple(
        jnp.pad(
            weight,
            (
                (0, 0 if layer == last else rank - weight.shape[0]),
                (0, 0 if layer == 0 else rank - weight.shape[1]),
            ),
        )
        for layer, weight in enumerate(weights)
    )
