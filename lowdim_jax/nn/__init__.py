"""Compressed layers for Flax: deep linear networks inside nonlinear ones.

    from lowdim_jax import nn

`DeepLinear` and `CompressedLinear` take the place of `nnx.Linear`; `partition` gives their factors
learning rates of their own, `spectral_start` starts them from the loss's gradient, `merge` turns
them back into one matrix. docs/compress-a-layer.md shows it from start to end. `import lowdim_jax`
does not import this subpackage, and so does not wait for Flax. The models and data that checks and
figures train are in `lowdim_jax.nn.reference`.
"""

from lowdim_jax.nn.adapters import Adapted, DeltaParam, DeltaStart, adapt, merge
from lowdim_jax.nn.building import build
from lowdim_jax.nn.conversion import Factored, compress, compress_layer
from lowdim_jax.nn.layers import CompressedLinear, DeepLinear
from lowdim_jax.nn.narrowing import narrow_layer
from lowdim_jax.nn.paths import layer_at, replace_layer
from lowdim_jax.nn.report import Report
from lowdim_jax.nn.roles import parameter_roles, partition
from lowdim_jax.nn.start import layer_surrogate, spectral_start
from lowdim_jax.nn.updates import energy_within, matrices, top_energy, turn, updates

__all__ = [
    "Adapted",
    "CompressedLinear",
    "DeepLinear",
    "DeltaParam",
    "DeltaStart",
    "Factored",
    "Report",
    "adapt",
    "build",
    "compress",
    "compress_layer",
    "energy_within",
    "layer_at",
    "layer_surrogate",
    "matrices",
    "merge",
    "narrow_layer",
    "parameter_roles",
    "partition",
    "replace_layer",
    "spectral_start",
    "top_energy",
    "turn",
    "updates",
]
