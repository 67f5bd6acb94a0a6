"""The law of parsimony: a wide, orthogonally initialized network, exactly, in a few dimensions.

Gradient descent on `½‖W_L ⋯ W_1 − Φ‖_F²`, `Φ = U* diag(s) V*ᵀ` of rank `r`, from `W_l(0) = ε_l P_l`
with `P_l` (semi-)orthogonal, never leaves the block form

    W_l(t) = B_l z_l(t) B_{l−1}ᵀ + ρ_l(t) (live bulk) + ι_l(t) (idle bulk)

in fixed orthonormal bases `B_0, …, B_L` of small subspaces that the layers map to each other. The core
`z` is itself a deep linear network, of width `2r` where all layers are square, started at a (rectangular)
identity times `ε`; the bulk is one scalar a layer. A step costs `O(L r³)` whatever the width.

Derivation: docs/theory.md 3.1, 3.2 and, for layers that are not square, 3.5.
"""

import functools
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Real

from lowdim_jax import _isometries
from lowdim_jax._arrays import check_finite
from lowdim_jax._host import AnyArray, as_array, of_one_kind
from lowdim_jax._products import product
from lowdim_jax.descent import gradient_descent
from lowdim_jax.initialization import check_scale
from lowdim_jax.linalg import LowRank, estimate_rank, frobenius_norm, svd
from lowdim_jax.networks import Weights, check_depth, check_fits, end_to_end, widths
from lowdim_jax.optimizers import GradientDescent, GradientTransformation
from lowdim_jax.problems.matrix_factorization import factorization
from lowdim_jax.problems.targets import random_target
from lowdim_jax.trajectory import Trajectory
from lowdim_jax.window import WindowLayer, WindowReduction, reduce_window, sample_window


