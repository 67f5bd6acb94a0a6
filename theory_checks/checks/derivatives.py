"""Derivatives of the closed forms and of trained networks, against differences of the reference."""

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from mpmath import mp, mpf

import lowdim_jax as ld
from lowdim_jax import theory
from lowdim_jax.flow import gradient_flow
from theory_checks.checks.losses import matrix_problems, start_of
from theory_checks.pairs import evidence_of
from theory_checks.reference import modes, networks
from theory_checks.registry import Evidence, check
from theory_checks.setting import Setting

MODES = {
    1: [(0.5, 2.0, 0.4, 3.0), (0.3, 0.1, 0.9, 0.5)],
    2: [(0.5, 2.0, 0.4, 3.0), (0.3, 0.1, 0.9, 0.5), (0.2, 0.0, 0.9, 0.5)],
    3: [(0.5, 2.0, 0.4, 3.0), (1.9, 2.0, 0.4, 0.4), (0.5, 0.2, 0.95, 0.5), (0.2, 0.0, 0.9, 2.0)],
}
"""Depths, and cases `(level, target, scale, alpha)`: rising, falling, and without a target."""


@check(
    "derivatives",
    claim="Derivatives that JAX takes of the closed forms, of descent, of both flow solvers and of every "
    "problem's gradient are those of differences at 30 digits, or of loops in NumPy.",
    source="2.2, 2.3, 2.5, 2.7, 3.7, 5.1, 5.3",
    controls={"of a network of one layer more": {"extra_depth": 1}},
    any_target=False,
    rests_on=("reference", "library"),
)
def derivatives(setting: Setting, /, *, extra_depth=0) -> Evidence:
    pairs = _of_modes(setting, extra_depth)
    if not extra_depth:
        pairs |= _of_stability(setting) | _of_originals(setting)
        pairs |= _of_runs(setting) | _hessians(setting)
    single = setting.dtype == "float32"
    return evidence_of(
        pairs,
        tolerance=setting.rounding(300) if single else 2e-7,
        reason="float32's rounding over a few hundred operations" if single
        else "both solvers' error per step, and differences of loops in float64; all else agrees to 1e-9",
        quantity="largest difference relative to the largest derivative predicted",
    )


def _of_modes(setting: Setting, extra: int) -> dict[str, Any]:
    """Slopes of times in every argument, and those of trajectories, which are the inverse's."""
    pairs: dict[str, Any] = {}
    for depth, cases in MODES.items():
        slopes = np.array([mode_slopes(*case, depth + extra) for case in cases])  # by level, σ*, ε, α
        times = [float(modes.mode_time(*c[:2], depth=depth + extra, scale=c[2], alpha=c[3])) for c in cases]
        level, target, scale, alpha = (jnp.asarray(part, setting.dtype) for part in zip(*cases, strict=True))
        found = _slopes(level, target, scale, alpha, jnp.asarray(times, setting.dtype), depth=depth)
        inverse = np.column_stack([np.ones(len(cases)), -slopes[:, 1:]]) / slopes[:, :1]
        for row, case in enumerate(cases):
            name = f"L = {depth}, σ* = {case[1]:g}, α = {case[3]:g}"
            pairs[f"time, {name}"] = slopes[row], [part[row] for part in found[0]]
            pairs[f"trajectory, {name}"] = inverse[row], [part[row] for part in found[1]]
        if depth > 2:
            plain = [float(_slope(_time_of(depth + extra, 1.0, 1), case, 1)) for case in cases]
            pairs[f"time by σ*, α the number one, L = {depth}"] = plain, found[2]
    return pairs


