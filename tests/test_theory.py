"""The closed forms of `lowdim_jax.theory` against oracles, integrators and actual descent."""

import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mpmath import mp, mpf
from scipy.integrate import solve_ivp

from lowdim_jax import theory
from theory_checks.reference import modes as reference_modes

ORACLE = Path(__file__).parent / "oracle"
DEPTHS = (1, 2, 3, 4, 5, 6, 12)

# Starts below and above the target, targets of zero and of rounding noise: (σ*, ε). Tests use five-
# element arrays where they can: their time goes into compiling, once for each shape and depth.
STARTS = np.array([(7.0, 0.2), (1.0, 0.6), (0.05, 1.3), (0.0, 0.7), (1e-17, 0.7)])


def oracle(name, depth):
    """Columns of the oracle's rows for one depth, as float64."""
    rows = [row for row in json.loads((ORACLE / name).read_text()) if row["depth"] == depth]
    return {key: jnp.array([float(row[key]) for row in rows]) for key in rows[0]}


def assert_close(actual, desired, rtol, atol=0.0):
    np.testing.assert_allclose(np.asarray(actual), np.asarray(desired), rtol=rtol, atol=atol)


def integrated(t, target, scale, depth, alpha):
    """`σ(t)` by integrating the logarithms of the factors with SciPy."""
    count = np.array([min(depth, 2), max(depth - 2, 0)])
    rates = np.array([alpha, 1.0]) * (count > 0)

    def velocity(_, log_factors):
        sigma = np.exp(count @ log_factors)
        return rates * (target - sigma) * sigma * np.exp(-2 * log_factors)

    start = np.full(2, np.log(scale))
    run = solve_ivp(velocity, (0, t), start, method="DOP853", rtol=1e-11, atol=1e-12)
    return np.exp(count @ run.y[:, -1])


def elementary_time(level, target, depth, scale):
    """2.2 for `L ≥ 3`, `α = 1`, below the target: a sum over the L-th roots of unity."""
    root = np.exp(2j * np.pi * np.arange(depth) / depth)[:, None]

    def antiderivative(x):
        y = x / target ** (1 / depth)
        logarithms = np.real(root**2 * np.log1p(-y / root)).sum(axis=0) / depth
        return -(y ** (2 - depth)) / (depth - 2) - logarithms

    waited = antiderivative(level ** (1 / depth)) - antiderivative(scale)
    return waited / target ** (2 - 2 / depth)


# --- Times ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [1, 2, 3, 4, 5, 8])
def test_mode_times_agree_with_the_oracle(x64, depth):
    row = oracle("mode_times.json", depth)
    target = row["sigma_star"]
    time = theory.mode_time(row["fraction"] * target, target, depth=depth, scale=row["init_scale"])
    assert_close(time, row["time"], rtol=2e-14)


@pytest.mark.parametrize("depth", [3, 4, 5])
def test_mode_times_with_discrepant_rates_agree_with_the_oracle(x64, depth):
    row = oracle("discrepant_mode_times.json", depth)
    level, target = row["fraction"] * row["sigma_star"], row["sigma_star"]
    settings = {"scale": row["init_scale"], "alpha": row["alpha"]}
    assert_close(theory.mode_time(level, target, depth=depth, **settings), row["time"], rtol=2e-14)


@pytest.mark.parametrize("depth", [3, 4, 6, 12])
def test_quadrature_agrees_with_the_elementary_integral_at_every_depth(x64, depth):
    target, scale = np.array([0.5, 7, 20, 0.1, 3]), np.array([1e-4, 1e-2, 0.3, 1e-3, 0.1])
    level = target * np.array([0.999999, 0.4, 0.9, 0.01, 0.5])
    settings = {"depth": depth, "scale": scale}
    expected = elementary_time(level, target, depth, scale)
    assert_close(theory.mode_time(level, target, **settings), expected, rtol=1e-13)
    discrepant = theory.mode_time(level, target, alpha=jnp.ones(5), **settings)
    assert_close(discrepant, expected, rtol=1e-13)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_levels_the_mode_never_passes_take_forever(x64, depth):
    start = 0.2**depth
    level = jnp.array([7.0, 7.1, start / 2, start, 0.0])
    rising = theory.mode_time(level, 7.0, depth=depth, scale=0.2)
    assert_close(rising, [jnp.inf, jnp.inf, jnp.inf, 0, jnp.inf], 0)
    falling = theory.mode_time(level, 0.0, depth=depth, scale=0.2)
    assert jnp.all(jnp.isinf(falling) == jnp.array([True, True, False, False, True]))


