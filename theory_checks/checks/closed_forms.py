"""Every closed form of the library against mpmath at 30 digits, and scalar descent against loops."""

import math
from functools import cache
from itertools import product

import jax.numpy as jnp
import numpy as np

from lowdim_jax import theory
from lowdim_jax.linalg import LowRank
from lowdim_jax.theory.two_layers import imbalance
from theory_checks.pairs import evidence_of
from theory_checks.reference import modes, networks, originals
from theory_checks.reference.random_matrices import haar
from theory_checks.registry import Evidence, check
from theory_checks.setting import Setting

DEPTHS = (1, 2, 3, 4, 5)
SCALE = 0.6
ALPHAS = (0.4, 1.0, 3.0)
TARGETS = (3.0, 0.9, 0.02, 0.0)
"""Rising at every depth, rising or falling, falling, and zero."""

TINY = {"float64": {2: 1e-165, 3: 1e-110}, "float32": {2: 1e-21, 3: 1e-14}}
"""Scales at which `ε^L` is below the smallest number, for two depths."""
SOLDNER = 1.451369234883381
"""The zero of the logarithmic integral, to which `κ_L` tends (3.7)."""

TWO_CYCLES = {
    2: (5**0.5 - 1, 1.5 * 3**0.5 - 1),
    3: (1.2446073928393174, 1.83049813806697053),
    4: (1.24716927243634411, 1.98928907702636229),
    5: (1.24837710593416557, 2.11224770730612002),
    6: (1.24907550839589722, 2.21347538427513392),
}
"""Up to where the two-cycle attracts, and where a run from a small start changes sign (5.3)."""

mode_time, fit_time = cache(modes.mode_time), cache(modes.fit_time)
mode_values, two_cycle = cache(modes.mode_values), cache(modes.two_cycle)
escape_ratio = cache(originals.escape_ratio)


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
        else "SciPy's solver, which is asked for 1e-12 a step, near the target; the rest agrees to rounding",
        quantity="largest difference relative to the largest prediction",
    )


