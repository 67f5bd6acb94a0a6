"""Closing a fit: Gauss–Newton steps on matrices of one rank, where gradient descent would take too long.

Descent's time grows with the condition number of the matrix (docs/theory.md 2.4: a component `σ` waits for
`1/σ`), that of a Gauss–Newton step does not. Nothing but the loss of networks of two factors is needed.
"""

from collections.abc import Iterable, Iterator
from functools import reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lowdim_jax._cache import Program
from lowdim_jax._host import as_array, as_pytree, on_host
from lowdim_jax.linalg import LowRank
from lowdim_jax.networks import Weights, narrowest_hidden

PRODUCTS = 200
"""Products with the Hessian that a step may take."""
DAMPING = 1e-2
"""Damping of the first step, as a fraction of the Hessian's size along the gradient."""
MOST_DAMPING = 1e4
SOLVING = 8
"""Conjugate gradients of one factor's ridge regression: the next one goes on from there."""
RIDGES = tuple(np.geomspace(0.5, 1e-3, 16).tolist())
"""Ridges of a graduated fit, as fractions of the surrogate's largest singular value, where it is zero."""
TIMES = 1000
"""Times that a closing goes through the data, about."""
SMALL = 1000
"""Side of a matrix up to which it is closed as one of eight components at least."""
LOOK_BACK = 3
"""Steps over which progress is measured."""
ROUNDING = 20
"""Relative misfit at which a fit is exact, in units of rounding."""


class Closed(NamedTuple):
    """A matrix of given rank, its loss, and the gradients of the loss that it took."""

    parts: LowRank
    loss: float
    gradients: int


def close(
    loss: Any, parts: LowRank, /, *, goal: float, gradients: int, stall: float = 1e-3
) -> Closed:
    """Minimize the loss of matrices of one rank by damped Gauss–Newton steps, from a given matrix.

    A step minimizes the loss over the tangent space `{dA Vᵀ + U dBᵀ}` at `U Σ Vᵀ`, damped (Levenberg and
    Marquardt) and by conjugate gradients; then the sum is cut to its rank again. For a loss that is a
    quadratic function of the matrix the tangent problem is a linear one, and convergence near an exact fit
    is quadratic, whatever the condition number of the matrix: the bases `U, V` are orthonormal.

    The loss and its gradient are compiled; what is done with them is NumPy's, of `(d_out + d_in) r` numbers.

    Parameters
    ----------
    loss
        Loss of a network of two factors, `problem.loss`.
    parts
        Where to start; its number of components is the rank.
    goal
        Loss to stop at.
    gradients
        Number of gradients of the loss to spend at most.
    stall
        Stop where three steps have not reduced the loss by this fraction.
    """
    loss, rank = as_pytree(loss), len(parts.singular_values)
    parts = _padded(parts)
    value, gradient = _at(loss, parts)
    damping, spent, losses = DAMPING, 1, [value]
    rounding = float(np.finfo(parts.dtype).eps)
    while value > goal and spent < gradients and damping < MOST_DAMPING:
        accuracy = max(min(0.1, (value / losses[0]) ** 0.5), 4 * rounding)
        move, promised, products = _tangent_step(
            loss, parts, value, gradient, damping, accuracy, min(PRODUCTS, gradients - spent)
        )
        trial = _moved(parts, move, rank)
        after, slope = _at(loss, trial)
        spent += products + 1
        if not value - promised > 4 * rounding * value:
            break  # what could be gained is rounding
        gain = (value - after) / (value - promised)
        if not gain > 0.1:
            damping *= 4
            continue
        parts, value, gradient = trial, after, slope
        losses.append(value)
        damping = max(damping / 4 if gain > 0.7 else damping * (2 if gain < 0.3 else 1), 1e-12)
        if len(losses) > LOOK_BACK and value > (1 - stall) * losses[-1 - LOOK_BACK]:
            break
    return Closed(LowRank(*map(as_array, _cut(parts, rank))), value, spent)


