"""Every closed form of the library against mpmath at 30 digits, and scalar descent against loops."""

from functools import cache
from itertools import product

import jax.numpy as jnp
import numpy as np

from lowdim_jax import theory
from theory_checks.pairs import evidence_of
from theory_checks.reference import modes, networks
from theory_checks.registry import Evidence, check
from theory_checks.setting import Setting

DEPTHS = (1, 2, 3, 4, 5)
SCALE = 0.6
ALPHAS = (0.4, 1.0, 3.0)
TARGETS = (3.0, 0.9, 0.02, 0.0)
"""Rising at every depth, rising or falling, falling, and zero."""

mode_time, fit_time = cache(modes.mode_time), cache(modes.fit_time)
mode_values, two_cycle = cache(modes.mode_values), cache(modes.two_cycle)


def _levels(depth: int) -> list[float]:
    """Levels on the way to `TARGETS`."""
    start = SCALE**depth
    shares = zip((0.9, 0.5, 0.7, 0.4), TARGETS, strict=True)
    return [start + share * (target - start) for share, target in shares]


@check(
    "closed-forms",
    claim="Times, trajectories, descent and fit times of a mode are those of arithmetic at 30 digits: "
    "L = 1 … 5, α below, at and above 1, modes that rise, fall, and have no target.",
    source="2.1, 2.2, 2.3, 2.4, 2.5",
    controls={"a network of one layer more": {"extra_depth": 1, "depths": (3,)}},
    any_target=False,
    rests_on=("reference", "library"),
)
def closed_forms(setting: Setting, /, *, extra_depth=0, depths=DEPTHS) -> Evidence:
    pairs = {}
    for depth in depths:
        for name, (predicted, measured) in _of_modes(setting, depth, depth + extra_depth).items():
            pairs[f"{name}, L = {depth}"] = predicted, measured
    return evidence_of(
        pairs,
        tolerance=setting.rounding(300) if setting.dtype == "float32" else 1e-9,
        reason="float32's rounding over a few hundred nodes" if setting.dtype == "float32"
        else "SciPy's solver, which is asked for 1e-12 a step; the rest agrees to rounding",
        quantity="largest difference relative to the largest prediction",
    )


def _of_modes(setting: Setting, depth: int, assumed: int) -> dict:
    """Pairs of a prediction for a network of `assumed` layers and the library's number for `depth`."""
    dtype = setting.dtype
    targets, levels = (np.array(values) for values in (TARGETS, _levels(depth)))
    alphas, times = np.array(ALPHAS)[:, None], np.array([0.0, 0.4, 1.5, 5.0])
    options = {"depth": depth, "scale": SCALE}
    own = {"depth": assumed, "scale": SCALE}

    def predict(function, *columns, alphas=ALPHAS, **more):
        rows = list(zip(*columns, strict=True))
        return [[float(function(*row, alpha=a, **own, **more)) for row in rows] for a in alphas]

    def cast(*values):
        return (jnp.asarray(value, dtype) for value in values)

    given, level, alpha, clock = cast(targets, levels, alphas, times)
    target, some = given[None], level[None]
    behind = SCALE**depth * np.array([2, 0.5])  # what a mode that falls, and one that rises, never has
    pairs = {
        "time to a level": (
            predict(mode_time, levels.tolist(), targets.tolist()),
            theory.mode_time(some, target, alpha=alpha, **options),
        ),
        "time to a level, α = 1": (
            predict(mode_time, levels.tolist(), targets.tolist(), alphas=(1.0,))[0],
            theory.mode_time(level, given, **options),
        ),
        "time to a level that is not on the way": (
            np.full(2, np.inf),
            theory.mode_time(jnp.asarray(behind, dtype), jnp.asarray([0.0, 3.0], dtype), **options),
        ),
        "trajectory": (
            [[mode_values(tuple(times.tolist()), t, alpha=a, **own) for t in TARGETS] for a in ALPHAS],
            theory.mode_trajectory(clock[None, None], target[..., None], alpha=alpha[..., None], **options),
        ),
        "trajectory, α = 1": (
            [mode_values(tuple(times.tolist()), t, **own) for t in TARGETS],
            theory.mode_trajectory(clock[None], given[:, None], **options),
        ),
    }
    step = {"learning_rate": 0.05, "steps": 51}
    for name, chosen in (("α", ALPHAS), ("α = 1", (1.0,))):
        history = [[modes.mode_descent(t, alpha=a, **own, **step)[::7] for t in TARGETS] for a in chosen]
        rate = {"alpha": alpha} if len(chosen) > 1 else {}
        pairs[f"descent, {name}"] = (
            np.moveaxis(history, -1, 0),
            theory.mode_descent(target, record_every=7, **options, **step, **rate),
        )
    fitted = np.array([3.0, 1.05 * SCALE**depth, 0.02, 0.0])  # the second starts fitted
    close = {"tolerance": 0.1}
    pairs["fit time"] = (
        predict(fit_time, fitted.tolist(), alphas=(1.0, 3.0), **close),
        theory.fit_time(
            jnp.asarray(fitted[None], dtype), alpha=jnp.asarray([[1.0], [3.0]], dtype), **options, **close
        ),
    )
    small = {"scale": 0.01, "tolerance": 0.3}
    pairs["fit time of small ε"] = (
        [float(modes.leading_fit_time(t, depth=assumed, **small)) for t in (2.0, 0.5)],
        theory.fit_time_small_scale(jnp.asarray([2.0, 0.5], dtype), depth=depth, **small)
        + jnp.zeros(2, dtype),  # one number for all targets where L = 1
    )
    return pairs


