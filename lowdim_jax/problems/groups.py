"""Observed entries grouped by the row or column that they share, and sums over them.

A sum over an owner's entries is one over neighbours in memory: no scattered additions, which would be an
order of magnitude slower.
"""

from dataclasses import dataclass, field, replace

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from lowdim_jax._host import AnyArray

SLOTS = 16
"""Entries of a row, or of a column, that are worked on together."""
CHUNK = 1024
"""Groups of `SLOTS` entries at a time: what they gather stays in the cache."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Groups:
    """Observed entries in groups of `SLOTS` that share an owner (a row, or a column), in chunks.

    An owner has as many groups as it needs; what is left of the last one is marked by −1 in `others`.
    """

    owner: Int[AnyArray, "chunks groups"]
    others: Int[AnyArray, "chunks groups slots"]
    values: Float[AnyArray, "chunks groups slots"]
    owners: int = field(metadata={"static": True})


def group(owner: np.ndarray, others: np.ndarray, values: np.ndarray, owners: int) -> Groups:
    """Entries, ordered by owner, as groups."""
    counts = np.bincount(owner, minlength=owners)
    groups_of = -(-counts // SLOTS)
    left_over = groups_of * SLOTS - counts
    place = np.repeat(np.cumsum(left_over) - left_over, counts)
    place += np.arange(len(owner))

    total = int(groups_of.sum())
    chunk = min(CHUNK, total)
    chunks = -(-total // chunk)
    grouped_others = np.full(chunks * chunk * SLOTS, -1, np.int32)
    grouped_values = np.zeros(chunks * chunk * SLOTS, values.dtype)
    grouped_others[place] = others
    grouped_values[place] = values
    group_owner = np.zeros(chunks * chunk, np.int32)
    group_owner[:total] = np.repeat(np.arange(owners), groups_of)
    return Groups(
        jnp.asarray(group_owner.reshape(chunks, chunk)),
        jnp.asarray(grouped_others.reshape(chunks, chunk, SLOTS)),
        jnp.asarray(grouped_values.reshape(chunks, chunk, SLOTS), _float_of(values)),
        owners,
    )


def _float_of(values: np.ndarray):
    """The data type of values as JAX's settings allow it: float64 becomes float32 unless enabled."""
    return jnp.zeros((), jax.dtypes.canonicalize_dtype(values.dtype)).dtype


def sweep_groups(groups: Groups, own: jax.Array, other: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Half the squared misfit, and its gradient by the owners' factor."""

    def chunk(part):
        owner, others, values = part
        across = other[others]
        misfit = jnp.einsum("gsr,gr->gs", across, own[owner]) - values.astype(own.dtype)
        misfit = jnp.where(others >= 0, misfit, 0)
        return jnp.sum(misfit**2) / 2, jnp.einsum("gs,gsr->gr", misfit, across)

    halves, gradients = jax.lax.map(chunk, (groups.owner, groups.others, groups.values))
    gradients = gradients.reshape(-1, own.shape[1])
    total = jax.ops.segment_sum(gradients, groups.owner.reshape(-1), num_segments=groups.owners)
    return jnp.sum(halves), total


@jax.jit
def subtract_from_groups(groups: Groups, own: jax.Array, other: jax.Array) -> Groups:
    """The entries less those of the matrix of two factors."""

    def chunk(part):
        owner, others, values = part
        predicted = jnp.einsum("gsr,gr->gs", other[others], own[owner])
        return jnp.where(others >= 0, values - predicted.astype(values.dtype), 0)

    return replace(groups, values=jax.lax.map(chunk, (groups.owner, groups.others, groups.values)))