@jax.jit(static_argnames="depth")
def _slopes(level, target, scale, alpha, times, *, depth):
    """Reverse-mode derivatives of times by all four, of values by all four, and of times at `α = 1`."""

    def time(level, target, scale, alpha):
        return jnp.sum(theory.mode_time(level, target, depth=depth, scale=scale, alpha=alpha))

    def value(t, target, scale, alpha):
        return jnp.sum(theory.mode_trajectory(t, target, depth=depth, scale=scale, alpha=alpha))

    def plain(target):
        return jnp.sum(theory.mode_time(level, target, depth=depth, scale=scale))

    everything = (0, 1, 2, 3)
    return (
        jax.grad(time, everything)(level, target, scale, alpha),
        jax.grad(value, everything)(times, target, scale, alpha),
        jax.grad(plain)(target),
    )


@cache
def mode_slopes(level: float, target: float, scale: float, alpha: float, depth: int) -> list[float]:
    """Derivatives of the reference's time by level, target, scale and α."""
    case = level, target, scale, alpha
    return [float(_slope(_time_of(depth, None, place), case, place)) for place in range(4)]


def _time_of(depth: int, alpha: float | None, place: int) -> Callable:
    """The reference's time as a function of one of its four arguments, at a given α where there is one."""

    def time(case, value):
        level, target, scale, rate = (*case[:place], value, *case[place + 1 :])
        rate = rate if alpha is None else alpha
        return modes.mode_time(level, target, depth=depth, scale=scale, alpha=rate)

    return time


def _slope(function: Callable, case: Sequence[float], place: int) -> mpf:
    """Difference of a function at 30 digits: central, or one-sided of second order where zero is the end."""
    with mp.workdps(modes.DIGITS):
        here = mpf(case[place])
        h = mpf(10) ** -9
        if here > 0:
            return (function(case, here + h) - function(case, here - h)) / (2 * h)
        steps = [function(case, here + k * h) for k in range(3)]
        return (4 * steps[1] - 3 * steps[0] - steps[2]) / (2 * h)


def _of_stability(setting: Setting) -> dict[str, Any]:
    """Slopes of largest rates, two-cycles and fit times, and of a mode that starts at its target."""
    rate = {depth: 2.2 / float(modes.sharpness(1.3, depth=depth)) for depth in (2, 3)}  # 1.1 of the edge
    fits = {"rising": (2.0, 0.4, 1.0), "falling": (0.2, 0.9, 1.0), "α = 3": (2.0, 0.4, 3.0)}
    of_alpha = {alpha: [case[:2] for case in fits.values() if case[2] == alpha] for alpha in (1.0, 3.0)}
    found = _stability_slopes(
        *(jnp.asarray(part, setting.dtype) for part in (1.7, 2.0, 1.3, list(rate.values()))),
        {alpha: tuple(jnp.asarray(part, setting.dtype) for part in zip(*cases, strict=True))
         for alpha, cases in of_alpha.items()},
    )  # fmt: skip
    pairs: dict[str, Any] = {}
    for number, depth in enumerate((2, 3)):
        exact = precise_differences(
            lambda top, alpha, depth=depth: 2 / modes.sharpness(top, depth=depth, alpha=alpha), (1.7, 2.0)
        )
        pairs[f"largest rate, L = {depth}"] = exact, found[0][number]
        for side in (0, 1):
            cycle = precise_differences(
                lambda s, r, depth=depth, side=side: modes.two_cycle(s, depth=depth, learning_rate=r)[side],
                (1.3, rate[depth]), h=1e-6,
            )  # fmt: skip
            pairs[f"two-cycle, L = {depth}, {'upper' if side else 'lower'}"] = (
                cycle, [part[side] for part in found[1][number]]
            )  # fmt: skip
    slopes_of_fits = np.concatenate([np.transpose(found[2][alpha]) for alpha in of_alpha])
    for (name, (target, scale, alpha)), slopes in zip(fits.items(), slopes_of_fits, strict=True):
        law = {"depth": 3, "tolerance": 0.1, "alpha": alpha}
        exact = precise_differences(
            lambda target, scale, law=law: modes.fit_time(target, scale=scale, **law), (target, scale)
        )
        pairs[f"fit time, {name}"] = exact, slopes
    # On the target σ̇ = 0: dσ/dσ* = 1 − e^{−Kt}, dσ/dε = L ε^{L−1} e^{−Kt}, K = (2α + L − 2) ε^{2L−2}.
    for alpha, slopes in zip((1.0, 3.0), found[3], strict=True):
        decay = np.exp(-(2 * alpha + 1) * 0.5**4)
        pairs[f"a start on the target, α = {alpha:g}"] = [1 - decay, 3 * 0.5**2 * decay], slopes
    return pairs