def test_fit_time_is_when_the_relative_error_reaches_the_tolerance(x64):
    target, scale = jnp.array([[7.0, 0.2], [0.05, 1.3], [2.0, 0.1], [0.216, 0.6], [0.0, 0.6]]).T
    time = theory.fit_time(target, depth=3, scale=scale, tolerance=0.05)
    assert_close(time[3:], [0, jnp.inf], 0)
    sigma = theory.mode_trajectory(time.at[4].set(0), target, depth=3, scale=scale)
    assert_close(sigma[:3] / target[:3], [0.95, 1.05, 0.95], 1e-11)


def test_small_scale_law_is_the_limit_of_the_fit_time(x64):
    scale = jnp.array([1e-2, 1e-3, 1e-4, 1e-5, 1e-6])

    def error(depth):
        law = theory.fit_time_small_scale(9.0, depth=depth, scale=scale, tolerance=0.1)
        exact = theory.fit_time(9.0, depth=depth, scale=scale, tolerance=0.1)
        return jnp.abs(law / exact - 1)

    for depth in (1, 2, 3, 5):
        errors = error(depth)
        assert jnp.all(errors[1:] < 0.2 * errors[:-1] + 1e-13)
        assert errors[-1] < 1e-4


def conditioned(level, target, depth, scale, time):
    """How much more than their own rounding the arguments' rounding can change a time, at least 1."""
    speeds = [abs(float(reference_modes.rate(x, target, depth=depth))) for x in (level, scale**depth)]
    return 1 + (level / speeds[0] + depth * scale**depth / speeds[1]) / time


@pytest.mark.parametrize("depth", [3, 5, 8])
def test_times_are_those_of_30_digits_from_either_side_over_any_distance(x64, depth):
    rng = np.random.default_rng(depth)
    target = 10 ** rng.uniform(-2, 2, 24)
    parts = 10 ** rng.uniform(-12, -1, 8), rng.uniform(0.05, 0.999, 8), rng.uniform(1.01, 30, 8)
    ratio = np.concatenate(parts)
    way = np.tile([1e-6, 0.01, 0.3, 0.5, 0.9, 0.999, 1 - 1e-7, 0.1], 3)
    scale = (ratio * target) ** (1 / depth)
    start = scale**depth
    level = start + way * (target - start)
    found = theory.mode_time(level, target, depth=depth, scale=scale)
    for i in range(24):
        exact = float(reference_modes.mode_time(level[i], target[i], depth=depth, scale=scale[i]))
        allowed = 1e-14 * conditioned(level[i], target[i], depth, scale[i], exact)
        assert abs(float(found[i]) / exact - 1) < allowed


@pytest.mark.parametrize("depth", [3, 6])
def test_the_derivative_of_a_time_in_its_level_is_one_over_the_speed(x64, depth):
    level, target, scale = np.array([2e-9, 0.3, 1.9, 2 - 1e-9, 2.5]), 2.0, np.array([1e-3] * 4 + [1.4])

    def total(level):
        return theory.mode_time(level, target, depth=depth, scale=scale).sum()

    speed = np.array([float(reference_modes.rate(x, target, depth=depth)) for x in level])
    assert_close(jax.grad(total)(jnp.asarray(level)), 1 / speed, rtol=1e-13)


@pytest.mark.parametrize("depth", [1, 2, 3, 5])
def test_fit_times_resolve_any_tolerance(x64, depth):
    target, scale = np.array([2.0, 2.0, 0.01]), np.array([0.1, 0.6, 0.9])
    for tolerance in (1e-8, 1e-13, 1e-17):
        found = theory.fit_time(target, depth=depth, scale=scale, tolerance=tolerance)
        for i in range(3):
            exact = reference_modes.fit_time(target[i], depth=depth, scale=scale[i], tolerance=tolerance)
            assert_close(found[i], float(exact), rtol=1e-13)


