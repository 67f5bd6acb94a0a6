"""The second implementation is right: hand-worked cases, exact numbers, and tables of other arithmetic."""

import ast
import json
from itertools import pairwise
from pathlib import Path

import mpmath
import numpy as np
import pytest
from mpmath import mpf

from theory_checks import reference
from theory_checks.reference import modes, networks, originals, random_matrices

ORACLE = Path(__file__).parent / "oracle"


def oracle(name):
    return json.loads((ORACLE / f"{name}.json").read_text("utf-8"))


def test_nothing_of_it_imports_the_library_or_jax():
    imported = set()
    for path in Path(reference.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {name.name.partition(".")[0] for name in node.names}
            if isinstance(node, ast.ImportFrom):
                whole = node.module or ""
                own = whole.startswith("theory_checks.reference")
                imported.add("reference" if own else whole.partition(".")[0])
    assert imported == {"collections", "mpmath", "numpy", "scipy", "reference"}


# --- Networks -------------------------------------------------------------------------------------

ONE = networks.factorization([[1.0]])


def values(history):
    return [float(network[0][0, 0]) for network in history]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [0, 0.1, 0.19]),
        ({"momentum": 0.5}, [0, 0.1, 0.24]),
        ({"momentum": 0.5, "nesterov": True}, [0, 0.15, 0.3025]),
        ({"decay": 1.0}, [0, 0.1, 0.18]),
        ({"alpha": 2.0}, [0, 0.2, 0.36]),
    ],
)
def test_two_steps_on_one_number_are_those_worked_by_hand(options, expected):
    history = networks.descent(ONE, [np.zeros((1, 1))], rate=0.1, steps=2, **options)
    np.testing.assert_allclose(values(history), expected, rtol=1e-14)


def test_the_rates_of_three_layers_are_outer_middle_outer():
    weights = [np.full((1, 1), x) for x in (1.0, 2.0, 3.0)]
    _, after = networks.descent(ONE, weights, rate=0.01, steps=1, alpha=3.0)
    # σ = 6, residual 5; gradients 5·6, 5·3, 5·2; rates 3, 1, 3
    np.testing.assert_allclose([w[0, 0] for w in after], [1 - 0.9, 2 - 0.15, 3 - 0.3], rtol=1e-14)


def test_adam_moves_the_first_step_by_its_rate():
    history = networks.adam(ONE, [np.zeros((1, 1))], rate=0.1, steps=1)
    np.testing.assert_allclose(values(history)[1], 0.1, rtol=1e-7)


def problems():
    rng = np.random.default_rng(0)
    target, mask = rng.standard_normal((3, 4)), rng.random((3, 4)) < 0.6
    stack = rng.standard_normal((5, 3, 4))
    rows, columns = np.nonzero(mask)
    return {
        "factorization": networks.factorization(target),
        "sensing": networks.sensing(stack, rng.standard_normal(5), 1.7),
        "completion": networks.completion(target, mask),
        "regression": networks.regression(rng.standard_normal((4, 6)), rng.standard_normal((3, 6))),
        "observed": networks.observed(rows, columns, target[rows, columns], (3, 4)),
    }


@pytest.mark.parametrize("name", problems())
@pytest.mark.parametrize("widths", [(4, 3), (4, 2, 3), (4, 5, 2, 3)])
def test_gradients_are_the_differences_of_losses(name, widths):
    problem, rng = problems()[name], np.random.default_rng(1)
    weights = [rng.standard_normal((b, a)) for a, b in pairwise(widths)]
    _, gradients = networks.loss_and_gradients(problem, weights)
    for layer, weight in enumerate(weights):
        direction = rng.standard_normal(weight.shape)
        sides = []
        for step in (1e-5, -1e-5):
            moved = [w + step * direction if k == layer else w for k, w in enumerate(weights)]
            sides.append(networks.loss_and_gradients(problem, moved)[0])
        along = np.sum(gradients[layer] * direction)
        np.testing.assert_allclose((sides[0] - sides[1]) / 2e-5, along, rtol=1e-6, atol=1e-8)


def test_losses_of_two_by_two_matrices_are_those_worked_by_hand():
    matrix, target = np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([[1.0, 0.0], [0.0, 0.0]])
    assert networks.factorization(target)(matrix)[0] == (4 + 9 + 16) / 2
    mask = [[1, 1], [0, 0]]
    assert networks.completion(target, mask)(matrix)[0] == 4 / 2 / 0.5
    assert networks.observed([0, 0], [0, 1], [1.0, 0.0], (2, 2))(matrix)[0] == 4 / 2 / 0.5
    assert networks.sensing([np.eye(2)], [3.0], 4.0)(matrix)[0] == (5 - 3) ** 2 / 8


