"""The reader of tensors without torch, and the network that the weights are for."""

import io
import pickle
import struct
import sys
import types
from collections import OrderedDict
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

sys.path.insert(0, str(Path(__file__).parent / "benchmarks"))

import efficientnet_lite

MAGIC = 0x1950A86A20F9469CFC6C


class Tensor:
    """Pickles as torch's tensors do: a function of torch's and where the numbers lie."""

    def __init__(self, rebuild, storage, offset, shape, strides):
        self.parts = rebuild, (storage, offset, shape, strides, False, OrderedDict())

    def __reduce__(self):
        return self.parts


class Storage(str):
    """A storage, which goes into the file by its key only."""


def written(monkeypatch, tensors, storages, rebuild="_rebuild_tensor_v2"):
    """A file of tensors `name: (storage, offset, shape, strides)`, as torch once wrote them."""
    torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")
    torch.FloatStorage = type("FloatStorage", (), {"__module__": "torch", "__qualname__": "FloatStorage"})
    function = types.FunctionType((lambda *_: None).__code__, {}, rebuild)
    function.__module__, function.__qualname__ = "torch._utils", rebuild
    setattr(utils, rebuild, function)
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setitem(sys.modules, "torch._utils", utils)
    file = io.BytesIO()

    class Writer(pickle.Pickler):
        def persistent_id(self, part):
            if isinstance(part, Storage):
                return ("storage", torch.FloatStorage, str(part), "cpu", storages[part].size, None)
            return None

    named = OrderedDict(
        (name, Tensor(function, Storage(storage), *place)) for name, (storage, *place) in tensors.items()
    )
    for part in (MAGIC, 1001, {"little_endian": True}):
        pickle.dump(part, file, 2)
    Writer(file, 2).dump(named)
    pickle.dump(list(storages), file, 2)
    for values in storages.values():
        file.write(struct.pack("<q", values.size) + values.astype("<f4").tobytes())
    return file.getvalue()


def test_tensors_come_back_as_written_views_and_transposes_too(tmp_path, monkeypatch):
    first, second = np.arange(12.0), np.array([7.0, 8.0])
    tensors = {
        "whole": ("a", 0, (3, 4), (4, 1)),
        "turned": ("a", 0, (4, 3), (1, 4)),
        "part": ("a", 5, (2, 2), (4, 1)),
        "other": ("b", 0, (2,), (1,)),
    }
    path = tmp_path / "weights.pth"
    path.write_bytes(written(monkeypatch, tensors, {"a": first, "b": second}))
    found = efficientnet_lite.read_tensors(path)
    whole = first.reshape(3, 4)
    expected = {"whole": whole, "turned": whole.T, "part": whole[1:, 1:3], "other": second}
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values)
        assert found[name].dtype == np.float32


def test_a_file_that_asks_for_anything_else_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "weights.pth"
    path.write_bytes(written(monkeypatch, {"a": ("a", 0, (1,), (1,))}, {"a": np.ones(1)}, rebuild="run"))
    with pytest.raises(ValueError, match=r"asks for torch\._utils\.run, expected tensors only"):
        efficientnet_lite.read_tensors(path)


def test_the_network_has_the_published_number_of_parameters():
    """4.652 M (the architecture's table), two thirds in 1×1 convolutions."""
    model = nnx.eval_shape(lambda: efficientnet_lite.EfficientNetLite0(rngs=nnx.Rngs(0)))
    assert sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param))) == 4_652_008
    images = jax.ShapeDtypeStruct((2, 32, 32, 3), "float32")
    outputs = nnx.eval_shape(lambda model, x: model(x), model, images)
    assert outputs.shape == (2, 1000)
    pointwise = [
        layer.kernel.size for _, layer in nnx.iter_modules(model)
        if isinstance(layer, nnx.Conv) and layer.kernel_size == (1, 1)
    ]
    assert 0.67 <= sum(pointwise) / 4_652_008 < 0.68


@pytest.mark.parametrize(("size", "window", "stride"), [(1, 5, 1), (5, 3, 2), (6, 5, 2)])
def test_shifted_images_are_the_convolution_of_each_channel_and_so_are_their_gradients(size, window, stride):
    rng = np.random.default_rng(0)
    images, kernel = rng.normal(size=(2, size, size, 4)), rng.normal(size=(window, window, 1, 4))
    layer = efficientnet_lite.Depthwise(4, window, stride, rngs=nnx.Rngs(0))
    graph, state = nnx.split(layer)
    options = {"dimension_numbers": ("NHWC", "HWIO", "NHWC"), "feature_group_count": 4}

    def shifted(kernel, x):
        (path,) = nnx.to_flat_state(state).paths
        return nnx.merge(graph, nnx.from_flat_state([(path, nnx.Param(kernel))]))(x)

    def convolved(kernel, x):
        return jax.lax.conv_general_dilated(x, kernel, (stride,) * 2, "SAME", **options)

    @jax.jit
    def both(kernel, x):
        y, pulled = jax.vjp(convolved, kernel, x)
        found, found_pulled = jax.vjp(shifted, kernel, x)
        return (y, *pulled(y)), (found, *found_pulled(y))

    for expected, found in zip(*both(kernel.astype("float32"), images.astype("float32")), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
