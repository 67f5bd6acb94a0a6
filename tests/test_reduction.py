"""Claims on the law of parsimony: the reduced network is the full one, exactly."""

from functools import partial
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats

import lowdim_jax as ld
from lowdim_jax import spectra
from lowdim_jax._products import product


def sgd(rate, alpha=1.0, beta=0.0, decay=0.0, nesterov=False):
    """All numbers given, so that optimizers share one compiled program."""
    return ld.GradientDescent(rate, alpha=alpha, momentum=beta, weight_decay=decay, nesterov=nesterov)


OPTIMIZERS = {
    "plain": sgd(0.02),
    "momentum": sgd(0.005, beta=0.9),
    "nesterov": sgd(0.005, beta=0.9, nesterov=True),
    "weight decay": sgd(0.02, decay=0.1),
    "discrepant": sgd(0.01, alpha=2.5),
    "all at once": sgd(0.004, alpha=0.5, beta=0.8, decay=0.05, nesterov=True),
}

WIDTHS = {
    "square": (12, 12, 12, 12),
    "wider than high": (17, 12, 12, 12),
    "higher than wide": (12, 12, 12, 17),
    "wide input and output": (16, 12, 12, 15),
    "bottleneck": (12, 9, 9, 14),
    "bottleneck narrower than 2r": (12, 4, 4, 14),
    "bottleneck narrower than r": (12, 2, 14),
    "valley": (30, 24, 20, 15, 15, 22, 28),
    "rising": (11, 13, 16, 20),
    "steps wider than r by less": (14, 13, 12, 13, 14),
}


def orthonormal(rng, rows, columns):
    return np.linalg.qr(rng.standard_normal((rows, columns)))[0]


def target_of(shape, values, seed=1):
    rng = np.random.default_rng(seed)
    left, right = (orthonormal(rng, d, len(values)) for d in shape)
    return ld.LowRank(*(jnp.asarray(a, float) for a in (left, np.asarray(values), right)))


def network(spaces, scale=0.4, seed=0):
    rng = np.random.default_rng(seed)
    layers = []
    for before, after in pairwise(spaces):
        q = orthonormal(rng, max(before, after), min(before, after))
        layers.append(jnp.asarray(scale * (q if after >= before else q.T), float))
    return tuple(layers)


FAST_TO_COMPILE = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


@partial(jax.jit, static_argnames=("make", "steps"), compiler_options=FAST_TO_COMPILE)
def compare(weights, target, optimizer, make, steps):
    """Losses of both runs, how far the full one moved, and the worst entry of any lifted layer."""
    reduction = make(weights, target)
    problem = ld.factorization(target)
    full = ld.gradient_descent(problem, weights, optimizer, steps=steps, record_every=50)
    small = ld.reduced_descent(reduction, optimizer, steps=steps, record_every=50)

    def gap(a, b):
        pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
        return jnp.max(jnp.stack([jnp.max(jnp.abs(x - y)) for x, y in pairs]))

    lifted = reduction.lift(small.weights)
    return small.losses, full.losses, gap(full.weights, weights), gap(lifted, full.weights)


def worst_layer(target, weights, optimizer, make=ld.reduce, steps=150):
    """Largest entry by which any layer of the lifted run differs from the full run."""
    small, full, moved, worst = compare(weights, target, optimizer, make, steps)
    np.testing.assert_allclose(small, full, rtol=1e-10, atol=1e-20)
    assert moved > 0.1, "a run that does not move shows nothing"
    return worst


@pytest.mark.parametrize(
    ("spaces", "name"),
    [*(("wide input and output", name) for name in OPTIMIZERS), ("square", "all at once")],
)
def test_every_layer_equals_the_full_run_under_every_optimizer(x64, spaces, name):
    spaces = WIDTHS[spaces]
    target = target_of((spaces[-1], spaces[0]), [3.0, 2.0, 1.2])
    weights = network(spaces)
    assert worst_layer(target, weights, OPTIMIZERS[name]) < 1e-12


@pytest.mark.parametrize(
    "spaces", [name for name in WIDTHS if name not in ("square", "wide input and output")]
)
def test_every_layer_equals_the_full_run_for_every_valley_of_widths(x64, spaces):
    spaces = WIDTHS[spaces]
    target = target_of((spaces[-1], spaces[0]), [3.0, 2.0, 1.2])
    weights = network(spaces, scale=0.6)
    optimizer = sgd(0.01, alpha=1.5, beta=0.5, decay=0.05)
    assert worst_layer(target, weights, optimizer) < 1e-12


