"""Claims on gradient descent: the update, the records, how a run ends, and what compiles."""

from dataclasses import dataclass
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lowdim_jax as ld
from lowdim_jax.trajectory import Status

VALUES = np.array([2.0, 1.0])


def problem_of(values=VALUES, shape=(5, 6)):
    rng = np.random.default_rng(0)
    left, right = (np.linalg.qr(rng.standard_normal((d, len(values))))[0] for d in shape)
    return ld.factorization(jnp.asarray(left * values @ right.T, float))


def network(seed=0, scale=0.5, spaces=(6, 4, 4, 5)):
    rng = np.random.default_rng(seed)
    return tuple(
        jnp.asarray(scale * rng.standard_normal((after, before)) / 2.5, float)
        for before, after in pairwise(spaces)
    )


def numpy_gradients(weights, target):
    """Loss and gradients of ½‖W_3 W_2 W_1 − Φ‖², written out."""
    a, b, c = weights
    error = c @ b @ a - target
    return 0.5 * np.sum(error**2), (b.T @ c.T @ error, c.T @ error @ a.T, error @ a.T @ b.T)


def numpy_descent(weights, target, steps, eta, alpha=1.0, decay=0.0, beta=0.0, nesterov=False):
    """Weights and losses at every step of a plain Python loop."""
    weights, target = [np.asarray(w) for w in weights], np.asarray(target)
    buffer = [np.zeros_like(w) for w in weights]
    rates = [alpha * eta, eta, alpha * eta]
    history, losses = [], []
    for _ in range(steps + 1):
        loss, gradients = numpy_gradients(weights, target)
        history.append(list(weights))
        losses.append(loss)
        gradients = [g + decay * w for g, w in zip(gradients, weights, strict=True)]
        buffer = [beta * m + g for m, g in zip(buffer, gradients, strict=True)]
        moves = (
            [beta * m + g for m, g in zip(buffer, gradients, strict=True)] if nesterov else buffer
        )
        weights = [w - rate * m for w, rate, m in zip(weights, rates, moves, strict=True)]
    return history, np.array(losses)


@pytest.mark.parametrize(
    ("optimizer", "settings"),
    [
        (ld.GradientDescent(0.1), {"eta": 0.1}),
        (ld.GradientDescent(0.1, alpha=3.0), {"eta": 0.1, "alpha": 3.0}),
        (ld.GradientDescent(0.1, weight_decay=0.2), {"eta": 0.1, "decay": 0.2}),
        (ld.GradientDescent(0.03, momentum=0.8), {"eta": 0.03, "beta": 0.8}),
        (
            ld.GradientDescent(0.03, alpha=2.0, momentum=0.8, nesterov=True, weight_decay=0.1),
            {"eta": 0.03, "alpha": 2.0, "beta": 0.8, "nesterov": True, "decay": 0.1},
        ),
    ],
    ids=["plain", "discrepant", "weight decay", "momentum", "all"],
)
def test_every_recorded_step_is_the_hand_written_update(x64, optimizer, settings):
    problem, weights = problem_of(), network()
    run = ld.gradient_descent(
        problem.loss, weights, optimizer, steps=13, record_every=5, observe=lambda w: w
    )
    history, losses = numpy_descent(weights, problem.target, 13, **settings)
    at = [0, 5, 10, 13]
    np.testing.assert_array_equal(run.steps, at)
    np.testing.assert_allclose(run.losses, losses[at], rtol=1e-12)
    for row, step in enumerate(at):
        for observed, expected in zip(run.observed, history[step], strict=True):
            np.testing.assert_allclose(observed[row], expected, atol=1e-14)
    for final, expected in zip(run.weights, history[13], strict=True):
        np.testing.assert_allclose(final, expected, atol=1e-14)
    assert (run.status, run.count, run.num_steps) == (Status.COMPLETED, 4, 13)