class ReducedLayer(NamedTuple):
    """What changes in one layer: its core block and the two scalars of its bulk.

    Attributes
    ----------
    core
        `z_l`, `(m_l, m_{l−1})`.
    bulk
        `ρ_l`: singular value shared by all directions of the bulk that reach from input to output.
    idle
        `ι_l`: that of the directions which another layer cuts off; only weight decay moves it.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, lowdim_jax as ld
    >>> layer = ld.sample(jax.random.key(0), 1000, jnp.array([2.0, 1.0]), depth=3, scale=0.1).layers[0]
    >>> layer.core.shape, layer.bulk.shape
    ((4, 4), ())
    """

    core: Float[Array, "m_out m_in"]
    bulk: Float[Array, ""]
    idle: Float[Array, ""]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ReducedFactorization:
    """The factorization problem of a reduced network.

    Attributes
    ----------
    target
        `B_Lᵀ Φ B_0` as a `LowRank`.
    bulk_count
        `n = d_min − m`, number of directions that share the bulk's end-to-end singular value `Π_l ρ_l`:
        a scalar array, so that training at another width is the same compiled program.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, lowdim_jax as ld
    >>> problem = ld.sample(jax.random.key(0), 1000, jnp.array([2.0, 1.0]), depth=3, scale=0.1).problem
    >>> problem.shape, float(problem.bulk_count)
    ((4, 4), 996.0)
    """

    target: LowRank
    bulk_count: Float[Array, ""]

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of the core's end-to-end matrix."""
        return self.target.shape

    def loss(self, layers: Sequence[ReducedLayer], /) -> Float[Array, ""]:
        """Loss of the full network, `½‖z_L ⋯ z_1 − B_Lᵀ Φ B_0‖_F² + ½ n (Π_l ρ_l)²`.

        Its gradient with respect to a `ρ_l` is that of a single bulk entry, which is what moves each
        of the `n` entries of the full network: the other `n − 1` count for the value only.
        """
        inner = functools.reduce(lambda inner, core: product(core, inner), cores(layers))
        core = jnp.sum((inner - self.target.dense()) ** 2) / 2
        bulk = _end_to_end_bulk(layers) ** 2 / 2
        return core + (bulk + (self.bulk_count - 1) * jax.lax.stop_gradient(bulk))

    def recovery_error(self, layers: Sequence[ReducedLayer], /) -> Float[Array, ""]:
        """Relative Frobenius error `‖W − Φ‖_F / ‖Φ‖_F` of the full network."""
        return jnp.sqrt(2 * self.loss(layers)) / frobenius_norm(self.target)

    def surrogate(self, rank: int | None = None, /) -> LowRank:
        """Leading `rank` components of the core's target: its largest stable rate is the full network's."""
        return self.target if rank is None else self.target.truncate(rank)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Reduction:
    """A reduced network and the way back to the full one; made by `reduce` and `sample`.

    Attributes
    ----------
    layers
        Initial weights of the reduced network: train them with `problem.loss`.
    problem
        Its `ReducedFactorization`.
    bases
        `B_0, …, B_L`, of shapes `(d_l, m_l)`, orthonormal columns.
    frames
        The `P_l` of the full initialization; None where all of them are the identity.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, lowdim_jax as ld
    >>> network = ld.orthogonal(jax.random.key(0), (8, 8, 8), scale=0.5)
    >>> reduction = ld.reduce(network, jnp.diag(jnp.array([3.0, 2.0] + 6 * [0.0])))
    >>> lifted = reduction.lift(reduction.layers)
    >>> bool(jnp.allclose(lifted[0], network[0], atol=1e-5)), reduction.bases[0].shape
    (True, (8, 4))
    """

    layers: tuple[ReducedLayer, ...]
    problem: ReducedFactorization
    bases: tuple[Float[Array, "d m"], ...]
    frames: tuple[Float[Array, "d_out d_in"], ...] | None

    def end_to_end(self, layers: Sequence[ReducedLayer], /) -> tuple[LowRank, Float[Array, ""]]:
        """End-to-end matrix as its core, a `LowRank`, and the bulk's singular value `Π_l ρ_l`.

        The bulk has `problem.bulk_count` directions, orthogonal to the core's on both sides.
        """
        core = svd(end_to_end(cores(layers)))
        left, right = self.bases[-1] @ core.left, self.bases[0] @ core.right
        return LowRank(left, core.singular_values, right), _end_to_end_bulk(layers)

    def lift(self, layers: Sequence[ReducedLayer], /) -> Weights:
        """Weights of the full network: forms every `d_l × d_{l−1}` matrix."""
        layers, bases, frames = of_one_kind((tuple(layers), self.bases, self.frames))
        if frames is None:
            return tuple(map(as_array, map(_lift_between, layers, bases, bases[1:])))
        embeddings = _isometries.embeddings(frames)
        narrow = bases[_isometries.narrowest(widths(frames))]
        outside = _isometries.identity(narrow, len(narrow)) - narrow @ narrow.T
        return tuple(
            as_array(
                _lift_between(
                    layer,
                    bases[number],
                    bases[number + 1],
                    frames[number],
                    embeddings[number + 1] @ outside @ embeddings[number].T,
                )
            )
            for number, layer in enumerate(layers)
        )


    def check_optimizer(self, optimizer: Any, /) -> None:
        """Raise `ValueError` for an optimizer other than `GradientDescent`."""
        if not isinstance(optimizer, GradientDescent):
            raise ValueError(
                f"optimizer is a {type(optimizer).__name__}, expected GradientDescent: the law of parsimony "
                "holds for updates that rotate with the weights, not for entrywise ones as Adam's; "
                "strict=False trains the reduced network all the same"
            )


def _lift_between(layer: ReducedLayer, before, after, frame=None, live=None) -> jax.Array:
    """Weights of a full layer: core, live bulk and idle bulk, in the bases before and after it."""
    if frame is None or live is None:  # the identity, whose bulk is live throughout
        frame = _isometries.identity(after, len(after))
        live = frame - after @ before.T
    start = _isometries.identity(frame, *layer.core.shape)
    idle = frame - after @ start @ before.T - live
    return after @ layer.core @ before.T + layer.bulk * live + layer.idle * idle


def _end_to_end_bulk(layers: Sequence[ReducedLayer]) -> Float[Array, ""]:
    """`Π_l ρ_l`, of scalars: an array's product has a dozen small kernels as its derivative."""
    return functools.reduce(operator.mul, [layer.bulk for layer in layers])


def cores(layers: Sequence[ReducedLayer | WindowLayer], /) -> Weights:
    """Core blocks of a reduced network: a deep linear network that `spectra` can measure.

    Against `problem.target` its singular values and alignments are those of the full network.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, lowdim_jax as ld
    >>> reduction = ld.sample(jax.random.key(0), 100, jnp.array([2.0, 1.0]), depth=3, scale=0.1)
    >>> ld.widths(cores(reduction.layers))
    (4, 4, 4, 4)
    """
    return tuple(layer.core for layer in layers)


