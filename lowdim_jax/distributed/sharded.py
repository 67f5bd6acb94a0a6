"""Problems spread over many devices and processes, with JAX's own sharding.

Rows of a completion problem (users), and its columns where the mesh has more than one device across, are cut
into blocks of equal size, as are measurements of a sensing problem; the last block is filled up with zeros.
What is small is on every device.
docs/many-devices.md has the design, the communication and the commands.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from lowdim_jax._host import AnyArray, as_array
from lowdim_jax._triplets import checked_triplets, merged
from lowdim_jax.distributed.blocks import (
    ACROSS,
    AXIS,
    BLOCKS,
    COLUMNS,
    ROWS,
    all_processes,
    block_of,
    common_slots,
    entry_hash,
    observed_times,
    own_block,
    parts_of_devices,
    stacked,
    tall_qr,
    with_values,
)
from lowdim_jax.distributed.placement import process_rows
from lowdim_jax.linalg import LowRank
from lowdim_jax.networks import Weights, check_fits, end_to_end_factors
from lowdim_jax.problems.groups import Groups, subtract_from_groups
from lowdim_jax.problems.matrix_completion import (
    COMPONENTS,
    ObservedCompletion,
    completion_error,
    grouped,
    half_squared_misfit,
)
from lowdim_jax.problems.noise import FLIPS

OVERSAMPLING = 10
"""Columns that the subspace iteration has beside those asked for (Halko, Martinsson and Tropp 2011)."""

_SPREAD, _EVERYWHERE = PartitionSpec((AXIS, ACROSS)), PartitionSpec()


def gaussian_measurements(
    key: jax.Array, m: int, shape: tuple[int, int], /, *, mesh: Mesh, dtype=None
) -> Float[Array, "m d_out d_in"]:
    """`lowdim_jax.gaussian_measurements`, the same ones, each drawn on the device that keeps it.

    Filled up with zero matrices to a multiple of the number of devices: those change neither loss nor
    gradient. `lowdim_jax.sensing` takes the result as it is: its loss is then a product on each device, and
    the gradient one sum over devices, of `d_out d_in` numbers a step.

    Examples
    --------
    >>> import jax
    >>> from lowdim_jax import distributed
    >>> mesh_ = distributed.mesh(jax.devices()[:1])
    >>> distributed.gaussian_measurements(jax.random.key(0), 6, (3, 2), mesh=mesh_).shape
    (6, 3, 2)
    """
    return _draw(key, m, shape, mesh, dtype)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ShardedCompletion:
    """Matrix completion with its rows spread over devices; build it with `sharded_completion`.

    Every device has the observed entries of its own rows, as an `ObservedCompletion`, and their rows of
    the last layer. All other layers are on every device. A step sums the gradient of the factor of the
    columns over devices, `d_in r̂ + r̂² + 1` numbers (`d_in r̂ + 1` for two layers), whatever the number
    of rows and of observations. On a mesh of more devices across, a device has the entries of its rows and
    its columns, and its columns of the first layer; a step then sums each factor's gradient over those who
    share it.

    It has what `fit` looks for in a problem: data can be held out (`split`), and in one process what a
    descent left over is closed and the rank looked for as on one device.

    Attributes
    ----------
    blocks
        The devices' problems, with first axes over devices, down and across.
    shape
        `(d_out, d_in)`, without the rows and columns that fill up the last blocks.
    mesh
        The devices.
    fingerprint
        What tells these data from others, so that no checkpoint of others is gone on from; for example of
        the files they are from.

    Examples
    --------
    >>> import jax, numpy as np
    >>> from lowdim_jax import distributed
    >>> rows, columns = np.array([0, 1, 2]), np.array([0, 1, 0])
    >>> one = distributed.mesh(jax.devices()[:1])
    >>> problem = distributed.sharded_completion(rows, columns, np.ones(3), shape=(3, 2), mesh=one)
    >>> int(problem.count), problem.shape
    (3, (3, 2))
    """

    blocks: ObservedCompletion
    shape: tuple[int, int] = field(metadata={"static": True})
    mesh: Mesh = field(metadata={"static": True})
    fingerprint: str = field(default="", metadata={"static": True})

    @property
    def padded_shape(self) -> tuple[int, int]:
        """Shape with what fills up the last blocks: that of the weights' end-to-end matrix."""
        down, across = self.mesh.shape[AXIS], self.mesh.shape[ACROSS]
        return block_of(self.shape[0], down) * down, block_of(self.shape[1], across) * across

    @property
    def dtype(self):
        """Data type of the observed values."""
        return self.blocks.by_row.values.dtype

    @property
    def count(self) -> int:
        """Number of observed entries on all devices."""
        return self.blocks.count

    @property
    def fraction(self) -> float:
        """`p`, the fraction of entries observed."""
        return self.count / (self.shape[0] * self.shape[1])

    @property
    def magnitude(self) -> float:
        """Largest observed entry in absolute value."""
        return float(jnp.max(jnp.abs(self.blocks.by_row.values)))

    def loss(self, weights: Sequence[AnyArray], /) -> Float[Array, ""]:
        """`‖P_Ω(W − Φ)‖_F² / 2p`, as `ObservedCompletion.loss`; a network need not have what fills up."""
        cut = self.mesh.shape[ACROSS] > 1

        def local(blocks, weights):
            a, b = end_to_end_factors(weights)
            b = jax.lax.pcast(b, AXIS, to="varying")  # its gradient is a sum over devices
            a = jax.lax.pcast(a, ACROSS, to="varying") if cut else a
            half = half_squared_misfit(own_block(blocks))(a, b.T)
            return jax.lax.psum(half, (AXIS, ACROSS) if cut else AXIS)

        half = self._map(local, len(weights), _EVERYWHERE)
        return half(self.blocks, self._filled(weights)) / self.fraction

    def residual(self, weights: Sequence[AnyArray], /) -> "ShardedCompletion":
        """The problem of what a network leaves of the entries."""

        def local(blocks, weights):
            a, b = end_to_end_factors(weights)
            own = own_block(blocks)
            sides = subtract_from_groups(own.by_row, a, b.T), subtract_from_groups(own.by_column, b.T, a)
            return jax.tree.map(lambda leaf: leaf[None, None], ObservedCompletion(*sides, own.count))

        left = self._map(local, len(weights), self._blocks)(self.blocks, self._filled(weights))
        return replace(self, blocks=left, fingerprint="")

    def scaled(self, factor: float, /) -> "ShardedCompletion":
        """The problem of the entries times a factor."""
        return replace(self, blocks=with_values(self.blocks, factor, factor))

    def split(self, fraction: float, /, *, seed: int = 0) -> "tuple[ShardedCompletion, ShardedCompletion]":
        """A problem to train on, and one of a random `fraction` of the entries to validate on.

        Which entries, is a hash of row and column: the same on any number of devices.

        Raises
        ------
        ValueError
            If one of the two would have no entry.
        """
        blocks = [_chosen(self, fraction, seed, held) for held in (False, True)]
        counts = [int(jnp.sum(part.by_row.others >= 0)) for part in blocks]
        if not all(counts):
            raise ValueError(f"fraction={fraction} of {self.count} entries leaves a part without any")
        train, held = (
            replace(self, blocks=replace(part, count=count), fingerprint="")
            for part, count in zip(blocks, counts, strict=True)
        )
        return train, held

    @property
    def _blocks(self) -> PartitionSpec:
        return BLOCKS if self.mesh.shape[ACROSS] > 1 else ROWS

    def _map(self, local, layers: int, out_specs):
        """A function of a device's entries and of its part of a network, mapped over devices."""
        first = COLUMNS if self.mesh.shape[ACROSS] > 1 else _EVERYWHERE
        specs = self._blocks, (first, *(_EVERYWHERE,) * (layers - 2), ROWS)
        return jax.shard_map(local, mesh=self.mesh, in_specs=specs, out_specs=out_specs)

    def _filled(self, weights: Sequence[AnyArray]) -> Weights:
        """A network with what fills up the last blocks."""
        first, *others = weights
        if not others:
            raise ValueError("weights has one layer: observed entries need two factors at least")
        whole = (first.shape[1], others[-1].shape[0]) == self.shape[::-1]
        check_fits(weights, self.shape if whole else self.padded_shape)
        if not whole or self.shape == self.padded_shape:
            return tuple(weights)
        rows, columns = (full - given for full, given in zip(self.padded_shape, self.shape, strict=True))
        last = jnp.pad(others[-1], ((0, rows), (0, 0)))
        return jnp.pad(first, ((0, 0), (0, columns))), *others[:-1], last

    def surrogate(
        self, rank: int | None = None, /, *, iterations: int = 50, key: jax.Array | None = None
    ) -> LowRank:
        """Leading singular triplets of the surrogate `P_Ω(Φ) / p`, by subspace iteration over devices.

        At most 100 of them by default.

        Randomized subspace iteration with `k = rank + 10` columns, then a Rayleigh–Ritz step (Halko,
        Martinsson and Tropp 2011, 4.4 and 5.1). An iteration costs about a gradient and sums `d_in k`
        numbers over devices. Singular vector `i` is off by about `(σ_{k+1} / σ_i)^(2 iterations)` and
        its singular value by the square of that: components that stand out of the noise are exact to
        rounding, those inside it are directions of about the same size.

        Returns
        -------
        `LowRank` of `padded_shape`, whose `left` is spread over devices, as is `right` where columns are.

        Raises
        ------
        ValueError
            If `rank` is not between 1 and the smaller side.
        """
        rank = min(COMPONENTS, *self.shape) if rank is None else rank
        if not 1 <= rank <= min(self.shape):
            raise ValueError(f"rank={rank}, expected 1 ≤ rank ≤ {min(self.shape)}")
        key = jax.random.key(0) if key is None else key
        return _subspace_iteration(self, rank, iterations, key)

    def surrogate_error(self) -> Float[Array, ""]:
        """Expected spectral norm of `surrogate − Φ`, entries observed uniformly (docs/theory.md 1.7)."""
        return completion_error(jnp.sum(self.blocks.by_row.values**2), self.fraction, self.shape)

    def noise_edge(self, *, seed: int = 0) -> float:
        """Largest singular value that the surrogate would have if its entries had random signs.

        Of `FLIPS` draws; a sign is a hash of its entry's row and column, so that devices need not agree on
        any (docs/theory.md 1.7).
        """
        draws = (replace(self, blocks=_flipped(self, seed + draw)) for draw in range(FLIPS))
        return max(float(draw.surrogate(1, iterations=20).singular_values[0]) for draw in draws)

    def place(self, weights: Sequence[Any], /) -> Weights:
        """Weights of a whole network, the same ones in every process, put where they belong.

        The first and the last layer may have what fills up already, and then may be spread already.
        """
        first, *others, last = weights
        fits = (first.shape[1], last.shape[0]) == self.padded_shape[::-1]
        check_fits(weights, self.padded_shape if fits else self.shape)
        rows, columns = self.padded_shape[0] - len(last), self.padded_shape[1] - first.shape[1]
        across = COLUMNS if self.mesh.shape[ACROSS] > 1 else _EVERYWHERE
        return (
            self._put(first, across, ((0, 0), (0, columns))),
            *(self._put(layer, _EVERYWHERE) for layer in others),
            self._put(last, ROWS, ((0, rows), (0, 0))),
        )

    def gather(self, weights: Sequence[AnyArray], /) -> Weights:
        """The whole network on one device of every process, without what fills up."""
        everywhere = jax.device_put(tuple(weights), NamedSharding(self.mesh, _EVERYWHERE))
        first, *others, last = map(np.asarray, everywhere)
        return tuple(map(as_array, (first[:, : self.shape[1]], *others, last[: self.shape[0]])))

    def _put(self, array: Any, spec: PartitionSpec, fill=((0, 0), (0, 0))) -> jax.Array:
        """An array that every process has, on the devices; or one that is spread already."""
        if isinstance(array, jax.Array) and not array.is_fully_addressable:
            return array
        whole = np.pad(np.asarray(array), fill)
        return jax.make_array_from_callback(whole.shape, NamedSharding(self.mesh, spec), whole.__getitem__)


