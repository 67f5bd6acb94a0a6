"""Losses and gradients of the library's problems against loops of NumPy, on small matrices."""

from functools import cache
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import lowdim_jax as ld
from theory_checks.pairs import evidence_of
from theory_checks.reference import networks
from theory_checks.reference.random_matrices import haar
from theory_checks.registry import Evidence, check
from theory_checks.setting import Setting

SHAPE = (4, 5)
SIGMA = (2.0, 1.2)


@cache
def data_of_problems() -> dict[str, np.ndarray]:
    """A target of rank two, a mask, measurements and labels that no matrix fits."""
    rng = np.random.default_rng(0)
    left, right = haar(rng, SHAPE[0], 2), haar(rng, SHAPE[1], 2)
    return {
        "left": left, "right": right, "target": left * SIGMA @ right.T,
        "mask": rng.random(SHAPE) < 0.6, "stack": rng.standard_normal((7, *SHAPE)),
        "labels": rng.standard_normal(7),
    }  # fmt: skip


@cache
def start_of(*widths: int, seed: int | None = None) -> list[np.ndarray]:
    """Gaussian weights of a network of these widths, the same every time."""
    rng = np.random.default_rng(len(widths) if seed is None else seed)
    return [rng.standard_normal((b, a)) / max(a, b) ** 0.5 for a, b in pairwise(widths)]


def cast(setting: Setting, tree: Any) -> Any:
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, setting.dtype), tree)


@cache
def matrix_problems(
    setting: Setting, *, transposed: bool = False
) -> dict[str, tuple[Any, networks.MatrixLoss]]:
    """Every problem of the library, and the same of the reference; the same objects every time."""
    data = dict(data_of_problems())
    if transposed:
        data["left"], data["right"] = data["right"], data["left"]
        data |= {"target": data["target"].T, "mask": data["mask"].T, "stack": data["stack"].swapaxes(1, 2)}
    target, mask, stack, labels = (data[name] for name in ("target", "mask", "stack", "labels"))
    shape = target.shape
    rows, columns = np.nonzero(mask)
    values = target[rows, columns]
    measured = np.einsum("mij,ij->m", stack, target)
    mean_curvature = np.sum(stack**2) / target.size
    left, right, sigma, dense, matrices, given = cast(
        setting, (data["left"], data["right"], SIGMA, target, stack, labels)
    )
    sigma, flat = jnp.stack(sigma), matrices.reshape(len(stack), -1)
    skewed = 2 * left, sigma / 2, right  # columns of a factored target need not be of length one
    apply, adjoint = (lambda matrix: flat @ matrix.ravel()), (lambda y: (y @ flat).reshape(shape))
    twice = [np.append(part, part[:2]) for part in (rows, columns)]
    both = np.append(values, values[:2] + 0.5)  # two entries are given twice, and count once, as their mean
    means = values + 0.25 * (np.arange(len(values)) < 2)
    truth = ld.LowRank(left, sigma, right)
    seen = {"shape": shape, "truth": truth}
    return {
        "dense target": (ld.factorization(dense), networks.factorization(target)),
        "factored target": (ld.factorization(skewed), networks.factorization(target)),
        "sensing": (
            ld.sensing(matrices, given, truth=dense), networks.sensing(stack, labels, mean_curvature)
        ),
        "sensing of a truth": (
            ld.sensing(matrices, truth=truth, curvature=1.3), networks.sensing(stack, measured, 1.3)
        ),
        "sensing by functions": (
            ld.sensing((apply, adjoint), given, shape=shape, truth=truth, curvature=2.0),
            networks.sensing(stack, labels, 2.0),
        ),
        "sensing by functions, probed": (
            ld.sensing((apply, adjoint), given, shape=shape, truth=truth),
            networks.sensing(stack, labels, _probed(stack, setting.dtype)),
        ),
        "completion": (ld.completion(dense, mask, truth=dense), networks.completion(target, mask)),
        "observed entries": (
            ld.observed_completion(rows, columns, np.asarray(values, setting.dtype), **seen),
            networks.observed(rows, columns, values, shape),
        ),
        "observed entries, some twice": (
            ld.observed_completion(
                twice[0], twice[1], np.asarray(both, setting.dtype), duplicates="mean", **seen
            ),
            networks.observed(rows, columns, means, shape),
        ),
    }  # fmt: skip


