"""Claims on what goes around the layers: images from files, reference models, training, weight updates."""

import gzip
import re
import struct

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import lowdim_jax as ld
from lowdim_jax import nn
from lowdim_jax.linalg import svd
from lowdim_jax.nn import reference

# --- Data --------------------------------------------------------------------------------------


def write(path, data, zipped):
    path = path.with_name(path.name + ".gz") if zipped else path
    path.write_bytes(gzip.compress(data) if zipped else data)
    return path


def idx(array):
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


PIXELS = np.random.default_rng(0).integers(0, 256, (5, 4, 3), dtype="uint8")
LABELS = np.array([3, 0, 9, 1, 1], "uint8")


def write_mnist(folder, *, zipped=False, images=None, labels=None):
    write(folder / "train-images-idx3-ubyte", idx(PIXELS) if images is None else images, zipped)
    write(folder / "train-labels-idx1-ubyte", idx(LABELS) if labels is None else labels, zipped)


@pytest.mark.parametrize("zipped", [False, True])
def test_idx_files_come_back_as_written(tmp_path, zipped):
    write_mnist(tmp_path, zipped=zipped)
    data = reference.mnist(tmp_path)
    assert data.images.shape == (5, 4, 3, 1)
    assert data.images.dtype == np.float32
    np.testing.assert_allclose(data.images[..., 0] * 255, PIXELS, atol=1e-4)
    np.testing.assert_array_equal(data.labels, LABELS)
    np.testing.assert_array_equal(reference.load_images(tmp_path).images, data.images)


@pytest.mark.parametrize("zipped", [False, True])
def test_cifar_files_come_back_as_written(tmp_path, zipped):
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 256, (10, 3073), dtype="uint8")
    rows[:, 0] = np.arange(10)
    for i in range(5):
        write(tmp_path / f"data_batch_{i + 1}.bin", rows[2 * i : 2 * i + 2].tobytes(), zipped)
    write(tmp_path / "test_batch.bin", rows[:3].tobytes(), zipped)
    train, test = reference.cifar10(tmp_path), reference.cifar10(tmp_path, "test")
    assert train.images.shape == (10, 32, 32, 3)
    np.testing.assert_array_equal(train.labels, np.arange(10))
    green = rows[7, 1 + 1024 : 1 + 2048].reshape(32, 32)
    np.testing.assert_allclose(train.images[7, :, :, 1] * 255, green, atol=1e-4)
    assert len(test.labels) == 3
    np.testing.assert_array_equal(reference.load_images(tmp_path).images, train.images)


def test_digits_are_there_without_a_download():
    data = reference.digits()
    assert data.images.shape == (1797, 8, 8, 1)
    assert data.images.min() == 0
    assert data.images.max() == 1
    train, test = data.split(held_out=0.25, seed=3)
    assert (len(train.labels), len(test.labels)) == (1348, 449)
    together = np.concatenate([train.images, test.images]).reshape(1797, -1)
    assert (np.sort(together.sum(1)) == np.sort(data.images.reshape(1797, -1).sum(1))).all()


BAD_IDX = {
    "empty": (b"", "starts with nothing, expected 000008"),
    "text": (b"not an image", "starts with 6e6f7420, expected 000008"),
    "floats": (struct.pack(">BBBBI", 0, 0, 13, 1, 2) + b"\0" * 8, "starts with 00000d01"),
    "no dimensions": (bytes([0, 0, 8, 0]), "ends inside its header of 0 dimensions"),
    "half a header": (idx(PIXELS)[:9], "ends inside its header of 3 dimensions"),
    "truncated": (idx(PIXELS)[:-1], "has 75 bytes, expected 76 for shape (5, 4, 3)"),
    "too long": (idx(PIXELS) + b"\0", "has 77 bytes, expected 76"),
    "huge": (struct.pack(">BBBB3I", 0, 0, 8, 3, *[2**32 - 1] * 3), "expected 79228162458924105385300197391"),
    "labels as images": (idx(LABELS), "images have shape (5,) and labels (5,)"),
    "other count": (idx(PIXELS[:4]), "images have shape (4, 4, 3) and labels (5,)"),
    "broken gzip": (gzip.compress(idx(PIXELS), mtime=0)[:-9], "cannot be read"),
}


@pytest.mark.parametrize("name", BAD_IDX)
def test_bad_idx_files_are_named(tmp_path, name):
    content, message = BAD_IDX[name]
    write_mnist(tmp_path, images=content)
    with pytest.raises(ValueError, match=re.escape(message)):
        reference.mnist(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "has 0 bytes, expected a positive multiple of 3073"),
        (b"\0" * 3072, "has 3072 bytes, expected a positive multiple"),
        (bytes([10]) + b"\0" * 3072, "has the label 10, expected 0 to 9"),
    ],
)
def test_bad_cifar_files_are_named(tmp_path, content, message):
    (tmp_path / "test_batch.bin").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        reference.cifar10(tmp_path, "test")


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (reference.mnist, "neither train-images-idx3-ubyte nor train-images-idx3-ubyte.gz"),
        (reference.cifar10, "neither data_batch_1.bin"),
        (reference.load_images, "none of train-images-idx3-ubyte, t10k-images"),
        (lambda folder: reference.cifar10(folder, "valid"), "part='valid', expected 'train' or 'test'"),
        (lambda folder: reference.read_idx(folder / "missing"), "missing cannot be read"),
        (lambda _: reference.digits().split(held_out=0.0), "held_out=0.0 of 1797 images leaves one"),
        (lambda _: reference.digits().split(held_out=1.0), "held_out=1.0 of"),
    ],
)
def test_missing_files_and_bad_parts_are_named(tmp_path, act, message):
    with pytest.raises(ValueError, match=message):
        act(tmp_path)