def sharded_completion(
    rows, columns, values, /, *, shape: tuple[int, int], mesh: Mesh, duplicates: str = "raise"
) -> ShardedCompletion:
    """Matrix completion problem over many devices, from each process's own entries.

    Parameters
    ----------
    rows, columns, values
        Entries in the rows of this process, `process_rows(shape[0], mesh=mesh)`; all entries, where there
        is one process. Some processes may have none, and each has less than 2³¹.
    shape
        `(d_out, d_in)` of the whole matrix.
    mesh
        From `mesh()`.
    duplicates
        As in `observed_completion`.

    Raises
    ------
    ValueError
        As `observed_completion`; also if an entry is in a row of another process, or no process has one.

    Notes
    -----
    All devices take as many groups of entries as the fullest one needs: number rows at random where
    neighbouring ones have many entries.

    Examples
    --------
    >>> import jax, numpy as np, lowdim_jax as ld
    >>> from lowdim_jax import distributed
    >>> rows, columns = (part.ravel() for part in np.indices((6, 5)))
    >>> one = distributed.mesh(jax.devices()[:1])
    >>> problem = distributed.sharded_completion(rows, columns, np.ones(30), shape=(6, 5), mesh=one)
    >>> weights = ld.compress(problem, depth=2, scale=0.5, rank=1)
    >>> bool(problem.loss(weights) < 15)  # half the number of ones
    True
    """
    rows, columns, values = map(np.asarray, (rows, columns, values))
    own, down, across = process_rows(shape[0], mesh=mesh), mesh.shape[AXIS], mesh.shape[ACROSS]
    block = block_of(shape[0], down), block_of(shape[1], across)
    if rows.size and not (rows.min() >= own.start and rows.max() < own.stop):
        raise ValueError(
            f"rows has entries from {rows.min()} to {rows.max()}, but this process has the rows from "
            f"{own.start} to {own.stop}: see process_rows"
        )
    if columns.size and not (columns.min() >= 0 and columns.max() < shape[1]):
        checked_triplets(rows, columns, values, shape=shape)  # which says what is wrong
    parts = list(parts_of_devices(rows, columns, values, block, mesh))
    slots = common_slots(parts)
    problems: list[ObservedCompletion | None] = []
    with jax.default_device(jax.local_devices(backend="cpu")[0]):  # only the blocks go to the devices
        for part in parts:
            if not len(part[0]):
                problems.append(None)
                continue
            triplets, own_shape = checked_triplets(*part, shape=block)
            problems.append(grouped(*merged(triplets, own_shape, duplicates), own_shape, slots=slots))
    given = [problem for problem in problems if problem]
    count = sum(problem.count for problem in given)
    counts, sizes = all_processes([count, given[0].by_row.values.dtype.itemsize if given else 0])
    if not counts.sum():
        raise ValueError("no entry is observed: every process has given none")
    dtype = np.dtype(f"f{sizes.max()}")  # a process without entries does not know
    by_row, by_column = (
        stacked([problem and getattr(problem, side) for problem in problems], owners, width, dtype, mesh)
        for side, owners, width in zip(("by_row", "by_column"), block, slots, strict=True)
    )
    blocks = ObservedCompletion(by_row, by_column, int(counts.sum()))
    return ShardedCompletion(blocks, (int(shape[0]), int(shape[1])), mesh)