@pytest.mark.parametrize(
    ("depth", "shape"), [(1, (9, 9)), (1, (7, 10)), (2, (7, 10)), (2, (10, 7))]
)
def test_shallow_networks_reduce_exactly(x64, depth, shape):
    target = target_of(shape, [3.0, 1.0])
    weights = network(ld.full_widths(*shape, depth=depth))
    assert worst_layer(target, weights, sgd(0.05)) < 1e-12


@pytest.mark.parametrize(
    ("values", "d"),
    [
        ([2.0], 9),
        ([3.0, 2.0, 2.0], 12),
        ([3.0, 2.5, 2.0, 1.5, 1.0], 10),
        ([3.0, 2.5, 2.0, 1.5, 1.0], 7),
    ],
    ids=["rank one", "repeated", "r = d/2", "r > d/2"],
)
def test_any_rank_and_repeated_singular_values_reduce_exactly(x64, values, d):
    target = target_of((d, d), values)
    weights = network((d,) * 4)
    assert len(ld.reduce(weights, target).bases[0].T) == min(2 * len(values), d)
    assert worst_layer(target, weights, OPTIMIZERS["all at once"]) < 1e-12


def identity_reduction(weights, target):
    return ld.reduction.reduce_identity(target, depth=len(weights), scale=jnp.array(0.4))


@pytest.mark.parametrize("shared", ["all", "some"])
def test_a_basis_that_would_lose_rank_is_still_orthonormal_and_exact(x64, shared):
    """With identity layers `R_LᵀU* = U*`, which spans what `V*` does if `Φ` is symmetric."""
    d, r = 12, 3
    q = jnp.linalg.qr(jax.random.normal(jax.random.key(5), (d, d)))[0]
    right = q[:, :r] if shared == "all" else jnp.concatenate([q[:, :2], q[:, 5:6]], axis=1)
    target = ld.LowRank(q[:, :r], jnp.array([3.0, 2.0, 1.0]), right)
    weights = ld.initialization.identity((d,) * 4, scale=0.4)
    for make in (ld.reduce, identity_reduction):
        for basis in make(weights, target).bases:
            gram = np.asarray(basis.T @ basis)
            np.testing.assert_allclose(gram, np.eye(len(gram)), atol=1e-13)
        assert worst_layer(target, weights, OPTIMIZERS["all at once"], make) < 1e-12


def test_vectors_inside_the_range_of_a_layer_leave_spare_directions_that_stay_put(x64):
    spaces = (16, 12, 12, 15)
    first, _, last = weights = network(spaces)
    inside_in = jnp.linalg.qr(first.T @ jnp.eye(12, 3))[0]
    inside_out = jnp.linalg.qr(last @ jnp.eye(12, 3, -2))[0]
    for left, right in [
        (inside_out, inside_in),
        (inside_out, target_of((15, 16), [1.0, 1.0, 1.0]).right),
        (jnp.linalg.qr(inside_out.at[:, 1:].set(jnp.eye(15, 2)))[0], inside_in),
    ]:
        target = ld.LowRank(left, jnp.array([3.0, 2.0, 1.0]), right)
        assert worst_layer(target, weights, OPTIMIZERS["all at once"]) < 1e-12


def test_layers_may_have_scales_of_their_own(x64):
    weights = tuple(
        scale * weight
        for scale, weight in zip((0.5, 0.2, 0.9), network((16, 12, 12, 15), 1.0), strict=True)
    )
    target = target_of((15, 16), [3.0, 2.0, 1.2])
    assert worst_layer(target, weights, OPTIMIZERS["all at once"]) < 1e-12


def test_a_dense_target_reduces_as_its_factors_do(x64):
    target = target_of((9, 11), [3.0, 2.0])
    weights = network((11, 9, 9))
    dense, factored = ld.reduce(weights, target.dense()), ld.reduce(weights, target)
    assert [basis.shape for basis in dense.bases] == [basis.shape for basis in factored.bases]
    losses = [
        ld.reduced_descent(reduction, ld.GradientDescent(0.05), steps=50).losses
        for reduction in (dense, factored)
    ]
    np.testing.assert_allclose(*losses, rtol=1e-11)


