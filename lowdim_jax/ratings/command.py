"""The `lowdim-ratings` command: fit a file of ratings, compare with baselines, write what was learned."""

import argparse
import csv
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from lowdim_jax._command import OK, Parser, new_parser, replace_files, require_writable, run
from lowdim_jax.baselines import alternating_minimization, burer_monteiro, soft_impute
from lowdim_jax.problems.base import top_singular_value
from lowdim_jax.ratings.data import Ratings, hold_out, read_ratings
from lowdim_jax.ratings.model import (
    HELD_OUT,
    STARTS,
    WIDTHS,
    RatingModel,
    estimate_effects,
    fit_ratings,
    model_of,
    residual_problem,
)

TEST = 0.1
"""Fraction of the ratings that are tested on where there is no test file."""
RANK = 10
RIDGES = (6.0, 9.0, 12.0, 18.0, 27.0)
PENALTIES = (0.3, 0.4, 0.5)
"""Candidate penalties of the baselines; those of soft-impute are fractions of the largest singular value."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0, or 2 for bad input."""
    return run(_parser(), argv)


def _parser() -> Parser:
    parser = new_parser("lowdim-ratings", "Predict ratings with a compressed deep linear network.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    command = commands.add_parser("fit", help="fit a file of ratings, and compare with other methods")
    command.add_argument(
        "file", metavar="FILE", help="lines of user, item, rating; docs/inputs.md"
    )
    command.add_argument("--test", metavar="FILE", help="ratings to test on; by default a tenth of FILE")
    command.add_argument("--depth", type=int, choices=STARTS, help="number of layers; default: chosen")
    command.add_argument("--rank", type=int, metavar="R", help="width of the network; default: chosen")
    command.add_argument("--seed", type=int, default=0, metavar="N", help="of what is held out; default: 0")
    command.add_argument("--no-baselines", action="store_true", help="do not fit the other methods")
    command.add_argument("--out", type=Path, metavar="DIR", help="write factors.npz and predictions.csv")
    command.set_defaults(command=_fit)
    return parser


def _fit(arguments: argparse.Namespace) -> int:
    for name, value, least in (("--rank", arguments.rank, 1), ("--seed", arguments.seed, 0)):
        if value is not None and value < least:
            raise ValueError(f"{name} {value}, expected {least} or more")
    train, test = _train_and_test(arguments)
    depths = tuple(STARTS) if arguments.depth is None else (arguments.depth,)
    widths = WIDTHS if arguments.rank is None else (arguments.rank,)
    if arguments.out is not None:
        require_writable(arguments.out)
    print(
        f"{len(train.values):,} ratings from {train.values.min():g} to {train.values.max():g}, and "
        f"{len(test.values):,} to test on, of {train.shape[0]:,} users and {train.shape[1]:,} items"
    )

    table = Table("method", "test RMSE", "seconds", "chosen on held-out training ratings")

    def report(name: str, make: Callable[[], tuple[RatingModel, str]]) -> RatingModel:
        begin = time.perf_counter()
        model, chosen = make()
        seconds = time.perf_counter() - begin
        table.add_row(name, f"{model.rmse(test):.4f}", f"{seconds:.1f}", chosen)
        return model

    def compressed():
        model, fit = fit_ratings(train, depths=depths, widths=widths, seed=arguments.seed, progress=True)
        used = fit.settings
        return model, f"depth {used['depth']}, width {used['rank']}, {fit.best_step} steps"

    report("user and item effects", lambda: (model_of(train, estimate_effects(train)), ""))
    model = report("compressed network", compressed)
    if not arguments.no_baselines:
        for name, baseline in BASELINES.items():
            report(name, lambda baseline=baseline: _chosen(train, baseline, arguments.seed))
    paths = () if arguments.out is None else _write(arguments.out, model, train, test)
    Console().print(table)
    for path in paths:
        print(path)
    return OK


def _train_and_test(arguments: argparse.Namespace) -> tuple[Ratings, Ratings]:
    if arguments.test is None:
        (ratings,) = read_ratings(arguments.file)
        return hold_out(ratings, TEST, seed=arguments.seed + 1)
    train, test = read_ratings(arguments.file, arguments.test)
    known = set(zip(train.users, train.items, strict=True))
    shared = sum(pair in known for pair in zip(test.users, test.items, strict=True))
    if shared:
        raise ValueError(
            f"{shared:,} of the {len(test.values):,} ratings in {arguments.test!r} are of a user and an item "
            f"that {arguments.file!r} has, too: a test on what was learned from says nothing"
        )
    return train, test


def _chosen(train: Ratings, baseline: tuple[Callable, Sequence, str], seed: int) -> tuple[RatingModel, str]:
    """A baseline with its penalty chosen on held-out ratings, then fitted to all."""
    part, held = hold_out(train, HELD_OUT, seed=seed)
    solve, penalties, what = baseline

    def model(ratings: Ratings, penalty) -> RatingModel:
        effects = estimate_effects(ratings)
        return model_of(ratings, effects, solve(residual_problem(ratings, effects), penalty))

    best = min(penalties, key=lambda penalty: model(part, penalty).rmse(held))
    return model(train, best), f"{what} {best:g}"


def _als(problem, ridge):
    return alternating_minimization(problem, rank=RANK, ridge=ridge)


def _factors(problem, steps):
    return burer_monteiro(problem, rank=RANK, steps=steps).weights


def _nuclear(problem, fraction):
    top = problem.fraction * float(top_singular_value(problem))  # of P_Ω(Y), not divided by p
    return soft_impute(problem, penalty=fraction * top, rank=min(4 * RANK, *problem.shape))


BASELINES = {
    "alternating minimization": (_als, RIDGES, "ridge"),
    "two factors, small Gaussian start": (_factors, (25, 30, 35, 40, 50), "steps"),
    "soft-impute": (_nuclear, PENALTIES, "penalty / σ_1"),
}


def _write(folder: Path, model: RatingModel, train: Ratings, test: Ratings) -> tuple[Path, Path]:
    """Write factors and predictions, both or none."""
    layers = {f"layer_{k}": np.asarray(layer) for k, layer in enumerate(model.weights or (), start=1)}
    predicted = model.predict(test.users, test.items)
    paths = folder / "factors.npz", folder / "predictions.csv"
    with replace_files(*paths) as (factors, predictions):
        np.savez_compressed(
            factors,
            mean=model.effects.mean,
            user_effects=model.effects.users,
            item_effects=model.effects.items,
            scale=(model.lowest, model.highest),
            users=np.array(train.user_names),
            items=np.array(train.item_names),
            **layers,  # pyright: ignore[reportArgumentType]
        )
        with predictions.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(("user", "item", "rating", "predicted"))
            for user, item, given, value in zip(test.users, test.items, test.values, predicted, strict=True):
                name = (train.user_names[user], train.item_names[item])
                writer.writerow((*name, f"{given:g}", f"{value:.4f}"))
    return paths


if __name__ == "__main__":
    sys.exit(main())
