"""Section 4 of docs/theory.md: what the flow conserves, and how descent departs from it."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

import lowdim_jax as ld
from lowdim_jax.flow import gradient_flow
from theory_checks.reference import modes, networks
from theory_checks.registry import Curve, Evidence, check
from theory_checks.runs import (
    compressed,
    edge,
    keep,
    last_fit,
    original,
    per_seed,
    require_distinct,
    steps_to_fit,
)
from theory_checks.setting import Setting

SCALE = 0.3
RTOL = 1e-9
"""Error per step allowed to the ODE solver in float64."""
COUNTS = (64, 128, 256, 512)
"""Numbers of steps in which descent covers the same time."""


def _rtol(setting: Setting) -> float:
    return setting.solver_tolerance(RTOL)


def _balances(weights, rates):
    """`W_{l+1}ᵀ W_{l+1} / α_{l+1} − W_l W_lᵀ / α_l` of every pair of neighbouring layers."""
    pairs = zip(weights, weights[1:], rates, rates[1:], strict=False)
    return tuple(after.T @ after / b - before @ before.T / a for before, after, a, b in pairs)


def _drift(start, rates, weights):
    """Frobenius norm of the change of each balance."""
    pairs = zip(_balances(weights, rates), start, strict=True)
    return jnp.stack([jnp.linalg.norm(now - then) for now, then in pairs])


@jax.jit
def _drifts(targets, weights, times, alpha, rates, rtol):
    """`_drift` of every seed under flow, `(seeds, times, L − 1)`."""

    def follow(seed):
        target, weights = seed
        run = ld.gradient_flow(
            ld.factorization(target.dense()).loss, weights, times, alpha=alpha, rtol=rtol,
            observe=Partial(_drift, _balances(weights, rates), rates),
        )
        return run.observed

    return jax.lax.map(follow, (targets, weights))


@check(
    "balancedness",
    claim="Gradient flow conserves W_{l+1}ᵀW_{l+1}/α_{l+1} − W_l W_lᵀ/α_l for every pair of layers.",
    source="4.1, 2.5",
    controls={
        "rates of the layers that differ from those assumed": {
            "assumed_alpha": 1.0,
            "cases": ((3, 3.0),),
        }
    },
    rests_on=("theorem", "library"),
)
def balancedness(
    setting: Setting, /, *, assumed_alpha=None, cases=((2, 1.0), (3, 1.0), (3, 3.0))
) -> Evidence:
    errors, curves = [], []
    for depth, alpha in cases:
        end = last_fit(setting, depth=depth, scale=SCALE)
        times = jnp.linspace(0, end, 40, dtype=setting.dtype)
        assumed = alpha if assumed_alpha is None else assumed_alpha
        rates = (assumed, *(1.0,) * (depth - 2), assumed)

        # Gaussian layers: balance is conserved whatever its value, not only where it is zero.
        weights = per_seed(original, setting, {"scale": SCALE}, depth=depth, init="gaussian")
        drifts = _drifts(setting.targets, weights, times, alpha, rates, _rtol(setting))
        size = setting.targets.singular_values[:, :1, None] ** (2 / depth)
        measured = np.asarray(drifts / size)
        errors.append(np.max(measured, axis=(1, 2)))
        curves.append(
            Curve(f"drift of balance, L = {depth}, α = {alpha:g}", np.asarray(times),
                  np.zeros_like(measured[0]), measured[0], ylabel="drift / σ*_1^{2/L}")
        )
    errors = np.max(np.asarray(errors), axis=0)
    return Evidence(
        errors=errors,
        tolerance=setting.integration(RTOL),
        reason=f"ODE solver's error per step {_rtol(setting):.0g} over some hundred steps",
        quantity="largest Frobenius norm of the drift, relative to σ*_1^{2/L}",
        predicted={"drift": 0},
        measured={"drift": errors},
        curves=tuple(curves),
    )


@check(
    "balance-drift",
    claim="One step of descent changes x_i² − x_j² by exactly the factor 1 − η²(σ−σ*)²σ²/(x_i x_j)².",
    source="4.2",
    controls={"momentum": {"momentum": 0.5}},
    rests_on=("theorem", "library"),
)
def balance_drift(setting: Setting, /, *, momentum=0.0) -> Evidence:
    rate = 0.5 * edge(setting, depth=3)
    steps = int(min(400, steps_to_fit(setting, rate, depth=3, scale=SCALE, most=np.inf)))
    numbers = {"rate": rate, "momentum": momentum}
    x = np.asarray(per_seed(_factors, setting, numbers, rank=setting.rank, steps=steps), float)
    goals = np.asarray(setting.targets.singular_values, float)[:, None]
    measured = x[..., :, None] ** 2 - x[..., None, :] ** 2  # seeds × steps × components × layers × layers
    sigma = np.prod(x, axis=-1)
    drift = (rate * (sigma - goals) * sigma)[..., None, None] / (x[..., :, None] * x[..., None, :])
    predicted = (measured * (1 - drift**2))[:, :-1]
    size = goals[:, 0, 0] ** (2 / 3)
    errors = np.max(np.abs(measured[:, 1:] - predicted), axis=(1, 2, 3, 4)) / size
    return Evidence(
        errors=errors,
        tolerance=setting.rounding(1),
        reason="rounding of one step",
        quantity="largest difference of x_i² − x_j² from its predicted next value, in units of σ*_1^{2/L}",
        predicted={"difference": 0},
        measured={"difference": errors},
        curves=(
            Curve("x_1² − x_j² of the top component, from the step before", np.arange(1, steps + 1),
                  predicted[0, :, 0, 0, 1:], measured[0, 1:, 0, 0, 1:], xlabel="step"),
        ),
    )


def _factors(target, key, *, rate, momentum, rank, steps):
    """Scalar factors at every step, `(steps + 1, r, L)`, from layers of unequal scales."""
    weights = compressed(target, key, depth=3, scale=SCALE, rank=rank)
    weights = tuple(f * w for f, w in zip((1.0, 2.0, 3.0), weights, strict=True))
    rule = ld.GradientDescent(rate, momentum=momentum)
    run = ld.gradient_descent(ld.factorization(target), weights, rule, steps=steps, observe=keep)
    first, middle, last = run.observed
    return jnp.stack([
        jnp.einsum("tri,ir->tr", first, target.right),
        jnp.einsum("trr->tr", middle),
        jnp.einsum("tir,ir->tr", last, target.left),
    ], axis=-1)


@check(
    "singular-value-rate",
    claim="In a balanced network σ̇_i = L σ_i^{2−2/L} ⟨u_i, (Φ − W) v_i⟩ along gradient flow.",
    source="4.3",
    controls={"an initialization that is not balanced": {"first_layer": 3.0}},
    rests_on=("theorem", "library"),
)
def singular_value_rate(setting: Setting, /, *, first_layer=1.0) -> Evidence:
    require_distinct(setting)
    depth = 3
    end = last_fit(setting, depth=depth, scale=SCALE)
    # Rates are measured as central differences over a short time h, from float32 up.
    h = (3 * _rtol(setting)) ** (1 / 3) / 2 / (1 / edge(setting, depth=depth)) / depth
    middles = np.linspace(0.15, 1, 24) * end
    times = jnp.asarray((middles[:, None] + h * np.array([-1, 0, 1])).ravel(), setting.dtype)

    numbers = {"first_layer": first_layer, "times": times, "rtol": _rtol(setting)}
    products = np.asarray(per_seed(_products_along_the_flow, setting, numbers, depth=depth), float)
    r, targets = setting.rank, _dense(setting)
    u, s, vt = np.linalg.svd(products[:, 1::3], full_matrices=False)
    residual = targets[:, None] - products[:, 1::3]
    aligned = np.einsum("stik,stij,stkj->stk", u[..., :r], residual, vt[..., :r, :])
    predicted = depth * s[..., :r] ** (2 - 2 / depth) * aligned
    sides = np.linalg.svd(products, compute_uv=False)[..., :r]
    measured = (sides[:, 2::3] - sides[:, 0::3]) / (2 * h)
    size = np.max(np.abs(predicted), axis=(1, 2))
    errors = np.max(np.abs(measured - predicted), axis=(1, 2)) / size
    tolerance = 3 * (3 * _rtol(setting)) ** (2 / 3)
    return Evidence(
        errors=errors,
        tolerance=tolerance,
        reason="central difference: O(h²) and the ODE solver's error over h, with h balancing the two",
        quantity="largest |σ̇_i − predicted|, relative to the fastest rate",
        predicted={"largest rate, seed 0": size[0]},
        measured={"largest rate, seed 0": float(np.max(np.abs(measured[0])))},
        curves=(
            Curve("rate of change of the leading singular values", middles, predicted[0],
                  measured[0], ylabel="dσ/dt"),
        ),
    )


def _products_along_the_flow(target, key, *, first_layer, times, rtol, depth):
    """The end-to-end matrix at `times`."""
    first, *rest = original(target, key, depth=depth, scale=SCALE)
    problem = ld.factorization(target.dense())
    run = gradient_flow(problem, (first_layer * first, *rest), times, rtol=rtol, observe=ld.end_to_end)
    return run.observed


def _dense(setting: Setting) -> np.ndarray:
    """Every seed's target, formed in float64."""
    left, sigma, right = (np.asarray(part, float) for part in jax.tree.leaves(setting.targets))
    return np.einsum("sir,sr,sjr->sij", left, sigma, right)


