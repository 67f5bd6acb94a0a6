"""Claims on whole models made smaller: every kind of layer, cut nearest in the metric of its inputs."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from lowdim_jax import nn


class Every(nnx.Module):
    """Every kind of layer that can be compressed, biases away from zero."""

    def __init__(self, rngs):
        bias = {"bias_init": nnx.initializers.normal(1.0), "rngs": rngs}
        self.embed = nnx.Embed(11, 6, rngs=rngs)
        self.convolution = nnx.Conv(6, 5, (3,), strides=2, **bias)
        self.split = nnx.LinearGeneral((5,), (2, 3), **bias)
        self.einsum = nnx.Einsum("btnh,hnd->btd", (3, 2, 6), (6,), **bias)
        self.turned = nnx.Einsum("...td,cdh->c...th", (2, 6, 4), (2, 4), **bias)
        self.together = nnx.LinearGeneral((2, 4), 5, axis=(0, -1), **bias)
        self.dense = nnx.Linear(5, 6, **bias)

    def __call__(self, tokens):
        x = jnp.tanh(self.convolution(self.embed(tokens)))
        x = jnp.tanh(self.einsum(self.split(x)))
        x = self.together(self.turned(x))
        return self.embed.attend(self.dense(jnp.tanh(x))).mean(axis=1)


PATHS = ("embed", "convolution", "split", "einsum", "turned", "together", "dense")
TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 11, (40, 7)))
LABELS = jnp.arange(40) % 3


def loss(model, tokens, labels):
    return optax.softmax_cross_entropy_with_integer_labels(model(tokens), labels).mean()


@pytest.mark.parametrize("depth", [2, 3])
def test_cut_to_full_rank_every_layer_computes_as_before_and_merges_back(depth):
    model = Every(nnx.Rngs(0))
    before = model(TOKENS)
    report = nn.compress(model, ".*", rank=100, depth=depth)
    assert {line.path for line in report.layers} == set(PATHS)
    assert all(line.rank == min(line.shape) for line in report.layers)
    assert all(line.energy == pytest.approx(1) for line in report.layers)
    assert all(nn.layer_at(model, path).depth == depth for path in PATHS)
    assert isinstance(model.dense, nn.CompressedLinear)
    np.testing.assert_allclose(model(TOKENS), before, atol=2e-4)
    assert nn.merge(model) == len(PATHS)
    assert [type(getattr(model, path)) for path in PATHS] == [
        type(getattr(Every(nnx.Rngs(0)), path)) for path in PATHS
    ]
    np.testing.assert_allclose(model(TOKENS), before, atol=2e-4)


def test_a_cut_without_a_batch_is_the_nearest_matrix_of_its_rank():
    model, plain = Every(nnx.Rngs(0)), nn.matrices(Every(nnx.Rngs(0)))
    report = nn.compress(model, ".*", rank=2)
    nn.merge(model)
    now = nn.matrices(model)
    for line in report.layers:
        sigma = np.linalg.svd(plain[line.path], compute_uv=False)
        distance = np.linalg.norm(now[line.path] - plain[line.path])
        np.testing.assert_allclose(distance, np.linalg.norm(sigma[2:]), atol=1e-5)
        assert line.energy == pytest.approx(np.sum(sigma[:2] ** 2) / np.sum(sigma**2), rel=1e-5)


def test_a_cut_on_a_batch_is_nearest_in_the_layers_outputs_on_it():
    """Against Eckart and Young for `W X`, with the inputs that NumPy sees of each layer's own."""
    model = Every(nnx.Rngs(0))
    kept, x = {}, model.embed(TOKENS)
    kept["embed"] = np.eye(11)[np.asarray(TOKENS).reshape(-1)]
    windows = np.pad(np.asarray(x), ((0, 0), (1, 1), (0, 0)))[:, :9]
    kept["convolution"] = np.stack([windows[:, k : k + 3] for k in (0, 2, 4, 6)], 1).reshape(-1, 18)
    x = jnp.tanh(model.convolution(x))
    kept["split"] = np.asarray(x).reshape(-1, 5)
    x = model.split(x)
    kept["einsum"] = np.asarray(x).swapaxes(-1, -2).reshape(-1, 6)
    plain = nn.matrices(model)
    report = nn.compress(model, "embed|convolution|split|einsum", rank=2, batch=(TOKENS,))
    nn.merge(model)
    now = nn.matrices(model)
    for line in report.layers:
        path = line.path
        outputs = np.asarray(plain[path], float) @ kept[path].T
        sigma = np.linalg.svd(outputs, compute_uv=False)
        distance = np.linalg.norm(np.asarray(now[path], float) @ kept[path].T - outputs)
        np.testing.assert_allclose(distance, np.linalg.norm(sigma[2:]), rtol=1e-3, err_msg=path)
        assert line.energy == pytest.approx(np.sum(sigma[:2] ** 2) / np.sum(sigma**2), rel=1e-4)


