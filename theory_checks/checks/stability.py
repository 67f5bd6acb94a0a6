"""Sections 5 and 2.6 of docs/theory.md: which learning rates are stable, and what that costs."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np

import lowdim_jax as ld
from lowdim_jax import theory
from theory_checks.reference import modes
from theory_checks.registry import Curve, Evidence, check
from theory_checks.runs import (
    FITTED,
    compressed,
    edge,
    keep,
    observe_modes,
    once,
    per_seed,
    require_distinct,
    steps_to_fit,
)
from theory_checks.setting import Setting

SCALE = 0.1
POWER_ITERATIONS = 400
CASES = (
    (1, 1.0), (1, 5.0), (2, 1.0), (3, 1.0), (4, 1.0), (5, 1.0), (2, 5.0), (3, 5.0), (3, 0.5), (4, 5.0),
    (5, 5.0),
)  # fmt: skip
"""Depths and outer learning rates."""
LATE = (5, 5.0)
"""The case whose minimum is given to it, not trained for.

The formula holds at the minimum of `ε → 0`. With `α ≠ 1` the start has to be small, and at this depth it
then waits: 16,000 steps from `ε = 0.1`; `ε = 0.4` takes 270, but ends in another minimum, at (1 − α) ε².
"""
STARTS = {5: 0.4}
"""Scales of starts that are not `SCALE`: deeper networks wait ε^−(L−2)."""
cycle = cache(modes.two_cycle)
EDGE_FRACTIONS = (0.98, 1.02)


def _top_curvature(loss, weights, rates, key):
    """Largest eigenvalue of `D^{1/2} ∇²ℓ D^{1/2}`, `D` the relative rates, by Hessian–vector products."""
    roots = [jnp.sqrt(jnp.asarray(rate, weights[0].dtype)) for rate in rates]
    keys = jax.random.split(key, len(weights))
    start = tuple(jax.random.normal(k, w.shape, w.dtype) for k, w in zip(keys, weights, strict=True))

    def scaled(vector):
        return tuple(root * layer for root, layer in zip(roots, vector, strict=True))

    def power(_, carry):
        vector, _ = carry
        norm = jnp.sqrt(sum(jnp.sum(layer**2) for layer in vector))
        vector = tuple(layer / norm for layer in vector)
        product = scaled(jax.jvp(jax.grad(loss), (weights,), (scaled(vector),))[1])
        value = sum(jnp.sum(a * b) for a, b in zip(vector, product, strict=True))
        return product, value

    zero = jnp.zeros((), weights[0].dtype)
    return jax.lax.fori_loop(0, POWER_ITERATIONS, power, (start, zero))[1]


def _minimum(target, *, alpha, depth):
    """The minimum that discrepant rates reach as `ε → 0`: outer factors `√α` times the middle ones."""
    if depth == 1:
        return (target.dense(),)
    factor = {"outer": alpha ** (1 / 2 - 1 / depth), "middle": alpha ** (-1 / depth)}
    weights = ld.initialization.balanced(target, depth=depth)
    return tuple(factor[role] * layer for role, layer in zip(ld.roles(weights), weights, strict=True))


def _curvature_at_the_end(target, key, *, alpha, depth, rank, steps):
    """Top curvature where discrepant descent from a spectral start ends."""
    loss, top = ld.factorization(target).loss, target.singular_values[0]
    rate = 0.4 * theory.max_learning_rate(top, depth=depth, alpha=alpha)
    scale = STARTS.get(depth, SCALE)
    if depth == 1:
        inner, outer = compressed(target, key, depth=2, scale=1.0, rank=target.singular_values.size)
        weights = (scale * outer @ inner,)
    else:
        weights = compressed(target, key, depth=depth, scale=scale, rank=rank)
    run = ld.gradient_descent(
        loss, weights, ld.GradientDescent(rate, alpha=alpha), steps=steps, record_every=steps
    )
    rates = (alpha,) if depth == 1 else (alpha, *(1.0,) * (depth - 2), alpha)
    return _top_curvature(loss, run.weights, rates, key)


def _steps_to_the_end(setting: Setting, depth: int, alpha: float) -> int:
    rate = 0.4 * edge(setting, depth=depth, alpha=alpha)
    return steps_to_fit(setting, rate, depth=depth, scale=STARTS.get(depth, SCALE), alpha=alpha)


@check(
    "sharpness-at-minimum",
    claim="At the minimum that outer rate α ends in, the sharpness is L σ*_1^{2−2/L} α^{2/L}.",
    source="5.1, 5.2",
    controls={"α dropped from the formula": {"assumed_alpha": 1.0, "cases": ((3, 5.0),)}},
    rests_on=("reference", "library"),
)
def sharpness_at_minimum(
    setting: Setting, /, *, assumed_alpha=None, cases=tuple(case for case in CASES if case != LATE)
) -> Evidence:
    require_distinct(setting)  # power iterations would mix the two largest eigenvalues
    predicted, measured, errors, next_orders = {}, {}, [], []
    top = setting.targets.singular_values[:, 0]
    for depth, alpha in cases:
        assumed = alpha if assumed_alpha is None else assumed_alpha
        expected = np.array([float(modes.sharpness(s, depth=depth, alpha=assumed)) for s in top.tolist()])
        # As many steps for every α of a depth, so that they share a program.
        steps = max(
            _steps_to_the_end(setting, depth, other) for same, other in CASES
            if same == depth and (same, other) != LATE
        )  # fmt: skip
        found = np.asarray(
            per_seed(
                _curvature_at_the_end, setting, {"alpha": alpha}, depth=depth,
                rank=setting.compressed_rank, steps=steps,
            )
        )
        name = f"L = {depth}, α = {alpha:g}, seed 0"
        predicted[name], measured[name] = expected[0], found[0]
        errors.append(np.abs(found / expected - 1))
        squared_middle = float(jnp.min(top) / alpha) ** (2 / depth)
        next_orders.append(abs(1 - alpha) / alpha * SCALE**2 / squared_middle if depth > 2 else 0.0)
    return Evidence(
        errors=np.max(errors, axis=0),
        tolerance=max(next_orders) ** 2 + setting.rounding(1),
        reason="the square of |1 − α| ε² / (α x_m²): this minimum is the flattest, so that the first order "
        "in ε² cancels",
        quantity="largest relative deviation of the top Hessian eigenvalue, by Hessian–vector products",
        predicted=predicted,
        measured=measured,
    )


def _curvatures(target, key, *, rate, depth, rank, scale, steps, every):
    """Top curvature and top singular value along a training run."""
    loss = ld.factorization(target).loss
    weights = compressed(target, key, depth=depth, scale=scale, rank=rank)
    run = ld.gradient_descent(
        loss, weights, ld.GradientDescent(rate), steps=steps, record_every=every, observe=keep
    )
    rates = (1.0,) * depth
    sharp = jax.lax.map(lambda layers: _top_curvature(loss, layers, rates, key), run.observed)
    return sharp, jax.vmap(lambda layers: ld.spectra.modes(layers, target)[0])(run.observed)


@check(
    "sharpness-along-training",
    claim="From the rise of component 1 on, the sharpness is L σ_1^{2−2/L} − (L−1)(σ*_1 − σ_1) σ_1^{1−2/L}: "
    "it settles at L σ*_1^{2−2/L} while the other components are still to be learned.",
    source="5.1",
    controls={"a formula of one layer more": {"assumed_depth": 4}},
    rests_on=("theorem", "library"),
)
def sharpness_along_training(setting: Setting, /, *, assumed_depth=3) -> Evidence:
    require_distinct(setting)
    depth, records = 3, 60
    rate = 0.3 * edge(setting, depth=depth)
    every = -(-steps_to_fit(setting, rate, depth=depth, scale=SCALE) // records)
    sharp, top = once(
        setting, _measured_curvatures, rate=rate, depth=depth, steps=every * records, every=every
    )
    goal = np.asarray(setting.targets.singular_values)[:, :1]
    power, risen_top = 1 / assumed_depth, np.maximum(top, 0)
    residual = (assumed_depth - 1) * (goal - top) * risen_top ** (1 - 2 * power)
    predicted = assumed_depth * risen_top ** (2 - 2 * power) - residual
    risen = top >= 0.9 * goal
    gaps = np.where(risen, np.abs(sharp - predicted), 0) / np.max(predicted, axis=1, keepdims=True)
    return Evidence(
        errors=np.where(risen.sum(axis=1) > 2, np.max(gaps, axis=1), np.inf),
        tolerance=max(1e-4, setting.rounding(every * records)),
        reason=f"{POWER_ITERATIONS} power iterations between eigenvalues a few percent apart",
        quantity="largest deviation of the top Hessian eigenvalue, relative to the final one, once σ_1 is "
        "above 90% of σ*_1",
        predicted={"final sharpness, seed 0": predicted[0, -1]},
        measured={"final sharpness, seed 0": sharp[0, -1]},
        curves=(
            Curve("top Hessian eigenvalue", every * np.arange(records + 1), predicted[0], sharp[0],
                  xlabel="step", ylabel="sharpness"),
        ),
    )


def _measured_curvatures(setting: Setting, *, rate, **static):
    static |= {"rank": setting.compressed_rank, "scale": SCALE}
    found = per_seed(_curvatures, setting, {"rate": rate}, **static)
    return tuple(np.asarray(part) for part in found)


def _growth(target, key, *, alpha, assumed, fraction, depth, extra_depth, steps):
    """`|u*_1ᵀ W v*_1 − σ*_1|` at every step from a start near the minimum, at a fraction of the edge."""
    del key
    top = target.singular_values[0]
    rate = fraction * theory.max_learning_rate(top, depth=depth + extra_depth, alpha=assumed)
    size = jnp.sqrt(jnp.finfo(target.dtype).eps)
    weights = _minimum(target, alpha=alpha, depth=depth)
    weights = tuple(layer * (1 + size) for layer in weights)
    run = ld.gradient_descent(
        ld.factorization(target).loss, weights, ld.GradientDescent(rate, alpha=alpha), steps=steps,
        observe=observe_modes(target),
    )
    return jnp.abs(run.observed[:, 0] - target.singular_values[0])


@check(
    "edge-of-stability",
    claim="Near the minimum the error shrinks by the factor |1 − 2f| a step at f of the edge: 0.98 "
    "converges, 1.02 does not.",
    source="5.1, 5.2",
    controls={
        "α dropped from the edge": {"assumed_alpha": 1.0, "cases": ((3, 5.0),)},
        "one layer more assumed in the edge": {"extra_depth": 1, "cases": ((3, 1.0),)},
    },
    rests_on=("theorem", "library"),
)
def max_learning_rate(
    setting: Setting, /, *, assumed_alpha=None, extra_depth=0, cases=CASES
) -> Evidence:
    steps = 40
    errors, measured = [], {}
    for depth, alpha in cases:
        assumed = alpha if assumed_alpha is None else assumed_alpha
        for fraction in EDGE_FRACTIONS:
            numbers = {"alpha": alpha, "assumed": assumed, "fraction": fraction}
            distance = np.asarray(
                per_seed(
                    _growth, setting, numbers, depth=depth, extra_depth=extra_depth, steps=steps
                )
            )
            factor = (distance[:, -1] / distance[:, 0]) ** (1 / steps)
            errors.append(np.abs(factor - abs(1 - 2 * fraction)))
            measured[f"L = {depth}, α = {alpha:g}, {fraction:g} of the edge"] = factor
    return Evidence(
        errors=np.max(errors, axis=0),
        tolerance=setting.linearization(),
        reason="second order in the perturbation, which is the square root of the rounding unit",
        quantity="largest difference of the factor a step, 40 steps on, from |1 − 2f|",
        predicted={f"{fraction:g} of the edge": abs(1 - 2 * fraction) for fraction in EDGE_FRACTIONS},
        measured=measured,
    )


def _late_modes(target, key, *, rate_of, depth, rank, steps):
    """Singular values at the last steps, with the rate given for this target's largest one."""
    rate = rate_of * theory.max_learning_rate(target.singular_values[0], depth=depth)
    weights = compressed(target, key, depth=depth, scale=3 * SCALE, rank=rank)
    run = ld.gradient_descent(
        ld.factorization(target).loss,
        weights,
        ld.GradientDescent(rate),
        steps=steps,
        observe=observe_modes(target),
    )
    return run.observed[-12:]


