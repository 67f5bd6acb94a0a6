"""What has to hold on several devices; `test_sharded.py` runs this file in a process that has eight."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from benchmarks.collectives import collectives

import lowdim_jax as ld
from lowdim_jax import distributed
from lowdim_jax._host import as_pytree
from lowdim_jax.checkpoints import Checkpoints
from lowdim_jax.descent import initial_state

SHAPE = (37, 23)  # rows that do not come out even on 2, 4 or 8 devices
DEVICES = (1, 2, 4, 8)

pytestmark = pytest.mark.usefixtures("x64")


def devices(count, across=1):
    assert jax.device_count() == 8
    return distributed.mesh(jax.devices()[:count], across=across)


def entries(shape=SHAPE, *, without=()):
    """60% of the entries of a matrix of rank 3, none in the rows that are left out."""
    rng = np.random.default_rng(0)
    truth = rng.standard_normal((shape[0], 3)) @ rng.standard_normal((3, shape[1]))
    mask = rng.random(shape) < 0.6
    mask[list(without)] = False
    rows, columns = np.nonzero(mask)
    return rows, columns, truth[rows, columns]


def on_devices(count, shape=SHAPE, across=1, **settings):
    mesh = devices(count, across)
    return distributed.sharded_completion(*entries(shape, **settings), shape=shape, mesh=mesh)


def network(rank, depth=3) -> Any:
    rng = np.random.default_rng(1)
    widths = (SHAPE[1], *(rank,) * (depth - 1), SHAPE[0])
    return tuple(rng.standard_normal(shape) for shape in zip(widths[1:], widths, strict=False))


@jax.jit
def loss_of(problem, weights):
    """One program: without it, every operation on the mesh is one."""
    return problem.loss(weights)


def assert_same_run(run, reference, weights):
    np.testing.assert_allclose(run.losses, reference.losses, rtol=1e-10)
    for layer, expected in zip(weights, reference.weights, strict=True):
        np.testing.assert_allclose(layer, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("count", "across", "momentum"),
    [(1, 1, None), (2, 1, None), (4, 1, None), (8, 1, 0.5), (8, 2, None), (8, 8, 0.5)],
)
def test_completion_trains_as_on_one_device(count, across, momentum):
    one = ld.observed_completion(*entries(without=range(5, 11)), shape=SHAPE)
    problem = on_devices(count, across=across, without=range(5, 11))  # of eight, the second has no entry
    weights = ld.compress(one, depth=3, scale=0.5, rank=6)
    optimizer = ld.GradientDescent(
        0.4 * ld.max_learning_rate(one, depth=3, alpha=2.0), alpha=2.0, momentum=momentum
    )
    reference = ld.gradient_descent(one.loss, weights, optimizer, steps=50)
    run = ld.gradient_descent(problem, problem.place(weights), optimizer, steps=50)
    assert reference.losses[-1] < 0.5 * reference.losses[0]
    assert_same_run(run, reference, problem.gather(run.weights))
    parts = [layer.sharding.shard_shape(layer.shape) for layer in (run.weights[0], run.weights[-1])]
    assert parts == [(6, -(-23 // across)), (-(-37 * across // count), 6)]


def test_rows_that_come_out_even_are_not_filled_up():
    problem = on_devices(8, (40, 23))
    assert problem.padded_shape == problem.shape == (40, 23)


def test_a_device_has_the_entries_of_its_own_rows():
    rows, columns, values = entries()
    groups = on_devices(8).blocks.by_row
    for device, (others, kept) in enumerate(
        zip(groups.others.addressable_shards, groups.values.addressable_shards, strict=True)
    ):
        seen = np.asarray(others.data) >= 0
        own = rows // 5 == device
        np.testing.assert_array_equal(np.asarray(others.data)[seen], columns[own])
        np.testing.assert_array_equal(np.asarray(kept.data)[seen], values[own])


@pytest.mark.parametrize("count", DEVICES)
def test_sensing_trains_as_on_one_device(count):
    key, m, shape = jax.random.key(1), 301, (12, 10)
    target = ld.random_target(jax.random.key(0), shape, jnp.array([3.0, 2.0])).dense()
    measurements = ld.gaussian_measurements(key, m, shape)
    spread = distributed.gaussian_measurements(key, m, shape, mesh=devices(count))
    np.testing.assert_array_equal(spread[:m], measurements)
    np.testing.assert_array_equal(spread[m:], 0)
    assert len(spread.addressable_shards[0].data) == -(-m // count)

    one, problem = ld.sensing(measurements, truth=target), ld.sensing(spread, truth=target)
    weights = ld.compress(one, depth=3, scale=0.3, rank=4)
    optimizer = ld.GradientDescent(0.3 * ld.max_learning_rate(one, depth=3))
    reference = ld.gradient_descent(one.loss, weights, optimizer, steps=50)
    run = ld.gradient_descent(problem, weights, optimizer, steps=50)
    assert reference.losses[-1] < 0.5 * reference.losses[0]
    assert_same_run(run, reference, run.weights)


def test_measurements_of_ones_own_are_spread_with_their_labels():
    rng = np.random.default_rng(0)
    matrices, labels = rng.standard_normal((29, 4, 5)), rng.standard_normal(29)
    parts = (distributed.spread(part, length=29, mesh=devices(8)) for part in (matrices, labels))
    problem, one = ld.sensing(*parts), ld.sensing(matrices, labels)
    np.testing.assert_allclose(problem.surrogate_matrix(), one.surrogate_matrix(), rtol=1e-12)
    np.testing.assert_allclose(
        ld.max_learning_rate(problem, depth=3), ld.max_learning_rate(one, depth=3), rtol=1e-12
    )
    weights = ld.compress(one, depth=2, scale=0.3, rank=2)
    np.testing.assert_allclose(loss_of(problem, weights), one.loss(weights), rtol=1e-12)


def test_a_step_on_a_mesh_down_and_across_sums_each_factor_over_those_who_share_it():
    """4 × 2 devices: the columns' factor over 4, the rows' over 2, the middle layer over all."""
    problem, rank = on_devices(8, across=2), 4
    step = jax.jit(jax.value_and_grad(problem.loss)).lower(problem.place(network(rank))).compile()
    columns, rows = -(-SHAPE[1] // 2), -(-SHAPE[0] // 4)
    counted = collectives(step)
    assert set(counted) == {"all-reduce"}
    assert counted["all-reduce"] <= 8 * (columns * rank + rows * rank + 2 * rank**2 + 1)


@pytest.mark.parametrize("depth", [2, 3, 4])
def test_a_completion_step_sums_the_column_factor_and_nothing_else(depth):
    problem, rank = on_devices(8), 4
    weights = problem.place(network(rank, depth))
    step = jax.jit(jax.value_and_grad(problem.loss)).lower(weights).compile()
    numbers = SHAPE[1] * rank + (rank**2 if depth > 2 else 0) + 1
    assert collectives(step) == {"all-reduce": 8 * numbers}

    @jax.jit
    def train(weights):
        return ld.gradient_descent(problem, weights, ld.GradientDescent(0.1, momentum=0.5), steps=9)

    first_and_in_the_loop = 2 * 8 * numbers
    assert collectives(train.lower(weights).compile()) == {"all-reduce": first_and_in_the_loop}


def test_a_sensing_step_sums_the_gradient_and_leaves_the_measurements_where_they_are():
    shape = (12, 10)
    stack = distributed.gaussian_measurements(jax.random.key(1), 301, shape, mesh=devices(8))
    problem = ld.sensing(stack, truth=jnp.ones(shape))
    weights = ld.compress(problem, depth=3, scale=0.3, rank=4)

    def step(problem, weights):
        return jax.value_and_grad(problem.loss)(weights)

    compiled = jax.jit(step).lower(problem, weights).compile()
    assert collectives(compiled) == {"all-reduce": 8 * (12 * 10 + 1)}


def test_counting_finds_an_array_that_is_gathered():
    spread = distributed.spread(np.ones((16, 3)), length=16, mesh=devices(8))
    everywhere = jax.sharding.NamedSharding(devices(8), jax.sharding.PartitionSpec())
    gather = jax.jit(lambda array: array, out_shardings=everywhere).lower(spread).compile()
    assert collectives(gather) == {"all-gather": 8 * 16 * 3}


def test_the_surrogates_leading_components_are_those_of_the_dense_matrix():
    one = ld.observed_completion(*entries(), shape=SHAPE)
    dense = one.surrogate_matrix().toarray()
    u, sigma, vt = np.linalg.svd(dense, full_matrices=False)
    for problem in (on_devices(8, across=4), on_devices(8)):
        assert_leading(problem.surrogate(4), u, sigma, vt)
    np.testing.assert_allclose(
        ld.max_learning_rate(problem, depth=3), ld.max_learning_rate(one, depth=3), rtol=1e-12
    )
    np.testing.assert_allclose(problem.surrogate_error(), one.surrogate_error(), rtol=1e-12)


def assert_leading(parts, u, sigma, vt):
    np.testing.assert_allclose(parts.singular_values, sigma[:4], rtol=1e-12)
    left, right = np.asarray(parts.left), np.asarray(parts.right)
    np.testing.assert_array_equal(left[SHAPE[0] :], 0)
    np.testing.assert_array_equal(right[SHAPE[1] :], 0)
    np.testing.assert_allclose(left.T @ left, np.eye(4), atol=1e-13)
    for k in range(4):
        np.testing.assert_allclose(
            np.outer(left[: SHAPE[0], k], right[: SHAPE[1], k]), np.outer(u[:, k], vt[k]), atol=1e-12
        )


def test_a_spectral_start_sums_thin_products_and_gathers_small_factors():
    compiled = jax.jit(lambda problem: problem.surrogate(4)).lower(on_devices(8)).compile()
    columns, block = 14, 5
    assert collectives(compiled) == {
        "all-reduce": 8 * SHAPE[1] * columns,  # in every iteration
        "all-gather": 8 * 8 * block * columns,  # once
    }


def test_subspace_iteration_converges_at_the_rate_its_docstring_states():
    """Of a spectrum 0.8^k the error falls by (σ_{k+1} / σ_1)² = 0.8^26 an iteration."""
    rng = np.random.default_rng(0)
    shape = (40, 30)
    u, v = (np.linalg.qr(rng.standard_normal((side, 30)))[0] for side in shape)
    matrix = (u * 0.8 ** np.arange(30)) @ v.T
    rows, columns = np.indices(shape).reshape(2, -1)
    problem = distributed.sharded_completion(rows, columns, matrix.ravel(), shape=shape, mesh=devices(8))
    errors = []
    for iterations in (0, 1, 2):
        first = problem.surrogate(3, iterations=iterations).right[:, 0]
        errors.append(float(jnp.linalg.norm(first - v[:, 0] * jnp.sign(first @ v[:, 0]))))
    assert errors[1] / errors[0] < 10 * 0.8**26
    assert errors[2] / errors[1] < 10 * 0.8**26


def test_a_spectral_start_is_the_same_on_every_number_of_devices():
    one, eight = on_devices(1), on_devices(8)
    networks = [problem.gather(ld.compress(problem, depth=3, scale=0.3, rank=4)) for problem in (one, eight)]
    for layer, expected in zip(*networks, strict=True):
        np.testing.assert_allclose(layer, expected, atol=1e-12)


def test_place_and_gather_are_inverse():
    problem = on_devices(8)
    weights = network(5)
    placed = problem.place(weights)
    assert placed[-1].shape == (40, 5)
    for layer, expected in zip(problem.gather(placed), weights, strict=True):
        np.testing.assert_array_equal(layer, expected)


def test_single_precision_stays_single():
    rows, columns, values = entries()
    problem = distributed.sharded_completion(
        rows, columns, values.astype(np.float32), shape=SHAPE, mesh=devices(2)
    )
    weights = problem.place([layer.astype(np.float32) for layer in network(3)])
    loss = jax.eval_shape(problem.loss, weights)
    left = jax.eval_shape(lambda problem: problem.surrogate(3).left, problem)
    assert problem.dtype == loss.dtype == left.dtype == np.float32


def test_a_checkpoint_restores_bitwise_on_other_numbers_of_devices(tmp_path):
    saved = None
    start = network(6)
    for count in (8, 3, 1):
        problem = on_devices(count)
        weights = problem.place(start if saved is None else [0 * layer for layer in start])
        state = jax.jit(initial_state)(
            as_pytree(problem.loss), ld.GradientDescent(0.1, momentum=0.5), weights
        )
        checkpoints = Checkpoints(tmp_path)
        if saved is None:
            checkpoints.save(0, {"state": state, "best": state.weights}, {"shape": SHAPE})
            saved = problem.gather(state.gradient)
        restored = checkpoints.restore({"state": state, "best": state.weights})["state"]
        assert restored.weights[-1].sharding == state.weights[-1].sharding
        for layer, expected in zip(problem.gather(restored.gradient), saved, strict=True):
            np.testing.assert_array_equal(layer, expected)
        checkpoints.close()


def test_bad_input_is_named():
    rows, columns, values = entries()
    two = devices(2)
    with pytest.raises(ValueError, match="from 0 to 36, but this process has the rows from 0 to 30"):
        distributed.sharded_completion(rows, columns, values, shape=(30, 23), mesh=two)
    with pytest.raises(ValueError, match="no entry is observed"):
        distributed.sharded_completion([], [], [], shape=SHAPE, mesh=two)
    with pytest.raises(ValueError, match="given more than once"):
        distributed.sharded_completion([1, 1], [2, 2], [0.5, 0.5], shape=SHAPE, mesh=two)
    problem = on_devices(2)
    with pytest.raises(ValueError, match="rank=24, expected 1 ≤ rank ≤ 23"):
        problem.surrogate(24)
    with pytest.raises(ValueError, match="scale=-1"):
        ld.compress(problem, depth=3, scale=-1, rank=3)
    with pytest.raises(ValueError, match="maps 1 inputs to 37 outputs, but the target has shape"):
        problem.loss([jnp.asarray(layer[:, :1]) for layer in network(1)])
    with pytest.raises(ValueError, match="across=3, expected a divisor of the number of devices, 8"):
        devices(8, across=3)
    with pytest.raises(ValueError, match="rows has 5 of them, expected those from 0 to 6"):
        distributed.spread(np.ones((5, 2)), length=6, mesh=two)


def test_the_edge_is_the_norm_of_the_surrogate_with_random_signs():
    """Within the spread of NumPy's draws, and the same on every mesh."""
    rows, columns, values = entries()
    surrogate = np.zeros(SHAPE)
    surrogate[rows, columns] = values / (len(values) / (SHAPE[0] * SHAPE[1]))
    rng = np.random.default_rng(5)
    norms = [np.linalg.norm(surrogate * rng.choice([-1, 1], SHAPE), 2) for _ in range(60)]
    edges = [problem.noise_edge() for problem in (on_devices(8), on_devices(1), on_devices(8, across=4))]
    np.testing.assert_allclose(edges, edges[0], rtol=1e-6)
    assert np.median(norms) < edges[0] < max(norms) * 1.02  # the largest of three draws
    assert on_devices(2).noise_edge(seed=7) != edges[0]


