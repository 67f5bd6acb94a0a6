"""Deep linear networks in NumPy: losses, gradients, descent, flow and curvature, one line a formula.

A *problem* here is a function of the end-to-end matrix `W` that returns its loss and the gradient by `W`.
"""

from collections.abc import Callable, Sequence

import numpy as np
import scipy  # which loads its parts on first use
from numpy.typing import ArrayLike

Network = list[np.ndarray]
MatrixLoss = Callable[[np.ndarray], tuple[float, np.ndarray]]


def product(weights: Sequence[np.ndarray]) -> np.ndarray:
    """`W_L ⋯ W_1`."""
    matrix, *rest = weights
    for weight in rest:
        matrix = weight @ matrix
    return matrix


# --- Problems -------------------------------------------------------------------------------------


def factorization(target: ArrayLike) -> MatrixLoss:
    """`½ Σ (W − Φ)²`."""
    target = np.asarray(target, float)
    return lambda matrix: (0.5 * np.sum((matrix - target) ** 2), matrix - target)


def sensing(measurements: ArrayLike, labels: ArrayLike, curvature: float) -> MatrixLoss:
    """`Σ_i (⟨A_i, W⟩ − y_i)² / 2c`."""
    measurements, labels = np.asarray(measurements, float), np.asarray(labels, float)

    def evaluate(matrix):
        loss, gradient = 0.0, np.zeros_like(matrix)
        for measurement, label in zip(measurements, labels, strict=True):
            misfit = np.sum(measurement * matrix) - label
            loss += misfit**2 / (2 * curvature)
            gradient += misfit * measurement / curvature
        return loss, gradient

    return evaluate


def completion(values: ArrayLike, mask: ArrayLike) -> MatrixLoss:
    """`Σ_{observed} (W − Φ)² / 2p`, `p` the fraction observed."""
    mask = np.asarray(mask, bool)
    values = np.where(mask, np.asarray(values, float), 0.0)
    fraction = np.mean(mask)

    def evaluate(matrix):
        misfit = np.where(mask, matrix - values, 0.0)
        return np.sum(misfit**2) / (2 * fraction), misfit / fraction

    return evaluate


def observed(rows: ArrayLike, columns: ArrayLike, values: ArrayLike, shape: tuple[int, int]) -> MatrixLoss:
    """The same, entry by entry."""
    entries = list(zip(np.asarray(rows), np.asarray(columns), np.asarray(values, float), strict=True))
    fraction = len(entries) / (shape[0] * shape[1])

    def evaluate(matrix):
        loss, gradient = 0.0, np.zeros(shape)
        for row, column, value in entries:
            misfit = matrix[row, column] - value
            loss += misfit**2 / (2 * fraction)
            gradient[row, column] += misfit / fraction
        return loss, gradient

    return evaluate


def regression(inputs: ArrayLike, outputs: ArrayLike) -> MatrixLoss:
    """`½ Σ (W X − Y)²`, one sample a column."""
    inputs, outputs = np.asarray(inputs, float), np.asarray(outputs, float)

    def evaluate(matrix):
        misfit = matrix @ inputs - outputs
        return 0.5 * np.sum(misfit**2), misfit @ inputs.T

    return evaluate


def cross_entropy(inputs: ArrayLike, labels: ArrayLike) -> MatrixLoss:
    """Mean softmax cross-entropy of the logits `W X`, one sample a column."""
    inputs, labels = np.asarray(inputs, float), np.asarray(labels, int)

    def evaluate(matrix):
        logits = matrix @ inputs
        shifted = np.exp(logits - logits.max(axis=0))
        chances = shifted / shifted.sum(axis=0)
        chosen = np.eye(len(matrix))[:, labels]
        loss = -np.mean(np.log(np.sum(chances * chosen, axis=0)))
        return loss, (chances - chosen) @ inputs.T / inputs.shape[1]

    return evaluate


