"""The noise edge by random signs (docs/theory.md 1.7): what it counts, and when it errs."""

import numpy as np

import lowdim_jax as ld
from theory_checks.registry import Evidence, check
from theory_checks.setting import Setting

RANKS = (1, 3, 5)
SIDE, FRACTION = 80, 0.5
NOISE = 0.2
"""Of the entries, relative to their root mean square."""
DRAWS, SMALL = 300, 12
"""Draws and side of the matrices without structure."""


@check(
    "noise-edge",
    claim="Components of a completion's surrogate above the largest singular value that random signs of its "
    "entries leave are as many as the target has, with noise and without; without a target they are above "
    "the largest of three draws in a quarter of the cases.",
    source="1.7",
    controls={
        "the entries in random order: no structure": {"shuffled": True},
        "an edge from the energy alone, spread evenly": {"evenly": True},
    },
    any_target=False,
    rests_on=("theorem", "library"),
)
def noise_edge(setting: Setting, /, *, shuffled=False, evenly=False) -> Evidence:
    """Counts against ranks, and the rate of false alarms against 1/4, in units of its standard deviation."""
    cases = [(rank, noise) for rank in RANKS for noise in (0.0, NOISE)]
    counts, alarms = [], []
    for seed in range(setting.seeds):
        rng = np.random.default_rng(seed)
        problems = [_problem(rng, rank, noise, shuffled) for rank, noise in cases]
        counts.append([_count(problem, evenly) for problem in problems])
        alarms.append(_false_alarms(rng, evenly))
    counts, alarms = np.array(counts), np.array(alarms)
    wrong = np.max(np.abs(counts - [rank for rank, _ in cases]), axis=1)
    spread = (0.25 * 0.75 / DRAWS) ** 0.5
    return Evidence(
        errors=np.maximum(wrong, np.abs(alarms - 0.25) / (8 * spread)),
        tolerance=0.5,
        reason="a count is a whole number; four standard deviations of the rate of false alarms",
        quantity="larger one of |count − rank| and an eighth of the rate's standard score",
        predicted={"count": {f"r = {r}, noise {n:g}": r for r, n in cases}, "false alarms": 0.25},
        measured={
            "count": {f"r = {r}, noise {n:g}": counts[:, k] for k, (r, n) in enumerate(cases)},
            "false alarms": alarms,
        },
    )


def _problem(rng, rank: int, noise: float, shuffled: bool) -> ld.problems.Completion:
    """Gaussian factors of equal columns, so that all components are well above the edge."""
    left, right = (np.linalg.qr(rng.standard_normal((SIDE, rank)))[0] for _ in range(2))
    matrix = left @ right.T
    matrix += noise * np.std(matrix) * rng.standard_normal(matrix.shape)
    mask = rng.random(matrix.shape) < FRACTION
    if shuffled:
        matrix[mask] = rng.permutation(matrix[mask]) * rng.choice([-1, 1], mask.sum())
    return ld.completion(matrix, mask)


def _count(problem: ld.problems.Completion, evenly: bool) -> int:
    sigma = np.linalg.svd(np.asarray(problem.surrogate_matrix()), compute_uv=False)
    return int(np.sum(sigma > float(problem.surrogate_error() if evenly else problem.noise_edge())))


def _false_alarms(rng, evenly: bool) -> float:
    """How often a matrix of independent, heavy-tailed, symmetric entries shows a component above the edge."""
    alarms = 0
    for draw in range(DRAWS):
        scales = np.exp(rng.standard_normal((SMALL, 1)) + rng.standard_normal((1, SMALL)))
        matrix = scales * rng.standard_t(3, (SMALL, SMALL))
        mask = rng.random(matrix.shape) < FRACTION
        problem = ld.completion(matrix, mask)
        edge = float(problem.surrogate_error()) if evenly else problem.noise_edge(seed=draw)
        alarms += np.linalg.norm(np.asarray(problem.surrogate_matrix()), 2) > edge
    return alarms / DRAWS
