"""Statement 2.7 of docs/theory.md: networks of two layers in closed form, from any balanced start."""

from dataclasses import replace

import jax
import numpy as np

from lowdim_jax import theory
from theory_checks.pairs import evidence_of
from theory_checks.reference import networks
from theory_checks.reference.random_matrices import haar
from theory_checks.registry import Curve, Evidence, check
from theory_checks.setting import Setting

ZEROS = "singular values of zero"
CASES = {
    "square, λ = 0": (4, 4, 4, 0.2, 0.2),
    "bottleneck": (6, 2, 5, 0.2, 0.2),
    "λ > 0": (4, 3, 4, 0.2, 0.8),
    "λ < 0": (4, 3, 4, 0.8, 0.2),
    ZEROS: (4, 4, 4, 0.25, 0.25),
    "wide, λ > 0": (6, 3, 4, 0.2, 0.8),
    "tall, λ < 0": (4, 3, 6, 0.8, 0.2),
}
"""Widths `d_in`, `h`, `d_out`, and the scales of both layers."""
HADAMARD = np.array([[1, 1, 1, 1], [1, 1, -1, -1], [1, -1, 1, -1], [1, -1, -1, 1]])
TIMES = np.array([0.0, 2e-5, 0.03, 0.2, 0.5, 1.0, 2.0, 5.0, 25.0])
LATE = 1e12
"""A time at which even what only decays, as 1/t, is gone."""
SIGMA = np.array([3.0, 1.5, 1.0])


def _semi_orthogonal(rng, rows, columns):
    return haar(rng, rows, columns) if rows >= columns else haar(rng, columns, rows).T


@check(
    "two-layer-flow",
    claim="Two layers under gradient flow are known in closed form from any balanced start: end-to-end "
    "matrix, Gram matrices and tangent kernel; square, bottleneck, λ of both signs, targets of low rank.",
    source="2.7",
    controls={
        "layers that are not balanced": {"spread": 0.3},
        "the flow of a target twice as large": {"factor": 2.0},
    },
    any_target=False,
    rests_on=("library", "reference"),
)
def two_layer_flow(setting: Setting, /, *, spread=0.0, factor=1.0) -> Evidence:
    rng = np.random.default_rng(0)
    pairs, curves = {}, []
    closed_form = jax.jit(theory.two_layer_flow)  # traced: a start that is not balanced is not refused
    for name, (d_in, hidden, d_out, inner_scale, outer_scale) in CASES.items():
        inner = inner_scale * _semi_orthogonal(rng, hidden, d_in)
        outer = outer_scale * _semi_orthogonal(rng, d_out, hidden)
        inner = inner * (1 + spread * rng.standard_normal((hidden, 1)))
        target = haar(rng, d_out, 3) * SIGMA @ haar(rng, d_in, 3).T
        if name == ZEROS:  # and λ is zero exactly, so that nothing tells the vectors of these apart
            target = np.diag([*SIGMA[:2], 0.0, 0.0])
            inner, outer = inner_scale * np.eye(4), outer_scale * HADAMARD / 2
        clock = np.append(TIMES, LATE)
        cast = [np.asarray(x, setting.dtype) for x in (clock, inner, outer, factor * target)]
        everything = jax.device_get(closed_form(*cast))
        left, sigma, right = np.linalg.svd(factor * target)
        limit = left[:, :hidden] * sigma[:hidden] @ right[:hidden]  # all that so many hidden units can hold
        pairs[f"W_2 W_1 at last, {name}"] = everything.end_to_end[-1], limit
        predicted = jax.tree.map(lambda part: part[:-1], everything)
        run = networks.flow(networks.factorization(target), [inner, outer], TIMES.tolist())
        measured = [np.array([w2 @ w1 for w1, w2 in run]), np.array([w1.T @ w1 for w1, _ in run]),
                    np.array([w2 @ w2.T for _, w2 in run])]
        for part, closed, found in zip(("W_2 W_1", "W_1ᵀW_1", "W_2 W_2ᵀ"), predicted, measured, strict=True):
            pairs[f"{part}, {name}"] = closed, found
        kernel = theory.tangent_kernel(predicted.inner_gram[-1], predicted.outer_gram[-1])
        pairs[f"tangent kernel, {name}"] = kernel, _kernel(*run[-1])
        values = [np.linalg.svd(np.asarray(w), compute_uv=False)[:, :3] for w in (predicted[0], measured[0])]
        curves.append(
            Curve(name, TIMES, values[0][:, :hidden], values[1][:, :hidden], ylabel="singular value")
        )
    found = evidence_of(
        pairs,
        tolerance=1e-9 if setting.dtype == "float64" else setting.rounding(20),
        reason="SciPy's solver, which is asked for 1e-12 a step" if setting.dtype == "float64"
        else "float32's rounding",
        quantity="largest difference relative to the largest entry",
    )
    return replace(found, curves=tuple(curves))


def _kernel(inner, outer):
    """`Σ ∂W_ai/∂w ∂W_bj/∂w` by moving one weight after the other; W is linear in each."""
    moves = []
    for layer in (inner, outer):
        for index in np.ndindex(layer.shape):
            unit = np.zeros_like(layer)
            unit[index] = 1.0
            moves.append(outer @ unit if layer is inner else unit @ inner)
    stacked = np.array(moves)
    return np.einsum("wai,wbj->aibj", stacked, stacked)
