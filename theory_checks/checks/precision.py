"""Section 6 of docs/theory.md: in which precision matrices are multiplied, and what float32 can see."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

import lowdim_jax as ld
from theory_checks.registry import Evidence, NotApplicable, check
from theory_checks.runs import compressed, original, per_seed
from theory_checks.setting import Setting

DEPTH = 3
TF32_BITS = 10


@check(
    "small-start",
    claim="In float32 the components u*_iᵀ W v*_i that have not risen, ε^L, are right to rounding while "
    "component 1 is fitted; singular values of the product, once it is formed, are not.",
    source="6.1",
    controls={"singular values of the formed product": {"by_svd": True}},
    any_target=False,
    rests_on=("NumPy", "library"),
)
def small_start(setting: Setting, /, *, by_svd=False) -> Evidence:
    """In float32 whatever the run's precision: float64 does not lose them.

    Right is what NumPy finds in float64 for the same weights: frames that a device has orthonormalized to
    rounding `δ` let `σ_1 δ²` of component 1 into the others, which is more than the rounding of `ε^L`.
    """
    single, scale, rank = replace(setting, dtype="float32"), 0.01, setting.rank

    def sleeping(target, key):
        weights = compressed(target, key, depth=DEPTH, scale=1.0, rank=rank)
        risen = target.singular_values[0] ** (1 / DEPTH)
        factors = jnp.full(rank, scale, target.dtype).at[0].set(risen)
        first, middle, last = weights
        weights = (factors[:, None] * first, factors[:, None] * middle, last * factors)
        if by_svd:
            found = jnp.linalg.svd(ld.end_to_end(weights), compute_uv=False)
        else:
            found = ld.spectra.modes(weights, target)
        return weights, found[1:rank]

    weights, measured = jax.tree.map(lambda part: np.asarray(part, float), per_seed(sleeping, single))
    first, middle, last = weights
    left, right = (np.asarray(side, float) for side in (single.targets.left, single.targets.right))
    exact = np.einsum("sir,sij,sjk,skl,slr->sr", left, last, middle, first, right, optimize=True)[:, 1:]
    return Evidence(
        errors=np.max(np.abs(measured / exact - 1), axis=1),
        tolerance=single.rounding(1),
        reason="rounding of float32",
        quantity="largest difference of u*_iᵀ W v*_i from NumPy's in float64, relative, i > 1, L = 3, "
        "ε = 0.01, component 1 fitted",
        predicted={"ε^L": scale**DEPTH, "component 2 of each seed, in float64": exact[:, 0]},
        measured={"component 2 of each seed": measured[:, 0]},
    )


@check(
    "matmul-precision",
    claim="Matrices are multiplied in the run's precision: the gradient of every layer agrees with NumPy's "
    "in float64 to rounding.",
    source="6.2, 6.3",
    controls={"weights rounded to the ten bits of TF32": {"bits": TF32_BITS}},
    precise=True,
    rests_on=("NumPy", "library"),
)
def matmul_precision(setting: Setting, /, *, bits=None) -> Evidence:
    if max(setting.shape) == 1:
        raise NotApplicable("layers of one orthogonal entry are 1 or −1 in any precision")
    def gradient(target, key):
        weights, dense = original(target, key, depth=DEPTH, scale=1.0), target.dense()

        def loss(weights):
            if bits is not None:
                weights = [jax.lax.reduce_precision(w, exponent_bits=8, mantissa_bits=bits) for w in weights]
            return ld.factorization(dense).loss(tuple(weights))

        return weights, dense, jax.grad(loss)(weights)

    weights, dense, measured = per_seed(gradient, setting)
    first, middle, last = (np.asarray(w, np.float64) for w in weights)
    residual = last @ middle @ first - np.asarray(dense, np.float64)
    exact = (
        np.swapaxes(last @ middle, 1, 2) @ residual,
        np.swapaxes(last, 1, 2) @ residual @ np.swapaxes(first, 1, 2),
        residual @ np.swapaxes(middle @ first, 1, 2),
    )
    gaps = [
        np.linalg.norm(np.asarray(m, np.float64) - e, axis=(1, 2)) / np.linalg.norm(e, axis=(1, 2))
        for m, e in zip(measured, exact, strict=True)
    ]
    return Evidence(
        errors=np.max(gaps, axis=0),
        tolerance=setting.rounding(1),
        reason="rounding of the products",
        quantity="largest relative Frobenius difference of a layer's gradient from NumPy's in float64",
        predicted={"difference": 0},
        measured={f"layer {number}": gap for number, gap in enumerate(gaps, start=1)},
    )
