"""Predictions for the original network and for partial measurements, against other ways to get them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad

import lowdim_jax as ld
from lowdim_jax import theory
from theory_checks.reference import modes, networks


@pytest.mark.parametrize(
    ("depth", "ratio"), [(3, 1.199679), (4, 1.278465), (5, 1.320003), (6, 1.345540), (10, 1.391934)]
)
def test_escape_ratios_are_those_of_the_statement(depth, ratio):
    assert theory.escape_ratio(depth) == pytest.approx(ratio, abs=1e-6)


@pytest.mark.parametrize("depth", [3, 4, 7])
def test_the_escape_ratio_makes_the_principal_value_vanish(depth):
    """The statement's own condition, by numerical integration with a pole: SciPy's Cauchy weight."""
    k = theory.escape_ratio(depth) ** (1 / (depth - 2))
    value, _ = quad(lambda s: -(s ** (depth - 1)) / (1 + s), 0, k, weight="cauchy", wvar=1.0)
    assert value == pytest.approx(0, abs=1e-10)


def test_escape_ratios_grow_to_the_zero_of_the_logarithmic_integral():
    ratios = [theory.escape_ratio(depth) for depth in (3, 10, 100, 1000)]
    limit = theory.escape_ratio(np.inf)
    assert limit == pytest.approx(1.4513692348833810, abs=1e-12)  # the Ramanujan–Soldner constant
    assert np.all(np.diff([*ratios, limit]) > 0)
    assert ratios[-1] == pytest.approx(limit, abs=1e-3)


@pytest.mark.parametrize("depth", [2, 2.5, -1])
def test_depths_without_an_escape_ratio_are_refused(depth):
    with pytest.raises(ValueError, match=f"depth={depth}"):
        theory.escape_ratio(depth)


def test_the_bulk_is_that_of_a_network_of_its_own(x64):
    """Without a target, every singular value of identity layers is bulk: NumPy multiplies matrices."""
    rate, decay, depth = 0.02, 0.3, 3
    layers = [0.7 * np.eye(2) for _ in range(depth)]
    expected = [0.7]
    for _ in range(20):
        gradients = [
            np.linalg.multi_dot([*(w.T for w in layers[k + 1 :]), layers[2] @ layers[1] @ layers[0]]
                                + [w.T for w in layers[:k]])
            for k in range(depth)
        ]  # fmt: skip
        layers = [w - rate * (g + decay * w) for w, g in zip(layers, gradients, strict=True)]
        expected.append(layers[0][0, 0])
    found = theory.bulk_descent(0.7, depth=depth, learning_rate=rate, steps=20, weight_decay=decay)
    np.testing.assert_allclose(found, expected, rtol=1e-14)
    many = theory.bulk_descent(jnp.array([0.7, 0.1]), depth=depth, learning_rate=rate, steps=20)
    assert many.shape == (21, 2)


@pytest.mark.parametrize("depth", [2, 3, 4])
def test_the_sharpness_on_the_way_is_the_top_eigenvalue_of_the_hessian(depth, x64):
    x, target = 1.1, 1.1**depth / 0.9
    hessian = jax.hessian(lambda factors: (jnp.prod(factors) - target) ** 2 / 2)(jnp.full(depth, x))
    found = theory.training_sharpness(x**depth, target, depth=depth)
    np.testing.assert_allclose(found, np.linalg.eigvalsh(hessian)[-1], rtol=1e-12)
    np.testing.assert_allclose(
        theory.training_sharpness(target, target, depth=depth), theory.sharpness(target, depth=depth)
    )


def test_the_angle_of_a_surrogate_is_the_sum_over_entries(x64):
    target = ld.random_target(jax.random.key(0), (5, 4), jnp.array([2.0, 1.0]))
    u, v, sigma = (np.asarray(part) for part in (target.left, target.right, target.singular_values))
    dense = (u * sigma) @ v.T

    def expected(variance):
        total = 0.0
        for i, a, b in np.ndindex(2, 5, 4):
            total += (1 - u[a] @ u[a]) * variance[a, b] * v[b, i] ** 2 / sigma[i] ** 2
        return total**0.5

    np.testing.assert_allclose(theory.surrogate_angle(target, observed=0.3), expected(dense**2 * 0.7 / 0.3))
    np.testing.assert_allclose(
        theory.surrogate_angle(target, measurements=50), expected(np.full((5, 4), 5.0 / 50))
    )
    with pytest.raises(ValueError, match="expected one of them"):
        theory.surrogate_angle(target)
    with pytest.raises(ValueError, match=r"observed=1\.5"):
        theory.surrogate_angle(target, observed=1.5)


def test_the_delay_at_depth_two_is_in_units_of_the_target():
    np.testing.assert_allclose(theory.escape_delay(jnp.array([1.0, 2.0])), [0.34657359, 0.1732868], rtol=1e-6)


# --- One component by three scalars ---------------------------------------------------------------


def rank_one(depth, scale, seed, d=4):
    """A rank-one target, orthogonal layers, and the overlap of its vectors in them."""
    rng = np.random.default_rng(seed)
    rotations = [np.linalg.qr(rng.standard_normal((d, d)))[0] for _ in range(depth)]
    left, right = (np.linalg.qr(rng.standard_normal((d, 1)))[0][:, 0] for _ in range(2))
    overlap = left @ np.linalg.multi_dot(rotations[::-1]) @ right
    return left, right, [scale * rotation for rotation in rotations], float(overlap)


@pytest.mark.parametrize(("depth", "scale"), [(2, 0.1), (3, 0.2)])
def test_a_component_is_that_of_an_original_network_of_any_width_at_its_overlap(x64, depth, scale):
    times = np.array([0.0, 0.5, 2.0, 5.0, 12.0])
    left, right, layers, overlap = rank_one(depth, scale, seed=1)
    run = networks.flow(networks.factorization(2.0 * np.outer(left, right)), layers, times.tolist())
    mode = theory.original_mode(times, 2.0, depth=depth, scale=scale, overlap=overlap)
    for i, weights in enumerate(run):
        u, values, _ = np.linalg.svd(networks.product(weights))
        np.testing.assert_allclose(mode.along[i], left @ networks.product(weights) @ right, atol=1e-10)
        np.testing.assert_allclose(mode.leading[i], values[0], atol=1e-10)
        np.testing.assert_allclose(mode.trailing[i], values[-1], atol=1e-10)
        if i:
            np.testing.assert_allclose(mode.alignment[i], abs(u[:, 0] @ left), atol=1e-10)


@pytest.mark.parametrize("depth", [2, 3])
def test_an_aligned_component_is_a_mode_of_the_compressed_network(x64, depth):
    t = np.array([0.0, 0.5, 2.0, 5.0, 12.0])
    mode = theory.original_mode(t, 2.0, depth=depth, scale=0.2, overlap=1.0)
    exact = [float(modes.mode_value(time, 2.0, depth=depth, scale=0.2)) for time in t]
    np.testing.assert_allclose(mode.along, exact, rtol=1e-11)


def test_for_ever_is_as_good_as_long(x64):
    mode = theory.original_mode(np.array([1e3, 1e6, 1e9, 1e15, 1e300]), 2.0, depth=3, scale=0.2)
    np.testing.assert_allclose(mode.along + mode.trailing, 2.0, rtol=1e-3)
    assert np.all(np.diff(mode.trailing) < 0)
    # Free decay of the smaller value: y^{2−2L} grows by (2L − 2) t.
    y = np.asarray(mode.trailing) ** (1 / 3)
    np.testing.assert_allclose(y[1:3] ** -4.0 - y[0] ** -4.0, 4 * (np.array([1e6, 1e9]) - 1e3), rtol=1e-9)


@pytest.mark.parametrize("depth", [3, 4])
def test_the_escape_ratio_at_an_overlap_is_the_ratio_of_half_times(x64, depth):
    scale, target = {3: 1e-3, 4: 0.01}[depth], 1.0
    for overlap in (-0.5, 0.4):
        ratio = theory.escape_ratio(depth, overlap=overlap)
        wait = float(modes.mode_time(0.5, target, depth=depth, scale=scale))
        t = wait * ratio * np.array([0.99, 0.995, 1.0, 1.005, 1.01])
        along = theory.original_mode(t, target, depth=depth, scale=scale, overlap=overlap).along
        assert along[0] < 0.5 < along[-1]


def test_the_escape_delay_at_an_overlap_is_that_of_the_closed_form(x64):
    t = 5.0
    delay = theory.escape_delay(2.0, overlap=0.3)
    late = theory.original_mode(t + delay, 2.0, depth=2, scale=1e-4, overlap=0.3).along
    np.testing.assert_allclose(late, theory.mode_trajectory(t, 2.0, depth=2, scale=1e-4), rtol=1e-6)


def test_the_ratio_falls_with_the_overlap_as_the_law_of_finite_width_says():
    for depth in (3, 4, 7):
        k = theory.escape_ratio(depth) ** (1 / (depth - 2))
        slope = (theory.escape_ratio(depth, overlap=1e-5) - theory.escape_ratio(depth, overlap=-1e-5)) / 2e-5
        law = -(depth - 2) * (k**2 - 1) / k**depth * theory.escape_ratio(depth)
        np.testing.assert_allclose(slope, law, rtol=1e-6)


def test_an_overlap_that_no_two_unit_vectors_have_is_refused():
    with pytest.raises(ValueError, match=r"overlap=1\.5, expected a finite number, between -1 and 1"):
        theory.original_mode(1.0, 1.0, depth=3, scale=0.1, overlap=1.5)
    with pytest.raises(ValueError, match="overlap=1"):
        theory.escape_ratio(3, overlap=1.0)
