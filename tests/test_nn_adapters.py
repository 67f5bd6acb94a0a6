"""Claims on adapters: which layers get a delta, what it starts from, and that it trains and merges."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from lowdim_jax import nn
from lowdim_jax.nn.ranks import ranks_within


class Every(nnx.Module):
    """Every kind of layer that can be adapted, and a normalization."""

    def __init__(self, rngs):
        self.embed = nnx.Embed(11, 6, rngs=rngs)
        self.convolution = nnx.Conv(6, 5, (3,), strides=2, rngs=rngs)
        self.split = nnx.LinearGeneral((5,), (2, 3), rngs=rngs)
        self.einsum = nnx.Einsum("btnh,hnd->btd", (3, 2, 6), (6,), rngs=rngs)
        self.turned = nnx.Einsum("...td,ckdh->ck...th", (2, 1, 6, 4), rngs=rngs)
        self.together = nnx.LinearGeneral((2, 4), 5, axis=(0, -1), rngs=rngs)
        self.normalize = nnx.LayerNorm(5, rngs=rngs)
        self.dense = nnx.Linear(5, 6, rngs=rngs)

    def __call__(self, tokens):
        x = jnp.tanh(self.convolution(self.embed(tokens)))
        x = jnp.tanh(self.einsum(self.split(x)))
        x = self.together(self.turned(x)[:, 0])
        return self.embed.attend(self.dense(jnp.tanh(self.normalize(x)))).mean(axis=1)


KERNELS = {  # the inputs' axes of each kernel, by hand, and the matrix's shape
    "embed": ((0,), (6, 11)),
    "convolution": ((0, 1), (5, 18)),
    "split": ((0,), (6, 5)),
    "einsum": ((0, 1), (6, 6)),
    "turned": ((2,), (8, 6)),
    "together": ((0, 1), (5, 8)),
    "dense": ((0,), (6, 5)),
}
TOKENS = np.random.default_rng(0).integers(0, 11, (4, 7))
LABELS = np.arange(4) % 3


def loss(model, tokens, labels):
    return optax.softmax_cross_entropy_with_integer_labels(model(tokens), labels).mean()


BATCH = jnp.asarray(TOKENS), jnp.asarray(LABELS)


def kernel_name(path):
    return "embedding" if path == "embed" else "kernel"


def matrix(kernel, path):
    """The kernel as `(d_out, d_in)`, by its axes above."""
    inputs, shape = KERNELS[path]
    outputs = [axis for axis in range(kernel.ndim) if axis not in inputs]
    return np.transpose(np.asarray(kernel), (*outputs, *inputs)).reshape(shape)


def perturb(model):
    """Move every factor away from its start."""
    rng = np.random.default_rng(1)
    state = nnx.state(model, nn.DeltaParam)
    nnx.update(model, jax.tree.map(lambda x: x + 0.3 * rng.standard_normal(x.shape).astype(x.dtype), state))


# --- The delta ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plain():
    """A model, its outputs, and its gradient from Flax itself."""
    model = Every(nnx.Rngs(0))
    slopes = nnx.grad(loss)(model, *BATCH)
    return model, model(TOKENS), {path: slopes[path][kernel_name(path)][...] for path in KERNELS}


@pytest.mark.parametrize("zero", ["last", "offset"])
@pytest.mark.parametrize("depth", [2, 3])
def test_every_kind_of_layer_starts_at_exactly_what_it_was_and_merges_to_what_it_became(plain, zero, depth):
    outputs = plain[1]
    model = Every(nnx.Rngs(0))
    report = nn.adapt(model, ".*", rank=2, depth=depth, loss=loss, batch=BATCH, zero=zero, alpha=0.7)
    assert {line.path: line.shape for line in report.layers} == {path: KERNELS[path][1] for path in KERNELS}
    assert all(layer.rank == 2 and layer.depth == depth for layer in map(model.__getattribute__, KERNELS))
    np.testing.assert_array_equal(model(TOKENS), outputs)
    perturb(model)
    adapted = model(TOKENS)
    assert np.abs(adapted - outputs).max() > 0.01
    assert nn.merge(model) == len(KERNELS)
    assert type(model.convolution) is nnx.Conv
    assert not jax.tree.leaves(nnx.state(model, (nn.DeltaParam, nn.DeltaStart)))
    np.testing.assert_allclose(model(TOKENS), adapted, atol=2e-5)


def test_the_factors_start_at_the_leading_singular_vectors_of_one_gradient(plain):
    _, _, slopes = plain
    model, calls = Every(nnx.Rngs(0)), []

    def counted(model, *batch):
        calls.append(batch)
        return loss(model, *batch)

    report = nn.adapt(model, ".*", rank=3, depth=3, loss=counted, batch=BATCH, zero=None, scale=0.5)
    assert len(calls) == 1
    for line in report.layers:
        surrogate = -matrix(slopes[line.path], line.path)
        left, sigma, right = np.linalg.svd(surrogate)
        layer = nn.layer_at(model, line.path)
        added = matrix(layer.kernel if line.path != "embed" else layer.embedding, line.path) - matrix(
            getattr(layer.base, kernel_name(line.path))[...], line.path
        )
        np.testing.assert_allclose(added, 0.5**3 * left[:, :3] @ right[:3], atol=3e-4)
        assert line.energy == pytest.approx((sigma[:3] ** 2).sum() / (sigma**2).sum(), rel=1e-4)
        assert line.parameters == sum(line.shape) * 3 + 9


@pytest.mark.parametrize("depth", [2, 3])
def test_the_first_step_from_a_zero_last_factor_is_the_gradient_step_cut_to_the_rank(plain, depth):
    """`W_L ← −η ∇W V̂` and `Ŵ_L V̂ᵀ = −η Û Σ̂ V̂ᵀ`: nothing of that rank is nearer (Eckart and Young)."""
    _, _, slopes = plain
    model = Every(nnx.Rngs(0))
    nn.adapt(model, "dense|turned", rank=2, depth=depth, loss=loss, batch=BATCH)
    slope = nnx.grad(loss, argnums=nnx.DiffState(0, nn.DeltaParam))(model, *BATCH)
    nnx.Optimizer(model, optax.sgd(0.1), wrt=nn.DeltaParam).update(model, slope)
    for path in ("dense", "turned"):
        left, sigma, right = np.linalg.svd(matrix(slopes[path], path))
        layer = nn.layer_at(model, path)
        moved = matrix(layer.kernel, path) - matrix(layer.base.kernel[...], path)
        np.testing.assert_allclose(moved, -0.1 * (left[:, :2] * sigma[:2]) @ right[:2], atol=1e-6)


def test_the_delta_alone_is_trained_and_its_state_alone_is_a_checkpoint():
    model, other = Every(nnx.Rngs(0)), Every(nnx.Rngs(0))
    nn.adapt(model, "dense|split", rank=2, loss=loss, batch=BATCH)
    frozen = nnx.clone(nnx.state(model, nnx.All(nnx.Param, nnx.Not(nn.DeltaParam))))
    optimizer = nnx.Optimizer(model, optax.sgd(0.3), wrt=nn.DeltaParam)

    @nnx.jit
    def step(model, optimizer):
        value, slope = nnx.value_and_grad(loss, argnums=nnx.DiffState(0, nn.DeltaParam))(model, *BATCH)
        optimizer.update(model, slope)
        return value

    losses = [step(model, optimizer) for _ in range(10)]
    assert losses[-1] < losses[0]
    after = nnx.state(model, nnx.All(nnx.Param, nnx.Not(nn.DeltaParam)))
    for old, new in zip(jax.tree.leaves(frozen), jax.tree.leaves(after), strict=True):
        np.testing.assert_array_equal(old, new)
    nn.adapt(other, "dense|split", rank=2, start="random", rngs=nnx.Rngs(5))
    nnx.update(other, nnx.state(model, nn.DeltaParam))
    np.testing.assert_array_equal(other(TOKENS), model(TOKENS))


def test_a_random_start_is_zero_orthonormal_and_the_seeds():
    def factors(seed):
        model = Every(nnx.Rngs(0))
        nn.adapt(model, "dense", rank=3, start="random", rngs=nnx.Rngs(seed))
        return np.asarray(model.dense.delta.inward.kernel[...]), np.asarray(model.dense.delta.outward[...])

    (inward, outward), again, other = factors(0), factors(0), factors(1)
    np.testing.assert_allclose(inward.T @ inward, np.eye(3), atol=1e-6)
    assert not outward.any()
    np.testing.assert_array_equal(inward, again[0])
    assert not np.allclose(inward, other[0])


# --- Where the layer is ------------------------------------------------------------------------


def test_a_layer_used_in_two_places_has_one_delta():
    class Twice(nnx.Module):
        def __init__(self):
            self.first = nnx.Linear(5, 5, rngs=nnx.Rngs(0))
            self.rest = nnx.data(({"again": self.first}, [self.first]))

        def __call__(self, x):
            return self.rest[1][0](jnp.tanh(self.rest[0]["again"](jnp.tanh(self.first(x)))))

    model = Twice()
    report = nn.adapt(model, ".*", rank=1, start="random", rngs=nnx.Rngs(0))
    assert [line.path for line in report.layers] == ["first"]
    assert model.first is model.rest[0]["again"] is model.rest[1][0]
    assert len(jax.tree.leaves(nnx.state(model, nn.DeltaParam))) == 2
    nn.merge(model)
    assert type(model.rest[1][0]) is nnx.Linear
    assert model.first is model.rest[0]["again"]


class Stacked(nnx.Module):
    """Three residual layers, applied in turn by a scan, or one after the other by hand."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        make = nnx.split_rngs(splits=3)(nnx.vmap(lambda rngs: nnx.Linear(6, 6, rngs=rngs)))
        self.blocks = make(rngs)

    def __call__(self, x):
        @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        @nnx.remat
        def through(x, layer):
            return x + jnp.tanh(layer(x))

        return through(x, self.blocks)


