"""Section 2 of docs/theory.md: the compressed network is a set of scalar modes with known times."""

import jax
import jax.numpy as jnp
import numpy as np

import lowdim_jax as ld
from lowdim_jax import theory
from theory_checks.registry import Curve, Evidence, check
from theory_checks.runs import (
    compressed,
    edge,
    keep,
    last_fit,
    modes_under_flow,
    observe_modes,
    per_seed,
    steps_to_fit,
)
from theory_checks.setting import Setting

SCALE = 0.1
SMALL_SCALES = (0.02, 0.04, 0.08)
RTOL = 1e-8
"""Error per step allowed to the ODE solver in float64."""


@check(
    "scalar-map",
    claim="From a spectral start, gradient descent on the matrices is exactly r̂ scalar maps.",
    source="2.1",
    controls={
        "random orthonormal outer factors": {"start": "random", "depths": (3,)},
        "a mode law of one layer more": {"extra_depth": 1, "depths": (3,)},
    },
)
def scalar_map(
    setting: Setting, /, *, start="spectral", extra_depth=0, depths=(2, 3, 4)
) -> Evidence:
    errors, curves, steps = [], [], 0
    for depth in depths:
        rate = 0.5 * edge(setting, depth=depth)
        steps = max(steps, steps_to_fit(setting, rate, depth=depth, scale=SCALE))
        every = max(1, steps // 60)
        rank = setting.compressed_rank
        starts = per_seed(compressed, setting, {"scale": SCALE}, depth=depth, rank=rank, start=start)
        error, measured, predicted = per_seed(
            _against_map, setting, {"rate": rate}, starts=starts, depth=depth, steps=steps, every=every,
            rank=rank, extra_depth=extra_depth,
        )
        errors.append(error)
        curves.append(
            Curve(
                f"L = {depth}",
                np.arange(0, steps + 1, every),
                np.asarray(predicted[0]),
                np.asarray(measured[0]),
                xlabel="step",
                ylabel="singular value",
            )
        )
    errors = jnp.max(jnp.stack(errors), axis=0)
    return Evidence(
        errors=np.asarray(errors),
        tolerance=setting.rounding(steps),
        reason=f"rounding of {steps} steps",
        quantity="largest ‖W − Û diag(σ) V̂ᵀ‖_F / ‖Φ‖_F over all steps recorded, L = 2, 3, 4",
        predicted={"difference": 0},
        measured={"difference": float(jnp.max(errors))},
        curves=tuple(curves),
    )


def _against_map(target, weights, *, depth, rate, steps, every, rank, extra_depth):
    """Worst distance of the matrices from the scalar prediction, and both sets of singular values."""
    steps = steps // every * every
    run = ld.gradient_descent(
        ld.factorization(target).loss, weights, ld.GradientDescent(rate),
        steps=steps, record_every=every, observe=keep,
    )
    sigma = theory.mode_descent(
        jnp.pad(target.singular_values, (0, rank - len(target.singular_values))),
        depth=depth + extra_depth, scale=SCALE, learning_rate=rate, steps=steps, record_every=every,
    )
    spectral = ld.compress(target, depth=2, scale=1.0, rank=rank)

    def distance(weights, sigma):
        predicted = ld.LowRank(spectral[1], sigma, spectral[0].T)
        return jnp.sqrt(2 * ld.problems.Factorization(predicted).loss(weights))

    errors = jax.vmap(distance)(run.observed, sigma) / jnp.linalg.norm(target.singular_values)
    values = jax.vmap(lambda weights: ld.spectra.modes(weights, target))(run.observed)
    return jnp.max(errors), values, sigma[:, : values.shape[1]]


@check(
    "mode-trajectories",
    claim="Under gradient flow each singular value follows the closed-form mode law, L = 1 … 5.",
    source="2.2, 2.3",
    controls={
        "unequal initial scales of the layers": {"first_layer": 1.5, "depths": (3,)},
        "random orthonormal outer factors": {"start": "random", "depths": (3,)},
    },
)
def mode_trajectories(
    setting: Setting, /, *, first_layer=1.0, start="spectral", depths=(1, 2, 3, 4, 5)
) -> Evidence:
    errors, curves = [], []
    for depth in depths:
        scale = SCALE * {4: 3, 5: 5}.get(depth, 1)  # deeper networks wait ε^−(L−2)
        end = 1.1 * last_fit(setting, depth=depth, scale=scale)
        times = jnp.linspace(0, end, 80, dtype=setting.dtype)

        weights = per_seed(_start, setting, {"scale": scale, "first_layer": first_layer}, depth=depth,
                           rank=setting.compressed_rank, start=start)
        error, curve = _against_mode_law(
            setting, weights, times, depth=depth, scale=scale
        )
        errors.append(error)
        curves.append(curve)
    return _mode_evidence(setting, errors, curves)


def _start(target, key, *, scale, first_layer, depth, rank, start):
    """Spectral start with the first layer scaled; at depth 1 the matrix `ε Û V̂ᵀ` of the target's rank."""
    if depth == 1:
        rank = target.singular_values.size
        inner, outer = compressed(target, key, depth=2, scale=1.0, rank=rank, start=start)
        return (scale * first_layer * outer @ inner,)
    weights = compressed(target, key, depth=depth, scale=scale, rank=rank, start=start)
    return (first_layer * weights[0], *weights[1:])


def _against_mode_law(setting: Setting, weights, times, *, depth, scale, alpha=1.0, trained=None):
    """Worst distance of trained singular values from the mode law, one a seed, and a curve of both.

    `trained` is the outer learning rate of the training, `alpha` itself unless a control says otherwise.
    """
    rate = alpha if trained is None else trained
    measured = modes_under_flow(
        setting.targets, weights, times, rate, setting.solver_tolerance(RTOL)
    )
    sigma = setting.targets.singular_values[:, None, :]
    predicted = theory.mode_trajectory(
        times[None, :, None], sigma, depth=depth, scale=scale, alpha=alpha
    )
    title = f"L = {depth}" if alpha == 1 else f"L = {depth}, α = {alpha:g}"
    curve = Curve(title, np.asarray(times), np.asarray(predicted[0]), np.asarray(measured[0]),
                  ylabel="singular value")
    return jnp.max(jnp.abs(measured - predicted) / sigma[..., :1], axis=(1, 2)), curve


def _mode_evidence(setting: Setting, errors, curves) -> Evidence:
    errors = np.max(np.asarray(jnp.stack(errors)), axis=0)
    rtol = setting.solver_tolerance(RTOL)
    return Evidence(
        errors=errors,
        tolerance=setting.integration(RTOL),
        reason=f"ODE solver's error per step {rtol:.0g}, amplified on the steep rises",
        quantity="largest |u*ᵀ W v* − σ(t)| / σ*_1 over all times, components and depths",
        predicted={"difference": 0},
        measured={"difference": float(np.max(errors))},
        curves=tuple(curves),
    )


@check(
    "small-scale-law",
    claim="As ε → 0 with L ≥ 3, σ*_i t_i is the same for all components and grows as ε^−(L−2).",
    source="2.4",
    controls={"initialization scales that are not small": {"scales": (0.7, 0.9, 1.1)}},
)
def small_scale_law(setting: Setting, /, *, scales=SMALL_SCALES) -> Evidence:
    depth = 3
    rate = 0.25 * edge(setting, depth=depth)
    steps = 50 + max(
        steps_to_fit(setting, rate, depth=depth, scale=scale, slack=1.2) for scale in SMALL_SCALES
    )
    rank = setting.compressed_rank
    runs = [
        per_seed(_half_times, setting, {"scale": scale, "rate": rate}, depth=depth, rank=rank, steps=steps)
        for scale in scales
    ]
    times = np.stack(runs, axis=1)  # seeds × scales × components
    predicted = theory.fit_time_small_scale(
        setting.targets.singular_values[:, None, :], depth=depth,
        scale=jnp.asarray(scales, setting.dtype)[None, :, None],
    )
    ratios = times / np.asarray(predicted)
    errors = np.max(np.abs(ratios - 1), axis=(1, 2))
    next_order = 3 * SMALL_SCALES[-1] / float(jnp.min(setting.targets.singular_values)) ** (1 / depth)
    return Evidence(
        errors=errors,
        tolerance=next_order,
        reason=f"next order of the expansion in ε, 3 ε / σ*_r^{{1/L}} at ε = {SMALL_SCALES[-1]:g}",
        quantity="largest |(L−2) ε^{L−2} σ*_i t_i − 1|, t_i the time to σ*_i / 2",
        predicted={"(L−2) ε^{L−2} σ*_i t_i, seed 0, smallest ε": 1.0},
        measured={"(L−2) ε^{L−2} σ*_i t_i, seed 0, smallest ε": ratios[0, 0]},
        curves=(
            Curve(
                "time to half height of each component", np.asarray(scales),
                np.asarray(predicted[0]),
                times[0],
                xlabel="initialization scale ε", ylabel="flow time", xlog=True, ylog=True,
            ),
        ),
    )


def _half_times(target, key, *, scale, rate, depth, rank, steps):
    """Times at which each component reaches half its target."""
    weights = compressed(target, key, depth=depth, scale=scale, rank=rank)
    run = ld.gradient_descent(
        ld.factorization(target).loss,
        weights,
        ld.GradientDescent(rate),
        steps=steps,
        observe=observe_modes(target),
    )
    return ld.spectra.crossing_time(rate * run.steps, run.observed, target.singular_values / 2)


@check(
    "discrepant-modes",
    claim="With outer rate α the modes follow the discrepant mode law.",
    source="2.5",
    controls={"α dropped in training": {"trained_alpha": 1.0, "cases": ((3, 5.0),)}},
)
def discrepant_modes(
    setting: Setting, /, *, trained_alpha=None, cases=((3, 5.0), (3, 0.5), (4, 5.0))
) -> Evidence:
    errors, curves = [], []
    for depth, alpha in cases:
        scale = SCALE if depth == 3 else 3 * SCALE
        end = 1.1 * last_fit(setting, depth=depth, scale=scale, alpha=alpha)
        times = jnp.linspace(0, end, 80, dtype=setting.dtype)
        weights = per_seed(
            compressed, setting, {"scale": scale}, depth=depth, rank=setting.compressed_rank
        )
        error, curve = _against_mode_law(
            setting, weights, times, depth=depth, scale=scale, alpha=alpha, trained=trained_alpha
        )
        errors.append(error)
        curves.append(curve)
    return _mode_evidence(setting, errors, curves)