def _of_modes(setting: Setting, depth: int, assumed: int) -> dict:
    """Pairs of a prediction for a network of `assumed` layers and the library's number for `depth`."""
    dtype = setting.dtype
    targets, levels = np.array(TARGETS), _levels(depth)
    alphas, times = np.array(ALPHAS)[:, None], np.array([0.0, 0.4, 1.5, 5.0])
    options = {"depth": depth, "scale": SCALE}
    own = {"depth": assumed, "scale": SCALE}

    def cast(*values):
        return (one(value) for value in values)

    def one(value):
        return jnp.asarray(value, dtype)

    # Arrays of one shape throughout: every depth is two programs a function, with α and without.
    given, alpha, clock = cast(np.tile(targets, (3, 1)), alphas, times)
    curves = np.array(
        [[mode_values(tuple(times.tolist()), t, alpha=a, **own) for t in TARGETS] for a in ALPHAS]
    )
    fitted = np.tile([3.0, 1.05 * SCALE**depth, 0.02, 0.0], (3, 1))  # the second starts fitted
    behind = SCALE**depth * np.array([0.5, 0.5, 2.0, 2.0])  # what modes that rise, or fall, never have
    reached = np.stack([levels, levels, np.where(np.arange(4) == 1, levels, behind)])
    exact = [float(mode_time(level, t, **own)) for level, t in zip(levels, TARGETS, strict=True)]
    small = {"scale": 0.01, "tolerance": 0.3}
    leading = [float(modes.leading_fit_time(t, depth=assumed, **small)) for t in (2.0, 0.5)]
    pairs = {
        "time to a level": (
            np.full(curves.shape[:2], times[1]),
            theory.mode_time(one(curves[..., 1]), given, alpha=alpha, **options),
        ),
        "time to a level or never, α = 1": (
            np.stack([exact, exact, np.where(np.arange(4) == 1, exact, np.inf)]),
            theory.mode_time(one(reached), given, **options),
        ),
        "time to the target, α = 1": (np.full((3, 4), np.inf), theory.mode_time(given, given, **options)),
        "trajectory": (
            curves,
            theory.mode_trajectory(clock[None, None], given[..., None], alpha=alpha[..., None], **options),
        ),
        "trajectory, α = 1": (
            curves[[1, 1, 1]],
            theory.mode_trajectory(clock[None, None], given[..., None], **options),
        ),
        "fit time": (
            [[float(fit_time(t, alpha=a, tolerance=0.1, **own)) for t in fitted[0]] for a in ALPHAS],
            theory.fit_time(*cast(fitted), alpha=alpha, tolerance=0.1, **options),
        ),
        "fit time, α = 1": (
            [[float(fit_time(t, tolerance=0.1, **own)) for t in fitted[0]]] * 3,
            theory.fit_time(*cast(fitted), tolerance=0.1, **options),
        ),
        "fit time of small ε": (
            leading,  # one number for all targets where L = 1
            np.zeros(2) + theory.fit_time_small_scale(*cast([2.0, 0.5]), depth=depth, **small),
        ),
    }
    step = {"learning_rate": 0.05, "steps": 51}
    history = [[modes.mode_descent(t, alpha=a, **own, **step)[::7] for t in TARGETS] for a in ALPHAS]
    by_record = np.moveaxis(np.array(history), -1, 0)
    walk = {"record_every": 7, **options, **step}
    if depth == 3:
        every = theory.mode_descent(given, **options, **step)[:4]
        single = [[modes.mode_descent(t, **own, **step)[:4] for t in TARGETS]] * 3
        twice = float(mode_time(levels[0], TARGETS[0], alpha=2.0, **own))
        pairs["time to a level, α the number two"] = (
            twice, theory.mode_time(one(levels[0]), one(TARGETS[0]), alpha=2.0, **options)
        )  # fmt: skip
        pairs["descent, every step"] = np.moveaxis(np.array(single), -1, 0), every
    if depth == 2:  # where logarithms and exponentials are replaced by two terms of their series
        faint = 5e-9
        late, goals = one(np.full((1, 1, 4), 1.45)), one(np.full((3, 4, 1), faint))
        pairs["time towards almost nothing"] = (
            np.full((3, 4), float(mode_time(0.2, faint, **own))),
            theory.mode_time(one(np.full((3, 4), 0.2)), one(np.full((3, 4), faint)), **options),
        )
        pairs["trajectory towards almost nothing"] = (
            np.full((3, 4, 4), mode_values((1.45,), faint, **own)[0]),
            theory.mode_trajectory(late, goals, **options),
        )
    if depth in TINY[dtype]:
        pairs |= _from_underflow(setting, depth, assumed)
    pairs["descent"] = by_record, theory.mode_descent(given, alpha=alpha, **walk)
    pairs["descent, α = 1"] = by_record[:, [1, 1, 1]], theory.mode_descent(given, **walk)
    return pairs