class Unrolled(nnx.Module):
    def __init__(self, stack):
        graph, state = nnx.split(stack)
        self.blocks = nnx.List([nnx.merge(graph, jax.tree.map(lambda x, k=k: x[k], state)) for k in range(3)])

    def __call__(self, x):
        for layer in self.blocks:
            x = x + jnp.tanh(layer(x))
        return x


def test_each_member_of_a_stack_has_the_delta_that_it_would_have_alone():
    def square(model, x):
        return jnp.sum(model(x) ** 2)

    x = jax.random.normal(jax.random.key(0), (4, 6))
    stacked, unrolled = Stacked(), Unrolled(Stacked().blocks)
    options = {"rank": 2, "depth": 3, "loss": square, "batch": (x,), "zero": None, "scale": 0.5}
    (line,) = nn.adapt(stacked, "blocks", **options).layers
    assert (line.copies, line.parameters) == (3, 3 * (2 * 12 + 4))
    nn.adapt(unrolled, "blocks.*", **options)
    np.testing.assert_allclose(stacked(x), unrolled(x), atol=1e-4)
    together = nnx.jit(lambda model, x: model(x))(stacked, x)
    np.testing.assert_allclose(together, stacked(x), atol=1e-5)
    nn.merge(stacked)
    assert type(stacked.blocks) is nnx.Linear
    np.testing.assert_allclose(stacked(x), together, atol=1e-4)