@pytest.mark.parametrize(
    ("steps", "every"), [(0, 1), (0, 7), (1, 1), (6, 3), (7, 3), (2, 5), (5, 5)]
)
def test_records_are_every_k_steps_and_the_last(steps, every):
    run = ld.gradient_descent(
        problem_of().loss, network(), ld.GradientDescent(0.01), steps=steps, record_every=every
    )
    expected = sorted({*range(0, steps, every), steps})
    assert run.steps.tolist() == expected
    assert len(run.losses) == run.count == len(expected)


@pytest.mark.parametrize(
    ("sgd", "chain"),
    [
        (ld.GradientDescent(0.05), optax.sgd(0.05)),
        (ld.GradientDescent(0.05, momentum=0.9), optax.sgd(0.05, momentum=0.9)),
        (
            ld.GradientDescent(0.05, momentum=0.9, nesterov=True, weight_decay=0.1),
            optax.chain(
                optax.add_decayed_weights(0.1), optax.sgd(0.05, momentum=0.9, nesterov=True)
            ),
        ),
    ],
    ids=["plain", "momentum", "nesterov and decay"],
)
def test_sgd_is_optaxs(x64, sgd, chain):
    runs = [
        ld.gradient_descent(problem_of().loss, network(), optimizer, steps=10)
        for optimizer in (sgd, chain)
    ]
    np.testing.assert_allclose(runs[0].losses, runs[1].losses, rtol=1e-12)


def test_discrepant_rates_are_by_roles_too(x64):
    parts = ld.by_role(optax.sgd(0.15, momentum=0.5), optax.sgd(0.05, momentum=0.5))
    runs = [
        ld.gradient_descent(problem_of().loss, network(), optimizer, steps=10)
        for optimizer in (ld.GradientDescent(0.05, alpha=3.0, momentum=0.5), parts)
    ]
    np.testing.assert_allclose(runs[0].losses, runs[1].losses, rtol=1e-12)


@pytest.mark.parametrize(
    "optimizer",
    [
        optax.adam(0.02),
        optax.adamw(optax.cosine_decay_schedule(0.02, 40)),
        ld.by_role(optax.rmsprop(0.02), optax.lion(0.005)),
        optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1)),
    ],
    ids=["adam", "adamw on a schedule", "by role", "clipped"],
)
def test_any_optax_optimizer_trains_as_in_a_python_loop(optimizer):
    problem, weights = problem_of(), network()
    run = ld.gradient_descent(problem, weights, optimizer, steps=20, record_every=20)

    @jax.jit
    def step(weights, state):
        with jax.numpy_dtype_promotion("standard"):
            updates, state = optimizer.update(jax.grad(problem.loss)(weights), state, weights)
        return optax.apply_updates(weights, updates), state

    state = optimizer.init(weights)
    for _ in range(20):
        weights, state = step(weights, state)
    assert run.losses[-1] < run.losses[0]
    for ours, theirs in zip(run.weights, weights, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-5)


def test_alpha_zero_freezes_the_outer_layers_only():
    weights = network()
    run = ld.gradient_descent(problem_of().loss, weights, ld.GradientDescent(0.1, alpha=0.0), steps=5)
    moved = [not np.array_equal(a, b) for a, b in zip(run.weights, weights, strict=True)]
    assert moved == [False, True, False]


def test_weights_keep_their_type(dtype):
    run = ld.gradient_descent(
        problem_of().loss, network(), ld.GradientDescent(0.1, momentum=0.9, weight_decay=0.1), steps=3
    )
    assert {w.dtype for w in run.weights} == {jnp.dtype(dtype)} == {run.losses.dtype}


def test_layers_may_be_pytrees(x64):
    """The reduced network's layers are: a loss knows their meaning, the solver does not."""
    weights = ({"a": jnp.array([0.5]), "b": jnp.array(0.1)}, jnp.array([0.4]), jnp.array([0.3]))

    def loss(w):
        return (w[0]["a"] * w[1] * w[2] - 1.0)[0] ** 2 / 2 + w[0]["b"] ** 2

    run = ld.gradient_descent(loss, weights, ld.GradientDescent(0.1, alpha=2.0), steps=1)
    np.testing.assert_allclose(run.weights[0]["b"], 0.1 - 0.2 * 0.2)
    np.testing.assert_allclose(run.weights[1], 0.4 + 0.1 * (1 - 0.06) * 0.15)