@check(
    "descent-to-flow",
    claim="Gradient descent at step k approaches gradient flow at time ηk with error O(η).",
    source="4.4",
    controls={"momentum 0.5 read on the clock of plain descent": {"momentum": 0.5}},
    rests_on=("reference", "library"),
)
def descent_to_flow(setting: Setting, /, *, momentum=0.0) -> Evidence:
    """The flow, and descent as predicted, are NumPy's and SciPy's."""
    depth = 3
    as_it_is = setting.target is not None or setting.size == "small"
    own = setting if as_it_is else replace(setting, size="small")
    top = float(np.min(own.targets.singular_values[:, 0]))
    end = float(modes.mode_time(0.5 * top, top, depth=depth, scale=SCALE))
    rates = end / np.array(COUNTS)
    starts = per_seed(original, own, {"scale": SCALE}, depth=depth)
    numbers = {"end": end, "momentum": momentum}
    products = np.asarray(per_seed(_ends_of_descent, own, numbers, starts=starts), float)
    measured, predicted = [], []
    for seed, target in enumerate(_dense(own)):
        problem, start = networks.factorization(target), [np.asarray(w[seed], float) for w in starts]
        limit = networks.product(networks.flow(problem, start, [end], rtol=1e-9, atol=1e-11)[-1])
        exact = [
            networks.product(networks.descent(problem, start, rate=rate, steps=count)[-1])
            for rate, count in zip(rates, COUNTS, strict=True)
        ]
        size = np.linalg.norm(target, 2)
        measured.append(np.linalg.norm(products[seed] - limit, axis=(1, 2)) / size)
        predicted.append(np.linalg.norm(np.array(exact) - limit, axis=(1, 2)) / size)
    measured, predicted = np.array(measured), np.array(predicted)
    slopes = np.polyfit(np.log(rates), np.log(measured).T, 1)[0]
    apart = np.max(np.abs(measured / predicted - 1), axis=1)
    return Evidence(
        errors=np.maximum(np.abs(slopes - 1), apart),
        tolerance=0.1,
        reason="the next order in η, at 64 to 512 steps to half height",
        quantity="|slope − 1| of log ‖W_descent − W_flow‖_F against log η, and largest relative difference "
        "of that distance from NumPy's",
        predicted={"slope": 1.0, "distances, seed 0": predicted[0]},
        measured={"slope": slopes, "distances, seed 0": measured[0]},
        curves=(
            Curve("distance from the flow", rates, predicted[0], measured[0], xlabel="learning rate η",
                  ylabel="‖W − W_flow‖_F / σ*_1", xlog=True, ylog=True),
        ),
    )


def _ends_of_descent(target, weights, *, end, momentum):
    """The end-to-end matrix after the time `end`, one for each of `COUNTS`."""
    problem, products = ld.factorization(target.dense()), []
    for count in COUNTS:
        rule = ld.GradientDescent(end / count, momentum=momentum)
        run = ld.gradient_descent(problem, weights, rule, steps=count, record_every=count)
        products.append(ld.end_to_end(run.weights))
    return jnp.stack(products)