@jax.jit
def _stability_slopes(top, alpha, target, rates, fits):
    def largest(top, alpha, depth):
        return theory.max_learning_rate(top, depth=depth, alpha=alpha)

    def cycle(target, rate, depth):
        return jnp.stack(theory.two_cycle(target, depth=depth, learning_rate=rate))

    def fit(target, scale, alpha):
        return jnp.sum(theory.fit_time(target, depth=3, scale=scale, tolerance=0.1, alpha=alpha))

    def resting(target, scale, alpha):
        return theory.mode_trajectory(jnp.ones_like(target), target, depth=3, scale=scale, alpha=alpha)

    half = jnp.asarray(0.5, top.dtype)
    return (
        [jax.grad(largest, (0, 1))(top, alpha, depth) for depth in (2, 3)],
        [jax.jacobian(cycle, (0, 1))(target, rates[number], depth) for number, depth in enumerate((2, 3))],
        {alpha: jax.grad(fit, (0, 1))(*cases, alpha) for alpha, cases in fits.items()},
        [jax.grad(resting, (0, 1))(half**3, half, alpha) for alpha in (1.0, 3.0)],
    )


def precise_differences(function: Callable, case: Sequence[float], h: float = 1e-9) -> list[float]:
    """Central differences, at 30 digits, of a function of numbers in every one of them."""
    found = []
    with mp.workdps(modes.DIGITS):
        for place, here in enumerate(case):
            low, high = (
                function(*case[:place], mpf(here) + sign * mpf(h), *case[place + 1 :]) for sign in (-1, 1)
            )
            found.append(float((high - low) / (2 * mpf(h))))
    return found


def _of_originals(setting: Setting) -> dict[str, Any]:
    """Forward derivatives of one component of the original network, and of two layers."""

    def cast(value):
        return jnp.asarray(value, setting.dtype)

    def network(t, target, scale, overlap, depth):
        sine = np.sqrt(1 - overlap**2)
        problem = networks.factorization(target * np.array([[overlap, 0], [sine, 0]]))
        end = networks.product(networks.flow(problem, [scale * np.eye(2)] * depth, [t])[-1])
        values = np.linalg.svd(end, compute_uv=False)
        return np.array([overlap * end[0, 0] + sine * end[1, 0], *values])

    pairs: dict[str, Any] = {}
    for depth, scale in ((2, 0.2), (3, 0.4)):
        case = (1.7, 1.5, scale, 0.3)
        exact = np.array(differences(partial(network, depth=depth), case))

        def law(t, target, scale, overlap, depth=depth):
            return jnp.stack(theory.original_mode(t, target, depth=depth, scale=scale, overlap=overlap)[:3])

        found = jax.jit(jax.jacfwd(law, (0, 1, 2, 3)))(*map(cast, case))
        pairs[f"original mode, L = {depth}"] = exact, found
    rng = np.random.default_rng(2)
    goal, frames = rng.standard_normal((3, 3)), [np.linalg.qr(rng.standard_normal((3, 3)))[0] for _ in "ab"]

    def two_layers(t, scale):
        history = networks.flow(networks.factorization(goal), [scale * frame for frame in frames], [t])
        return networks.product(history[-1])

    def law_of_two(t, scale):
        first, last = (scale * cast(frame) for frame in frames)
        return theory.two_layer_flow(t, first, last, cast(goal))[0]

    found = jax.jit(jax.jacobian(law_of_two, (0, 1)))(cast(1.2), cast(0.4))
    pairs["two layers"] = np.array(differences(two_layers, (1.2, 0.4))), found
    return pairs


