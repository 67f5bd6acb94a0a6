"""Reference models: perceptron, convolutional network and vision transformer, small enough to read.

Each maps images `(n, height, width, channels)` to logits `(n, classes)`, and each ends in a `Head`,
where a deep linear network may stand before the classifier.
"""

from itertools import pairwise

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from lowdim_jax.nn.layers import CompressedLinear, DeepLinear

HEADS = ("plain", "deep", "compressed")


class Head(nnx.Module):
    """Classifier, with or without a deep linear network before it.

    Parameters
    ----------
    width
        Features `d` it takes.
    kind
        `"plain"`: `d → classes`; `"deep"`: a `DeepLinear` `d → d` first; `"compressed"`: a
        `CompressedLinear` first. That layer is called `network`.
    depth
        `L`, of that network.
    rank
        `r̂`, of a compressed one; by default twice the number of classes, as no gradient that
        reaches the layer has a higher rank than there are classes.
    scale
        `ε` at which that network starts.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> from lowdim_jax.nn import reference
    >>> reference.Head(8, 3, "plain", rngs=nnx.Rngs(0))(jnp.ones((2, 8))).shape
    (2, 3)
    """

    def __init__(
        self,
        width: int,
        classes: int,
        kind: str = "plain",
        *,
        depth: int = 3,
        rank: int | None = None,
        scale: float = 1.0,
        rngs: nnx.Rngs,
    ):
        if kind not in HEADS:
            raise ValueError(f"head={kind!r}, expected one of {', '.join(HEADS)}")
        common = {"depth": depth, "scale": scale, "use_bias": False, "rngs": rngs}
        if kind == "deep":
            self.network = DeepLinear(width, width, **common)
        elif kind == "compressed":
            self.network = CompressedLinear(width, width, rank=rank or min(2 * classes, width), **common)
        else:
            self.network = None
        self.classifier = nnx.Linear(width, classes, rngs=rngs)

    def __call__(self, x: Float[Array, "n width"]) -> Float[Array, "n classes"]:
        """Logits."""
        return self.classifier(x if self.network is None else self.network(x))


