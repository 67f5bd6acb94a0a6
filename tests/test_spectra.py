"""Claims on measurements: angles, alignment, times and ranks."""

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

import lowdim_jax as ld
from lowdim_jax import linalg, spectra


def network(spaces, seed=0):
    rng = np.random.default_rng(seed)
    return tuple(
        jnp.asarray(rng.standard_normal((after, before)), float)
        for before, after in pairwise(spaces)
    )


@pytest.mark.parametrize("angle", [0.0, 1e-12, 1e-10, 1e-5, 0.3, np.pi / 4, 1.2, np.pi / 2 - 1e-10])
def test_planes_at_a_known_angle_are_measured_to_rounding(x64, angle):
    q = np.linalg.qr(np.random.default_rng(0).standard_normal((9, 4)))[0]
    a = q[:, :2]
    b = np.stack([q[:, 0], np.cos(angle) * q[:, 1] + np.sin(angle) * q[:, 2]], axis=1)
    mix = np.array([[2.0, 1.0], [0.5, 3.0]])  # the space counts, not its basis
    measured = linalg.subspace_angles(jnp.asarray(a), jnp.asarray(b @ mix))
    np.testing.assert_allclose(measured, [angle, 0.0], atol=2e-15)


def test_angles_are_scipys_whatever_the_number_of_columns(x64):
    rng = np.random.default_rng(0)
    for k, m in [(3, 3), (2, 4), (4, 2), (1, 1)]:
        a, b = rng.standard_normal((9, k)), rng.standard_normal((9, m))
        expected = scipy.linalg.subspace_angles(a, b)
        measured = linalg.subspace_angles(jnp.asarray(a), jnp.asarray(b))
        assert measured.shape == (min(k, m),)
        np.testing.assert_allclose(measured, expected, atol=1e-13)


def test_a_mix_of_angles_is_accurate_at_both_ends(x64):
    angles = np.array([np.pi / 2 - 1e-9, 1.0, 0.5, 1e-9])
    a = np.eye(8, 4)
    b = np.concatenate([np.diag(np.cos(angles)), np.diag(np.sin(angles))])
    measured = linalg.subspace_angles(jnp.asarray(a), jnp.asarray(b))
    np.testing.assert_allclose(measured, angles, atol=1e-15)


@pytest.mark.parametrize("spaces", [(7, 3, 8), (7, 3, 5, 8), (7, 8, 8), (7, 8), (6, 2, 6, 2, 6)])
def test_network_spectra_are_those_of_the_dense_matrix(x64, spaces):
    weights = network(spaces)
    u, s, vt = np.linalg.svd(np.asarray(ld.end_to_end(weights)), full_matrices=False)
    rank = min(spaces)
    parts = spectra.network_svd(weights)
    np.testing.assert_allclose(parts.singular_values[:rank], s[:rank], rtol=1e-11)
    np.testing.assert_allclose(parts.dense(), ld.end_to_end(weights), atol=1e-11)
    np.testing.assert_allclose(spectra.singular_values(weights, rank=2), s[:2], rtol=1e-11)
    target = ld.random_target(jax.random.key(0), (spaces[-1], spaces[0]), jnp.array([2.0, 1.0]))
    measured = spectra.alignment(weights, target)
    np.testing.assert_allclose(measured.singular_values, s[:2], rtol=1e-11)
    np.testing.assert_allclose(
        measured.left, np.abs(np.sum(u[:, :2] * np.asarray(target.left), axis=0)), atol=1e-11
    )
    np.testing.assert_allclose(
        measured.right, np.abs(np.sum(vt[:2].T * np.asarray(target.right), axis=0)), atol=1e-11
    )
    expected = np.diag(np.asarray(target.left.T @ ld.end_to_end(weights) @ target.right))
    np.testing.assert_allclose(spectra.modes(weights, target), expected, atol=1e-11)


def test_modes_see_what_is_below_the_rounding_of_the_largest_value_in_single_precision():
    target = ld.LowRank(jnp.eye(6, 2), jnp.array([20.0, 10.0]), jnp.eye(6, 2))
    values = jnp.array([20.0, 1e-12])
    weights = (jnp.eye(2, 6), jnp.eye(6, 2) * values[None])
    np.testing.assert_allclose(spectra.modes(weights, target), values, rtol=1e-6)


