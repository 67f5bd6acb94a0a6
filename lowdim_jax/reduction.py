"""The law of parsimony: a wide, orthogonally initialized network, exactly, in a few dimensions.

Gradient descent on `½‖W_L ⋯ W_1 − Φ‖_F²`, `Φ = U* diag(s) V*ᵀ` of rank `r`, from `W_l(0) = ε_l P_l`
with `P_l` (semi-)orthogonal, never leaves the block form

    W_l(t) = B_l z_l(t) B_{l−1}ᵀ + ρ_l(t) (live bulk) + ι_l(t) (idle bulk)

in fixed orthonormal bases `B_0, …, B_L` of small subspaces that the layers map to each other. The core
`z` is itself a deep linear network, of width `2r` where all layers are square, started at a (rectangular)
identity times `ε`; the bulk is one scalar a layer. A step costs `O(L r³)` whatever the width.

Derivation: docs/theory.md 3.1, 3.2 and, for layers that are not square, 3.5.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from lowdim_jax._host import is_traced
from lowdim_jax.descent import gradient_descent
from lowdim_jax.initialization import check_scale
from lowdim_jax.linalg import LowRank, check_finite, estimate_rank, frobenius_norm, svd
from lowdim_jax.networks import Weights, check_depth, check_fits, end_to_end, widths
from lowdim_jax.optimizers import GradientDescent
from lowdim_jax.problems.matrix_factorization import factorization
from lowdim_jax.problems.targets import random_target
from lowdim_jax.trajectory import Trajectory


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
        core = jnp.sum((end_to_end(cores(layers)) - self.target.dense()) ** 2) / 2
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
        if self.frames is None:
            return tuple(map(_lift_between, layers, self.bases, self.bases[1:]))
        embeddings = _embeddings(self.frames)
        narrow = self.bases[_narrowest(widths(self.frames))]
        outside = jnp.eye(len(narrow), dtype=narrow.dtype) - narrow @ narrow.T
        return tuple(
            _lift_between(
                layer,
                self.bases[number],
                self.bases[number + 1],
                self.frames[number],
                embeddings[number + 1] @ outside @ embeddings[number].T,
            )
            for number, layer in enumerate(layers)
        )


def _lift_between(layer: ReducedLayer, before, after, frame=None, live=None) -> jax.Array:
    """Weights of a full layer: core, live bulk and idle bulk, in the bases before and after it."""
    if frame is None or live is None:  # the identity, whose bulk is live throughout
        frame = jnp.eye(len(after), dtype=after.dtype)
        live = frame - after @ before.T
    start = jnp.eye(*layer.core.shape, dtype=frame.dtype)
    idle = frame - after @ start @ before.T - live
    return after @ layer.core @ before.T + layer.bulk * live + layer.idle * idle


def _end_to_end_bulk(layers: Sequence[ReducedLayer]) -> Float[Array, ""]:
    """`Π_l ρ_l`."""
    return jnp.prod(jnp.stack([layer.bulk for layer in layers]))


def cores(layers: Sequence[ReducedLayer], /) -> Weights:
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
    weights: Sequence[jax.Array], target: jax.Array | LowRank, /, *, strict: bool = True
) -> Reduction:
    """Exact reduction of an orthogonally initialized network on a factorization problem.

    Parameters
    ----------
    weights
        Initial weights: each layer a (semi-)orthogonal matrix times a scale of its own.
    target
        `Φ`, dense (its numerical rank is taken, so it must be concrete) or `LowRank`.
    strict
        Refuse an initialization that is not orthogonal, and widths that grow and then shrink. With
        `strict=False` every layer is replaced by its best fit `ε_l P_l` of orthogonal polar factor `P_l`,
        and a space that bulges by its part that its outer end reaches: a network for which the law
        holds, to study how it fails for the one given.

    Returns
    -------
    `Reduction` with cores of width `2r` for square layers. Each change of width on the way from the
    narrowest space to the input or the output adds up to `r` more.

    Raises
    ------
    ValueError
        If a layer is not orthogonal, or the widths first grow and then shrink: between two spaces that
        are wider than what is before and after them no small subspace is closed under the layers
        (docs/theory.md 3.5).

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
    """
    spaces = widths(weights)
    valley = _is_valley(spaces)
    if strict and not valley:
        raise ValueError(
            f"widths {tuple(spaces)} grow and then shrink: no small subspace is closed under such "
            "layers, so there is no exact reduction; hidden layers no wider than "
            f"{max(spaces[0], spaces[-1])} = max(d_in, d_out), without a bulge, have one, and "
            "strict=False takes the nearest network of such widths"
        )
    target = factorization(target).target
    check_fits(weights, target.shape)
    if not isinstance(target, LowRank):
        target = svd(target).truncate(estimate_rank(target))
    frames, scales = zip(
        *(_frame(weight, number, strict) for number, weight in enumerate(weights, 1)), strict=True
    )
    if valley:
        return _reduction(_bases(frames, target), scales, target, frames)
    parts = _reached(frames)
    ends = list(pairwise(parts))
    inner = [_polar(after.T @ frame @ before) for frame, (before, after) in zip(frames, ends, strict=True)]
    bases = tuple(part @ basis for part, basis in zip(parts, _bases(inner, target), strict=True))
    cut = tuple(after @ frame @ before.T for frame, (before, after) in zip(inner, ends, strict=True))
    return _reduction(bases, scales, target, cut)


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
    key: jax.Array, d: int, singular_values: Float[Array, " r"], /, *, depth: int, scale
) -> Reduction:
    """A Haar-initialized square network of any width on a random target, already reduced.

    The distribution is exact, not asymptotic. The product `R_L = Q_L ⋯ Q_1` of independent
    Haar-distributed matrices is Haar-distributed, so `R_Lᵀ U*` is uniform on the orthonormal `d × r`
    frames and independent of `V*`. By the gauge (docs/theory.md 3.1) the network is the
    identity-initialized one with this frame as left singular vectors: the frame is drawn directly, and
    no `d × d` array exists anywhere. Costs `O(d r²)` time and `O(d r)` memory (docs/theory.md 3.4).

    Parameters
    ----------
    key
        Random key.
    d
        Width.
    singular_values
        `(r,)`: `σ*_i`.
    depth, scale
        `L` and `ε`.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, lowdim_jax as ld
    >>> reduction = ld.sample(jax.random.key(0), 10_000, jnp.array([2.0, 1.0]), depth=3, scale=0.1)
    >>> run = ld.reduced_descent(reduction, ld.GradientDescent(0.1), steps=300)
    >>> bool(reduction.problem.recovery_error(run.weights) < 0.1)
    True
    """
    target = random_target(key, (d, d), singular_values)
    return reduce_identity(target, depth=depth, scale=scale)


def reduced_descent(
    reduction: Reduction,
    optimizer: GradientDescent | optax.GradientTransformation,
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
        all of which the law is exact.
    strict
        Refuse other optimizers. Adam, for one, is not rotation-equivariant: it moves the entries of the
        core as if they were the full network's, which they are not (docs/theory.md 3.2).
    options
        Of `gradient_descent`.

    Raises
    ------
    ValueError
        For an optimizer other than `GradientDescent`, unless `strict=False`.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, lowdim_jax as ld
    >>> reduction = ld.sample(jax.random.key(0), 1000, jnp.array([2.0, 1.0]), depth=3, scale=0.3)
    >>> run = ld.reduced_descent(reduction, ld.GradientDescent(0.1), steps=100, record_every=50)
    >>> run.steps, bool(run.losses[-1] < run.losses[0] / 10)
    (Array([  0,  50, 100], dtype=int32), True)
    """
    if strict and not isinstance(optimizer, GradientDescent):
        raise ValueError(
            f"optimizer is a {type(optimizer).__name__}, expected GradientDescent: the law of parsimony "
            "holds for updates that rotate with the weights, not for entrywise ones as Adam's; "
            "strict=False trains the reduced network all the same"
        )
    return gradient_descent(reduction.problem, reduction.layers, optimizer, **options)