@pytest.mark.parametrize("alpha", [0.5, 3.0])
@pytest.mark.parametrize(("depth", "scale"), [(2, 1e-21), (3, 1e-14), (5, 1e-9)])
def test_so_they_are_with_discrepant_rates(depth, scale, alpha):
    assert np.float32(scale) ** depth < np.finfo(np.float32).tiny
    settings = {"depth": depth, "alpha": alpha}
    exact = reference_modes.fit_time(3.0, tolerance=0.5, scale=float(np.float32(scale)), **settings)
    found = theory.fit_time(np.float32(3), tolerance=0.5, scale=np.float32(scale), **settings)
    assert_close(found, float(exact), rtol=1e-5)


def test_far_above_the_target_the_reference_keeps_its_digits():
    """Where the target is nothing beside the start, it is as if there were none: `K = L σ^{2−2/L}`."""
    with mp.workdps(30):
        found = reference_modes.mode_time(mpf(10) ** 11, mpf("0.1"), depth=8, scale=mpf(10) ** (mpf(3) / 2))
        b = mpf(7) / 4
        alone = (mpf(10) ** (-11 * b) - mpf(10) ** (-12 * b)) / (8 * b)
        assert abs(found / alone - 1) < 1e-11
        assert abs(found / alone - 1) > 1e-13


@pytest.mark.parametrize(("depth", "scale"), [(2, 1e-21), (3, 1e-14), (5, 1e-9), (8, 1e-6)])
def test_starts_below_the_smallest_number_of_single_precision_are_followed(x64, depth, scale):
    assert np.float32(scale) ** depth < np.finfo(np.float32).tiny
    settings = {"depth": depth, "scale": np.float32(scale)}
    half = float(theory.fit_time(3.0, depth=depth, scale=float(np.float32(scale)), tolerance=0.5))
    if half < 1e38:
        assert_close(theory.mode_time(np.float32(1.5), np.float32(3), **settings), half, rtol=1e-5)
    early = theory.mode_trajectory(np.float32(0), np.float32(3), **settings)
    assert 0 <= early <= np.finfo(np.float32).tiny
    late = theory.mode_trajectory(np.float32(min(3 * half, 3e38)), np.float32(3), **settings)
    assert_close(late, 3.0 if half < 1e38 else 0.0, rtol=1e-5)


# --- Trajectories ---------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", DEPTHS)
def test_trajectory_is_at_the_start_at_time_zero_and_at_the_target_in_the_limit(x64, depth):
    target, scale = jnp.asarray(STARTS.T)
    start = theory.mode_trajectory(0.0, target, depth=depth, scale=scale)
    assert_close(start, scale**depth, rtol=1e-14)
    late = theory.mode_trajectory(1e300, target, depth=depth, scale=scale)
    assert_close(late, target, rtol=1e-15, atol=1e-60)


@pytest.mark.parametrize("depth", DEPTHS)
def test_trajectory_is_the_inverse_of_time_and_monotone(x64, depth):
    target, scale = jnp.asarray(STARTS.T)
    half_way = theory.fit_time(target, depth=depth, scale=scale, tolerance=0.5)
    half_way = jnp.where(half_way < 1e20, half_way, 2.0)
    before = scale**depth
    for fraction in np.linspace(0, 3, 12):
        t = fraction * half_way
        sigma = theory.mode_trajectory(t, target, depth=depth, scale=scale)
        assert jnp.all((sigma - before) * jnp.sign(target - scale**depth) >= -1e-15 * before)
        before = sigma
        back = theory.mode_time(sigma, target, depth=depth, scale=scale)
        moving = jnp.abs(sigma - target) > 1e-3 * target  # later σ does not resolve the time
        assert_close(back[moving], t[moving], rtol=1e-12, atol=1e-14 * half_way.max())


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_trajectory_with_discrepant_rates_agrees_with_an_integrator(x64, depth):
    target, scale = STARTS.T
    for alpha in np.array([1.0, 0.3, 4.0]):
        settings = {"depth": depth, "scale": scale, "alpha": jnp.asarray(alpha)}
        half_way = theory.fit_time(target, tolerance=0.5, **settings)
        t = np.where(half_way < 1e4, half_way, 2.0)
        sigma = theory.mode_trajectory(t, target, **settings)
        modes = zip(t, target, scale, strict=True)
        expected = [integrated(*mode, depth=depth, alpha=alpha) for mode in modes]
        assert_close(sigma, expected, rtol=1e-7)
        assert_close(theory.mode_time(sigma, target, **settings), t, rtol=1e-12)