def test_entries_are_held_out_the_same_on_every_mesh_and_each_is_in_one_part():
    _, _, values = entries()
    weights = network(3)
    losses = []
    for problem in (on_devices(1), on_devices(8), on_devices(8, across=2)):
        train, held = problem.split(0.25, seed=3)
        assert train.count + held.count == problem.count == len(values)
        assert 0.15 < held.count / problem.count < 0.35
        losses.append([float(loss_of(part, part.place(weights))) * part.fraction for part in (train, held)])
        np.testing.assert_allclose(sum(losses[-1]), loss_of(problem, weights) * problem.fraction, rtol=1e-12)
    np.testing.assert_allclose(losses, [losses[0]] * 3, rtol=1e-12)
    with pytest.raises(ValueError, match="leaves a part without any"):
        on_devices(2).split(1e-9)


def test_what_a_network_leaves_is_a_problem_of_the_differences():
    rows, columns, values = entries()
    weights = network(2)
    matrix = weights[2] @ weights[1] @ weights[0]
    problem = on_devices(8, across=2).residual(weights)
    expected = np.sum((values - matrix[rows, columns]) ** 2) / 2
    nothing: Any = [0 * layer for layer in weights]
    np.testing.assert_allclose(loss_of(problem, nothing) * problem.fraction, expected, rtol=1e-12)
    scaled = on_devices(8, across=2).scaled(3.0)
    squares = loss_of(scaled, nothing) * scaled.fraction
    np.testing.assert_allclose(squares, 4.5 * np.sum(values**2), rtol=1e-12)
    np.testing.assert_allclose(scaled.magnitude, 3 * np.abs(values).max(), rtol=1e-15)