def test_lift_of_the_start_is_the_start(dtype):
    tol = 1e-13 if dtype == "float64" else 1e-5
    weights = network((16, 12, 15))

    @jax.jit
    def there_and_back(weights, target):
        reduction = ld.reduce(weights, target)
        return reduction.lift(reduction.layers)

    back = there_and_back(weights, target_of((15, 16), [3.0, 2.0]))
    for lifted, weight in zip(back, weights, strict=True):
        np.testing.assert_allclose(lifted, weight, atol=tol)
        assert lifted.dtype == jnp.dtype(dtype)


@pytest.mark.parametrize("spaces", ["square", "valley"])
def test_end_to_end_loss_and_error_are_the_full_networks(x64, spaces):
    spaces = WIDTHS[spaces]
    target = target_of((spaces[-1], spaces[0]), [3.0, 2.0, 1.2])
    reduction = jax.jit(ld.reduce)(network(spaces, scale=0.7), target)
    layers = ld.reduced_descent(reduction, ld.GradientDescent(0.01), steps=40).weights
    full = jax.jit(lambda reduction, layers: reduction.lift(layers))(reduction, layers)
    problem = ld.factorization(target)
    np.testing.assert_allclose(reduction.problem.loss(layers), problem.loss(full), rtol=1e-12)
    np.testing.assert_allclose(
        reduction.problem.recovery_error(layers), problem.recovery_error(full), rtol=1e-12
    )
    core, bulk = reduction.end_to_end(layers)
    matrix = np.asarray(ld.end_to_end(full))
    expected = np.linalg.svd(matrix, compute_uv=False)
    count = int(reduction.problem.bulk_count)
    values = np.sort(np.concatenate([core.singular_values, np.full(count, float(bulk))]))[::-1]
    np.testing.assert_allclose(values, expected[: len(values)], atol=1e-12)
    assert np.all(expected[len(values) :] < 1e-12)
    np.testing.assert_allclose(
        core.left.T @ matrix @ core.right, np.diag(core.singular_values), atol=1e-12
    )
    rest = matrix - np.asarray(core.dense())
    np.testing.assert_allclose(np.linalg.norm(rest), count**0.5 * float(bulk), atol=1e-12)
    measured = spectra.alignment(ld.reduction.cores(layers), reduction.problem.target)
    same = spectra.alignment(full, target)
    for a, b in zip(measured, same, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-10)


@pytest.mark.parametrize(
    "spaces", [(10, 14, 10), (10, 10, 12, 10), (12, 10, 11, 10, 12), (10, 8, 9, 8, 10)]
)
def test_widths_that_grow_and_shrink_are_refused(spaces):
    target = target_of((spaces[-1], spaces[0]), [2.0, 1.0])
    with pytest.raises(ValueError, match=r"widths \(.*\) grow and then shrink"):
        ld.reduce(network(spaces), target)


@pytest.mark.parametrize("spaces", [(10, 14, 10), (12, 10, 13, 14, 11, 13), (9, 12, 7, 12, 9)])
def test_a_bulge_taken_all_the_same_follows_the_network_without_it_only(x64, spaces):
    target = target_of((spaces[-1], spaces[0]), [2.0, 1.0])
    weights = network(spaces)
    reduction = ld.reduce(weights, target, strict=False)
    nearest = reduction.lift(reduction.layers)
    assert ld.widths(nearest) == spaces
    # Exact for the nearest network that has the law, whose bulging spaces are not reached throughout …
    assert worst_layer(target, nearest, sgd(0.02), make=lambda *_: reduction) < 1e-12
    # … and off for the network that was given.
    full = ld.gradient_descent(ld.factorization(target).loss, weights, ld.GradientDescent(0.02), steps=150)
    small = ld.reduced_descent(reduction, ld.GradientDescent(0.02), steps=150)
    assert jnp.max(jnp.abs(small.losses / full.losses - 1)) > 1e-3


def test_a_gaussian_initialization_is_refused_and_does_not_reduce(x64):
    target = target_of((10, 10), [2.0, 1.0])
    weights = ld.gaussian(jax.random.key(0), (10, 10, 10), scale=0.4)
    with pytest.raises(ValueError, match=r"layer 1 has singular values from .* orthogonal"):
        ld.reduce(weights, target)
    reduction = ld.reduce(weights, target, strict=False)
    full = ld.gradient_descent(ld.factorization(target).loss, weights, ld.GradientDescent(0.05), steps=20)
    small = ld.reduced_descent(reduction, ld.GradientDescent(0.05), steps=20)
    assert abs(small.losses[-1] / full.losses[-1] - 1) > 1e-3