def _between_the_edges(sigma, depth):
    """A rate, in units of component 1's edge, beyond it but below the edge of mixing 1 with 2."""
    layers = np.arange(1, depth + 1)
    first, second = np.asarray(sigma[:, :1]), np.asarray(sigma[:, 1:2])
    mixed = np.sum(first ** (2 - 2 * layers / depth) * second ** ((2 * layers - 2) / depth), axis=1)
    alone = depth * first[:, 0] ** (2 - 2 / depth)
    return float(np.sqrt(min(np.min(alone / mixed), 1.2)))


@check(
    "two-cycle",
    claim="Beyond its edge, and below that of the directions which mix it with component 2, component 1 "
    "oscillates between two predicted values; the others converge.",
    source="5.3",
    controls={
        "trained below the edge": {"trained": 0.9, "depths": (3,)},
        "the cycle of a network one layer deeper": {"extra_depth": 1, "depths": (3,)},
    },
    rests_on=("reference", "library"),
)
def two_cycle(setting: Setting, /, *, trained=None, extra_depth=0, depths=(2, 3, 4)) -> Evidence:
    errors, curves, predicted, measured, longest = [], [], {}, {}, 0
    require_distinct(setting, 0.99)
    sigma = np.asarray(setting.targets.singular_values, float)
    for depth in depths:
        fraction = _between_the_edges(sigma, depth) if setting.rank > 1 else 1.1
        tops = sigma[:, 0].tolist()
        rates = np.array([fraction * 2 / float(modes.sharpness(top, depth=depth)) for top in tops])
        wait = int(40 / (fraction - 1))  # the cycle attracts at a rate that vanishes at the edge
        longest = max(longest, wait)
        steps = steps_to_fit(setting, float(np.min(rates)), depth=depth, scale=3 * SCALE) + wait
        late = np.asarray(
            per_seed(
                _late_modes, setting, {"rate_of": trained or fraction}, depth=depth,
                rank=setting.compressed_rank, steps=steps,
            )
        )
        cycles = np.array([
            [cycle(s, depth=depth + extra_depth, learning_rate=rate) for s in row]
            for row, rate in zip(sigma.tolist(), rates.tolist(), strict=True)
        ], float)
        low, high = cycles[..., 0], cycles[..., 1]  # seeds × components
        up = (late[:, -1] > late[:, -2])[:, None]
        beats = late.shape[1]
        same_beat = (np.arange(beats) % 2 == (beats - 1) % 2)[:, None]
        wave = np.where(same_beat == up, high[:, None], low[:, None])
        errors.append(np.max(np.abs(late - wave), axis=(1, 2)) / sigma[:, 0])
        name = f"L = {depth}: component 1 of seed 0"
        predicted[name], measured[name] = (low[0, 0], high[0, 0]), np.sort(late[0, -2:, 0])
        curves.append(
            Curve(f"L = {depth}, η = {fraction:.3g} of the edge: the last steps",
                  np.arange(steps - len(late[0]), steps) + 1,
                  wave[0], late[0], xlabel="step", ylabel="singular value")
        )
    return Evidence(
        errors=np.max(errors, axis=0),
        tolerance=setting.rounding(longest),
        reason=f"rounding of {longest} steps, which the cycle takes to attract",
        quantity="largest |σ_i − predicted| / σ*_1 over the last twelve steps and all components",
        predicted=predicted,
        measured=measured,
        curves=tuple(curves),
    )


