"""Statement 5.3 of docs/theory.md: how far the two-cycle goes, and what becomes of it in a matrix."""

from dataclasses import replace

import numpy as np

from lowdim_jax import theory
from theory_checks.pairs import evidence_of
from theory_checks.reference import networks
from theory_checks.registry import Curve, Evidence, check
from theory_checks.setting import Setting

WITHIN = 2e-3
"""How closely, relative to the edge, simulation locates where behaviour changes."""


def _orbit(multiple: float, depth: int, start: float, steps: int) -> np.ndarray:
    """The scalar map for a target of one, at a multiple of its edge."""
    x, rate, values = start, 2 * multiple / depth, np.empty(steps)
    for step in range(steps):
        x += rate * (1 - x**depth) * x ** (depth - 1)
        values[step] = x
    return values


def _period_two(multiple: float, depth: int) -> bool:
    end = _orbit(multiple, depth, 0.6, 12_000)[-4:]
    return bool(abs(end[0] - end[2]) < 1e-7 and abs(end[0] - end[1]) > 1e-3)


def _stays_positive(multiple: float, depth: int) -> bool:
    return bool(np.all(_orbit(multiple, depth, 0.6, 12_000) > 0))


@check(
    "beyond-the-edge",
    claim="The two-cycle attracts up to two_cycle_limit times the edge (√5 − 1 for L = 2), and a run's "
    "factor first changes sign at first_sign_change times it (3√3/2 − 1 for L = 2).",
    source="5.3",
    controls={"the limits of a network one layer deeper": {"extra_depth": 1}},
    any_target=False,
    rests_on=("library", "NumPy"),
)
def beyond_the_edge(setting: Setting, /, *, extra_depth=0) -> Evidence:
    del setting  # scalar arithmetic, the same for every size and precision
    laws = {
        "a cycle of two values": (theory.two_cycle_limit, _period_two),
        "one sign": (theory.first_sign_change, _stays_positive),
    }
    errors, predicted, measured = [], {}, {}
    for name, (law, holds) in laws.items():
        for depth in (2, 3):
            at = law(depth + extra_depth)
            sides = holds(at * (1 - WITHIN), depth), holds(at * (1 + WITHIN), depth)
            errors.append(0.0 if sides == (True, False) else np.inf)
            predicted[f"{name} up to, L = {depth}"] = at
            measured[f"{name} just below, just above, L = {depth}"] = sides
    return Evidence(
        errors=np.array([max(errors)]),
        tolerance=0.0,
        reason=f"a change of behaviour is seen or not, within {WITHIN:g} of the predicted rate",
        quantity="0 if 12,000 steps of the map behave one way below and the other way above, else ∞",
        predicted=predicted,
        measured=measured,
    )


CASES = {
    "both beyond their edges": ((2, 0.9, 1.12), (2, 0.9, 1.2), (3, 0.9, 1.2)),
    "one beyond its edge, below the mixed one": ((2, 0.7, 1.12), (3, 0.8, 1.12)),
}
"""Depth, σ*_2 for σ*_1 = 1, and the rate in units of component 1's edge."""
STEPS, NUDGE, LEFT = 3000, 1e-9, 1e-3


@check(
    "side-by-side",
    claim="Two components beyond their edges oscillate side by side only while the matrices are exactly "
    "diagonal in the target's bases: a perturbation of 1e-9 grows in the mixed directions and ends it. "
    "One alone, below the edge of the mixed directions, survives it.",
    source="5.3",
    controls={"the rival claim: side by side from any start": {"nudge_all": True}},
    any_target=False,
    rests_on=("library", "reference"),
)
def side_by_side(setting: Setting, /, *, nudge_all=False) -> Evidence:
    rng = np.random.default_rng(setting.seeds)
    pairs, departures, curves = {}, {}, []
    for kind, cases in CASES.items():
        for depth, second, multiple in cases:
            sigma, rate = np.array([1.0, second]), 2 * multiple / depth
            cycle = np.stack(theory.two_cycle(sigma, depth=depth, learning_rate=rate))
            name = f"L = {depth}, σ*_2 = {second:g}, {multiple:g} of the edge"
            alone = kind == "one beyond its edge, below the mixed one"
            exact, off = _last_two(sigma, depth, rate, 0.0, rng)
            nudged, _ = _last_two(sigma, depth, rate, NUDGE, rng)
            pairs[f"{name}, exactly diagonal"] = cycle, nudged if nudge_all else exact
            pairs[f"{name}, exactly diagonal: off the diagonal"] = 0.0, off
            if alone:
                pairs[f"{name}, perturbed"] = cycle, nudged
            else:
                departures[name] = float(np.nan_to_num(np.max(np.abs(nudged - cycle)), nan=np.inf))
                pairs[f"{name}, perturbed: it has left"] = 1.0, float(departures[name] > LEFT)
            if depth == 2 and multiple == 1.12:
                curves.append(_growth(sigma, depth, rate, name, rng))
    evidence = evidence_of(
        pairs,
        tolerance=max(1e-8, setting.rounding(1)),
        reason=f"a cycle that attracts slowly, over {STEPS} steps; departures are larger than {LEFT:g}",
        quantity="largest difference of the last two singular values from the predicted cycles",
    )
    left = {f"{name}: left by": far for name, far in departures.items()}
    return replace(evidence, measured={**evidence.measured, **left}, curves=tuple(curves))


def _history(sigma, depth, rate, nudge, rng, last=0):
    """End-to-end matrices at every step, or at the last ones only."""
    start = 0.8 * np.min(sigma) ** (1 / depth)
    weights = [start * np.eye(2) + nudge * rng.standard_normal((2, 2)) for _ in range(depth)]
    with np.errstate(all="ignore"):  # a run that leaves may diverge
        run = networks.descent(networks.factorization(np.diag(sigma)), weights, rate=rate, steps=STEPS)
        return [networks.product(layers) for layers in run[-last:]]


def _last_two(sigma, depth, rate, nudge, rng):
    """The diagonal at the last two steps, each component's in order, and the largest entry off it."""
    end = np.array(_history(sigma, depth, rate, nudge, rng, last=2))
    diagonal = np.sort(np.einsum("tii->ti", end), axis=0)
    return diagonal, float(max(np.max(np.abs(end[:, 0, 1])), np.max(np.abs(end[:, 1, 0]))))


def _growth(sigma, depth, rate, name, rng) -> Curve:
    """Size of the mixed directions along a perturbed run, beside those of an exactly diagonal one."""
    sizes = [
        np.array([abs(w[0, 1]) + abs(w[1, 0]) for w in _history(sigma, depth, rate, nudge, rng)])
        for nudge in (0.0, NUDGE)
    ]
    steps = np.arange(0, STEPS + 1, 10)
    floor = 1e-30
    return Curve(
        f"{name}: entries off the diagonal", steps, np.maximum(sizes[0], floor)[::10],
        np.nan_to_num(np.maximum(sizes[1], floor)[::10], nan=1.0, posinf=1.0), xlabel="step",
        ylabel="size", ylog=True, labels=("exactly diagonal start", "perturbed by 1e-9"),
    )