def reduce(
    weights: Sequence[AnyArray],
    target: AnyArray | LowRank | Callable,
    /,
    *,
    window: Any = None,
    per_step: bool = False,
    strict: bool = True,
) -> "Reduction | WindowReduction":
    """Exact reduction of a network: of a factorization, or of any loss that sees it through a window.

    Parameters
    ----------
    weights
        Initial weights.
    target
        `Φ`, dense (its numerical rank is taken, so it must be concrete) or `LowRank`: a factorization
        problem. Each layer is then a (semi-)orthogonal matrix times a scale of its own; or the hidden
        layers next to the ends are so narrow, as a compressed network's are, that the start may be any.

        Or a function of the weights of a network with any hidden widths, which sees only the part
        `Uᵀ W V` of the end-to-end matrix: any differentiable loss, on any data. The middle layers are
        then orthogonal times a scale each, hidden widths do not grow and then shrink (equal ones do
        neither), and the first and the last layer may be any; with two layers there is no condition.
    window
        Of a function: a matrix whose columns span the inputs that it sees, such as the data `X`, one
        column a sample; or a pair `(outputs, inputs)` of such matrices, None for all. By default all
        inputs and outputs.
    per_step
        Of a function: whether it is `loss(weights, step)` (see `gradient_descent`).
    strict
        Refuse what has no exact reduction. With `strict=False` every layer that should be orthogonal is
        replaced by its best fit, a space that bulges by its part that its outer end reaches, and the loss
        is not looked at: a network for which the law holds, to study how it fails for the one given.

    Returns
    -------
    A `Reduction` with cores of width `2r` for square layers; each change of width on the way from the
    narrowest space to the input or the output adds up to `r` more. Compressed networks of width `r̂`:
    ends of width `r̂` from a spectral start, and up to `r̂ + r` from any. For a function a
    `WindowReduction` with cores of widths `n → m → … → m → k`, `m ≤ n + k`.

    Raises
    ------
    ValueError
        If a layer is not orthogonal that has to be, or widths first grow and then shrink: between two
        spaces that are wider than what is before and after them no small subspace is closed under the
        layers (docs/theory.md 3.5). If a loss sees more than its window, or layers apart from their product.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, lowdim_jax as ld
    >>> network = ld.orthogonal(jax.random.key(0), (9, 9, 9), scale=0.5)
    >>> target = ld.random_target(jax.random.key(1), (9, 9), jnp.array([3.0, 2.0]))
    >>> reduction = ld.reduce(network, target)
    >>> full = ld.gradient_descent(ld.factorization(target), network, ld.GradientDescent(0.05), steps=20)
    >>> small = ld.reduced_descent(reduction, ld.GradientDescent(0.05), steps=20)
    >>> bool(jnp.allclose(full.losses, small.losses, rtol=1e-4))
    True

    Under any loss, on any data:

    >>> import jax, jax.numpy as jnp, lowdim_jax as ld
    >>> weights = ld.orthogonal(jax.random.key(0), (3, 100, 100, 2), scale=1.0)
    >>> x, y = jnp.eye(3), jnp.ones((2, 3))
    >>> loss = lambda weights: jnp.sum(jnp.abs(ld.forward(weights, x) - y) ** 1.5)
    >>> small = ld.reduce(weights, loss)
    >>> [layer.core.shape for layer in small.layers]
    [(5, 3), (5, 5), (2, 5)]
    """
    if callable(target):
        return reduce_window(weights, target, window=window, per_step=per_step, strict=strict)
    if window is not None or per_step:
        raise ValueError("window and per_step are for a loss, but a target is given, which sees everything")
    return _reduce_factorization(weights, target, strict)


def _reduce_factorization(weights, target, strict: bool) -> Reduction:
    target = factorization(target).target
    check_fits(weights, target.shape)
    if not isinstance(target, LowRank):
        target = svd(target).truncate(estimate_rank(target))
    for number, weight in enumerate(weights, 1):
        check_finite(f"layer {number}", weight)
    weights, target = of_one_kind((tuple(weights), target))
    return jax.tree.map(as_array, _reduction_of(weights, target, strict))


def _reduction_of(weights, target: LowRank, strict: bool) -> Reduction:
    spaces = widths(weights)
    valley = _isometries.is_valley(spaces)
    try:
        if strict and not valley:
            raise ValueError(
                f"widths {tuple(spaces)} grow and then shrink: no small subspace is closed under such "
                "layers, so there is no exact reduction; hidden layers no wider than "
                f"{max(spaces[0], spaces[-1])} = max(d_in, d_out), without a bulge, have one, and "
                "strict=False takes the nearest network of such widths"
            )
        split = [_isometries.frame(weight, number, strict) for number, weight in enumerate(weights, 1)]
    except ValueError:
        if strict and _narrow_inside(spaces, target):
            return _reduce_ends(weights, target)
        raise
    frames, scales = zip(*split, strict=True)
    if valley:
        return _reduction(_isometries.bases(frames, target.left, target.right), scales, target, frames)
    parts = _isometries.reached(frames)
    ends = list(pairwise(parts))
    inner = [
        _isometries.polar(after.T @ frame @ before)
        for frame, (before, after) in zip(frames, ends, strict=True)
    ]
    chain = _isometries.bases(inner, target.left, target.right)
    bases = tuple(part @ basis for part, basis in zip(parts, chain, strict=True))
    cut = tuple(after @ frame @ before.T for frame, (before, after) in zip(inner, ends, strict=True))
    return _reduction(bases, scales, target, cut)


