"""Claims on networks that a loss sees through a window, against full networks trained in plain NumPy."""

from functools import partial
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats

import lowdim_jax as ld
from lowdim_jax.reduction import cores

RATE, MOMENTUM, DECAY, STEPS = 0.05, 0.8, 0.02, 60


def orthonormal(rng, rows, columns):
    return np.linalg.qr(rng.standard_normal((rows, columns)))[0]


def draw_network(spaces, seed=0):
    """Gaussian outer layers, and middle ones that are orthogonal times a scale each."""
    rng = np.random.default_rng(seed)
    d_in, *hidden, d_out = spaces
    middle = []
    for number, (before, after) in enumerate(pairwise(hidden)):
        q = orthonormal(rng, max(before, after), min(before, after))
        middle.append((0.6 + 0.2 * number) * (q if after >= before else q.T))
    first = rng.standard_normal((hidden[0], d_in)) / d_in**0.5
    return [first, *middle, rng.standard_normal((d_out, hidden[-1])) / hidden[-1] ** 0.5]


def draw_data(spaces, samples, seed=1):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((spaces[0], samples)), rng.integers(0, spaces[-1], samples)


def slope_of_cross_entropy(z, y):
    """Derivative of the mean softmax cross-entropy by its logits, a column a sample."""
    p = np.exp(z - z.max(0))
    p /= p.sum(0)
    return (p - np.eye(len(z))[:, y]) / z.shape[1]


def slope_of_huber(z, y):
    """Derivative of the mean Huber loss against `y / 3` in every output."""
    return np.clip(z - y / 3, -1, 1) / z.size


SLOPES = {"cross-entropy": slope_of_cross_entropy, "Huber": slope_of_huber}


def in_numpy(weights, slope, x, y, batches, *, rate=RATE, momentum=MOMENTUM, decay=DECAY):
    """Full-width training by backpropagation, with momentum and weight decay."""
    weights, buffers = [w.copy() for w in weights], [0 * w for w in weights]
    for batch in batches:
        values = [x[:, batch]]
        for w in weights:
            values.append(w @ values[-1])
        back = slope(values[-1], y[batch])
        for number in reversed(range(len(weights))):
            gradient = back @ values[number].T + decay * weights[number]
            back = weights[number].T @ back
            buffers[number] = momentum * buffers[number] + gradient
        weights = [w - rate * b for w, b in zip(weights, buffers, strict=True)]
    return weights


def cross_entropy(logits, y):
    return optax.softmax_cross_entropy_with_integer_labels(logits.T, y).mean()


def huber(logits, y):
    targets = jnp.broadcast_to(y[None] / 3, logits.shape).astype(logits.dtype)
    return optax.huber_loss(logits, targets).mean()


LOSSES = {"cross-entropy": cross_entropy, "Huber": huber}


def loss_of(name, x, y, batches):
    x, y, batches = jnp.asarray(x, float), jnp.asarray(y), jnp.asarray(batches)

    def loss(weights, step):
        batch = batches[step]
        return LOSSES[name](ld.forward(weights, x[:, batch]), y[batch])

    return loss


def worst(weights, others):
    return max(float(np.max(np.abs(a - b))) for a, b in zip(weights, others, strict=True))


# widths, samples, loss, and the widest core that they should have
CASES = {
    "few samples": ((7, 60, 60, 60, 3), 5, "cross-entropy", 8),
    "more samples than inputs": ((7, 60, 60, 3), 50, "cross-entropy", 10),
    "two layers": ((40, 50, 3), 6, "Huber", 9),
    "hidden widths that grow": ((9, 40, 50, 60, 3), 5, "cross-entropy", 14),
    "hidden widths that shrink": ((9, 40, 30, 3), 5, "Huber", 13),
    "narrower than the window": ((30, 6, 6, 3), 12, "cross-entropy", 12),
}


@pytest.mark.parametrize("case", CASES)
def test_every_layer_is_that_of_the_full_network_trained_in_numpy(x64, case):
    spaces, samples, name, width = CASES[case]
    start, (x, y) = draw_network(spaces), draw_data(spaces, samples)
    batches = np.random.default_rng(2).integers(0, samples, (STEPS + 1, 4))
    full = in_numpy(start, SLOPES[name], x, y, batches[:-1])
    assert worst(full, start) > 0.1, "a run that does not move shows nothing"

    loss = loss_of(name, x, y, batches)
    reduction = ld.reduce(list(map(jnp.asarray, start)), loss, window=x, per_step=True)
    assert max(max(layer.core.shape) for layer in reduction.layers) == width
    optimizer = ld.GradientDescent(RATE, momentum=MOMENTUM, weight_decay=DECAY)
    run = ld.reduced_descent(reduction, optimizer, steps=STEPS, record_every=STEPS)
    assert worst(reduction.lift(run.weights), full) < 1e-13


