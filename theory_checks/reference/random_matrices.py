"""Haar-distributed matrices by Gram–Schmidt, and the moments of their entries."""

from collections.abc import Mapping

import numpy as np


def haar(rng: np.random.Generator, rows: int, columns: int | None = None) -> np.ndarray:
    """Orthonormal columns, each a Gaussian vector less its part in those before: uniform by symmetry."""
    columns = rows if columns is None else columns
    frame = np.zeros((rows, columns))
    for column in range(columns):
        vector = rng.standard_normal(rows)
        for _ in range(2):  # once leaves rounding
            vector -= frame[:, :column] @ (frame[:, :column].T @ vector)
        frame[:, column] = vector / np.linalg.norm(vector)
    return frame


def haar_moments(d: int) -> dict[str, float]:
    """Expectations of `haar_statistics` over Haar matrices, `d ≥ 2` (Collins and Śniady 2006)."""
    pairs = d * (d + 2)
    return {
        "Q_11": 0.0,
        "Q_11²": 1 / d,
        "Q_11⁴": 3 / pairs,
        "Q_11² Q_12²": 1 / pairs,
        "Q_11² Q_22²": (d + 1) / ((d - 1) * pairs),
        "Q_11 Q_12 Q_21 Q_22": -1 / ((d - 1) * pairs),
        "tr Q": 0.0,
        "(tr Q)²": 1.0,
        "tr Q²": 1.0,
        "sign of det Q": 0.0,
    }


def haar_statistics(matrices: np.ndarray) -> Mapping[str, np.ndarray]:
    """The quantities of `haar_moments`, one a matrix of the stack `(n, d, d)`."""
    q = np.asarray(matrices, float)
    traces = np.trace(q, axis1=1, axis2=2)
    return {
        "Q_11": q[:, 0, 0],
        "Q_11²": q[:, 0, 0] ** 2,
        "Q_11⁴": q[:, 0, 0] ** 4,
        "Q_11² Q_12²": q[:, 0, 0] ** 2 * q[:, 0, 1] ** 2,
        "Q_11² Q_22²": q[:, 0, 0] ** 2 * q[:, 1, 1] ** 2,
        "Q_11 Q_12 Q_21 Q_22": q[:, 0, 0] * q[:, 0, 1] * q[:, 1, 0] * q[:, 1, 1],
        "tr Q": traces,
        "(tr Q)²": traces**2,
        "tr Q²": np.trace(q @ q, axis1=1, axis2=2),
        "sign of det Q": np.sign(np.linalg.det(q)),
    }


def standard_errors(samples: np.ndarray, expected: float) -> float:
    """How many standard errors the mean of samples is from its expectation."""
    samples = np.asarray(samples, float)
    spread = max(np.std(samples), 1e-12 * max(1.0, abs(expected))) / np.sqrt(len(samples))
    return float(abs(np.mean(samples) - expected) / spread)
