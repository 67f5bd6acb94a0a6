"""What checks, figures and examples train: images, three small classifiers, and a training loop.

    from lowdim_jax.nn import reference

Nothing of it is needed to use the layers; your own data, models and loop do as well.
"""

from lowdim_jax.nn.reference.data import Images, cifar10, digits, load_images, mnist, read_idx
from lowdim_jax.nn.reference.models import MLP, ConvNet, Head, VisionTransformer
from lowdim_jax.nn.reference.training import accuracy, cross_entropy, train

__all__ = [
    "MLP",
    "ConvNet",
    "Head",
    "Images",
    "VisionTransformer",
    "accuracy",
    "cifar10",
    "cross_entropy",
    "digits",
    "load_images",
    "mnist",
    "read_idx",
    "train",
]