def test_one_layer_that_is_not_orthogonal_is_named():
    weights = list(network((8, 8, 8, 8)))
    weights[1] = weights[1].at[0, 0].add(0.01)
    with pytest.raises(ValueError, match="layer 2 has singular values"):
        ld.reduce(weights, target_of((8, 8), [2.0, 1.0]))


def test_adam_is_refused_and_breaks_the_law(x64):
    target = target_of((12, 12), [3.0, 2.0])
    weights = network((12,) * 4)
    reduction = ld.reduce(weights, target)
    adam = optax.adam(0.01)
    with pytest.raises(ValueError, match=r"optimizer is a .*, expected GradientDescent"):
        ld.reduced_descent(reduction, adam, steps=1)
    full = ld.gradient_descent(ld.factorization(target).loss, weights, adam, steps=30)
    small = ld.reduced_descent(reduction, adam, strict=False, steps=30)
    lifted = reduction.lift(small.weights)
    gap = max(float(jnp.abs(a - b).max()) for a, b in zip(lifted, full.weights, strict=True))
    assert gap > 1e-3


def test_reduce_identity_forms_no_matrix_and_lifts_to_the_identity_network(x64):
    target = target_of((12, 12), [3.0, 2.0, 1.2])
    assert ld.reduction.reduce_identity(target, depth=3, scale=0.4).frames is None
    weights = ld.initialization.identity((12,) * 4, scale=0.4)
    assert worst_layer(target, weights, OPTIMIZERS["all at once"], identity_reduction) < 1e-12
    jaxpr = jax.make_jaxpr(
        lambda scale: ld.sample(jax.random.key(0), 5000, jnp.ones(2), depth=3, scale=scale)
    )(0.1)
    assert "5000,5000" not in str(jaxpr)


def test_the_bulk_follows_its_scalar_recursion(x64):
    eta, decay, depth = 0.03, 0.1, 3
    reduction = ld.sample(jax.random.key(0), 50, jnp.array([2.0, 1.0]), depth=depth, scale=0.8)
    run = ld.reduced_descent(
        reduction,
        ld.GradientDescent(eta, weight_decay=decay),
        steps=30,
        observe=lambda layers: (layers[1].bulk, layers[1].idle),
    )
    rho = 0.8
    for measured in run.observed[0]:
        assert abs(float(measured) - rho) < 1e-14
        rho *= 1 - eta * decay - eta * rho ** (2 * depth - 2)
    idle = 0.8 * (1 - eta * decay) ** np.arange(31)
    np.testing.assert_allclose(run.observed[1], idle, rtol=1e-13)


def test_gradient_flow_of_the_reduction_is_that_of_the_full_network(x64):
    key_target, key_weights = jax.random.split(jax.random.key(3))
    target = ld.random_target(key_target, (12, 12), jnp.array([2.0, 1.0]))
    weights = ld.orthogonal(key_weights, (12, 12, 12, 12), scale=0.5)
    reduction = ld.reduce(weights, target)
    times = jnp.array([0.5, 4.0])
    flow = partial(ld.gradient_flow, alpha=2.0, rtol=1e-10)
    full = flow(ld.factorization(target).loss, weights, times)
    small = flow(reduction.problem.loss, reduction.layers, times)
    assert float(full.losses[1]) < 0.1 * float(full.losses[0])
    np.testing.assert_allclose(small.losses, full.losses, rtol=1e-8)
    for lifted, layer in zip(reduction.lift(small.weights), full.weights, strict=True):
        np.testing.assert_allclose(lifted, layer, atol=1e-8)


def test_a_reduction_and_its_way_back_compile_nothing(x64, compilations):
    rng = np.random.default_rng(0)
    frames = [np.linalg.qr(rng.standard_normal(shape))[0] for shape in ((17, 13), (17, 17))]
    weights = tuple(map(jax.device_put, (0.3 * frames[0].T, 0.2 * frames[0], 0.4 * frames[1])))
    target = ld.LowRank(*map(jax.device_put, (frames[1][:, :2], np.array([2.0, 1.0]), frames[1][:, 2:4])))
    with compilations() as events:
        reduction = ld.reduce(weights, target)
        lifted = reduction.lift(reduction.layers)
    assert not [name for name in events if "compile" in name]
    for layer, weight in zip(lifted, weights, strict=True):
        assert isinstance(layer, jax.Array)
        np.testing.assert_allclose(layer, weight, atol=1e-14)