def _probed(stack: np.ndarray, dtype: str) -> float:
    """Mean eigenvalue of `𝒜*𝒜` as `sensing` estimates it of functions: from eight Gaussian matrices."""
    keys = jax.random.split(jax.random.key(0), 8)
    probes = [np.asarray(jax.random.normal(key, stack.shape[1:], dtype), float) for key in keys]
    energies = [np.sum(np.einsum("mij,ij->m", stack, probe) ** 2) for probe in probes]
    return float(np.mean(energies) / (stack.shape[1] * stack.shape[2]))


@jax.jit
def _losses(problems, chains):
    """Loss, gradients and recovery error of every problem at each of its networks."""

    def at(problem, weights):
        return *jax.value_and_grad(problem.loss)(weights), problem.recovery_error(weights)

    pairs = zip(problems, chains, strict=True)
    return [[at(problem, weights) for weights in nets] for problem, nets in pairs]


@check(
    "losses-and-gradients",
    claim="Losses, gradients of every layer, recovery errors, surrogates and noise levels of factorization, "
    "sensing and completion, dense, factored and by entries, are those of loops over entries.",
    source="1.3, 1.7",
    controls={"the loss of a target twice as large": {"factor": 2.0}},
    any_target=False,
    rests_on=("reference", "library"),
)
def losses_and_gradients(setting: Setting, /, *, factor=1.0) -> Evidence:
    pairs = {}
    for transposed in (False, True):
        d_out, d_in = SHAPE[::-1] if transposed else SHAPE
        problems = matrix_problems(setting, transposed=transposed)
        chains = []
        for name in problems:
            several = [(d_in, 3, d_out), (d_in, 2, 6, d_out)]
            if not name.startswith("observed"):
                several[0] = (d_in, d_out)
            chains.append([start_of(*widths) for widths in (several[:1] if transposed else several)])
        ours = [[tuple(cast(setting, weights)) for weights in nets] for nets in chains]
        found = _losses([problem for problem, _ in problems.values()], ours)
        for (name, (problem, exact)), nets, results in zip(problems.items(), chains, found, strict=True):
            for weights, (loss, gradients, error) in zip(nets, results, strict=True):
                label = f"{name}, {d_out} × {d_in}, L = {len(weights)}"
                value, slopes = networks.loss_and_gradients(exact, [factor * weights[0], *weights[1:]])
                truth = data_of_problems()["target"].T if transposed else data_of_problems()["target"]
                pairs[f"loss, {label}"] = value, loss
                for layer, pair in enumerate(zip(slopes, gradients, strict=True), 1):
                    pairs[f"gradient of layer {layer}, {label}"] = pair
                pairs[f"recovery error, {label}"] = networks.relative_error(weights, truth), error
                if not transposed and len(weights) == 3:
                    pairs |= _derived(setting, problem, exact, weights, label)
            pairs |= {
                f"{what}, {name}, {d_out} × {d_in}": pair for what, pair in _about(problem, exact).items()
            }
    return evidence_of(
        pairs,
        tolerance=setting.rounding(20),
        reason="rounding of sums over some twenty entries",
        quantity="largest difference relative to the largest entry predicted",
    )


def _derived(setting: Setting, problem: Any, exact, weights, label: str) -> dict[str, Any]:
    """Problems made of a problem: what a network leaves, and the data times a factor."""
    left, scaled = _losses_derived(problem, tuple(cast(setting, weights)))
    loss = exact(networks.product(weights))[0]
    return {
        f"loss of what is left, {label}": (exact(3 * networks.product(weights))[0], left),
        f"loss of data twice as large, {label}": (4 * loss, scaled),
    }


@jax.jit
def _losses_derived(problem, weights):
    twice = (*weights[:-1], 2 * weights[-1])
    return problem.residual(weights).loss(twice), problem.scaled(2.0).loss(twice)


