"""Claims on gradient flow: both solvers give the closed form, and a failure says why."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy

import lowdim_jax as ld
from lowdim_jax import theory
from lowdim_jax.trajectory import Status

VALUES = np.array([2.0, 1.0])


def target_of(values=VALUES, shape=(5, 6)):
    rng = np.random.default_rng(0)
    left, right = (np.linalg.qr(rng.standard_normal((d, len(values))))[0] for d in shape)
    return ld.LowRank(*(jnp.asarray(a, float) for a in (left, values, right)))


TIMES = np.array([0.0, 0.3, 1.0, 2.5, 6.0])


def themselves(weights):
    return weights


def flow(weights, times=TIMES, **options):
    """A run that records its weights: of one shape and solver, all share a compiled program."""
    problem = ld.factorization(target_of())
    return ld.gradient_flow(problem, weights, times, observe=themselves, **options)


@pytest.mark.parametrize(
    ("solver", "depth", "alpha"),
    [
        ("explicit", 2, 1.0),
        ("explicit", 3, 1.0),
        ("explicit", 3, 2.5),
        ("implicit", 3, 1.0),
        ("implicit", 3, 2.5),
    ],
)
def test_each_mode_follows_its_closed_form(x64, solver, depth, alpha):
    target, scale = target_of(), 0.2
    weights = ld.compress(target, depth=depth, scale=scale, rank=3)
    run = flow(weights, alpha=alpha, solver=solver)
    modes = jax.vmap(lambda w: ld.spectra.modes(w, target))(run.observed)
    expected = theory.mode_trajectory(
        jnp.asarray(TIMES)[:, None],
        jnp.asarray(VALUES)[None],
        depth=depth,
        scale=scale,
        alpha=alpha,
    )
    assert run.status == Status.COMPLETED
    assert run.message.startswith("completed")
    np.testing.assert_array_equal(run.times, TIMES)
    np.testing.assert_allclose(modes, expected, rtol=1e-6)
    np.testing.assert_allclose(
        ld.factorization(target).loss(run.weights), run.losses[-1], rtol=1e-5, atol=1e-12
    )


@pytest.mark.parametrize("solver", ["explicit", "implicit"])
def test_single_precision_follows_the_closed_form(solver):
    target = target_of()
    weights = ld.compress(target, depth=3, scale=0.2, rank=3)
    run = flow(weights, rtol=1e-5, solver=solver)
    modes = jax.vmap(lambda w: ld.spectra.modes(w, target))(run.observed)
    expected = theory.mode_trajectory(
        jnp.asarray(TIMES)[:, None], jnp.asarray(VALUES, float)[None], depth=3, scale=0.2
    )
    assert run.losses.dtype == jnp.float32
    np.testing.assert_allclose(modes, expected, rtol=2e-3)


def test_both_solvers_agree_on_a_network_without_closed_form(x64):
    rng = np.random.default_rng(1)
    weights = tuple(jnp.asarray(0.3 * rng.standard_normal(s)) for s in [(3, 6), (3, 3), (5, 3)])
    runs = [flow(weights, solver=solver) for solver in ("explicit", "implicit")]
    for a, b in zip(*(run.observed for run in runs), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    np.testing.assert_array_equal(runs[0].observed[0][0], weights[0])


def test_deep_scalar_modes_rise_when_the_theory_says(x64):
    """Depth 5 from ε = 10⁻³: some 10⁹ explicit steps, and a rise within 10⁻⁴ of the wait for it."""
    depth, scale = 5, 1e-3
    targets = jnp.array([2.0, 1.0])

    def loss(weights):
        product = 1.0
        for weight in weights:
            product = product * weight
        return jnp.sum((product - targets) ** 2) / 2

    rise = theory.mode_time(targets / 2, targets, depth=depth, scale=scale)
    times = jnp.sort(jnp.concatenate([rise * (1 - 1e-4), rise * (1 + 1e-4)]))
    run = ld.gradient_flow(
        loss,
        (jnp.full(2, scale),) * depth,
        times,
        solver="implicit",
        observe=lambda w: w[0] * w[1] * w[2] * w[3] * w[4],
    )
    assert run.ok, run.message
    before_1, after_1, before_2, after_2 = np.asarray(run.observed)
    assert before_1[0] < 1e-3 * 2.0
    np.testing.assert_allclose(after_1[0], 2.0, rtol=1e-6)
    assert before_2[1] < 1e-3
    np.testing.assert_allclose(after_2, [2.0, 1.0], rtol=1e-6)


def test_auto_takes_the_implicit_solver_where_explicit_steps_would_be_too_many(x64):
    scale = 1e-4
    weights = ld.compress(target_of(), depth=3, scale=scale, rank=3)
    times = TIMES / TIMES[-1] * 1.5 * float(theory.mode_time(0.5, 1.0, depth=3, scale=scale))
    runs = {solver: flow(weights, times, solver=solver) for solver in ("auto", "implicit")}
    assert runs["auto"].ok
    assert runs["auto"].num_steps == runs["implicit"].num_steps < 2000
    assert runs["auto"].losses[-1] < 1e-8
    weights = ld.compress(target_of(), depth=3, scale=0.2, rank=3)
    short = {solver: flow(weights, solver=solver).steps for solver in ("auto", "explicit")}
    assert short["auto"] == short["explicit"]


def test_a_budget_that_ends_early_is_a_status_that_says_how_far_it_came(x64):
    weights = ld.compress(target_of(), depth=3, scale=0.2, rank=3)
    run = flow(weights, solver="explicit", max_steps=16)
    assert run.status == Status.OUT_OF_STEPS
    assert not run.ok
    assert 1 <= run.count < len(TIMES)
    assert len(run.times) == len(run.losses) == run.count
    assert np.all(np.isfinite(run.losses))
    last = f"{float(run.times[-1]):g}"
    assert f"out of steps: the budget of 16 steps ended after t = {last}" in run.message
    assert "it came to t = " in run.message
    with pytest.raises(RuntimeError, match="out of steps"):
        flow(weights, solver="explicit", max_steps=16, throw=True)


def test_a_start_that_is_not_finite_is_a_status(x64):
    weights = ld.compress(target_of(), depth=3, scale=0.2, rank=3)
    weights = (weights[0].at[0, 0].set(jnp.nan), *weights[1:])
    run = flow(weights, rtol=1e-5, solver="explicit", max_steps=16)
    assert run.status == Status.DIVERGED
    assert "not finite" in run.message


def test_alpha_zero_freezes_the_outer_layers(x64):
    weights = ld.compress(target_of(), depth=3, scale=0.5, rank=3)
    for solver in ("explicit", "implicit"):
        run = flow(weights, alpha=0.0, solver=solver)
        np.testing.assert_allclose(run.weights[0], weights[0], atol=1e-15)
        np.testing.assert_allclose(run.weights[2], weights[2], atol=1e-15)
        assert float(jnp.abs(run.weights[1] - weights[1]).max()) > 0.1


def test_mapped_runs_are_the_looped_ones(x64):
    def run(scale, alpha):
        weights = ld.compress(target_of(), depth=3, scale=scale, rank=3)
        return flow(weights, alpha=alpha, solver="implicit").losses

    scales, alphas = jnp.array([0.1, 0.4]), jnp.array([1.0, 2.0])
    mapped = jax.vmap(run)(scales, alphas)
    looped = jnp.stack([run(s, a) for s, a in zip(scales, alphas, strict=True)])
    np.testing.assert_allclose(mapped, looped, rtol=1e-5, atol=1e-10)


def test_mapped_runs_that_end_early_are_padded_with_nan(x64):
    def run(scale):
        weights = ld.compress(target_of(), depth=3, scale=scale, rank=3)
        return flow(weights, np.append(TIMES[:-1], 500.0), solver="explicit", max_steps=16)

    scales = jnp.array([0.1, 0.5])
    mapped = jax.vmap(run)(scales)
    assert mapped.status.tolist() == [Status.OUT_OF_STEPS] * 2
    for i in range(2):
        looped, count = run(scales[i]), int(mapped.count[i])
        assert 0 < count == looped.count < 5
        np.testing.assert_allclose(mapped.losses[i, :count], looped.losses, rtol=1e-8)
        assert np.all(np.isnan(mapped.losses[i, count:]))
        assert np.all(np.isnan(mapped.times[i, count:]))


@pytest.mark.parametrize(("solver", "tolerance"), [("explicit", 1e-5), ("implicit", 1e-3)])
def test_tangents_are_those_of_the_closed_form(x64, solver, tolerance):
    target = target_of()
    times = jnp.array([0.5, 1.0, 2.0])

    def measured(scale):
        weights = ld.compress(target, depth=3, scale=scale, rank=2)
        return ld.gradient_flow(
            ld.factorization(target).loss,
            weights,
            times,
            solver=solver,
            observe=lambda w: ld.spectra.modes(w, target),
        ).observed

    def predicted(scale):
        return theory.mode_trajectory(
            times[:, None], jnp.asarray(VALUES)[None], depth=3, scale=scale
        )

    _, slope = jax.jvp(measured, (0.3,), (1.0,))
    expected = (predicted(0.3 + 1e-5) - predicted(0.3 - 1e-5)) / 2e-5
    np.testing.assert_allclose(slope, expected, rtol=tolerance, atol=1e-6)


def test_nothing_is_traced_again_when_only_numbers_change():
    traces = []
    targets = jnp.array([2.0, 1.0])

    def loss(weights):
        traces.append(1)
        return jnp.sum((weights[0] * weights[1] - targets) ** 2) / 2

    def run(scale=0.3, alpha=1.0, end=1.0, rtol=1e-4):
        weights = (jnp.full(2, scale), jnp.full(2, scale))
        times = jnp.array([0.5, 1.0]) * end
        return ld.gradient_flow(
            loss, weights, times, alpha=alpha, rtol=rtol, solver="explicit"
        ).losses[-1]

    baseline, first = run(), len(traces)
    for change in ({"scale": 0.5}, {"alpha": 2.0}, {"end": 2.0}, {"rtol": 1e-3}):
        assert run(**change) != baseline
        assert len(traces) == first, f"{change} traced the loss again"


BAD = {
    "empty": (r"times has shape \(0,\)", {"times": np.zeros(0)}),
    "matrix": (r"times has shape \(1, 2\), expected a non-empty vector", {"times": [[0.0, 1.0]]}),
    "scalar": (r"times has shape \(\), expected", {"times": 1.0}),
    "decreasing": ("times is not an increasing", {"times": [1.0, 0.5]}),
    "repeated": ("times is not an increasing", {"times": [0.0, 1.0, 1.0]}),
    "negative": ("times is not an increasing", {"times": [-1.0, 1.0]}),
    "zero only": ("times .*expected|times is not", {"times": [0.0]}),
    "nan": ("times is not an increasing .* finite", {"times": [0.0, np.nan]}),
    "infinite": ("times is not an increasing .* finite", {"times": [0.0, np.inf]}),
    "solver": ("solver='magic', expected 'auto'", {"solver": "magic"}),
    "rtol": (r"rtol=0\.0, expected", {"rtol": 0.0}),
    "negative rtol": (r"rtol=-1\.0, expected", {"rtol": -1.0}),
    "max_steps": ("max_steps=0, expected", {"max_steps": 0}),
    "alpha": (r"alpha=-1\.0, expected", {"alpha": -1.0}),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_settings_are_named(name):
    message, options = BAD[name]
    options = {"times": TIMES, "rtol": 1e-4, **options}
    problem = ld.factorization(target_of())
    times = options.pop("times")
    with pytest.raises(ValueError, match=message):
        ld.gradient_flow(
            problem.loss,
            (0.2 * jnp.ones((2, 6)), 0.2 * jnp.ones((5, 2))),
            np.asarray(times),
            **options,
        )


def problem_and_start(dtype):
    target = ld.random_target(jax.random.key(0), (12, 9), jnp.asarray([3.0, 2.0, 1.0], dtype))
    return ld.factorization(target), ld.compress(target, depth=3, scale=0.3)


@pytest.mark.parametrize("solver", ["explicit", "implicit"])
def test_a_layer_that_starts_at_zero_is_no_trouble(x64, solver):
    """As an adapter's does: the error allowed follows from the layers that are not zero."""
    problem, (first, middle, last) = problem_and_start("float64")
    start = (first, middle, jnp.zeros_like(last))
    times = jnp.array([0.0, 0.5, 1.0])
    run = ld.gradient_flow(problem, start, times, solver=solver)
    assert run.ok
    assert run.num_steps < 500
    expected = scipy_flow(problem, start, times[-1])
    for layer, same in zip(run.weights, expected, strict=True):
        np.testing.assert_allclose(layer, same, atol=1e-6)