def test_components_are_fitted_when_value_and_vectors_are():
    targets = jnp.array([2.0, 1.0])
    ones = jnp.ones((5, 2))
    sigma = jnp.array([[2.0, 1.0], [2.09, 1.06], [1.91, 0.94], [2.0, 1.0], [2.0, 1.0]])
    left = ones.at[3, 0].set(0.94)
    right = ones.at[4, 1].set(0.96).at[4, 0].set(0.949)
    fitted = spectra.is_fitted(spectra.Alignment(sigma, left, right), targets)
    expected = [[True, True], [True, False], [True, False], [False, True], [False, True]]
    np.testing.assert_array_equal(fitted, expected)
    loose = spectra.is_fitted(
        spectra.Alignment(sigma, left, right), targets, value=0.1, vector=0.1
    )
    assert np.all(loose)
    np.testing.assert_array_equal(
        spectra.dormant(jnp.array([[0.1, 0.06], [0.11, 0.04]]), targets),
        [[True, False], [False, True]],
    )


def test_first_time_is_from_then_on_to_the_end():
    t = jnp.array([0, 10, 20, 30])
    holds = jnp.array(
        [
            [True, True, False, False],
            [True, False, True, False],
            [True, True, True, False],
            [True, True, False, True],
        ]
    )
    np.testing.assert_array_equal(spectra.first_time(t, holds), [0.0, 20.0, np.inf, 30.0])


def test_crossing_times_are_interpolated():
    t = jnp.array([0.0, 1.0, 3.0, 4.0])
    values = jnp.array(
        [[0.0, 0.5, 0.0, 0.0], [0.4, 1.0, 0.0, 0.5], [0.8, 2.0, 0.1, 0.5], [0.0, 3.0, 0.2, 0.4]]
    )
    np.testing.assert_allclose(
        spectra.crossing_time(t, values, 0.5), [1.5, 0.0, np.inf, 1.0], rtol=1e-6
    )
    np.testing.assert_allclose(
        spectra.crossing_time(t, values, jnp.array([0.2, 2.5, 0.15, 0.25])),
        [0.5, 3.5, 3.5, 0.5],
        rtol=1e-6,
    )
    steps = jnp.array([0, 10, 20, 30])
    np.testing.assert_allclose(spectra.crossing_time(steps, values, 0.2)[0], 5.0)
    one = spectra.crossing_time(jnp.array([7.0]), jnp.array([[1.0, 0.0]]), 0.5)
    np.testing.assert_array_equal(one, [7.0, np.inf])


def test_ranks_are_between_one_and_the_number_of_values(x64):
    flat, one = jnp.full(5, 0.3), jnp.array([2.0, 0.0, 0.0, 0.0, 0.0])
    for rank in (spectra.effective_rank, spectra.stable_rank):
        np.testing.assert_allclose(rank(flat), 5.0)
        np.testing.assert_allclose(rank(one), 1.0)
        np.testing.assert_allclose(rank(jnp.stack([flat, one])), [5.0, 1.0])
        np.testing.assert_allclose(rank(7 * flat), 5.0)
    sigma = np.array([3.0, 1.0])
    p = sigma / 4
    np.testing.assert_allclose(
        spectra.effective_rank(jnp.asarray(sigma)), np.exp(-np.sum(p * np.log(p)))
    )
    np.testing.assert_allclose(spectra.stable_rank(jnp.asarray(sigma)), 10 / 9)
    for rank in (spectra.effective_rank, spectra.stable_rank):
        assert np.isfinite(rank(jnp.zeros(3)))
        assert np.all(np.isfinite(jax.grad(rank)(one)))


def test_measurements_record_along_a_run(x64):
    target = ld.random_target(jax.random.key(0), (9, 8), jnp.array([3.0, 1.0]))
    run = ld.gradient_descent(
        ld.factorization(target).loss,
        ld.compress(target, depth=3, scale=0.2, rank=3),
        ld.GradientDescent(0.05),
        steps=400,
        record_every=5,
        observe=lambda w: spectra.alignment(w, target),
    )
    times = spectra.first_time(run.steps, spectra.is_fitted(run.observed, target.singular_values))
    assert 0 < times[0] < times[1] < 400
    row = int(times[0]) // 5
    sigma = run.observed.singular_values[:, 0]
    assert abs(sigma[row] - 3) <= 0.15 < abs(sigma[row - 1] - 3)


def test_a_target_of_other_shape_is_named():
    target = ld.random_target(jax.random.key(0), (5, 4), jnp.array([2.0, 1.0]))
    for measure in (spectra.alignment, spectra.modes):
        with pytest.raises(ValueError, match=r"\(5, 4\)"):
            measure(network((7, 3, 8)), target)


def test_angles_between_spaces_of_different_dimension_are_named():
    with pytest.raises(ValueError, match=r"\(4, 2\).*\(5, 2\)"):
        linalg.subspace_angles(jnp.eye(4, 2), jnp.eye(5, 2))