class MLP(nnx.Module):
    """`depth` ReLU layers of one width; further arguments are the `Head`'s.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> from lowdim_jax.nn import reference
    >>> reference.MLP((8, 8, 1), 10, width=16, rngs=nnx.Rngs(0))(jnp.ones((2, 8, 8, 1))).shape
    (2, 10)
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        classes: int,
        *,
        width: int = 1024,
        depth: int = 2,
        head: str = "plain",
        rngs: nnx.Rngs,
        **options,
    ):
        height, across, channels = shape
        sizes = [height * across * channels, *[width] * depth]
        he = nnx.initializers.he_normal()
        self.layers = nnx.List([
            nnx.Linear(before, after, kernel_init=he, rngs=rngs)
            for before, after in pairwise(sizes)
        ])
        self.head = Head(width, classes, head, rngs=rngs, **options)

    def __call__(self, images: Float[Array, "n h w c"]) -> Float[Array, "n classes"]:
        """Logits."""
        x = images.reshape(len(images), -1)
        for layer in self.layers:
            x = jax.nn.relu(layer(x))
        return self.head(x)


class ConvNet(nnx.Module):
    """Two 3×3 convolutions, each followed by 2×2 pooling, and one dense layer, all with ReLU.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> from lowdim_jax.nn import reference
    >>> reference.ConvNet((8, 8, 1), 10, channels=2, width=8, rngs=nnx.Rngs(0))(jnp.ones((2, 8, 8, 1))).shape
    (2, 10)
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        classes: int,
        *,
        channels: int = 32,
        width: int = 256,
        head: str = "plain",
        rngs: nnx.Rngs,
        **options,
    ):
        height, across, inputs = shape
        he = nnx.initializers.he_normal()
        self.convolutions = nnx.List([
            nnx.Conv(before, after, (3, 3), kernel_init=he, rngs=rngs)
            for before, after in ((inputs, channels), (channels, 2 * channels))
        ])
        features = (height // 4) * (across // 4) * 2 * channels
        self.dense = nnx.Linear(features, width, kernel_init=he, rngs=rngs)
        self.head = Head(width, classes, head, rngs=rngs, **options)

    def __call__(self, images: Float[Array, "n h w c"]) -> Float[Array, "n classes"]:
        """Logits."""
        x = images
        for convolution in self.convolutions:
            x = nnx.max_pool(jax.nn.relu(convolution(x)), (2, 2), strides=(2, 2))
        x = jax.nn.relu(self.dense(x.reshape(len(x), -1)))
        return self.head(x)


class Block(nnx.Module):
    """Transformer block: attention and a perceptron, each normalized first and added to its input.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> Block(8, 2, rngs=nnx.Rngs(0))(jnp.ones((1, 3, 8))).shape
    (1, 3, 8)
    """

    def __init__(self, width: int, heads: int, *, rngs: nnx.Rngs):
        self.heads = heads
        self.before_attention = nnx.LayerNorm(width, rngs=rngs)
        self.query_key_value = nnx.Linear(width, 3 * width, rngs=rngs)
        self.attended = nnx.Linear(width, width, rngs=rngs)
        self.before_perceptron = nnx.LayerNorm(width, rngs=rngs)
        self.up = nnx.Linear(width, 4 * width, rngs=rngs)
        self.down = nnx.Linear(4 * width, width, rngs=rngs)

    def __call__(self, x: Float[Array, "n tokens width"]) -> Float[Array, "n tokens width"]:
        """Tokens of the same shape."""
        x = x + self.attended(self._attention(self.before_attention(x)))
        return x + self.down(jax.nn.gelu(self.up(self.before_perceptron(x))))

    def _attention(self, x):
        split = self.query_key_value(x).reshape(*x.shape[:2], 3, self.heads, -1)
        query, key, value = jnp.moveaxis(split, 2, 0)
        return jax.nn.dot_product_attention(query, key, value).reshape(x.shape)


class VisionTransformer(nnx.Module):
    """Patches as tokens with learned positions, `Block`s, and the mean token to the `Head`.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> from lowdim_jax.nn import reference
    >>> model = reference.VisionTransformer((8, 8, 1), 10, width=8, depth=1, heads=2, rngs=nnx.Rngs(0))
    >>> model(jnp.ones((2, 8, 8, 1))).shape
    (2, 10)
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        classes: int,
        *,
        patch: int = 4,
        width: int = 64,
        depth: int = 2,
        heads: int = 4,
        head: str = "plain",
        rngs: nnx.Rngs,
        **options,
    ):
        height, across, channels = shape
        if height % patch or across % patch or width % heads:
            raise ValueError(
                f"patch={patch} and heads={heads}, expected divisors of the image's {height}×{across} "
                f"pixels and of width={width}"
            )
        tokens = (height // patch) * (across // patch)
        self.embed = nnx.Conv(channels, width, (patch, patch), strides=patch, padding="VALID", rngs=rngs)
        start = nnx.initializers.normal(0.02)
        self.positions = nnx.Param(start(rngs.params(), (1, tokens, width), jnp.float32))
        self.blocks = nnx.List([Block(width, heads, rngs=rngs) for _ in range(depth)])
        self.normalize = nnx.LayerNorm(width, rngs=rngs)
        self.head = Head(width, classes, head, rngs=rngs, **options)

    def __call__(self, images: Float[Array, "n h w c"]) -> Float[Array, "n classes"]:
        """Logits."""
        patches = self.embed(images).reshape(len(images), *self.positions.shape[1:])
        x = patches + jnp.broadcast_to(self.positions[...], patches.shape)
        for block in self.blocks:
            x = block(x)
        return self.head(jnp.mean(self.normalize(x), axis=1))
