"""Claims on compressed layers in nnx.Linear's place: every option, every call, every conversion."""

import gc
import inspect
import weakref
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import lowdim_jax as ld
from lowdim_jax import nn
from lowdim_jax.linalg import subspace_angles
from lowdim_jax.nn.layers import variance_scale

KINDS = {
    "deep": nn.DeepLinear,
    "compressed": lambda *sizes, **options: nn.CompressedLinear(*sizes, rank=3, **options),
}
X = np.random.default_rng(0).standard_normal((4, 2, 8)).astype("float32")


@pytest.fixture(params=KINDS)
def make(request):
    return KINDS[request.param]


# --- Every argument of nnx.Linear --------------------------------------------------------------

calls: list = []


def recorded(x, y, *args, **kwargs):
    """Flax's own product, and what it was called with."""
    calls.append((args, kwargs))
    return jax.lax.dot_general(x, y, *args, **kwargs)


def halved(arrays, *, dtype=None, inexact=True):
    inputs, kernel, bias = arrays
    return inputs / 2, kernel, bias


OPTIONS = {
    "use_bias": False,
    "dtype": jnp.bfloat16,
    "param_dtype": jnp.bfloat16,
    "precision": jax.lax.Precision.HIGHEST,
    "kernel_init": nnx.initializers.constant(0.25),
    "bias_init": nnx.initializers.ones,
    "dot_general": recorded,
    "promote_dtype": halved,
    "preferred_element_type": jnp.float32,
    "kernel_metadata": {"owner": "me"},
    "bias_metadata": {"owner": "you"},
}


def test_every_option_of_the_installed_flax_is_tried_here():
    named = inspect.signature(nnx.Linear.__init__).parameters
    required = {"self", "in_features", "out_features", "rngs"}
    assert set(named) - required == set(OPTIONS)
    assert set(named) <= set(inspect.signature(nn.DeepLinear.__init__).parameters)
    assert inspect.signature(nnx.Linear.__call__) == inspect.signature(
        nn.DeepLinear.__call__
    ) or list(inspect.signature(nn.DeepLinear.__call__).parameters) == ["self", "inputs", "out_sharding"]


@pytest.mark.parametrize("option", OPTIONS)
def test_an_option_does_what_it_does_in_a_dense_layer(make, option):
    """Shown by the dense layer that the deep one merges into, given the same option."""
    layer = make(8, 6, **{option: OPTIONS[option]}, rngs=nnx.Rngs(0))
    dense = nnx.Linear(8, 6, **{option: OPTIONS[option]}, rngs=nnx.Rngs(0))
    merged, x = layer.merge(), X.astype(OPTIONS["param_dtype"]) if option == "param_dtype" else X
    for name in ("use_bias", "dtype", "param_dtype", "precision", "dot_general", "promote_dtype",
                 "preferred_element_type"):  # fmt: skip
        assert getattr(merged, name) == getattr(layer, name) == getattr(dense, name)
    assert layer(x).dtype == dense(x).dtype
    assert layer(x).shape == dense(x).shape
    assert (layer.bias is None) == (dense.bias is None)
    if option == "promote_dtype":  # called once for each factor, and so halves more often
        np.testing.assert_allclose(4 * layer(x), merged(x), atol=1e-5)
    else:
        near = 0.1 if "dtype" in option else 1e-5
        np.testing.assert_allclose(*(np.asarray(f(x), float) for f in (layer, merged)), atol=near)
    if option == "kernel_metadata":
        assert all(factor.owner == "me" for factor in layer.factors)
        assert merged.kernel.owner == "me"
    if option == "bias_metadata":
        assert layer.bias.owner == merged.bias.owner == "you"
    if option == "bias_init":
        assert (layer.bias[...] == 1).all()


def test_the_given_product_is_called_for_each_factor_as_a_dense_layer_calls_it(make):
    layer = make(8, 6, dot_general=recorded, precision="highest", rngs=nnx.Rngs(0))
    calls.clear()
    nnx.Linear(8, 6, dot_general=recorded, precision="highest", rngs=nnx.Rngs(0))(X)
    (expected,) = calls
    calls.clear()
    layer(X)
    assert calls == [expected] * layer.depth


def test_no_axis_is_reshaped_away(make):
    """So that a batch that is split over devices stays split."""
    layer = make(8, 6, use_bias=False, rngs=nnx.Rngs(0))
    graph, state = nnx.split(layer)
    equations = jax.make_jaxpr(lambda state: nnx.merge(graph, state)(X))(state)
    assert "reshape" not in str(equations)