# --- Models and training -----------------------------------------------------------------------

SMALL = {
    reference.MLP: {"width": 32},
    reference.ConvNet: {"channels": 4, "width": 24},
    reference.VisionTransformer: {"width": 16, "depth": 1, "heads": 2},
}


def small(model, **options):
    return model((8, 8, 1), 10, **SMALL[model], **options, rngs=nnx.Rngs(0))


@pytest.mark.parametrize("model", SMALL, ids=lambda model: model.__name__)
@pytest.mark.parametrize("head", ["plain", "deep", "compressed"])
def test_every_model_learns_with_every_head_and_nothing_in_it_is_frozen(model, head):
    net = small(model, head=head)
    data = reference.digits()
    batch = jnp.asarray(data.images[:64]), jnp.asarray(data.labels[:64])
    rate = optax.sgd(0.05, momentum=0.9)
    before = nnx.clone(nnx.state(net, nnx.Param))
    tx = nn.partition(net, outer=rate, middle=rate, other=rate)
    for _ in reference.train(net, tx, data, steps=25, batch_size=64):
        pass
    after = nnx.state(net, nnx.Param)
    moved = jax.tree.map(lambda a, b: bool(jnp.any(a != b)), before, after)
    assert all(jax.tree.leaves(moved)), moved
    nnx.update(again := small(model, head=head), before)
    assert reference.cross_entropy(net, *batch) < reference.cross_entropy(again, *batch)


def test_training_reaches_what_digits_allow_and_the_order_is_the_seeds():
    train, test = reference.digits().split()
    tx = optax.sgd(0.1, momentum=0.9)

    def run(seed):
        model = small(reference.MLP)
        steps = list(reference.train(model, tx, train, steps=150, record_every=60, seed=seed))
        return steps, reference.accuracy(model, test), model.head.classifier.kernel[...]

    first, again, other = run(0), run(0), run(1)
    assert first[0] == [0, 60, 120, 150]
    assert first[1] > 0.93
    np.testing.assert_array_equal(first[2], again[2])
    assert not np.array_equal(first[2], other[2])


def test_training_is_one_update_for_each_shuffled_batch_and_keeps_all_state():
    """By hand, with a layer that has statistics and one that draws; 5 steps recorded every 2nd."""

    class Noisy(nnx.Module):
        def __init__(self):
            rngs = nnx.Rngs(0)
            self.normalize = nnx.BatchNorm(64, rngs=rngs)
            self.drop = nnx.Dropout(0.3, rngs=rngs)
            self.classifier = nnx.Linear(64, 10, rngs=rngs)

        def __call__(self, images):
            return self.classifier(self.drop(self.normalize(images.reshape(len(images), -1))))

    data, tx = reference.Images(*(part[:96] for part in reference.digits())), optax.sgd(0.1, momentum=0.9)
    fitted, by_hand = Noisy(), Noisy()
    steps = reference.train(fitted, tx, data, steps=5, batch_size=32, record_every=2, seed=3)
    assert list(steps) == [0, 2, 4, 5]
    optimizer, rng = nnx.Optimizer(by_hand, tx, wrt=nnx.Param), np.random.default_rng(3)

    @nnx.jit
    def update(model, optimizer, *batch):
        optimizer.update(model, nnx.grad(reference.cross_entropy)(model, *batch))

    for rows in [*rng.permutation(96).reshape(3, 32), *rng.permutation(96).reshape(3, 32)[:2]]:
        update(by_hand, optimizer, data.images[rows], data.labels[rows])
    for a, b in zip(*(jax.tree.leaves(nnx.state(m, ...)) for m in (fitted, by_hand)), strict=True):
        if not jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            np.testing.assert_allclose(a, b, atol=1e-5)


def test_accuracy_sees_a_model_as_at_evaluation_and_leaves_its_statistics_alone():
    class Normalized(nnx.Module):
        def __init__(self):
            self.normalize = nnx.BatchNorm(64, rngs=nnx.Rngs(0))
            self.drop = nnx.Dropout(0.9, rngs=nnx.Rngs(0))
            self.classifier = nnx.Linear(64, 10, rngs=nnx.Rngs(0))

        def __call__(self, images):
            return self.classifier(self.drop(self.normalize(images.reshape(len(images), -1))))

    model, data = Normalized(), reference.digits()
    before = [np.asarray(leaf) for leaf in jax.tree.leaves(nnx.state(model, nnx.BatchStat))]
    # Statistics of mean 0 and variance 1 as they were made: only the classifier acts.
    logits = data.images.reshape(-1, 64) / np.sqrt(1 + 1e-5) @ np.asarray(model.classifier.kernel[...])
    assert reference.accuracy(model, data) == pytest.approx(np.mean(logits.argmax(axis=1) == data.labels))
    for old, new in zip(before, jax.tree.leaves(nnx.state(model, nnx.BatchStat)), strict=True):
        np.testing.assert_array_equal(old, new)
    assert not model.normalize.use_running_average
    assert not model.drop.deterministic