def test_the_flow_of_two_balanced_layers_is_the_closed_form():
    case = next(c for c in oracle("two_layer_flow")["cases"] if c["lam"] == 0)
    weights = [np.array(case[name], float) for name in ("W1", "W2")]
    problem = networks.factorization(np.array(case["Phi"], float))
    times = [float(t) for t in case["t"][:3]]
    runs = zip(case["W"], networks.flow(problem, weights, times), strict=False)
    for expected, network in runs:
        np.testing.assert_allclose(networks.product(network), np.array(expected, float), atol=1e-9)


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
@pytest.mark.parametrize("alpha", [1.0, 0.5, 3.0])
def test_the_curvature_of_the_minimum_is_the_formula_of_sharpness(depth, alpha):
    top = 2.0
    middle = (top / alpha) ** (1 / depth)
    factors = [middle * alpha**0.5, *[middle] * (depth - 2), middle * alpha**0.5]
    if depth <= 2:
        factors = [top ** (1 / depth)] * depth
    weights = [np.array([[x]]) for x in factors]
    found = networks.top_curvature(networks.factorization([[top]]), weights, alpha=alpha)
    np.testing.assert_allclose(found, float(modes.sharpness(top, depth=depth, alpha=alpha)), rtol=1e-7)


def test_a_spectral_start_is_the_target_where_the_scale_is_that_of_its_values():
    target = np.diag([8.0, 8.0, 0.0])[:, :2]
    weights = networks.spectral_start(target, rank=2, depth=3, scale=2.0)
    np.testing.assert_allclose(networks.product(weights), target, atol=1e-14)
    assert networks.relative_error(weights, 2 * target) == pytest.approx(0.5)
    np.testing.assert_allclose(networks.modes(weights, np.eye(3)[:, :2], np.eye(2)), [8, 8])


# --- One mode -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mode_times", "discrepant_mode_times"])
def test_mode_times_are_those_of_the_oracle_to_24_digits(name):
    cases = oracle(name)
    for case in cases if name == "mode_times" else cases[::6]:
        target = mpf(case["sigma_star"])
        with mpmath.workdps(30):
            level, scale = mpf(str(case["fraction"])) * target, mpf(str(case["init_scale"]))
            found = modes.mode_time(
                level, target, depth=case["depth"], scale=scale, alpha=case.get("alpha", 1)
            )
            assert abs(found / mpf(case["time"]) - 1) < mpf(10) ** -24, case


def test_descent_of_a_mode_is_that_of_the_oracle():
    for case in oracle("gd_map"):
        steps = {int(step): mpf(value) for step, value in case["end_to_end_singular_value"].items()}
        few = [step for step in steps if step <= 1000]
        found = modes.mode_descent(
            float(case["sigma_star"]), depth=case["depth"], scale=case["init_scale"],
            learning_rate=case["learning_rate"], steps=max(few),
        )
        for step in few:
            assert abs(found[step] / float(steps[step]) - 1) < 1e-11, (case["depth"], step)


