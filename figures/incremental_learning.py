"""Singular values rise one after another, each already aligned with its target's vectors.

Source: the paper's incremental-learning figure (three surfaces over index and iteration);
docs/theory.md 1.1 and 1.6. Top row the original network, bottom row the compressed one, here trained on
the whole matrix; `incremental-learning-sensing` and `incremental-learning-completion` have a part of it.

Singular vectors are matched by order, which means nothing while singular values nearly coincide
(docs/theory.md 6): an alignment is drawn only where its component's singular value is at least 5%
away from both its neighbours'. Two components beyond the target's rank are drawn too: they stay at
zero, so they have no alignment.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

import lowdim_jax as ld
from figures import runs, style
from figures.protocol import Arrays, Settings

GAP = 0.05
NETWORKS = {"original": style.ORIGINAL, "compressed": style.COMPRESSED}


def compute(settings: Settings) -> Arrays:
    """Singular values `(n, r + extra)` and alignments `(n, r)` of both networks."""
    target = runs.separated_target(settings)
    problem = runs.problem_of(target, settings)
    shown = settings["r"] + settings["extra"]

    def observe(weights: ld.Weights):
        parts = ld.spectra.alignment(weights, target)
        return ld.spectra.singular_values(weights, rank=shown), parts.left, parts.right

    arrays = {"targets": np.asarray(target.singular_values)}
    for name, weights in runs.both(problem, settings).items():
        trajectory = runs.descent(problem, weights, settings, observe=observe)
        arrays["iteration"] = np.asarray(trajectory.steps)
        values, left, right = jax.tree.map(np.asarray, trajectory.observed)
        arrays |= {f"{name}_values": values, f"{name}_left": left, f"{name}_right": right}
    return arrays


def distinct(arrays: Arrays, name: str) -> np.ndarray:
    """Whether `σ_i` is away from its neighbours, so that it has vectors of its own, `(n, r)`."""
    r = len(arrays["targets"])
    values = arrays[f"{name}_values"]
    below = values[:, :r] > (1 + GAP) * values[:, 1 : r + 1]
    return below & np.pad(below[:, :-1], ((0, 0), (1, 0)), constant_values=True)


def plot(arrays: Arrays, settings: Settings) -> Figure:
    """Surfaces over component and iteration, one strip a component."""
    r = settings["r"]
    figure = style.new_figure(height=6.2)
    panels = figure.subplots(2, 3, subplot_kw={"projection": "3d", "computed_zorder": False})
    titles = (
        r"singular value $\sigma_i$",
        r"left, $|\langle u_i, u^*_i\rangle|$",
        r"right, $|\langle v_i, v^*_i\rangle|$",
    )
    for row, (name, colour) in zip(panels, NETWORKS.items(), strict=True):
        values = arrays[f"{name}_values"]
        drawn = distinct(arrays, name)
        for axes, title, heights in zip(
            row,
            titles,
            (
                values,
                np.where(drawn, arrays[f"{name}_left"], np.nan),
                np.where(drawn, arrays[f"{name}_right"], np.nan),
            ),
            strict=True,
        ):
            top = arrays["targets"][0] if heights is values else 1.0
            _strips(axes, arrays["iteration"], heights, top, colour)
            axes.set(
                zlim=(0, top),
                xlim=(0.4, r + settings["extra"] + 0.6),
                ylim=(0, arrays["iteration"][-1]),
                title=f"{name}: {title}",
                xlabel="component $i$",
                ylabel="iteration",
            )
            axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
            axes.yaxis.set_major_locator(MaxNLocator(4))
            axes.yaxis.set_major_formatter("{x:,.0f}")
            axes.view_init(elev=28, azim=-52)
    return figure


def _strips(axes: Any, iteration: np.ndarray, heights: np.ndarray, top: float, colour: str) -> None:
    ramp = LinearSegmentedColormap.from_list("height", [style.shades(colour, 9)[-1], colour])
    for i in range(heights.shape[1]):  # far to near
        z = heights[:, i]
        reached = np.fmax(z, np.append(z[1:], z[-1]))  # one colour up each step of the staircase
        x, y = np.meshgrid([i + 0.6, i + 1.4], iteration, indexing="ij")
        axes.plot_surface(
            x,
            y,
            np.stack([z, z]),
            facecolors=ramp(np.nan_to_num(np.stack([reached, reached]) / top)),
            shade=False,
            rcount=2,
            ccount=len(iteration),
            linewidth=0,
        )


def variants(arrays: Arrays, settings: Settings) -> dict[str, Figure]:
    """The same in two dimensions, a line a component: what the surfaces hide behind one another."""
    figure = style.new_figure(height=4.8)
    panels = figure.subplots(2, 3, sharex=True)
    titles = (
        r"singular value $\sigma_i$",
        r"left, $|\langle u_i, u^*_i\rangle|$",
        r"right, $|\langle v_i, v^*_i\rangle|$",
    )
    iteration, r = arrays["iteration"], settings["r"]
    for row, name in zip(panels, NETWORKS, strict=True):
        colours, drawn = style.shades(NETWORKS[name], r), distinct(arrays, name)
        for axes, title, key in zip(row, titles, ("values", "left", "right"), strict=True):
            heights = arrays[f"{name}_{key}"]
            if key == "values":
                axes.plot(iteration, heights[:, r:], color=style.GREY, linewidth=1.2, linestyle=(0, (1, 1.5)))
            else:
                heights = np.where(drawn, heights, np.nan)
            for i in range(r):
                axes.plot(iteration, heights[:, i], color=colours[i], linewidth=1.6)
            axes.set(title=f"{name}: {title}", xlim=(0, iteration[-1]), ylim=(0, None))
            style.thousands(axes)
        row[0].set_ylabel("singular value")
        row[1].set_ylabel("alignment")
    for axes in panels[-1]:
        axes.set_xlabel("iteration")
    handles = [
        Line2D([], [], color=style.shades(style.ORIGINAL, 2)[0], label="component 1 (darkest)"),
        Line2D([], [], color=style.shades(style.ORIGINAL, 2)[1], label=f"component {r} (lightest)"),
        Line2D([], [], color=style.GREY, linestyle=(0, (1, 1.5)), label="beyond the target's rank"),
    ]
    style.legend_above(figure, handles)
    return {"lines": figure}


def animate(arrays: Arrays, settings: Settings) -> tuple[Figure, Callable[[int], None], int]:
    """Singular values as bars that rise to the target's, iteration by iteration."""
    figure = style.new_figure(width=6.5, height=2.8)
    panels = figure.subplots(1, 2, sharey=True)
    r, frames = settings["r"], 40
    shown = np.linspace(0, len(arrays["iteration"]) - 1, frames).round().astype(int)
    index = np.arange(1, r + 1)
    bars = {}
    for axes, name in zip(panels, NETWORKS, strict=True):
        axes.bar(index, arrays["targets"], color="none", edgecolor=style.DARK, linestyle="--", label="target")
        bars[name] = axes.bar(index, np.zeros(r), color=NETWORKS[name], label=name)
        axes.set(xlabel="component $i$", title=name)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    panels[0].set_ylabel(r"singular value $\sigma_i$")
    panels[0].legend(loc="upper right", handles=[bars["original"], panels[0].containers[0]])
    clock = figure.suptitle("iteration 0", fontsize=10)

    def update(frame: int) -> None:
        for name, of_network in bars.items():
            for bar, height in zip(of_network, arrays[f"{name}_values"][shown[frame]], strict=False):
                bar.set_height(height)
        clock.set_text(f"iteration {arrays['iteration'][shown[frame]]:,}")

    return figure, update, frames
