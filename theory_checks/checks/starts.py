"""Initializations and fits of the library against NumPy, on small matrices."""

from functools import cache
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import lowdim_jax as ld
from lowdim_jax import initialization
from lowdim_jax.compression import loss_surrogate
from lowdim_jax.trajectory import Status
from theory_checks.pairs import evidence_of
from theory_checks.reference import networks as reference
from theory_checks.reference.random_matrices import haar, haar_moments, haar_statistics, standard_errors
from theory_checks.registry import Evidence, check
from theory_checks.setting import Setting

DRAWS, SIDE, SCALE = 800, 3, 0.2


@check(
    "haar-layers",
    claim="Orthogonal layers are Haar-distributed, independent of each other, and of one scale; so are the "
    "frames of random targets; Gaussian and uniform layers have their moments.",
    source="3.1, 3.4",
    controls={
        "the identity in place of every draw": {"drawn": "identity"},
        "columns turned to one side": {"drawn": "one side"},
        "Gaussian entries": {"drawn": "gaussian"},
    },
    any_target=False,
    rests_on=("theorem", "library"),
)
def haar_layers(setting: Setting, /, *, drawn="orthogonal") -> Evidence:
    draws = jax.tree.map(lambda part: np.asarray(part, float), _draws(setting.keys[0], dtype=setting.dtype))
    first, second = draws["layers"]
    if drawn == "identity":
        first = second = np.tile(np.eye(SIDE), (DRAWS, 1, 1))
    if drawn == "one side":
        first = first * np.sign(first[:, :1])
    if drawn == "gaussian":
        first = draws["gaussian"]
    groups = {"layer 1": first, "layer 2": second, "layer 2 · layer 1ᵀ": second @ first.swapaxes(1, 2)}
    found: dict[str, float] = {
        f"{name}: {what}": standard_errors(haar_statistics(matrices)[what], expected)
        for name, matrices in groups.items()
        for what, expected in haar_moments(SIDE).items()
    }
    if drawn == "orthogonal":
        found |= {name: standard_errors(*pair) for name, pair in _moments(draws).items()}
        found |= {f"{name}, rounding": error for name, error in _orthonormality(setting, draws).items()}
    shown = sorted(found, key=lambda name: found[name], reverse=True)[:8]
    return Evidence(
        errors=np.array([found[shown[0]]]),
        tolerance=5.0,
        reason=f"five standard errors of a mean over {DRAWS} draws",
        quantity=f"largest |mean − expectation| in standard errors, of {len(found)} moments; for what is "
        "exact, the difference in units of a fifth of the rounding allowed",
        predicted={"standard errors": 0},
        measured={name: found[name] for name in shown},
    )


@jax.jit(static_argnames="dtype")
def _draws(key, *, dtype):
    """Stacks of layers of every initialization, divided by their scale, and of frames of targets."""
    ones = jnp.ones(2, dtype)
    options = {"scale": SCALE, "dtype": dtype}

    def draw(key):
        square = ld.orthogonal(key, (SIDE,) * 3, **options)
        wide, tall = ld.orthogonal(key, (4, 2, 4), **options)
        makers = ld.gaussian, initialization.uniform
        normal, even = (make(key, (2, 4), **options)[0] for make in makers)
        target = ld.random_target(key, (5, 4), ones)
        full = ld.gaussian(key, (SIDE, SIDE), **options)[0]
        return {
            "layers": square, "rectangles": (wide, tall), "entries": (normal, even), "gaussian": full,
            "frames": (target.left * SCALE, target.right * SCALE),
        }  # fmt: skip

    # One draw after the other: batched QR inside a loop can deadlock on XLA's CPU threads.
    return jax.tree.map(lambda part: part / SCALE, jax.lax.map(draw, jax.random.split(key, DRAWS)))