@jax.jit
def _flipped(problem: ShardedCompletion, seed: int) -> ObservedCompletion:
    """The blocks of entries with random signs."""
    by_row, by_column = (
        (1 - 2 * (mixed & 1).astype(jnp.int32)).astype(problem.dtype) for mixed in _hashes(problem, seed)
    )
    return with_values(problem.blocks, by_row, by_column)


@partial(jax.jit, static_argnames="held")
def _chosen(problem: ShardedCompletion, fraction, seed, held: bool) -> ObservedCompletion:
    """The blocks without the entries that are held out, or of them alone."""
    level = jnp.asarray(fraction * 2.0**16, jnp.uint32)

    def keep(groups: Groups, mixed: jax.Array) -> Groups:
        inside = ((mixed >> 16) < level) == held
        seen = inside & (groups.others >= 0)
        return replace(
            groups, others=jnp.where(seen, groups.others, -1), values=jnp.where(seen, groups.values, 0)
        )

    by_row, by_column = _hashes(problem, seed)
    blocks = problem.blocks
    return replace(blocks, by_row=keep(blocks.by_row, by_row), by_column=keep(blocks.by_column, by_column))


def _hashes(problem: ShardedCompletion, seed) -> tuple[jax.Array, jax.Array]:
    """A hash of every entry's row and column, for the entries by row and by column."""
    by_row, by_column = problem.blocks.by_row, problem.blocks.by_column
    down, across = problem.mesh.shape[AXIS], problem.mesh.shape[ACROSS]
    first_row = (jnp.arange(down, dtype=jnp.int32) * by_row.owners).reshape(-1, 1, 1, 1, 1)
    first_column = (jnp.arange(across, dtype=jnp.int32) * by_column.owners).reshape(1, -1, 1, 1, 1)
    return (  # devices down and across, chunks, groups, slots
        entry_hash(first_row + by_row.owner[..., None], first_column + by_row.others, seed),
        entry_hash(first_row + by_column.others, first_column + by_column.owner[..., None], seed),
    )


