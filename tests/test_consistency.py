"""Every form of a problem and every solver give the same run."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lowdim_jax as ld
from lowdim_jax import theory

VALUES = np.array([2.0, 1.0])
DEPTH, SCALE = 3, 0.3


def factors():
    rng = np.random.default_rng(0)
    left, right = (np.linalg.qr(rng.standard_normal((d, 2)))[0] for d in (6, 7))
    return jnp.asarray(left), jnp.asarray(VALUES), jnp.asarray(right)


FORMS = {
    "dense": lambda u, s, v: ld.factorization((u * s[None]) @ v.T),
    "numpy": lambda u, s, v: ld.factorization(np.asarray((u * s[None]) @ v.T)),
    "factored": lambda u, s, v: ld.factorization(ld.LowRank(u, s, v)),
    "tuple": lambda u, s, v: ld.factorization((u * s[None], jnp.ones(2), v)),
}
TIMES = np.array([0.0, 1.0, 2.0, 4.0])


def themselves(weights):
    return weights


def descend(problem, weights, alpha, rate=1e-3):
    steps = round(TIMES[-1] / rate)
    run = ld.gradient_descent(
        problem.loss,
        weights,
        ld.GradientDescent(rate, alpha=alpha),
        steps=steps,
        record_every=round(1 / rate),
        observe=themselves,
    )
    rows = np.searchsorted(np.asarray(run.steps) * rate, TIMES - 1e-9)
    return run.losses[rows], jax.tree.map(lambda w: w[rows], run.observed)


def optax_descent(problem, weights, alpha, rate=1e-3):
    steps = round(TIMES[-1] / rate)
    run = ld.gradient_descent(
        problem.loss,
        weights,
        ld.by_role(optax.sgd(alpha * rate), optax.sgd(rate)),
        steps=steps,
        record_every=round(1 / rate),
        observe=themselves,
    )
    rows = np.searchsorted(np.asarray(run.steps) * rate, TIMES - 1e-9)
    return run.losses[rows], jax.tree.map(lambda w: w[rows], run.observed)


def flow(solver):
    def solve(problem, weights, alpha):
        run = ld.gradient_flow(
            problem.loss, weights, TIMES, alpha=alpha, solver=solver, observe=themselves
        )
        return run.losses, run.observed

    return solve


SOLVERS = {
    "descent": (descend, 5e-3),
    "optax": (optax_descent, 5e-3),
    "explicit": (flow("explicit"), 1e-6),
    "implicit": (flow("implicit"), 1e-6),
    "auto": (flow("auto"), 1e-6),
}


@pytest.mark.parametrize("alpha", [1.0, 2.0])
@pytest.mark.parametrize("solver", SOLVERS)
def test_every_form_and_solver_follow_the_closed_form(x64, solver, alpha):
    solve, tolerance = SOLVERS[solver]
    u, s, v = factors()
    sigma = theory.mode_trajectory(
        jnp.asarray(TIMES)[:, None], s[None], depth=DEPTH, scale=SCALE, alpha=alpha
    )
    expected = np.asarray((u[None] * sigma[:, None]) @ v.T[None])
    weights = ld.compress(ld.LowRank(u, s, v), depth=DEPTH, scale=SCALE, rank=2)
    results = {}
    for form, make in FORMS.items():
        losses, layers = solve(make(u, s, v), weights, alpha)
        products = np.asarray(layers[2] @ layers[1] @ layers[0])
        np.testing.assert_allclose(products, expected, atol=2 * tolerance, err_msg=form)
        loss = np.sum((np.asarray(sigma) - VALUES) ** 2, axis=1) / 2
        np.testing.assert_allclose(losses, loss, atol=4 * tolerance, err_msg=form)
        results[form] = products
    for form, products in results.items():
        np.testing.assert_allclose(products, results["dense"], atol=1e-7, err_msg=form)


@pytest.mark.parametrize("form", ["dense", "factored"])
def test_descent_approaches_the_flow_to_first_order(x64, form):
    u, s, v = factors()
    problem = FORMS[form](u, s, v)
    weights = ld.compress(problem, depth=DEPTH, scale=SCALE, rank=2)
    exact, _ = flow("explicit")(problem, weights, 1.0)
    errors = [
        float(jnp.abs(descend(problem, weights, 1.0, rate)[0] - exact).max())
        for rate in (2e-2, 1e-2, 5e-3)
    ]
    slopes = np.log2(np.array(errors[:-1]) / np.array(errors[1:]))
    np.testing.assert_allclose(slopes, 1.0, atol=0.1)


def test_transposing_problem_and_network_changes_nothing(x64):
    u, s, v = factors()
    weights = ld.orthogonal(jax.random.key(0), (7, 4, 4, 6), scale=SCALE)
    mirrored = tuple(w.T for w in weights[::-1])
    losses, _ = descend(FORMS["factored"](u, s, v), weights, 2.0)
    same, _ = descend(FORMS["factored"](v, s, u), mirrored, 2.0)
    np.testing.assert_allclose(losses, same, rtol=1e-10)


@pytest.mark.parametrize(("one", "other"), [("descent", "descent"), ("implicit", "explicit")])
def test_a_reduced_network_is_a_problem_like_any_other(x64, one, other):
    """Solvers know nothing of problems: the reduced one runs under them as the full one does."""
    target = ld.LowRank(*factors())
    weights = ld.orthogonal(jax.random.key(0), (7, 6, 6, 6), scale=SCALE)
    reduction = ld.reduce(weights, target)
    small, _ = SOLVERS[one][0](reduction.problem, reduction.layers, 2.0)
    full, _ = SOLVERS[other][0](ld.factorization(target), weights, 2.0)
    np.testing.assert_allclose(small, full, atol=1e-6)