def _moments(draws) -> dict[str, tuple[np.ndarray, float]]:
    """Samples of entries and of overlaps, and their expectations."""
    pairs = {}
    for name, (matrices, side) in {
        "2 × 4 layer": (draws["rectangles"][0], 4), "4 × 2 layer": (draws["rectangles"][1], 4),
        "left frame": (draws["frames"][0], 5), "right frame": (draws["frames"][1], 4),
    }.items():  # fmt: skip
        entry = matrices[:, 1, 1]
        pairs |= {f"{name}: entry": (entry, 0.0), f"{name}: entry²": (entry**2, 1 / side)}
        pairs[f"{name}: entry⁴"] = entry**4, 3 / (side * (side + 2))
        pairs[f"{name}: neighbours"] = entry * matrices[:, 0, 1] * matrices[:, 0, 0], 0.0
    left, right = draws["frames"]
    pairs["both frames"] = left[:, 0, 0] * right[:, 0, 0], 0.0
    for name, matrices, fourth in zip(("normal", "uniform"), draws["entries"], (3.0, 1.8), strict=True):
        flat = matrices.reshape(-1)
        pairs |= {f"{name}: entry": (flat, 0.0), f"{name}: entry²": (flat**2, 1 / 4)}
        pairs[f"{name}: entry⁴"] = flat**4, fourth / 16
        pairs[f"{name}: neighbours"] = matrices[:, 0, 0] * matrices[:, 1, 0], 0.0
    return pairs


def _orthonormality(setting: Setting, draws) -> dict[str, float]:
    """Distances of Gram matrices from the identity, in units of a fifth of the rounding allowed."""
    stacks = {
        "2 × 4 layer": draws["rectangles"][0].swapaxes(1, 2), "4 × 2 layer": draws["rectangles"][1],
        "layer 1": draws["layers"][0], "left frame": draws["frames"][0], "right frame": draws["frames"][1],
    }  # fmt: skip
    unit = setting.rounding(2) / 5
    return {
        name: float(np.max(np.abs(stack.swapaxes(1, 2) @ stack - np.eye(stack.shape[2])))) / unit
        for name, stack in stacks.items()
    }


@check(
    "library-starts",
    claim="Spectral, balanced and identity initializations, default widths and the surrogate of any loss are "
    "those of NumPy's singular vectors.",
    source="1.2, 1.3, 4.1",
    controls={"of the transposed matrix": {"transposed": True}},
    any_target=False,
    rests_on=("NumPy", "library"),
)
def library_starts(setting: Setting, /, *, transposed=False) -> Evidence:
    def cast(value):
        return jnp.asarray(value, setting.dtype)

    matrix = matrix_of(5, 4, 3)
    known = matrix.T.reshape(5, 4) if transposed else matrix
    low = ld.low_rank(*map(cast, factors(5, 4, 3)))
    pairs: dict[str, Any] = {}
    start = ld.compress(cast(matrix), depth=4, scale=SCALE, rank=2)
    pairs |= _against_spectral("dense", start, known, rank=2, depth=4)
    factored = ld.spectral(low, rank=3, depth=3, scale=SCALE)
    pairs |= _against_spectral("factored", factored, known, rank=3, depth=3)
    wider = ld.compress(low, depth=2, scale=SCALE, rank=4)  # one column more than the matrix has components
    pairs["Gram matrix of extended rows"] = SCALE**2 * np.eye(4), wider[0] @ wider[0].T
    pairs["Gram matrix of extended columns"] = SCALE**2 * np.eye(4), wider[1].T @ wider[1]
    pairs |= _against_spectral("extended", (wider[0][:3], wider[1][:, :3]), known, rank=3, depth=2)
    pairs["default width, capped"] = 4, ld.compress(low, depth=2, scale=SCALE)[0].shape[0]
    small = ld.compress(cast(matrix_of(8, 7, 2)), depth=2, scale=SCALE)
    pairs["default width"] = 4, small[0].shape[0]
    pairs |= _widths_above_noise(setting)
    for depth in (2, 3):
        balanced = initialization.balanced(low, depth=depth)
        layers = [np.asarray(weight, float) for weight in balanced]
        pairs[f"balanced product, L = {depth}"] = known, reference.product(layers)
        for layer, (w, v) in enumerate(pairwise(layers), 1):
            pairs[f"balance of layer {layer}, L = {depth}"] = w @ w.T, v.T @ v
    identity = initialization.identity((3, 2, 4), scale=SCALE, dtype=setting.dtype)
    for layer, weight in enumerate(identity):
        pairs[f"identity, layer {layer + 1}"] = SCALE * np.eye(weight.shape[0], weight.shape[1]), weight

    def loss(m):
        return jnp.sum((m - cast(matrix)) ** 2) + jnp.sum(m**4)

    pairs["surrogate of a loss"] = 2 * known, loss_surrogate(loss, (5, 4), dtype=setting.dtype)
    return evidence_of(
        pairs,
        tolerance=setting.rounding(20),
        reason="rounding of singular value decompositions",
        quantity="largest difference relative to the largest entry predicted",
    )