def _narrow_inside(spaces: Sequence[int], target: LowRank) -> bool:
    """Whether the ends are wider than what the layers next to them and the target span there."""
    if len(spaces) < 3:
        return False
    rank = target.singular_values.shape[0]
    return spaces[1] + rank < spaces[0] or spaces[-2] + rank < spaces[-1]


def _reduce_ends(weights: Sequence[AnyArray], target: LowRank) -> Reduction:
    """Reduction of a network with narrow hidden layers from any start: only its ends are cut.

    The rows of the first layer stay in the span of themselves and `V*`, the columns of the last one in
    that of themselves and `U*` (docs/theory.md 3.9).
    """
    right = _end(weights[0].T, target.right)
    left = _end(weights[-1], target.left)
    hidden = tuple(_isometries.identity(right, width) for width in widths(weights)[1:-1])
    bases = (right, *hidden, left)
    xp = right.__array_namespace__()
    scales = tuple(xp.sqrt(xp.mean(weight**2)) for weight in weights)
    layers = tuple(
        ReducedLayer(after.T @ weight @ before, scale, scale)
        for weight, scale, (before, after) in zip(weights, scales, pairwise(bases), strict=True)
    )
    frames = tuple(
        after @ _isometries.identity(after, after.shape[1], before.shape[1]) @ before.T
        for before, after in pairwise(bases)
    )  # nothing beside the cores: `lift` finds neither a live nor an idle part
    problem = ReducedFactorization(_core_target(bases, target), as_array(np.zeros((), target.dtype)))
    return Reduction(layers, problem, bases, frames)


def _end(columns: jax.Array, vectors: jax.Array) -> jax.Array:
    """Orthonormal basis of the span of a layer's columns and the target's vectors."""
    span, _ = columns.__array_namespace__().linalg.qr(columns)
    return _isometries.extend(span, _isometries.identity(span, span.shape[1]), vectors)


def reduce_identity(target: LowRank, /, *, depth: int, scale) -> Reduction:
    """Reduction of the square network `W_l(0) = ε I`: no `d × d` array is formed, in `O(d r²)`.

    Every orthogonal initialization is this one in other coordinates, with target `R_Lᵀ Φ`
    (docs/theory.md 3.1).

    Raises
    ------
    ValueError
        If the target is not square, or `depth` or `scale` is out of range.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, lowdim_jax as ld
    >>> target = ld.random_target(jax.random.key(1), (50, 50), jnp.array([3.0, 2.0]))
    >>> reduction = reduce_identity(target, depth=3, scale=0.1)
    >>> reduction.layers[0].core.shape
    (4, 4)
    """
    check_depth(depth)
    check_scale(scale)
    if target.shape[0] != target.shape[1]:
        raise ValueError(f"target has shape {target.shape}, expected a square matrix")
    basis, _ = jnp.linalg.qr(jnp.concatenate([target.right, target.left], axis=1))
    scale = jnp.asarray(scale, target.dtype)
    return _reduction((basis,) * (depth + 1), (scale,) * depth, target, None)


