"""Claims on Flax layers: they replace nnx.Linear, merge exactly, compress, and every parameter learns."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import lowdim_jax as ld
from lowdim_jax import nn
from lowdim_jax.nn import reference

LAYERS = {
    "deep": nn.DeepLinear,
    "compressed": lambda *sizes, **options: nn.CompressedLinear(*sizes, rank=4, **options),
    "deep, one factor": lambda *sizes, **options: nn.DeepLinear(*sizes, depth=1, **options),
}


@pytest.fixture(params=LAYERS)
def make(request):
    """Makers of every kind of layer, called as `nnx.Linear` is."""
    return LAYERS[request.param]


@pytest.fixture
def optax_promotes():
    """optax.adam mixes integers and floats, which the strict setting of the tests refuses."""
    with jax.numpy_dtype_promotion("standard"):
        yield


class Network(nnx.Module):
    """Every kind of layer at once, nested."""

    def __init__(self, rngs, kind="compressed"):
        self.first = nnx.Linear(6, 8, rngs=rngs)
        self.normalize = nnx.LayerNorm(8, rngs=rngs)
        self.deep = nnx.List([nn.DeepLinear(8, 7, rngs=rngs)])
        self.head = reference.Head(7, 3, kind, rank=4, rngs=rngs)

    def __call__(self, x):
        return self.head(jnp.tanh(self.deep[0](self.normalize(jax.nn.relu(self.first(x))))))


def batch():
    x = jax.random.normal(jax.random.key(1), (20, 6))
    return x, jax.random.randint(jax.random.key(2), (20,), 0, 3)


# --- The layers ------------------------------------------------------------------------------


def test_importing_the_library_and_its_solvers_does_not_import_flax_or_optax():
    program = (
        "import sys, lowdim_jax as ld; ld.fit, ld.gradient_descent, ld.gradient_flow, ld.reduce; "
        "sys.exit('flax' in sys.modules or 'optax' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


@pytest.mark.parametrize(
    ("param_dtype", "dtype", "use_bias"),
    [
        ("float32", None, True),
        ("float64", None, False),
        ("bfloat16", None, True),
        ("float32", "bfloat16", True),
        ("bfloat16", "float32", False),
    ],
)
def test_a_layer_takes_and_gives_what_a_dense_one_does(x64, make, use_bias, param_dtype, dtype):
    x = jnp.ones((2, 3, 8), param_dtype)
    options = {"use_bias": use_bias, "dtype": dtype, "param_dtype": param_dtype, "rngs": nnx.Rngs(0)}
    dense, layer = nnx.Linear(8, 6, **options), make(8, 6, **options)
    assert layer(x).shape == dense(x).shape
    assert layer(x).dtype == dense(x).dtype
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(layer))} == {jnp.dtype(param_dtype)}
    assert (layer.bias is None) == (dense.bias is None)


def test_a_layer_acts_on_the_last_axis_of_any_shape(make):
    layer = make(8, 6, rngs=nnx.Rngs(0))
    for before in ((), (5,), (2, 0), (2, 3, 5)):
        assert layer(jnp.ones((*before, 8))).shape == (*before, 6)


def test_a_layer_is_the_network_of_its_weights(x64, make):
    layer = make(8, 6, param_dtype="float64", bias_init=nnx.initializers.normal(), rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (5, 8))
    expected = x @ ld.end_to_end(layer.weights).T + jnp.broadcast_to(layer.bias[...], (5, 6))
    np.testing.assert_allclose(layer(x), expected, atol=1e-14)


@pytest.mark.parametrize("sizes", [(6, 8), (256, 256)])
def test_merging_changes_the_output_by_rounding_only(make, sizes):
    layer = make(*sizes, bias_init=nnx.initializers.normal(1.0), rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (100, sizes[0]))
    merged = layer.merge()
    assert isinstance(merged, nnx.Linear)
    assert merged.kernel.shape == sizes
    assert jnp.linalg.norm(merged(x) - layer(x)) <= 1e-6 * jnp.linalg.norm(layer(x))


def test_initializers_are_called_with_the_shapes_of_dense_kernels(make):
    shapes = []

    def record(key, shape, dtype):
        shapes.append(shape)
        return jnp.full(shape, 0.5, dtype)

    layer = make(8, 6, kernel_init=record, bias_init=nnx.initializers.ones, rngs=nnx.Rngs(0))
    assert shapes == [weight.shape[::-1] for weight in layer.weights]
    assert all((weight == 0.5).all() for weight in layer.weights)
    assert (layer.bias[...] == 1).all()


def test_default_starts_are_those_of_the_library(x64):
    options = {"param_dtype": "float64", "scale": 0.3, "rngs": nnx.Rngs(0)}
    for weight in nn.DeepLinear(8, 6, **options).weights:
        np.testing.assert_allclose(jnp.linalg.svd(weight, compute_uv=False), 0.3, rtol=1e-12)
    weights = nn.CompressedLinear(8, 6, rank=3, depth=4, **options).weights
    assert ld.widths(weights) == ld.compressed_widths(6, 8, rank=3, depth=4)
    np.testing.assert_array_equal(weights[1], 0.3 * jnp.eye(3))
    np.testing.assert_allclose(weights[0] @ weights[0].T, 0.09 * jnp.eye(3), atol=1e-15)
    np.testing.assert_allclose(weights[-1].T @ weights[-1], 0.09 * jnp.eye(3), atol=1e-15)


def test_the_same_seed_gives_the_same_layer_and_another_seed_another(make):
    a, b, c = (make(8, 6, rngs=nnx.Rngs(seed)).weights for seed in (0, 0, 1))
    assert all((x == y).all() for x, y in zip(a, b, strict=True))
    assert not (a[0] == c[0]).all()


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: nn.CompressedLinear(8, 6, rank=7, rngs=nnx.Rngs(0)), "rank=7, expected 1 ≤ rank ≤ 6"),
        (lambda: nn.CompressedLinear(8, 6, rank=2, depth=1, rngs=nnx.Rngs(0)), "depth=1, expected"),
        (lambda: nn.DeepLinear(8, 6, depth=0, rngs=nnx.Rngs(0)), "depth=0, expected"),
        (lambda: nn.DeepLinear(8, 6, scale=0.0, rngs=nnx.Rngs(0)), r"scale=0\.0, expected a positive"),
        (lambda: nn.DeepLinear(8, 6, rngs=nnx.Rngs(0))(jnp.ones((2, 7))), r"\(2, 7\), expected 8 features"),
        (lambda: nn.DeepLinear(8, 6, rngs=nnx.Rngs(0)).set_weights([jnp.ones((6, 8))]), "expected"),
        (lambda: nn.compress_layer(nnx.LayerNorm(3, rngs=nnx.Rngs(0)), rank=2), "is a LayerNorm"),
        (lambda: nn.compress_layer(nnx.Linear(8, 6, rngs=nnx.Rngs(0)), rank=7), "rank=7, expected"),
        (lambda: reference.Head(8, 3, "wide", rngs=nnx.Rngs(0)), "head='wide', expected one of plain, deep"),
        (lambda: nn.layer_at(Network(nnx.Rngs(0)), "head.body"), "'head.body': the Head has no part 'body'"),
        (lambda: nn.layer_at(Network(nnx.Rngs(0)), "deep.3"), "has no part 3"),
    ],
)
def test_bad_input_is_named(act, message):
    with pytest.raises(ValueError, match=message):
        act()


# --- Conversion ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["dense", "deep"])
@pytest.mark.parametrize("depth", [2, 3, 5])
def test_conversion_is_the_best_approximation_of_its_rank_and_balanced(x64, kind, depth):
    make = {"dense": nnx.Linear, "deep": nn.DeepLinear}[kind]
    normal = nnx.initializers.normal()
    layer = make(8, 6, kernel_init=normal, bias_init=normal, param_dtype="float64", rngs=nnx.Rngs(0))
    matrix = (layer if kind == "dense" else layer.merge()).kernel[...].T
    sigma = jnp.linalg.svd(matrix, compute_uv=False)
    for rank in (1, 3, 6):
        small = nn.compress_layer(layer, rank=rank, depth=depth)
        error = jnp.linalg.norm(ld.end_to_end(small.weights) - matrix)
        np.testing.assert_allclose(error, jnp.linalg.norm(sigma[rank:]), atol=1e-14)
        for before, after in zip(small.weights, small.weights[1:], strict=False):
            np.testing.assert_allclose(after.T @ after, before @ before.T, atol=1e-14)
        np.testing.assert_array_equal(small.bias[...], layer.bias[...])


def test_conversion_keeps_data_types_and_the_lack_of_a_bias():
    layer = nnx.Linear(8, 6, use_bias=False, dtype="float32", param_dtype="bfloat16", rngs=nnx.Rngs(0))
    small = nn.compress_layer(layer, rank=6)
    assert small.bias is None
    assert {weight.dtype for weight in small.weights} == {jnp.dtype("bfloat16")}
    x = jax.random.normal(jax.random.key(0), (5, 8))
    assert small(x).dtype == jnp.float32
    np.testing.assert_allclose(small(x), layer(x), atol=0.05)  # four factors rounded to 8 bits


# --- Learning rates by role --------------------------------------------------------------------


def test_roles_cover_every_parameter_of_a_model():
    model = Network(nnx.Rngs(0))
    roles = nn.parameter_roles(model)
    assert set(roles) == {path for path, _ in nnx.to_flat_state(nnx.state(model, nnx.Param))}
    assert {path for path, role in roles.items() if role == "middle"} == {
        ("deep", 0, "factors", 1), ("head", "network", "factors", 1),
    }
    assert sum(role == "outer" for role in roles.values()) == 4
    assert roles["deep", 0, "bias"] == roles["first", "kernel"] == "other"


@pytest.mark.parametrize("kind", ["plain", "deep", "compressed"])
@pytest.mark.parametrize("way", ["nnx.Optimizer", "optax on State", "optax on a dict"])
def test_no_parameter_is_frozen_and_each_moves_at_the_rate_of_its_role(kind, way):
    model = Network(nnx.Rngs(0), kind)
    roles = nn.parameter_roles(model)
    rates = {"outer": 0.5, "middle": 0.1, "other": 0.02}
    tx = nn.partition(model, **{role: optax.sgd(rate) for role, rate in rates.items()})
    before = dict(nnx.to_flat_state(nnx.clone(nnx.state(model, nnx.Param))))
    graph, state = nnx.split(model)
    gradient = jax.grad(lambda state: reference.cross_entropy(nnx.merge(graph, state), *batch()))(state)
    gradients = dict(nnx.to_flat_state(gradient))
    if way == "nnx.Optimizer":
        optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
        nnx.jit(lambda model, optimizer, gradient: optimizer.update(model, gradient))(
            model, optimizer, gradient
        )
    else:
        if way == "optax on a dict":
            state, gradient = nnx.to_pure_dict(state), nnx.to_pure_dict(gradient)
        updates, _ = tx.update(gradient, tx.init(state), state)
        nnx.update(model, optax.apply_updates(state, updates))
    for path, parameter in nnx.to_flat_state(nnx.state(model, nnx.Param)):
        assert jnp.any(parameter[...] != before[path][...]), f"{path} is frozen"
        step = before[path][...] - parameter[...]
        expected = rates[roles[path]] * gradients[path][...]
        np.testing.assert_allclose(step, expected, atol=1e-6 * float(jnp.abs(before[path][...]).max() + 1))


def test_a_parameter_of_another_model_is_refused_rather_than_left_alone():
    rate = optax.sgd(0.1)
    tx = nn.partition(Network(nnx.Rngs(0), "plain"), outer=rate, middle=rate, other=rate)
    with pytest.raises(ValueError, match=r"no parameter \('head', 'network', 'factors', 0\)"):
        nnx.Optimizer(Network(nnx.Rngs(0)), tx, wrt=nnx.Param)


def test_state_survives_an_orbax_checkpoint_and_training_goes_on_alike(tmp_path, optax_promotes):
    ocp = pytest.importorskip("orbax.checkpoint")
    adam = optax.adam(0.01)

    def trainer():
        model = Network(nnx.Rngs(0))
        tx = nn.partition(model, outer=adam, middle=adam, other=adam)
        return model, nnx.Optimizer(model, tx, wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer):
        optimizer.update(model, nnx.grad(reference.cross_entropy)(model, *batch()))

    model, optimizer = trainer()
    step(model, optimizer)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", nnx.state((model, optimizer)))
    again = trainer()
    with ocp.StandardCheckpointer() as checkpointer:
        nnx.update(again, checkpointer.restore(tmp_path / "state", nnx.state(again)))
    step(model, optimizer)
    step(*again)
    for a, b in zip(jax.tree.leaves(nnx.state(model)), jax.tree.leaves(nnx.state(again[0])), strict=True):
        np.testing.assert_array_equal(a, b)


# --- Spectral start inside a network -----------------------------------------------------------


@pytest.mark.parametrize("kind", ["deep", "compressed"])
def test_the_surrogate_before_a_softmax_classifier_has_a_closed_form(kind):
    """At `W = 0` the logits are the classifier's bias: `−∇ℓ(0) = Cᵀ mean((y − softmax b) fᵀ)`."""
    model = Network(nnx.Rngs(3), kind)
    model.head.classifier.bias[...] = jnp.array([0.3, -0.2, 0.5])
    x, labels = batch()
    features = jnp.tanh(model.deep[0](model.normalize(jax.nn.relu(model.first(x)))))
    classifier = model.head.classifier
    missing = jax.nn.one_hot(labels, 3) - jnp.broadcast_to(jax.nn.softmax(classifier.bias[...]), (20, 3))
    expected = classifier.kernel[...] @ missing.T @ features / 20
    before = jax.tree.leaves(nnx.clone(nnx.state(model)))
    found = nn.layer_surrogate(model, "head.network", reference.cross_entropy, x, labels)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    for a, b in zip(before, jax.tree.leaves(nnx.state(model)), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("path", ["deep.0", ("deep", 0), "head.network", "head.classifier"])
def test_any_linear_layer_has_a_surrogate(path):
    model = Network(nnx.Rngs(0))
    layer = nn.layer_at(model, path)
    found = nn.layer_surrogate(model, path, reference.cross_entropy, *batch())
    assert found.shape == (layer.out_features, layer.in_features)
    assert jnp.any(found != 0)


def test_a_spectral_start_spans_the_surrogates_leading_singular_vectors():
    model = Network(nnx.Rngs(0))
    matrix = nn.layer_surrogate(model, "head.network", reference.cross_entropy, *batch())
    assert ld.linalg.estimate_rank(matrix, rtol=1e-5) == 2  # one less than classes
    nn.spectral_start(model, "head.network", reference.cross_entropy, *batch(), scale=0.5)
    first, middle, last = model.head.network.weights
    left, _, right = jnp.linalg.svd(matrix)
    assert ld.linalg.subspace_angles(last, left[:, :2]).max() < 1e-3
    assert ld.linalg.subspace_angles(first.T, right[:2].T).max() < 1e-3
    np.testing.assert_allclose(first @ first.T, 0.25 * jnp.eye(4), atol=1e-6)
    np.testing.assert_array_equal(middle, 0.5 * jnp.eye(4))


def test_a_spectral_start_descends_faster_than_a_random_one():
    """From the same scale and rate, over several seeds: what the surrogate is for."""

    def loss_after(seed, spectral):
        model = Network(nnx.Rngs(seed))
        if spectral:
            nn.spectral_start(model, "head.network", reference.cross_entropy, *batch(), scale=0.3)
        else:
            options = {"rank": 4, "scale": 0.3, "use_bias": False}
            model.head.network = nn.CompressedLinear(7, 7, **options, rngs=nnx.Rngs(seed))
        optimizer = nnx.Optimizer(model, optax.sgd(0.3), wrt=nnx.Param)
        for _ in range(40):
            step(model, optimizer)
        return float(reference.cross_entropy(model, *batch()))

    @nnx.jit
    def step(model, optimizer):
        optimizer.update(model, nnx.grad(reference.cross_entropy)(model, *batch()))

    losses = np.array([[loss_after(seed, spectral) for spectral in (True, False)] for seed in range(4)])
    assert losses[:, 0].mean() < losses[:, 1].mean()


@pytest.mark.parametrize(
    ("path", "loss", "message"),
    [
        ("first", reference.cross_entropy, "is a Linear, expected a CompressedLinear"),
        ("normalize", reference.cross_entropy, "is a LayerNorm, expected a CompressedLinear"),
        ("head.network", lambda model, x, y: jnp.sum(x), "has the gradient 0 at W = 0"),
        ("blocked", reference.cross_entropy, "does a ReLU without bias follow it"),
    ],
)
def test_a_start_that_cannot_be_is_named(path, loss, message):
    model = Network(nnx.Rngs(0))
    if path == "blocked":
        path, model.first = "first", nn.CompressedLinear(6, 8, rank=2, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=message):
        nn.spectral_start(model, path, loss, *batch())


def test_a_model_built_in_one_program_is_the_one_its_constructor_makes(compilations):
    """As in each of Flax's own initializers, and with random streams that go on as they would."""

    def make():
        return nnx.Sequential(
            nnx.Linear(6, 5, rngs=nnx.Rngs(0)),
            nnx.Dropout(0.5, rngs=nnx.Rngs(1)),
            nn.CompressedLinear(5, 4, rank=2, rngs=nnx.Rngs(2)),
        )

    x = jnp.ones((3, 6))
    with compilations() as events:
        built = nn.build(make)
    assert sum("backend_compile" in name for name in events) == 1
    made = make()
    for _ in range(2):
        assert np.allclose(built(x), made(x), atol=1e-6)