def _from_underflow(setting: Setting, depth: int, assumed: int) -> dict:
    """Times from starts `ε^L` below the smallest number of the precision, to half of the target."""

    def one(value):
        return jnp.asarray(value, setting.dtype)

    scale = float(np.asarray(TINY[setting.dtype][depth], setting.dtype))
    targets = [float(np.asarray(target, setting.dtype)) for target in (3.0, 0.9, 0.02)]
    law = {"depth": assumed, "scale": scale}
    exact = [float(mode_time(target / 2, target, **law)) for target in targets]
    faster = float(mode_time(targets[0] / 2, targets[0], alpha=ALPHAS[2], **law))
    goal = one(np.tile([*targets, targets[0]], (3, 1)))
    given = {"depth": depth, "scale": one(scale)}
    found = theory.mode_time(goal / 2, goal, alpha=one(ALPHAS)[:, None], **given)
    plain = theory.mode_time(goal / 2, goal, **given)[0, :3]
    rows: dict[str, tuple] = {
        f"from underflow, σ* = {target:.2g}": pair
        for target, pair in zip(targets, zip(exact, plain, strict=True), strict=True)
    }
    if depth == 2:  # at L ≥ 3 the wait has more digits than the moment of the rise
        back = theory.mode_trajectory(one(np.tile([*exact, exact[0]], (3, 1))), goal, **given)
        rows["trajectory from underflow"] = np.array(targets) / 2, back[0, :3]
    return rows | {f"from underflow, α = {ALPHAS[2]:g}": (faster, found[2, 0])}


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
    targets, fit = (1.7, 0.6, 0.3, 0.2), {"scale": 0.3, "tolerance": 0.05}
    counts = [
        [float(fit_time(t, depth=3 + extra_depth, alpha=a, **fit)) * sharpness[3, a] / 1.5 for t in targets]
        for a in ALPHAS
    ]
    stack, alphas = cast(np.tile(targets, (3, 1))), cast(ALPHAS)[:, None]
    faster = {"alpha": alphas, "step_rate": 1.5}
    pairs["explicit steps"] = counts, theory.explicit_steps(stack, depth=3, **faster, **fit)
    plain = np.multiply([counts[1]] * 3, 1.5)
    pairs["explicit steps, α = 1"] = plain, theory.explicit_steps(stack, depth=3, **fit)
    three = [3.0, 2.0, 0.5]
    layers = np.array([[0.3, 0.4], [0.0, 0.7]]), np.array([[0.5, 0.0], [0.2, 0.6], [0.1, -0.8]])
    difference = layers[1].T @ layers[1] - layers[0] @ layers[0].T
    between = np.trace(difference) / 2
    off = np.linalg.norm(difference - between * np.eye(2)) / sum(np.sum(layer**2) for layer in layers)
    pairs["imbalance of two layers"] = [between, off], imbalance(*layers)
    pairs["plateaus"] = np.array(modes.plateaus(three), float), theory.plateau_losses(cast(three))
    for depth in (2, 3, 4):
        factors = np.array([[1.1, 0.7, 1.3, 0.8], [0.4, 2.0, 0.9, 1.2]])[:, :depth]
        rows = zip(factors.tolist(), targets[:2], strict=True)
        rests = [modes.balances(modes.descent_step(row, t, 0.1)) for row, t in rows]
        pairs[f"balances after a step, L = {depth}"] = (
            np.array(rests, float),
            theory.balance_step(cast(factors), cast(targets[:2]), learning_rate=cast(0.1)),
        )
        for shape in ((4, 3), (3, 3), (3, 4)):
            pairs[f"rates of singular values, {shape[0]} × {shape[1]}, L = {depth}"] = _singular_value_rates(
                cast, depth, depth + extra_depth, shape
            )
    pairs |= _off_the_minimum(cast, extra_depth) | _of_originals(setting, extra_depth)
    return evidence_of(
        pairs,
        tolerance=setting.rounding(300) if setting.dtype == "float32" else 1e-7,
        reason="float32's rounding over some hundred nodes" if setting.dtype == "float32"
        else "central differences of singular values; all else agrees to rounding",
        quantity="largest difference relative to the largest prediction",
    )


def _singular_value_rates(
    cast, depth: int, assumed: int, shape: tuple[int, int]
) -> tuple[np.ndarray, jnp.ndarray]:
    """Rates under the flow of a balanced network of `assumed` layers, by differences; and the formula's."""
    rng = np.random.default_rng(0)
    u, s, vt = np.linalg.svd(rng.standard_normal(shape), full_matrices=False)
    target = rng.standard_normal(shape)
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


def _off_the_minimum(cast, extra: int) -> dict:
    """Sharpness of a mode that has not arrived, and where the two-cycle ends: a Hessian's, and numbers."""
    pairs = {}
    for depth in (2, 3, 4):
        assumed, value, goal = depth + extra, 1.8, 2.0
        weights = [np.array([[value ** (1 / assumed)]])] * assumed
        exact = networks.top_curvature(networks.factorization([[goal]]), weights)
        found = theory.training_sharpness(cast(value), cast(goal), depth=depth)
        pairs[f"sharpness off the minimum, L = {depth}"] = exact, found
    for depth, (limit, change) in TWO_CYCLES.items():
        limit, change = TWO_CYCLES.get(depth + extra, (0.0, 0.0))
        pairs[f"limit of the two-cycle, L = {depth}"] = limit, theory.two_cycle_limit(depth)
        pairs[f"first change of sign, L = {depth}"] = change, theory.first_sign_change(depth)
    return pairs


