"""The `lowdim-ratings` command: fit a file of ratings, predict, recommend, compare methods."""

import argparse
import csv
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

import numpy as np

from lowdim_jax._command import OK, Parser, new_parser, replace_files, require_writable, run, whole_number
from lowdim_jax._reading import short
from lowdim_jax.ratings.data import DUPLICATES, Ratings, hold_out, read_pairs, read_ratings
from lowdim_jax.ratings.model import RatingModel
from lowdim_jax.ratings.training import METHODS, STARTS, WIDTHS, Chosen, Report, fit_ratings

TEST = 0.1
"""Fraction of the ratings that are tested on where there is no test file."""
MODEL = Path("ratings-model.npz")
"""The file of a model, where none is named."""
TOP = 10
"""Items that are recommended, where it is not said how many."""
UNSEEN = np.array(["", "user", "item", "both"])
"""What had no rating to learn from."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0, or 2 for bad input."""
    return run(_parser(), argv)


def _parser() -> Parser:
    parser = new_parser("lowdim-ratings", "Learn from a file of ratings, predict others and recommend.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    command = commands.add_parser("fit", help="learn from a file of ratings, and write a model")
    command.add_argument("file", metavar="FILE", help="lines of user, item, rating; docs/inputs.md")
    _add_model(command, "where to write the model")
    _add_reading(command)
    _add_fitting(command)
    command.set_defaults(command=_fit)

    command = commands.add_parser("predict", help="predict ratings of the pairs in a file, or of one pair")
    command.add_argument("file", metavar="FILE", nargs="?", help="lines of user and item")
    command.add_argument("--user", metavar="NAME", help="predict for this user, in place of a file")
    command.add_argument("--item", metavar="NAME", help="and this item")
    _add_model(command, "the model")
    _add_columns(command, "USER,ITEM")
    command.add_argument("--out", type=Path, metavar="FILE", help="write CSV there; default: print it")
    command.set_defaults(command=_predict)

    command = commands.add_parser("recommend", help="the items with the highest predicted ratings")
    command.add_argument("users", metavar="USER", nargs="*", help="for whom; default: every user")
    command.add_argument(
        "--top", type=whole_number(1), default=TOP, metavar="N", help=f"how many; default: {TOP}"
    )
    command.add_argument("--rated", action="store_true", help="also items that the user has rated")
    _add_model(command, "the model")
    command.add_argument("--out", type=Path, metavar="FILE", help="write CSV there; default: print it")
    command.set_defaults(command=_recommend)

    command = commands.add_parser("evaluate", help="fit, test on other ratings, compare with other methods")
    command.add_argument("file", metavar="FILE", help="lines of user, item, rating; docs/inputs.md")
    command.add_argument("--test", metavar="FILE", help="ratings to test on; by default a tenth of FILE")
    command.add_argument(
        "--model", type=Path, metavar="FILE", help="test this model on the ratings of FILE, and fit nothing"
    )
    _add_reading(command)
    _add_fitting(command)
    command.add_argument("--no-baselines", action="store_true", help="do not fit the other methods")
    command.add_argument("--out", type=Path, metavar="DIR", help="write model.npz and predictions.csv")
    command.set_defaults(command=_evaluate)
    return parser


def _add_model(command: argparse.ArgumentParser, what: str) -> None:
    command.add_argument(
        "--model", type=Path, default=MODEL, metavar="FILE", help=f"{what}; default: {MODEL}"
    )


def _add_columns(command: argparse.ArgumentParser, which: str) -> None:
    command.add_argument(
        "--columns", metavar=which, help="names in the header, or numbers from 1 on; default: found"
    )


def _add_reading(command: argparse.ArgumentParser) -> None:
    _add_columns(command, "USER,ITEM,RATING")
    command.add_argument(
        "--duplicates",
        choices=DUPLICATES,
        default=DUPLICATES[0],
        help="which of a user's ratings of an item counts; default: error",
    )


def _add_fitting(command: argparse.ArgumentParser) -> None:
    command.add_argument("--method", choices=METHODS, help="default: the best of these on held-out ratings")
    command.add_argument("--depth", type=int, choices=STARTS, help="layers of the network; default: chosen")
    command.add_argument(
        "--rank", type=whole_number(1), metavar="R", help="width of the network; default: chosen"
    )
    command.add_argument(
        "--seed", type=whole_number(0), default=0, metavar="N", help="of what is held out; default: 0"
    )


# --- Commands ----------------------------------------------------------------------------


def _fit(arguments: argparse.Namespace) -> int:
    _require_place(arguments.model, "--model")
    with _stages() as report:
        (ratings,) = _read(arguments, report, arguments.file)
        print(_counts(ratings))
        model, chosen = _fitted(ratings, arguments, report)
        report(f"writing {arguments.model}", 0.0)
        model.save(arguments.model)
    errors = ", ".join(f"{name} {error:.4f}" for name, error in chosen.errors.items())
    print(f"error on held-out ratings (RMSE): {errors}")
    print(f"chosen: {chosen}")
    print(arguments.model)
    return OK


def _predict(arguments: argparse.Namespace) -> int:
    pair = arguments.user is not None, arguments.item is not None
    if arguments.file is not None and any(pair):
        raise ValueError(f"FILE {short(arguments.file)} and --user or --item: expected one of the two")
    if arguments.file is None and not all(pair):
        raise ValueError("nothing to predict: expected FILE, or both --user and --item")
    if arguments.out is not None:
        _require_place(arguments.out, "--out")
    model = RatingModel.load(arguments.model)
    if arguments.file is None:
        names = [arguments.user], [arguments.item]
    else:
        names = read_pairs(arguments.file, columns=_columns(arguments, 2))
    numbers = model.numbers(*names)
    predicted = model.predict(*numbers)
    users, items = model.unseen(*numbers)
    with _output(arguments.out) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("user", "item", "predicted", "unseen"))
        values = (f"{value:.4f}" for value in predicted)
        writer.writerows(zip(*names, values, UNSEEN[users + 2 * items], strict=True))
    if users.any() or items.any():
        print(
            f"{np.count_nonzero(users):,} of {len(users):,} predictions are of a user without ratings, "
            f"{np.count_nonzero(items):,} of an item without: by the mean, and what is known of the other",
            file=sys.stderr,
        )
    return OK


