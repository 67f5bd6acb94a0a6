"""Claims on the width that data hold: signs tell it, problems over devices agree, exact low rank counts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowdim_jax as ld
from lowdim_jax.compression import visible_components
from lowdim_jax.problems.noise import FLIPS


def gaussian(shape, values, seed=0):
    """A matrix with given singular values and random singular vectors, by NumPy."""
    rng = np.random.default_rng(seed)
    left, right = (np.linalg.qr(rng.standard_normal((side, len(values))))[0] for side in shape)
    return (left * np.asarray(values)) @ right.T


def mask(shape, fraction, seed=1):
    return np.random.default_rng(seed).random(shape) < fraction


@pytest.mark.parametrize(
    ("shape", "values", "fraction"),
    [
        ((300, 200), (10.0, 7.0, 5.0), 0.3),  # README's
        ((120, 100), (1.0,) * 5, 0.6),
        ((300, 300), (1.0,), 0.3),
    ],
)
def test_as_many_components_are_visible_as_the_matrix_has(x64, shape, values, fraction):
    problem = ld.completion(gaussian(shape, values), mask(shape, fraction))
    for form in (problem, problem.observed()):
        assert visible_components(form).above == len(values)
    weights = ld.compress(problem, depth=3, scale=0.1)
    assert ld.widths(weights)[1] == 2 * len(values)


@pytest.mark.slow
def test_a_thousand_rows_and_columns_show_their_rank(x64):
    shape = (1000, 1000)
    problem = ld.completion(gaussian(shape, (1.0,) * 5), mask(shape, 0.1)).observed()
    assert visible_components(problem).above == 5


def test_the_edge_is_the_norm_of_data_with_random_signs(x64):
    """Within the spread of three draws, by NumPy; and below the bound of Bandeira and van Handel."""
    matrix, seen = gaussian((60, 50), (3.0, 2.0)), mask((60, 50), 0.5)
    problem = ld.completion(matrix, seen)
    surrogate = np.where(seen, matrix, 0) / seen.mean()
    rng = np.random.default_rng(5)
    norms = [np.linalg.norm(surrogate * rng.choice([-1, 1], seen.shape), 2) for _ in range(40)]
    bound = np.sqrt((surrogate**2).sum(1).max()) + np.sqrt((surrogate**2).sum(0).max())
    for form in (problem, problem.observed()):
        edge = form.noise_edge()
        assert min(norms) < edge < max(norms) * 1.02
        assert 0.4 * bound < edge < bound
        assert edge == form.noise_edge() != form.noise_edge(seed=1)


def test_the_edge_of_sensing_is_that_of_labels_with_random_signs(x64):
    target = gaussian((15, 12), (3.0, 2.0))
    stack = np.asarray(ld.gaussian_measurements(jax.random.key(0), 400, (15, 12)))
    problem = ld.sensing(stack, truth=target, curvature=1.0)
    labels, rng = np.einsum("mij,ij->m", stack, target), np.random.default_rng(5)
    norms = [
        np.linalg.norm(np.einsum("m,mij->ij", labels * rng.choice([-1, 1], 400), stack), 2) for _ in range(40)
    ]
    assert min(norms) < problem.noise_edge() < max(norms) * 1.02
    assert visible_components(problem).above == 2


def test_pure_noise_is_above_the_edge_as_often_as_one_draw_is_the_largest(x64):
    """Exchangeable norms: a rate of `1 / (FLIPS + 1)`; four standard deviations of 200 trials."""
    above, rng = 0, np.random.default_rng(0)
    for seed in range(200):
        noise = rng.standard_t(3, (8, 9)) * np.exp(rng.standard_normal((8, 1)))
        problem = ld.completion(noise, mask((8, 9), 0.7, seed))
        surrogate = np.where(np.asarray(problem.mask), noise, 0) / float(problem.fraction)
        above += np.linalg.norm(surrogate, 2) > problem.noise_edge(seed=seed)
    rate = 1 / (FLIPS + 1)
    assert abs(above / 200 - rate) < 4 * (rate * (1 - rate) / 200) ** 0.5


def test_rounding_is_not_counted_where_all_entries_are_observed(x64):
    """As of mathnet-numerics issue 334: the rank of a fully observed matrix of rank one."""
    matrix = np.outer(np.arange(1.0, 41), np.arange(1.0, 31))
    for problem in (ld.factorization(matrix), ld.completion(matrix), ld.completion(matrix).observed()):
        assert ld.widths(ld.compress(problem, depth=3, scale=0.1))[1] == 2


def test_small_components_show_when_large_ones_are_taken_off(x64):
    matrix = gaussian((60, 60), (1.0, 0.1, 0.01))
    noise = np.random.default_rng(3).standard_normal((60, 60))
    assert visible_components(ld.completion(matrix)).above == 3
    assert visible_components(ld.completion(matrix + 1e-4 * noise)).above == 3
    assert visible_components(ld.completion(matrix + 3e-3 * noise)).above == 2


def test_what_weights_leave_is_a_problem_of_the_same_kind(x64):
    matrix, seen = gaussian((12, 9), (3.0, 2.0)), mask((12, 9), 0.6)
    network = ld.gaussian(jax.random.key(0), (9, 3, 12), scale=0.5)
    product = np.asarray(network[1] @ network[0])
    stack = np.random.default_rng(0).standard_normal((30, 12, 9))
    completion = ld.completion(matrix, seen)
    problems = {
        "dense": completion,
        "entries": completion.observed(),
        "sensing": ld.sensing(stack, truth=matrix),
        "functions": ld.sensing(
            (lambda w: jnp.einsum("mij,ij->m", stack, w), lambda y: jnp.einsum("m,mij->ij", y, stack)),
            truth=matrix, shape=(12, 9),
        ),
        "target": ld.factorization(matrix),
        "factored": ld.factorization(ld.linalg.svd(matrix).truncate(2)),
    }
    zero = tuple(jnp.zeros_like(layer) for layer in network)
    for problem in problems.values():
        left = problem.residual(network)
        np.testing.assert_allclose(left.loss(zero), problem.loss(network), rtol=1e-10)
        np.testing.assert_allclose(problem.scaled(3.0).loss(zero), 9 * problem.loss(zero), rtol=1e-10)
    left = completion.residual(network)
    np.testing.assert_allclose(left.values, np.where(seen, matrix - product, 0), atol=1e-12)


@pytest.mark.parametrize("kind", ["dense", "entries", "stack", "functions"])
def test_splits_are_two_parts_whose_losses_add_up(x64, kind):
    """`p ℓ` is a sum over data, so those of the parts add up to the whole's."""
    matrix, seen = gaussian((12, 9), (3.0, 2.0)), mask((12, 9), 0.6)
    stack = np.random.default_rng(0).standard_normal((40, 12, 9))
    problem = {
        "dense": lambda: ld.completion(matrix, seen),
        "entries": lambda: ld.completion(matrix, seen).observed(),
        "stack": lambda: ld.sensing(stack, truth=matrix),
        "functions": lambda: ld.sensing(
            (lambda w: jnp.einsum("mij,ij->m", stack, w), lambda y: jnp.einsum("m,mij->ij", y, stack)),
            truth=matrix, shape=(12, 9),
        ),
    }[kind]()
    network = ld.gaussian(jax.random.key(0), (9, 3, 12), scale=0.5)
    parts = problem.split(0.25, seed=3)
    assert parts[0].count + parts[1].count == problem.count
    assert parts[1].count == round(0.25 * problem.count)
    together = sum(part.count * float(part.loss(network)) for part in parts)
    np.testing.assert_allclose(together, problem.count * float(problem.loss(network)), rtol=1e-10)
    again = problem.split(0.25, seed=3)[1]
    np.testing.assert_array_equal(again.loss(network), parts[1].loss(network))
    with pytest.raises(ValueError, match=r"fraction=0\.0 of"):
        problem.split(0.0)
