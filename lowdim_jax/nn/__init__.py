"""Compressed layers for Flax: deep linear networks inside nonlinear ones.

    from lowdim_jax import nn

`DeepLinear` and `CompressedLinear` take the place of `nnx.Linear`; `by_role` gives their factors
learning rates of their own, `spectral_start` starts them from the loss's gradient, `merge` turns
them back into one matrix. docs/compress-a-layer.md shows it from start to end. `import lowdim_jax`
does not import this subpackage, and so does not wait for Flax.
"""

from lowdim_jax.nn.data import Images, cifar10, digits, load_images, mnist, read_idx
from lowdim_jax.nn.layers import CompressedLinear, DeepLinear, compress_layer
from lowdim_jax.nn.models import MLP, ConvNet, Head, VisionTransformer
from lowdim_jax.nn.paths import layer_at, replace_layer
from lowdim_jax.nn.roles import by_role, parameter_roles
from lowdim_jax.nn.start import spectral_start, surrogate
from lowdim_jax.nn.training import accuracy, cross_entropy, fit
from lowdim_jax.nn.updates import energy_within, matrices, top_energy, turn, updates

__all__ = [
    "MLP",
    "CompressedLinear",
    "ConvNet",
    "DeepLinear",
    "Head",
    "Images",
    "VisionTransformer",
    "accuracy",
    "by_role",
    "cifar10",
    "compress_layer",
    "cross_entropy",
    "digits",
    "energy_within",
    "fit",
    "layer_at",
    "load_images",
    "matrices",
    "mnist",
    "parameter_roles",
    "read_idx",
    "replace_layer",
    "spectral_start",
    "surrogate",
    "top_energy",
    "turn",
    "updates",
]
