"""A network of width a million, trained exactly: a step costs the same, fit times have a limit.

Source: docs/theory.md 3.3 and 3.4. `ld.sample` draws a Haar-initialized network of width `d` and
its target already reduced, so that a step costs `O(L r³)`; the dense network's step costs
`O(L d³)`. The overlap of left and right singular vectors, of order `d^{−1/2}`, is all that a fit
time depends on: it scatters about the limit `d → ∞` (3.7), where the overlap vanishes.

Seconds are those of whole runs without compilation, over the number of steps.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

import lowdim_jax as ld
from figures import runs, style
from figures.protocol import Arrays, Settings

REPEATS = 5


def compute(settings: Settings) -> Arrays:
    """Fit times `(widths, samples, r)` and their limit, seconds a step at each width and dense."""
    values = jnp.asarray(settings["targets"])
    rate, depth, scale = settings["learning_rate"], settings["depth"], settings["scale"]
    level = (1 - settings["fit_tolerance"]) * values

    def train(reduction: Any, **options: Any):
        return ld.reduced_descent(
            reduction, ld.GradientDescent(rate), steps=settings["steps"], throw=True, **options
        )

    def fit_times(reduction: Any) -> jax.Array:
        trajectory = train(reduction, record_every=settings["record_every"], observe=_core_singular_values)
        return rate * ld.spectra.crossing_time(trajectory.steps, trajectory.observed, level)

    times, seconds, dense_seconds = [], [], []
    for d in settings["widths"]:
        keys = jax.random.split(jax.random.key(settings["seed"]), settings["samples"])
        reductions = (ld.sample(key, d, values, depth=depth, scale=scale) for key in keys)
        times.append([fit_times(reduction) for reduction in reductions])
        reduction = ld.sample(keys[0], d, values, depth=depth, scale=scale)
        _, duration = runs.timed(
            lambda reduction=reduction: train(reduction, record_every=settings["steps"]),
            repeats=REPEATS,
        )
        seconds.append(duration / settings["steps"])
    for d in settings["dense_widths"]:
        target = ld.random_target(jax.random.key(settings["seed"]), (d, d), values)
        problem = ld.factorization(target.dense())
        start = ld.orthogonal(jax.random.key(1), ld.full_widths(d, d, depth=depth), scale=scale)
        steps = int(np.clip(settings["dense_work"] / d**3, 3, 500))
        _, duration = runs.timed(
            lambda problem=problem, start=start, steps=steps: ld.gradient_descent(
                problem.loss, start, ld.GradientDescent(rate), steps=steps, record_every=steps, throw=True
            ),
            repeats=REPEATS,
        )
        dense_seconds.append(duration / steps)

    r = len(values)
    axes = jnp.eye(2 * r)
    orthogonal = ld.LowRank(axes[:, :r], values, axes[:, r:])
    limit = fit_times(ld.reduction.reduce_identity(orthogonal, depth=depth, scale=scale))
    return {
        "fit_times": np.array(times),
        "limit": np.asarray(limit),
        "seconds": np.array(seconds),
        "dense_seconds": np.array(dense_seconds),
    }


def _core_singular_values(layers: Any) -> jax.Array:
    return ld.spectra.singular_values(ld.reduction.cores(layers))[: layers[0].core.shape[0] // 2]


def plot(arrays: Arrays, settings: Settings) -> Figure:
    """Seconds a step, fit times, and their scatter about the limit, against width."""
    d, dense = np.array(settings["widths"]), np.array(settings["dense_widths"])
    limit, times = arrays["limit"], arrays["fit_times"]
    figure = style.new_figure(height=3.7)
    cost, fit, scatter = figure.subplots(1, 3)

    seconds, full = arrays["seconds"], arrays["dense_seconds"]
    dotted = {"linestyle": (0, (1, 2)), "linewidth": 1.3}
    cost.plot(dense, full, "o-", color=style.ORIGINAL, markersize=5, label="original, dense")
    beyond = np.array([dense[-1], d[-1]])
    cubic = full[-1] * (beyond / dense[-1]) ** 3
    cost.plot(beyond, cubic, color=style.ORIGINAL, **dotted, label="continued as $d^3$")
    reduced = f"reduced to width {2 * len(limit)}"
    cost.plot(d, seconds, "s-", color=style.EXACT_RANK, markersize=5, label=reduced)
    cost.set(yscale="log", ylim=(1e-6, 1e4), title="Seconds a step")
    cost.legend(loc="lower right", bbox_to_anchor=(1, 0.18))

    shades = style.shades(style.EXACT_RANK, len(limit))
    jitter = np.geomspace(0.85, 1.18, settings["samples"])
    deviation = np.sqrt(np.mean((times / limit - 1) ** 2, axis=1))
    handles = []
    for i, colour in enumerate(shades):
        fit.plot(d[:, None] * jitter, times[:, :, i], "o", color=colour, markersize=2.5)
        fit.axhline(limit[i], **style.PREDICTED)
        label = rf"$\sigma^*={settings['targets'][i]:g}$"
        handles += scatter.plot(d, deviation[:, i], "o", color=colour, markersize=5, label=label)
    fit.set(
        ylim=(0, 1.3 * np.max(times)),
        title=f"Time to be fitted within {settings['fit_tolerance']:.0%}",
    )
    fit.legend(
        handles=[
            *handles,
            Line2D([], [], **style.PREDICTED, label=r"$d\to\infty$"),
        ],
        loc="upper center",
        ncols=3,
        columnspacing=1.0,
        handlelength=1.6,
        handletextpad=0.4,
    )
    law = np.sqrt(np.mean(deviation**2 * d[:, None])) / np.sqrt(d)
    slope = scatter.plot(d, law, color=style.GREY, linewidth=0.9, zorder=1, label=r"slope $d^{-1/2}$")
    scatter.set(yscale="log", title=r"Its scatter about the limit, relative")
    scatter.legend(handles=slope, loc="upper right")
    for axes in (cost, fit, scatter):
        axes.set(xscale="log", xlabel="width $d$")
    return figure