@pytest.mark.parametrize(("count", "across"), [(1, 1), (8, 1), (8, 4)])
def test_effects_of_rows_and_columns_are_those_of_alternating_means(count, across):
    rows, columns, values = entries(without=(3, 4))
    mean, of_rows, of_columns = np.mean(values), np.zeros(SHAPE[0]), np.zeros(SHAPE[1])
    for _ in range(15):  # means of n entries, times n / (n + 5)
        for j in range(SHAPE[1]):
            left = (values - mean - of_rows[rows])[columns == j]
            of_columns[j] = left.sum() / (len(left) + 5)
        for i in range(SHAPE[0]):
            left = (values - mean - of_columns[columns])[rows == i]
            of_rows[i] = left.sum() / (len(left) + 5)
    problem = on_devices(count, across=across, without=(3, 4))
    first, last = problem.gather(distributed.main_effects(problem))
    np.testing.assert_allclose(last @ first, mean + of_rows[:, None] + of_columns, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("across", [1, 2])
def test_a_problem_over_devices_is_fitted_as_on_one_device(across):
    one, problem = ld.observed_completion(*entries(), shape=SHAPE), on_devices(8, across=across)
    reference, fit = (ld.fit(each, rank=3, steps=100, finish=False) for each in (one, problem))
    np.testing.assert_allclose(fit.losses, reference.losses, rtol=1e-8)
    if across == 1:
        return
    fit = ld.fit(problem)
    assert fit.settings["rank"] == 3
    assert fit.converged
    assert fit.misfit < 1e-10
    assert fit.weights[-1].sharding.shard_shape(fit.weights[-1].shape)[0] < SHAPE[0] / 2


def test_noisy_data_over_devices_stop_a_run_where_those_held_out_do():
    rows, columns, values = entries()
    noisy = values + 0.3 * np.random.default_rng(1).standard_normal(len(values))
    problem = distributed.sharded_completion(rows, columns, noisy, shape=SHAPE, mesh=devices(4))
    train, held = problem.split(0.2)
    stopped = ld.fit(train, rank=8, depth=2, validate=held.loss, finish=False, steps=3000, check_every=25)
    assert stopped.best_step < stopped.steps[-1] < 3000
    assert np.nanmin(stopped.validation) < 0.2 * stopped.validation[0]