def test_depth_two_is_the_formula_of_saxe(x64):
    t, target, start = jnp.linspace(0, 2, 50), 7.0, 0.01**2
    growth = jnp.exp(2 * target * t)
    expected = target * growth / (growth - 1 + target / start)
    assert_close(theory.mode_trajectory(t, target, depth=2, scale=0.01), expected, rtol=1e-13)


@pytest.mark.parametrize("depth", DEPTHS[1:])
def test_modes_without_a_target_decay_algebraically(x64, depth):
    t, scale = jnp.array([0.0, 0.1, 3.0, 1e3, 1e5]), 0.7
    power = 2 - 2 * depth
    expected = (scale**power - power * t) ** (depth / power)
    sigma = theory.mode_trajectory(t, 0.0, depth=depth, scale=scale)
    assert_close(sigma, expected, rtol=1e-12)
    assert_close(theory.mode_time(expected, 0.0, depth=depth, scale=scale), t, rtol=1e-12)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_a_mode_that_starts_at_its_target_stays(x64, depth):
    t, start = jnp.array([0.0, 0.1, 1.0, 1e9, 1e300]), jnp.asarray(0.3) ** depth
    sigma = theory.mode_trajectory(t, start, depth=depth, scale=0.3)
    assert_close(sigma, jnp.full(5, start), rtol=1e-15)
    assert_close(theory.mode_time(sigma, sigma, depth=depth, scale=0.3), jnp.zeros(5), 0)


def test_frozen_outer_factors_leave_a_linear_equation_at_depth_three(x64):
    t, target, scale = jnp.array([0.0, 0.1, 1.0, 30.0, 1e3]), 2.0, 0.5
    expected = target + (scale**3 - target) * jnp.exp(-(scale**4) * t)
    sigma = theory.mode_trajectory(t, target, depth=3, scale=scale, alpha=0.0)
    assert_close(sigma, expected, rtol=1e-13)


def test_discrepant_rates_only_rescale_time_up_to_depth_two(x64):
    t = jnp.linspace(0, 1, 5)
    for depth in (1, 2):
        fast = theory.mode_trajectory(t, 7.0, depth=depth, scale=0.1, alpha=3.0)
        assert_close(fast, theory.mode_trajectory(3 * t, 7.0, depth=depth, scale=0.1), 1e-14)


@pytest.mark.parametrize("depth", [1, 2, 3, 5])
def test_derivatives_at_a_start_on_the_target_are_those_of_30_digits(x64, depth):
    t, target = 1.0, 0.5**depth

    def sigma(target, scale):
        return theory.mode_trajectory(t, target, depth=depth, scale=scale)

    def exact(target, scale):
        return float(reference_modes.mode_value(t, target, depth=depth, scale=scale))

    h, slopes = 1e-5, jax.grad(sigma, argnums=(0, 1))(target, 0.5)
    assert_close(slopes[0], (exact(target + h, 0.5) - exact(target - h, 0.5)) / (2 * h), rtol=1e-8)
    assert_close(slopes[1], (exact(target, 0.5 + h) - exact(target, 0.5 - h)) / (2 * h), rtol=1e-8)


def test_a_mode_without_target_is_gone_after_any_time(x64):
    assert 0 <= theory.mode_trajectory(1e308, 0.0, depth=2, scale=1.0) < 1e-307
    assert jnp.isfinite(jax.grad(lambda t: theory.mode_trajectory(t, 0.0, depth=2, scale=1.0))(1e308))


def test_the_small_scale_law_of_a_target_of_zero_is_never(x64):
    for depth in (1, 2, 3):
        law = theory.fit_time_small_scale(jnp.array([0.0, 1.0]), depth=depth, scale=0.1)
        assert jnp.isinf(law[0])
        assert jnp.isfinite(law[1])


# --- Gradient descent -----------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [2, 3, 4])
def test_descent_agrees_with_the_oracle(x64, depth):
    rows = json.loads((ORACLE / "gd_map.json").read_text())
    (row,) = [row for row in rows if row["depth"] == depth]
    settings = {"depth": depth, "scale": row["init_scale"], "learning_rate": row["learning_rate"]}
    sigma = theory.mode_descent(float(row["sigma_star"]), steps=20_000, **settings)
    for step, value in row["end_to_end_singular_value"].items():
        assert_close(sigma[int(step)], float(value), rtol=1e-13)


