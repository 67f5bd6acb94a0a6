"""Decompositions and measurements of the library against NumPy and SciPy, on small matrices."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy

import lowdim_jax as ld
from lowdim_jax import linalg, networks, spectra
from lowdim_jax.problems import regression_target, whiten
from theory_checks.checks.starts import factors, matrix_of
from theory_checks.pairs import evidence_of
from theory_checks.reference import networks as reference
from theory_checks.reference.random_matrices import haar
from theory_checks.registry import Evidence, check
from theory_checks.setting import Setting


@check(
    "linear-algebra",
    claim="Decompositions, ranks, angles, norms and products of the library, thin, dense and sparse, are "
    "those of NumPy and SciPy.",
    source="1.3, 3.6",
    controls={"of the transposed matrix": {"transposed": True}},
    any_target=False,
    rests_on=("NumPy", "library"),
)
def linear_algebra(setting: Setting, /, *, transposed=False) -> Evidence:
    def cast(value):
        return jnp.asarray(value, setting.dtype)

    rng = np.random.default_rng(4)
    a, b = rng.standard_normal((6, 3)), rng.standard_normal((3, 5))
    matrix = (a @ b).T.reshape(6, 5) if transposed else a @ b
    sigma = np.linalg.svd(matrix, compute_uv=False)
    thin, full = linalg.thin_svd(cast(a), cast(b)), linalg.svd(cast(a @ b))
    scaled = ld.low_rank(cast(a), cast([2.0, 1.0, 0.5]), cast(b.T))
    pairs: dict[str, Any] = {
        "thin product": (matrix, thin.dense()),
        "thin values": (sigma[:3], thin.singular_values),
        "thin left": (np.eye(3), thin.left.T @ thin.left),
        "thin right": (np.eye(3), thin.right.T @ thin.right),
        "full product": (matrix, full.dense()),
        "full values": (sigma, full.singular_values),
        "three factors": (a * [2.0, 1.0, 0.5] @ b, scaled.dense()),
        "two components": (matrix - _tail(matrix, 2), thin.truncate(2).dense()),
        "spectral norm": (sigma[0], linalg.spectral_norm(cast(a @ b))),
        "Frobenius norm": (np.sum(sigma**2) ** 0.5, linalg.frobenius_norm(thin)),
        "Frobenius norm, dense": (np.sum(sigma**2) ** 0.5, linalg.frobenius_norm(cast(a @ b))),
        "noise": (3**0.5 * (6**-0.5 + 5**-0.5), linalg.noise_norm(3.0, (6, 5))),
        "rank": (3, linalg.estimate_rank(cast(a @ b))),
    }
    pairs |= _leading(setting) | _ranks_and_angles(setting) | _of_networks(setting) | _regressions(setting)
    return evidence_of(
        pairs,
        tolerance=setting.rounding(30),
        reason="rounding of decompositions of matrices with singular values some ten apart",
        quantity="largest difference relative to the largest entry predicted",
    )


def _tail(matrix: np.ndarray, rank: int) -> np.ndarray:
    """What the leading components leave of a matrix."""
    left, sigma, right = np.linalg.svd(matrix, full_matrices=False)
    return left[:, rank:] * sigma[rank:] @ right[rank:]


def _leading(setting: Setting) -> dict[str, Any]:
    """Leading triplets: of few components, of many, of small and of large sparse matrices."""
    rng = np.random.default_rng(5)
    few, many = matrix_of(40, 32, 3), rng.standard_normal((40, 32))
    sparse = scipy.sparse.random_array((300, 280), density=0.02, rng=np.random.default_rng(6)).tocsr()
    cases = {
        "of few components": (few, jnp.asarray(few, setting.dtype)),
        "of many": (many, jnp.asarray(many, setting.dtype)),
        "of few and a little": (few + 1e-3 * many, jnp.asarray(few + 1e-3 * many, setting.dtype)),
        "sparse": (few, scipy.sparse.csr_array(few)),
        "large sparse": (sparse.toarray(), sparse),
    }
    pairs = {}
    for name, (dense, given) in cases.items():
        parts = linalg.leading_svd(given, 2, dtype=setting.dtype)
        pairs[f"leading components, {name}"] = dense - _tail(dense, 2), parts.dense()
        if "sparse" in name:
            largest = np.argmax(np.abs(parts.left), axis=0)
            pairs[f"signs, {name}"] = np.ones(2), np.sign(np.asarray(parts.left)[largest, range(2)])
    factored = linalg.low_rank(*(jnp.asarray(part, setting.dtype) for part in factors(40, 32, 3)))
    pairs["leading components, factored"] = few - _tail(few, 2), linalg.leading_svd(factored, 2).dense()
    return pairs


def _ranks_and_angles(setting: Setting) -> dict[str, Any]:
    def cast(value):
        return jnp.asarray(value, setting.dtype)

    ladder = cast(np.diag([8.0, 4.0, 2.0, 1.0, 0.1]))
    rng = np.random.default_rng(7)
    frames = rng.standard_normal((6, 3)), rng.standard_normal((6, 2))
    close = frames[0][:, :2] + 1e-2 * frames[1]  # where cosines lose half the digits
    basis = haar(rng, 6, 2)
    longer = linalg.extend_orthonormal(cast(basis), 5, key=jax.random.key(1))
    return {
        "rank of 90% energy": (2, linalg.estimate_rank(ladder, energy=0.9)),
        "rank of all energy": (5, linalg.estimate_rank(ladder, energy=1.0)),
        "rank of half the energy exactly": (
            2, linalg.estimate_rank(cast(np.diag([2.0, 2.0, 2.0, 2.0, 0.0])), energy=0.5)
        ),
        "rank above all": (1, linalg.estimate_rank(ladder, atol=9.0)),
        "rank above a tenth": (4, linalg.estimate_rank(ladder, rtol=0.1)),
        "rank above 1.5": (3, linalg.estimate_rank(ladder, atol=1.5)),
        "angles": (scipy.linalg.subspace_angles(*frames), linalg.subspace_angles(*map(cast, frames))),
        "angles, other way round": (
            scipy.linalg.subspace_angles(*frames), linalg.subspace_angles(*map(cast, frames[::-1]))
        ),
        "small angles": (
            scipy.linalg.subspace_angles(frames[0][:, :2], close),
            linalg.subspace_angles(cast(frames[0][:, :2]), cast(close)),
        ) if setting.dtype == "float64" else (0, 0),
        "extended basis": (np.eye(5), longer.T @ longer),
        "start of an extended basis": (basis, longer[:, :2]),
        "cut basis": (basis[:, :1], linalg.extend_orthonormal(cast(basis), 1)),
    }  # fmt: skip


def _of_networks(setting: Setting) -> dict[str, Any]:
    """Products, outputs, entries, padding, widths and counts of a chain."""
    rng = np.random.default_rng(8)
    chain = [rng.standard_normal(shape) for shape in ((3, 5), (2, 3), (6, 2), (4, 6))]
    weights = tuple(jnp.asarray(layer, setting.dtype) for layer in chain)
    exact, x = reference.product(chain), rng.standard_normal((5, 7))
    a, b = networks.end_to_end_factors(weights)
    outputs = networks.activations(weights, jnp.asarray(x, setting.dtype))
    padded = networks.pad(weights[:1] + weights[1:2] + (weights[3] @ weights[2],), 4)
    return {
        "product": (exact, ld.end_to_end(weights)),
        "outer factors": (chain[3] @ chain[2], a),
        "inner factors": (chain[1] @ chain[0], b),
        "outputs": (exact @ x, ld.forward(weights, jnp.asarray(x, setting.dtype))),
        "second output": (chain[1] @ chain[0] @ x, outputs[2]),
        "entries": (exact[[0, 3], [4, 1]], networks.entries(weights, [0, 3], [4, 1])),
        "widths": ([5, 3, 2, 6, 4], networks.widths(weights)),
        "parameters": (15 + 6 + 12 + 24, networks.parameter_count(weights)),
        "widths of an original": ([7, 4, 4, 4], networks.full_widths(4, 7, depth=3)),
        "widths of a wider one": ([7, 9, 9, 4], networks.full_widths(4, 7, depth=3, hidden=9)),
        "widths of a compressed one": ([7, 2, 2, 4], networks.compressed_widths(4, 7, depth=3, rank=2)),
        "padded product": (exact, ld.end_to_end(padded)),
        "padded widths": ([5, 4, 4, 4], networks.widths(padded)),
    }


def _regressions(setting: Setting) -> dict[str, Any]:
    """Whitened inputs, the target of a regression on them, targets of a given and a separated spectrum."""
    rng = np.random.default_rng(9)
    raw, outputs = rng.standard_normal((3, 8)), rng.standard_normal((2, 8))
    values, vectors = np.linalg.eigh(raw @ raw.T)
    white = vectors @ np.diag(values**-0.5) @ vectors.T @ raw
    found = whiten(jnp.asarray(raw, setting.dtype))
    key = jax.random.key(2)
    gaussian = np.asarray(jax.random.normal(key, (9, 9), setting.dtype), float)
    left, sigma, right = np.linalg.svd(gaussian)
    kept = [0, 2]  # every (d / 2r)-th of d = 9, r = 2, rounded down
    separated = ld.separated_target(key, 9, 2, dtype=setting.dtype)
    given = ld.random_target(key, (5, 4), jnp.asarray([1.0, 3.0], setting.dtype))
    return {
        "whitened inputs": (white, found),
        "regression target": (
            outputs @ white.T, regression_target(found, jnp.asarray(outputs, setting.dtype)).dense()
        ),
        "separated target": (left[:, kept] * sigma[kept] @ right[kept], separated.dense()),
        "values of a random target": ([3.0, 1.0], np.linalg.svd(np.asarray(given.dense()))[1][:2]),
    }  # fmt: skip


@check(
    "measurements",
    claim="Singular values, alignments, components, fit and crossing times, dormancy and effective ranks are "
    "those that NumPy measures.",
    source="1.6, 6.1",
    controls={"of another network": {"other": True}},
    any_target=False,
    rests_on=("NumPy", "library"),
)
def measurements(setting: Setting, /, *, other=False) -> Evidence:
    def cast(value):
        return jnp.asarray(value, setting.dtype)

    pairs: dict[str, Any] = {}
    left, sigma, right = factors(5, 4, 2)
    target = ld.LowRank(cast(left), cast(sigma), cast(right))
    cases = {"compressed": ((2, 4), (3, 2), (5, 3)), "wide": ((6, 4), (5, 6)), "one": ((5, 4),)}
    for name, shapes in cases.items():
        rng = np.random.default_rng(10)
        chain = [rng.standard_normal(shape) for shape in shapes]
        weights = tuple(map(cast, chain))
        matrix = reference.product(chain) * (1 + other)
        u, s, vt = np.linalg.svd(matrix)
        found = spectra.alignment(weights, target)
        count = min(2, len(s))
        pairs |= {
            f"singular values, {name}": (s[:2], spectra.singular_values(weights, rank=2)),
            f"aligned values, {name}": (s[:count], found.singular_values),
            f"left alignment, {name}": (np.abs(np.sum(u[:, :2] * left, axis=0)), found.left),
            f"right alignment, {name}": (np.abs(np.sum(vt[:2].T * right, axis=0)), found.right),
            f"components, {name}": (np.diag(left.T @ matrix @ right), spectra.modes(weights, target)),
            f"decomposition, {name}": (matrix, spectra.network_svd(weights).dense()),
        }
    # A network narrower than the target has fewer components: the others are zero.
    chain = [np.random.default_rng(16).standard_normal(shape) for shape in ((1, 4), (5, 1))]
    narrow = spectra.alignment(tuple(map(cast, chain)), target)
    matrix = reference.product(chain)
    u, s, vt = np.linalg.svd(matrix)
    pairs |= {
        "values of a narrow network": ([s[0], 0], narrow.singular_values),
        "left alignment of a narrow network": ([abs(u[:, 0] @ left[:, 0]), 0], narrow.left),
        "right alignment of a narrow network": ([abs(vt[0] @ right[:, 0]), 0], narrow.right),
        "all values of a narrow network": (s[:1], spectra.singular_values(tuple(map(cast, chain)))),
        "ranks of zeros": ([1.0, 0.0], [spectra.effective_rank(cast([0.0, 0.0])),
                                        spectra.stable_rank(cast([0.0, 0.0]))]),
    }  # fmt: skip
    pairs |= _times(cast)
    values = np.array([[4.0, 2.0, 1.0, 0.0], [1.0, 1.0, 1.0, 1.0]])
    shares = values / values.sum(axis=1, keepdims=True)
    entropy = [-sum(p * np.log(p) for p in row if p > 0) for row in shares]
    pairs["effective rank"] = np.exp(entropy), spectra.effective_rank(cast(values))
    pairs["stable rank"] = [21 / 16, 4.0], spectra.stable_rank(cast(values))
    return evidence_of(
        pairs,
        tolerance=setting.rounding(20),
        reason="rounding of a singular value decomposition",
        quantity="largest difference relative to the largest entry predicted",
    )


def _times(cast) -> dict[str, Any]:
    """Fitted, dormant, first and crossing times of a history of three components, worked by hand."""
    history = np.array(
        [[0.0, 0.1, 5.0], [1.85, 0.1, 4.15], [2.05, 0.3, 2.0], [1.96, 0.04, 4.1], [2.0, 0.0, 4.0]]
    )
    goals, times = cast([2.0, 1.0, 4.0]), cast([0.0, 1.0, 2.0, 4.0, 5.0])
    aligned = np.full_like(history, 0.99)
    aligned[3, 2] = 0.8
    run = spectra.Alignment(cast(history), cast(aligned), cast(np.ones_like(history)))
    turned = spectra.Alignment(cast(history), cast(np.ones_like(history)), cast(aligned))
    fitted = np.array([[0, 0, 0], [0, 0, 1], [1, 0, 0], [1, 0, 0], [1, 0, 1]])
    holds = spectra.is_fitted(run, goals, value=0.05, vector=0.05)
    strict = spectra.is_fitted(run, goals, value=0.001, vector=0.05)
    return {
        "fitted": (fitted, holds),
        "fitted, other side": (fitted, spectra.is_fitted(turned, goals, value=0.05, vector=0.05)),
        "fitted, by default": (fitted, spectra.is_fitted(run, goals)),
        "fitted closely": (np.array([[0] * 3] * 4 + [[1, 0, 1]]), strict),
        "fitted, loosely aligned": (
            fitted | np.array([[0, 0, 0]] * 3 + [[0, 0, 1]] + [[0, 0, 0]]),
            spectra.is_fitted(run, goals, value=0.05, vector=0.3),
        ),
        "first times": ([2.0, np.inf, 5.0], spectra.first_time(times, holds)),
        "dormant": (
            np.array([[1, 1, 0], [0, 1, 0], [0, 0, 0], [0, 1, 0], [0, 1, 0]]),
            spectra.dormant(cast(history), goals, value=0.15),
        ),
        "dormant, by default": (np.array([[1, 0, 0]] + [[0, 0, 0]] * 2 + [[0, 1, 0]] * 2),
                                spectra.dormant(cast(history), goals)),
        "crossing times": ([1.75, np.inf, 0.0], spectra.crossing_time(times, cast(history), goals)),
        "crossing of one level": ([1 / 1.85, np.inf, 0.0], spectra.crossing_time(times, cast(history), 1.0)),
    }  # fmt: skip
