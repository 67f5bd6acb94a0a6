"""Predictions for the original network and for partial measurements, against other ways to get them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad

import lowdim_jax as ld
from lowdim_jax import theory


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