def scipy_flow(problem, start, end):
    """The end of the flow by SciPy's LSODA, on gradients of factorization written out in NumPy."""
    shapes = [layer.shape for layer in start]
    cuts = np.cumsum([np.prod(shape) for shape in shapes])[:-1]
    target = np.asarray(problem.target.dense())

    def layers(y):
        return [part.reshape(shape) for part, shape in zip(np.split(y, cuts), shapes, strict=True)]

    def field(_, y):
        a, b, c = layers(y)
        misfit = c @ b @ a - target
        parts = (c @ b).T @ misfit, c.T @ misfit @ a.T, misfit @ (b @ a).T
        return -np.concatenate([part.ravel() for part in parts])

    y0 = np.concatenate([np.ravel(layer) for layer in start])
    done = scipy.integrate.solve_ivp(field, (0, float(end)), y0, method="LSODA", rtol=1e-10, atol=1e-12)
    return layers(done.y[:, -1])


def test_a_start_that_is_not_finite_is_over_at_once(x64):
    problem, (first, middle, last) = problem_and_start("float64")
    run = ld.gradient_flow(problem, (first, middle.at[0, 0].set(jnp.nan), last), jnp.array([0.0, 5.0]))
    assert run.status == Status.DIVERGED
    assert run.num_steps < 100
    assert "not finite at the initial weights" in run.message


def test_nothing_moves_from_all_zeros(x64):
    problem, start = problem_and_start("float64")
    zeros = jax.tree.map(jnp.zeros_like, start)
    run = ld.gradient_flow(problem, zeros, jnp.array([0.0, 5.0]))
    assert run.ok
    assert run.num_steps < 100
    np.testing.assert_allclose(run.losses, (9 + 4 + 1) / 2)


def test_the_default_error_per_step_is_what_the_precision_resolves():
    problem, start = problem_and_start("float32")
    times = jnp.array([0.0, 1.0, 3.0])
    run = ld.gradient_flow(problem, start, times, solver="explicit")
    assert run.ok
    assert run.num_steps < 300  # at 1e-8 it would be thousands
