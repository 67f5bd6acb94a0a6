"""Section 2 of docs/theory.md: the compressed network is a set of scalar modes with known times."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np

import lowdim_jax as ld
from theory_checks.reference import modes, networks
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
SLOWER = {4: 3, 5: 5}
"""Larger starts of deeper networks, which wait ε^−(L−2)."""
MAPS = ((2, 1.0), (3, 1.0), (3, 5.0), (4, 1.0), (4, 0.5), (5, 1.0))
"""Depths and outer rates."""
RISES = ((1, False), (2, False), (3, False), (4, False), (5, False), (2, True), (3, True))
"""Depths, and whether the start is above all targets."""
RTOL = 1e-8
"""Error per step allowed to the ODE solver in float64."""

mode_values = cache(modes.mode_values)


@check(
    "scalar-map",
    claim="From a spectral start, gradient descent on the matrices is exactly r̂ scalar maps, whatever the "
    "outer rate α.",
    source="2.1",
    controls={
        "random orthonormal outer factors": {"start": "random", "cases": ((3, 1.0),)},
        "a mode law of one layer more": {"extra_depth": 1, "cases": ((3, 1.0),)},
    },
    rests_on=("reference", "library"),
)
def scalar_map(setting: Setting, /, *, start="spectral", extra_depth=0, cases=MAPS) -> Evidence:
    errors, curves, longest = [], [], 0
    for depth, alpha in cases:
        scale = SCALE * SLOWER.get(depth, 1)
        # As many steps for every α of a depth, so that they share a program.
        counts = [
            steps_to_fit(setting, _half_edge(setting, depth, a), depth=depth, scale=scale, alpha=a)
            for same, a in MAPS if same == depth
        ]
        every = max(1, max(counts) // 60)
        steps = max(counts) // every * every
        longest = max(longest, steps)
        rate, rank = _half_edge(setting, depth, alpha), setting.compressed_rank
        starts = per_seed(compressed, setting, {"scale": scale}, depth=depth, rank=rank, start=start)
        numbers = {"rate": rate, "alpha": alpha}
        fixed = {"steps": steps, "every": every}
        history = jax.device_get(per_seed(_records, setting, numbers, starts=starts, **fixed))
        walk = {"learning_rate": rate, "steps": steps, "alpha": alpha}
        found = [
            _against_maps(
                setting, seed, [layer[seed] for layer in history], every, depth + extra_depth, scale, walk
            )
            for seed in range(setting.seeds)
        ]
        errors.append([error for error, _, _ in found])
        title = f"L = {depth}" if alpha == 1 else f"L = {depth}, α = {alpha:g}"
        curves.append(
            Curve(title, np.arange(0, steps + 1, every), *found[0][1:], xlabel="step",
                  ylabel="singular value")
        )
    errors = np.max(errors, axis=0)
    return Evidence(
        errors=errors,
        tolerance=setting.rounding(longest),
        reason=f"rounding of {longest} steps",
        quantity="largest ‖W − Û diag(σ) V̂ᵀ‖_F / ‖Φ‖_F over all steps recorded, L = 2 … 5, α from 0.5 to 5",
        predicted={"difference": 0},
        measured={"difference": float(np.max(errors))},
        curves=tuple(curves),
    )


def _half_edge(setting: Setting, depth: int, alpha: float) -> float:
    return 0.5 * edge(setting, depth=depth, alpha=alpha)


def _records(target, weights, *, rate, alpha, steps, every):
    """Every layer at every record."""
    rule = ld.GradientDescent(rate, alpha=alpha)
    problem = ld.factorization(target)
    run = ld.gradient_descent(problem, weights, rule, steps=steps, record_every=every, observe=keep)
    return run.observed


def _against_maps(setting: Setting, seed: int, history, every: int, depth: int, scale: float, walk: dict):
    """Worst distance of the matrices from the scalar maps, and the components of both.

    Beside the target's components there are the start's other directions, which shrink as one.
    """
    left, sigma, right = (np.asarray(part[seed], float) for part in jax.tree.leaves(setting.targets))
    law = {"depth": depth, "scale": scale} | walk
    maps = np.array([modes.mode_descent(float(value), **law)[::every] for value in (*sigma, 0.0)])
    layers = [np.asarray(layer, float) for layer in history]
    products = np.array([networks.product(net) for net in zip(*layers, strict=True)])
    others = products[0] - maps[:-1, 0].mean() * left @ right.T
    predicted = np.einsum("ir,rt,jr->tij", left, maps[:-1], right)
    predicted += (maps[-1] / maps[-1, 0])[:, None, None] * others
    # The others have to be r̂ − r orthonormal pairs beside the target's.
    extra = np.linalg.svd(others, compute_uv=False)
    wanted = np.where(np.arange(len(extra)) < setting.compressed_rank - len(sigma), maps[-1, 0], 0)
    sides = left.T @ others, (others @ right).T, (extra - wanted)[None]
    beside = max(np.max(np.abs(side)) for side in sides)
    gaps = np.linalg.norm(products - predicted, axis=(1, 2))
    measured = np.einsum("ir,tij,jr->tr", left, products, right)
    return max(np.max(gaps), beside) / np.linalg.norm(sigma), maps[:-1].T, measured


@check(
    "mode-trajectories",
    claim="Under gradient flow each singular value follows the closed-form mode law, L = 1 … 5, from below "
    "and from above its target.",
    source="2.2, 2.3",
    controls={
        "unequal initial scales of the layers": {"first_layer": 1.5, "cases": ((3, False),)},
        "random orthonormal outer factors": {"start": "random", "cases": ((3, False),)},
    },
    rests_on=("reference", "library"),
)
def mode_trajectories(
    setting: Setting, /, *, first_layer=1.0, start="spectral", cases=RISES
) -> Evidence:
    errors, curves = [], []
    top = float(jnp.max(setting.targets.singular_values))
    for depth, falling in cases:
        scale = 1.2 * top ** (1 / depth) if falling else SCALE * SLOWER.get(depth, 1)
        steps_to_fit(setting, edge(setting, depth=depth), depth=depth, scale=scale)  # or not applicable
        end = 1.1 * last_fit(setting, depth=depth, scale=scale)
        times = jnp.linspace(0, end, 80, dtype=setting.dtype)

        weights = per_seed(_start, setting, {"scale": scale, "first_layer": first_layer}, depth=depth,
                           rank=setting.compressed_rank, start=start)
        error, curve = _against_mode_law(
            setting, weights, times, depth=depth, scale=scale, title=", from above" if falling else ""
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


def _against_mode_law(setting: Setting, weights, times, *, depth, scale, alpha=1.0, trained=None,
                      title=""):
    """Worst distance of trained singular values from the mode law, one a seed, and a curve of both.

    `trained` is the outer learning rate of the training, `alpha` itself unless a control says otherwise.
    """
    rate = alpha if trained is None else trained
    measured = modes_under_flow(
        setting.targets, weights, times, rate, setting.solver_tolerance(RTOL)
    )
    sigma = np.asarray(setting.targets.singular_values, float)
    clock = tuple(np.asarray(times, float).tolist())
    law = {"depth": depth, "scale": scale, "alpha": alpha}
    predicted = np.array([[mode_values(clock, float(s), **law) for s in row] for row in sigma]).swapaxes(1, 2)
    title = f"L = {depth}{title}" if alpha == 1 else f"L = {depth}, α = {alpha:g}{title}"
    curve = Curve(title, np.asarray(times), predicted[0], np.asarray(measured[0]), ylabel="singular value")
    return np.max(np.abs(np.asarray(measured) - predicted) / sigma[:, None, :1], axis=(1, 2)), curve


def _mode_evidence(setting: Setting, errors, curves) -> Evidence:
    errors = np.max(errors, axis=0)
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
    rests_on=("reference", "library"),
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
    predicted = np.array([
        [[float(modes.leading_fit_time(float(s), depth=depth, scale=scale, tolerance=0.5)) for s in row]
         for scale in scales]
        for row in np.asarray(setting.targets.singular_values)
    ])
    ratios = times / predicted
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
                predicted[0],
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
    rests_on=("reference", "library"),
)
def discrepant_modes(
    setting: Setting, /, *, trained_alpha=None, cases=((3, 5.0), (3, 0.5), (4, 5.0))
) -> Evidence:
    errors, curves = [], []
    for depth, alpha in cases:
        scale = SCALE * SLOWER.get(depth, 1)
        rate = edge(setting, depth=depth, alpha=alpha)
        steps_to_fit(setting, rate, depth=depth, scale=scale, alpha=alpha)  # or not applicable
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