def graduated(loss: Any, parts: LowRank, ridges: Iterable[float], /) -> Iterator[LowRank]:
    """Matrices `A Bᵀ` of small `ℓ(A Bᵀ) + (λ/2) (‖A‖² + ‖B‖²)`, for ridges that fall: a path.

    For a width above the matrix's the penalty is `λ ‖A Bᵀ‖_*`, the nuclear norm (Srebro, Rennie and Jaakkola
    2004): large ridges leave few components, whatever the width, and a falling one lets others in one by one.
    So the path ends in better minima than a fit without a ridge finds near the information limit; and with
    noise its best point is better than its end. One sweep of alternating ridge regressions a ridge, of
    `SOLVING` conjugate gradients each: `gradients_of_a_sweep` gradients.

    Parameters
    ----------
    loss
        Loss of a network of two factors, a quadratic function of the matrix.
    parts
        Where to start; its number of components is the width.
    ridges
        `λ`, falling; at the surrogate's largest singular value the zero matrix is the minimum.
    """
    loss, rank = as_pytree(loss), len(parts.singular_values)
    parts = _padded(parts)
    root = np.sqrt(parts.singular_values)
    a, b = parts.left * root, parts.right * root
    for ridge in ridges:
        a, b = _ridge_sweep(loss, a, b, np.asarray(ridge, parts.dtype), times=TIMES)
        yield LowRank(*map(as_array, _cut(_product_svd(np.asarray(a), np.asarray(b).T), rank)))


def gradients_of_a_sweep() -> int:
    """Gradients of the loss that a point of `graduated` takes."""
    return 2 * (SOLVING + 1)


def value_of(loss: Any, parts: LowRank, /) -> float:
    """Loss of a matrix of few components."""
    return _at(as_pytree(loss), _padded(parts))[0]


def residual_of(problem: Any, parts: LowRank, /) -> Any:
    """The problem of what a matrix leaves of the data."""
    return _residual(as_pytree(problem.residual), factors(_padded(parts)))


def factors(parts: LowRank, /) -> Weights:
    """The matrix as a network of two factors."""
    left, values, right = on_host((parts.left, parts.singular_values, parts.right))
    return tuple(map(as_array, (right.T, left * values[None, :])))


def parts_of(weights: Weights, /, rank: int | None = None) -> LowRank:
    """Leading components of a network's end-to-end matrix."""
    split, layers = narrowest_hidden(weights), [np.asarray(layer) for layer in weights]
    a, b = (reduce(np.matmul, part[::-1]) for part in (layers[split:], layers[:split]))
    return LowRank(*map(as_array, _cut(_product_svd(a, b), rank)))


def exact_loss(loss_at_zero: float, dtype: Any, /) -> float:
    """Loss that rounding leaves of an exact fit."""
    return loss_at_zero * (ROUNDING * float(np.finfo(dtype).eps)) ** 2


@Program
def _residual(residual, weights):
    return residual(weights)


@Program
def _tangent_loss(loss, left, values, right, move):
    """Loss of `U Σ Vᵀ + dA Vᵀ + U dBᵀ`, and its gradient by `move`, which is `dA` above `dB`."""

    def of(move):
        a, b = move[: len(left)], move[len(left) :]
        outer = jnp.concatenate([left * values[None, :] + a, left], axis=1)
        return loss((jnp.concatenate([right.T, b.T]), outer))

    return jax.value_and_grad(of)(move)


@Program
def _ridge_sweep(loss, a, b, ridge):
    """Ridge regressions of the left factor on the right one, then the other way round."""
    a = _regression(lambda a: loss((b.T, a)), a, ridge)
    return a, _regression(lambda b: loss((b.T, a)), b, ridge)


