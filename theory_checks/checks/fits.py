"""How `fit` ends: closing, growing, holding out, against alternating least squares in NumPy."""

from functools import cache
from typing import Any

import jax.numpy as jnp
import numpy as np

import lowdim_jax as ld
from lowdim_jax import closing, growing
from lowdim_jax.trajectory import Status
from theory_checks.pairs import evidence_of
from theory_checks.reference import networks
from theory_checks.reference.random_matrices import haar
from theory_checks.registry import Evidence, check
from theory_checks.setting import Setting

SHAPE, FRACTION, NOISE = (16, 12), 0.8, 0.05
SIGMA = (3.0, 2.0)


@cache
def _matrices() -> dict[str, np.ndarray]:
    """A target of rank two, a mask, and noise."""
    rng = np.random.default_rng(11)
    target = haar(rng, SHAPE[0], 2) * SIGMA @ haar(rng, SHAPE[1], 2).T
    size = NOISE * np.std(target)
    return {
        "target": target, "mask": rng.random(SHAPE) < FRACTION, "noise": size * rng.standard_normal(SHAPE)
    }  # fmt: skip


def _pair(number: int) -> tuple[np.ndarray, np.ndarray]:
    """Left and right singular vector of the target."""
    left, _, right = np.linalg.svd(_matrices()["target"])
    return left[:, number], right[number]


@cache
def _best(noisy: bool, rank: int) -> np.ndarray:
    """The matrix of that rank of least misfit, from the leading vectors of the observed entries."""
    data = _matrices()
    values = np.where(data["mask"], data["target"] + noisy * data["noise"], 0)
    start = np.linalg.svd(values)[2][:rank]
    rows, columns = networks.best_of_rank(values, data["mask"], start)
    return rows @ columns


@check(
    "library-closing",
    claim="Closing a fit ends at the matrix of least loss among those of its rank, and `fit` finds rank and "
    "matrix from the data alone: exact ones to rounding, of any size, and noisy ones at that least loss.",
    source="1.3, 1.7",
    controls={"of entries that are not those shown": {"shift": 0.1}},
    any_target=False,
    rests_on=("reference", "library"),
)
def library_closing(setting: Setting, /, *, shift=0.0) -> Evidence:
    pairs = _of_closing(setting, shift)
    if not shift:
        pairs |= _of_ranks(setting) | _of_fits(setting)
    return evidence_of(
        pairs,
        tolerance=5e-6 if setting.dtype == "float64" else 2e-3,
        reason="where closing stops: a gain that is rounding, so that the matrix is known to its root",
        quantity="largest difference relative to the largest entry predicted",
    )


def _problem(setting: Setting, *, noisy: bool, shift: float = 0.0, size: float = 1.0):
    data = _matrices()
    values = size * (data["target"] + noisy * data["noise"] + shift * np.eye(*SHAPE))
    return ld.completion(values.astype(setting.dtype), data["mask"])


def _of_closing(setting: Setting, shift: float) -> dict[str, Any]:
    """The best matrices of ranks one and two of noisy entries: dense, by entries, and sensed."""
    pairs: dict[str, Any] = {}
    problem = _problem(setting, noisy=True, shift=shift)
    mask, fraction = _matrices()["mask"], np.mean(_matrices()["mask"])
    values = np.where(mask, _matrices()["target"] + _matrices()["noise"], 0)
    units = np.zeros((int(mask.sum()), *SHAPE))
    units[np.arange(len(units)), *np.nonzero(mask)] = 1.0  # the entries as measurements
    sensed = ld.sensing(jnp.asarray(units, setting.dtype), jnp.asarray(values[mask], setting.dtype))
    kinds = {"dense": problem, "by entries": problem.observed()} | ({} if shift else {"sensed": sensed})
    for rank in (1, 2):
        exact = _best(True, rank)
        loss = np.sum((exact - values)[mask] ** 2) / (2 * fraction)
        for name, kind in kinds.items() if rank == 2 else [("dense", problem)]:
            start = kind.surrogate(rank)
            found = closing.close(kind.loss, start, goal=0.0, gradients=800, stall=1e-12)
            pairs[f"matrix of rank {rank}, {name}"] = exact, found.parts.dense()
            pairs[f"loss of rank {rank}, {name}"] = loss, found.loss
            pairs[f"gradients of rank {rank}, {name}"] = True, 1 < found.gradients < 800
    return pairs


def _of_ranks(setting: Setting) -> dict[str, Any]:
    """What growing counts, and what it takes for the trivial answers."""
    problem, data = _problem(setting, noisy=True), _matrices()
    mask = data["mask"]
    values, count = (data["target"] + data["noise"])[mask], int(mask.sum())
    d_out, d_in = SHAPE
    most = max(r for r in range(1, d_in + 1) if r * (d_out + d_in - r) <= 0.95 * count)
    constant = growing.best_constant(problem, setting.dtype).dense()
    parts = ld.linalg.svd(jnp.asarray(_best(True, 2), setting.dtype)).truncate(2)
    left = np.where(mask, data["target"] + data["noise"] - _best(True, 2), 0)
    residual = closing.residual_of(problem, parts)
    stage = growing.Stage(parts, 0.3, 1.0)
    scored = [growing.Stage(parts.truncate(1), 0.5, 1.0), stage]
    shares = [(d_out + d_in - 1) / count, 2 * (d_out + d_in - 2) / count]
    scores = [loss / (1 - share) ** 2 for loss, share in zip((0.5, 0.3), shares, strict=True)]
    chosen, score = growing.generalized(problem, scored)
    return {
        "degrees of freedom": (2 * (d_out + d_in - 2), growing.freedom(problem, 2)),
        "largest rank": (most, growing.largest_rank(problem)),
        "best constant": (np.full(SHAPE, values.mean()), constant),
        "loss at zero": (
            np.sum(values**2) / (2 * np.mean(mask)), growing.loss_at_zero(problem, setting.dtype)
        ),
        "residual": (left / np.max(np.abs(left)), np.asarray(residual.values) / np.max(np.abs(left))),
        "generalized cross-validation": (min(scores), score),
        "its rank": (1 + int(np.argmin(scores)), 0 if chosen is None else chosen.rank),
    }  # fmt: skip


