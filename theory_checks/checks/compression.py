"""Statements 1.2 to 1.5 of docs/theory.md: what compression costs, how it starts, what it gains."""

from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import lowdim_jax as ld
from theory_checks.reference import modes
from theory_checks.registry import Curve, Evidence, NotApplicable, check
from theory_checks.runs import (
    compressed,
    edge,
    errors_under_descent,
    original,
    per_seed,
    require_distinct,
    require_room,
    steps_to_fit,
)
from theory_checks.setting import Setting

CASES = ((2, 0.01), (2, 0.5), (3, 0.03), (3, 0.5), (4, 0.3), (4, 1.0))
"""Depths and initialization scales at which dominance is tested."""


@check(
    "parameter-count",
    claim="The compressed network has (d_out + d_in) r̂ + (L − 2) r̂² parameters.",
    source="1.2",
    controls={"hidden layers one unit wider": {"extra": 1}},
    rests_on=("theorem", "library"),
)
def parameter_count(setting: Setting, /, *, extra=0) -> Evidence:
    d_out, d_in = setting.shape
    rank = min(setting.compressed_rank, min(d_out, d_in) - 1)
    if rank < 1:
        raise NotApplicable(f"a {d_out}×{d_in} matrix leaves no width below its own")
    depths = range(2, 7)
    predicted = [(d_out + d_in) * rank + (depth - 2) * rank**2 for depth in depths]
    target = jax.tree.map(lambda leaf: leaf[0], setting.targets)
    measured = [
        ld.parameter_count(ld.compress(target, depth=depth, scale=1.0, rank=rank + extra))
        for depth in depths
    ]
    planned = [
        _count(ld.compressed_widths(d_out, d_in, depth=depth, rank=rank + extra)) for depth in depths
    ]
    full, narrow = _count(ld.full_widths(d_out, d_in, depth=3)), min(d_out, d_in)
    original = (d_out + d_in) * narrow + narrow**2
    apart = np.abs(np.subtract([measured, planned], predicted))
    return Evidence(
        errors=np.array([max(apart.max(), abs(full - original))]),
        tolerance=0,
        reason="whole numbers",
        quantity="largest difference over L = 2 … 6",
        predicted={"L = 3": predicted[1], "original network, L = 3": original},
        measured={"L = 3": measured[1], "original network, L = 3": full},
        curves=(
            Curve("parameters of the compressed network", np.array(depths), np.array(predicted),
                  np.array(measured), xlabel="depth L", ylabel="parameters"),
        ),
    )


@check(
    "surrogate",
    claim="The surrogate of factorization, sensing and completion is the negative gradient of the loss at "
    "the zero matrix, Φ, Σ y_i A_i / c and P_Ω(Φ) / p, and its leading singular vectors are the compressed "
    "network's outer factors.",
    source="1.3",
    controls={"gradient taken at a random matrix": {"origin": 1.0}},
    rests_on=("NumPy", "library"),
)
def surrogate(setting: Setting, /, *, origin=0.0) -> Evidence:
    found = per_seed(_surrogates, setting, {"origin": origin}, rank=setting.rank)
    measured = jax.tree.map(lambda part: np.asarray(part, float), found)
    errors = np.array([
        _surrogate_gaps(setting, seed, jax.tree.map(lambda part, k=seed: part[k], measured))
        for seed in range(setting.seeds)
    ])
    gap = float(setting.targets.singular_values[0, 0] / jnp.min(setting.targets.singular_values))
    names = ("factorization", "sensing", "completion", "outer factors")
    return Evidence(
        errors=errors.max(axis=1),
        tolerance=setting.rounding(1) * gap * max(setting.shape),
        reason="rounding of a singular value decomposition, times σ*_1/σ*_r",
        quantity="relative Frobenius difference of surrogate and of −∇ℓ(0) from NumPy's, and of the "
        "projections on outer factors from those on the target's singular subspaces",
        predicted={"difference": 0},
        measured=dict(zip(names, errors.max(axis=0), strict=True)),
    )


def _surrogates(target, key, *, origin, rank):
    """Measurements and mask; surrogates and negative gradients of three problems; outer factors."""
    key_point, key_mask, key_stack = jax.random.split(key, 3)
    point = origin * jax.random.normal(key_point, target.shape, target.dtype)
    truth = target.dense()
    stack = ld.gaussian_measurements(key_stack, 30, target.shape, dtype=target.dtype)
    mask = jax.random.uniform(key_mask, target.shape) < 0.5
    sensed, seen = ld.sensing(stack, truth=truth), ld.completion(truth, mask)
    problems: tuple[Any, ...] = (ld.factorization(truth), sensed, seen)
    descents = [-jax.grad(problem.loss)((point,))[0] for problem in problems]
    surrogates = [truth, *(problem.surrogate_matrix() for problem in problems[1:])]
    weights = compressed(target, key, depth=2, scale=1.0, rank=rank)
    return stack, mask, surrogates, descents, weights