def test_rates_by_role_and_clipping_keep_the_reduction_exact(x64):
    spaces = (5, 30, 30, 3)
    start, (x, y) = [jnp.asarray(w) for w in draw_network(spaces)], draw_data(spaces, 8)
    loss = partial(loss_of("cross-entropy", x, y, np.arange(8)[None]), step=0)
    chain = optax.chain(optax.clip_by_global_norm(0.1), optax.add_decayed_weights(0.05))
    optimizer = ld.by_role(
        optax.chain(chain, optax.sgd(0.2, momentum=0.5)), optax.chain(chain, optax.sgd(0.1))
    )
    reduction = ld.reduce(start, loss)
    small = ld.reduced_descent(reduction, optimizer, steps=30, record_every=30)
    full = ld.gradient_descent(loss, start, optimizer, steps=30, record_every=30)
    assert worst(full.weights, start) > 0.05
    assert worst(reduction.lift(small.weights), full.weights) < 1e-13


def square(weights, step=0):
    del step
    return jnp.sum(ld.end_to_end(weights) ** 2)


@pytest.mark.parametrize(
    "optimizer",
    [
        optax.adam(0.1),
        optax.chain(optax.add_decayed_weights(0.1), optax.clip_by_global_norm(1.0), optax.sgd(0.1)),
    ],
    ids=["Adam", "the decay clipped"],
)
def test_optimizers_that_do_not_rotate_are_refused_and_break_it(x64, optimizer):
    start = [jnp.asarray(w) for w in draw_network((4, 20, 20, 2))]
    reduction = ld.reduce(start, square)
    with pytest.raises(ValueError, match="moves a network and the same one in a wider space apart"):
        ld.reduced_descent(reduction, optimizer, steps=1)
    small = ld.reduced_descent(reduction, optimizer, steps=10, strict=False)
    full = ld.gradient_descent(square, start, optimizer, steps=10)
    assert worst(reduction.lift(small.weights), full.weights) > 1e-6


def test_gaussian_middle_layers_are_refused_and_break_it(x64):
    start = ld.gaussian(jax.random.key(0), (4, 20, 20, 2), scale=1.0)
    with pytest.raises(ValueError, match=r"layer 2 has singular values from .* to "):
        ld.reduce(start, square)
    reduction = ld.reduce(start, square, strict=False)
    small = ld.reduced_descent(reduction, ld.GradientDescent(0.05), steps=30)
    full = ld.gradient_descent(square, start, ld.GradientDescent(0.05), steps=30)
    assert worst(reduction.lift(small.weights), full.weights) > 1e-3


def test_hidden_layers_that_bulge_are_refused(x64):
    start = ld.orthogonal(jax.random.key(0), (4, 20, 30, 20, 2), scale=1.0)
    with pytest.raises(ValueError, match=r"hidden widths \(20, 30, 20\) grow and then shrink"):
        ld.reduce(start, square)


def test_a_loss_that_sees_more_than_its_window_is_refused(x64):
    x = np.random.default_rng(0).standard_normal((6, 3))
    start = ld.orthogonal(jax.random.key(0), (6, 20, 4), scale=1.0)
    with pytest.raises(ValueError, match=r"loss sees more than the window: .* in the inputs"):
        ld.reduce(start, square, window=x)
    outputs = np.eye(4)[:, :2]
    with pytest.raises(ValueError, match=r"loss sees more than the window: .* in the outputs"):
        ld.reduce(start, square, window=(outputs, None))
    two = ld.reduce(start, lambda w: jnp.sum(ld.end_to_end(w)[:2] ** 2), window=(outputs, None))
    assert two.layers[-1].core.shape == (2, 8)


def test_a_loss_that_sees_layers_apart_is_refused():
    start = ld.orthogonal(jax.random.key(0), (3, 20, 20, 2), scale=1.0)
    with pytest.raises(ValueError, match="loss sees layers 1 and 2 apart"):
        ld.reduce(start, lambda w: square(w) + jnp.sum(w[1] ** 2))


@pytest.mark.parametrize(
    ("window", "message"),
    [
        (np.ones((5, 2)), "window of inputs has shape"),
        ((np.ones((7, 2)), None), "window of outputs has shape"),
        (np.zeros((6, 2)), "window of inputs is zero"),
        ((None, None, None), "window has 3 entries"),
        (np.full((6, 2), np.nan), "window of inputs has 12 entries that are NaN"),
    ],
)
def test_a_window_that_does_not_fit_is_refused(window, message):
    start = ld.orthogonal(jax.random.key(0), (6, 20, 4), scale=1.0)
    with pytest.raises(ValueError, match=message):
        ld.reduce(start, square, window=window)