def huber(inputs: ArrayLike, outputs: ArrayLike) -> MatrixLoss:
    """Mean over entries of `½ e²` where `|e| ≤ 1` and `|e| − ½` beyond, `e = W X − Y`."""
    inputs, outputs = np.asarray(inputs, float), np.asarray(outputs, float)

    def evaluate(matrix):
        misfit = matrix @ inputs - outputs
        size = np.abs(misfit)
        loss = np.mean(np.where(size <= 1, misfit**2 / 2, size - 0.5))
        return loss, np.clip(misfit, -1, 1) @ inputs.T / misfit.size

    return evaluate


def alternating(problems: Sequence[MatrixLoss]) -> MatrixLoss:
    """Another problem at each call, in order: mini-batches."""
    upcoming = iter(problems)
    return lambda matrix: next(upcoming)(matrix)


def loss_and_gradients(problem: MatrixLoss, weights: Sequence[np.ndarray]) -> tuple[float, Network]:
    """The loss, and `∇_l = (W_L ⋯ W_{l+1})ᵀ ∇ℓ(W) (W_{l−1} ⋯ W_1)ᵀ` of every layer."""
    products = [weights[0]]  # W_l ⋯ W_1
    for weight in weights[1:]:
        products.append(weight @ products[-1])
    loss, slope = problem(products[-1])
    gradients = []
    for layer in range(len(weights) - 1, 0, -1):
        gradients.append(slope @ products[layer - 1].T)
        slope = weights[layer].T @ slope
    return loss, [slope, *reversed(gradients)]


# --- Training -------------------------------------------------------------------------------------


def relative_rates(depth: int, alpha: float) -> list[float]:
    """`α` for the first and the last layer, 1 for those between."""
    rates = [1.0] * depth
    rates[0] = rates[-1] = alpha
    return rates


def descent(
    problem: MatrixLoss,
    weights: Sequence[np.ndarray],
    *,
    rate: float,
    steps: int,
    alpha: float = 1.0,
    momentum: float = 0.0,
    nesterov: bool = False,
    decay: float = 0.0,
) -> list[Network]:
    """Weights before the first step and after every step of gradient descent.

    `g = ∇ + λ W`, buffer `b ← β b + g`, then `W ← W − α_l η b`, or with Nesterov's momentum
    `W ← W − α_l η (g + β b)`.
    """
    weights = [np.array(weight, float) for weight in weights]
    buffers = [np.zeros_like(weight) for weight in weights]
    rates = relative_rates(len(weights), alpha)
    history = [weights]
    for _ in range(steps):
        _, gradients = loss_and_gradients(problem, weights)
        gradients = [g + decay * w for g, w in zip(gradients, weights, strict=True)]
        buffers = [momentum * b + g for b, g in zip(buffers, gradients, strict=True)]
        moves = buffers
        if nesterov:
            moves = [g + momentum * b for b, g in zip(buffers, gradients, strict=True)]
        weights = [w - a * rate * m for w, a, m in zip(weights, rates, moves, strict=True)]
        history.append(weights)
    return history


def adam(
    problem: MatrixLoss, weights: Sequence[np.ndarray], *, rate: float, steps: int
) -> list[Network]:
    """The same for Adam (Kingma and Ba 2015, algorithm 1) with its usual constants 0.9, 0.999, 1e-8."""
    weights = [np.array(weight, float) for weight in weights]
    first = [np.zeros_like(weight) for weight in weights]
    second = [np.zeros_like(weight) for weight in weights]
    history = [weights]
    for step in range(1, steps + 1):
        _, gradients = loss_and_gradients(problem, weights)
        first = [0.9 * m + 0.1 * g for m, g in zip(first, gradients, strict=True)]
        second = [0.999 * v + 0.001 * g**2 for v, g in zip(second, gradients, strict=True)]
        weights = [
            w - rate * (m / (1 - 0.9**step)) / (np.sqrt(v / (1 - 0.999**step)) + 1e-8)
            for w, m, v in zip(weights, first, second, strict=True)
        ]
        history.append(weights)
    return history