@partial(jax.jit, static_argnums=(1, 2, 3, 4))
def _draw(key, m, shape, mesh, dtype):
    keys = jax.random.split(key, m)
    fill = block_of(m, mesh.size) * mesh.size - m
    keys, real = jnp.concatenate([keys, keys[:fill]]), jnp.arange(m + fill) < m

    def draw(arguments):
        key, real = arguments
        return jnp.where(real, jax.random.normal(key, shape, dtype) / m**0.5, 0)

    local = partial(jax.lax.map, draw)
    return jax.shard_map(local, mesh=mesh, in_specs=_SPREAD, out_specs=_SPREAD)((keys, real))


@partial(jax.jit, static_argnames="rank")
def _subspace_iteration(problem: ShardedCompletion, rank: int, iterations: int, key) -> LowRank:
    (d_out, d_in), across = problem.shape, problem.mesh.shape[ACROSS]
    columns, (_, filled_in) = min(rank + OVERSAMPLING, *problem.shape), problem.padded_shape
    start = jax.random.normal(key, (d_in, columns), problem.dtype)
    start = jnp.pad(start, ((0, filled_in - d_in), (0, 0)))

    def local(blocks, start):
        block = own_block(blocks)

        def apply(right):
            image = observed_times(block.by_row, right)
            return jax.lax.psum(image, ACROSS) if across > 1 else image

        def orthonormal(right):
            return tall_qr(right, ACROSS)[0] if across > 1 else jnp.linalg.qr(right)[0]

        def normal_equations(_, right):
            image = observed_times(block.by_column, apply(right))
            return orthonormal(jax.lax.psum(image, AXIS))

        right = jax.lax.fori_loop(0, iterations, normal_equations, orthonormal(start))
        left, core = tall_qr(apply(right), AXIS)
        u, s, vt = jnp.linalg.svd(core)
        return left @ u, s, right @ vt.T

    by_column = PartitionSpec(ACROSS) if across > 1 else _EVERYWHERE
    out_specs = (ROWS, _EVERYWHERE, by_column)
    in_specs = problem._blocks, by_column
    mapped = jax.shard_map(local, mesh=problem.mesh, in_specs=in_specs, out_specs=out_specs)
    left, s, right = (part[..., :rank] for part in mapped(problem.blocks, start))
    peaks = jnp.argmax(jnp.abs(right), axis=0)
    signs = jnp.sign(right[peaks, jnp.arange(rank)])  # the largest entry of a right vector is positive
    left, right = (
        jnp.where((jnp.arange(len(part)) >= side)[:, None], 0, part * signs[None, :])
        for part, side in ((left, d_out), (right, d_in))
    )
    return LowRank(left, s / problem.fraction, right)