def differences(function: Callable, case: Sequence[float], h: float = 1e-4) -> list[Any]:
    """Central differences of fourth order in every argument."""
    found = []
    for place, here in enumerate(case):
        sides = [function(*case[:place], here + k * h, *case[place + 1 :]) for k in (-2, -1, 1, 2)]
        found.append((sides[0] - 8 * sides[1] + 8 * sides[2] - sides[3]) / (12 * h))
    return found


def _of_runs(setting: Setting) -> dict[str, Any]:
    """Forward derivatives of the end of a run by its numbers: descent, and both flow solvers."""
    problem, exact = matrix_problems(setting)["dense target"]
    start = start_of(5, 3, 3, 4)
    given = tuple(jnp.asarray(layer, setting.dtype) for layer in start)
    numbers = (0.04, 1.5, 0.6, 0.1)

    def trained(rate, alpha, momentum, decay):
        run = networks.descent(
            exact, start, rate=rate, steps=12, alpha=alpha, momentum=momentum, nesterov=True, decay=decay
        )
        return networks.product(run[-1])

    def ours(rate, alpha, momentum, decay):
        rule = ld.GradientDescent(rate, alpha=alpha, momentum=momentum, weight_decay=decay, nesterov=True)
        run = ld.gradient_descent(problem, given, rule, steps=12, record_every=5)
        return ld.end_to_end(run.weights)

    everything = jax.jit(jax.jacfwd(ours, (0, 1, 2, 3)))
    found = everything(*(jnp.asarray(number, setting.dtype) for number in numbers))
    pairs: dict[str, Any] = {"descent": (np.array(differences(trained, numbers)), found)}

    def flowed(alpha):
        return networks.product(networks.flow(exact, start, [1.5], alpha=alpha)[-1])

    by_alpha = differences(flowed, (2.0,))[0]
    solvers: tuple[Any, ...] = ("explicit", "implicit")
    for solver in solvers:

        def flow(alpha, solver=solver):
            run = gradient_flow(
                problem, given, jnp.asarray([1.5], setting.dtype), alpha=alpha, solver=solver,
                rtol=setting.solver_tolerance(1e-9),
            )  # fmt: skip
            return ld.end_to_end(run.weights)

        slope = jax.jit(jax.jacfwd(flow))(jnp.asarray(2.0, setting.dtype))
        pairs[f"{solver} flow"] = by_alpha, slope
    return pairs


def _hessians(setting: Setting) -> dict[str, Any]:
    """Hessian–vector products of every problem: gradients are polynomials along a line."""
    pairs: dict[str, Any] = {}
    problems = matrix_problems(setting)
    start, move = start_of(5, 3, 4), start_of(5, 3, 4, seed=7)
    cast = [tuple(jnp.asarray(layer, setting.dtype) for layer in net) for net in (start, move)]
    found = _second([problem for problem, _ in problems.values()], *cast)
    for (name, (_, exact)), products in zip(problems.items(), found, strict=True):
        along = [
            networks.loss_and_gradients(exact, [w + t * v for w, v in zip(start, move, strict=True)])[1]
            for t in (-2, -1, 1, 2)
        ]  # of degree 3 in t: the difference of fourth order is exact
        for layer, measured in enumerate(products):
            a, b, c, d = (gradients[layer] for gradients in along)
            pairs[f"Hessian, layer {layer + 1}, {name}"] = (a - 8 * b + 8 * c - d) / 12, measured
    return pairs


@jax.jit
def _second(problems, weights, move):
    return [jax.jvp(jax.grad(problem.loss), (weights,), (move,))[1] for problem in problems]
