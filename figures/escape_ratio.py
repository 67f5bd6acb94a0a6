"""How many times longer the original network waits than the compressed one: a number set by depth.

Source: docs/theory.md 3.7. Rank one, `u* ⟂ v*` (as in a very wide network), gradient flow: the
time to halve the squared error, original over compressed, tends for `ε → 0` to `κ_L = k^{L−2}`,
where `k > 1` solves `PV ∫_0^k s^{L−1}/(1 − s²) ds = 0`. The original network is trained in its
exact reduction (3.2), with `d = 4`: the bulk does not act on the rest, whatever its size. The
compressed network's time is the exact one of 2.2.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, NullFormatter

import lowdim_jax as ld
from figures import style
from figures.protocol import Arrays, Settings

SIGMA = 1.0  # sets the unit of time only
RECORDS = 100


def compute(settings: Settings) -> Arrays:
    """For each depth `L`: half times `(n,)` of both networks, their ratio, and its limit `κ_L`."""
    axes = jnp.eye(4)
    target = ld.LowRank(axes[:, :1], jnp.array([SIGMA]), axes[:, 1:2])
    arrays = {}
    for depth, scales in ((int(key), value) for key, value in settings["scales"].items()):
        original, compressed = [], []
        for scale in scales:
            wait = compressed_half_time(depth=depth, scale=scale)
            reduction = ld.reduction.reduce_identity(target, depth=depth, scale=scale)
            compressed.append(wait)
            original.append(
                half_time(reduction.problem.loss, reduction.layers, within=2 * wait, rtol=settings["rtol"])
            )
        arrays |= {
            f"L{depth}_scale": np.array(scales),
            f"L{depth}_original": np.array(original),
            f"L{depth}_compressed": np.array(compressed),
            f"L{depth}_ratio": np.array(original) / np.array(compressed),
            f"L{depth}_predicted": np.array(ld.theory.escape_ratio(depth)),
        }
    return {**arrays, "limit": np.array(ld.theory.escape_ratio(np.inf))}


def compressed_half_time(*, depth: int, scale: float) -> float:
    """Time after which the compressed network has half its initial squared error."""
    start = scale**depth
    level = SIGMA - (SIGMA - start) / 2**0.5
    return float(ld.theory.mode_time(level, SIGMA, depth=depth, scale=scale))


def half_time(loss: Callable[[Any], Any], weights: Any, *, within: float, rtol: float) -> float:
    """Time at which gradient flow has halved the loss; each pass starts at the last record before."""
    start, half = 0.0, float(loss(weights)) / 2
    while within > rtol * start:
        times = jnp.linspace(0.0, within, RECORDS)
        flow = ld.gradient_flow(
            loss,
            weights,
            times,
            solver="implicit",
            rtol=rtol,
            observe=_itself,
            throw=True,
        )
        before = int(np.argmax(np.asarray(flow.losses) <= half)) - 1
        if before < 0:
            raise RuntimeError(f"the loss is not halved by t = {start + within}")
        start, within = start + float(times[before]), float(times[1])
        weights = jax.tree.map(lambda record, row=before: record[row], flow.observed)
    return start + within / 2


def _itself(weights: Any) -> Any:
    return weights


def plot(arrays: Arrays, settings: Settings) -> Figure:
    """The ratio against depth, and how it is approached as `ε` falls."""
    depths = [int(key) for key in settings["scales"]]
    colours = dict(zip(depths, style.shades(style.ORIGINAL, len(depths)), strict=True))
    figure = style.new_figure(height=3.6)
    ratio, approach = figure.subplots(1, 2)

    many = np.arange(3, 13)
    ratio.axhline(arrays["limit"], color=style.GREY, linewidth=0.9)
    ratio.annotate(
        f"$L\\to\\infty$: {arrays['limit']:.4f}",
        (many[-1], arrays["limit"]),
        (0, 4),
        textcoords="offset points",
        ha="right",
    )
    ratio.plot(many, [ld.theory.escape_ratio(int(depth)) for depth in many], **style.PREDICTED, marker="x")
    for depth in depths:
        found = arrays[f"L{depth}_ratio"][-1]
        ratio.plot(depth, found, "o", color=colours[depth], markersize=8, zorder=1.5)
        ratio.annotate(f"{found:.4f}", (depth, found), (9, -9), textcoords="offset points")
    ratio.set(
        xlabel="depth $L$",
        ylabel=r"waiting time, original / compressed",
        ylim=(1.15, 1.5),
        title=r"At the smallest $\varepsilon$",
    )
    ratio.xaxis.set_major_locator(MaxNLocator(integer=True))

    for depth in depths:
        scale = arrays[f"L{depth}_scale"]
        gap = np.abs(arrays[f"L{depth}_ratio"] - arrays[f"L{depth}_predicted"])
        slope = gap[-1] * (scale / scale[-1]) ** (depth - 2)
        approach.plot(scale, slope, color=style.GREY, linewidth=0.9)
        approach.plot(scale, gap, "o", color=colours[depth], markersize=7)
    approach.set(
        xscale="log",
        yscale="log",
        xlabel=r"initialization scale $\varepsilon$",
        title=r"Distance to the prediction, $|$measured$\,-\,\kappa_L|$",
    )
    approach.yaxis.set_minor_formatter(NullFormatter())
    style.legend_above(
        figure,
        [
            Line2D([], [], linestyle="", marker="o", markersize=8, color=c, label=f"$L={depth}$")
            for depth, c in colours.items()
        ]
        + [
            Line2D([], [], **style.PREDICTED, marker="x", label=r"predicted $\kappa_L$"),
            Line2D([], [], color=style.GREY, linewidth=0.9, label=r"slope $\varepsilon^{L-2}$"),
        ],
    )
    return figure