def test_inputs_that_hardly_vary_are_cut_away_and_the_loss_shows_it():
    """Directions that the data do not have cost nothing in the metric of the inputs."""
    rng = np.random.default_rng(0)
    model = nnx.Sequential(nnx.Linear(20, 15, rngs=nnx.Rngs(0)))
    x = jnp.asarray(rng.standard_normal((50, 3)) @ rng.standard_normal((3, 20)), jnp.float32)
    before = model(x)
    other = nnx.clone(model)
    nn.compress(model, ".*", rank=3, batch=(x,))
    nn.compress(other, ".*", rank=3)
    np.testing.assert_allclose(model(x), before, atol=1e-4)
    assert np.linalg.norm(other(x) - before) > 0.3 * np.linalg.norm(before)


class Stacked(nnx.Module):
    def __init__(self):
        make = nnx.split_rngs(splits=3)(nnx.vmap(lambda rngs: nnx.Linear(6, 6, rngs=rngs)))
        self.blocks = make(nnx.Rngs(0))

    def __call__(self, x):
        @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        def through(x, layer):
            return x + jnp.tanh(layer(x))

        return through(x, self.blocks)


def test_each_member_of_a_stack_is_cut_on_its_own_inputs():
    model, x = Stacked(), jax.random.normal(jax.random.key(0), (30, 6))
    kernels, bias = np.asarray(model.blocks.kernel[...]), np.asarray(model.blocks.bias[...])
    (line,) = nn.compress(model, "blocks", rank=2, batch=(x,)).layers
    assert (line.copies, model.blocks.rank) == (3, 2)
    seen = np.asarray(x)
    for k in range(3):
        sigma = np.linalg.svd(seen @ kernels[k], compute_uv=False)
        now = np.linalg.multi_dot([np.asarray(f[...])[k].T for f in model.blocks.factors])
        np.testing.assert_allclose(
            np.linalg.norm(seen @ (now - kernels[k])), np.linalg.norm(sigma[2:]), rtol=1e-3
        )
        seen = seen + np.tanh(seen @ kernels[k] + bias[k])
    assert model(x).shape == x.shape


def test_ranks_follow_energy_or_a_budget_and_every_factor_learns():
    model = Every(nnx.Rngs(0))
    report = nn.compress(model, ".*", energy=0.7)
    assert all(line.energy >= 0.7 for line in report.layers)
    limited = Every(nnx.Rngs(0))
    assert nn.compress(limited, ".*", budget=300).parameters <= 300
    roles = nn.parameter_roles(model)
    rates = {"outer": 0.1, "middle": 0.05, "other": 0.02}
    tx = nn.partition(model, **{role: optax.sgd(rate) for role, rate in rates.items()})
    before = dict(nnx.to_flat_state(nnx.clone(nnx.state(model, nnx.Param))))
    slopes = nnx.grad(loss)(model, TOKENS, LABELS)
    nnx.Optimizer(model, tx, wrt=nnx.Param).update(model, slopes)
    slope = dict(nnx.to_flat_state(slopes))
    assert sorted(roles[path] for path in roles if "delta" in path) == 6 * ["middle"] + 12 * ["outer"]
    for path, parameter in nnx.to_flat_state(nnx.state(model, nnx.Param)):
        assert jnp.any(parameter[...] != before[path][...]), path
        expected = before[path][...] - rates[roles[path]] * slope[path][...]
        np.testing.assert_allclose(parameter[...], expected, atol=1e-6)


@pytest.mark.parametrize(
    ("start", "scale", "expected"), [("surrogate", 0.5, 0.5), ("surrogate", None, 1.0), ("random", 0.5, 0.5)]
)
def test_from_scratch_the_factors_start_at_orthonormal_directions_of_the_stated_scale(start, scale, expected):
    model = Every(nnx.Rngs(0))
    slope = np.asarray(nnx.grad(loss)(model, TOKENS, LABELS)["dense"]["kernel"][...])
    options = {"loss": loss, "batch": (TOKENS, LABELS)} if start == "surrogate" else {"rngs": nnx.Rngs(1)}
    nn.compress(model, "dense|convolution", rank=2, start=start, scale=scale, **options)
    first, middle, last = (np.asarray(factor[...]) for factor in model.dense.factors)
    np.testing.assert_allclose(first @ first.T, expected**2 * np.eye(2), atol=1e-5)
    np.testing.assert_allclose(last.T @ last, expected**2 * np.eye(2), atol=1e-5)
    np.testing.assert_allclose(middle, expected * np.eye(2), atol=1e-6)
    if start == "surrogate":
        left, _, right = np.linalg.svd(-slope.T)
        np.testing.assert_allclose(last @ middle @ first, expected**3 * left[:, :2] @ right[:2], atol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"start": "svd"}, "start='svd', expected 'cut', 'surrogate' or 'random'"),
        ({"start": "surrogate"}, "loss=None, expected"),
        ({"start": "random"}, "rngs=None, expected"),
        ({"start": "random", "rngs": nnx.Rngs(0)}, "rank=None, expected a rank"),
        ({"depth": 1}, "depth=1, expected"),
        ({"rank": 0}, "rank=0, expected a positive integer"),
    ],
)
def test_bad_settings_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        nn.compress(Every(nnx.Rngs(0)), ".*", **options)


def test_a_kernel_that_is_not_finite_is_named_by_its_path():
    model = Every(nnx.Rngs(0))
    model.dense.kernel[...] = model.dense.kernel[...].at[0, 0].set(jnp.nan)
    with pytest.raises(ValueError, match="the kernel of the layer at 'dense' has 1 entries that are NaN"):
        nn.compress(model, ".*", rank=2)