def _surrogate_gaps(setting: Setting, seed: int, measured) -> list[float]:
    """What `quantity` of the check says: one number a problem, and one for the outer factors."""
    stack, mask, surrogates, descents, (rows, columns) = measured
    left, sigma, right = (np.asarray(part[seed], float) for part in jax.tree.leaves(setting.targets))
    truth = left * sigma @ right.T
    labels = np.einsum("mij,ij->m", stack, truth)
    exact = (
        truth,
        np.einsum("m,mij->ij", labels, stack) / (np.sum(stack**2) / truth.size),
        np.where(mask > 0, truth, 0) / np.mean(mask),
    )
    gaps = [
        max(np.linalg.norm(found - e) for found in (surrogates[k], descents[k])) / np.linalg.norm(e)
        for k, e in enumerate(exact)
    ]
    sides = (left @ left.T, columns @ columns.T), (right @ right.T, rows.T @ rows)
    return [*map(float, gaps), float(max(np.linalg.norm(known - own) for known, own in sides))]


@check(
    "dominance",
    claim="The compressed network's recovery error is at most the original's at every iteration, for "
    "r̂ ≤ max(r, d − r).",
    source="1.5",
    controls={
        "random orthonormal outer factors": {"start": "random", "cases": CASES[3:4]},
        "the target's right singular vectors in reversed order": {
            "start": "reversed", "cases": CASES[3:4],
        },
    },
    rests_on=("reference", "library"),
)
def dominance(setting: Setting, /, *, start="spectral", cases=CASES) -> Evidence:
    """The compressed network's error is that of scalar maps, which `scalar-map` ties to its matrices."""
    if min(setting.shape) == 1:
        raise NotApplicable("the original network of a matrix with one row or column is one wide itself")
    if start == "reversed" and setting.rank == 1:
        raise NotApplicable("one singular vector has no other order")
    require_room(setting)
    require_distinct(setting)
    errors, curves, longest = [], [], 0
    room = max(setting.rank, min(setting.shape) - setting.rank)  # beyond it the claim is not made
    narrow = {"rank": min(setting.compressed_rank, room), "start": start}
    for depth, scale in cases:
        rate = 0.5 * edge(setting, depth=depth)
        # As many for every scale of a depth, so that they share a program.
        steps = max(
            steps_to_fit(setting, rate, depth=depth, scale=other, slack=1.3)
            for same, other in CASES if same == depth
        )
        longest = max(longest, steps)
        full = _trained(setting, per_seed(original, setting, {"scale": scale}, depth=depth), rate, steps)
        if start == "spectral":
            small = _errors_of_maps(setting, depth=depth, scale=scale, learning_rate=rate, steps=steps)
        else:
            weights = per_seed(compressed, setting, {"scale": scale}, depth=depth, **narrow)
            small = _trained(setting, weights, rate, steps)
        errors.append(np.max(small - full, axis=1))
        if scale < 0.5:
            every = max(1, steps // 300)
            curves.append(
                Curve(f"L = {depth}, ε = {scale:g}", np.arange(0, steps + 1, every), small[0, ::every],
                      full[0, ::every], xlabel="iteration", ylabel="relative recovery error", ylog=True,
                      labels=("compressed", "original"))
            )
    errors = np.max(np.asarray(errors), axis=0)
    return Evidence(
        errors=errors,
        tolerance=setting.rounding(longest),
        reason=f"rounding of {longest} steps",
        quantity="largest (error of compressed − error of original) over all iterations, L = 2, 3, 4 "
        "and ε from 0.01 to 1",
        predicted={"largest difference": "≤ 0"},
        measured={"largest difference": errors},
        curves=tuple(curves),
    )


def _trained(setting: Setting, weights, rate: float, steps: int) -> np.ndarray:
    return np.asarray(errors_under_descent(setting.targets, weights, rate, steps=steps))


def _errors_of_maps(setting: Setting, **law) -> np.ndarray:
    """Relative recovery error of the compressed network at every step, `(seeds, steps + 1)`, by 2.1."""
    others = np.square(modes.mode_descent(0.0, **law)) * (setting.compressed_rank - setting.rank)
    errors = []
    for row in setting.targets.singular_values.tolist():
        squares = [np.square(np.subtract(modes.mode_descent(sigma, **law), sigma)) for sigma in row]
        errors.append(np.sqrt(np.sum(squares, axis=0) + others) / np.linalg.norm(row))
    return np.array(errors)


def _count(widths):
    """Parameters of a network of these widths, by its definition."""
    return sum(before * after for before, after in pairwise(widths))
