"""Two layers in closed form against 160-digit arithmetic, an ODE solver, limits and symmetries (2.7)."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp

from lowdim_jax import theory

CASES = json.loads((Path(__file__).parent / "oracle" / "two_layer_flow.json").read_text())["cases"]
SHAPES = {"square": (4, 4, 4), "bottleneck": (6, 3, 4)}
"""`(d_in, h, d_out)`; as few as possible, and five times everywhere: each shape is compiled once."""


TIMES = np.array([0.01, 0.3, 1.0, 2.0, 7.0])


def frame(rng, rows, columns):
    q = np.linalg.qr(rng.standard_normal((max(rows, columns), min(rows, columns))))[0]
    return q if rows >= columns else q.T


def start(rng, shape, inner_scale, outer_scale):
    d_in, hidden, d_out = shape
    return inner_scale * frame(rng, hidden, d_in), outer_scale * frame(rng, d_out, hidden)


def matrix(rng, shape, sigma):
    d_in, _, d_out = shape
    r = len(sigma)
    return frame(rng, d_out, r) * np.asarray(sigma) @ frame(rng, d_in, r).T


def integrated(t, inner, outer, target):
    """Both layers at `t` by SciPy."""
    split = inner.size

    def velocity(_, flat):
        w1, w2 = flat[:split].reshape(inner.shape), flat[split:].reshape(outer.shape)
        residual = target - w2 @ w1
        return np.concatenate([(w2.T @ residual).ravel(), (residual @ w1.T).ravel()])

    flat = np.concatenate([inner.ravel(), outer.ravel()])
    end = solve_ivp(velocity, (0, t), flat, method="DOP853", rtol=1e-13, atol=1e-15).y[:, -1]
    return end[:split].reshape(inner.shape), end[split:].reshape(outer.shape)


def gap(actual, desired):
    return np.linalg.norm(np.asarray(actual, float) - desired) / np.linalg.norm(desired)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"lambda={case['lam']}, h={len(case['W1'])}")
def test_the_flow_agrees_with_160_digit_arithmetic(x64, case):
    assert_oracle(case, "float64", 1e-13)


def test_the_flow_in_single_precision_agrees_with_160_digit_arithmetic():
    for case in (CASES[1], CASES[4]):  # a bottleneck, and λ = 50
        assert_oracle(case, "float32", 5e-6)


def assert_oracle(case, dtype, limit):
    given = [np.array(case[name], dtype) for name in ("t", "W1", "W2", "Phi")]
    found = theory.two_layer_flow(*given).end_to_end
    expected = np.array(case["W"], float)
    assert found.dtype == dtype
    assert max(map(gap, found, expected)) < limit


@pytest.mark.parametrize("scales", [(0.2, 0.2), (0.2, 0.9), (0.9, 0.2)])
def test_all_three_matrices_agree_with_an_integrator_in_every_shape(x64, scales):
    rng = np.random.default_rng(0)
    for name, shape in SHAPES.items():
        inner, outer = start(rng, shape, *scales)
        target = matrix(rng, shape, (3.0, 1.0))
        run = theory.two_layer_flow(TIMES, inner, outer, target)
        for i, t in enumerate(TIMES):
            w1, w2 = integrated(t, inner, outer, target)
            assert gap(run.end_to_end[i], w2 @ w1) < 1e-10, name
            assert gap(run.inner_gram[i], w1.T @ w1) < 1e-10, name
            assert gap(run.outer_gram[i], w2 @ w2.T) < 1e-10, name


def test_a_hidden_layer_wider_than_everything_is_followed_too(x64):
    rng = np.random.default_rng(1)
    hidden, s = frame(rng, 9, 3), np.array([0.5, 0.1, 1e-4])
    inner, outer = (hidden * s) @ frame(rng, 7, 3).T, frame(rng, 5, 3) @ (hidden * s).T
    target = 4 * np.outer(frame(rng, 5, 1), frame(rng, 7, 1))
    run = theory.two_layer_flow(TIMES, inner, outer, target)
    w1, w2 = integrated(TIMES[-1], inner, outer, target)
    assert gap(run.end_to_end[-1], w2 @ w1) < 1e-10


def test_the_orientation_is_a_transposition(x64):
    rng = np.random.default_rng(2)
    inner, outer = start(rng, SHAPES["bottleneck"], 0.3, 0.3)
    target = matrix(rng, SHAPES["bottleneck"], (2.0, 0.7))
    run = theory.two_layer_flow(TIMES, inner, outer, target)
    other = theory.two_layer_flow(TIMES, outer.T, inner.T, target.T)
    assert gap(other.end_to_end.mT, np.asarray(run.end_to_end)) < 1e-13
    assert gap(other.inner_gram, np.asarray(run.outer_gram)) < 1e-13


def test_it_starts_at_the_start_and_ends_at_the_best_approximation(dtype):
    rng = np.random.default_rng(3)
    for name, shape in SHAPES.items():
        inner, outer = start(rng, shape, 0.1, 0.1)
        sigma = (5.0, 3.0, 2.0, 1.0)[: min(shape[0], shape[2])]
        target = matrix(rng, shape, sigma)
        times = np.array([0.0, 1e6, 1e10, 1e20, 1e30], dtype)
        run = theory.two_layer_flow(times, *(np.asarray(x, dtype) for x in (inner, outer, target)))
        u, s, v = np.linalg.svd(target)
        best = u[:, : shape[1]] * s[: shape[1]] @ v[: shape[1]] if shape[1] < len(s) else target
        eps = np.finfo(dtype).eps
        assert gap(run.end_to_end[0], outer @ inner) < 8 * eps, name
        assert gap(run.end_to_end[1], best) < 32 * eps, name
        assert gap(run.end_to_end[-1], best) < 32 * eps, name


@pytest.mark.parametrize("balance", [-4.0, 0.0, 2.5])
def test_without_a_target_in_a_direction_it_decays_as_the_scalar_law_says(x64, balance):
    # One unit, target zero: W_1 = a, W_2 = b, b² − a² = λ, and p = ab follows ṗ = −p √(4p² + λ²).
    a = np.sqrt(0.3 + max(-balance, 0))
    b = np.sqrt(a**2 + balance)
    times = np.array([0.0, 1e-9, 0.1, 3.0, 1e3])
    found = theory.two_layer_flow(times, [[a]], [[b]], [[0.0]]).end_to_end[:, 0, 0]
    rate = abs(balance)
    if balance == 0:
        expected = a * b / (1 + 2 * a * b * times)
    else:
        c = np.arcsinh(rate / (2 * a * b))  # p = λ / (2 sinh(λt + c))
        x = rate * times + c
        expected = np.where(x < 300, rate / (2 * np.sinh(np.minimum(x, 300))), rate * np.exp(-x))
    np.testing.assert_allclose(found, expected, rtol=1e-13, atol=1e-300)


def test_square_starts_of_one_scale_follow_the_mode_law_in_the_targets_bases(x64):
    rng = np.random.default_rng(4)
    u, v, sigma = frame(rng, 4, 4), frame(rng, 4, 4), np.array([4.0, 2.0, 1.0, 0.0])
    t = np.array([[0.0, 0.5, 2.0, 10.0, 40.0]])
    run = theory.two_layer_flow(t, 0.1 * v.T, 0.1 * u, u * sigma @ v.T)
    growth = np.exp(2 * sigma * t[..., None])
    scalar = 0.01 * growth / (1 + 0.02 * np.where(sigma > 0, (growth - 1) / (2 * sigma + (sigma == 0)),
                                                   t[..., None]))
    np.testing.assert_allclose(u.T @ run.end_to_end @ v, scalar[..., None] * np.eye(4), atol=1e-13)


def test_the_tangent_kernel_is_the_jacobian_times_its_transpose(x64):
    rng = np.random.default_rng(5)
    inner, outer = rng.standard_normal((3, 4)), rng.standard_normal((2, 3))
    jacobians = jax.jacobian(lambda a, b: b @ a, argnums=(0, 1))(inner, outer)
    parts = [np.asarray(part).reshape(2, 4, -1) for part in jacobians]
    expected = sum(np.einsum("aiw,bjw->aibj", part, part) for part in parts)
    kernel = theory.tangent_kernel(jnp.asarray(inner.T @ inner), jnp.asarray(outer @ outer.T))
    np.testing.assert_allclose(kernel, expected, atol=1e-13)


def test_the_end_to_end_matrix_moves_by_the_tangent_kernel(x64):
    rng = np.random.default_rng(6)
    shape = SHAPES["bottleneck"]
    inner, outer = start(rng, shape, 0.5, 0.5)
    target = matrix(rng, shape, (3.0, 1.0))
    t = np.array([0.0, 0.1, 0.4 - 1e-5, 0.4, 0.4 + 1e-5])
    run = theory.two_layer_flow(t, inner, outer, target)
    kernel = theory.tangent_kernel(run.inner_gram[3], run.outer_gram[3])
    predicted = np.einsum("aibj,bj->ai", kernel, target - run.end_to_end[3])
    assert gap((run.end_to_end[4] - run.end_to_end[2]) / 2e-5, predicted) < 1e-8


def test_derivatives_in_time_and_start_are_those_of_the_flow(x64):
    rng = np.random.default_rng(7)
    shape = SHAPES["bottleneck"]
    inner, outer = start(rng, shape, 0.5, 0.5)
    target = matrix(rng, shape, (3.0, 1.0))
    spin = np.linalg.svd(rng.standard_normal((3, 3)))[0]

    def loss(t, scale):
        run = theory.two_layer_flow(t, scale * inner, scale * outer, target)
        return jnp.sum((run.end_to_end - target) ** 2) / 2

    def reference(t, scale):
        w1, w2 = integrated(t, scale * spin @ inner, scale * outer @ spin.T, target)
        return np.sum((w2 @ w1 - target) ** 2) / 2

    slopes = jax.grad(loss, argnums=(0, 1))(0.7, 1.1)
    h = 1e-4
    for slope, up, down in (
        (slopes[0], reference(0.7 + h, 1.1), reference(0.7 - h, 1.1)),
        (slopes[1], reference(0.7, 1.1 + h), reference(0.7, 1.1 - h)),
    ):
        np.testing.assert_allclose(slope, (up - down) / (2 * h), rtol=1e-6)


def test_it_composes_with_jit_and_vmap(x64):
    rng = np.random.default_rng(8)
    starts = [start(rng, (3, 3, 3), 0.2, 0.2) for _ in range(2)]
    inner, outer = (jnp.stack([jnp.asarray(s[i]) for s in starts]) for i in (0, 1))
    target = jnp.diag(jnp.array([2.0, 1.0, 0.0]))

    def end(a, b):
        return theory.two_layer_flow(1.0, a, b, target).end_to_end

    both = jax.jit(jax.vmap(end))(inner, outer)
    for i in range(2):
        assert gap(both[i], np.asarray(end(inner[i], outer[i]))) < 1e-13


def test_what_is_not_balanced_or_does_not_fit_is_refused(x64):
    rng = np.random.default_rng(9)
    inner, outer = rng.standard_normal((3, 4)), rng.standard_normal((4, 3))
    target = np.eye(4)
    with pytest.raises(ValueError, match=r"imbalance .* = 0\.\d+, expected a balanced start"):
        theory.two_layer_flow(1.0, inner, outer, target)
    with pytest.raises(ValueError, match=r"shapes \(3, 4\), \(4, 3\), \(3, 3\), expected \(h, d_in\)"):
        theory.two_layer_flow(1.0, inner, outer, np.eye(3))
    with pytest.raises(ValueError, match="t=-1"):
        theory.two_layer_flow(-1.0, 0.1 * target, 0.1 * target, target)
    with pytest.raises(ValueError, match="inner=nan"):
        theory.two_layer_flow(1.0, np.nan * target, 0.1 * target, target)