def test_settings_of_the_other_kind_are_refused():
    start = ld.orthogonal(jax.random.key(0), (6, 6, 6), scale=1.0)
    with pytest.raises(ValueError, match="window and per_step are for a loss"):
        ld.reduce(start, jnp.eye(6), window=np.eye(6))
    with pytest.raises(ValueError, match="with a loss, expected all widths"):
        ld.sample(jax.random.key(0), 6, square, depth=3, scale=1.0)
    with pytest.raises(ValueError, match="with singular values, expected one width"):
        ld.sample(jax.random.key(0), 6, jnp.ones(2), scale=1.0)
    for spaces, options, message in [
        ((4, 9, 8, 2), {}, "hidden layers of one width"),
        ((4, 2), {}, "at least one hidden width"),
        ((4, 9, 2), {"outer": "uniform"}, "outer='uniform'"),
        ((4, 9, 2), {"scale": jnp.ones(3)}, "expected one number or 2"),
    ]:
        with pytest.raises(ValueError, match=message):
            ld.sample(jax.random.key(0), spaces, square, **({"scale": 1.0} | options))


def test_the_same_reduction_in_single_precision_agrees_to_its_rounding(dtype):
    spaces = (7, 60, 60, 3)
    start, (x, y) = [jnp.asarray(w, dtype) for w in draw_network(spaces)], draw_data(spaces, 12)
    batches = np.random.default_rng(2).integers(0, 12, (61, 4))
    reduction = ld.reduce(start, loss_of("cross-entropy", x, y, batches), per_step=True)
    run = ld.reduced_descent(reduction, ld.GradientDescent(RATE), steps=60, record_every=60)
    full = in_numpy(
        [np.asarray(w, float) for w in start], slope_of_cross_entropy, x, y, batches[:-1], momentum=0, decay=0
    )
    assert worst(reduction.lift(run.weights), full) < 200 * float(jnp.finfo(dtype).eps)


# --- Networks drawn already reduced ---------------------------------------------------------------------

SPACES, SCALES, DRAWS = (3, 12, 12, 2), (0.5, 0.7, 1.2), 150


def invariants(layers):
    """Numbers that do not depend on the bases: of the product, and of the outer layers side by side."""
    first, *_, last = layers
    product = np.linalg.multi_dot(layers[::-1]) if len(layers) > 2 else last @ first
    return np.linalg.norm(product), product[0, 0], np.linalg.norm(last), np.linalg.norm(first[:, 0])


@pytest.fixture(scope="module")
def drawn():
    """Invariants of networks drawn reduced and, in NumPy, drawn full, at one width and at another."""
    result = {}
    with jax.enable_x64(True):
        for outer in ("orthogonal", "gaussian"):
            for name, h in (("same", 12), ("half", 6)):
                spaces = (3, h, h, 2)
                reduced = (
                    ld.sample(jax.random.key(seed), spaces, square, scale=SCALES, outer=outer)
                    for seed in range(DRAWS)
                )
                result[outer, name] = np.array(
                    [invariants([np.asarray(core) for core in cores(small.layers)]) for small in reduced]
                )
            rng = np.random.default_rng(7)
            result[outer, "full"] = np.array([invariants(full_network(rng, outer)) for _ in range(DRAWS)])
    return result


def full_network(rng, outer):
    d_in, h, _, d_out = SPACES
    sides = [rng.standard_normal((h, d)) for d in (d_in, d_out)]
    if outer == "orthogonal":
        sides = [np.linalg.svd(side, full_matrices=False) for side in sides]
        sides = [u @ vt for u, _, vt in sides]  # polar factors of Gaussian matrices are uniform
    else:
        sides = [side / h**0.5 for side in sides]
    u, _, vt = np.linalg.svd(rng.standard_normal((h, h)))
    return [SCALES[0] * sides[0], SCALES[1] * (u @ vt), SCALES[2] * sides[1].T]