def _wait(target, key, *, scale, depth, rank, steps):
    """First step at which the last component is fitted, at half the target's edge."""
    rate = 0.5 * theory.max_learning_rate(target.singular_values[0], depth=depth)
    weights = compressed(target, key, depth=depth, scale=scale, rank=rank)
    run = ld.gradient_descent(
        ld.factorization(target).loss,
        weights,
        ld.GradientDescent(rate),
        steps=steps,
        observe=observe_modes(target),
    )
    fitted = jnp.abs(run.observed - target.singular_values) <= FITTED * target.singular_values
    return ld.spectra.first_time(run.steps, fitted)[-1]


@check(
    "stiffness",
    claim="At half the edge, fitting component r takes t_r L σ*_1^{2−2/L} steps: ε^−(L−2) more for "
    "smaller ε, because stability limits every step.",
    source="2.6",
    controls={"the count of a network one layer deeper": {"extra_depth": 1}},
    rests_on=("reference", "library"),
)
def stiffness(setting: Setting, /, *, extra_depth=0) -> Evidence:
    depth, scales = 3, (0.05, 0.1)
    rate = 0.5 * edge(setting, depth=depth)
    steps = steps_to_fit(setting, rate, depth=depth, scale=scales[0], slack=1.5)
    measured, predicted = [], []
    for scale in scales:
        rank = setting.compressed_rank
        measured.append(
            np.asarray(per_seed(_wait, setting, {"scale": scale}, depth=depth, rank=rank, steps=steps))
        )
        law = {"depth": depth + extra_depth}
        predicted.append(np.array([
            float(modes.fit_time(row[-1], scale=scale, tolerance=FITTED, **law)
                  * modes.sharpness(row[0], **law))
            for row in setting.targets.singular_values.tolist()
        ]))
    return Evidence(
        errors=np.max(np.abs(np.divide(measured, predicted) - 1), axis=0),
        tolerance=0.1,
        reason="descent at half the edge lags the flow to first order in η",
        quantity="largest relative deviation of the number of steps, two initialization scales",
        predicted={f"steps at ε = {s:g}": p for s, p in zip(scales, predicted, strict=True)},
        measured={f"steps at ε = {s:g}": m for s, m in zip(scales, measured, strict=True)},
    )