@pytest.mark.parametrize("depth", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("alpha", [1.0, 3.0])
@pytest.mark.parametrize("target", [2.0, 0.5, 0.0])
def test_closed_form_and_solver_agree_for_rising_falling_and_zero_modes(depth, alpha, target):
    times = [0.0, 0.2, 0.5]
    solved = modes.mode_values(times, target, depth=depth, scale=0.9, alpha=alpha)
    for time, value in zip(times[1:], solved[1:], strict=True):
        taken = modes.mode_time(value, target, depth=depth, scale=0.9, alpha=alpha)
        assert abs(taken / time - 1) < 1e-9
    if alpha == 1:
        exact = modes.mode_value(0.5, target, depth=depth, scale=0.9)
        assert abs(exact / solved[-1] - 1) < 1e-10


@pytest.mark.parametrize("depth", [1, 2, 3, 4, 5])
def test_the_leading_fit_time_is_the_limit_of_fit_times(depth):
    gaps = []
    for scale in ("1e-3", "1e-6"):
        options = {"depth": depth, "scale": mpf(scale) ** (1 if depth < 3 else mpf(1) / 2), "tolerance": 0.3}
        gaps.append(abs(modes.leading_fit_time(2.0, **options) / modes.fit_time(2.0, **options) - 1))
    assert gaps[1] < max(gaps[0] / 10, 1e-20)
    assert gaps[1] < 0.01


def test_fit_times_from_above_at_and_far_from_the_target():
    options = {"depth": 2, "scale": 1.0, "tolerance": 0.1}
    assert modes.fit_time(1.05, **options) == 0
    assert modes.fit_time(0.0, **options) == mpmath.inf
    above = modes.fit_time(0.5, **options)
    assert abs(modes.mode_value(above, 0.5, depth=2, scale=1.0) - mpf("0.55")) < 1e-16
    assert abs(modes.rate(0.55, 0.5, depth=2) - 2 * mpf("0.55") * (mpf("0.5") - mpf(0.55))) < 1e-15


def test_plateaus_are_half_the_squares_that_are_left():
    assert modes.plateaus([3.0, 2.0, 1.0]) == [7, 2.5, 0.5, 0]


def test_the_two_cycle_of_two_factors_is_that_of_a_quadratic_equation():
    # At a times the edge, for a target of 1, y = √a x: y_1 y_2 = 1 and y_1² + y_2² = 1 + a.
    low, high = modes.two_cycle(1.0, depth=2, learning_rate=1.2)
    assert abs(low * high * mpf(1.2) ** 2 - 1) < 1e-15
    assert abs((low + high) * mpf(1.2) - mpf(1.2) - 1) < 1e-15
    assert modes.two_cycle(1.0, depth=2, learning_rate=0.9) == (1, 1)


@pytest.mark.parametrize("case", oracle("two_cycle_limits")["cases"], ids=lambda case: f"L{case['depth']}")
def test_the_two_cycle_attracts_up_to_the_limit_of_the_oracle(case):
    depth, limit = case["depth"], float(case["attracts_up_to"])

    def multiplier(fraction):  # f'(x) f'(f(x)) along the cycle
        eta = fraction * 2 / depth
        cycle = [float(mpmath.root(s, depth)) for s in modes.two_cycle(1.0, depth=depth, learning_rate=eta)]
        slopes = [(depth - 1) * x ** (depth - 2) - (2 * depth - 1) * x ** (2 * depth - 2) for x in cycle]
        return np.prod([1 + eta * slope for slope in slopes])

    assert abs(multiplier(limit - 1e-4)) < 1
    assert -1.02 < multiplier(limit - 1e-4) < -0.98


def test_a_step_on_unequal_factors_changes_their_balances_as_worked_by_hand():
    after = modes.descent_step([1.0, 2.0], 3.0, 0.5)
    assert list(after) == [2, mpf("2.5")]
    assert modes.balances(after)[1][0] == mpf("2.25")
    # b = 3, σ − σ* = −1, η = ½, nothing beside the two factors: 3 (1 − 1/4) = 9/4


# --- Originals, random matrices ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("widths", "rank", "expected"),
    [
        ((9, 9, 9), 2, [4, 4, 4]),
        ((30, 30, 30, 20), 3, [9, 9, 9, 6]),
        ((20, 30, 30, 30), 3, [6, 9, 9, 9]),
        ((30, 20, 20, 30), 3, [9, 6, 6, 9]),
        ((21, 20, 22), 3, [7, 6, 8]),
        ((5, 4, 5), 3, [5, 4, 5]),
    ],
)
def test_core_widths_are_those_counted_by_hand(widths, rank, expected):
    assert originals.core_widths(widths, rank) == expected


def test_the_bulk_moves_as_worked_by_hand():
    history = originals.bulk(2.0, depth=2, rate=0.1, steps=1, decay=0.5, alpha=3.0)
    np.testing.assert_allclose(history[1], 2 - 0.3 * (1 + 8), rtol=1e-14)
    history = originals.bulk(2.0, depth=3, rate=0.01, steps=1, alpha=3.0)
    np.testing.assert_allclose(history[1], [2 - 0.96, 2 - 0.32, 2 - 0.96], rtol=1e-14)


def test_moments_of_two_dimensions_are_the_integrals_over_rotations_and_reflections():
    angles = 2 * np.pi * np.arange(16) / 16  # exact for polynomials of degree below 16
    c, s = np.cos(angles), np.sin(angles)
    both = [np.array([[c, -s], [s, c]]), np.array([[c, s], [s, -c]])]
    matrices = np.moveaxis(np.concatenate(both, axis=2), 2, 0)
    found = random_matrices.haar_statistics(matrices)
    for name, expected in random_matrices.haar_moments(2).items():
        np.testing.assert_allclose(np.mean(found[name]), expected, atol=1e-14, err_msg=name)


@pytest.mark.parametrize("d", [3, 6])
def test_gram_schmidt_draws_haar_matrices(d):
    rng = np.random.default_rng(0)
    draws = np.array([random_matrices.haar(rng, d) for _ in range(2000)])
    np.testing.assert_allclose(draws[0].T @ draws[0], np.eye(d), atol=1e-14)
    for name, expected in random_matrices.haar_moments(d).items():
        found = random_matrices.haar_statistics(draws)[name]
        assert random_matrices.standard_errors(found, expected) < 5, name
    assert random_matrices.haar(rng, d, 2).shape == (d, 2)


def test_the_identity_is_not_haar():
    identities = np.tile(np.eye(3), (10, 1, 1))
    found = random_matrices.haar_statistics(identities)
    expected = random_matrices.haar_moments(3)
    assert max(random_matrices.standard_errors(found[name], expected[name]) for name in expected) > 100