def _narrowest(spaces: Sequence[int]) -> int:
    """Index of the narrowest space."""
    return list(spaces).index(min(spaces))


def _is_valley(spaces: Sequence[int]) -> bool:
    """Whether the widths never rise before they fall: towards the narrowest space from either end."""
    narrow = _narrowest(spaces)
    down, up = list(spaces[: narrow + 1]), list(spaces[narrow + 1 :])
    return down == sorted(down, reverse=True) and up == sorted(up)


def _reached(frames: Sequence[jax.Array]) -> list[jax.Array]:
    """Orthonormal bases of the part of each space that its outer end reaches: all of it, but for a bulge."""
    narrow, dtype = _narrowest(widths(frames)), frames[0].dtype
    from_input = _reached_from(frames[0].shape[1], frames[:narrow], dtype)
    outward = [frame.T for frame in reversed(frames[narrow:])]
    from_output = _reached_from(len(frames[-1]), outward, dtype)
    return [*from_input[:-1], *reversed(from_output)]


def _reached_from(end: int, frames: Sequence[jax.Array], dtype) -> list[jax.Array]:
    parts = [jnp.eye(end, dtype=dtype)]
    for frame in frames:
        image = frame @ parts[-1]
        wide, thin = image.shape
        parts.append(_polar(image) if wide > thin else jnp.eye(wide, dtype=dtype))
    return parts


