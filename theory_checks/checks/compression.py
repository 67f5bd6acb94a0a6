"""Statements 1.2 to 1.5 of docs/theory.md: what compression costs, how it starts, what it gains."""

from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import lowdim_jax as ld
from theory_checks.registry import Curve, Evidence, check
from theory_checks.runs import (
    compressed,
    edge,
    errors_under_descent,
    original,
    per_seed,
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
)
def parameter_count(setting: Setting, /, *, extra=0) -> Evidence:
    d_out, d_in = setting.shape
    rank = min(setting.compressed_rank, min(d_out, d_in) - 1)
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
    full = _count(ld.full_widths(d_out, d_in, depth=3))
    return Evidence(
        errors=np.abs(np.subtract([measured, planned], predicted)).max(keepdims=True).ravel(),
        tolerance=0,
        reason="whole numbers",
        quantity="largest difference over L = 2 … 6",
        predicted={"L = 3": predicted[1], "original network, L = 3": full},
        measured={"L = 3": measured[1], "original over compressed": full / measured[1]},
        curves=(
            Curve("parameters of the compressed network", np.array(depths), np.array(predicted),
                  np.array(measured), xlabel="depth L", ylabel="parameters"),
        ),
    )


@check(
    "surrogate",
    claim="The surrogate of factorization, sensing and completion is the negative gradient of the loss at "
    "the zero matrix, and its leading singular vectors are the compressed network's outer factors.",
    source="1.3",
    controls={"gradient taken at a random matrix": {"origin": 1.0}},
)
def surrogate(setting: Setting, /, *, origin=0.0) -> Evidence:
    errors = np.asarray(per_seed(_surrogate_gaps, setting, {"origin": origin}, rank=setting.rank))
    gap = float(setting.targets.singular_values[0, 0] / jnp.min(setting.targets.singular_values))
    names = ("factorization", "sensing", "completion", "outer factors")
    return Evidence(
        errors=errors.max(axis=1),
        tolerance=setting.rounding(1) * gap * max(setting.shape),
        reason="rounding of a singular value decomposition, times σ*_1/σ*_r",
        quantity="relative Frobenius difference of surrogate and −∇ℓ(0), and sine of the largest angle "
        "between outer factors and singular subspaces of −∇ℓ(0)",
        predicted={"difference": 0},
        measured=dict(zip(names, errors.max(axis=0), strict=True)),
    )


def _surrogate_gaps(target, key, *, origin, rank):
    """What `quantity` of the check says: one number a problem, and the angle of the outer factors."""
    key_point, key_mask, key_stack = jax.random.split(key, 3)
    point = origin * jax.random.normal(key_point, target.shape, target.dtype)
    truth = target.dense()
    stack = ld.gaussian_measurements(key_stack, 30, target.shape, dtype=target.dtype)
    problems: tuple[Any, ...] = (
        ld.factorization(truth),
        ld.sensing(stack, truth=truth),
        ld.completion(truth, jax.random.uniform(key_mask, target.shape) < 0.5),
    )
    descents = [-jax.grad(problem.loss)((point,))[0] for problem in problems]
    gaps = [
        jnp.linalg.norm(problem.surrogate_matrix() - descent) / jnp.linalg.norm(descent)
        for problem, descent in zip(problems, descents, strict=True)
    ]
    return jnp.stack([*gaps, _outer_angle(target, key, descents[0], rank)])


def _outer_angle(target, key, descent, rank):
    """Sine of the largest angle between a compressed network's outer factors and a matrix's subspaces."""
    weights = compressed(target, key, depth=2, scale=1.0, rank=rank)
    left, _, right = jnp.linalg.svd(descent, full_matrices=False)
    sides = ((left, weights[1]), (right.T, weights[0].T))
    angles = [ld.linalg.subspace_angles(vectors[:, :rank], outer) for vectors, outer in sides]
    return jnp.max(jnp.sin(jnp.stack(angles)))


@check(
    "dominance",
    claim="The compressed network's recovery error is at most the original's at every iteration.",
    source="1.5",
    controls={
        "random orthonormal outer factors": {"start": "random", "cases": CASES[3:4]},
        "the target's right singular vectors in reversed order": {
            "start": "reversed", "cases": CASES[3:4],
        },
    },
)
def dominance(setting: Setting, /, *, start="spectral", cases=CASES) -> Evidence:
    errors, curves, longest = [], [], 0
    narrow = {"rank": setting.compressed_rank, "start": start}
    for depth, scale in cases:
        rate = 0.5 * edge(setting, depth=depth)
        # As many for every scale of a depth, so that they share a program.
        steps = max(
            steps_to_fit(setting, rate, depth=depth, scale=other, slack=1.3)
            for same, other in CASES if same == depth
        )
        longest = max(longest, steps)
        small, full = (
            np.asarray(errors_under_descent(setting.targets, weights, rate, steps=steps))
            for weights in (
                per_seed(compressed, setting, {"scale": scale}, depth=depth, **narrow),
                per_seed(original, setting, {"scale": scale}, depth=depth),
            )
        )
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


def _count(widths):
    """Parameters of a network of these widths, by its definition."""
    return sum(before * after for before, after in pairwise(widths))
