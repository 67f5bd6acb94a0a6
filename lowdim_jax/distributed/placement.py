"""Where rows and columns live: a mesh of devices over rows and, if wanted, columns."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lowdim_jax.distributed.blocks import ACROSS, AXIS, block_of, own_places, own_range


def mesh(devices: Sequence[Any] | None = None, /, *, across: int = 1) -> Mesh:
    """Mesh over all devices of all processes, or over the given ones.

    Parameters
    ----------
    across
        Number of blocks that columns are cut into; rows are cut into the number of devices over that. By
        default columns are not cut: do it where `W_1` and its gradient are what takes the memory, or the time
        to sum.

    Raises
    ------
    ValueError
        If the number of devices is no multiple of `across`.

    Examples
    --------
    >>> from lowdim_jax import distributed
    >>> import jax
    >>> distributed.mesh(jax.devices()[:1]).devices.shape
    (1, 1)
    """
    chosen = np.array(jax.devices() if devices is None else devices)
    if across < 1 or chosen.size % across:
        raise ValueError(f"across={across}, expected a divisor of the number of devices, {chosen.size}")
    return Mesh(chosen.reshape(-1, across), (AXIS, ACROSS))


def process_rows(length: int, /, *, mesh: Mesh) -> range:
    """Which of `length` rows belong to the devices of this process: the entries that it has to provide.

    Raises
    ------
    ValueError
        If the devices of this process are not neighbours in the mesh, or have a part of their rows only.

    Examples
    --------
    >>> from lowdim_jax import distributed
    >>> import jax
    >>> distributed.process_rows(10, mesh=distributed.mesh(jax.devices()[:1]))  # one process has them all
    range(0, 10)
    """
    return own_range(length, own_places(mesh), mesh.shape[AXIS])


def spread(rows: np.ndarray | jax.Array, /, *, length: int, mesh: Mesh) -> jax.Array:
    """Array of `length` rows over all devices, from each process's own rows, filled up with zero rows.

    Parameters
    ----------
    rows
        This process's rows, those of `process_rows(length, mesh=mesh)` where the mesh is one device across.
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
    across = mesh.shape[ACROSS]
    places = [place * across + k for place in own_places(mesh) for k in range(across)]
    own, block = own_range(length, places, mesh.size), block_of(length, mesh.size)
    if len(rows) != len(own):
        raise ValueError(f"rows has {len(rows)} of them, expected those from {own.start} to {own.stop}")
    local = np.zeros((len(places) * block, *rows.shape[1:]), rows.dtype)
    local[: len(own)] = rows
    shape = (block * mesh.size, *rows.shape[1:])
    where = NamedSharding(mesh, PartitionSpec((AXIS, ACROSS)))
    return jax.make_array_from_process_local_data(where, local, shape)
