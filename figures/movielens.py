"""Held-out error of ratings: original and compressed network, and alternating minimization.

Source: the paper's MovieLens-100K figure (943 users, 1682 films, `r̂ = 10`, depth 3).

`--data DIR` names a folder with `u1.base` and `u1.test`, or with `u.data` alone, of which a fifth is held
out: MovieLens-100K as it is distributed, or other ratings in one of the formats of docs/ratings.md.
Without it the figure shows a synthetic stand-in, written in the same format and read by the same reader:
user and item effects, a matrix of rank 4 and noise, rounded to 1 … 5. The figure's arrays record which.

The matrix to complete is that of the ratings themselves, not centred, and without taking out user and item
effects (their error alone is the horizontal line): `lowdim-ratings` does both, and predicts better. Both
networks start at one scale `ε`, `ε^L` a fraction `start` of the surrogate's largest singular value, and
take the same rate, a fraction of the edge of stability. All methods fit everything they are given, in
single precision, and nothing is stopped early: where a curve rises, it overfits. The paper's alternating
minimization falls to 0.67 and rises, as it does here with next to no ridge. Its networks end at 0.53, which a
start of 0.1 with α = 5 gives; from the smaller start taken here they end lower.

The original network, 943 wide, needs the whole matrix at every step and completes it under a dense mask,
which takes minutes; the others work on the observed entries.

Seconds are the number of iterations times the time of one, measured on a few of them, without
compilation.
"""

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import lowdim_jax as ld
from figures import runs, style
from figures.protocol import Arrays, Settings
from lowdim_jax import baselines, ratings

STAND_IN = "synthetic stand-in"


def compute(settings: Settings) -> Arrays:
    """Half the mean squared error on held-out ratings along training, and seconds an iteration."""
    with tempfile.TemporaryDirectory() as folder:
        if not settings["data"]:
            write_stand_in(Path(folder), settings)
        train, test = read(Path(settings["data"] or folder), settings["seed"])
    name = Path(settings["data"]).resolve().name if settings["data"] else STAND_IN
    counts = f"{train.shape[0]:,} users, {train.shape[1]:,} items, {len(train.values):,} ratings"
    effects = ratings.model_of(train, ratings.estimate_effects(train))
    arrays = {
        "data": np.array(f"{name}: {counts}, {len(test.values):,} held out"),
        "effects": np.array(effects.rmse(test) ** 2 / 2),
    }

    problem = ld.observed_completion(
        train.users, train.items, train.values.astype(np.float32), shape=train.shape
    )
    depth, rank = settings["depth"], settings["rank"]
    top = 1 / float(ld.max_learning_rate(problem, depth=2))  # the edge of two factors is 1/σ_1
    scale = (settings["start"] * top) ** (1 / depth)
    rate = settings["edge_fraction"] * float(ld.max_learning_rate(problem, depth=depth))
    wide = ld.full_widths(*train.shape, depth=depth)
    key = jax.random.key(settings["seed"])
    error = half_squared_error(test)
    for method, network, on in (
        ("original", ld.orthogonal(key, wide, scale=scale, dtype=jnp.float32), masked(train)),
        ("compressed", ld.compress(problem, depth=depth, rank=rank, scale=scale), problem),
    ):
        network = jax.tree.map(lambda layer: layer.astype(jnp.float32), network)
        arrays |= descent(method, on, network, rate, error, settings)
    for k, ridge in enumerate(settings["ridges"]):
        arrays |= alternation(f"als_{k}", problem, ridge, error, settings)
    return arrays


def read(folder: Path, seed: int) -> Sequence[ratings.Ratings]:
    """Ratings to train on and to test on, from a folder in MovieLens-100K's layout."""
    if (folder / "u1.base").exists():
        return ratings.read_ratings(folder / "u1.base", folder / "u1.test")
    if (folder / "u.data").exists():
        (everything,) = ratings.read_ratings(folder / "u.data")
        return ratings.hold_out(everything, 0.2, seed=seed)
    raise ValueError(f"--data {str(folder)!r} holds neither u1.base nor u.data")


def write_stand_in(folder: Path, settings: Settings) -> None:
    """Synthetic ratings as a file `u.data`: effects, low rank and noise, of few and of many raters."""
    rng = np.random.default_rng(settings["seed"])
    shape = users, items = settings["users"], settings["items"]
    taste = rng.standard_normal((users, 4)) @ rng.standard_normal((4, items)) / 2.5
    scores = 3.5 + 0.4 * rng.standard_normal((users, 1)) + 0.5 * rng.standard_normal(items) + taste
    scores = np.clip(np.rint(scores + 0.7 * rng.standard_normal(shape)), 1, 5)
    popularity = rng.lognormal(size=(users, 1)) * rng.lognormal(size=items)
    chosen = rng.choice(
        users * items, settings["ratings"], replace=False, p=(popularity / popularity.sum()).ravel()
    )
    lines = (f"{k // items + 1}\t{k % items + 1}\t{scores.flat[k]:.0f}\t0\n" for k in chosen)
    (folder / "u.data").write_text("".join(lines), "utf-8")


