"""Matrix sensing: recover `Φ` from linear measurements `y_i = ⟨A_i, Φ⟩`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from lowdim_jax._arrays import all_finite, as_count, as_floats, as_shape
from lowdim_jax._host import AnyArray, as_array, as_pytree, is_traced, on_host
from lowdim_jax.linalg import LowRank, dense, leading_svd, noise_norm
from lowdim_jax.networks import check_fits, end_to_end
from lowdim_jax.problems.base import as_truth, held_out, relative_error
from lowdim_jax.problems.noise import flipped_norm

PROBES = 8


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _Stack:
    """`𝒜` as a dense stack of measurement matrices; products with it are two passes over the stack."""

    matrices: Float[AnyArray, "m d_out d_in"]

    @property
    def shape(self) -> tuple[int, int]:
        _, d_out, d_in = self.matrices.shape
        return d_out, d_in

    def apply(self, matrix: jax.Array) -> jax.Array:
        flat = self.matrices.reshape(len(self.matrices), -1)
        return (flat @ matrix.astype(flat.dtype).ravel()).astype(matrix.dtype)

    def adjoint(self, y: jax.Array) -> jax.Array:
        flat = self.matrices.reshape(len(self.matrices), -1)
        return (y.astype(flat.dtype) @ flat).reshape(self.shape).astype(y.dtype)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _Pair:
    """`𝒜` as a caller's two functions, whose arrays are leaves where they are methods of a pytree."""

    apply: Callable[[jax.Array], jax.Array]
    adjoint: Callable[[jax.Array], jax.Array]
    shape: tuple[int, int] = field(metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _Part:
    """Some of the measurements of a pair of functions."""

    whole: _Pair
    chosen: Int[Array, " n"]
    total: int = field(metadata={"static": True})

    @property
    def shape(self) -> tuple[int, int]:
        return self.whole.shape

    def apply(self, matrix: jax.Array) -> jax.Array:
        return self.whole.apply(matrix)[self.chosen]

    def adjoint(self, y: jax.Array) -> jax.Array:
        return self.whole.adjoint(jnp.zeros(self.total, y.dtype).at[self.chosen].set(y))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Sensing:
    """Matrix sensing problem; build it with `sensing`.

    Attributes
    ----------
    operator
        `𝒜`, with `apply(W)` of shape `(m,)` and `adjoint(y)` of shape `(d_out, d_in)`.
    labels
        `(m,)`: `y`.
    curvature
        `c`, the mean eigenvalue of `𝒜*𝒜`, by which the loss is divided.
    truth
        `Φ`, where it is known.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, lowdim_jax as ld
    >>> measurements = ld.gaussian_measurements(jax.random.key(0), 200, (4, 3))
    >>> problem = ld.sensing(measurements, truth=ld.linalg.svd(jnp.eye(4, 3)))
    >>> float(problem.recovery_error((jnp.eye(4, 3),)))
    0.0
    """

    operator: Any
    labels: Float[AnyArray, " m"]
    curvature: Float[AnyArray, ""]
    truth: Float[AnyArray, "d_out d_in"] | LowRank | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Shape `(d_out, d_in)` of the matrix to recover."""
        return self.operator.shape

    def loss(self, weights: Sequence[AnyArray], /) -> Float[Array, ""]:
        """`‖𝒜(W) − y‖² / 2c`, on average over isotropic measurements `½‖W − Φ‖_F²`."""
        check_fits(weights, self.shape)
        matrix = end_to_end(weights)
        half = _half_squared_misfit(self.operator, self.labels.astype(matrix.dtype))
        return half(matrix) / self.curvature.astype(matrix.dtype)

    def recovery_error(self, weights: Sequence[AnyArray], /) -> Float[Array, ""]:
        """Relative Frobenius error `‖W − Φ‖_F / ‖Φ‖_F`; needs a `truth`."""
        return relative_error(self.truth, weights)

    def surrogate_matrix(self) -> Float[Array, "d_out d_in"]:
        """`−∇ℓ(0) = 𝒜*(y) / c`, an unbiased estimate of `Φ` (docs/theory.md 1.3)."""
        return self.operator.adjoint(self.labels) / self.curvature

    def surrogate(self, rank: int | None = None, /) -> LowRank:
        """Leading `rank` singular triplets of the surrogate; all of them by default."""
        return leading_svd(self.surrogate_matrix(), rank)

    def surrogate_error(self) -> Float[Array, ""]:
        """Expected spectral norm of `surrogate − Φ`, for Gaussian measurements (docs/theory.md 1.7).

        `‖Φ‖_F (√d_out + √d_in) / √m`, with `‖Φ‖_F²` estimated by `‖y‖² / c`.
        """
        energy = (self.labels**2).sum() / self.curvature
        d_out, d_in = self.shape
        return noise_norm(energy * d_out * d_in / len(self.labels), self.shape)

    def noise_edge(self, *, seed: int = 0) -> float:
        """Largest singular value that the surrogate would have if the labels had random signs.

        What stands above it is structure (docs/theory.md 1.7). Of concrete values.
        """

        def surrogate_of(labels):
            return np.asarray(_adjoint(self.operator, jnp.asarray(labels)) / self.curvature)

        return flipped_norm(np.asarray(self.labels), surrogate_of, seed=seed)

    @property
    def count(self) -> int:
        """Number of measurements."""
        return len(self.labels)

    @property
    def magnitude(self) -> float:
        """Largest label in absolute value (of concrete values)."""
        return float(np.abs(np.asarray(self.labels)).max())

    def scaled(self, factor: float, /) -> "Sensing":
        """The problem of the labels times a factor, without its truth."""
        return Sensing(self.operator, self.labels * self.labels.dtype.type(factor), self.curvature)

    def residual(self, weights: Sequence[jax.Array], /) -> "Sensing":
        """The problem of what a network leaves of the labels, without its truth."""
        left = self.labels - self.operator.apply(end_to_end(weights)).astype(self.labels.dtype)
        return Sensing(self.operator, left, self.curvature)

    def split(self, fraction: float, /, *, seed: int = 0) -> "tuple[Sensing, Sensing]":
        """A problem to train on, and one of a random `fraction` of the measurements to validate on.

        Raises
        ------
        ValueError
            If one of the two would have no measurement.
        """
        held = held_out(len(self.labels), fraction, seed)
        parts = []
        for chosen in map(np.flatnonzero, (~held, held)):
            curvature = self.curvature * (len(chosen) / len(self.labels))
            if isinstance(self.operator, _Stack):
                operator = _Stack(as_array(on_host(self.operator.matrices)[chosen]))
            else:
                operator = _Part(self.operator, as_array(chosen), len(self.labels))
            labels = as_array(on_host(self.labels)[chosen])
            parts.append(Sensing(operator, labels, curvature, self.truth))
        return parts[0], parts[1]


def sensing(
    measurements, labels=None, /, *, truth=None, shape: tuple[int, int] | None = None, curvature=None
) -> Sensing:
    """Matrix sensing problem of given measurements.

    Parameters
    ----------
    measurements
        Stack of measurement matrices `A_i`, of shape `(m, d_out, d_in)`; or a pair of functions
        `(apply, adjoint)`, `apply` from `(d_out, d_in)` to `(m,)` arrays and `adjoint` back.
    labels
        `(m,)`: `y`. If left out, the truth's measurements `𝒜(Φ)`.
    truth
        `Φ` where it is known, dense or `LowRank`: only `recovery_error` looks at it.
    shape
        `(d_out, d_in)`, for a pair of functions.
    curvature
        `c` of the loss `‖𝒜(W) − y‖² / 2c`. By default the mean eigenvalue of `𝒜*𝒜`: exact for a
        stack, `Σ_i ‖A_i‖_F² / (d_out d_in)`, and a mean over Gaussian probes for functions. It is 1 for
        `gaussian_measurements`. The paper's code has `A_i ~ N(0, 1)/m` and `c = 1`, a loss `m` times
        smaller than this one: its `η` is `η / m` here.

    Raises
    ------
    ValueError
        If shapes do not fit together, there is no measurement, entries are not finite, or `adjoint`
        is not the adjoint of `apply`.

    Notes
    -----
    float32 measurements with float64 weights take half the memory and time. Products with them are
    then float32 ones: the gradient is exact to about 1e-7, and so is the matrix recovered.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, lowdim_jax as ld
    >>> measurements = ld.gaussian_measurements(jax.random.key(0), 200, (4, 3))
    >>> labels = jnp.einsum("mij,ij->m", measurements, 2 * jnp.eye(4, 3))
    >>> problem = ld.sensing(measurements, labels)
    >>> round(float(problem.loss((2 * jnp.eye(4, 3),))), 4)
    0.0
    """
    operator = _operator(measurements, shape)
    truth = as_truth(truth, operator.shape)
    if labels is None:
        if truth is None:
            raise ValueError("labels and truth are both missing, expected one of them")
        labels = _measured(operator, truth)
    labels = as_floats("labels", labels)
    expected = jax.eval_shape(operator.apply, jax.ShapeDtypeStruct(operator.shape, labels.dtype)).shape
    if labels.shape != expected or labels.size == 0:
        raise ValueError(f"labels has shape {labels.shape}, expected {expected}: one a measurement")
    if isinstance(operator, _Pair):
        _check_adjoint(operator, labels)
    if curvature is None:
        curvature = _mean_eigenvalue(operator, labels.dtype)
    curvature = jnp.asarray(curvature, labels.dtype)
    if not is_traced(curvature) and not 0 < curvature < jnp.inf:
        raise ValueError(f"curvature={curvature}, expected a positive finite number")
    return Sensing(operator, labels, curvature, truth)


@jax.jit
def _measured(operator, truth) -> jax.Array:
    return operator.apply(dense(truth))


@jax.jit
def _adjoint(operator, labels) -> jax.Array:
    return operator.adjoint(labels)


def gaussian_measurements(key: jax.Array, m: int, shape: tuple[int, int], /, *, dtype=None):
    """`m` independent Gaussian measurement matrices with entries `N(0, 1/m)`, `(m, d_out, d_in)`.

    Normalized so that `𝒜*𝒜` is the identity on average. One compiled program, a matrix at a time so
    that nothing beside the result needs memory.

    Examples
    --------
    >>> import jax, lowdim_jax as ld
    >>> ld.gaussian_measurements(jax.random.key(0), 50, (4, 3)).shape
    (50, 4, 3)
    """
    return _draw(key, as_count("m", m, least=1), as_shape("shape", shape), dtype)


@partial(jax.jit, static_argnums=(1, 2, 3))
def _draw(key: jax.Array, m: int, shape: tuple[int, int], dtype):
    def draw(key):
        return jax.random.normal(key, shape, dtype) / m**0.5

    return jax.lax.map(draw, jax.random.split(key, m))


def _operator(measurements, shape) -> _Stack | _Pair:
    if isinstance(measurements, tuple) and len(measurements) == 2 and all(map(callable, measurements)):
        apply, adjoint = map(as_pytree, measurements)
        return _Pair(apply, adjoint, as_shape("shape", shape))
    stack = as_floats("measurements", measurements, finite=False)
    if not is_traced(stack) and not all_finite(stack):
        raise ValueError("measurements has entries that are NaN or infinite")
    if stack.ndim != 3 or stack.size == 0:
        raise ValueError(
            f"measurements has shape {stack.shape}, expected (m, d_out, d_in), or a pair of functions"
        )
    if shape is not None and as_shape("shape", shape) != stack.shape[1:]:
        raise ValueError(f"shape={shape}, but the measurements are of {stack.shape[1:]} matrices")
    return _Stack(stack)


def _half_squared_misfit(operator: "_Stack | _Pair", labels: jax.Array) -> Callable[[jax.Array], jax.Array]:
    """`½‖𝒜(W) − y‖²` with the gradient `𝒜*(𝒜(W) − y)`: no caller's `apply` is differentiated for it."""

    @jax.custom_jvp
    def half(matrix):
        return jnp.sum((operator.apply(matrix) - labels) ** 2) / 2

    @half.defjvp
    def _(matrices, tangents):
        misfit = operator.apply(matrices[0]) - labels
        return jnp.sum(misfit**2) / 2, jnp.vdot(operator.adjoint(misfit), tangents[0])

    return half


def _check_adjoint(operator: _Pair, labels: jax.Array) -> None:
    """Raise `ValueError` unless `⟨𝒜(W), y⟩ = ⟨W, 𝒜*(y)⟩` for one random pair of concrete values."""
    if is_traced(operator, labels):
        return
    rng = np.random.default_rng(0)
    matrix, y = (
        jnp.asarray(rng.standard_normal(shape), labels.dtype) for shape in (operator.shape, labels.shape)
    )
    image, back = operator.apply(matrix), operator.adjoint(y)
    if back.shape != operator.shape:
        raise ValueError(f"adjoint returns shape {back.shape}, expected {operator.shape}")
    gap = abs(float(jnp.vdot(image, y) - jnp.vdot(matrix, back)))
    if not gap <= 1e-3 * float(jnp.linalg.norm(image) * jnp.linalg.norm(y)):
        raise ValueError(f"adjoint is not the adjoint of apply: ⟨𝒜(W), y⟩ and ⟨W, 𝒜*(y)⟩ differ by {gap:g}")


@partial(jax.jit, static_argnames="dtype")
def _mean_eigenvalue(operator, dtype) -> jax.Array:
    """`trace(𝒜*𝒜) / (d_out d_in)`, for a pair of functions from Gaussian probes."""
    if isinstance(operator, _Stack):
        d_out, d_in = operator.shape
        return (jnp.sum(operator.matrices**2) / (d_out * d_in)).astype(dtype)

    def energy(key):
        return jnp.sum(operator.apply(jax.random.normal(key, operator.shape, dtype)) ** 2)

    keys = jax.random.split(jax.random.key(0), PROBES)
    return jnp.mean(jax.lax.map(energy, keys)) / (operator.shape[0] * operator.shape[1])
