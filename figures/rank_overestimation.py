"""Overestimating the rank costs the compressed network no iterations, only time and a tiny floor.

Source: the paper's compressed network takes any upper estimate `r̂ ≥ r` (docs/theory.md 1.2). By
2.1 the extra `r̂ − r` components move alone, from `ε^L` towards 0, so the final error they leave is
known beforehand, `√(r̂ − r) σ_bulk(t) / ‖Φ‖_F`; an estimate below `r` leaves what it cannot hold,
`√(Σ_{i > r̂} σ*_i²) / ‖Φ‖_F`.

The time of one iteration is measured over a short run without compilation, the loss formed densely
for all networks.
"""

import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

import lowdim_jax as ld
from figures import runs, style
from figures.protocol import Arrays, Settings

ROUNDING = 1e-14


def compute(settings: Settings) -> Arrays:
    """Errors `(n, ranks)`, the final ones predicted, and seconds an iteration."""
    target = runs.separated_target(settings)
    problem = ld.factorization(target.dense())
    depth, scale, rate = settings["depth"], settings["scale"], settings["learning_rate"]

    errors, seconds, predicted = [], [], []
    for rank in settings["ranks"]:
        weights = ld.compress(problem, depth=depth, rank=rank, scale=scale)
        trajectory, duration = runs.timed_descent(problem, weights, settings)
        errors.append(trajectory.observed)
        seconds.append(duration)
        values = jnp.pad(target.singular_values, (0, max(0, rank - settings["r"])))
        learned = ld.theory.mode_trajectory(
            rate * settings["steps"], values[:rank], depth=depth, scale=scale
        )
        missed = jnp.concatenate([values[:rank] - learned, values[rank:]])
        predicted.append(jnp.linalg.norm(missed) / jnp.linalg.norm(values))
    original, full = runs.timed_descent(problem, runs.original(settings), settings)
    return {
        "iteration": np.asarray(original.steps),
        "errors": np.stack([np.asarray(error) for error in errors], axis=1),
        "predicted": np.asarray(jnp.stack(predicted)),
        "seconds": np.array(seconds),
        "original_seconds": np.array(full),
    }


def plot(arrays: Arrays, settings: Settings) -> Figure:
    """Error against iteration, final error against `r̂`, time of an iteration against `r̂`."""
    r, ranks = settings["r"], settings["ranks"]
    figure = style.new_figure(height=3.3)
    course, final, cost = figure.subplots(1, 3, width_ratios=(1.5, 1, 1))
    over = [rank for rank in ranks if rank > r]
    ramp = dict(zip(over, style.shades(style.COMPRESSED, len(over)), strict=True))
    for k, rank in enumerate(ranks):
        exact = rank == r
        colour = style.EXACT_RANK if exact else ramp.get(rank, style.GREY)
        course.plot(
            arrays["iteration"],
            arrays["errors"][:, k],
            color=colour,
            linewidth=1.6,
            linestyle=(0, (1, 1.2)) if rank < r else (0, (5, 1.2)) if exact else "-",
            label=f"{rank}" + (" = $r$" if exact else " < $r$" if rank < r else ""),
        )
    course.set(
        yscale="log",
        xlim=(0, arrays["iteration"][-1]),
        ylim=(1e-16, 3),
        xlabel="iteration",
        ylabel=r"recovery error $\|W-\Phi\|_F\,/\,\|\Phi\|_F$",
    )
    style.thousands(course)
    course.legend(title=r"compressed, $\hat{r}$", loc="lower left")

    final.plot(
        ranks, arrays["errors"][-1], "o", color=style.COMPRESSED, markersize=7.5, label="measured"
    )
    seen = arrays["predicted"] > ROUNDING
    final.plot(
        np.array(ranks)[seen],
        arrays["predicted"][seen],
        "x",
        color=style.DARK,
        markersize=6,
        label="predicted",
    )
    final.axhspan(1e-17, ROUNDING, color="#EEEEEE", zorder=0)
    final.text(max(ranks), ROUNDING / 2, "rounding", va="top", ha="right", fontsize=8.5)
    final.set(yscale="log", ylim=(1e-16, 3), xlabel=r"$\hat{r}$", ylabel="final error")
    final.legend(loc="center right", bbox_to_anchor=(1, 0.35))

    milli = 1e3
    cost.plot(ranks, milli * arrays["seconds"], "o-", color=style.COMPRESSED, markersize=5)
    cost.axhline(milli * arrays["original_seconds"], color=style.ORIGINAL, linewidth=1.6)
    cost.set(xlabel=r"$\hat{r}$", ylabel="milliseconds an iteration")
    cost.set_ylim(0, 1.12 * milli * max(arrays["original_seconds"], *arrays["seconds"]))
    cost.legend(
        handles=[
            Line2D([], [], color=style.ORIGINAL, label="original"),
            Line2D([], [], color=style.COMPRESSED, marker="o", label="compressed"),
        ],
        loc="best",
    )
    return figure
