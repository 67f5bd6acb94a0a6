"""Factors that know how certain they are: variational Bayes over users and items, and who rated what.

A rating is `mean + b_i + c_j + p_i · q_j + noise`. The user's `x_i = (b_i, p_i)` has a Gaussian posterior,
with mean and covariance, given those of the items, and the other way round; the expectation over the other
side is what weights a user by what is known of the films that he rated, and shrinks one with few ratings
more. Who rated what tells, too (Koren's SVD++): the prior mean of `x_i` is `Σ_{j ∈ N(i)} y_j / √|N(i)|`,
over the items that `i` has rated, with Gaussian `y_j`; items have one from their raters. Noise, precisions
and the scale of `y` follow from the data, by expectation and maximization. docs/ratings.md has the
formulas.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import jax.numpy as jnp
import numpy as np
import scipy.sparse as sp

from lowdim_jax.networks import Weights
from lowdim_jax.ratings.data import Ratings

BLOCK = 8192
"""Users or items whose matrices are inverted at once."""
HABIT = 30.0
"""First ridge of `y`, in units of the precision of what it predicts; then it follows from the data."""
SOLVE = 3
"""Steps of conjugate gradients a sweep, each sweep going on from the last one's solution."""
SOLVED = 1e-12
"""Squared residual, as a fraction of the right side's, at which a column is solved."""
SHARPEST = 1e6
"""Precision of a rating, in units of all ratings' variance, beyond which single precision rounds it away."""
WAIT = 2
"""Sweeps before noise and precisions are estimated: factors from a random start explain nothing yet."""


@dataclass
class _Side:
    """Users, or items: their posteriors, and their ratings in order of owner."""

    rated: sp.csr_array
    values: np.ndarray
    mean: np.ndarray
    covariance: np.ndarray
    precision: np.ndarray
    habits: np.ndarray
    probes: np.ndarray
    solved: np.ndarray
    ridge: np.ndarray
    prior: np.ndarray = field(init=False)

    def __post_init__(self):
        self.prior = np.zeros_like(self.mean)
        self.shares = 1 / np.sqrt(np.maximum(np.diff(self.rated.indptr), 1))[:, None].astype(np.float32)


@dataclass
class Factors:
    """Posteriors of both sides, in units of `unit`, the ratings' standard deviation around their `mean`.

    `noise` is the precision of a rating, in the same units.

    Examples
    --------
    >>> import numpy as np
    >>> from lowdim_jax.ratings import Ratings
    >>> users, items = (part.ravel() for part in np.indices((30, 20)))
    >>> rng = np.random.default_rng(0)
    >>> values = 3 + rng.normal(size=30)[users] * rng.normal(size=20)[items]
    >>> data = Ratings(users, items, values, tuple(range(30)), tuple(range(20)))
    >>> factors = start_factors(data, rank=2, seed=0)
    >>> for _ in range(30):
    ...     sweep(factors)
    >>> bool(np.sqrt(np.mean((factors.predict(users, items) - values) ** 2)) < 0.1)
    True
    """

    users: _Side
    items: _Side
    mean: float
    unit: float
    noise: float = 1.0
    sweeps: int = 0

    def predict(self, users: np.ndarray, items: np.ndarray) -> np.ndarray:
        """Expected ratings, a block at a time: their factors side by side would be large."""
        parts = []
        for begin in range(0, len(users), 2**18):
            x = self.users.mean[users[begin : begin + 2**18]]
            y = self.items.mean[items[begin : begin + 2**18]]
            parts.append(x[:, 0] + y[:, 0] + np.einsum("nk,nk->n", x[:, 1:], y[:, 1:]))
        return self.mean + self.unit * np.concatenate([np.zeros(0), *parts])

    @property
    def weights(self) -> Weights:
        """The factors alone, in units of ratings, as a network of two layers."""
        root = np.float32(self.unit**0.5)
        return jnp.asarray(root * self.items.mean[:, 1:].T), jnp.asarray(root * self.users.mean[:, 1:])


def start_factors(ratings: Ratings, /, *, rank: int, seed: int = 0) -> Factors:
    """Factors before the first sweep: small, random and quite certain.

    Examples
    --------
    >>> import numpy as np
    >>> from lowdim_jax.ratings import Ratings
    >>> data = Ratings(np.array([0, 1]), np.array([0, 0]), np.array([4.0, 2.0]), ("ann", "bob"), ("film",))
    >>> start_factors(data, rank=3).users.mean.shape
    (2, 4)
    """
    mean = float(ratings.values.mean())
    unit = float(ratings.values.std()) or 1.0
    values = ((ratings.values - mean) / unit).astype(np.float32)
    rng = np.random.default_rng(seed)
    sides = []
    for owners, others, shape in (
        (ratings.users, ratings.items, ratings.shape),
        (ratings.items, ratings.users, ratings.shape[::-1]),
    ):
        owned = sp.csr_array((values, (owners, others)), shape)
        owned.sort_indices()
        rated = sp.csr_array((np.ones(owned.nnz, np.float32), owned.indices, owned.indptr), shape)
        first = 0.3 * rng.standard_normal((shape[0], rank + 1), np.float32)
        first[:, 0] = 0
        probes = rng.choice(np.array([-1, 1], np.float32), (shape[1], rank + 1))
        sides.append(
            _Side(
                rated=rated,
                values=owned.data,
                mean=first,
                covariance=np.tile(0.01 * np.eye(rank + 1, dtype=np.float32), (shape[0], 1, 1)),
                precision=np.append(5.0, np.full(rank, 3.0)),
                habits=np.zeros((shape[1], rank + 1), np.float32),
                probes=probes,
                solved=np.zeros_like(probes),
                ridge=np.full(rank + 1, HABIT),
            )
        )
    return Factors(*sides, mean=mean, unit=unit)


