"""Claims on layers as Flax users treat them: transformed, stacked, split, restored into abstract ones."""

import copy
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from lowdim_jax import nn
from lowdim_jax.nn import reference

MEMBERS = 3
LAYERS = {
    "deep": lambda rngs: nn.DeepLinear(8, 8, rngs=rngs),
    "compressed": lambda rngs: nn.CompressedLinear(8, 8, rank=3, rngs=rngs),
}
X = np.random.default_rng(0).standard_normal((4, 8)).astype("float32")


@pytest.fixture(params=LAYERS)
def make(request):
    return LAYERS[request.param]


def ensemble(make):
    """`MEMBERS` layers stacked along a new first axis of their parameters."""
    return nnx.split_rngs(splits=MEMBERS)(nnx.vmap(make))(nnx.Rngs(0))


def applied(stack):
    """Outputs of all members for the same inputs."""
    return nnx.vmap(lambda layer: layer(X))(stack)


def member(stack, k):
    graph, state = nnx.split(stack)
    return nnx.merge(graph, jax.tree.map(lambda leaf: leaf[k], state))


@pytest.mark.parametrize(
    "passed",
    [
        lambda layer: nnx.merge(*nnx.split(layer)),
        nnx.clone,
        copy.deepcopy,
        lambda layer: pickle.loads(pickle.dumps(layer)),
        lambda layer: nnx.Sequential(layer),
        lambda layer: nnx.jit(lambda inner, x: inner(x)).__get__(layer),
        lambda layer: nnx.remat(lambda inner, x: inner(x)).__get__(layer),
    ],
    ids=["split and merge", "clone", "deepcopy", "pickle", "Sequential", "jit", "remat"],
)
def test_a_layer_computes_the_same_after_any_of_these(make, passed):
    layer = make(nnx.Rngs(0))
    np.testing.assert_allclose(passed(layer)(X), layer(X), atol=1e-6)


def test_a_layer_made_inside_a_compiled_function_is_the_same(make):
    made = nnx.jit(lambda: make(nnx.Rngs(5)))()
    np.testing.assert_allclose(made(X), make(nnx.Rngs(5))(X), atol=1e-6)


def test_layers_are_shown_with_their_parameters(make, capsys):
    layer = make(nnx.Rngs(0))
    nnx.display(layer)
    assert "factors" in capsys.readouterr().out
    assert str(sum(leaf.size for leaf in jax.tree.leaves(nnx.state(layer)))) in nnx.tabulate(layer, X)


def test_members_of_an_ensemble_differ_and_each_is_a_layer(make):
    stack = ensemble(make)
    together = applied(stack)
    assert not np.allclose(together[0], together[1])
    merged = nnx.vmap(lambda layer: layer.merge())(stack)
    for k in range(MEMBERS):
        np.testing.assert_allclose(together[k], member(stack, k)(X), atol=1e-5)
        np.testing.assert_allclose(together[k], member(merged, k)(X), atol=1e-5)


def test_stacked_layers_are_applied_in_turn_by_a_scan(make):
    stack = ensemble(make)
    in_turn = nnx.scan(lambda x, layer: layer(x), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
    expected = X
    for k in range(MEMBERS):
        expected = member(stack, k)(expected)
    np.testing.assert_allclose(in_turn(X, stack), expected, atol=1e-5)


def test_an_ensemble_learns_each_parameter_at_the_rate_of_its_role(make):
    stack = ensemble(make)
    rates = {"outer": 0.5, "middle": 0.1, "other": 0.02}
    tx = nn.partition(stack, **{role: optax.sgd(rate) for role, rate in rates.items()})
    before, graph = nnx.clone(nnx.state(stack)), nnx.split(stack)[0]

    def loss(state):
        return jnp.sum(applied(nnx.merge(graph, state)) ** 2)

    gradient = jax.grad(loss)(before)
    nnx.Optimizer(stack, tx, wrt=nnx.Param).update(stack, gradient)
    for (path, old), (_, new), (_, slope) in zip(
        *(nnx.to_flat_state(state) for state in (before, nnx.state(stack), gradient)), strict=True
    ):
        step = rates[nn.parameter_roles(stack)[path]] * slope[...]
        np.testing.assert_allclose(new[...], old[...] - step, rtol=1e-5, atol=1e-5)


def test_a_spectral_start_inside_a_compiled_function_is_the_same():
    images, labels = jax.random.normal(jax.random.key(0), (16, 8, 8, 1)), jnp.arange(16) % 10

    def start(model, *batch):
        nn.spectral_start(model, "head.network", reference.cross_entropy, *batch, scale=0.5)

    def model():
        return reference.MLP((8, 8, 1), 10, width=24, head="compressed", rank=4, rngs=nnx.Rngs(0))

    outside, inside = model(), model()
    start(outside, images, labels)
    nnx.jit(start)(inside, images, labels)
    first, second = (net.head.network.merge().kernel[...] for net in (outside, inside))
    np.testing.assert_allclose(first, second, atol=1e-5)


def test_a_checkpoint_is_restored_into_a_model_that_was_never_initialized(tmp_path, make):
    ocp = pytest.importorskip("orbax.checkpoint")
    layer = make(nnx.Rngs(7))
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "layer", nnx.state(layer))
    graph, abstract = nnx.split(nnx.eval_shape(lambda: make(nnx.Rngs(0))))
    with ocp.StandardCheckpointer() as checkpointer:
        again = nnx.merge(graph, checkpointer.restore(tmp_path / "layer", abstract))
    np.testing.assert_array_equal(again(X), layer(X))


def test_an_optimizer_by_role_can_be_made_from_an_abstract_model(make):
    abstract = nnx.eval_shape(lambda: make(nnx.Rngs(0)))
    assert nn.parameter_roles(abstract) == nn.parameter_roles(make(nnx.Rngs(0)))