def _about(problem: Any, exact: networks.MatrixLoss) -> dict:
    """What a problem says of its surrogate, beside what its gradient at zero says."""
    _, slope = exact(np.zeros(problem.shape))
    left, sigma, right = np.linalg.svd(-slope, full_matrices=False)
    parts, leading = problem.surrogate(), problem.surrogate(1)
    count = len(parts.singular_values)
    pairs = {
        "surrogate": (-slope, parts.dense()),
        "singular values": (sigma[:count], parts.singular_values),
        "leading component": (sigma[0] * np.outer(left[:, 0], right[0]), leading.dense()),
        "largest rate": (2 / (3 * sigma[0] ** (4 / 3) * 2 ** (2 / 3)),
                         ld.max_learning_rate(problem, depth=3, alpha=2.0)),
        "top value": (sigma[0], ld.problems.top_singular_value(problem)),
    }  # fmt: skip
    lengths = sum(size**-0.5 for size in problem.shape)
    is_sensing = isinstance(problem, ld.problems.Sensing)
    if is_sensing:
        labels, curvature = np.asarray(problem.labels, float), float(problem.curvature)
        energy = np.sum(labels**2) / curvature * np.prod(problem.shape) / len(labels)
        pairs["noise level"] = energy**0.5 * lengths, problem.surrogate_error()
        pairs["size"] = np.max(np.abs(labels)), problem.magnitude
        kept, held = problem.split(0.3, seed=1)
        few, (d_out, d_in) = round(0.3 * len(labels)), problem.shape
        start = tuple(jnp.asarray(layer, problem.labels.dtype) for layer in start_of(d_in, 3, d_out))
        loss = float(problem.loss(start))
        shares = (1 - few / len(labels), few / len(labels))  # of the curvature by which losses are divided
        parts = [share * float(part.loss(start)) for share, part in zip(shares, (kept, held), strict=True)]
        pairs["count, and of both parts"] = (
            [len(labels), len(labels) - few, few], [problem.count, kept.count, held.count]
        )  # fmt: skip
        pairs["parts together"] = loss, sum(parts)
        surrogates = [
            share * part.surrogate_matrix() for share, part in zip(shares, (kept, held), strict=True)
        ]
        pairs["surrogates of parts together"] = -slope, sum(surrogates)
        pairs["edge of the noise"] = _flipped(problem, labels), problem.noise_edge()
    if hasattr(problem, "fraction"):
        fraction = np.mean(slope != 0)
        energy = np.sum((slope * fraction) ** 2) * (1 - fraction)
        pairs["fraction"] = fraction, problem.fraction
        pairs["size, count"] = (
            [np.max(np.abs(slope)) * fraction, np.sum(slope != 0)], [problem.magnitude, problem.count]
        )  # fmt: skip
        pairs["noise level"] = energy**0.5 / fraction * lengths, problem.surrogate_error()
    if hasattr(problem, "triplets"):
        rows, columns, values = problem.triplets()
        pairs["triplets"] = np.argwhere(slope != 0), np.stack([rows, columns], axis=1)
        pairs["values"] = -(slope * np.mean(slope != 0))[slope != 0], values
        kept, held = problem.split(0.3, seed=1)
        counts = np.mean(slope != 0) * slope.size
        pairs["split"] = [counts - round(0.3 * counts), round(0.3 * counts)], [kept.count, held.count]
        together = np.zeros(problem.shape)
        for part in (kept, held):
            rows, columns, values = part.triplets()
            together[rows, columns] += values
        pairs["parts together"] = -slope * np.mean(slope != 0), together
        default, first = (problem.split(0.3, **how)[1].triplets()[2] for how in ({}, {"seed": 0}))
        pairs["held out by default"] = first, default
    return pairs


def _flipped(problem: Any, labels: np.ndarray) -> float:
    """Largest norm of the surrogate among three draws of random signs of its labels."""
    rng = np.random.default_rng(0)
    norms = []
    for _ in range(3):
        signs = rng.integers(0, 2, labels.shape, np.int8) * 2 - 1
        matrix = problem.operator.adjoint(jnp.asarray(labels * signs, problem.labels.dtype))
        norms.append(np.linalg.norm(np.asarray(matrix, float), 2) / float(problem.curvature))
    return max(norms)