def test_a_run_stops_at_the_first_record_at_the_tolerance(x64):
    problem, weights = problem_of(), network()
    full = ld.gradient_descent(problem, weights, ld.GradientDescent(0.1), steps=300)
    tolerance = 1e-3
    first = int(np.argmax(np.asarray(full.losses) <= tolerance))
    assert 7 < first < 290
    run = ld.gradient_descent(
        problem.loss, weights, ld.GradientDescent(0.1), steps=300, record_every=7, tolerance=tolerance
    )
    stop = -(-first // 7) * 7
    assert (run.status, run.num_steps, int(run.steps[-1])) == (Status.REACHED_TOLERANCE, stop, stop)
    assert len(run.steps) == len(run.losses) == run.count == stop // 7 + 1
    np.testing.assert_array_equal(run.losses, full.losses[: stop + 1 : 7])
    assert run.message == f"reached the loss tolerance after {stop} steps"
    assert run.ok
    assert run.raise_if_failed() is run


def test_a_start_within_tolerance_takes_no_step():
    run = ld.gradient_descent(problem_of().loss, network(), ld.GradientDescent(0.1), steps=9, tolerance=1e9)
    assert (run.status, run.num_steps, run.count) == (Status.REACHED_TOLERANCE, 0, 1)


def test_divergence_names_its_first_step_and_the_stable_learning_rate(x64):
    problem, weights = problem_of(), network()
    rate = 3.0
    with np.errstate(all="ignore"):
        _, losses = numpy_descent(weights, problem.target, 40, rate)
    first = int(np.argmin(np.isfinite(losses)))
    assert 0 < first < 40
    run = ld.gradient_descent(problem, weights, ld.GradientDescent(rate), steps=40, record_every=4)
    assert (run.status, run.num_steps, int(run.steps[-1])) == (Status.DIVERGED, first, first)
    assert not run.ok
    assert np.all(np.isfinite(run.losses[:-1]))
    assert not np.isfinite(run.losses[-1])
    edge = 2 / (3 * 2.0 ** (4 / 3))
    assert run.message == (
        f"diverged: the loss is not finite at step {first}; the learning rate is 3, "
        f"and gradient descent is stable below {edge:g} here"
    )
    with pytest.raises(RuntimeError, match=f"not finite at step {first}; .*stable below"):
        ld.gradient_descent(problem, weights, ld.GradientDescent(rate), steps=40, throw=True)


def test_the_edge_of_stability_scales_with_alpha_in_the_message():
    problem = problem_of()
    run = ld.gradient_descent(problem, network(), ld.GradientDescent(3.0, alpha=2.0), steps=40)
    edge = 2 / (3 * 2.0 ** (4 / 3) * 2.0 ** (2 / 3))
    assert f"stable below {edge:.4f}"[:-1] in run.message


def test_a_start_that_is_not_finite_diverges_at_step_zero():
    weights = network()
    weights = (weights[0].at[0, 0].set(jnp.nan), *weights[1:])
    run = ld.gradient_descent(problem_of().loss, weights, ld.GradientDescent(0.1), steps=5)
    assert (run.status, run.num_steps, run.count) == (Status.DIVERGED, 0, 1)
    assert "not finite at step 0" in run.message


def test_divergence_of_any_loss_is_a_status():
    run = ld.gradient_descent(
        lambda w: -jnp.sum(jnp.exp(w[0])), (jnp.array([1.0]),), ld.GradientDescent(1.0), steps=50
    )
    assert run.status == Status.DIVERGED
    assert "stable" not in run.message


@pytest.mark.parametrize(("every", "progress_every"), [(1, None), (3, 5), (5, 5), (4, 100)])
def test_progress_is_called_and_changes_nothing(x64, every, progress_every):
    problem, weights = problem_of(), network()
    options = {"steps": 21, "record_every": every, "observe": lambda w: w[1]}
    plain = ld.gradient_descent(problem, weights, ld.GradientDescent(0.1, momentum=0.5), **options)
    seen = []
    run = ld.gradient_descent(
        problem.loss,
        weights,
        ld.GradientDescent(0.1, momentum=0.5),
        callback=lambda state: seen.append((int(state.step), float(state.loss))),
        callback_every=progress_every,
        **options,
    )
    chunk = {(1, None): 1, (3, 5): 6, (5, 5): 5, (4, 100): 100}[every, progress_every]
    assert [step for step, _ in seen] == [*range(chunk, 21, chunk), 21]
    assert seen[-1][1] == run.losses[-1]
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(run), strict=True):
        np.testing.assert_array_equal(a, b)