@check(
    "stability-formulas",
    claim="Sharpness, largest stable rate, step counts, two-cycles, plateaus, balances and rates of singular "
    "values are those of arithmetic at 30 digits and of networks in NumPy.",
    source="1.6, 2.6, 4.2, 4.3, 5.1, 5.2, 5.3",
    controls={"a network of one layer more": {"extra_depth": 1}},
    any_target=False,
    rests_on=("reference", "library"),
)
def stability_formulas(setting: Setting, /, *, extra_depth=0) -> Evidence:
    def cast(value):
        return jnp.asarray(value, setting.dtype)

    top = 1.7
    pairs = {}
    sharpness = {
        (depth, alpha): float(modes.sharpness(top, depth=depth + extra_depth, alpha=alpha))
        for depth, alpha in product(DEPTHS, ALPHAS)
    }
    for depth in DEPTHS:
        exact = np.array([sharpness[depth, alpha] for alpha in ALPHAS])
        given = {"depth": depth, "alpha": cast(ALPHAS)}
        pairs[f"sharpness, L = {depth}"] = exact, theory.sharpness(cast(top), **given)
        pairs[f"largest rate, L = {depth}"] = 2 / exact, theory.max_learning_rate(cast(top), **given)
    for depth in DEPTHS[1:]:
        assumed = depth + extra_depth
        rates = 2 / float(modes.sharpness(top, depth=depth)) * np.array([0.9, 1.1, 1.2])
        cycles = [two_cycle(top, depth=assumed, learning_rate=float(rate)) for rate in rates]
        found = theory.two_cycle(cast(top), depth=depth, learning_rate=cast(rates))
        pairs[f"two-cycle, L = {depth}"] = np.array(cycles, float).T, jnp.stack(found)
    targets, fit = (1.7, 0.6), {"scale": 0.3, "tolerance": 0.05}
    for alpha in (1.0, 3.0):
        counts = [
            float(fit_time(t, depth=3 + extra_depth, alpha=alpha, **fit)) * sharpness[3, alpha] / 1.5
            for t in targets
        ]
        found = theory.explicit_steps(cast(targets), depth=3, alpha=alpha, step_rate=1.5, **fit)
        pairs[f"explicit steps, α = {alpha:g}"] = counts, found
    three = [3.0, 2.0, 0.5]
    pairs["plateaus"] = np.array(modes.plateaus(three), float), theory.plateau_losses(cast(three))
    factors = np.array([[1.1, 0.7, 1.3], [0.4, 2.0, 0.9]])
    rows = zip(factors.tolist(), targets, strict=True)
    rests = [modes.balances(modes.descent_step(row, t, 0.1)) for row, t in rows]
    pairs["balances after a step"] = (
        np.array(rests, float),
        theory.balance_step(cast(factors), cast(targets), learning_rate=cast(0.1)),
    )
    for depth in (2, 3, 4):
        assumed = depth + extra_depth
        pairs[f"rates of singular values, L = {depth}"] = _singular_value_rates(cast, depth, assumed)
    return evidence_of(
        pairs,
        tolerance=setting.rounding(300) if setting.dtype == "float32" else 1e-7,
        reason="float32's rounding over some hundred nodes" if setting.dtype == "float32"
        else "central differences of singular values; all else agrees to rounding",
        quantity="largest difference relative to the largest prediction",
    )


def _singular_value_rates(cast, depth: int, assumed: int) -> tuple[np.ndarray, jnp.ndarray]:
    """Rates under the flow of a balanced network of `assumed` layers, by differences; and the formula's."""
    rng = np.random.default_rng(0)
    u, s, vt = np.linalg.svd(rng.standard_normal((4, 3)), full_matrices=False)
    target = rng.standard_normal((4, 3))
    root = np.diag(s ** (1 / assumed))
    weights = [root @ vt, *[root] * (assumed - 2), u @ root]
    _, gradients = networks.loss_and_gradients(networks.factorization(target), weights)
    h = 1e-5
    sides = [
        np.linalg.svd(
            networks.product([w + sign * h * g for w, g in zip(weights, gradients, strict=True)]),
            compute_uv=False,
        )
        for sign in (-1, 1)
    ]
    formula = theory.singular_value_rate(
        cast(s), cast(u), cast(vt.T), cast(target - networks.product(weights)), depth=depth
    )
    return (sides[0] - sides[1]) / (2 * h), formula