def _recommend(arguments: argparse.Namespace) -> int:
    if arguments.out is not None:
        _require_place(arguments.out, "--out")
    model = RatingModel.load(arguments.model)
    names = arguments.users or model.user_names
    users, _ = model.numbers(names, ())
    unseen, _ = model.unseen(users, np.zeros(0, int))
    with _output(arguments.out) as file, _stages() as report:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("user", "place", "item", "predicted", "unseen"))
        for k, (name, user) in enumerate(zip(names, users, strict=True)):
            if arguments.out is not None and k % 100 == 0:
                report("recommending", k / len(names))
            items, predicted = model.recommend(user, top=arguments.top, rated=arguments.rated)
            for place, (item, value) in enumerate(zip(items, predicted, strict=True), start=1):
                row = (name, place, model.item_names[item], f"{value:.4f}", UNSEEN[int(unseen[k])])
                writer.writerow(row)
    if unseen.any():
        print(
            f"{np.count_nonzero(unseen):,} of {len(names):,} users have no ratings: they get what all like",
            file=sys.stderr,
        )
    return OK


def _evaluate(arguments: argparse.Namespace) -> int:
    if arguments.model is not None:
        return _evaluate_model(arguments)
    with _stages() as report:
        train, test = _train_and_test(arguments, report)
        if arguments.out is not None:
            require_writable(arguments.out)
        print(f"{_counts(train)}, and {len(test.values):,} to test on")
        model, rows = _compared(train, test, arguments, report)
        paths = () if arguments.out is None else _write(arguments.out, model, test)
    _print_table(rows)
    for path in paths:
        print(path)
    return OK


def _evaluate_model(arguments: argparse.Namespace) -> int:
    for option in ("test", "out"):
        if getattr(arguments, option) is not None:
            raise ValueError(f"--{option} and --model: expected one of the two")
    model = RatingModel.load(arguments.model)
    with _stages() as report:
        (ratings,) = _read(arguments, report, arguments.file)
    users, items = (
        table[of]
        for table, of in zip(
            model.numbers(ratings.user_names, ratings.item_names), (ratings.users, ratings.items), strict=True
        )
    )
    learned = _in_both(users, items, model.rated_users, model.rated_items, len(model.item_names))
    if learned:
        print(
            f"{learned:,} of the {len(users):,} ratings are of pairs that the model has learned from",
            file=sys.stderr,
        )
    unseen = np.logical_or(*model.unseen(users, items))
    error = float(np.sqrt(np.mean((model.predict(users, items) - ratings.values) ** 2)))
    count = f"{len(users):,} ratings, {np.count_nonzero(unseen):,} of them of an unseen user or item"
    print(f"{count}: RMSE {error:.4f}")
    return OK


# --- Their parts -------------------------------------------------------------------------


def _read(arguments: argparse.Namespace, report: Report, *files: str) -> tuple[Ratings, ...]:
    def show(fraction: float) -> None:
        report("reading", fraction)

    columns = _columns(arguments, 3)
    return read_ratings(*files, duplicates=arguments.duplicates, columns=columns, progress=show)


def _columns(arguments: argparse.Namespace, count: int) -> list[str] | None:
    if arguments.columns is None:
        return None
    columns = [column.strip() for column in arguments.columns.split(",")]
    if len(columns) != count or not all(columns):
        wanted = "user, item and rating" if count == 3 else "user and item"
        expected = f"expected {count} separated by commas: {wanted}"
        raise ValueError(f"--columns {short(arguments.columns)}, {expected}")
    return columns


