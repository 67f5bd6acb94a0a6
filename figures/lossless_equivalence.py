"""The reduced network, lifted back, is the full network in every layer: to rounding, at all times.

Source: docs/theory.md 3.2. The largest relative difference `‖W_l − lift(z)_l‖_F / ‖W_l‖_F` of any
layer, between a full, dense run and a run of its reduction to width `2r`. The law is exact for
every optimizer whose updates rotate with the weights. Adam divides entry by entry: it is the
control that must break it.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

import lowdim_jax as ld
from figures import runs, style
from figures.protocol import Arrays, Settings

OPTIMIZERS = {
    "plain": lambda rate: ld.GradientDescent(rate),
    "momentum": lambda rate: ld.GradientDescent(rate / 10, momentum=0.9),
    "Nesterov": lambda rate: ld.GradientDescent(rate / 10, momentum=0.9, nesterov=True),
    "weight decay": lambda rate: ld.GradientDescent(rate, weight_decay=0.3),
    "discrepant rates": lambda rate: ld.GradientDescent(rate / 2, alpha=3.0),
    "Adam": lambda rate: optax.adam(3 * rate),
}
CONTROL = "Adam"
EPS, UNIT = 2.0**-52, 1e-15


def compute(settings: Settings) -> Arrays:
    """For each optimizer: differences `(n, L)` of the layers, and losses `(n,)` of both runs."""
    target = runs.separated_target(settings)
    problem = ld.factorization(target.dense())
    start = runs.original(settings)
    reduction = ld.reduce(start, target)
    options = {
        "steps": settings["steps"],
        "record_every": settings["record_every"],
        "observe": _itself,
        "throw": True,
    }
    arrays = {}
    for name, build in OPTIMIZERS.items():
        optimizer = build(settings["learning_rate"])
        full = ld.gradient_descent(problem, start, optimizer, **options)
        reduced = ld.reduced_descent(reduction, optimizer, strict=name != CONTROL, **options)
        arrays["iteration"] = np.asarray(full.steps)
        arrays[f"{name}_difference"] = np.asarray(_differences(reduction, full.observed, reduced.observed))
        arrays[f"{name}_loss"] = np.asarray(full.losses)
        arrays[f"{name}_reduced_loss"] = np.asarray(reduced.losses)
    return arrays


def _itself(weights: Any) -> Any:
    return weights


@jax.jit
def _differences(reduction: Any, full: Any, reduced: Any) -> jax.Array:
    """Relative difference in every record and layer, `(n, L)`."""

    def row(record: Any) -> jax.Array:
        weights, layers = record
        pairs = zip(weights, reduction.lift(layers), strict=True)
        return jnp.stack(
            [jnp.linalg.norm(dense - lifted) / jnp.linalg.norm(dense) for dense, lifted in pairs]
        )

    return jax.lax.map(row, (full, reduced))


def plot(arrays: Arrays, settings: Settings) -> Figure:
    """Differences, a close-up of the smallest, and what the runs have learned meanwhile."""
    iteration = arrays["iteration"]
    looks = {
        "plain": {"color": style.ORIGINAL},
        "momentum": {"color": style.SECOND, "linestyle": (0, (1, 1.5))},
        "Nesterov": {"color": style.EXACT_RANK, "linestyle": (0, (5, 1.5))},
        "weight decay": {"color": "#A96F00", "linestyle": (0, (6, 1.5, 1, 1.5))},
        "discrepant rates": {"color": style.OTHER_RANK, "linestyle": (0, (9, 2))},
        CONTROL: {"color": style.DARK, "linestyle": (0, (2, 2))},
    }
    figure = style.new_figure(height=3.6)
    apart, close, loss = figure.subplots(1, 3)
    for name, look in looks.items():
        worst = np.max(arrays[f"{name}_difference"], axis=1)
        apart.plot(iteration, worst, **look, linewidth=1.6, label=name)
        if name != CONTROL:
            close.plot(iteration, worst / UNIT, **look, linewidth=1.6)
        unit = arrays[f"{name}_loss"][0]
        loss.plot(iteration, arrays[f"{name}_loss"] / unit, **look, linewidth=3.6, alpha=0.45)
        reduced = {**style.PREDICTED, **look}
        loss.plot(iteration, arrays[f"{name}_reduced_loss"] / unit, **reduced)
    apart.axhspan(1e-17, EPS, color="#EEEEEE", zorder=0)
    apart.text(0.97 * iteration[-1], EPS / 1.5, "rounding of one number", va="top", ha="right", fontsize=8.5)
    apart.set(yscale="log", ylim=(1e-17, 10), title="Relative difference, worst layer")
    close.axhspan(0, EPS / UNIT, color="#EEEEEE", zorder=0)
    close.set(ylim=(0, None), title=r"Close-up, in units of $10^{-15}$")
    loss.set(yscale="log", title="Loss, relative to its start")
    for axes in (apart, close, loss):
        axes.set(xlim=(0, iteration[-1]), xlabel="iteration")
        style.thousands(axes)
    grey = "#555555"
    loss.legend(
        handles=[
            Line2D([], [], color=grey, linewidth=3.6, alpha=0.45, label=f"full, {settings['d']}"),
            Line2D(
                [],
                [],
                **{**style.PREDICTED, "color": grey},
                label=f"reduced, {2 * settings['r']}",
            ),
        ],
        loc="upper right",
        title="width",
    )
    style.legend_above(figure, apart.get_legend_handles_labels()[0])
    return figure
