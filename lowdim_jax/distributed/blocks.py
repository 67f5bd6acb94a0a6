"""Blocks of a problem on the devices of a mesh: which are whose, how they are stacked, and sums over them."""

from collections.abc import Sequence
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lowdim_jax.problems.groups import AT_ONCE, SLOTS, Groups, cost_of_slots, sweep_groups
from lowdim_jax.problems.matrix_completion import ObservedCompletion

AXIS, ACROSS = "data", "columns"
"""Names of the mesh axes over which rows and columns are spread."""
ROWS, COLUMNS, BLOCKS = PartitionSpec(AXIS), PartitionSpec(None, ACROSS), PartitionSpec(AXIS, ACROSS)


def parts_of_devices(rows, columns, values, block: tuple[int, int], mesh: Mesh):
    """Entries of each device of this process, numbered from its own first row and column."""
    row_of, column_of = rows // block[0], columns // block[1]
    for place in own_places(mesh):
        for across in range(mesh.shape[ACROSS]):
            here = (row_of == place) & (column_of == across)
            yield rows[here] - place * block[0], columns[here] - across * block[1], values[here]


def with_values(blocks: ObservedCompletion, by_row, by_column) -> ObservedCompletion:
    """Blocks with their values times these."""
    left, right = (
        replace(side, values=(side.values * factor).astype(side.values.dtype))
        for side, factor in ((blocks.by_row, by_row), (blocks.by_column, by_column))
    )
    return replace(blocks, by_row=left, by_column=right)


def entry_hash(rows: jax.Array, columns: jax.Array, seed) -> jax.Array:
    """32 bits for every entry, the same wherever they are asked for (murmur3's last steps)."""
    rows, columns = rows.astype(jnp.uint32), columns.astype(jnp.uint32)
    mixed = rows * jnp.uint32(0x9E3779B1) + jnp.uint32(0x7FEB352D) * (jnp.asarray(seed, jnp.uint32) + 1)
    for word in (columns * jnp.uint32(0x85EBCA77), jnp.uint32(0)):
        mixed = mixed ^ word
        mixed = (mixed ^ (mixed >> 16)) * jnp.uint32(0x85EBCA6B)
        mixed = (mixed ^ (mixed >> 13)) * jnp.uint32(0xC2B2AE35)
        mixed = mixed ^ (mixed >> 16)
    return mixed


def block_of(length: int, parts: int) -> int:
    """Rows, or columns, of a device."""
    return -(-length // parts)


def own_range(length: int, places: list[int], parts: int) -> range:
    """What of a length belongs to neighbouring places."""
    if places != list(range(places[0], places[0] + len(places))):
        raise ValueError(f"mesh has this process's devices at {places}, expected neighbours")
    block = block_of(length, parts)
    return range(min(places[0] * block, length), min((places[-1] + 1) * block, length))


def own_places(mesh: Mesh) -> list[int]:
    """Blocks of rows of this process's devices."""
    own = np.vectorize(lambda device: device.process_index == jax.process_index())(mesh.devices)
    if np.any(own.any(1) != own.all(1)):
        raise ValueError("mesh has devices of several processes across, expected those of one")
    return [int(place) for place in np.flatnonzero(own.any(1))]


def own_block(blocks):
    """A device's own problem, inside of `shard_map`."""
    return jax.tree.map(lambda leaf: leaf[0, 0], blocks)


def all_processes(numbers: Sequence[int] | np.ndarray) -> np.ndarray:
    """These numbers of every process, one column a process."""
    gathered = multihost_utils.process_allgather(np.asarray(numbers, np.int32))
    return np.asarray(gathered).reshape(jax.process_count(), -1).T.astype(np.int64)


def common_slots(parts) -> tuple[int, int]:
    """Slots of a group, by row and by column: those that cost least on all devices together."""
    costs = np.zeros((2, len(SLOTS)))
    for part in parts:
        for cost, owners in zip(costs, part[:2], strict=True):
            cost += cost_of_slots(np.unique(owners, return_counts=True)[1])
    total = all_processes((costs.ravel() / 2**10).astype(int)).sum(1).reshape(costs.shape)
    by_row, by_column = (SLOTS[int(np.argmin(cost))] for cost in total)
    return by_row, by_column


def stacked(
    parts: "Sequence[Groups | None]", owners: int, slots: int, dtype, mesh: Mesh
) -> Groups:
    """Groups of all devices with a first axis over devices, filled up to those of the fullest one."""
    needed = max((part.owner.size for part in parts if part), default=0)
    total = int(all_processes([needed]).max())
    chunk = min(AT_ONCE // slots, total)
    padded = -(-total // chunk) * chunk

    def stack(name, fill, slots, dtype):
        stacked = np.full((len(parts), padded, *slots), fill, dtype)
        for place, part in zip(stacked, parts, strict=True):
            if part:
                entries = np.asarray(getattr(part, name)).reshape(-1, *slots)
                place[: len(entries)] = entries
        down, across = mesh.shape[AXIS], mesh.shape[ACROSS]
        local = stacked.reshape(-1, across, padded // chunk, chunk, *slots)
        return jax.make_array_from_process_local_data(
            NamedSharding(mesh, BLOCKS), local, (down, across, *local.shape[2:])
        )

    return Groups(
        stack("owner", 0, (), np.int32),
        stack("others", -1, (slots,), np.int32),
        stack("values", 0, (slots,), dtype),
        owners,
    )


def observed_times(groups: Groups, other: jax.Array) -> jax.Array:
    """`P_Ω(Φ)`, or its transpose, times a thin matrix: minus the misfit's gradient at zero."""
    return -sweep_groups(groups, jnp.zeros((groups.owners, other.shape[1]), other.dtype), other)[1]


def tall_qr(block: jax.Array, axis: str) -> tuple[jax.Array, jax.Array]:
    """QR factorization of blocks of rows on all devices, by one of each block and one of their `R`s.

    Demmel, Grigori, Hoemmen and Langou (2012), in one level.
    """
    q, r = jnp.linalg.qr(block)
    q_across, core = jnp.linalg.qr(jax.lax.all_gather(r, axis, tiled=True, to="invarying"))
    own = jax.lax.dynamic_slice_in_dim(q_across, jax.lax.axis_index(axis) * len(r), len(r))
    return q @ own, core