def test_another_width_is_the_same_compiled_program(x64):
    values = jnp.array([2.0, 1.0])

    @jax.jit
    def train(layers, problem):
        nonlocal traces
        traces += 1
        return ld.gradient_descent(problem, layers, ld.GradientDescent(0.1), steps=3).losses

    traces, losses = 0, []
    for d in (30, 50):
        reduction = ld.sample(jax.random.key(0), d, values, depth=3, scale=0.5)
        losses.append(train(reduction.layers, reduction.problem)[0])
    assert traces == 1
    assert losses[0] != losses[1]


def test_divergence_of_the_reduction_names_the_full_networks_stable_rate(x64):
    reduction = ld.sample(jax.random.key(0), 20, jnp.array([2.0, 1.0]), depth=3, scale=0.5)
    run = ld.reduced_descent(reduction, ld.GradientDescent(3.0), steps=60)
    edge = 2 / (3 * 2.0 ** (4 / 3))
    assert run.message.endswith(f"gradient descent is stable below {edge:g} here")


def test_sampling_and_reducing_compile_with_a_constant_scale(x64):
    values = jnp.array([2.0, 1.0])

    def bulk_count(key):
        return ld.sample(key, 9, values, depth=2, scale=0.1).bases[0]

    key = jax.random.key(0)
    np.testing.assert_allclose(jax.jit(bulk_count)(key), bulk_count(key), atol=1e-14)


def test_sample_draws_the_overlaps_of_the_dense_construction(x64):
    d, depth, count = 6, 3, 1000
    values = jnp.array([2.0, 1.0])

    def sampled(key):
        target = ld.sample(key, d, values, depth=depth, scale=0.1).problem.target
        return target.left.T @ target.right

    def dense(key):
        key_weights, key_target = jax.random.split(key)
        product = ld.end_to_end(ld.orthogonal(key_weights, (d,) * (depth + 1), scale=1.0))
        target = ld.random_target(key_target, (d, d), values)
        return (product.T @ target.left).T @ target.right

    # One after the other: batches in LAPACK that run at once can wait for each other for ever (jaxlib 0.10.2)
    a = np.asarray(jax.jit(partial(jax.lax.map, sampled))(jax.random.split(jax.random.key(1), count)))
    b = np.asarray(jax.jit(partial(jax.lax.map, dense))(jax.random.split(jax.random.key(2), count)))
    for statistic in (
        lambda x: x[:, 0, 0],
        lambda x: x[:, 1, 0],
        lambda x: np.linalg.norm(x, axis=(1, 2)),
        lambda x: np.linalg.det(x),
    ):
        assert scipy.stats.ks_2samp(statistic(a), statistic(b)).pvalue > 1e-3
    # The test has power: it tells overlaps in 6 dimensions from those in 9.
    wider = b[:, 0, 0] * (6 / 9) ** 0.5
    assert scipy.stats.ks_2samp(wider, a[:, 0, 0]).pvalue < 1e-2


def test_a_network_ten_thousand_wide_trains_to_rounding(x64):
    values = jnp.array([3.0, 2.0, 1.0])
    reduction = ld.sample(jax.random.key(0), 10_000, values, depth=3, scale=1e-4)
    run = ld.reduced_descent(
        reduction, ld.GradientDescent(0.05), steps=400_000, record_every=10_000, tolerance=1e-22
    )
    assert reduction.problem.recovery_error(run.weights) < 1e-10


def test_samples_map_over_seeds_as_they_loop(x64):
    values = jnp.array([2.0, 1.0])

    def final_loss(key):
        reduction = ld.sample(key, 40, values, depth=3, scale=0.3)
        return ld.reduced_descent(reduction, ld.GradientDescent(0.05), steps=50, record_every=25).losses

    final_loss = jax.jit(final_loss)
    keys = jax.random.split(jax.random.key(0), 3)
    looped = jnp.stack([final_loss(key) for key in keys])
    np.testing.assert_allclose(jax.vmap(final_loss)(keys), looped, rtol=1e-12)
    assert len(np.unique(np.asarray(looped[:, -1]))) == 3


