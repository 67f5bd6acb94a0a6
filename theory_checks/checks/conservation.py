"""Section 4 of docs/theory.md: what the flow conserves, and how descent departs from it."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

import lowdim_jax as ld
from lowdim_jax import theory
from theory_checks.registry import Curve, Evidence, check
from theory_checks.runs import compressed, edge, keep, last_fit, original, per_seed, steps_to_fit
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
)
def balance_drift(setting: Setting, /, *, momentum=0.0) -> Evidence:
    rate = 0.5 * edge(setting, depth=3)
    steps = min(400, steps_to_fit(setting, rate, depth=3, scale=SCALE))
    numbers = {"rate": rate, "momentum": momentum}
    drifts = per_seed(_balance_steps, setting, numbers, rank=setting.rank, steps=steps)
    errors, measured = (np.asarray(part) for part in drifts)
    start = np.broadcast_to(measured[0, :1], measured[0].shape)
    return Evidence(
        errors=errors,
        tolerance=setting.rounding(1),
        reason="rounding of one step",
        quantity="largest difference of x_i² − x_j² from its predicted next value, in units of σ*_1^{2/L}",
        predicted={"difference": 0},
        measured={"difference": errors},
        curves=(
            Curve("x_1² − x_j² of the top component", np.arange(len(start)), start, measured[0],
                  xlabel="step", labels=("conserved by the flow", "descent")),
        ),
    )


def _balance_steps(target, key, *, rate, momentum, rank, steps):
    """Worst difference of a step from the formula, and the imbalances of the top component."""
    weights = compressed(target, key, depth=3, scale=SCALE, rank=rank)
    weights = tuple(f * w for f, w in zip((1.0, 2.0, 3.0), weights, strict=True))
    run = ld.gradient_descent(
        ld.factorization(target).loss,
        weights,
        ld.GradientDescent(rate, momentum=momentum),
        steps=steps,
        observe=keep,
    )
    first, middle, last = run.observed
    x = jnp.stack(
        [
            jnp.einsum("tri,ir->tr", first, target.right),
            jnp.einsum("trr->tr", middle),
            jnp.einsum("tir,ir->tr", last, target.left),
        ],
        axis=-1,
    )  # steps × components × layers
    squares = x**2
    measured = squares[..., :, None] - squares[..., None, :]
    predicted = theory.balance_step(x[:-1], target.singular_values[None], learning_rate=rate)
    size = target.singular_values[0] ** (2 / 3)
    return jnp.max(jnp.abs(measured[1:] - predicted)) / size, measured[:, 0, 0, 1:]


@check(
    "singular-value-rate",
    claim="In a balanced network σ̇_i = L σ_i^{2−2/L} ⟨u_i, (Φ − W) v_i⟩ along gradient flow.",
    source="4.3",
    controls={"an initialization that is not balanced": {"first_layer": 3.0}},
)
def singular_value_rate(setting: Setting, /, *, first_layer=1.0) -> Evidence:
    depth = 3
    end = last_fit(setting, depth=depth, scale=SCALE)
    # Rates are measured as central differences over a short time h, from float32 up.
    h = (3 * _rtol(setting)) ** (1 / 3) / 2 / (1 / edge(setting, depth=depth)) / depth
    middles = np.linspace(0.15, 1, 24) * end
    times = jnp.asarray((middles[:, None] + h * np.array([-1, 0, 1])).ravel(), setting.dtype)

    numbers = {"first_layer": first_layer, "times": times, "h": h, "rtol": _rtol(setting)}
    rates = per_seed(_rates_along_the_flow, setting, numbers, depth=depth, top=setting.rank)
    measured, predicted = (np.asarray(part) for part in rates)
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


def _rates_along_the_flow(target, key, *, first_layer, times, h, rtol, depth, top):
    """Measured and predicted rates of the `top` leading singular values at every middle of three times."""
    first, *rest = original(target, key, depth=depth, scale=SCALE)
    run = ld.gradient_flow(
        ld.factorization(target.dense()).loss, (first_layer * first, *rest), times, rtol=rtol,
        observe=ld.end_to_end,
    )
    u, s, vt = jnp.linalg.svd(run.observed[1::3], full_matrices=False)
    predicted = jax.vmap(
        lambda w, u, s, vt: theory.singular_value_rate(
            s[:top], u[:, :top], vt[:top].T, target.dense() - w, depth=depth
        )
    )(run.observed[1::3], u, s, vt)
    sides = jnp.linalg.svd(run.observed, compute_uv=False)[:, :top]
    return (sides[2::3] - sides[0::3]) / (2 * h), predicted


@check(
    "descent-to-flow",
    claim="Gradient descent at step k approaches gradient flow at time ηk with error O(η).",
    source="4.4",
    controls={"momentum 0.5 read on the clock of plain descent": {"momentum": 0.5}},
)
def descent_to_flow(setting: Setting, /, *, momentum=0.0) -> Evidence:
    depth = 3
    end = float(
        theory.mode_time(
            0.5 * float(jnp.min(setting.targets.singular_values[:, 0])),
            float(jnp.min(setting.targets.singular_values[:, 0])), depth=depth, scale=SCALE,
        )
    )
    rates = end / np.array(COUNTS)
    numbers = {"times": jnp.asarray([end], setting.dtype), "momentum": momentum, "rtol": _rtol(setting)}
    gaps = np.asarray(per_seed(_distances_from_the_flow, setting, numbers, depth=depth))
    slopes = np.polyfit(np.log(rates), np.log(gaps).T, 1)[0]
    reference = gaps[0, -1] * rates / rates[-1]
    return Evidence(
        errors=np.abs(slopes - 1),
        tolerance=0.1,
        reason="the next order in η, at 64 to 512 steps to half height",
        quantity="|slope − 1| of log ‖W_descent − W_flow‖_F against log η",
        predicted={"slope": 1.0},
        measured={"slope": slopes},
        curves=(
            Curve("distance from the flow", rates, reference, gaps[0], xlabel="learning rate η",
                  ylabel="‖W − W_flow‖_F / σ*_1", xlog=True, ylog=True),
        ),
    )


def _distances_from_the_flow(target, key, *, times, momentum, rtol, depth):
    """`‖W_descent − W_flow‖_F / σ*_1` at the end of `times`, one for each of `COUNTS`."""
    weights = original(target, key, depth=depth, scale=SCALE)
    loss = ld.factorization(target.dense()).loss
    limit = ld.end_to_end(ld.gradient_flow(loss, weights, times, rtol=rtol).weights)
    gaps = []
    for count in COUNTS:
        rule = ld.GradientDescent(times[-1] / count, momentum=momentum)
        run = ld.gradient_descent(loss, weights, rule, steps=count, record_every=count)
        gaps.append(jnp.linalg.norm(ld.end_to_end(run.weights) - limit))
    return jnp.stack(gaps) / target.singular_values[0]