def flow(
    problem: MatrixLoss,
    weights: Sequence[np.ndarray],
    times: Sequence[float],
    *,
    alpha: float = 1.0,
    method: str = "DOP853",
    rtol: float = 1e-12,
    atol: float = 1e-14,
) -> list[Network]:
    """Weights at `times` under `Ẇ_l = −α_l ∇_l`, by SciPy's solver."""
    shapes = [np.shape(weight) for weight in weights]
    rates = relative_rates(len(shapes), alpha)

    def unpack(vector):
        ends = np.cumsum([np.prod(shape) for shape in shapes])
        parts = np.split(vector, ends[:-1])
        return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]

    def velocity(_, vector):
        _, gradients = loss_and_gradients(problem, unpack(vector))
        return np.concatenate([-a * g.ravel() for a, g in zip(rates, gradients, strict=True)])

    start = np.concatenate([np.ravel(weight) for weight in weights])
    run = scipy.integrate.solve_ivp(
        velocity, (0.0, float(times[-1])), start, method=method, t_eval=times, rtol=rtol, atol=atol
    )
    return [unpack(column) for column in run.y.T]


# --- Curvature and measurements -------------------------------------------------------------------


def top_curvature(problem: MatrixLoss, weights: Sequence[np.ndarray], *, alpha: float = 1.0) -> float:
    """Largest eigenvalue of `D^{1/2} H D^{1/2}`: `H` by differences of the gradient, `D` the rates."""
    sizes = [np.size(weight) for weight in weights]
    roots = np.repeat(np.sqrt(relative_rates(len(weights), alpha)), sizes)
    step = 1e-6 * max(np.max(np.abs(weight)) for weight in weights)
    columns = []
    for layer, weight in enumerate(weights):
        for index in np.ndindex(weight.shape):
            sides = []
            for sign in (1, -1):
                moved = [np.array(w, float) for w in weights]
                moved[layer][index] += sign * step
                _, gradients = loss_and_gradients(problem, moved)
                sides.append(np.concatenate([g.ravel() for g in gradients]))
            columns.append((sides[0] - sides[1]) / (2 * step))
    hessian = roots[:, None] * np.array(columns) * roots[None, :]
    return float(np.linalg.eigvalsh((hessian + hessian.T) / 2)[-1])


def modes(weights: Sequence[np.ndarray], left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """`u_iᵀ W v_i` of every pair of columns."""
    return np.diag(left.T @ product(weights) @ right)


def relative_error(weights: Sequence[np.ndarray], target: np.ndarray) -> float:
    """`‖W − Φ‖_F / ‖Φ‖_F`."""
    return float(np.linalg.norm(product(weights) - target) / np.linalg.norm(target))


def spectral_start(surrogate: np.ndarray, *, rank: int, depth: int, scale: float) -> Network:
    """`(ε V̂ᵀ, ε I, …, ε I, ε Û)` with the leading `rank` singular vectors of the surrogate."""
    left, _, right = np.linalg.svd(np.asarray(surrogate, float))
    middle = [scale * np.eye(rank)] * (depth - 2)
    return [scale * right[:rank], *middle, scale * left[:, :rank]]


def best_of_rank(
    values: ArrayLike, mask: ArrayLike, start: np.ndarray, *, sweeps: int = 400
) -> tuple[np.ndarray, np.ndarray]:
    """Factors `A (d_out, r)`, `B (r, d_in)` of least misfit on the observed entries.

    By alternating least squares, row by row and column by column, from `B = start`.
    """
    values, mask = np.asarray(values, float), np.asarray(mask, bool)
    columns = np.array(start, float)
    rows = np.zeros((len(values), len(columns)))
    for _ in range(sweeps):
        for i, seen in enumerate(mask):
            rows[i] = np.linalg.lstsq(columns[:, seen].T, values[i, seen])[0]
        for j, seen in enumerate(mask.T):
            columns[:, j] = np.linalg.lstsq(rows[seen], values[seen, j])[0]
    return rows, columns
