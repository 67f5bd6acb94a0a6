"""What the data would show if they were noise: the same data with random signs.

Docs/theory.md 1.7. Signs are drawn on the host, so that they are the same on every device.
"""

from collections.abc import Callable

import numpy as np

from lowdim_jax._krylov import leading_value
from lowdim_jax.linalg import is_sparse

FLIPS = 3
"""Draws of random signs of which the largest singular value counts."""
ACCURACY = 1e-3
"""Relative accuracy of a singular value that is only compared with others."""
DENSE = 1 << 13
"""Entries up to which all singular values are as quickly found."""


def flipped_norm(data: np.ndarray, surrogate_of: Callable, /, *, seed: int = 0) -> float:
    """Largest spectral norm among surrogates of the data with random signs (docs/theory.md 1.7).

    Parameters
    ----------
    data
        Observed entries, or labels, of any shape.
    surrogate_of
        The surrogate matrix of such data, dense or SciPy sparse.
    """
    rng = np.random.default_rng(seed)
    norms = []
    for _ in range(FLIPS):
        signs = rng.integers(0, 2, data.shape, np.int8) * 2 - 1
        norms.append(rough_norm(surrogate_of(data * signs.astype(data.dtype))))
    return max(norms)


def rough_norm(matrix, /) -> float:
    """Spectral norm to three digits, of a matrix that may be far too large for all of its singular values."""
    if matrix.shape[0] * matrix.shape[1] <= DENSE:
        return float(np.linalg.norm(matrix.toarray() if is_sparse(matrix) else np.asarray(matrix), 2))
    matrix = matrix if is_sparse(matrix) else np.asarray(matrix)
    return leading_value(matrix, accuracy=ACCURACY)