def _of_originals(setting: Setting, extra: int) -> dict:
    """The bulk, escape ratios, the surrogate's angle and the flow of two layers, beside loops and SciPy."""

    def cast(value):
        return jnp.asarray(value, setting.dtype)

    pairs: dict = {}
    for depth in (1, 2, 3):
        exact = originals.bulk(0.8, depth=depth + extra, rate=0.1, steps=6, decay=0.3)[:, 0]
        how = {"depth": depth, "learning_rate": cast(0.1), "steps": 6, "weight_decay": cast(0.3)}
        pairs[f"bulk, L = {depth}"] = exact, theory.bulk_descent(cast(0.8), **how)
    pairs["bulk without decay"] = (
        originals.bulk(0.8, depth=3 + extra, rate=0.1, steps=6)[:, 0],
        theory.bulk_descent(cast(0.8), depth=3, learning_rate=cast(0.1), steps=6),
    )
    pairs["delay at L = 2"] = originals.two_layer_delay(1.3), theory.escape_delay(cast(1.3))
    pairs["delay at an overlap"] = (
        originals.two_layer_delay(1.3, 0.4), theory.escape_delay(cast(1.3), overlap=cast(0.4))
    )  # fmt: skip
    for depth, overlap in ((3, -0.3), (4, 0.4), (5, 0.2)):
        pairs[f"escape ratio at an overlap, L = {depth}"] = (
            escape_ratio(depth + extra, overlap), theory.escape_ratio(depth, overlap=overlap)
        )  # fmt: skip
    pairs["escape ratio of an infinite depth"] = SOLDNER, theory.escape_ratio(math.inf)
    for depth, digits in ((3, 6), (4, 6), (5, 4)):
        pairs[f"escape ratio, L = {depth}"] = (
            originals.ESCAPE_RATIOS.get(depth + extra, 0.0), round(theory.escape_ratio(depth), digits)
        )  # fmt: skip
    rng = np.random.default_rng(1)
    left, right, sigma = haar(rng, 6, 2), haar(rng, 5, 2), np.array([2.0, 0.7])
    target = LowRank(cast(left), cast(sigma), cast(right))
    for name, given in (("measurements", 900), ("observed", 0.8)):
        exact = _rms_sine(left, sigma, right, **{name: given})
        pairs[f"angle of the surrogate, {name}"] = exact, theory.surrogate_angle(target, **{name: given})
    first, last = haar(rng, 3), haar(rng, 4, 3)
    weights, goal, times = [0.4 * first, 0.4 * last], rng.standard_normal((4, 3)), [0.3, 1.0, 4.0]
    history = networks.flow(networks.factorization(goal), weights, times, rtol=1e-11)
    flow = theory.two_layer_flow(cast(times), cast(weights[0]), cast(weights[1]), cast(goal))
    pairs["flow of two layers"] = np.array([b @ a for a, b in history]), flow[0]
    pairs["its inner Gram matrix"] = np.array([a.T @ a for a, _ in history]), flow[1]
    pairs["its outer Gram matrix"] = np.array([b @ b.T for _, b in history]), flow[2]
    residual = networks.product(history[-1]) - goal
    _, (inner, outer) = networks.loss_and_gradients(networks.factorization(goal), history[-1])
    kernel = np.asarray(theory.tangent_kernel(flow[1], flow[2]))[-1]
    speed = history[-1][1] @ inner + outer @ history[-1][0]
    pairs["tangent kernel"] = speed, np.einsum("aibj,bj->ai", kernel, residual)
    return pairs


def _rms_sine(left, sigma, right, *, measurements=None, observed=None) -> float:
    """`√ Σ_i σ_i⁻² Σ_ab (1 − ‖U_a‖²) Γ_ab v_ib²`, entry by entry (1.7)."""
    dense, total = left * sigma @ right.T, 0.0
    for i, s in enumerate(sigma):
        for a in range(len(left)):
            for b in range(len(right)):
                entry = dense[a, b] ** 2 * (1 - observed) / observed if observed else 0.0
                variance = np.sum(sigma**2) / measurements if measurements else entry
                total += (1 - np.sum(left[a] ** 2)) * variance * right[b, i] ** 2 / s**2
    return float(np.sqrt(total))
