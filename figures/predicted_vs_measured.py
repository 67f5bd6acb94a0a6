"""Closed-form singular values against those measured along gradient descent, for three depths.

Source: docs/theory.md 2.1–2.4 and 1.6. With the spectral initialization every singular value of the
compressed network moves alone; the closed form predicts its whole course and when it is fitted,
within 5% of its target. Nothing is adjusted to the measurement.

The prediction is for gradient flow at time `t = η × iteration`; gradient descent follows it to
first order in `η`, here `rate` times the edge of stability.
"""

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

import lowdim_jax as ld
from figures import style
from figures.protocol import Arrays, Settings


def compute(settings: Settings) -> Arrays:
    """For each depth: times `(n,)`, measured and predicted values `(n, r)`, fit times `(r,)`."""
    values = jnp.asarray(settings["targets"])
    scale, tolerance = settings["scale"], settings["fit_tolerance"]
    shape = (settings["d"], settings["d"])
    target = ld.random_target(jax.random.key(settings["seed"]), shape, values)
    problem = ld.factorization(target.dense())
    arrays = {"targets": np.asarray(values)}
    for depth in settings["depths"]:
        fit_time = ld.theory.fit_time(values, depth=depth, scale=scale, tolerance=tolerance)
        rate = settings["edge_fraction"] * ld.max_learning_rate(problem, depth=depth)
        record_every = int(np.ceil(1.12 * fit_time[-1] / rate / settings["records"]))
        trajectory = ld.gradient_descent(
            problem.loss,
            ld.compress(
                problem, depth=depth, rank=settings["factor"] * len(values), scale=scale
            ),
            ld.GradientDescent(rate),
            steps=record_every * settings["records"],
            record_every=record_every,
            observe=lambda weights: ld.spectra.alignment(weights, target),
            throw=True,
        )
        t = rate * trajectory.steps.astype(rate.dtype)
        predicted = ld.theory.mode_trajectory(
            t[:, None], values[None, :], depth=depth, scale=scale
        )
        fits = ld.spectra.is_fitted(trajectory.observed, values, value=tolerance)
        for name, array in {
            "time": t,
            "measured": trajectory.observed.singular_values,
            "predicted": predicted,
            "predicted_fit": fit_time,
            "measured_fit": ld.spectra.first_time(t, fits),
            "learning_rate": rate,
        }.items():
            arrays[f"L{depth}_{name}"] = np.asarray(array)
    return arrays


def plot(arrays: Arrays, settings: Settings) -> Figure:
    """One panel a depth."""
    targets, tolerance = arrays["targets"], settings["fit_tolerance"]
    colours = style.shades(style.COMPRESSED, len(targets))
    figure = style.new_figure(height=3.6)
    panels = figure.subplots(1, len(settings["depths"]), sharey=True)
    for axes, depth in zip(panels, settings["depths"], strict=True):
        t, measured, predicted, fit, found = (
            arrays[f"L{depth}_{name}"]
            for name in ("time", "measured", "predicted", "predicted_fit", "measured_fit")
        )
        gap = np.max(np.abs(measured - predicted) / targets)
        late = np.max(np.abs(found / fit - 1))
        for i, colour in enumerate(colours):
            axes.plot(t, measured[:, i], color=colour, linewidth=3.6)
            axes.plot(t, predicted[:, i], **style.PREDICTED)
            axes.plot(
                fit[i],
                (1 - tolerance) * targets[i],
                "o",
                color=style.DARK,
                markerfacecolor="white",
                markersize=5.5,
                zorder=4,
            )
        axes.set(xlim=(0, t[-1]), xlabel=r"time $t$ = learning rate × iteration")
        axes.set_title(f"depth $L={depth}$", pad=20)
        axes.text(
            0.5,
            1.025,
            f"largest gap {gap:.1%} of $\\sigma^*_i$, fit times within {late:.1%}",
            transform=axes.transAxes,
            ha="center",
            fontsize=8.5,
            color="#555555",
        )
    for i, value in enumerate(targets, start=1):
        panels[-1].annotate(
            rf"$\sigma^*_{{{i}}}$",
            (1.02, value),
            xycoords=("axes fraction", "data"),
            va="center",
            annotation_clip=False,
        )
    panels[0].set(ylim=(0, 1.06 * targets[0]), ylabel=r"singular value $\sigma_i(t)$")
    style.legend_above(
        figure,
        [
            Line2D([], [], color=style.COMPRESSED, linewidth=3.6, label="measured, compressed net"),
            Line2D([], [], **style.PREDICTED, label="predicted, closed form"),
            Line2D(
                [],
                [],
                linestyle="",
                marker="o",
                color=style.DARK,
                markerfacecolor="white",
                label=f"predicted to be fitted within {tolerance:.0%}",
            ),
        ],
    )
    return figure