@pytest.mark.parametrize("depth", [1, 2, 3, 5])
def test_descent_is_gradient_descent_on_the_factors(x64, depth):
    target, rate, alpha = 2.0, 0.05, 3.0
    rates = rate * np.array([alpha] + [1.0] * (depth - 2) + [alpha] * (depth > 1))
    factors, measured = np.full(depth, 0.6), []
    for _ in range(31):
        sigma = np.prod(factors)
        measured.append(sigma)
        factors = factors + rates * (target - sigma) * sigma / factors
    predicted = theory.mode_descent(
        target, depth=depth, scale=0.6, learning_rate=rate, steps=32, record_every=5, alpha=alpha
    )
    assert_close(predicted, measured[::5], rtol=1e-13)


def test_descent_broadcasts_and_records_the_start(x64):
    target, rate = jnp.ones((3, 1)), jnp.array([[0.1, 0.2]])
    sigma = theory.mode_descent(target, depth=3, scale=0.5, learning_rate=rate, steps=0)
    assert_close(sigma, np.full((1, 3, 2), 0.5**3), 0)


def test_descent_approaches_the_flow_to_first_order_in_the_learning_rate(x64):
    settings = {"depth": 3, "scale": 0.3, "alpha": jnp.array([1.0, 4.0, 0.5, 2.0, 0.0])}
    flow = theory.mode_trajectory(0.1, 5.0, **settings)

    def error(steps):
        sigma = theory.mode_descent(5.0, learning_rate=0.1 / steps, steps=steps, **settings)
        return jnp.abs(sigma[-1] - flow)

    assert_close(jnp.log2(error(1000) / error(2000)), jnp.ones(5), rtol=0.01)


# --- Plateaus, conservation, stability ------------------------------------------------------------


def test_plateaus_go_from_the_loss_at_zero_to_zero(x64):
    assert_close(theory.plateau_losses(jnp.array([3, 2, 1])), [7, 2.5, 0.5, 0], 0)


def test_singular_value_rates_are_those_of_a_balanced_network(x64):
    rng = np.random.default_rng(0)
    frames = [np.linalg.qr(rng.normal(size=(5, 5)))[0] for _ in range(4)]
    s = np.array([1.5, 1.1, 0.8, 0.5, 0.2])
    w1, w2, w3 = (after * s @ before.T for before, after in pairwise(frames))
    residual = rng.normal(size=(5, 5))
    velocity = (
        residual @ (w2 @ w1).T @ w2 @ w1
        + w3 @ w3.T @ residual @ w1.T @ w1
        + w3 @ w2 @ (w3 @ w2).T @ residual
    )
    expected = np.diag(frames[3].T @ velocity @ frames[0])
    rate = theory.singular_value_rate(s**3, frames[3], frames[0], residual, depth=3)
    assert_close(rate, expected, rtol=1e-12)


def test_balance_step_is_what_one_step_of_descent_does(x64):
    factors, target, rate = np.array([[0.9, 1.4, 0.7], [0.3, 0.0, 1.1]]), np.array([2.0, 1.0]), 0.1
    gap = (target - factors.prod(axis=1))[:, None]
    others = np.stack([np.delete(factors, i, axis=1).prod(axis=1) for i in range(3)], axis=1)
    squares = (factors + rate * gap * others) ** 2
    expected = squares[:, :, None] - squares[:, None, :]
    predicted = theory.balance_step(factors, target, learning_rate=rate)
    assert_close(predicted, expected, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_sharpness_is_the_top_eigenvalue_of_the_scaled_hessian(x64, depth):
    target = 7.0
    hessian = jax.jit(jax.hessian(lambda x: (jnp.prod(x) - target) ** 2 / 2))
    for alpha in (0.5, 1.0, 5.0):
        ratio = np.sqrt([alpha] + [1.0] * (depth - 2) + [alpha] * (depth > 1))
        minimum = (target / ratio.prod()) ** (1 / depth) * ratio  # outer factors √α times middle
        top = np.linalg.eigvalsh(np.outer(ratio, ratio) * np.asarray(hessian(minimum))).max()
        assert_close(theory.sharpness(target, depth=depth, alpha=alpha), top, rtol=1e-12)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 5.0])
