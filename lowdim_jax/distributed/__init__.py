"""Completion and sensing over many devices and processes, with JAX's own sharding and runtime.

    from lowdim_jax import distributed

`sharded_completion` and `gaussian_measurements` make problems whose data is spread over a `mesh()`; `fit`
and `gradient_descent` train them as any other. `python -m lowdim_jax.distributed` does it from files, in
several processes, with checkpoints. docs/many-devices.md has commands, design and communication.
`import lowdim_jax` does not import this subpackage.
"""

from lowdim_jax.distributed.effects import main_effects
from lowdim_jax.distributed.placement import mesh, process_rows, spread
from lowdim_jax.distributed.sharded import ShardedCompletion, gaussian_measurements, sharded_completion
from lowdim_jax.distributed.shards import Shards, open_shards, write_shards

__all__ = [
    "ShardedCompletion",
    "Shards",
    "gaussian_measurements",
    "main_effects",
    "mesh",
    "open_shards",
    "process_rows",
    "sharded_completion",
    "spread",
    "write_shards",
]
