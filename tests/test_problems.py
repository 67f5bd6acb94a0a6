"""What a problem is: a class of one's own with its members goes wherever the library's do."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowdim_jax as ld
from lowdim_jax.problems import Problem
from lowdim_jax.trajectory import Status


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Weighted:
    """`½ Σ_ij c_i (W_ij − Φ_ij)²`: rows count differently."""

    target: jax.Array
    counts: jax.Array

    @property
    def shape(self):
        return self.target.shape

    def loss(self, weights):
        return jnp.sum(self.counts[:, None] * (ld.end_to_end(weights) - self.target) ** 2) / 2

    def surrogate(self, rank=None):
        return ld.linalg.leading_svd(self.counts[:, None] * self.target, rank)


@pytest.fixture
def own(x64):
    rng = np.random.default_rng(0)
    target = rng.standard_normal((9, 2)) @ rng.standard_normal((2, 7))
    return Weighted(jnp.asarray(target), jnp.asarray(rng.uniform(0.5, 1.5, 9)))


def test_every_problem_of_the_library_is_one(x64):
    target = ld.random_target(jax.random.key(0), (6, 5), jnp.array([2.0, 1.0]))
    reduction = ld.sample(jax.random.key(0), 20, jnp.array([2.0, 1.0]), depth=3, scale=0.1)
    measurements = ld.gaussian_measurements(jax.random.key(1), 30, (6, 5))
    completion = ld.completion(target.dense(), jnp.ones((6, 5), bool))
    for problem in (
        ld.factorization(target),
        ld.sensing(measurements, truth=target),
        completion,
        completion.observed(),
        reduction.problem,
    ):
        assert isinstance(problem, Problem), type(problem)
        top = np.linalg.norm(problem.surrogate().dense(), 2)
        np.testing.assert_allclose(ld.problems.top_singular_value(problem), top, rtol=1e-10)
        np.testing.assert_allclose(ld.max_learning_rate(problem, depth=2), 1 / top, rtol=1e-10)


def test_a_problem_of_ones_own_is_fitted_from_data_alone(own):
    fit = ld.fit(own, rank=2)
    np.testing.assert_allclose(ld.end_to_end(fit.weights), own.target, atol=1e-4)


def test_a_problem_of_ones_own_trains_as_its_loss_does(own):
    weights = ld.compress(own, depth=3, scale=0.3, rank=3)
    rule = ld.GradientDescent(0.2 * ld.max_learning_rate(own, depth=3))
    of_problem = ld.gradient_descent(own, weights, rule, steps=30)
    of_function = ld.gradient_descent(lambda w: own.loss(w), weights, rule, steps=30)
    np.testing.assert_array_equal(of_problem.losses, of_function.losses)
    stacked = jax.tree.map(lambda leaf: leaf[None], weights)
    swept = ld.sweep(own, stacked, rule, steps=30)
    np.testing.assert_allclose(swept.losses[0], of_problem.losses[-1], rtol=1e-12)
    times = jnp.linspace(0.0, 1.0, 4)
    flow = ld.gradient_flow(own, weights, times)
    assert flow.ok
    np.testing.assert_allclose(
        flow.losses, ld.gradient_flow(own.loss, weights, times).losses, rtol=1e-12
    )


def test_a_run_that_diverges_names_the_largest_rate_of_a_problem_however_it_was_built(own):
    weights = ld.compress(own, depth=3, scale=0.3, rank=3)
    edge = float(ld.max_learning_rate(own, depth=3))
    run = ld.gradient_descent(own, weights, ld.GradientDescent(9 * edge), steps=200)
    assert run.status == Status.DIVERGED
    assert f"stable below {edge:g}" in run.message


def test_what_is_neither_problem_nor_function_is_refused(own):
    with pytest.raises(ValueError, match="objective is a float, expected a problem or a function"):
        ld.gradient_descent(3.0, (own.target,), ld.GradientDescent(0.1), steps=1)