def _fitted(ratings: Ratings, arguments: argparse.Namespace, report: Report) -> tuple[RatingModel, Chosen]:
    from lowdim_jax._cache import cache_programs

    cache_programs()
    return fit_ratings(
        ratings,
        depths=tuple(STARTS) if arguments.depth is None else (arguments.depth,),
        widths=WIDTHS if arguments.rank is None else (arguments.rank,),
        methods=None if arguments.method is None else (arguments.method,),
        seed=arguments.seed,
        progress=report,
    )


def _counts(ratings: Ratings) -> str:
    values = ratings.values
    return (
        f"{len(values):,} ratings from {values.min():g} to {values.max():g}, "
        f"of {ratings.shape[0]:,} users and {ratings.shape[1]:,} items"
    )


def _train_and_test(arguments: argparse.Namespace, report: Report) -> tuple[Ratings, Ratings]:
    if arguments.test is None:
        (ratings,) = _read(arguments, report, arguments.file)
        return hold_out(ratings, TEST, seed=arguments.seed + 1)
    train, test = _read(arguments, report, arguments.file, arguments.test)
    shared = _in_both(test.users, test.items, train.users, train.items, train.shape[1])
    if shared:
        raise ValueError(
            f"{shared:,} of the {len(test.values):,} ratings in {short(arguments.test, 120)} are of a "
            f"user and an item that {short(arguments.file, 120)} has, too: a test on what was learned from "
            "says nothing"
        )
    return train, test


def _in_both(
    users: np.ndarray, items: np.ndarray, other_users: np.ndarray, other_items: np.ndarray, width: int
) -> int:
    """How many of some pairs are among others."""
    known = (users >= 0) & (items >= 0)
    pairs = users[known].astype(np.int64) * width + items[known]
    return int(np.isin(pairs, other_users.astype(np.int64) * width + other_items).sum())


def _compared(
    train: Ratings, test: Ratings, arguments: argparse.Namespace, report: Report
) -> tuple[RatingModel, list[tuple[str, ...]]]:
    """The model, and what all methods predict, as rows of a table."""
    from lowdim_jax.ratings.comparison import BASELINES, chosen_baseline, effects_alone

    rows = []

    def row(name: str, make: Callable[[], tuple[RatingModel, object]]) -> RatingModel:
        begin = time.perf_counter()
        model, chosen = make()
        seconds = time.perf_counter() - begin
        rows.append((name, f"{model.rmse(test):.4f}", f"{seconds:.1f}", str(chosen)))
        return model

    row("user and item effects", lambda: (effects_alone(train), ""))
    model = row("this model", lambda: _fitted(train, arguments, report))
    if not arguments.no_baselines:
        for name in BASELINES:
            row(name, lambda name=name: chosen_baseline(train, name, seed=arguments.seed, progress=report))
    return model, rows


def _print_table(rows: Sequence[tuple[str, ...]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("method", "test RMSE", "seconds", "chosen on held-out training ratings")
    for row in rows:
        table.add_row(*row)
    Console().print(table)


def _write(folder: Path, model: RatingModel, test: Ratings) -> tuple[Path, Path]:
    """Write model and predictions, both or none."""
    predicted = model.predict(test.users, test.items)
    paths = folder / "model.npz", folder / "predictions.csv"
    with replace_files(*paths) as (factors, predictions):
        model.save(factors)
        with predictions.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(("user", "item", "rating", "predicted"))
            for user, item, given, value in zip(test.users, test.items, test.values, predicted, strict=True):
                name = (test.user_names[user], test.item_names[item])
                writer.writerow((*name, f"{given:g}", f"{value:.4f}"))
    return paths


@contextmanager
def _output(path: Path | None) -> Iterator[TextIO]:
    """A file that takes its name when it is whole, or standard output."""
    if path is None:
        yield sys.stdout
        return
    with replace_files(path) as (new,), new.open("w", newline="", encoding="utf-8") as file:
        yield file


def _require_place(path: Path, option: str) -> None:
    """Find out before a long run that its one file cannot be written."""
    if path.is_dir():
        raise ValueError(f"{option} {short(str(path), 120)} is a folder, expected a file to write")
    if not path.name:
        raise ValueError(f"{option} {short(str(path), 120)}, expected a file to write")
    require_writable(path.parent, option)


@contextmanager
def _stages() -> Iterator[Report]:
    """A bar with the name of what is going on and the time it still takes; none where nobody watches."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        now = ""

        def report(stage: str, fraction: float) -> None:
            nonlocal now
            if stage != now:
                for task in bar.task_ids:
                    bar.remove_task(task)
                bar.add_task(stage, total=1.0)
                now = stage
            bar.update(bar.task_ids[0], completed=fraction)

        yield report


if __name__ == "__main__":
    sys.exit(main())
