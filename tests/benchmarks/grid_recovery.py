"""Recovery on a grid: `fit` with its defaults beside baselines whose settings know the truth.

    python tests/benchmarks/grid_recovery.py [--seeds N] [--first-seed N] [--noise 0 0.01] [--out FILE] …

Relative Frobenius errors of a d × d matrix of rank r, singular values from 1 to 1/condition in equal ratios,
from a fraction p of its entries, `over` times the information limit r (2d − r) / d²; every row and column has
r entries at least. `noise` is relative to the entries' root mean square. Beside `fit`, which is told nothing:

- ALS of the true rank, from the spectral start, with the ridge of least error (chosen by the truth);
- soft-impute with the penalty of least error;
- the optimum of one who knows the row and column spaces: least squares over the tangent space at the truth.
  Without noise that is the truth itself, so the others' best counts; and where `fit` is exact, none is run.

A seed is reached if its error is at most twice the best of the others', or rounding. Medians over seeds.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import jax
import numpy as np

RIDGES = (1e-12, 1e-4, 1e-3, 1e-2, 1e-1)
PENALTIES = (1e-4, 1e-3, 1e-2, 3e-2, 1e-1, 3e-1)
EXACT = 1e-6
RIVALS = ("ALS", "soft-impute", "optimum")
D = 70


def instance(d: int, rank: int, condition: float, over: float, noise: float, seed: int):
    """Truth, mask, and entries with noise."""
    rng = np.random.default_rng(seed)
    left, right = (np.linalg.qr(rng.standard_normal((d, rank)))[0] for _ in range(2))
    truth = (left * np.geomspace(1, 1 / condition, rank)) @ right.T
    mask = rng.random((d, d)) < over * rank * (2 * d - rank) / d**2
    for lines in (mask, mask.T):
        for line in lines:
            free = np.flatnonzero(~line)
            line[rng.choice(free, max(rank - line.sum(), 0), replace=False)] = True
    entries = truth + noise * np.linalg.norm(truth) / d * rng.standard_normal((d, d))
    return truth, mask, np.where(mask, entries, 0)


def tangent_optimum(truth, mask, entries, rank: int):
    """Least squares over the matrices `X Vᵀ + U Y`, by LSQR on the observed entries."""
    from scipy.sparse.linalg import LinearOperator, lsqr

    u, _, vt = np.linalg.svd(truth)
    u, v = u[:, :rank], vt[:rank].T
    d = len(truth)

    def matrix(x):
        x, y = x[: d * rank].reshape(d, rank), x[d * rank :].reshape(rank, d)
        return x @ v.T + u @ y

    def adjoint(y):
        full = np.zeros_like(truth)
        full[mask] = y
        return np.concatenate([(full @ v).ravel(), (u.T @ full).ravel()])

    operator = LinearOperator((int(mask.sum()), 2 * d * rank), lambda x: matrix(x.ravel())[mask], adjoint)
    solution = lsqr(operator, (entries - truth)[mask], atol=1e-12, btol=1e-12, iter_lim=3000)[0]
    return truth + matrix(solution)


def others(truth, mask, entries, rank: int) -> dict[str, float]:
    """Errors of the baselines, the least over their settings."""
    import lowdim_jax as ld
    from lowdim_jax import baselines

    problem = ld.completion(entries, mask, truth=truth).observed()
    start = ld.initialization.balanced(problem.surrogate(rank), depth=2)
    top = float(problem.surrogate(1).singular_values[0]) * mask.mean()
    error = lambda weights: float(problem.recovery_error(weights))  # noqa: E731
    als = [
        error(baselines.alternating_minimization(problem, rank=rank, ridge=r * top, sweeps=200, start=start))
        for r in RIDGES
    ]
    soft = [
        error(baselines.soft_impute(problem, penalty=x * top, rank=30, steps=300, tolerance=1e-5))
        for x in PENALTIES
    ]
    known = tangent_optimum(truth, mask, entries, rank)
    return {
        "ALS": np.nanmin(als),
        "soft-impute": min(soft),
        "optimum": np.linalg.norm(known - truth) / np.linalg.norm(truth),
    }


def row(d, rank, condition, over, noise, seed) -> dict:
    """One instance."""
    import lowdim_jax as ld

    truth, mask, entries = instance(d, rank, condition, over, noise, seed)
    problem = ld.completion(entries, mask, truth=truth)
    begin = time.perf_counter()
    fit = ld.fit(problem)
    seconds = time.perf_counter() - begin
    error = float(problem.recovery_error(fit.weights))
    exact = not noise and error <= EXACT
    rivals = dict.fromkeys(RIVALS, np.nan) if exact else others(truth, mask, entries, rank)
    return {
        "rank": rank, "condition": condition, "over": over, "noise": noise, "seed": seed,
        "fit": error, "found": fit.settings["rank"],
        "converged": fit.converged, "noisy": fit.noisy, "gradients": int(fit.steps[-1]), "seconds": seconds,
        **rivals,
    }  # fmt: skip


def table(rows: list[dict]) -> str:
    """Medians over seeds, a line a cell, in Markdown."""
    names = ("fit", *RIVALS)
    lines = [
        "| noise | r | condition | p / limit | fit | worst | ranks | ALS | soft-impute | optimum | reached |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    cells = sorted({(x["noise"], x["rank"], x["condition"], x["over"]) for x in rows})
    for cell in cells:
        here = [x for x in rows if (x["noise"], x["rank"], x["condition"], x["over"]) == cell]
        known = {name: [x[name] for x in here if np.isfinite(x[name])] for name in names}
        rivals = names[1:] if cell[0] else names[1:3]  # without noise the optimum is the truth
        best = [min([x[name] for name in rivals if np.isfinite(x[name])], default=0.0) for x in here]
        reached = sum(x["fit"] <= max(EXACT, 2 * other) for x, other in zip(here, best, strict=True))
        found = sorted({x["found"] for x in here})
        numbers = " | ".join(f"{np.median(known[name]):.1e}" if known[name] else "–" for name in names[1:])
        lines.append(
            f"| {cell[0]:g} | {cell[1]} | {cell[2]:g} | {cell[3]:g} | {np.median(known['fit']):.1e} | "
            f"{max(x['fit'] for x in here):.1e} | {', '.join(map(str, found))} | {numbers} | "
            f"{reached} of {len(here)} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Run the grid, print the table, and keep the rows."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0, help="of those: rules were chosen on 0 to 9")
    parser.add_argument("--noise", type=float, nargs="+", default=(0.0, 1e-2))
    parser.add_argument("--ranks", type=int, nargs="+", default=(1, 3, 5))
    parser.add_argument("--conditions", type=float, nargs="+", default=(1.0, 30.0, 1000.0))
    parser.add_argument("--over", type=float, nargs="+", default=(1.5, 2.5, 4.0))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--table", type=Path, nargs="+", help="of rows that were kept, in place of a run")
    arguments = parser.parse_args()
    if arguments.table:
        print(table([one for path in arguments.table for one in json.loads(path.read_text())]))
        return
    jax.config.update("jax_enable_x64", True)
    rows = []
    for noise in arguments.noise:
        for rank in arguments.ranks:
            for condition in arguments.conditions if rank > 1 else (1.0,):
                for over in arguments.over:
                    for seed in range(arguments.first_seed, arguments.first_seed + arguments.seeds):
                        rows.append(row(D, rank, condition, over, noise, seed))
                    if arguments.out:
                        arguments.out.write_text(json.dumps(rows))
                    print(table(rows).splitlines()[-1], file=sys.stderr, flush=True)
    print(table(rows))


if __name__ == "__main__":
    main()