def _regression(loss, factor, ridge):
    """Minimizer of a quadratic loss and a ridge, by conjugate gradients, as far as they are not rounding."""
    slope = jax.grad(lambda factor: loss(factor) + ridge / 2 * jnp.sum(factor**2))
    first, limits = slope(jnp.zeros_like(factor)), jnp.finfo(factor.dtype)
    tiny, eps = float(limits.tiny), float(limits.eps)
    rounding = (1e3 * eps) ** 2 * jnp.vdot(first, first)

    def step(state, _):
        factor, remainder, direction, left = state
        image = slope(direction) - first
        length = jnp.where(left > rounding, left / jnp.maximum(jnp.vdot(direction, image), tiny), 0)
        factor, remainder = factor + length * direction, remainder - length * image
        after = jnp.vdot(remainder, remainder)
        turn = jnp.where(left > rounding, after / jnp.maximum(left, tiny), 0)
        return (factor, remainder, remainder + turn * direction, after), None

    remainder = -slope(factor)
    state = factor, remainder, remainder, jnp.vdot(remainder, remainder)
    return jax.lax.scan(step, state, length=SOLVING)[0][0]


def _slope(loss, parts: LowRank, move: np.ndarray) -> tuple[float, np.ndarray]:
    value, gradient = _tangent_loss(
        loss, parts.left, parts.singular_values, parts.right, move, times=TIMES
    )
    return float(value), np.asarray(gradient)


def _at(loss, parts: LowRank) -> tuple[float, np.ndarray]:
    return _slope(loss, parts, np.zeros((sum(parts.shape), len(parts.singular_values)), parts.dtype))


def _tangent_step(loss, parts, value, gradient, damping, accuracy, limit):
    """Minimizer of the damped loss over the tangent space, the loss there, and the gradients it took."""
    move, remainder = np.zeros_like(gradient), -gradient
    direction, size = remainder, np.vdot(gradient, gradient)
    left, added, count = size, None, 0
    while left > accuracy**2 * size and count < limit:
        image = _slope(loss, parts, direction)[1] - gradient
        if added is None:  # damping is relative to the curvature along the gradient
            added = damping * np.vdot(direction, image) / size
        image = image + added * direction
        curvature = np.vdot(direction, image)
        count += 1
        if not curvature > 0:
            break
        move = move + (left / curvature) * direction
        remainder = remainder - (left / curvature) * image
        before, left = left, np.vdot(remainder, remainder)
        direction = remainder + (left / before) * direction
    change = np.vdot(move, gradient) - np.vdot(move, remainder) - (added or 0) * np.vdot(move, move)
    return move, float(value + change / 2), count


def _moved(parts: LowRank, move: np.ndarray, rank: int) -> LowRank:
    """The tangent step taken, and cut to its rank; as wide as before."""
    u, s, v = parts.left, parts.singular_values, parts.right
    a, b = move[: len(u)], move[len(u) :]
    whole = _product_svd(np.concatenate([u * s + a, u], axis=1), np.concatenate([v.T, b.T]))
    return _padded(LowRank(*_cut(whole, rank)))


def _product_svd(a: np.ndarray, b: np.ndarray) -> LowRank:
    """Thin singular value decomposition of `a b`."""
    q_left, r_left = np.linalg.qr(a)
    q_right, r_right = np.linalg.qr(b.T)
    left, values, right = np.linalg.svd(r_left @ r_right.T, full_matrices=False)
    parts: Any = q_left @ left, values, q_right @ right.T
    return LowRank(*parts)


def _cut(parts: LowRank, rank: int | None):
    return parts.left[:, :rank], parts.singular_values[:rank], parts.right[:, :rank]


def _padded(parts: LowRank) -> LowRank:
    """As NumPy arrays, with zero components up to one of few widths: a program is compiled for each.

    Of a small matrix a few more cost nothing, and growing from 4 to 5 is no other program.
    """
    rank, most = len(parts.singular_values), min(parts.shape)
    width = min(most, max(8 if max(parts.shape) <= SMALL else 4, 1 << (rank - 1).bit_length()))
    add = ((0, 0), (0, width - rank))
    left, values, right = (np.asarray(part) for part in (parts.left, parts.singular_values, parts.right))
    padded: Any = np.pad(left, add), np.pad(values, add[1]), np.pad(right, add)
    return LowRank(*padded)