def _polar(matrix: jax.Array) -> jax.Array:
    """Nearest (semi-)orthogonal matrix."""
    u, _, vt = jnp.linalg.svd(matrix, full_matrices=False)
    return u @ vt


def _frame(weight: jax.Array, number: int, strict: bool) -> tuple[jax.Array, jax.Array]:
    """Split a layer into a semi-orthogonal matrix and its scale."""
    check_finite(f"layer {number}", weight)
    s = jnp.linalg.svd(weight, compute_uv=False)
    scale = jnp.mean(s)
    if not is_traced(scale) and scale == 0:
        raise ValueError(f"layer {number} is zero: it has no orthogonal factor")
    if strict and not is_traced(scale):
        low, high = float(s[-1]), float(s[0])
        if high - low > 1e3 * float(jnp.finfo(s.dtype).eps) * high:
            raise ValueError(
                f"layer {number} has singular values from {low:.6g} to {high:.6g}: the law of parsimony "
                "needs an orthogonal initialization, where they are equal; strict=False takes the "
                "nearest one"
            )
    return _polar(weight), scale


def _embeddings(frames: Sequence[jax.Array]) -> tuple[jax.Array, ...]:
    """Isometries `J_l` from the narrowest space to each space: products of frames, or transposes."""
    spaces = widths(frames)
    narrow = _narrowest(spaces)
    embeddings = {narrow: jnp.eye(spaces[narrow], dtype=frames[0].dtype)}
    for space in range(narrow, 0, -1):
        embeddings[space - 1] = frames[space - 1].T @ embeddings[space]
    for space in range(narrow + 1, len(spaces)):
        embeddings[space] = frames[space - 1] @ embeddings[space - 1]
    return tuple(embeddings[space] for space in range(len(spaces)))


def _bases(frames: Sequence[jax.Array], target: LowRank) -> tuple[jax.Array, ...]:
    """Small bases that hold the target's singular vectors and that the layers map to each other.

    In the narrowest space they are spanned by `V*` carried forward and `U*` carried back. Where a
    layer widens on the way out from there, the new space also holds the part of `V*` (`U*`) which that
    layer cuts off.
    """
    narrow = _narrowest(widths(frames))
    forward = [target.right]
    for frame in frames[:narrow]:
        forward.append(frame @ forward[-1])
    backward = [target.left]
    for frame in reversed(frames[narrow:]):
        backward.append(frame.T @ backward[-1])

    bases = [jnp.linalg.qr(jnp.concatenate([forward[-1], backward[-1]], axis=1))[0]]
    for frame, vectors in zip(reversed(frames[:narrow]), reversed(forward[:-1]), strict=True):
        bases.insert(0, _extend(frame.T, bases[0], vectors))
    for frame, vectors in zip(frames[narrow:], reversed(backward[:-1]), strict=True):
        bases.append(_extend(frame, bases[-1], vectors))
    return tuple(bases)


def _extend(isometry: jax.Array, basis: jax.Array, vectors: jax.Array) -> jax.Array:
    """Basis carried over by an isometry, with the parts of `vectors` outside the isometry's range."""
    carried = isometry @ basis
    wide, thin = isometry.shape
    count = min(vectors.shape[1], wide - thin)
    if count == 0:
        return carried

    def outside(columns):
        return columns - isometry @ (isometry.T @ columns)

    u, s, _ = jnp.linalg.svd(outside(vectors), full_matrices=False)
    # Where a vector has no part outside, any direction there will do: the core never moves in it.
    spare = jax.random.normal(jax.random.key(0), (wide, count), u.dtype) / wide**0.5
    present = s[None, :count] > 100 * jnp.finfo(s.dtype).eps
    columns = jnp.where(present, u[:, :count], spare)
    for _ in range(2):
        columns, _ = jnp.linalg.qr(outside(columns))
    return jnp.concatenate([carried, columns], axis=1)


def _reduction(bases, scales, target: LowRank, frames) -> Reduction:
    core_target = LowRank(
        bases[-1].T @ target.left, target.singular_values, bases[0].T @ target.right
    )
    layers = tuple(
        ReducedLayer(
            scale * jnp.eye(after.shape[1], before.shape[1], dtype=after.dtype), scale, scale
        )
        for scale, before, after in zip(scales, bases, bases[1:], strict=False)
    )
    bulk_count = min(len(basis) - basis.shape[1] for basis in bases)
    problem = ReducedFactorization(core_target, jnp.asarray(bulk_count, target.dtype))
    return Reduction(layers, problem, bases, frames)