@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_descent_converges_below_the_edge_of_stability_and_not_above(x64, depth, alpha):
    target = 7.0
    edge = theory.max_learning_rate(target, depth=depth, alpha=alpha)
    sigma = theory.mode_descent(
        target,
        depth=depth,
        scale=0.1,
        learning_rate=edge * jnp.array([0.98, 1.02]),
        steps=20_000,
        record_every=10_000,
        alpha=alpha,
    )
    assert_close(sigma[-1, 0], target, rtol=1e-9)
    assert not jnp.abs(sigma[-1, 1] / target - 1) < 1e-2


def test_explicit_steps_are_the_wait_over_the_longest_stable_step(x64):
    targets = jnp.array([20.0, 14.0, 9.0])
    # Orders of magnitude of docs/theory.md 2.6, whose solver steps three times the fastest rate.
    for depth, expected in ((3, 6e3), (4, 7e6), (5, 7e9)):
        settings = {"depth": depth, "scale": 1e-3, "tolerance": 0.05}
        steps = theory.explicit_steps(targets, step_rate=3.0, **settings)
        assert steps.shape == (3,)
        assert_close(steps[-1], expected, rtol=0.1)
    edge = theory.max_learning_rate(20.0, depth=5)
    waits = theory.fit_time(targets, **settings)
    assert_close(theory.explicit_steps(targets, **settings), waits / (edge / 2), rtol=1e-14)


# --- Transformations, precision, arguments --------------------------------------------------------


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_derivatives_agree_with_finite_differences(x64, depth):
    def sigma(t, target, scale, alpha):
        return theory.mode_trajectory(t, target, depth=depth, scale=scale, alpha=alpha)

    def time(level, target, scale, alpha):
        return theory.mode_time(level, target, depth=depth, scale=scale, alpha=alpha)

    slopes = {f: jax.jit(jax.grad(f, argnums=(0, 1, 2, 3))) for f in (sigma, time)}
    for target in (7.0, 0.05):
        t = float(theory.fit_time(target, depth=depth, scale=0.6, tolerance=0.5, alpha=2.0))
        for function, first in ((sigma, t), (time, float(sigma(t, target, 0.6, 2.0)))):
            point = (first, target, 0.6, 2.0)
            for i, slope in enumerate(slopes[function](*point)):
                h = 1e-4 * point[i]
                up = function(*point[:i], point[i] + h, *point[i + 1 :])
                down = function(*point[:i], point[i] - h, *point[i + 1 :])
                assert_close(slope, (up - down) / (2 * h), rtol=1e-5)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_derivatives_are_finite_everywhere(x64, depth):
    target, scale = jnp.asarray([*STARTS, (0.3**depth, 0.3)]).T

    def total(t, target, scale):
        return theory.mode_trajectory(t, target, depth=depth, scale=scale).sum()

    slopes = jax.jit(jax.grad(total, argnums=(0, 1, 2)))
    for t in (0.0, 1.0, 1e300):
        for derivative in slopes(t, target, scale):
            assert jnp.all(jnp.isfinite(derivative))

    def wait(level, target, scale):
        time = theory.mode_time(level, target, depth=depth, scale=scale)
        return jnp.where(jnp.isfinite(time), time, 0).sum()

    level = jnp.full(target.shape, 0.2)
    for derivative in jax.jit(jax.grad(wait, argnums=(0, 1, 2)))(level, target, scale):
        assert jnp.all(jnp.isfinite(derivative))


def test_target_derivative_of_a_mode_without_target_is_not_lost(x64):
    for depth in (1, 2, 3):

        def sigma(target, depth=depth):
            return theory.mode_trajectory(2.0, target, depth=depth, scale=0.7)

        forward = (sigma(1e-6) - sigma(0.0)) / 1e-6
        assert_close(jax.grad(sigma)(0.0), forward, rtol=1e-5)
        assert_close(jax.grad(sigma)(1e-17), forward, rtol=1e-5)


def test_times_broadcast_against_targets_as_vmap_and_jit_say(x64):
    t, target = jnp.linspace(0, 2, 7), jnp.array([5.0, 1.0, 0.0])

    def sigma(t, target):
        return theory.mode_trajectory(t, target, depth=3, scale=0.4)

    table = sigma(t[:, None], target[None])
    assert table.shape == (7, 3)
    over_modes = jax.jit(jax.vmap(sigma, in_axes=(None, 0), out_axes=1))
    assert_close(over_modes(t, target), table, rtol=1e-13)