def test_adapting_inside_a_compiled_function_is_the_same():
    x = jnp.arange(12.0).reshape(2, 6) / 12

    def adapted(model, x):
        nn.adapt(model, "layers.0", rank=2, loss=square_of_outputs, batch=(x,), zero=None)
        return model

    def make():
        return nnx.Sequential(nnx.Linear(6, 5, rngs=nnx.Rngs(0)), jnp.tanh)

    inside = nnx.jit(adapted)(make(), x)
    np.testing.assert_allclose(inside(x), adapted(make(), x)(x), atol=1e-5)


def square_of_outputs(model, x):
    return jnp.sum(model(x) ** 2)


@pytest.fixture(scope="module")
def on_a_mesh():
    """What four devices tell, in a process of their own: `up` split by outputs, `down` by inputs."""
    program = Path(__file__).parent / "adapters_on_a_mesh.py"
    done = subprocess.run(
        [sys.executable, program, "up", "up|down"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize("pattern", ["up", "up|down"])
def test_on_a_mesh_the_factors_lie_as_the_kernel_does_and_cost_no_further_collective(on_a_mesh, pattern):
    """That of `down` is small, and joins the layer's own."""
    report = on_a_mesh[pattern]
    lies = {"up": ["P(None, None)", "P(None, 'model')"], "down": ["P('model', None)", "P(None, None)"]}
    assert report["specs"] == {path: lies[path] for path in pattern.split("|")}
    assert report["adapted"]["counts"] == report["plain"]["counts"] == {"all-reduce": 1}
    assert set(report["gradient"]["counts"]) == {"all-reduce"}
    assert report["gradient"]["largest"] < 16 * 32 / 2  # no dense gradient travels
    assert report["same"]
    assert report["decrease"] > 0


def test_a_compressed_layer_on_a_mesh_has_no_collective(on_a_mesh):
    assert on_a_mesh["compressed"]["counts"] == {}


# --- What matches, and ranks -------------------------------------------------------------------


def test_patterns_are_whole_paths_or_predicates_and_what_is_left_alone_is_said():
    class Model(nnx.Module):
        def __init__(self):
            rngs = nnx.Rngs(0)
            self.attention = nnx.MultiHeadAttention(2, 6, decode=False, rngs=rngs)
            self.grouped = nnx.Conv(6, 6, (3,), feature_group_count=6, rngs=rngs)
            self.lora = nnx.LoRALinear(6, 6, lora_rank=1, rngs=rngs)
            self.batched = nnx.Einsum("bnd,ndh->bnh", (2, 3, 3), rngs=rngs)

    random = {"rank": 2, "start": "random", "rngs": nnx.Rngs(0)}
    report = nn.adapt(Model(), r"attention\.(query|value)", **random)
    assert [line.path for line in report.layers] == ["attention.query", "attention.value"]


    def chosen(path, layer):
        return isinstance(layer, nnx.Linear | nnx.Conv) or "out" in path

    report = nn.adapt(Model(), chosen, **random)
    assert report.ranks == {"attention.out": 2}
    assert set(report.skipped) == {"grouped", "lora"}
    assert "6 groups of features" in report.skipped["grouped"]
    assert "a LoRALinear has a call of its own" in str(report)
    assert "one matrix for each value of n" in nn.adapt(Model(), ".*", **random).skipped["batched"]


def test_adapted_attention_computes_as_its_merged_self():
    attention = nnx.MultiHeadAttention(2, 6, decode=False, rngs=nnx.Rngs(0))
    model, x = nnx.List([attention]), jax.random.normal(jax.random.key(0), (2, 3, 6))
    nn.adapt(model, r".*\.(query|key|value|out)", rank=2, start="random", rngs=nnx.Rngs(1))
    perturb(model)
    adapted = model[0](x)
    nn.merge(model)
    np.testing.assert_allclose(model[0](x), adapted, atol=1e-4)


def test_ranks_follow_the_surrogates_energy_or_a_budget(plain):
    _, _, slopes = plain
    sigmas = {path: np.linalg.svd(matrix(slopes[path], path), compute_uv=False) for path in KERNELS}
    by_energy = nn.adapt(Every(nnx.Rngs(0)), ".*", rank=None, energy=0.95, loss=loss, batch=BATCH)
    for line in by_energy.layers:
        held = np.cumsum(sigmas[line.path] ** 2) / np.sum(sigmas[line.path] ** 2)
        assert line.rank == np.argmax(held >= 0.95) + 1
    limited = nn.adapt(Every(nnx.Rngs(0)), ".*", rank=None, budget=200, loss=loss, batch=BATCH)
    assert limited.parameters <= 200
    again = nn.adapt(Every(nnx.Rngs(0)), ".*", rank=limited.ranks, start="random", rngs=nnx.Rngs(0))
    assert again.ranks == limited.ranks


def test_the_noise_rank_counts_components_that_both_halves_of_a_batch_show():
    """A planted gradient of rank 2 among the noise of its batch: `Y = X Wᵀ + noise`."""
    rng = np.random.default_rng(0)
    model, x = nnx.List([nnx.Linear(12, 10, rngs=nnx.Rngs(0))]), rng.standard_normal((4000, 12))
    left, right = (np.linalg.qr(rng.standard_normal((n, 2)))[0] for n in (10, 12))
    y = x @ (np.asarray(model[0].kernel[...]) + right @ np.diag([3.0, 2.0]) @ left.T)
    batch = [jnp.asarray(part, jnp.float32) for part in (x, y + rng.standard_normal(y.shape))]

    def misfit(model, x, y):
        return jnp.mean(jnp.sum((model[0](x) - y) ** 2, axis=1)) / 2

    (line,) = nn.adapt(model, "0", rank="noise", loss=misfit, batch=tuple(batch)).layers
    assert line.rank == 2
    inward = np.asarray(model[0].delta.inward.kernel[...])
    assert np.linalg.norm(inward.T @ right) > 0.99 * 2**0.5
    for wrong in ({"batch": (batch[0][:3], batch[1])}, {"batch": ()}, {"rank": "big"}):
        model = nnx.List([nnx.Linear(12, 10, rngs=nnx.Rngs(0))])
        with pytest.raises(ValueError, match=r"halves the batch|rank='big', expected an integer"):
            nn.adapt(model, "0", **{"rank": "noise", "loss": misfit, "batch": tuple(batch)} | wrong)


def test_a_budget_is_spent_where_a_parameter_brings_most():
    """By hand: after rank 1 everywhere (30 + 10) the offers are 60/30 and 50/10, then 60/30 and 1/10."""
    energies = {"wide": np.array([100.0, 60.0, 1.0]), "narrow": np.array([70.0, 50.0, 1.0])}
    shapes, copies = {"wide": (15, 15), "narrow": (5, 5)}, {"wide": 1, "narrow": 1}
    for budget, expected in ((40, (1, 1)), (50, (1, 2)), (79, (1, 3)), (80, (2, 2)), (90, (2, 3))):
        ranks = ranks_within(energies, shapes, copies, depth=2, budget=budget)
        assert tuple(ranks.values()) == expected, budget


@pytest.mark.parametrize(
    ("pattern", "options", "message"),
    [
        ("dens", {}, "pattern='dens' fits no layer of the Every to take"),
        ("normalize", {}, "fits no layer"),
        ("(", {}, r"pattern='\(' is no regular expression"),
        (3, {}, "pattern=3, expected a regular expression or a function"),
        (".*", {"rank": 0}, "rank=0, expected a positive integer"),
        (".*", {"rank": {"dense": 2}}, "rank has no entry for convolution"),
        (".*", {"rank": None, "budget": 5}, "budget=5, expected at least 101"),
        (".*", {"rank": 2, "budget": 5}, "are two rules"),
        (".*", {"rank": None, "energy": 0.0}, "energy=0.0, expected a fraction"),
        (".*", {"depth": 1}, "depth=1, expected an integer of at least 2"),
        (".*", {"scale": 0.0}, "scale=0.0, expected a positive"),
        (".*", {"start": "svd"}, "start='svd', expected 'surrogate' or 'random'"),
        (".*", {"zero": "first"}, "zero='first', expected"),
        (".*", {"loss": None}, "loss=None, expected"),
        (".*", {"start": "random"}, "rngs=None, expected"),
        (".*", {"start": "random", "rngs": nnx.Rngs(0), "rank": None}, "rank=None, expected a rank"),
    ],
)
def test_bad_settings_are_named(pattern, options, message):
    with pytest.raises(ValueError, match=message):
        nn.adapt(Every(nnx.Rngs(0)), pattern, **{"rank": 2, "loss": loss, "batch": BATCH, **options})


def test_a_model_that_is_a_layer_and_one_without_deltas_are_refused():
    layer = nnx.Linear(3, 3, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="put it inside a module"):
        nn.adapt(layer, ".*", rank=1, start="random", rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="has no adapted, compressed or deep linear layer"):
        nn.merge(layer)
    model = nnx.List([layer])
    nn.adapt(model, "0", rank=1, start="random", rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="it has factors already"):
        nn.adapt(model, "0", rank=1, start="random", rngs=nnx.Rngs(0))


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(("factor", "message"), [(0.0, "has the gradient 0"), (np.nan, "finite|NaN")])
def test_a_gradient_that_vanishes_or_is_not_finite_is_refused(compiled, factor, message):
    def adapted(model):
        def scaled(model):
            return factor * jnp.sum(model(jnp.ones((2, 5))))

        nn.adapt(model, "0", rank=1, loss=scaled, start="surrogate")
        return model[0].delta.outward[...]

    class Model(nnx.List):
        def __call__(self, x):
            return self[0](x)

    model = Model([nnx.Linear(5, 4, rngs=nnx.Rngs(0))])
    with pytest.raises(Exception, match=message):  # a run-time error of JAX where compiled
        jax.block_until_ready((nnx.jit(adapted) if compiled else adapted)(model))