def sweep(factors: Factors, /) -> None:
    """Users given the items, and items given the users; then what both are drawn from.

    Examples
    --------
    >>> import numpy as np
    >>> from lowdim_jax.ratings import Ratings
    >>> data = Ratings(np.array([0, 1]), np.array([0, 0]), np.array([4.0, 2.0]), ("ann", "bob"), ("film",))
    >>> factors = start_factors(data, rank=1)
    >>> sweep(factors)
    >>> factors.sweeps, factors.predict(np.array([0]), np.array([0])).shape
    (1, (1,))
    """
    learn = factors.sweeps >= WAIT
    for side, other in ((factors.users, factors.items), (factors.items, factors.users)):
        missed = _posteriors(side, other, factors.noise)
        if learn:
            _habits(side, other)
            _precisions(side)
            factors.noise = min(len(side.values) / max(missed, 1e-300), SHARPEST)
    factors.sweeps += 1


def _posteriors(side: _Side, other: _Side, noise: float) -> float:
    """Posterior of every owner, given the other side's; returns the expected sum of squared misfits."""
    size = side.mean.shape[1]
    upper = np.triu_indices(size)
    features = np.hstack((np.ones_like(other.mean[:, :1]), other.mean[:, 1:]))
    spread = other.covariance.copy()
    shared = np.hstack((np.zeros_like(other.mean[:, :1]), spread[:, 0, 1:]))  # of effect and factors
    single = spread[:, 0, 0].copy()
    spread[:, 0, :] = spread[:, :, 0] = 0
    squares = features[:, upper[0]] * features[:, upper[1]] + spread[:, upper[0], upper[1]]
    missed = 0.0
    indptr, indices = side.rated.indptr, side.rated.indices
    effects = other.mean[:, 0]
    for begin in range(0, len(side.mean), BLOCK):
        owners = slice(begin, min(begin + BLOCK, len(side.mean)))
        first, last = indptr[owners.start], indptr[owners.stop]
        pointers, others = indptr[owners.start : owners.stop + 1] - first, indices[first:last]
        shape = (owners.stop - owners.start, len(other.mean))
        left = side.values[first:last] - effects[others]
        ones = sp.csr_array((side.rated.data[first:last], others, pointers), shape)
        products = sp.csr_array((left, others, pointers), shape) @ features - ones @ shared
        gram = np.empty((shape[0], size, size))
        gram[:, upper[0], upper[1]] = gram[:, upper[1], upper[0]] = ones @ squares
        covariance = np.linalg.inv(noise * gram + np.diag(side.precision))
        sides = noise * products + side.precision * side.prior[owners]
        mean = np.einsum("nij,nj->ni", covariance, sides)
        missed += float(np.sum(left.astype(float) ** 2)) + float(np.sum(ones @ single))
        missed -= 2 * float(np.sum(mean * products))
        missed += float(np.einsum("nij,nij->", gram, covariance))
        missed += float(np.einsum("ni,nij,nj->", mean, gram, mean))
        side.mean[owners], side.covariance[owners] = mean, covariance
    return missed


def _precisions(side: _Side) -> None:
    """Of what a posterior is drawn from, around its prior mean."""
    spread = np.sum((side.mean - side.prior).astype(float) ** 2, axis=0)
    spread += np.einsum("nii->i", side.covariance, dtype=float)
    side.precision = len(side.mean) / spread


def _habits(side: _Side, other: _Side) -> None:
    """Ridge regression of the owners' posteriors on whom or what they rated, and the prior means by it.

    `(SᵀS + ridge) y = Sᵀ x` by conjugate gradients, a column a factor; beside each a random sign vector,
    whose solution estimates the trace of the inverse, and by it the variance that is left in `y`.
    """
    ridge = np.tile(side.ridge, 2)
    weights = np.asarray(other.rated @ side.shares**2)  # diagonal of SᵀS

    def apply(columns: np.ndarray) -> np.ndarray:
        listed = side.shares * (side.rated @ columns)
        return other.rated @ (side.shares * listed) + ridge * columns

    sides = np.hstack((other.rated @ (side.shares * side.mean), side.probes))
    solution = _solve(apply, sides, np.hstack((side.habits, side.solved)), 1 / (weights + ridge))
    side.habits, side.solved = (part.astype(np.float32) for part in np.hsplit(solution, 2))
    trace = np.maximum(np.sum(side.probes * side.solved, axis=0, dtype=float), 0)
    scale = (np.sum(side.habits.astype(float) ** 2, axis=0) + trace / side.precision) / len(side.habits)
    side.prior = side.shares * (side.rated @ side.habits)
    side.ridge = 1 / (np.maximum(scale, 1e-9) * side.precision)


def _solve(apply: Callable, sides: np.ndarray, start: np.ndarray, inverse: np.ndarray) -> np.ndarray:
    """Conjugate gradients for each column, with a diagonal preconditioner; a solved column is left alone."""
    solution = start.astype(float)
    left = sides - apply(solution)
    enough = SOLVED * np.sum(sides * inverse * sides, axis=0)
    scaled = inverse * left
    direction, before = scaled, np.sum(left * scaled, axis=0)
    for _ in range(SOLVE):
        going = before > enough
        image = apply(direction)
        step = np.where(going, before, 0) / np.where(going, np.sum(direction * image, axis=0), 1)
        solution, left = solution + step * direction, left - step * image
        scaled = inverse * left
        now = np.sum(left * scaled, axis=0)
        direction = scaled + np.where(going, now, 0) / np.where(going, before, 1) * direction
        before = now
    return solution