def _of_fits(setting: Setting) -> dict[str, Any]:
    """`fit` of exact entries, of tiny and huge ones, of badly conditioned and of noisy ones."""
    data = _matrices()
    pairs: dict[str, Any] = {}
    huge = 1e30 if setting.dtype == "float32" else 1e200
    for name, size in {"exact": 0.125, "tiny": 1 / huge, "huge": huge}.items():
        found = ld.fit(_problem(setting, noisy=False, size=size))
        top = size * np.linalg.svd(np.where(data["mask"], data["target"], 0) / np.mean(data["mask"]))[1][0]
        pairs |= {
            f"{name}: rate, half of the edge": (1 / (3 * top ** (4 / 3)), found.settings["learning_rate"]),
            f"{name}: scale": ((1e-7 * top) ** (1 / 3), found.settings["scale"]),
            f"{name}: matrix": (data["target"], np.asarray(ld.end_to_end(found.weights)) / size),
            f"{name}: rank, status": ([2, Status.REACHED_TOLERANCE], [found.settings["rank"], found.status]),
            f"{name}: converged, not noisy": ([True, False], [found.converged, found.noisy]),
        }
    small = data["target"] - 0.98 * SIGMA[1] * np.outer(*_pair(1))  # a component far below the first
    for name, given in {"graded": small, "of rank one": SIGMA[0] * np.outer(*_pair(0))}.items():
        found = ld.fit(ld.completion(given.astype(setting.dtype), data["mask"]).observed())
        pairs[f"{name}: matrix"] = given, ld.end_to_end(found.weights)
        pairs[f"{name}: rank"] = 1 + (name == "graded"), found.settings["rank"]
    # Settings that are given, at another size: a rate η of data times s is one of s^(2/L − 2) η.
    rate = 0.4 * 2 / (2 * SIGMA[0] * 2.0)  # 0.4 of the edge at L = 2, α = 2
    runs = [
        ld.fit(
            _problem(setting, noisy=False, size=size), depth=2, rank=2, alpha=2.0, finish=False, steps=40,
            check_every=20, scale=0.1 * size**0.5, learning_rate=rate / size,
        )
        for size in (1.0, 2.0**-30)
    ]
    asked = [[0.1 * size**0.5, rate / size] for size in (1.0, 2.0**-30)]
    pairs["given settings, as used"] = (
        asked, [[run.settings["scale"], run.settings["learning_rate"]] for run in runs]
    )  # fmt: skip
    pairs["given settings, tiny: losses"] = runs[0].losses, runs[1].losses * 2.0**60
    pairs["given settings, tiny: weights"] = (
        ld.end_to_end(runs[0].weights), ld.end_to_end(runs[1].weights) * 2.0**30
    )  # fmt: skip
    exact = networks.completion(data["target"], data["mask"])
    start = networks.spectral_start(
        np.where(data["mask"], data["target"], 0), rank=2, depth=2, scale=0.1
    )
    history = networks.descent(exact, start, rate=rate, alpha=2.0, steps=40)
    pairs["given settings: matrix"] = networks.product(history[-1]), ld.end_to_end(runs[0].weights)
    coarse = ld.fit(_problem(setting, noisy=False), tolerance=0.5, learning_rate=0.02, check_every=1)
    pairs["a tolerance of its own"] = (
        [Status.REACHED_TOLERANCE, True], [coarse.status, 0.4 < coarse.misfit**2 <= 0.5]
    )  # fmt: skip
    shallow = ld.fit(_problem(setting, noisy=False), depth=2)
    pairs["two layers: matrix, depth"] = (
        np.append(data["target"], 2), np.append(ld.end_to_end(shallow.weights), len(shallow.weights))
    )  # fmt: skip
    noisy = ld.fit(_problem(setting, noisy=True))
    exact = _best(True, 2)
    mask, values = data["mask"], data["target"] + data["noise"]
    misfit = (np.sum((exact - values)[mask] ** 2) / np.sum(values[mask] ** 2)) ** 0.5
    measured = np.asarray(ld.end_to_end(noisy.weights), float)
    reached = (np.sum((measured - values)[mask] ** 2) / np.sum(values[mask] ** 2)) ** 0.5
    pairs["noisy: what the fit says of its misfit"] = reached, noisy.misfit
    pairs["noisy: rank, converged, noisy"] = (
        [2, False, True], [noisy.settings["rank"], noisy.converged, noisy.noisy]
    )  # fmt: skip
    # Stopped by data held out, or closed: at most 2 % above the least misfit, and never below it.
    pairs["noisy: misfit near the least"] = True, misfit * (1 - 1e-6) <= noisy.misfit <= 1.02 * misfit
    return pairs
