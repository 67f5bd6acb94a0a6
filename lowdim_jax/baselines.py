"""What users of matrix completion expect beside a compressed network, on the same problems.

Each returns a network of two factors, so that `loss`, `recovery_error` and `entries` apply to it.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import scipy

from lowdim_jax.fitting import Fit, fit
from lowdim_jax.initialization import gaussian
from lowdim_jax.networks import Weights
from lowdim_jax.problems.groups import Groups
from lowdim_jax.problems.matrix_completion import ObservedCompletion


def alternating_minimization(
    problem: ObservedCompletion,
    /,
    *,
    rank: int,
    ridge: float,
    sweeps: int = 15,
    start: Weights | None = None,
    seed: int = 0,
) -> Weights:
    """Minimize `½ Σ_Ω (W_ij − y_ij)² + ½ ridge (‖A‖_F² + ‖B‖_F²)` over `A`, then `B`, exactly (ALS).

    Goes on from `start`, two factors `(B, A)` of width `rank`; by default from Gaussian ones.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, lowdim_jax as ld
    >>> target = ld.random_target(jax.random.key(0), (30, 20), jnp.array([3.0, 2.0]))
    >>> rows, columns = jnp.nonzero(jax.random.uniform(jax.random.key(1), (30, 20)) < 0.7)
    >>> values = target.dense()[rows, columns]
    >>> problem = ld.observed_completion(rows, columns, values, shape=(30, 20), truth=target)
    >>> weights = alternating_minimization(problem, rank=2, ridge=1e-3, sweeps=30)
    >>> bool(problem.recovery_error(weights) < 0.05)
    True
    """
    if not ridge >= 0:
        raise ValueError(f"ridge={ridge}, expected at least 0")
    if start is None:
        dtype = problem.by_row.values.dtype
        widths = (problem.shape[1], rank, problem.shape[0])
        start = gaussian(jax.random.key(seed), widths, scale=1, dtype=dtype)
    b, a = start
    for _ in range(sweeps):
        a = _ridge_regression(problem.by_row, b.T, ridge, plain=ridge == 0)
        b = _ridge_regression(problem.by_column, a, ridge, plain=ridge == 0).T
    return b, a


@partial(jax.jit, static_argnames="plain")
def _ridge_regression(groups: Groups, other: jax.Array, ridge, *, plain: bool = False) -> jax.Array:
    """Each owner's row `x` of least `½ Σ (x · other_k − y_k)² + ½ ridge ‖x‖²`.

    Without a ridge (`plain`), the shortest one: an owner with fewer entries than `x` has any number of them.
    """
    rank, dtype = other.shape[1], other.dtype

    def add(sums, part):
        owner, others, values = part
        across = jnp.where((others >= 0)[..., None], other[others], 0)
        squares = jnp.einsum("gsr,gsk->grk", across, across)
        products = jnp.einsum("gs,gsr->gr", values, across)
        return (sums[0].at[owner].add(squares), sums[1].at[owner].add(products)), None

    zeros = jnp.zeros((groups.owners, rank, rank), dtype), jnp.zeros((groups.owners, rank), dtype)
    (grams, sides), _ = jax.lax.scan(add, zeros, (groups.owner, groups.others, groups.values))
    if plain:
        values, vectors = jnp.linalg.eigh(grams)
        least = rank * jnp.finfo(dtype).eps * values[:, -1:]
        inverse = jnp.where(values > least, 1 / jnp.where(values > least, values, 1), 0)
        return jnp.einsum("gij,gj,gkj,gk->gi", vectors, inverse, vectors, sides)
    return jnp.linalg.solve(grams + ridge * jnp.eye(rank, dtype=dtype)[None], sides[..., None])[..., 0]


def burer_monteiro(problem, /, *, rank: int, scale: float = 1e-3, seed: int = 0, **settings) -> Fit:
    """Gradient descent on two small Gaussian factors; `settings` are those of `fit`.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, lowdim_jax as ld
    >>> target = ld.random_target(jax.random.key(0), (8, 6), jnp.array([3.0, 2.0]))
    >>> result = burer_monteiro(ld.factorization(target), rank=2, scale=0.1, steps=2000)
    >>> [w.shape for w in result.weights], result.status.name
    ([(2, 6), (8, 2)], 'REACHED_TOLERANCE')
    """
    d_out, d_in = problem.shape
    start = gaussian(jax.random.key(seed), (d_in, rank, d_out), scale=scale)
    return fit(problem, start=start, **settings)


def soft_impute(
    problem: ObservedCompletion, /, *, penalty: float, rank: int, steps: int = 50, tolerance: float = 1e-3
) -> Weights:
    """Minimize `½ Σ_Ω (W_ij − y_ij)² + penalty ‖W‖_*` by soft-thresholded singular values.

    Mazumder, Hastie, Tibshirani (2010): `W ← S(X)`, `X = P_Ω(Y − W) + W`, of which the leading `rank`
    singular vectors are followed by one step of subspace iteration each time, on products with a sparse
    plus a low-rank matrix; until no singular value moves by more than `tolerance` times the largest.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, lowdim_jax as ld
    >>> target = ld.random_target(jax.random.key(0), (30, 20), jnp.array([3.0, 2.0]))
    >>> rows, columns = jnp.nonzero(jax.random.uniform(jax.random.key(1), (30, 20)) < 0.7)
    >>> values = target.dense()[rows, columns]
    >>> problem = ld.observed_completion(rows, columns, values, shape=(30, 20), truth=target)
    >>> bool(problem.recovery_error(soft_impute(problem, penalty=0.05, rank=4)) < 0.2)
    True
    """
    for name, value in (("penalty", penalty), ("tolerance", tolerance)):
        if not value >= 0:
            raise ValueError(f"{name}={value}, expected at least 0")
    rows, columns, values = problem.triplets()
    d_out, d_in = problem.shape
    right = np.linalg.qr(np.random.default_rng(0).standard_normal((d_in, rank)))[0]
    left, shrunk = np.zeros((d_out, rank)), np.zeros(rank)
    for _ in range(steps):
        fitted = np.sum((left * shrunk)[rows] * right[columns], axis=1)
        sparse = scipy.sparse.csr_array((values - fitted, (rows, columns)), problem.shape)
        basis, _ = np.linalg.qr(sparse @ right + left * shrunk)
        image = sparse.T @ basis + right @ ((left * shrunk).T @ basis)
        right, sigma, turn = np.linalg.svd(image, full_matrices=False)
        left, before, shrunk = basis @ turn.T, shrunk, np.maximum(sigma - penalty, 0)
        if np.abs(shrunk - before).max() <= tolerance * sigma.max():
            break
    dtype = problem.by_row.values.dtype
    return jnp.asarray(right.T, dtype), jnp.asarray(left * shrunk, dtype)
