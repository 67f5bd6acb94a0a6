"""Observed entries grouped by the row or column that they share, and sums over them.

A sum over an owner's entries is one over neighbours in memory: no scattered additions, which would be an
order of magnitude slower.
"""

from dataclasses import dataclass, field, replace

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from lowdim_jax._host import AnyArray, as_array

SLOTS = (16, 32, 64)
"""Entries of a row, or of a column, that may be worked on together."""
GROUP_COST = 3
"""What a group takes beside its slots, in slots."""
AT_ONCE = 2**14
"""Slots at a time: what they gather stays in the cache."""
LANES = 8
"""Single-precision factors are as wide as a multiple of this: others take up to twice as long to gather."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Groups:
    """Observed entries in groups that share an owner (a row, or a column), in chunks.

    An owner has as many groups as it needs; what is left of the last one is marked by −1 in `others`. How
    many slots a group has follows from the owners' numbers of entries (`cost_of_slots`).
    """

    owner: Int[AnyArray, "chunks groups"]
    others: Int[AnyArray, "chunks groups slots"]
    values: Float[AnyArray, "chunks groups slots"]
    owners: int = field(metadata={"static": True})


def group(
    owner: np.ndarray, others: np.ndarray, values: np.ndarray, owners: int, *, slots: int | None = None
) -> Groups:
    """Entries, ordered by owner, as groups; of the number of slots that costs least, unless given."""
    counts = np.bincount(owner, minlength=owners)
    slots = SLOTS[int(np.argmin(cost_of_slots(counts)))] if slots is None else slots
    groups_of = -(-counts // slots)
    left_over = groups_of * slots - counts
    place = np.repeat(np.cumsum(left_over) - left_over, counts)
    place += np.arange(len(owner))

    total = int(groups_of.sum())
    chunk = min(AT_ONCE // slots, total)
    chunks = -(-total // chunk)
    grouped_others = np.full(chunks * chunk * slots, -1, np.int32)
    grouped_values = np.zeros(chunks * chunk * slots, values.dtype)
    grouped_others[place] = others
    grouped_values[place] = values
    group_owner = np.zeros(chunks * chunk, np.int32)
    group_owner[:total] = np.repeat(np.arange(owners), groups_of)
    return Groups(
        as_array(group_owner.reshape(chunks, chunk)),
        as_array(grouped_others.reshape(chunks, chunk, slots)),
        as_array(grouped_values.reshape(chunks, chunk, slots).astype(_float_of(values), copy=False)),
        owners,
    )


def cost_of_slots(counts: np.ndarray) -> np.ndarray:
    """What a sweep over owners with so many entries takes, in slots, for each number of `SLOTS`.

    Long groups share the work of a group; short ones leave fewer slots empty.
    """
    groups = np.array([np.sum(-(-counts // slots)) for slots in SLOTS])
    return groups * (np.array(SLOTS) + GROUP_COST)


def _float_of(values: np.ndarray):
    """The data type of values as JAX's settings allow it: float64 becomes float32 unless enabled."""
    return jnp.zeros((), jax.dtypes.canonicalize_dtype(values.dtype)).dtype


def sweep_groups(groups: Groups, own: jax.Array, other: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Half the squared misfit, and its gradient by the owners' factor."""
    width = own.shape[1]
    own, other = _widened(own), _widened(other)

    def chunk(part):
        owner, others, values = part
        across = other[others]
        misfit = jnp.einsum("gsr,gr->gs", across, own[owner]) - values.astype(own.dtype)
        misfit = jnp.where(others >= 0, misfit, 0)
        return jnp.sum(misfit**2) / 2, jnp.einsum("gs,gsr->gr", misfit, across)

    halves, gradients = jax.lax.map(chunk, (groups.owner, groups.others, groups.values))
    gradients = gradients.reshape(-1, own.shape[1])
    total = jax.ops.segment_sum(gradients, groups.owner.reshape(-1), num_segments=groups.owners)
    return jnp.sum(halves), total[:, :width]


def _widened(factor: jax.Array) -> jax.Array:
    """A factor with columns of zeros up to a width whose rows are quickly gathered."""
    width = factor.shape[1]
    if factor.dtype != jnp.float32 or width < 3:
        return factor
    return jnp.pad(factor, ((0, 0), (0, -width % LANES)))


@jax.jit
def subtract_from_groups(groups: Groups, own: jax.Array, other: jax.Array) -> Groups:
    """The entries less those of the matrix of two factors."""
    own, other = _widened(own), _widened(other)

    def chunk(part):
        owner, others, values = part
        predicted = jnp.einsum("gsr,gr->gs", other[others], own[owner])
        return jnp.where(others >= 0, values - predicted.astype(values.dtype), 0)

    return replace(groups, values=jax.lax.map(chunk, (groups.owner, groups.others, groups.values)))
