"""Claims on sweeps: the same runs, exact step counts, one program, no waiting, padded ranks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowdim_jax as ld

SCALES = np.linspace(0.2, 0.6, 7)
ALPHAS = np.linspace(0.5, 3.0, 7)


def problem_of(seed=0):
    return ld.factorization(ld.random_target(jax.random.key(seed), (8, 6), jnp.array([3.0, 2.0])).dense())


def starts(problem, rank=2):
    return jax.vmap(lambda scale: ld.spectral(problem.target, rank=rank, depth=3, scale=scale))(SCALES)


def test_a_sweep_is_its_runs_one_by_one_whatever_the_number_of_lanes(x64):
    problem, optimizer = problem_of(), ld.GradientDescent(0.03, alpha=ALPHAS)
    weights = starts(problem)
    for lanes in (1, 3, 64):
        swept = ld.sweep(
            problem.loss, weights, optimizer, steps=500, tolerance=1e-8, lanes=lanes, check_every=20
        )
        for run in range(len(SCALES)):
            own = jax.tree.map(lambda leaf, run=run: leaf[run], weights)
            alone = ld.gradient_descent(
                problem.loss, own, ld.GradientDescent(0.03, alpha=ALPHAS[run]), steps=500, tolerance=1e-8
            )
            assert swept.steps[run] == alone.num_steps
            np.testing.assert_allclose(swept.losses[run], alone.losses[-1], rtol=1e-9)
            for a, b in zip(swept.weights, alone.weights, strict=True):
                np.testing.assert_allclose(a[run], b, atol=1e-11)
    assert len(set(swept.steps)) > 3


def test_each_run_may_have_its_own_problem_and_its_own_end(x64):
    problems = [problem_of(seed) for seed in range(7)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *problems)
    rates = np.array([0.03] * 5 + [1.0, 1e-5])  # one diverges, one is too slow
    swept = ld.sweep(
        ld.problems.Factorization.loss,
        jax.vmap(lambda p: ld.spectral(p, rank=2, depth=3, scale=0.4))(stacked.target),
        ld.GradientDescent(rates),
        data=stacked,
        steps=300,
        tolerance=1e-6,
        lanes=2,
    )
    assert (swept.losses[:5] <= 1e-6).all()
    assert not np.isfinite(swept.losses[5]) or swept.losses[5] > 1
    assert swept.steps[6] == 300
    weights = jax.tree.map(lambda leaf: leaf[3], swept.weights)
    np.testing.assert_allclose(problems[3].loss(weights), swept.losses[3], rtol=1e-9)


def test_a_network_padded_with_zeros_trains_as_the_one_it_was(x64):
    problem = problem_of()
    networks = [ld.spectral(problem.target, rank=rank, depth=3, scale=0.4) for rank in (2, 3, 4)]
    padded = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(ld.pad(network, 5) for network in networks))
    swept = ld.sweep(problem.loss, padded, ld.GradientDescent(0.03, alpha=2.0), steps=60)
    for run, network in enumerate(networks):
        alone = ld.gradient_descent(problem, network, ld.GradientDescent(0.03, alpha=2.0), steps=60)
        for a, b in zip(swept.weights, ld.pad(alone.weights, 5), strict=True):
            np.testing.assert_allclose(a[run], b, atol=1e-13)


def test_nothing_is_traced_again_for_other_numbers(x64):
    problem, traces = problem_of(), []

    def loss(weights):
        traces.append(1)
        return problem.loss(weights)

    def run(rate, tolerance):
        optimizer = ld.GradientDescent(rate, alpha=ALPHAS)
        return ld.sweep(loss, starts(problem), optimizer, steps=90, tolerance=tolerance, lanes=2)

    run(0.03, 1e-4)
    first = len(traces)
    run(0.02, 1e-3)
    assert len(traces) == first


def test_bad_settings_of_a_sweep_are_named():
    problem = problem_of()
    with pytest.raises(ValueError, match="lanes=0, expected at least 1"):
        ld.sweep(problem.loss, starts(problem), ld.GradientDescent(0.03), steps=5, lanes=0)
    with pytest.raises(ValueError, match="expected at least the hidden width 2"):
        ld.pad(ld.spectral(problem.target, rank=2, depth=3, scale=1.0), 1)