def test_the_reduction_holds_in_single_precision():
    target = target_of((12, 12), [3.0, 2.0])
    weights = network((12,) * 4)
    reduction = ld.reduce(weights, target)
    full = ld.gradient_descent(ld.factorization(target).loss, weights, ld.GradientDescent(0.02), steps=100)
    small = ld.reduced_descent(reduction, ld.GradientDescent(0.02), steps=100)
    np.testing.assert_allclose(small.losses, full.losses, rtol=1e-3, atol=1e-6)


KEY, VALUES = jax.random.key(0), np.array([2.0, 1.0], "float32")
NAN = float("nan")
BAD = {
    "shape": (
        r"maps 7 inputs to 7 outputs, but the target has shape \(8, 8\)",
        lambda: ld.reduce(network((7, 7)), target_of((8, 8), VALUES)),
    ),
    "no layer": ("weights is empty", lambda: ld.reduce((), target_of((8, 8), VALUES))),
    "depth": (
        "depth=0, expected an integer of at least 1",
        lambda: ld.sample(KEY, 8, jnp.asarray(VALUES), depth=0, scale=0.1),
    ),
    "zero scale": (
        "scale=0.0, expected a positive",
        lambda: ld.sample(KEY, 8, jnp.asarray(VALUES), depth=3, scale=0.0),
    ),
    "negative scale": (
        "scale=-1, expected a positive",
        lambda: ld.reduction.reduce_identity(target_of((8, 8), VALUES), depth=3, scale=-1),
    ),
    "nan scale": (
        "scale=nan, expected a positive",
        lambda: ld.reduction.reduce_identity(target_of((8, 8), VALUES), depth=3, scale=NAN),
    ),
    "not square": (
        r"target has shape \(8, 7\), expected a square",
        lambda: ld.reduction.reduce_identity(target_of((8, 7), VALUES), depth=3, scale=0.1),
    ),
    "rank above width": (
        "2 singular values do not fit a 1×1 matrix",
        lambda: ld.sample(KEY, 1, jnp.asarray(VALUES), depth=3, scale=0.1),
    ),
    "nan singular value": (
        "singular_values has 1 entries that are NaN or infinite",
        lambda: ld.sample(KEY, 8, jnp.array([2.0, NAN]), depth=3, scale=0.1),
    ),
    "nan target": (
        "target has 1 entries that are NaN or infinite",
        lambda: ld.reduce(network((8, 8)), jnp.eye(8).at[1, 2].set(NAN)),
    ),
    "nan layer": (
        "(?i)layer 1 .*(nan|infinite)",
        lambda: ld.reduce((network((8, 8))[0].at[0, 0].set(NAN),), target_of((8, 8), VALUES)),
    ),
    "zero layer": (
        "(?i)layer 1 .*(zero|0)",
        lambda: ld.reduce((jnp.zeros((8, 8)),), target_of((8, 8), VALUES)),
    ),
    "zero target": (
        "target is zero",
        lambda: ld.reduce(network((8, 8)), jnp.zeros((8, 8))),
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named(name):
    message, call = BAD[name]
    with pytest.raises(ValueError, match=message):
        call()


def test_a_product_has_the_gradients_and_hessian_of_one(x64, monkeypatch):
    """With transposes that are written out, as on a CPU, and without, as elsewhere."""
    rng = np.random.default_rng(0)
    a, b, c, da, db = (rng.standard_normal(shape) for shape in ((3, 4), (4, 2), (3, 2), (3, 4), (4, 2)))

    def loss(a, b):
        return jnp.sum((product(a, b) - c) ** 2) / 2

    left = a @ b - c
    moved = da @ b + a @ db
    for backend in ("cpu", "gpu"):
        monkeypatch.setattr(jax, "default_backend", lambda backend=backend: backend)
        gradients, images = jax.jvp(jax.grad(loss, argnums=(0, 1)), (a, b), (da, db))
        for found, expected in zip(gradients, (left @ b.T, a.T @ left), strict=True):
            assert np.allclose(found, expected, atol=1e-14)
        expected = moved @ b.T + left @ db.T, da.T @ left + a.T @ moved
        assert all(np.allclose(*pair, atol=1e-13) for pair in zip(images, expected, strict=True))
        stacked = jax.vmap(jax.grad(loss), in_axes=(0, None))(np.stack([a, da]), b)
        assert np.allclose(stacked[1], (da @ b - c) @ b.T, atol=1e-13)