@pytest.mark.parametrize("depth", [2, 3, 12])
def test_single_precision_is_kept_and_nearly_reached(x64, depth):
    target, scale = np.float32([[7, 0.2], [0.05, 1.3], [0, 0.1], [2, 0.5], [0.2, 1]]).T
    single = theory.mode_trajectory(np.float32(0.3), target, depth=depth, scale=scale)
    double = theory.mode_trajectory(0.3, np.float64(target), depth=depth, scale=scale)
    assert single.dtype == jnp.float32
    assert_close(single, double, rtol=1e-5)
    level = single + 0.3 * (target - single)
    time = theory.mode_time(level, target, depth=depth, scale=scale)
    exact = theory.mode_time(np.float64(level), target, depth=depth, scale=np.float64(scale))
    assert time.dtype == jnp.float32
    assert_close(time, exact, rtol=1e-5)


def test_single_precision_keeps_to_the_limits():
    late = theory.mode_trajectory(1e38, jnp.array([7.0, 0.05, 0.0]), depth=4, scale=0.2)
    assert late.dtype == jnp.float32
    assert_close(late, [7, 0.05, 0], rtol=2e-7, atol=1e-25)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"depth": 0}, "depth=0, expected an integer of at least 1"),
        ({"depth": 2.0}, "depth=2.0, expected an integer of at least 1"),
        ({"scale": 0.0}, "scale=0.0, expected a finite number, more than 0"),
        ({"scale": np.array([0.1, np.nan])}, "scale=nan, expected a finite number, more than 0"),
        ({"alpha": -1.0}, "alpha=-1.0, expected a finite number, at least 0"),
        (
            {"alpha": 0.0, "depth": 2},
            "alpha=0.0, expected a finite number, more than 0: all 2 factors are outer",
        ),
        ({"target": -3.0}, "target=-3.0, expected a finite number, at least 0"),
        ({"learning_rate": 0.0}, "learning_rate=0.0, expected a finite number, more than 0"),
        ({"steps": -1}, "steps=-1, expected an integer of at least 0"),
        ({"record_every": 0}, "record_every=0, expected an integer of at least 1"),
    ],
)
def test_an_argument_out_of_range_is_named(change, message):
    settings = {"target": 1.0, "depth": 3, "scale": 0.1, "learning_rate": 0.1, "steps": 2} | change
    with pytest.raises(ValueError, match=message):
        theory.mode_descent(settings.pop("target"), **settings)


def test_an_argument_out_of_range_is_named_by_every_other_function():
    with pytest.raises(ValueError, match="level=-1"):
        theory.mode_time(-1.0, 1.0, depth=3, scale=0.1)
    with pytest.raises(ValueError, match="t=nan, expected a finite number, at least 0"):
        theory.mode_trajectory(jnp.nan, 1.0, depth=3, scale=0.1)
    with pytest.raises(ValueError, match=r"tolerance=0\.0, expected a finite number, more than 0"):
        theory.fit_time(1.0, depth=3, scale=0.1, tolerance=0.0)
    with pytest.raises(
        ValueError, match=r"tolerance=1\.5, expected a finite number, between 0 and 1"
    ):
        theory.fit_time_small_scale(1.0, depth=3, scale=0.1, tolerance=1.5)
    with pytest.raises(ValueError, match=r"targets has shape \(2, 2\), expected \(r,\)"):
        theory.plateau_losses(jnp.eye(2))
    with pytest.raises(ValueError, match="depth=-1"):
        theory.max_learning_rate(1.0, depth=-1)
    with pytest.raises(ValueError, match="top=inf"):
        theory.sharpness(jnp.inf, depth=3)


