"""What entries owe to their row and to their column alone, over devices; `ratings` has it on one."""

from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from lowdim_jax.distributed.blocks import ACROSS, AXIS, BLOCKS, ROWS, own_block
from lowdim_jax.distributed.sharded import ShardedCompletion
from lowdim_jax.networks import Weights
from lowdim_jax.problems.groups import Groups, sweep_groups

RIDGE = 5.0
"""Entries that pull an effect towards zero, as in `ratings`."""


def main_effects(problem: ShardedCompletion, /, *, sweeps: int = 15) -> Weights:
    """Mean and shrunken effects of rows and columns, `μ + a_i + b_j`, as a network of two layers and width 2.

    Alternating means: an effect is the sum of what is left of its `n` entries over `n + 5`. A sweep sums
    `d_in` numbers over devices (`d_in / C` and `d_out C / D` on a mesh of `C` across).
    `problem.residual(main_effects(problem))` is what is left to a matrix of low rank.

    Returns
    -------
    `W_1` of shape `(2, d_in)` and `W_2` of shape `(d_out, 2)`, filled up and spread as `problem.place` does.

    Examples
    --------
    >>> import jax, numpy as np
    >>> from lowdim_jax import distributed
    >>> rows, columns = (part.ravel() for part in np.indices((40, 30)))
    >>> one = distributed.mesh(jax.devices()[:1])
    >>> values = 3.0 + (rows % 2) - (columns % 2)
    >>> problem = distributed.sharded_completion(rows, columns, values, shape=(40, 30), mesh=one)
    >>> left = problem.residual(distributed.main_effects(problem))
    >>> left.magnitude < 0.2 < problem.magnitude
    True
    """
    rows, columns = _alternating_means(problem, sweeps)
    first = jnp.stack([jnp.ones_like(columns), columns])
    return first, jnp.stack([rows, jnp.ones_like(rows)], axis=1)


@partial(jax.jit, static_argnums=1)
def _alternating_means(problem: ShardedCompletion, sweeps: int) -> tuple[jax.Array, jax.Array]:
    """`μ + a` and `b`."""
    cut = problem.mesh.shape[ACROSS] > 1
    everywhere, by_column, of_blocks = (
        ((AXIS, ACROSS), PartitionSpec(ACROSS), BLOCKS) if cut else (AXIS, PartitionSpec(), ROWS)
    )

    def local(blocks):
        blocks = own_block(blocks)
        over_rows = partial(jax.lax.psum, axis_name=AXIS)
        over_columns = partial(jax.lax.psum, axis_name=ACROSS) if cut else lambda total: total
        in_row, in_column = over_columns(_counts(blocks.by_row)), over_rows(_counts(blocks.by_column))
        mean = jax.lax.psum(jnp.sum(blocks.by_row.values), everywhere) / problem.count

        def sweep(_, effects):
            rows, columns = effects
            left = over_rows(_left(blocks.by_column, columns, mean + rows))
            columns += (left - RIDGE * columns) / (in_column + RIDGE)
            left = over_columns(_left(blocks.by_row, rows, mean + columns))
            rows += (left - RIDGE * rows) / (in_row + RIDGE)
            return rows, columns

        rows, columns = jax.lax.fori_loop(0, sweeps, sweep, (0 * in_row, 0 * in_column))
        return mean + rows, columns

    mapped = jax.shard_map(local, mesh=problem.mesh, in_specs=of_blocks, out_specs=(ROWS, by_column))
    return mapped(problem.blocks)


def _counts(groups: Groups) -> jax.Array:
    """Entries of every owner."""
    filled = jnp.sum(groups.others >= 0, axis=-1).astype(groups.values.dtype)
    return jax.ops.segment_sum(filled.reshape(-1), groups.owner.reshape(-1), num_segments=groups.owners)


def _left(groups: Groups, own: jax.Array, other: jax.Array) -> jax.Array:
    """Sums over owners of what `own_i + other_j` leaves of the entries."""
    sides = jnp.stack([own, jnp.ones_like(own)], 1), jnp.stack([jnp.ones_like(other), other], 1)
    return -sweep_groups(groups, *sides)[1][:, 0]