@pytest.mark.parametrize("outer", ["orthogonal", "gaussian"])
def test_reduced_networks_are_distributed_as_full_ones(drawn, outer):
    """Kolmogorov and Smirnov of 150 draws each; by chance alone p falls below 0.001 once in a thousand."""
    compared = [0, 1] if outer == "orthogonal" else [0, 1, 2, 3]  # a frame's norms are constants
    for column in compared:
        pair = drawn[outer, "same"][:, column], drawn[outer, "full"][:, column]
        assert scipy.stats.ks_2samp(*pair).pvalue > 1e-3
    half = drawn[outer, "half"][:, 0], drawn[outer, "full"][:, 0]
    assert scipy.stats.ks_2samp(*half).pvalue < 1e-6, "the test must see another width"
    if outer == "orthogonal":
        np.testing.assert_allclose(drawn[outer, "same"][:, 3], SCALES[0], rtol=1e-12)


def test_a_network_of_width_a_million_is_drawn_without_an_array_of_that_size():
    small = ld.sample(jax.random.key(0), (64, 10**6, 10**6, 10), square, scale=1.0, outer="gaussian")
    assert [layer.core.shape for layer in small.layers] == [(74, 64), (74, 74), (10, 74)]
    gram = np.asarray(small.layers[0].core.T @ small.layers[0].core)
    np.testing.assert_allclose(gram, np.eye(64), atol=6e-3)  # entries scatter by 1/√h
    with pytest.raises(ValueError, match="there is no full network to lift to"):
        small.lift(small.layers)


def test_a_network_drawn_with_its_bases_lifts(x64):
    small = ld.sample(jax.random.key(0), (3, 20, 20, 2), square, scale=0.8, core_only=False)
    optimizer = ld.GradientDescent(0.05, weight_decay=0.1)
    start = small.lift(small.layers)
    np.testing.assert_allclose(start[1] @ start[1].T, 0.64 * np.eye(20), atol=1e-12)
    run = ld.reduced_descent(small, optimizer, steps=40, record_every=40)
    full = ld.gradient_descent(square, start, optimizer, steps=40, record_every=40)
    assert worst(small.lift(run.weights), full.weights) < 1e-13


# --- Compressed networks (3.9) --------------------------------------------------------------------------


@pytest.fixture
def target(x64):
    return ld.random_target(jax.random.key(0), (40, 36), jnp.asarray([3.0, 2.0, 1.2]))


@pytest.mark.parametrize(
    ("start", "ends"),
    [("spectral", (6, 6)), ("orthogonal", (9, 9)), ("gaussian", (9, 9)), ("bulging", (9, 9))],
)
def test_compressed_networks_reduce_from_any_start(target, start, ends):
    key = jax.random.key(1)
    weights = {
        "spectral": lambda: ld.compress(target, depth=3, rank=6, scale=0.3),
        "orthogonal": lambda: ld.orthogonal(key, (36, 6, 6, 40), scale=0.5),
        "gaussian": lambda: ld.gaussian(key, (36, 6, 6, 40), scale=0.5),
        "bulging": lambda: ld.orthogonal(key, (36, 6, 8, 6, 40), scale=0.7),
    }[start]()
    reduction = ld.reduce(weights, target)
    assert (reduction.layers[0].core.shape[1], reduction.layers[-1].core.shape[0]) == ends
    optimizer = ld.GradientDescent(0.02, alpha=1.5, momentum=0.6, weight_decay=0.02)
    problem = ld.factorization(target.dense())
    small = ld.reduced_descent(reduction, optimizer, steps=100, record_every=50)
    full = ld.gradient_descent(problem, weights, optimizer, steps=100, record_every=50)
    assert worst(full.weights, weights) > 0.1
    assert worst(reduction.lift(small.weights), full.weights) < 1e-14
    np.testing.assert_allclose(small.losses, full.losses, rtol=1e-12)


def test_compressed_networks_of_more_than_twice_the_rank_have_a_bulk(target):
    weights = ld.compress(target, depth=3, rank=20, scale=0.3)
    reduction = ld.reduce(weights, target)
    assert [layer.core.shape for layer in reduction.layers] == [(6, 6)] * 3
    small = ld.reduced_descent(reduction, ld.GradientDescent(0.02), steps=100)
    full = ld.gradient_descent(ld.factorization(target.dense()), weights, ld.GradientDescent(0.02), steps=100)
    assert worst(reduction.lift(small.weights), full.weights) < 1e-14


def test_gradient_flow_of_a_compressed_network_is_its_reductions(target):
    weights = ld.gaussian(jax.random.key(1), (36, 6, 6, 40), scale=0.5)
    reduction, times = ld.reduce(weights, target), jnp.linspace(0.0, 2.0, 3)
    small = ld.gradient_flow(reduction.problem, reduction.layers, times, rtol=1e-11)
    full = ld.gradient_flow(ld.factorization(target), weights, times, rtol=1e-11)
    assert worst(reduction.lift(small.weights), full.weights) < 1e-9  # both integrate to 1e-11 a step