def test_numpy_integers_are_integers_and_rank_depth_and_kernel_can_be_read():
    numbers = {"rank": np.int64(3), "depth": np.int8(4)}
    layer = nn.CompressedLinear(np.int64(8), np.int32(6), **numbers, rngs=nnx.Rngs(0))
    assert (layer.rank, layer.depth, layer.in_features) == (3, 4, 8)
    assert type(layer.in_features) is int
    np.testing.assert_allclose(layer.kernel, ld.end_to_end(layer.weights).T, atol=1e-6)
    deep = nn.DeepLinear(8, 6, hidden=np.int64(5), depth=2, rngs=nnx.Rngs(0))
    assert (deep.rank, deep.depth) == (5, 2)
    for bad in (3.0, True, "3"):
        with pytest.raises(ValueError, match=r"rank=.*, expected an integer"):
            nn.CompressedLinear(8, 6, rank=bad, rngs=nnx.Rngs(0))
    with pytest.raises(TypeError, match="no argument hidden"):
        nn.CompressedLinear(8, 6, rank=2, hidden=3, rngs=nnx.Rngs(0))


# --- Meshes ------------------------------------------------------------------------------------


def test_partitioned_initializers_place_the_outer_factors_as_the_kernels_axes_say():
    """The first factor along the inputs' axis, the last one along the outputs', none between."""
    split = nnx.with_partitioning(nnx.initializers.lecun_normal(), ("data", "model"))
    mesh = jax.make_mesh((1, 1), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    with jax.set_mesh(mesh):
        for options in ({"kernel_init": split}, {"kernel_metadata": {"out_sharding": ("data", "model")}}):
            layer = nn.CompressedLinear(8, 6, rank=3, rngs=nnx.Rngs(0), **options)
            specs = [tuple(factor.get_metadata()["out_sharding"]) for factor in layer.factors]
            assert specs == [(None, "data"), (None, None), ("model", None)]
            assert tuple(layer.merge().kernel.get_metadata()["out_sharding"]) == ("data", "model")
            assert layer(X).shape == (4, 2, 6)
        one = nn.DeepLinear(8, 6, depth=1, kernel_init=split, rngs=nnx.Rngs(0))
        assert tuple(one.factors[0].get_metadata()["out_sharding"]) == ("model", "data")


def test_an_explicit_mesh_takes_the_layer_as_it_takes_a_dense_one(make):
    mesh = jax.make_mesh((1, 1), ("data", "model"), axis_types=(AxisType.Explicit,) * 2)
    layer = make(8, 6, rngs=nnx.Rngs(0))
    expected = layer(X)
    with jax.set_mesh(mesh):
        x = jax.device_put(X, NamedSharding(mesh, P("data", None, "model")))
        outputs = nnx.jit(lambda layer, x: layer(x, out_sharding=P("data", None, "model")))(layer, x)
        assert outputs.sharding.spec == P("data", None, "model")
    np.testing.assert_allclose(outputs, expected, atol=1e-5)


# --- Starts ------------------------------------------------------------------------------------


@pytest.mark.parametrize("spaces", [(32, 4, 4, 64), (64, 4, 32), (16, 16, 16, 16), (8, 24, 4)])
def test_the_default_scale_keeps_the_variance_of_activations(spaces):
    """Over many draws of Haar-random factors, by NumPy."""
    rng, scale, ratios = np.random.default_rng(0), variance_scale(spaces), []
    for _ in range(400):
        x = rng.standard_normal(spaces[0])
        y = x
        for before, after in pairwise(spaces):
            q, _ = np.linalg.qr(rng.standard_normal((max(before, after), min(before, after))))
            y = scale * (q if after >= before else q.T) @ y
        ratios.append(np.mean(y**2) / np.mean(x**2))
    np.testing.assert_allclose(np.mean(ratios), 1, atol=5 * np.std(ratios) / 20)


def test_eight_compressed_layers_in_a_row_keep_the_size_of_their_inputs():
    rngs = nnx.Rngs(0)
    x = rngs.normal((64, 128))
    for _ in range(8):
        x = nn.CompressedLinear(128, 128, rank=8, rngs=rngs)(x)
    assert 0.2 < float(jnp.std(x)) < 5  # 1.9e-6 at the scale 1


def test_a_layer_that_is_made_zero_learns(make):
    layer = make(8, 6, kernel_init=nnx.initializers.zeros, use_bias=False, rngs=nnx.Rngs(0))
    assert not layer(X).any()
    target = jnp.asarray(X) @ jnp.ones((8, 6))

    @nnx.jit
    def step(layer):
        value, slope = nnx.value_and_grad(lambda layer: jnp.mean((layer(X) - target) ** 2))(layer)
        nnx.update(layer, jax.tree.map(lambda p, g: p - 0.02 * g, nnx.state(layer), slope))
        return value

    losses = [float(step(layer)) for _ in range(60)]
    assert losses[-1] < 0.5 * losses[0]
    made = nnx.jit(lambda: make(8, 6, kernel_init=nnx.initializers.zeros, rngs=nnx.Rngs(0)))()
    assert made.factors[0][...].any()
    assert not made.factors[-1][...].any()


class ReLUAfter(nnx.Module):
    """A compressed layer with a ReLU right after it."""

    def __init__(self):
        self.layer = nn.CompressedLinear(8, 7, rank=3, rngs=nnx.Rngs(0))
        self.classifier = nnx.Linear(7, 3, rngs=nnx.Rngs(1))

    def __call__(self, x):
        return self.classifier(jax.nn.relu(self.layer(x)))


def cross_entropy(model, x, labels):
    return optax.softmax_cross_entropy_with_integer_labels(model(x), labels).mean()


BATCH = jnp.asarray(X[:, 0]), jnp.arange(4) % 3


@pytest.mark.parametrize("which", ["current", "given"])
def test_before_a_relu_the_start_takes_the_gradient_at_another_matrix(which):
    model = ReLUAfter()
    with pytest.raises(ValueError, match="has the gradient 0 at W = 0"):
        nn.spectral_start(model, "layer", cross_entropy, *BATCH)
    matrix = model.layer.kernel.T if which == "current" else jnp.ones((7, 8)) * jnp.arange(7.0)[:, None] / 9

    def loss_of(w):
        hidden = jax.nn.relu(BATCH[0] @ w.T)
        logits = hidden @ model.classifier.kernel[...]
        return optax.softmax_cross_entropy_with_integer_labels(logits, BATCH[1]).mean()

    _, sigma, right = np.linalg.svd(-jax.grad(loss_of)(matrix))
    at = "current" if which == "current" else matrix
    nn.spectral_start(model, "layer", cross_entropy, *BATCH, at=at)
    k = min(int(np.sum(sigma > 1e-3 * sigma[0])), 3)
    assert subspace_angles(model.layer.weights[0].T[:, :k], right[:k].T).max() < 1e-2
    with pytest.raises(ValueError, match="at='here', expected"):
        nn.layer_surrogate(model, "layer", cross_entropy, *BATCH, at="here")
    with pytest.raises(ValueError, match=r"at has shape \(2, 2\), expected \(7, 8\)"):
        nn.layer_surrogate(model, "layer", cross_entropy, *BATCH, at=jnp.ones((2, 2)))


def test_what_a_loss_holds_is_read_each_time_and_not_kept_alive():
    class Weighted:
        weight = 1.0

        def __call__(self, model, x, labels):
            return self.weight * cross_entropy(model, x, labels)

    model, loss = ReLUAfter(), Weighted()
    first = nn.layer_surrogate(model, "layer", loss, *BATCH, at="current")
    factor = 2.0

    def scaled(model, x, labels):
        return factor * cross_entropy(model, x, labels)

    np.testing.assert_allclose(nn.layer_surrogate(model, "layer", scaled, *BATCH, at="current"), 2 * first)
    factor, loss.weight = 3.0, 3.0
    for changed in (scaled, loss, loss.__call__):
        np.testing.assert_allclose(
            nn.layer_surrogate(model, "layer", changed, *BATCH, at="current"), 3 * first, rtol=1e-5
        )
    alive = weakref.ref(loss)
    del loss, changed
    gc.collect()
    assert alive() is None


@pytest.mark.parametrize("factor", [0.0, np.nan])
def test_a_start_without_a_gradient_fails_under_jit_too(factor):
    def scaled(model, *batch):
        return factor * cross_entropy(model, *batch)

    def start(model):
        nn.spectral_start(model, "layer", scaled, *BATCH, at="current")
        return model.layer.factors[0][...]

    with pytest.raises(Exception, match="has the gradient 0"):
        jax.block_until_ready(nnx.jit(start)(ReLUAfter()))


# --- Conversions -------------------------------------------------------------------------------


def test_what_a_conversion_would_lose_is_refused():
    class Doubled(nnx.Linear):
        def __call__(self, inputs, out_sharding=None):
            return 2 * super().__call__(inputs)

    class Renamed(nnx.Linear):
        pass

    for layer in (nnx.LoRALinear(8, 6, lora_rank=2, rngs=nnx.Rngs(0)), Doubled(8, 6, rngs=nnx.Rngs(0))):
        with pytest.raises(ValueError, match="has a call of its own"):
            nn.compress_layer(layer, rank=2)
    layer = Renamed(8, 6, dot_general=recorded, precision="highest", rngs=nnx.Rngs(0))
    small = nn.compress_layer(layer, rank=6)
    assert (small.dot_general, small.precision) == (recorded, "highest")
    np.testing.assert_allclose(small(X), layer(X), atol=1e-5)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_kernel_that_is_not_finite_is_named(bad):
    layer = nnx.Linear(8, 6, rngs=nnx.Rngs(0))
    layer.kernel[...] = layer.kernel[...].at[1, 2].set(bad)
    with pytest.raises(ValueError, match=r"the layer's kernel has 1 entries that are NaN or infinite"):
        nn.compress_layer(layer, rank=2)


def test_components_that_are_zero_can_still_learn():
    layer = nnx.Linear(8, 6, rngs=nnx.Rngs(0))
    layer.kernel[...] = jnp.zeros((8, 6)).at[0, 0].set(2.0)
    for rank in (1, 4):
        small = nn.compress_layer(layer, rank=rank, depth=3)
        np.testing.assert_allclose(small.kernel, layer.kernel[...], atol=1e-6)
        assert np.linalg.matrix_rank(np.asarray(small.factors[0][...])) == rank


class Stack(nnx.Module):
    def __init__(self):
        make = nnx.split_rngs(splits=3)(nnx.vmap(lambda rngs: nnx.Linear(16, 8, rngs=rngs)))
        self.blocks = make(nnx.Rngs(0))


def test_stacked_layers_are_one_matrix_each():
    model = Stack()
    start = nn.matrices(model)
    assert {path: value.shape for path, value in start.items()} == {f"blocks[{k}]": (8, 16) for k in range(3)}
    keys = jax.random.split(jax.random.key(0))
    model.blocks.kernel[...] += jax.random.normal(keys[0], (3, 16, 1)) @ jax.random.normal(keys[1], (3, 1, 8))
    for update in nn.updates(start, nn.matrices(model)).values():
        assert update.singular_values[0] > 1e4 * update.singular_values[1]
    small = nn.compress_layer(model.blocks, rank=8)
    run = nnx.vmap(lambda layer, x: layer(x), in_axes=(0, None))
    x = jnp.asarray(np.random.default_rng(0).standard_normal((4, 16)), jnp.float32)
    np.testing.assert_allclose(run(small, x), run(model.blocks, x), atol=1e-5)
    with pytest.raises(ValueError, match="is a stack of 3 layers, expected one"):
        nn.layer_surrogate(model, "blocks", lambda model: 0.0)


def test_an_einsum_has_a_matrix_and_layers_of_many_are_refused_by_name():
    class Model(nnx.Module):
        def __init__(self):
            rngs = nnx.Rngs(0)
            self.einsum = nnx.Einsum("bd,ndh->bhn", (2, 3, 4), rngs=rngs)
            self.grouped = nnx.Conv(4, 4, (3,), feature_group_count=2, rngs=rngs)
            self.lora = nnx.LoRALinear(3, 3, lora_rank=1, rngs=rngs)

    model, x = Model(), np.arange(3.0, dtype="float32")
    found = nn.matrices(model)
    assert set(found) == {"einsum"}
    np.testing.assert_allclose(found["einsum"] @ x, model.einsum(x[None]).reshape(-1), atol=1e-5)
    for path, message in (("grouped", "2 groups"), ("lora", "a call of its own")):
        with pytest.raises(ValueError, match=message):
            nn.matrices(model, [path])


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda model: nn.replace_layer(model, "", model), "path='' is the model itself"),
        (lambda model: nn.layer_at(model, 3), "path=3 is a int, expected a text or a tuple"),
        (lambda model: nn.layer_at(model, "classifier.1.x"), "has no part 1"),
    ],
)
def test_paths_that_lead_nowhere_are_named(act, message):
    with pytest.raises(ValueError, match=message):
        act(ReLUAfter())


def test_a_path_may_be_a_list_and_the_empty_one_is_the_model():
    model = ReLUAfter()
    assert nn.layer_at(model, ["layer"]) is model.layer
    assert nn.layer_at(model, "") is nn.layer_at(model, ()) is model
    assert set(nn.matrices(model, [("layer",)])) == {("layer",)}
