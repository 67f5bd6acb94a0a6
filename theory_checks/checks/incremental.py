"""Statement 1.6 of docs/theory.md: components are fitted one after another, at predicted times."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

import lowdim_jax as ld
from lowdim_jax import spectra, theory
from theory_checks.reference import modes
from theory_checks.registry import Curve, Evidence, NotApplicable, check
from theory_checks.runs import (
    compressed,
    edge,
    observe_alignment,
    once,
    original,
    per_seed,
    require_distinct,
    require_small_overlap,
    steps_to_fit,
)
from theory_checks.setting import Setting

DEPTH, SCALE = 3, 0.02
VALUE, VECTOR = 0.05, 0.05
"""`c_val` and `c_vec` of the definition of a fitted component."""
FRACTION = 0.2
"""Learning rate as a fraction of the edge of stability."""
COUPLING = 0.15
"""Effect of other components on one's fit time, in units of r/d."""
LEAST_STARTS = 3
"""Starts of the original network: a single Gaussian one can come as near to the law as an orthogonal one."""
WIDE = 0.2
"""Largest r/d at which components are taken to be separate."""
SEPARATION = 0.87
"""Largest ratio of neighbouring singular values at which the original network fits one after the other."""


def _recorded(steps: int, *, records: int = 400) -> tuple[int, int]:
    """Steps, rounded up to whole records, and steps between these: each costs a decomposition."""
    every = max(1, steps // records)
    return -(-steps // every) * every, every


def _fit_times(run, target, rate):
    fitted = spectra.is_fitted(run.observed, target.singular_values, value=VALUE, vector=VECTOR)
    return rate * spectra.first_time(run.steps, fitted)


@check(
    "fit-times-compressed",
    claim="Every component of the compressed network is fitted at the time the mode law predicts.",
    source="1.6, 2.2",
    controls={"random orthonormal outer factors": {"start": "random"}},
    rests_on=("reference", "library"),
)
def fit_times_compressed(setting: Setting, /, *, start="spectral") -> Evidence:
    rate = FRACTION * edge(setting, depth=DEPTH)
    steps = steps_to_fit(setting, rate, depth=DEPTH, scale=SCALE, slack=1.3)
    steps, every = _recorded(steps, records=2000)

    starts = per_seed(
        compressed, setting, {"scale": SCALE}, depth=DEPTH, rank=setting.compressed_rank, start=start
    )
    fitted = per_seed(_fit_compressed, setting, {"rate": rate}, starts=starts, steps=steps, every=every)
    measured, values = (np.asarray(part) for part in fitted)
    require_distinct(setting)
    sigma, law = setting.targets.singular_values.tolist(), {"depth": DEPTH, "scale": SCALE}
    predicted = np.array([[float(modes.fit_time(s, tolerance=VALUE, **law)) for s in row] for row in sigma])
    errors = np.max(np.abs(measured / predicted - 1), axis=1)
    times = rate * every * np.arange(values.shape[1])
    return Evidence(
        errors=errors,
        tolerance=FRACTION / 10,
        reason=f"gradient descent at {FRACTION:g} of the edge lags the flow to first order, by a tenth of "
        "that fraction allowed",
        quantity="largest |t_i − predicted| / predicted",
        predicted={"t_i, seed 0": predicted[0]},
        measured={"t_i, seed 0": measured[0]},
        curves=(
            Curve("compressed network, leading singular values", times,
                  np.transpose([modes.mode_values(times.tolist(), s, **law) for s in sigma[0]]), values[0],
                  ylabel="singular value"),
            Curve("fit times", np.arange(1, setting.rank + 1), predicted[0], measured[0],
                  xlabel="component i", ylabel="t_i"),
        ),
    )


def _fit_compressed(target, weights, *, rate, steps, every):
    run = ld.gradient_descent(
        ld.factorization(target).loss, weights, ld.GradientDescent(rate), steps=steps, record_every=every,
        observe=observe_alignment(target),
    )
    return _fit_times(run, target, rate), run.observed.singular_values


@check(
    "fit-times-original",
    claim="Every component of the original network is fitted when the law of its three scalars says, at the "
    "overlap of its vectors in the start: predicted, not simulated.",
    source="1.6, 3.7",
    controls={
        "Gaussian instead of orthogonal initialization": {"init": "gaussian"},
        "the overlaps of another start": {"shift": 1},
    },
    rests_on=("library", "library"),
    pinned_by="original-mode",
)
def fit_times_original(setting: Setting, /, *, init="orthogonal", shift=0) -> Evidence:
    if setting.seeds < LEAST_STARTS:
        setting = replace(setting, seeds=LEAST_STARTS)
    require_distinct(setting)
    share = setting.rank / min(setting.shape)
    if share > WIDE:
        raise NotApplicable(f"r/d = {share:.2g}, and components separate in wide networks only: {WIDE:g}")
    if shift and setting.rank == 1:
        raise NotApplicable("one component has no other's overlap")
    rate = FRACTION * edge(setting, depth=DEPTH)
    steps, every = _recorded(steps_to_fit(setting, rate, depth=DEPTH, scale=SCALE, slack=1.6))

    measured, values, overlaps = once(setting, _fit_originals, rate=rate, steps=steps, every=every, init=init)
    overlaps = np.roll([_left_by_earlier(overlap) for overlap in overlaps], shift, axis=1)
    sigma = np.asarray(setting.targets.singular_values)
    times = rate * every * np.arange(values.shape[1])
    mode = theory.original_mode(
        jnp.asarray(times, setting.dtype)[:, None, None], sigma[None], depth=DEPTH, scale=SCALE,
        overlap=np.clip(overlaps, -1, 1)[None],
    )
    leading, aligned = np.asarray(mode.leading), np.asarray(mode.alignment)
    done = (np.abs(leading - sigma) <= VALUE * sigma) & (aligned >= 1 - VECTOR)
    never = ~np.any(done, axis=0)  # within this run: then the network must not fit it either
    predicted = np.where(never, np.inf, times[np.argmax(done, axis=0)])
    ratios = np.where(never, 1.0, measured) / np.where(never, 1.0, predicted)
    errors = np.where(np.any(never != np.isinf(measured), axis=1), np.inf, np.max(np.abs(ratios - 1), axis=1))
    return Evidence(
        errors=errors,
        tolerance=FRACTION / 20 + COUPLING * share + 2 * every * rate / float(np.min(predicted)),
        reason=f"gradient descent at {FRACTION:g} of the edge lags the flow by a twentieth of it; "
        f"components couple by products of overlaps, 1/d each: {COUPLING:g} r/d; two records",
        quantity="largest |t_i − predicted| / predicted",
        predicted={"t_i, seed 0": predicted[0]},
        measured={"t_i, seed 0": measured[0], "t_i of every seed, over predicted": ratios},
        curves=(
            Curve("original network, leading singular values", times, leading[:, 0], values[0],
                  ylabel="singular value"),
        ),
    )


def _fit_originals(setting: Setting, *, rate, steps, every, init):
    starts = per_seed(original, setting, {"scale": SCALE}, depth=DEPTH, init=init)
    fitted = per_seed(_fit_original, setting, {"rate": rate}, starts=starts, steps=steps, every=every)
    return tuple(np.asarray(part) for part in fitted)


def _left_by_earlier(overlap):
    """Overlap of each component once those before it are fitted: pivots of `I + (C + Cᵀ)/2`, less one.

    For two layers that is what elimination does to `I + Q_0ᵀ G Q_0` (2.7) while `g_1 ≫ g_2 ≫ …`.
    """
    matrix = np.eye(len(overlap)) + (overlap + overlap.T) / 2
    pivots = []
    while len(matrix):
        pivots.append(matrix[0, 0])
        matrix = matrix[1:, 1:] - np.outer(matrix[1:, 0], matrix[0, 1:]) / matrix[0, 0]
    return np.array(pivots) - 1


def _fit_original(target, weights, *, rate, steps, every):
    """Fit times, leading singular values, and the overlaps `U*ᵀ R_L V*` of the start."""
    run = ld.gradient_descent(
        ld.factorization(target.dense()).loss, weights, ld.GradientDescent(rate), steps=steps,
        record_every=every, observe=observe_alignment(target),
    )
    overlaps = target.left.T @ ld.end_to_end(weights) @ target.right / SCALE**DEPTH
    return _fit_times(run, target, rate), run.observed.singular_values, overlaps


@check(
    "incremental-fitting",
    claim="Components are fitted in order; while one is fitted the next is dormant, and the loss rests "
    "on plateaus ½ Σ_{j>i} σ*_j², where neighbouring singular values are 13% apart.",
    source="1.6",
    controls={"an initialization that is not small": {"relative_scale": 1.0}},
    rests_on=("reference", "library"),
)
def incremental_fitting(setting: Setting, /, *, relative_scale=0.0) -> Evidence:
    require_distinct(setting)
    require_small_overlap(setting)
    targets = _separated(setting.targets)
    sigma = targets.singular_values
    rate = 0.5 * edge(setting, depth=DEPTH)
    steps, every = _recorded(steps_to_fit(setting, rate, depth=DEPTH, scale=SCALE / 2, slack=1.6) + 100)
    scale = relative_scale * float(jnp.min(sigma)) ** (1 / DEPTH) if relative_scale else SCALE / 2
    numbers = {"rate": rate, "scale": scale}
    runs = per_seed(
        _train_both, setting, numbers, targets=targets, rank=setting.compressed_rank, steps=steps,
        every=every,
    )

    errors, curves, headline, first = [], [], {}, {}
    for name, run in zip(("compressed", "original"), runs, strict=True):
        losses, values, fit_steps = (np.asarray(part) for part in run)
        worst, plateaus, resting = zip(
            *map(_incremental_errors, fit_steps / every, values, losses, np.asarray(sigma)), strict=True
        )
        errors.append(worst)
        name_of = f"p_i, plateaus of the {name} network, seed 0"
        first[name_of], headline[name_of] = plateaus[0], resting[0]
        times = rate * every * np.arange(losses.shape[1])
        level = np.broadcast_to(plateaus[0], (len(times), len(plateaus[0])))
        shown = np.broadcast_to(losses[0, :, None], level.shape)
        curves.append(
            Curve(f"{name} network, loss and its predicted plateaus", times, level, shown,
                  ylabel="loss")
        )
    return Evidence(
        errors=np.max(np.asarray(errors), axis=0),
        tolerance=VALUE,
        reason="the definition of a fitted and of a dormant component, c_val = 0.05",
        quantity="largest of: σ_{i+1}/σ*_{i+1} when component i becomes fitted; relative deviation of "
        "the loss from its plateau half-way to the next (∞ if out of order)",
        predicted=first,
        measured=headline,
        curves=tuple(curves),
    )


def _separated(targets: ld.LowRank) -> ld.LowRank:
    """Every k-th component, k the smallest for which no two neighbours are closer than `SEPARATION`.

    Closer ones can rise together in the original network (docs/theory.md 1.6).
    """
    sigma = np.asarray(targets.singular_values)
    stride = 1
    while np.any(sigma[:, stride::stride] > SEPARATION * sigma[:, :-stride:stride]):
        stride += 1
    return jax.tree.map(lambda part: part[..., ::stride], targets)


def _train_both(target, key, *, rate, scale, rank, steps, every):
    """Losses, singular values and fit steps of the compressed and the original network of one scale."""

    def train(problem, weights):
        run = ld.gradient_descent(
            ld.factorization(problem).loss,
            weights,
            ld.GradientDescent(rate),
            steps=steps,
            record_every=every,
            observe=observe_alignment(target),
        )
        return run.losses, run.observed.singular_values, _fit_times(run, target, 1)

    small = compressed(target, key, depth=DEPTH, scale=scale, rank=rank)
    full = original(target, key, depth=DEPTH, scale=scale)
    return train(target, small), train(target.dense(), full)


def _incremental_errors(records, values, losses, sigma):
    """Worst violation in one run, the predicted plateaus, and the losses measured on them."""
    plateaus = np.array(modes.plateaus(sigma.tolist()), float)[:-1]
    if not np.all(np.isfinite(records)) or np.any(np.diff(records) <= 0):
        return np.inf, plateaus, np.full(len(plateaus), np.nan)
    index = records.astype(int)
    # Dormant is a statement about the next component the moment this one is fitted.
    awake = [values[at, i + 1] / sigma[i + 1] for i, at in enumerate(index[:-1])]
    halfway = [0, *((index[:-1] + index[1:]) // 2)]
    resting = losses[halfway]
    deviation = np.abs(resting - plateaus) / plateaus
    return max([*awake, *deviation]), plateaus, resting