@cache
def factors(d_out: int, d_in: int, rank: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Frames and singular values 3, 2, … of a matrix."""
    rng = np.random.default_rng(d_out)
    return haar(rng, d_out, rank), 3.0 - np.arange(rank), haar(rng, d_in, rank)


def matrix_of(d_out: int, d_in: int, rank: int) -> np.ndarray:
    """That matrix."""
    left, sigma, right = factors(d_out, d_in, rank)
    return left * sigma @ right.T


def _twice_visible(matrix: np.ndarray) -> int:
    """Twice the components above what random signs leave of a matrix, and of what larger ones leave."""

    def edge(data):
        rng = np.random.default_rng(0)
        return max(
            np.linalg.norm(data * (rng.integers(0, 2, data.shape, np.int8) * 2 - 1), 2) for _ in range(3)
        )

    left, sigma, right = np.linalg.svd(matrix, full_matrices=False)
    count = above = int(np.sum(sigma > edge(matrix)))
    while above:
        above = int(np.sum(sigma[count:] > edge(matrix - left[:, :count] * sigma[:count] @ right[:count])))
        count += above
    return min(2 * count, *matrix.shape)


def _graded() -> np.ndarray:
    """A matrix of rank two with singular values 3 and 0.03."""
    left, _, right = factors(8, 7, 2)
    return left * [3.0, 0.03] @ right.T


def _against_spectral(name: str, weights, matrix, *, rank: int, depth: int) -> dict[str, Any]:
    """What a spectral start is but for the signs of its vectors: its products, and its middle layers."""
    exact = reference.spectral_start(matrix, rank=rank, depth=depth, scale=SCALE)
    first, *middle, last = (np.asarray(weight, float) for weight in weights)
    pairs = {
        f"rows, {name}": (exact[0].T @ exact[0], first.T @ first),
        f"columns, {name}": (exact[-1] @ exact[-1].T, last @ last.T),
        f"product, {name}": (exact[-1] @ exact[0], last @ first),
    }
    sigma = np.linalg.svd(matrix, compute_uv=False)[:rank]
    pairs[f"order, {name}"] = np.diag(sigma**2) * SCALE**2, last.T @ matrix @ matrix.T @ last
    for layer, (a, b) in enumerate(zip(exact[1:-1], middle, strict=True), 2):
        pairs[f"layer {layer}, {name}"] = a, b
    return pairs


def _widths_above_noise(setting: Setting) -> dict[str, Any]:
    """Default widths where the surrogate is noisy: twice the components above the noise."""
    rng = np.random.default_rng(3)
    matrix = 10 * matrix_of(30, 20, 2)
    mask = rng.random(matrix.shape) < 0.9
    problem = ld.completion(jnp.asarray(matrix, setting.dtype), mask)
    fraction = np.mean(mask)
    noise = (np.sum(matrix[mask] ** 2) * (1 - fraction)) ** 0.5 / fraction * (30**-0.5 + 20**-0.5)
    sigma = np.linalg.svd(np.where(mask, matrix, 0) / fraction, compute_uv=False)
    count = 2 * max(1, int(np.sum(sigma > noise)))
    # Where all entries are observed, small components are looked for below large ones.
    whole = ld.completion(jnp.asarray(_graded(), setting.dtype), np.ones((8, 7), bool))
    noise = 1e-3 * np.random.default_rng(17).standard_normal((8, 7))
    noisy = ld.completion(jnp.asarray(_graded() + noise, setting.dtype), np.ones((8, 7), bool))
    pairs = {
        f"default width, all entries, {name}": (width, ld.compress(given, depth=2, scale=SCALE)[0].shape[0])
        for name, width, given in (("exact", 4, whole), ("noisy", _twice_visible(_graded() + noise), noisy))
    }
    return pairs | {
        f"default width, {name}": (count, ld.compress(given, depth=2, scale=SCALE)[0].shape[0])
        for name, given in {"completion": problem, "observed entries": problem.observed()}.items()
    }


@check(
    "library-fit",
    claim="`fit` takes its width, scale and rate from the data by the rules it states, trains as a loop in "
    "NumPy does, and keeps the weights of the smallest validation loss.",
    source="1.3, 5.2",
    controls={"twice the rate": {"factor": 2.0}},
    any_target=False,
    rests_on=("reference", "library"),
)
def library_fit(setting: Setting, /, *, factor=1.0) -> Evidence:
    target, alpha, decay, steps, every = matrix_of(6, 5, 2), 2.0, 0.01, 60, 3
    problem, exact = ld.factorization(jnp.asarray(target, setting.dtype)), reference.factorization(target)
    top = 3.0

    def rate(depth, alpha):
        return factor * 0.5 * 2 / (depth * top ** (2 - 2 / depth) * alpha ** (2 / depth))

    automatic = ld.fit(problem, steps=0)
    pairs: dict[str, Any] = {
        f"default {name}": (value, automatic.settings[name])
        for name, value in {"depth": 3, "rank": 2, "scale": (1e-7 * top) ** (1 / 3), "alpha": 1.0,
                            "learning_rate": rate(3, 1.0), "check_every": 50}.items()
    }  # fmt: skip
    start = reference.spectral_start(target, rank=2, depth=2, scale=0.5)
    given = {"depth": 2, "rank": 2, "scale": 0.5, "alpha": alpha, "weight_decay": decay, "steps": steps}
    history = reference.descent(exact, start, rate=rate(2, alpha), steps=steps, alpha=alpha, decay=decay)
    size = [float(np.sum(net[0] ** 2)) for net in history]
    losses = [float(reference.loss_and_gradients(exact, net)[0]) for net in history]
    level = size[10]

    def validate(weights):  # smallest where the first layer has grown to a certain size
        return (jnp.sum(weights[0] ** 2) - level) ** 2

    found = ld.fit(problem, validate=validate, check_every=every, patience=0.5, **given)
    records = np.arange(0, steps + 1, every)
    exact_validation = (np.array(size)[records] - level) ** 2
    best = int(records[np.argmin(exact_validation)])
    stops = [int(step) for step in records if step >= best + max(0.5 * best, 10 * every)]
    end = stops[0] if stops else steps
    seen = records[records <= end]
    pairs |= {
        "checks": (seen, found.steps),
        "losses": (np.array(losses)[seen], found.losses),
        "validation": (exact_validation[: len(seen)], found.validation),
        "best step": (best, found.best_step),
        "weights": (reference.product(history[best]), ld.end_to_end(found.weights)),
        "status": (Status.STOPPED if stops else Status.COMPLETED, found.status),
    }
    plain = ld.fit(problem, tolerance=0.2, check_every=every, **given)
    goal = 0.2 * float(np.sum(target**2)) / 2  # of the zero matrix
    last = next((int(step) for step in records if losses[step] <= goal), steps)
    pairs |= {
        "steps to the tolerance": (last, plain.best_step),
        "weights at the tolerance": (reference.product(history[last]), ld.end_to_end(plain.weights)),
        "status at the tolerance": (Status.REACHED_TOLERANCE, plain.status),
    }
    return evidence_of(
        pairs,
        tolerance=setting.rounding(steps),
        reason=f"rounding of {steps} steps",
        quantity="largest difference relative to the largest entry predicted",
    )
