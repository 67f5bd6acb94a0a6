"""Matrix completion: recover `Φ` from some of its entries.

Two forms of one problem. `Completion` holds a dense matrix and a mask, and is the faster one for small
matrices. `ObservedCompletion` holds the observed entries only, in `O(observations + (d_out + d_in) r̂)`
memory. Entry `(row, column)` is `W[row, column]`: rows are outputs, columns are inputs.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import jax
import jax.numpy as jnp
import numpy as np
import scipy
from jaxtyping import Array, Bool, Float

from lowdim_jax._arrays import real_array
from lowdim_jax._host import AnyArray, as_array, is_traced
from lowdim_jax._triplets import checked_triplets, merged
from lowdim_jax.linalg import (
    LowRank,
    as_matrix,
    dense,
    is_sparse,
    leading_svd,
    noise_norm,
)
from lowdim_jax.networks import check_fits, end_to_end, end_to_end_factors
from lowdim_jax.problems.base import as_truth, held_out, relative_error
from lowdim_jax.problems.groups import Groups, group, subtract_from_groups, sweep_groups
from lowdim_jax.problems.noise import flipped_norm

COMPONENTS = 100
"""Components of a sparse surrogate that are looked at where nobody says how many."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Completion:
    """Matrix completion problem with a dense mask; build it with `completion`.

    Attributes
    ----------
    values
        `(d_out, d_in)`: the observed entries of `Φ`, zero elsewhere.
    mask
        `(d_out, d_in)`: `Ω`, true where observed.
    truth
        `Φ`, where it is known.

    Examples
    --------
    >>> import jax.numpy as jnp, lowdim_jax as ld
    >>> problem = ld.completion(jnp.array([[1.0, jnp.nan], [2.0, 4.0]]))
    >>> float(problem.fraction), float(problem.loss((jnp.zeros((2, 2)),)))
    (0.75, 14.0)
    """

    values: Float[AnyArray, "d_out d_in"]
    mask: Bool[AnyArray, "d_out d_in"]
    truth: Float[AnyArray, "d_out d_in"] | LowRank | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Shape `(d_out, d_in)` of the matrix to recover."""
        d_out, d_in = self.values.shape
        return d_out, d_in

    @property
    def fraction(self) -> Float[Array, ""]:
        """`p`, the fraction of entries observed."""
        return self.mask.mean(dtype=self.values.dtype)

    def loss(self, weights: Sequence[AnyArray], /) -> Float[Array, ""]:
        """`‖P_Ω(W − Φ)‖_F² / 2p`, on average over uniformly observed entries `½‖W − Φ‖_F²`."""
        check_fits(weights, self.shape)
        matrix = end_to_end(weights)
        misfit = jnp.where(self.mask, matrix - self.values.astype(matrix.dtype), 0)
        return jnp.sum(misfit**2) / (2 * self.fraction.astype(matrix.dtype))

    def recovery_error(self, weights: Sequence[AnyArray], /) -> Float[Array, ""]:
        """Relative Frobenius error `‖W − Φ‖_F / ‖Φ‖_F`; needs a `truth`."""
        return relative_error(self.truth, weights)

    def surrogate_matrix(self) -> Float[Array, "d_out d_in"]:
        """`−∇ℓ(0) = P_Ω(Φ) / p`, an unbiased estimate of `Φ` (docs/theory.md 1.3)."""
        return self.values / self.fraction

    def surrogate(self, rank: int | None = None, /) -> LowRank:
        """Leading `rank` singular triplets of the surrogate; all of them by default."""
        return leading_svd(self.surrogate_matrix(), rank)

    def surrogate_error(self) -> Float[Array, ""]:
        """Expected spectral norm of `surrogate − Φ`, entries observed uniformly (docs/theory.md 1.7)."""
        return completion_error((self.values**2).sum(), self.fraction, self.shape)

    def noise_edge(self, *, seed: int = 0) -> float:
        """Largest singular value that the surrogate would have if its entries had random signs.

        What stands above it is structure (docs/theory.md 1.7). Of concrete values.
        """
        fraction = np.mean(np.asarray(self.mask), dtype=float)
        return flipped_norm(np.asarray(self.values), lambda values: values / fraction, seed=seed)

    @property
    def count(self) -> int:
        """Number of observed entries (of concrete values)."""
        return int(np.sum(np.asarray(self.mask)))

    @property
    def magnitude(self) -> float:
        """Largest observed entry in absolute value (of concrete values)."""
        return float(np.abs(np.asarray(self.values)).max())

    def scaled(self, factor: float, /) -> "Completion":
        """The problem of the entries times a factor, without its truth."""
        return Completion(self.values * self.values.dtype.type(factor), self.mask)

    def residual(self, weights: Sequence[jax.Array], /) -> "Completion":
        """The problem of what a network leaves of the entries, without its truth."""
        left = self.values - end_to_end(weights).astype(self.values.dtype)
        return Completion(jnp.where(self.mask, left, 0), self.mask)

    def split(self, fraction: float, /, *, seed: int = 0) -> "tuple[Completion, Completion]":
        """A problem to train on, and one of a random `fraction` of the observed entries to validate on.

        Raises
        ------
        ValueError
            If one of the two would have no entry.
        """
        mask, values = np.asarray(self.mask), np.asarray(self.values)
        chosen = np.zeros(mask.shape, bool)
        chosen[mask] = held_out(self.count, fraction, seed)
        train, held = (
            Completion(as_array(np.where(part, values, 0)), as_array(part), self.truth)
            for part in (mask & ~chosen, chosen)
        )
        return train, held

    def observed(self) -> "ObservedCompletion":
        """The same problem (of concrete values) as its observed entries."""
        rows, columns = np.nonzero(np.asarray(self.mask))
        values = np.asarray(self.values)[rows, columns]
        return observed_completion(rows, columns, values, shape=self.shape, truth=self.truth)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ObservedCompletion:
    """Matrix completion problem of observed entries; build it with `observed_completion`.

    The entries are kept twice, by row and by column, so that each half of the gradient is a sum over
    neighbours in memory: no scattered additions, which would be an order of magnitude slower.

    Examples
    --------
    >>> import jax.numpy as jnp, lowdim_jax as ld
    >>> problem = ld.observed_completion([0, 1, 1], [0, 0, 1], [1.0, 2.0, 4.0], shape=(2, 2))
    >>> problem.shape, float(problem.loss((jnp.zeros((1, 2)), jnp.zeros((2, 1)))))
    ((2, 2), 14.0)
    """

    by_row: "Groups"
    by_column: "Groups"
    count: int = field(metadata={"static": True})
    truth: Float[AnyArray, "d_out d_in"] | LowRank | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Shape `(d_out, d_in)` of the matrix to recover."""
        return self.by_row.owners, self.by_column.owners

    @property
    def fraction(self) -> float:
        """`p`, the fraction of entries observed."""
        return self.count / (self.shape[0] * self.shape[1])

    def loss(self, weights: Sequence[AnyArray], /) -> Float[Array, ""]:
        """`‖P_Ω(W − Φ)‖_F² / 2p`, as `Completion.loss`; never forms `W` for a compressed network."""
        check_fits(weights, self.shape)
        if len(weights) == 1:
            raise ValueError("weights has one layer: observed entries need two factors at least")
        a, b = end_to_end_factors(weights)
        return half_squared_misfit(self)(a, b.T) / self.fraction

    def recovery_error(self, weights: Sequence[AnyArray], /) -> Float[Array, ""]:
        """Relative Frobenius error `‖W − Φ‖_F / ‖Φ‖_F`; needs a `truth`."""
        return relative_error(self.truth, weights)

    def surrogate_matrix(self) -> "scipy.sparse.csr_array":
        """`−∇ℓ(0) = P_Ω(Φ) / p` as a SciPy sparse matrix, of concrete values only."""
        groups = jax.tree.map(np.asarray, self.by_row)
        seen = groups.others >= 0
        counts = np.bincount(groups.owner.ravel(), seen.sum(-1).ravel(), minlength=groups.owners)
        starts = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
        values = groups.values[seen] / groups.values.dtype.type(self.fraction)
        return scipy.sparse.csr_array((values, groups.others[seen], starts), shape=self.shape)

    def surrogate(self, rank: int | None = None, /) -> LowRank:
        """Leading `rank` singular triplets of the surrogate, at most 100 of them by default."""
        return leading_svd(self.surrogate_matrix(), min(COMPONENTS, *self.shape) if rank is None else rank)

    def surrogate_error(self) -> Float[Array, ""]:
        """Expected spectral norm of `surrogate − Φ`, entries observed uniformly (docs/theory.md 1.7)."""
        return completion_error((self.by_row.values**2).sum(), self.fraction, self.shape)

    def noise_edge(self, *, seed: int = 0) -> float:
        """Largest singular value that the surrogate would have if its entries had random signs."""
        matrix = self.surrogate_matrix()

        def surrogate_of(values):
            return scipy.sparse.csr_array((values, matrix.indices, matrix.indptr), self.shape)

        return flipped_norm(matrix.data, surrogate_of, seed=seed)

    @property
    def magnitude(self) -> float:
        """Largest observed entry in absolute value (of concrete values)."""
        return float(np.abs(np.asarray(self.by_row.values)).max())

    def scaled(self, factor: float, /) -> "ObservedCompletion":
        """The problem of the entries times a factor, without its truth."""
        by_row, by_column = (
            replace(side, values=side.values * side.values.dtype.type(factor))
            for side in (self.by_row, self.by_column)
        )
        return ObservedCompletion(by_row, by_column, self.count)

    def residual(self, weights: Sequence[jax.Array], /) -> "ObservedCompletion":
        """The problem of what a network leaves of the entries, without its truth."""
        a, b = end_to_end_factors(weights)
        sides = subtract_from_groups(self.by_row, a, b.T), subtract_from_groups(self.by_column, b.T, a)
        return ObservedCompletion(*sides, self.count)

    def triplets(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Row, column and value of every observed entry, ordered by row, then column."""
        groups = jax.tree.map(np.asarray, self.by_row)
        seen = groups.others >= 0
        rows = np.broadcast_to(groups.owner[..., None], seen.shape)
        return rows[seen], groups.others[seen], groups.values[seen]

    def split(self, fraction: float, /, *, seed: int = 0) -> "tuple[ObservedCompletion, ObservedCompletion]":
        """A problem to train on, and one of a random `fraction` of the entries to validate on.

        `fit(train, validate=held.loss)` keeps the weights of the smallest loss on the second.

        Raises
        ------
        ValueError
            If one of the two would have no entry.
        """
        held = held_out(self.count, fraction, seed)
        return self._part(~held), self._part(held)

    def _part(self, chosen: np.ndarray) -> "ObservedCompletion":
        parts = (part[chosen] for part in self.triplets())
        return observed_completion(*parts, shape=self.shape, truth=self.truth)


def completion(matrix, mask=None, /, *, truth=None) -> Completion:
    """Matrix completion problem of a dense matrix.

    Parameters
    ----------
    matrix
        `(d_out, d_in)`. Without a mask, its NaN entries are the ones that were not observed; what a
        NumPy masked array masks was not observed either.
    mask
        `(d_out, d_in)` booleans, or zeros and ones: true where observed. Other entries of `matrix`
        are ignored, whatever they are.
    truth
        `Φ` where it is known, dense or `LowRank`: only `recovery_error` looks at it.

    Raises
    ------
    ValueError
        If shapes do not fit, nothing is observed, or an observed entry is not finite.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, lowdim_jax as ld
    >>> target = ld.random_target(jax.random.key(0), (20, 10), jnp.array([3.0, 2.0]))
    >>> problem = ld.completion(target.dense(), jax.random.uniform(jax.random.key(1), (20, 10)) < 0.5)
    >>> problem.shape, ld.linalg.svd(problem.surrogate_matrix()).shape
    ((20, 10), (20, 10))
    """
    matrix, hidden = _unmasked(matrix)
    xp = jnp if is_traced(matrix, mask) else np  # which has nothing to compile
    matrix = xp.asarray(matrix) if xp is jnp else real_array("matrix", matrix)
    mask = ~xp.isnan(matrix) if mask is None else xp.asarray(mask)
    if mask.shape != matrix.shape:
        raise ValueError(f"mask has shape {mask.shape}, but matrix has shape {matrix.shape}")
    if mask.dtype != bool:
        _require(mask, (mask == 0) | (mask == 1), "mask", "zeros and ones, or booleans")
        mask = mask != 0
    mask = mask if hidden is None else mask & ~hidden
    values = dense(as_matrix("matrix, where observed,", xp.where(mask, matrix, 0)))
    if not is_traced(mask) and not mask.any():
        raise ValueError("no entry is observed: the mask is empty, or matrix is NaN throughout")
    return Completion(values, as_array(mask), as_truth(truth, values.shape))


def observed_completion(
    rows, columns=None, values=None, /, *, shape=None, duplicates: str = "raise", truth=None
) -> ObservedCompletion:
    """Matrix completion problem of observed entries.

    Parameters
    ----------
    rows, columns, values
        Three arrays of the same length: value `k` was observed in row `rows[k]` (an output) and column
        `columns[k]` (an input), both counted from zero. Or a SciPy sparse matrix alone, whose stored
        entries are the observed ones, stored zeros included.
    shape
        `(d_out, d_in)`; by default just large enough for the indices. Rows and columns without any
        entry are allowed: nothing is known of them, and a compressed network predicts zero there.
    duplicates
        What to do with an entry that is given twice: `"raise"`, or take the `"mean"`.
    truth
        `Φ` where it is known, dense or `LowRank`: only `recovery_error` looks at it.

    Raises
    ------
    ValueError
        If the arrays do not fit together, there is no entry, or an entry is out of range, given twice
        or not finite.

    Examples
    --------
    >>> import jax.numpy as jnp, lowdim_jax as ld
    >>> problem = ld.observed_completion([0, 2, 1], [1, 0, 1], [3.0, 1.0, 2.0], shape=(3, 2))
    >>> sorted(zip(*(part.tolist() for part in problem.triplets())))
    [(0, 1, 3.0), (1, 1, 2.0), (2, 0, 1.0)]
    """
    if is_sparse(rows):
        shape = rows.shape if shape is None else shape
        coordinates = rows.tocoo()
        rows, columns, values = coordinates.row, coordinates.col, coordinates.data
    triplets, shape = checked_triplets(rows, columns, values, shape=shape)
    return grouped(*merged(triplets, shape, duplicates), shape, truth=truth)


def grouped(rows, columns, values, shape, *, truth=None, slots=(None, None)) -> ObservedCompletion:
    """The problem of checked entries, ordered by row; of so many slots a group, by row and by column."""
    by_row = group(rows, columns, values, shape[0], slots=slots[0])
    order = np.argsort(columns, kind="stable")
    return ObservedCompletion(
        by_row=by_row,
        by_column=group(columns[order], rows[order], values[order], shape[1], slots=slots[1]),
        count=len(values),
        truth=as_truth(truth, shape),
    )


def half_squared_misfit(problem: ObservedCompletion) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """`½ Σ_Ω (a_row · b_column − y)²` as a function of the factors, with its gradient by hand."""

    @jax.custom_jvp
    def misfit(a, b):
        return sweep_groups(problem.by_row, a, b)[0]

    @misfit.defjvp
    def _(factors, tangents):
        a, b = factors
        value, gradient_a = sweep_groups(problem.by_row, a, b)
        _, gradient_b = sweep_groups(problem.by_column, b, a)
        return value, jnp.vdot(gradient_a, tangents[0]) + jnp.vdot(gradient_b, tangents[1])

    return misfit


def completion_error(energy, fraction, shape) -> jax.Array:
    """Spectral norm of noise of the surrogate's squared Frobenius error, `(1 − p) / p² Σ_Ω Φ_ij²`."""
    return noise_norm(energy * (1 - fraction), shape) / fraction


def _unmasked(matrix):
    """The data of a masked array, and where it is masked: None for any other array."""
    if isinstance(matrix, np.ma.MaskedArray):
        return matrix.data, np.ma.getmaskarray(matrix)
    return matrix, None


def _require(array, holds, name: str, expected: str) -> None:
    """Raise `ValueError` naming the first entry of a concrete array for which a condition fails."""
    if is_traced(array):
        return
    bad = np.flatnonzero(~np.asarray(holds))
    if len(bad):
        first = np.asarray(array).flat[bad[0]]
        raise ValueError(f"{name} has {first} at position {bad[0]}, expected {expected}")