def masked(train: ratings.Ratings) -> Any:
    """The training ratings as a dense matrix and its mask."""
    matrix, mask = np.zeros(train.shape, np.float32), np.zeros(train.shape, bool)
    matrix[train.users, train.items], mask[train.users, train.items] = train.values, True
    return ld.completion(matrix, mask)


def half_squared_error(test: ratings.Ratings) -> Callable[[ld.Weights], jax.Array]:
    """`½ mean (W_ij − y_ij)²` over held-out ratings, as a function of the weights."""
    users, items = jnp.asarray(test.users), jnp.asarray(test.items)
    values = jnp.asarray(test.values, jnp.float32)
    return lambda weights: jnp.mean((ld.entries(weights, users, items) - values) ** 2) / 2


def descent(
    name: str, problem: Any, network: ld.Weights, rate: float, error: Callable, settings: Settings
) -> Arrays:
    """Errors along gradient descent, and seconds a step."""

    def run(steps: int) -> ld.Trajectory:
        return ld.gradient_descent(
            problem.loss,
            network,
            ld.GradientDescent(rate),
            steps=steps,
            record_every=settings["record_every"],
            observe=error,
            throw=True,
        )

    few = 2 * settings["record_every"]
    _, seconds = runs.timed(lambda: run(few), repeats=2)
    whole = run(settings["steps"])
    return {
        "iteration": np.asarray(whole.steps),
        name: np.asarray(whole.observed, float),
        f"{name}_seconds": np.array(seconds / few),
    }


def alternation(name: str, problem: Any, ridge: float, error: Callable, settings: Settings) -> Arrays:
    """Errors after each sweep of alternating minimization, and seconds a sweep."""
    error, factors, errors, seconds = jax.jit(error), None, [], []
    for _ in range(settings["sweeps"]):
        start = time.perf_counter()
        factors = jax.block_until_ready(
            baselines.alternating_minimization(
                problem, rank=settings["rank"], ridge=ridge, sweeps=1, start=factors
            )
        )
        seconds.append(time.perf_counter() - start)
        errors.append(float(error(factors)))
    return {name: np.array(errors), f"{name}_seconds": np.array(min(seconds))}


def plot(arrays: Arrays, settings: Settings) -> Figure:
    """Two panels, error against iterations and against seconds."""
    low, high = settings["ridges"]
    lines = {
        "original": {"color": style.ORIGINAL, "label": "original", **style.THIN},
        "compressed": {
            **style.THICK,
            "color": style.COMPRESSED,
            "label": rf"compressed, $\hat{{r}}={settings['rank']}$",
        },
        "als_0": {"color": style.OTHER_RANK, "linestyle": (0, (1, 1.2)), "label": f"ALS, ridge {low:g}"},
        "als_1": {"color": style.EXACT_RANK, "linestyle": (0, (5, 1.2)), "label": f"ALS, ridge {high:g}"},
    }
    figure = style.new_figure(height=3.7)
    by_iteration, by_second = figure.subplots(1, 2, sharey=True)
    handles = []
    for name, look in lines.items():
        errors = arrays[name]
        iteration = arrays["iteration"] if name in ("original", "compressed") else 1 + np.arange(len(errors))
        look = {**style.MEASURED, **look}
        handles += by_iteration.plot(iteration, errors, **look)
        by_second.plot(iteration * arrays[f"{name}_seconds"], errors, **look)
    for axes in (by_iteration, by_second):
        line = axes.axhline(arrays["effects"], **style.PREDICTED, label="user and item effects")
    handles.append(line)
    by_iteration.set(
        xscale="log",
        yscale="log",
        ylim=(0.35, 10),
        xlabel="iteration, or sweep",
        ylabel="held-out error, half the mean square",
    )
    by_iteration.set_yticks([0.4, 0.5, 0.7, 1, 2, 5, 10], minor=False)
    by_iteration.yaxis.set_major_formatter("{x:g}")
    by_iteration.minorticks_off()
    by_second.set(xscale="log", xlabel="seconds, measured, without compilation")
    by_iteration.set_title(str(arrays["data"]), loc="left", fontsize=9, fontweight="bold")
    style.legend_above(figure, handles)
    return figure