def test_progress_ends_where_the_run_stops_early(x64):
    problem, weights = problem_of(), network()
    for optimizer, options in [(ld.GradientDescent(0.1), {"tolerance": 0.5}), (ld.GradientDescent(3.0), {})]:
        plain = ld.gradient_descent(problem, weights, optimizer, steps=90, **options)
        seen = []
        run = ld.gradient_descent(
            problem.loss,
            weights,
            optimizer,
            steps=90,
            callback=seen.append,
            callback_every=5,
            **options,
        )
        assert run.num_steps == plain.num_steps == seen[-1].step
        assert run.num_steps < 85
        assert len(seen) == -(-int(run.num_steps) // 5)
        assert run.status == plain.status


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Counted:
    """A problem whose loss counts how often Python runs it: once a trace."""

    target: jax.Array

    def loss(self, weights):
        Counted.traces += 1
        return jnp.sum((ld.end_to_end(weights) - self.target) ** 2) / 2


def test_nothing_is_traced_again_when_only_numbers_change():
    target = jnp.asarray(problem_of().target)
    Counted.traces = 0

    def run(eta=0.1, alpha=1.0, scale=0.5, seed=0, factor=1.0, steps=6, every=2, tolerance=1e-9):
        return ld.gradient_descent(
            Counted(factor * target).loss,
            network(seed, scale),
            ld.GradientDescent(eta, alpha=alpha, momentum=0.1, weight_decay=0.01),
            steps=steps,
            record_every=every,
            tolerance=tolerance,
        )

    baseline = run().losses[-1]
    first = Counted.traces
    assert 0 < first <= 4
    for change in (
        {"eta": 0.2},
        {"alpha": 2.0},
        {"scale": 0.1},
        {"seed": 3},
        {"factor": 2.0},
        {"tolerance": 10.0},
    ):
        assert run(**change).losses[-1] != baseline
        assert Counted.traces == first, f"{change} traced the loss again"
    run(steps=8, every=3)  # as many records, so the same shapes
    assert Counted.traces == first


def test_the_arrays_of_a_problem_are_not_compiled_in():
    """Two problems of one shape share a compiled loop, and each gets its own result."""
    weights = network()
    losses = [
        float(
            ld.gradient_descent(
                ld.factorization(factor * problem_of().target).loss, weights, ld.GradientDescent(0.1), steps=1
            ).losses[0]
        )
        for factor in (1.0, 2.0)
    ]
    assert losses[0] != losses[1]


@pytest.mark.parametrize("over", ["seed", "scale", "rate", "alpha"])
def test_mapped_runs_are_the_looped_ones(x64, over):
    problem = problem_of()
    stacked = jax.tree.map(lambda *w: jnp.stack(w), *(network(seed) for seed in range(3)))
    values = jnp.array([0.3, 0.5, 0.7])

    def run(weights, scale, rate, alpha):
        weights = tuple(scale * w for w in weights)
        return ld.gradient_descent(
            problem.loss, weights, ld.GradientDescent(0.2 * rate, alpha=2 * alpha), steps=9, record_every=4
        )

    arguments = {"seed": network(), "scale": 1.0, "rate": 0.5, "alpha": 0.5}
    arguments[over] = stacked if over == "seed" else values
    axes = [0 if name == over else None for name in arguments]
    mapped = jax.vmap(run, in_axes=axes)(*arguments.values())
    for i in range(3):
        one = dict(arguments)
        one[over] = jax.tree.map(lambda x, i=i: x[i], arguments[over])
        looped = run(*one.values())
        np.testing.assert_allclose(mapped.losses[i], looped.losses, rtol=1e-12)
        np.testing.assert_array_equal(mapped.steps[i], looped.steps)
        for a, b in zip(mapped.weights, looped.weights, strict=True):
            np.testing.assert_allclose(a[i], b, atol=1e-13)
        assert mapped.count[i] == looped.count
        assert mapped.status[i] == looped.status


def test_mapped_runs_that_stop_early_are_padded_with_nan(x64):
    problem, weights = problem_of(), network()
    tolerances = jnp.array([1e9, 1.0, 0.0])

    def run(tolerance):
        return ld.gradient_descent(
            problem.loss,
            weights,
            ld.GradientDescent(0.1),
            steps=20,
            record_every=2,
            tolerance=tolerance,
            observe=lambda w: w[0][0],
        )

    mapped = jax.vmap(run)(tolerances)
    assert mapped.losses.shape == (3, 11)
    assert mapped.status.tolist() == [Status.REACHED_TOLERANCE, Status.REACHED_TOLERANCE, 0]
    for i, tolerance in enumerate(tolerances):
        looped, count = run(tolerance), int(mapped.count[i])
        assert count == looped.count
        np.testing.assert_allclose(mapped.losses[i, :count], looped.losses, rtol=1e-12)
        assert np.all(np.isnan(mapped.losses[i, count:]))
        assert np.all(np.isnan(mapped.observed[i, count:]))
        assert np.all(mapped.steps[i, count:] == 0)
    assert mapped.count[0] == 1 < mapped.count[1] < mapped.count[2] == 11


def test_a_mapped_run_that_diverges_leaves_the_others_alone(x64):
    problem, weights = problem_of(), network()
    run = jax.vmap(
        lambda rate: ld.gradient_descent(problem, weights, ld.GradientDescent(rate), steps=30)
    )(jnp.array([0.1, 3.0]))
    assert run.status.tolist() == [Status.COMPLETED, Status.DIVERGED]
    alone = ld.gradient_descent(problem, weights, ld.GradientDescent(0.1), steps=30)
    np.testing.assert_allclose(run.losses[0], alone.losses, rtol=1e-12)


def test_a_run_compiles_into_a_larger_program_and_has_tangents(x64):
    problem, weights = problem_of(), network()

    def final(rate):
        return ld.gradient_descent(problem, weights, ld.GradientDescent(rate), steps=10).losses[-1]

    value, slope = jax.jit(lambda rate: jax.jvp(final, (rate,), (jnp.ones_like(rate),)))(0.1)
    np.testing.assert_allclose(value, final(0.1), rtol=1e-12)
    np.testing.assert_allclose(slope, (final(0.1 + 1e-6) - final(0.1 - 1e-6)) / 2e-6, rtol=1e-6)


def test_importing_and_running_changes_no_global_setting():
    before = jax.config.jax_enable_x64, jax.config.jax_numpy_dtype_promotion
    ld.gradient_descent(problem_of().loss, network(), optax.adam(0.1), steps=1)
    assert (jax.config.jax_enable_x64, jax.config.jax_numpy_dtype_promotion) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": -1}, "steps=-1, expected at least 0"),
        ({"steps": 3, "record_every": 0}, "record_every=0, expected at least 1"),
        ({"steps": 3, "record_every": -2}, "record_every=-2, expected at least 1"),
        ({"steps": 3, "callback_every": 0}, "callback_every=0, expected at least 1"),
    ],
)
def test_bad_settings_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        ld.gradient_descent(problem_of().loss, network(), ld.GradientDescent(0.1), **options)


def test_a_network_that_does_not_fit_the_target_is_named():
    with pytest.raises(ValueError, match=r"maps 3 inputs to 5 outputs.* shape \(5, 6\)"):
        ld.gradient_descent(problem_of().loss, network(spaces=(3, 4, 5)), ld.GradientDescent(0.1), steps=1)