def test_accuracy_is_the_fraction_of_largest_logits():
    class Constant(nnx.Module):
        def __call__(self, images):
            return jnp.broadcast_to(jnp.array([[0.0, 2.0, 1.0]]), (len(images), 3))

    data = reference.Images(np.zeros((4, 1, 1, 1), "float32"), np.array([1, 1, 0, 2], "int32"))
    assert reference.accuracy(Constant(), data) == 0.5
    expected = np.mean([np.log(np.exp([0, 2, 1]).sum()) - [0, 2, 1][k] for k in data.labels])
    found = reference.cross_entropy(Constant(), *map(jnp.asarray, data))
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size=0, expected 1 to 1797"),
        ({"batch_size": 2000}, "batch_size=2000, expected"),
        ({"record_every": 0}, "record_every=0, expected at least 1"),
    ],
)
def test_bad_training_settings_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        next(reference.train(small(reference.MLP), optax.sgd(0.1), reference.digits(), steps=1, **options))


def test_patches_and_heads_must_divide():
    with pytest.raises(ValueError, match="patch=3 and heads=4, expected divisors"):
        reference.VisionTransformer((8, 8, 1), 10, patch=3, rngs=nnx.Rngs(0))


# --- Weight updates ----------------------------------------------------------------------------


def test_every_kind_of_layer_has_a_matrix_that_acts_as_the_layer_does():
    rngs = nnx.Rngs(0)
    x = jax.random.normal(jax.random.key(0), (1, 3, 3, 2))
    flat = x.reshape(-1)

    class Layers(nnx.Module):
        def __init__(self):
            self.dense = nnx.Linear(18, 4, rngs=rngs)
            self.convolution = nnx.Conv(2, 5, (3, 3), padding="VALID", rngs=rngs)
            self.general = nnx.LinearGeneral(18, (2, 3), rngs=rngs)
            self.deep = nn.DeepLinear(18, 6, rngs=rngs)
            self.normalize = nnx.LayerNorm(3, rngs=rngs)

    model = Layers()
    found = nn.matrices(model)
    factors = {f"deep.factors.{i}" for i in range(3)}
    assert set(found) == {"dense", "convolution", "general"} | factors
    chosen = nn.matrices(model, ["dense", "convolution", "general", "deep"])
    outputs = {
        "dense": model.dense(flat), "convolution": model.convolution(x), "general": model.general(flat),
        "deep": model.deep(flat),
    }
    for path, output in outputs.items():
        np.testing.assert_allclose(chosen[path] @ flat, output.reshape(-1), atol=1e-5)
    for path in ("normalize", "dense.bias"):
        with pytest.raises(ValueError, match=f"path='{path}' leads to a "):
            nn.matrices(model, [path])


def test_updates_are_differences_since_the_start():
    model = nnx.Linear(6, 5, rngs=nnx.Rngs(0))
    start = nn.matrices(model)
    change = ld.random_target(jax.random.key(1), (5, 6), jnp.array([3.0, 1.0]))
    model.kernel[...] = model.kernel[...] + change.dense().T
    (update,) = nn.updates(start, nn.matrices(model)).values()
    np.testing.assert_allclose(update.singular_values, [3, 1, 0, 0, 0], atol=1e-5)
    np.testing.assert_allclose(nn.top_energy(update, 1), 0.9, rtol=1e-5)
    assert jnp.max(nn.turn(update, change, 2)) < 1e-3


def test_the_turn_of_a_subspace_is_the_angle_it_was_rotated_by(x64):
    angle = 0.3
    basis = jnp.linalg.qr(jax.random.normal(jax.random.key(0), (7, 4)))[0]
    rotated = basis.at[:, 0].set(np.cos(angle) * basis[:, 0] + np.sin(angle) * basis[:, 3])
    earlier = svd(basis[:, :2] @ jnp.diag(jnp.array([2.0, 1.0])) @ basis[:, :2].T)
    later = svd(rotated[:, :2] @ jnp.diag(jnp.array([2.0, 1.0])) @ basis[:, :2].T)
    np.testing.assert_allclose(nn.turn(earlier, later, 2), [angle, 0], atol=1e-7)
    np.testing.assert_allclose(nn.turn(earlier, earlier, 2), [0, 0], atol=1e-7)
    np.testing.assert_allclose(nn.energy_within(earlier, earlier, 2), 1)
    kept = (4 * np.cos(angle) ** 2 + 1) / 5
    np.testing.assert_allclose(nn.energy_within(later, earlier, 2), kept)