def test_importing_changes_no_setting_of_jax():
    code = (
        "import jax; before = dict(jax.config.values); import lowdim_jax.theory; "
        "assert before == dict(jax.config.values)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])


@pytest.mark.parametrize("depth", [2, 3, 4, 5])
def test_two_cycle_is_where_the_scalar_map_ends(x64, depth):
    sigma = 3.0
    rate = 1.15 * float(theory.max_learning_rate(sigma, depth=depth))
    x = 1.01 * sigma ** (1 / depth)
    for _ in range(3000):
        x = x + rate * (sigma - x**depth) * x ** (depth - 1)
    after = x + rate * (sigma - x**depth) * x ** (depth - 1)
    low, high = theory.two_cycle(sigma, depth=depth, learning_rate=rate)
    assert low < 0.9 * sigma
    assert high > 1.1 * sigma
    np.testing.assert_allclose([low, high], sorted([x**depth, after**depth]), rtol=1e-12)


def test_two_cycle_closes_on_the_target_at_the_edge_and_below(x64):
    rates = np.array([0.5, 1.0]) * float(theory.max_learning_rate(2.0, depth=3))
    for end in theory.two_cycle(2.0, depth=3, learning_rate=rates):
        np.testing.assert_allclose(end, 2.0, rtol=1e-5)
    assert theory.two_cycle(0.0, depth=3, learning_rate=1.0) == (0.0, 0.0)


def test_two_cycle_needs_two_layers():
    with pytest.raises(ValueError, match="depth=1, expected an integer of at least 2"):
        theory.two_cycle(1.0, depth=1, learning_rate=1.0)


LIMITS = json.loads((ORACLE / "two_cycle_limits.json").read_text())["cases"]


@pytest.mark.parametrize("case", LIMITS, ids=lambda case: f"L={case['depth']}")
def test_where_the_two_cycle_ends_and_the_sign_changes_is_that_of_40_digit_arithmetic(case):
    assert_close(theory.two_cycle_limit(case["depth"]), float(case["attracts_up_to"]), rtol=1e-14)
    assert_close(theory.first_sign_change(case["depth"]), float(case["first_sign_change"]), rtol=1e-14)


def test_at_depth_two_both_are_numbers_known_by_hand():
    assert_close(theory.two_cycle_limit(2), 5**0.5 - 1, rtol=1e-14)
    assert_close(theory.first_sign_change(2), 3 * 3**0.5 / 2 - 1, rtol=1e-14)


def scalar_orbit(multiple, depth, steps, x=0.01):
    """The map itself, σ* = 1, at a multiple of its edge."""
    orbit = []
    for _ in range(steps):
        x = x + multiple * 2 / depth * (1 - x**depth) * x ** (depth - 1)
        orbit.append(x)
    return np.array(orbit)


@pytest.mark.parametrize("depth", [2, 3, 5])
def test_below_the_limit_runs_end_in_two_values_and_above_in_four(depth):
    limit = theory.two_cycle_limit(depth)
    wait = 20_000 + 100 ** (depth - 2) if depth < 4 else 20_000
    for multiple, values in ((limit - 0.005, 2), (limit + 0.005, 4)):
        end = scalar_orbit(multiple, depth, wait, x=0.5)[-64:]
        assert len(np.unique(np.round(end, 6))) == values


@pytest.mark.parametrize("depth", [2, 3])
def test_the_sign_changes_beyond_the_first_sign_change_only(depth):
    onset = theory.first_sign_change(depth)
    assert np.all(scalar_orbit(onset - 0.002, depth, 20_000, x=0.3) > 0)
    assert np.any(scalar_orbit(onset + 0.002, depth, 20_000, x=0.3) < 0)


@pytest.mark.parametrize("depth", [2, 3, 4])
def test_derivatives_of_the_two_cycle_are_those_of_the_roots(x64, depth):
    def ends(target, rate):
        return jnp.stack(theory.two_cycle(target, depth=depth, learning_rate=rate))

    def reference(target, rate):
        found = reference_modes.two_cycle(target, depth=depth, learning_rate=rate)
        return np.array([float(end) for end in found])

    point = (1.0, 1.2 * 2 / depth)
    for i, slope in enumerate(jax.jacobian(ends, argnums=(0, 1))(*point)):
        step = [1e-5 * (i == j) for j in range(2)]
        up, down = (reference(*(x + sign * h for x, h in zip(point, step, strict=True))) for sign in (1, -1))
        assert_close(slope, (up - down) / 2e-5, rtol=1e-7)


def test_derivative_of_the_two_cycle_in_a_case_worked_out_by_others(x64):
    low = jax.grad(lambda rate: theory.two_cycle(1.0, depth=3, learning_rate=rate)[0])(0.8)
    assert_close(low, -1.332, atol=5e-4, rtol=0)


def test_below_the_edge_the_two_cycle_moves_with_the_target(x64):
    def low(target, rate):
        return theory.two_cycle(target, depth=3, learning_rate=rate)[0]

    assert_close(jnp.stack(jax.grad(low, argnums=(0, 1))(1.0, 0.5)), [1.0, 0.0], rtol=1e-14)