def sample(
    key: jax.Array,
    d: int | Sequence[int],
    singular_values: Real[AnyArray, " r"] | Callable,
    /,
    *,
    scale,
    depth: int | None = None,
    **options,
) -> "Reduction | WindowReduction":
    """A randomly initialized network of any width, already reduced.

    *Of a factorization*, `sample(key, d, singular_values, depth=L, scale=ε)`: a Haar-initialized square
    network on a random target. The distribution is exact, not asymptotic. The product `R_L = Q_L ⋯ Q_1` of
    independent Haar-distributed matrices is Haar-distributed, so `R_Lᵀ U*` is uniform on the orthonormal
    `d × r` frames and independent of `V*`. By the gauge (docs/theory.md 3.1) the network is the
    identity-initialized one with this frame as left singular vectors: the frame is drawn directly, and
    no `d × d` array exists anywhere. Costs `O(d r²)` time and `O(d r)` memory (docs/theory.md 3.4).

    *Of any loss*, `sample(key, (d_in, h, …, h, d_out), loss, scale=ε)`: Haar-distributed middle layers, and
    outer ones that are Haar-distributed, too, or Gaussian. The loss sees the network through a window of
    `n` inputs and `k` outputs. Only the Gram matrix of the outer layers' columns enters, and it is drawn
    itself: `O((n + k)³)` time and no array of size `h`, at any `h` (docs/theory.md 3.8).

    Parameters
    ----------
    key
        Random key.
    d
        Width; or all widths, input to output, with hidden layers of one width.
    singular_values
        `(r,)`: `σ*_i`. Or a loss, as for `reduce`.
    scale
        `ε`; with a loss, also one number a layer.
    depth
        `L`, where the width is one number.
    options
        With a loss: `window` and `per_step` as for `reduce`; `outer`, `"orthogonal"` or `"gaussian"`, as
        `initialization.orthogonal` and `initialization.gaussian` draw the first and the last layer; `dtype`;
        and `core_only=False` to draw the outer layers themselves, so that `lift` can form the full network.

    Raises
    ------
    ValueError
        If a width, scale or option is out of range, or one is given that belongs to the other kind.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, lowdim_jax as ld
    >>> reduction = ld.sample(jax.random.key(0), 10_000, jnp.array([2.0, 1.0]), depth=3, scale=0.1)
    >>> run = ld.reduced_descent(reduction, ld.GradientDescent(0.1), steps=300)
    >>> bool(reduction.problem.recovery_error(run.weights) < 0.1)
    True
    """
    if callable(singular_values):
        if depth is not None or isinstance(d, int):
            raise ValueError(
                f"d={d}, depth={depth}: with a loss, expected all widths (d_in, h, …, h, d_out) and no depth"
            )
        return sample_window(key, d, singular_values, scale=scale, **options)
    if depth is None or not isinstance(d, int) or options:
        raise ValueError(
            f"d={d}, depth={depth}, {', '.join(options) or 'no options'}: with singular values, expected one "
            "width, a depth and a scale"
        )
    target = random_target(key, (d, d), singular_values)
    return reduce_identity(target, depth=depth, scale=scale)


def reduced_descent(
    reduction: "Reduction | WindowReduction",
    optimizer: GradientDescent | GradientTransformation,
    /,
    *,
    strict: bool = True,
    **options,
) -> Trajectory:
    """Train a reduced network as the full one would train: `gradient_descent` on `reduction`.

    Parameters
    ----------
    optimizer
        `GradientDescent`: plain, with momentum, Nesterov momentum, weight decay or discrepant rates, under
        all of which the law is exact. Where the loss sees the network through a window, also any optax
        optimizer that rotates with the weights, with clipping, schedules and rates of layers: it is tried on
        a small network first.
    strict
        Refuse other optimizers. Adam, for one, is not rotation-equivariant: it moves the entries of the
        core as if they were the full network's, which they are not (docs/theory.md 3.2).
    options
        Of `gradient_descent`.

    Raises
    ------
    ValueError
        For an optimizer under which the reduction is not exact, unless `strict=False`.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, lowdim_jax as ld
    >>> reduction = ld.sample(jax.random.key(0), 1000, jnp.array([2.0, 1.0]), depth=3, scale=0.3)
    >>> run = ld.reduced_descent(reduction, ld.GradientDescent(0.1), steps=100, record_every=50)
    >>> run.steps, bool(run.losses[-1] < run.losses[0] / 10)
    (Array([  0,  50, 100], dtype=int32), True)
    """
    if strict:
        reduction.check_optimizer(optimizer)
    objective: Any = reduction.problem
    per_step = getattr(objective, "per_step", False)
    return gradient_descent(objective, reduction.layers, optimizer, per_step=per_step, **options)


def _reduction(bases, scales, target: LowRank, frames) -> Reduction:
    layers = tuple(
        ReducedLayer(
            scale * _isometries.identity(after, after.shape[1], before.shape[1]), scale, scale
        )
        for scale, before, after in zip(scales, bases, bases[1:], strict=False)
    )
    bulk_count = min(len(basis) - basis.shape[1] for basis in bases)
    count = as_array(np.asarray(bulk_count, target.dtype))
    problem = ReducedFactorization(_core_target(bases, target), count)
    return Reduction(layers, problem, bases, frames)


def _core_target(bases, target: LowRank) -> LowRank:
    return LowRank(bases[-1].T @ target.left, target.singular_values, bases[0].T @ target.right)
