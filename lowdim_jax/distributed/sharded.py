"""Problems spread over many devices and processes, with JAX's own sharding.

One mesh axis, over all devices. Rows of a completion problem (users), or measurements of a sensing problem,
are cut into as many blocks of equal size as there are devices; the last block is filled up with zeros. What
is small is on every device. docs/many-devices.md has the design, the communication and the commands.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from lowdim_jax._host import AnyArray, as_array
from lowdim_jax._triplets import checked_triplets, merged
from lowdim_jax.linalg import LowRank
from lowdim_jax.networks import Weights, check_fits, end_to_end_factors
from lowdim_jax.problems.groups import AT_ONCE, SLOTS, Groups, cost_of_slots, sweep_groups
from lowdim_jax.problems.matrix_completion import (
    COMPONENTS,
    ObservedCompletion,
    completion_error,
    grouped,
    half_squared_misfit,
)
from lowdim_jax.problems.noise import FLIPS

AXIS = "data"
"""Name of the mesh axis over which data is spread."""
OVERSAMPLING = 10
"""Columns that the subspace iteration has beside those asked for (Halko, Martinsson and Tropp 2011)."""

_SPREAD, _EVERYWHERE = PartitionSpec(AXIS), PartitionSpec()


def mesh(devices: Sequence[Any] | None = None, /) -> Mesh:
    """Mesh with one axis over all devices of all processes, or over the given ones.

    Examples
    --------
    >>> from lowdim_jax import distributed
    >>> import jax
    >>> distributed.mesh(jax.devices()[:1]).devices.shape
    (1,)
    """
    return Mesh(np.array(jax.devices() if devices is None else devices), (AXIS,))


def process_rows(length: int, /, *, mesh: Mesh) -> range:
    """Which of `length` rows belong to the devices of this process: the data that it has to provide.

    Raises
    ------
    ValueError
        If the devices of this process are not neighbours in the mesh.

    Examples
    --------
    >>> from lowdim_jax import distributed
    >>> import jax
    >>> distributed.process_rows(10, mesh=distributed.mesh(jax.devices()[:1]))  # one process has them all
    range(0, 10)
    """
    block = _block(length, mesh)
    places = _places(mesh)
    if places != list(range(places[0], places[0] + len(places))):
        raise ValueError(f"mesh has this process's devices at {places}, expected neighbours")
    return range(min(places[0] * block, length), min((places[-1] + 1) * block, length))


def spread(rows: np.ndarray | jax.Array, /, *, length: int, mesh: Mesh) -> jax.Array:
    """Array of `length` rows over all devices, from each process's own rows, filled up with zero rows.

    Parameters
    ----------
    rows
        This process's rows, those of `process_rows(length, mesh=mesh)`.
    length
        Number of rows of all processes together.

    Raises
    ------
    ValueError
        If it is not as many rows.

    Examples
    --------
    >>> import jax, numpy as np
    >>> from lowdim_jax import distributed
    >>> distributed.spread(np.ones((4, 3)), length=4, mesh=distributed.mesh(jax.devices()[:1])).shape
    (4, 3)
    """
    own = process_rows(length, mesh=mesh)
    if len(rows) != len(own):
        raise ValueError(f"rows has {len(rows)} of them, expected those from {own.start} to {own.stop}")
    block = _block(length, mesh)
    local = np.zeros((len(_places(mesh)) * block, *rows.shape[1:]), rows.dtype)
    local[: len(own)] = rows
    shape = (block * mesh.size, *rows.shape[1:])
    return jax.make_array_from_process_local_data(NamedSharding(mesh, _SPREAD), local, shape)


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
    of rows and of observations.

    Attributes
    ----------
    blocks
        The devices' problems, with a first axis over devices.
    shape
        `(d_out, d_in)`, without the rows that fill up the last block.
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
        """Shape with the rows that fill up the last block: that of the weights' end-to-end matrix."""
        return _block(self.shape[0], self.mesh) * self.mesh.size, self.shape[1]

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

    def loss(self, weights: Sequence[AnyArray], /) -> Float[Array, ""]:
        """`‖P_Ω(W − Φ)‖_F² / 2p`, as `ObservedCompletion.loss`."""
        check_fits(weights, self.padded_shape)

        def local(blocks, weights):
            a, b = end_to_end_factors(weights)
            b = jax.lax.pcast(b, AXIS, to="varying")  # its gradient is a sum over devices
            return jax.lax.psum(half_squared_misfit(_own(blocks))(a, b.T), AXIS)

        specs = (_SPREAD, (*(_EVERYWHERE,) * (len(weights) - 1), _SPREAD))  # the last layer by rows
        half = jax.shard_map(local, mesh=self.mesh, in_specs=specs, out_specs=_EVERYWHERE)
        return half(self.blocks, tuple(weights)) / self.fraction

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
        `LowRank` whose `left` has `padded_shape[0]` rows and is spread over devices.

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

        The last layer may have the rows that fill up already, and then may be spread already.
        """
        *others, last = weights
        fill = self.padded_shape[0] - len(last)
        check_fits(weights, self.padded_shape if fill == 0 else self.shape)
        if not isinstance(last, jax.Array) or last.is_fully_addressable:
            last = self._put(np.pad(np.asarray(last), ((0, fill), (0, 0))), _SPREAD)
        return *(self._put(np.asarray(layer), _EVERYWHERE) for layer in others), last

    def gather(self, weights: Sequence[AnyArray], /) -> Weights:
        """The whole network on one device of every process, without the rows that fill up."""
        everywhere = jax.device_put(tuple(weights), NamedSharding(self.mesh, _EVERYWHERE))
        *others, last = map(np.asarray, everywhere)
        return tuple(map(as_array, (*others, last[: self.shape[0]])))

    def _put(self, array: np.ndarray, spec: PartitionSpec) -> jax.Array:
        """An array that every process has, on the devices."""
        return jax.make_array_from_callback(array.shape, NamedSharding(self.mesh, spec), array.__getitem__)


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
    own, block = process_rows(shape[0], mesh=mesh), _block(shape[0], mesh)
    if rows.size and not (rows.min() >= own.start and rows.max() < own.stop):
        raise ValueError(
            f"rows has entries from {rows.min()} to {rows.max()}, but this process has the rows from "
            f"{own.start} to {own.stop}: see process_rows"
        )
    device_of = rows // block
    problems: list[ObservedCompletion | None] = []
    slots = _slots(rows, columns, (block, shape[1]), mesh)
    with jax.default_device(jax.local_devices(backend="cpu")[0]):  # only the blocks go to the devices
        for place in _places(mesh):
            here = device_of == place
            if not here.any():
                problems.append(None)
                continue
            part = rows[here] - place * block, columns[here], values[here]
            triplets, own_shape = checked_triplets(*part, shape=(block, shape[1]))
            problems.append(grouped(*merged(triplets, own_shape, duplicates), own_shape, slots=slots))
    given = [problem for problem in problems if problem]
    count = sum(problem.count for problem in given)
    counts, sizes = _all_processes([count, given[0].by_row.values.dtype.itemsize if given else 0])
    if not counts.sum():
        raise ValueError("no entry is observed: every process has given none")
    dtype = np.dtype(f"f{sizes.max()}")  # a process without entries does not know
    by_row, by_column = (
        _stacked([problem and getattr(problem, side) for problem in problems], owners, width, dtype, mesh)
        for side, owners, width in (("by_row", block, slots[0]), ("by_column", shape[1], slots[1]))
    )
    blocks = ObservedCompletion(by_row, by_column, int(counts.sum()))
    return ShardedCompletion(blocks, (int(shape[0]), int(shape[1])), mesh)


@jax.jit
def _flipped(problem: ShardedCompletion, seed: int) -> ObservedCompletion:
    """The blocks of entries with random signs."""
    blocks = problem.blocks
    before = jnp.arange(problem.mesh.size, dtype=jnp.int32) * blocks.by_row.owners
    before = before.reshape(-1, 1, 1, 1)  # devices, chunks, groups, slots
    by_row, by_column = blocks.by_row, blocks.by_column
    row_signs = _signs(before + by_row.owner[..., None], by_row.others, seed)
    column_signs = _signs(before + by_column.others, by_column.owner[..., None], seed)
    return replace(
        blocks,
        by_row=replace(by_row, values=by_row.values * row_signs.astype(problem.dtype)),
        by_column=replace(by_column, values=by_column.values * column_signs.astype(problem.dtype)),
    )


def _signs(rows: jax.Array, columns: jax.Array, seed) -> jax.Array:
    """A sign for every entry, the same wherever it is asked for: a bit of a hash (murmur3's last steps)."""
    rows, columns = rows.astype(jnp.uint32), columns.astype(jnp.uint32)
    mixed = rows * jnp.uint32(0x9E3779B1) + jnp.uint32(0x7FEB352D) * (jnp.asarray(seed, jnp.uint32) + 1)
    for word in (columns * jnp.uint32(0x85EBCA77), jnp.uint32(0)):
        mixed = mixed ^ word
        mixed = (mixed ^ (mixed >> 16)) * jnp.uint32(0x85EBCA6B)
        mixed = (mixed ^ (mixed >> 13)) * jnp.uint32(0xC2B2AE35)
        mixed = mixed ^ (mixed >> 16)
    return 1 - 2 * (mixed & 1).astype(jnp.int32)


def _block(length: int, mesh: Mesh) -> int:
    """Rows of a device."""
    return -(-length // mesh.size)


def _places(mesh: Mesh) -> list[int]:
    """Positions in the mesh of this process's devices."""
    return [k for k, device in enumerate(mesh.devices.flat) if device.process_index == jax.process_index()]


def _own(blocks):
    """A device's own problem, inside of `shard_map`."""
    return jax.tree.map(lambda leaf: leaf[0], blocks)


def _all_processes(numbers: Sequence[int]) -> np.ndarray:
    """These numbers of every process, one column a process."""
    gathered = multihost_utils.process_allgather(np.asarray(numbers, np.int32))
    return np.asarray(gathered).reshape(jax.process_count(), -1).T.astype(np.int64)


def _slots(rows: np.ndarray, columns: np.ndarray, shape: tuple[int, int], mesh: Mesh) -> tuple[int, int]:
    """Slots of a group, by row and by column: those that cost least on all devices together."""
    costs, largest = np.zeros((2, len(SLOTS))), 2**31 - 1
    device_of = rows // shape[0]
    for place in _places(mesh):
        here = device_of == place
        for cost, owners in zip(costs, (rows[here] - place * shape[0], columns[here]), strict=True):
            if len(owners) and owners.min() >= 0 and owners.max() < largest:  # others are refused later
                cost += cost_of_slots(np.unique(owners, return_counts=True)[1])
    total = _all_processes((costs.ravel() / 2**10).astype(int)).sum(1).reshape(costs.shape)
    by_row, by_column = (SLOTS[int(np.argmin(cost))] for cost in total)
    return by_row, by_column


def _stacked(
    parts: "Sequence[Groups | None]", owners: int, slots: int, dtype, mesh: Mesh
) -> Groups:
    """Groups of all devices with a first axis over devices, filled up to those of the fullest one."""
    needed = max((part.owner.size for part in parts if part), default=0)
    total = int(_all_processes([needed]).max())
    chunk = min(AT_ONCE // slots, total)
    padded = -(-total // chunk) * chunk

    def stack(name, fill, slots, dtype):
        stacked = np.full((len(parts), padded, *slots), fill, dtype)
        for place, part in zip(stacked, parts, strict=True):
            if part:
                entries = np.asarray(getattr(part, name)).reshape(-1, *slots)
                place[: len(entries)] = entries
        local = stacked.reshape(len(parts), -1, chunk, *slots)
        return jax.make_array_from_process_local_data(
            NamedSharding(mesh, _SPREAD), local, (mesh.size, *local.shape[1:])
        )

    return Groups(
        stack("owner", 0, (), np.int32),
        stack("others", -1, (slots,), np.int32),
        stack("values", 0, (slots,), dtype),
        owners,
    )


@partial(jax.jit, static_argnums=(1, 2, 3, 4))
def _draw(key, m, shape, mesh, dtype):
    keys = jax.random.split(key, m)
    fill = _block(m, mesh) * mesh.size - m
    keys, real = jnp.concatenate([keys, keys[:fill]]), jnp.arange(m + fill) < m

    def draw(arguments):
        key, real = arguments
        return jnp.where(real, jax.random.normal(key, shape, dtype) / m**0.5, 0)

    local = partial(jax.lax.map, draw)
    return jax.shard_map(local, mesh=mesh, in_specs=_SPREAD, out_specs=_SPREAD)((keys, real))


@partial(jax.jit, static_argnames="rank")
def _subspace_iteration(problem: ShardedCompletion, rank: int, iterations: int, key) -> LowRank:
    d_out, d_in = problem.shape
    columns = min(rank + OVERSAMPLING, *problem.shape)

    def local(blocks):
        block = _own(blocks)

        def apply(right):
            return _observed_times(block.by_row, right)

        def normal_equations(_, right):
            image = _observed_times(block.by_column, apply(right))
            return jnp.linalg.qr(jax.lax.psum(image, AXIS))[0]

        start = jnp.linalg.qr(jax.random.normal(key, (d_in, columns), problem.dtype))[0]
        right = jax.lax.fori_loop(0, iterations, normal_equations, start)
        left, core = _tall_qr(apply(right))
        u, s, vt = jnp.linalg.svd(core)
        return left @ u, s, right @ vt.T

    out_specs = (_SPREAD, _EVERYWHERE, _EVERYWHERE)
    across = jax.shard_map(local, mesh=problem.mesh, in_specs=_SPREAD, out_specs=out_specs)
    left, s, right = (part[..., :rank] for part in across(problem.blocks))
    peaks = jnp.argmax(jnp.abs(right), axis=0)
    signs = jnp.sign(right[peaks, jnp.arange(rank)])  # the largest entry of a right vector is positive
    filled = jnp.arange(len(left)) >= d_out
    left = jnp.where(filled[:, None], 0, left * signs[None, :])
    return LowRank(left, s / problem.fraction, right * signs[None, :])


def _observed_times(groups: Groups, other: jax.Array) -> jax.Array:
    """`P_Ω(Φ)`, or its transpose, times a thin matrix: minus the misfit's gradient at zero."""
    return -sweep_groups(groups, jnp.zeros((groups.owners, other.shape[1]), other.dtype), other)[1]


def _tall_qr(block: jax.Array) -> tuple[jax.Array, jax.Array]:
    """QR factorization of blocks of rows on all devices, by one of each block and one of their `R`s.

    Demmel, Grigori, Hoemmen and Langou (2012), in one level.
    """
    q, r = jnp.linalg.qr(block)
    q_across, core = jnp.linalg.qr(jax.lax.all_gather(r, AXIS, tiled=True, to="invarying"))
    own = jax.lax.dynamic_slice_in_dim(q_across, jax.lax.axis_index(AXIS) * len(r), len(r))
    return q @ own, core
