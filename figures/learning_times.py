"""Waiting times are inverse to singular values, and a power of the initialization scale.

Source: docs/theory.md 2.2 and 2.4. For `L ≥ 3` and `ε → 0`, component i is learned at
`t_i = ε^{−(L−2)} / ((L−2) σ*_i)`, so that `t_i σ*_i` is the same for all components; for `L = 2` at
`ln(σ*_i/ε²) / (2σ*_i)`, a logarithm in `ε`. Dashed: the exact time of 2.2, for any `ε`.
Learned means half way to its target, `level`. Measured in compressed networks trained by gradient
descent at `rates` times the edge of stability.
"""

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter

import lowdim_jax as ld
from figures import style
from figures.protocol import Arrays, Settings


def compute(settings: Settings) -> Arrays:
    """For each depth `L`: `ε`, times `(n, r)` to `level · σ*_i` measured, exact and by the law."""
    values = jnp.asarray(settings["targets"])
    level = settings["level"]
    shape = (settings["d"], settings["d"])
    target = ld.random_target(jax.random.key(settings["seed"]), shape, values)
    problem = ld.factorization(target.dense())
    arrays = {"targets": np.asarray(values)}
    for depth, scales in ((int(key), value) for key, value in settings["scales"].items()):
        rate = settings["edge_fractions"][str(depth)] * ld.max_learning_rate(problem, depth=depth)
        measured = []
        for scale in scales:
            last = ld.theory.mode_time(level * values, values, depth=depth, scale=scale)[-1]
            record_every = int(np.ceil(1.1 * last / rate / settings["records"]))
            trajectory = ld.gradient_descent(
                problem.loss,
                ld.compress(problem, depth=depth, rank=len(values), scale=scale),
                ld.GradientDescent(rate),
                steps=record_every * settings["records"],
                record_every=record_every,
                observe=ld.spectra.singular_values,
                throw=True,
            )
            times = ld.spectra.crossing_time(trajectory.steps, trajectory.observed, level * values)
            measured.append(rate * times)
        fine = jnp.geomspace(scales[0], scales[-1], 60)[:, None]
        exact = ld.theory.mode_time(
            level * values[None, :], values[None, :], depth=depth, scale=fine
        )
        law = ld.theory.fit_time_small_scale(
            values[None, :], depth=depth, scale=fine, tolerance=1 - level
        )
        at_runs = ld.theory.mode_time(
            level * values[None, :],
            values[None, :],
            depth=depth,
            scale=jnp.asarray(scales)[:, None],
        )
        for name, array in {
            "scale": scales,
            "measured": jnp.stack(measured),
            "predicted": at_runs,
            "fine": fine[:, 0],
            "exact": exact,
            "law": law,
        }.items():
            arrays[f"L{depth}_{name}"] = np.asarray(array)
    return arrays


def plot(arrays: Arrays, settings: Settings) -> Figure:
    """One panel a depth, `t_i σ*_i` against `ε`."""
    targets = arrays["targets"]
    figure = style.new_figure(height=3.5)
    depths = list(settings["scales"])
    colours = style.shades(style.COMPRESSED, len(targets))
    for axes, depth in zip(figure.subplots(1, len(depths)), depths, strict=True):
        fine, scale = arrays[f"L{depth}_fine"], arrays[f"L{depth}_scale"]
        for i, (value, colour) in enumerate(zip(targets, colours, strict=True)):
            axes.plot(fine, value * arrays[f"L{depth}_law"][:, i], color=style.GREY, linewidth=0.9)
            axes.plot(fine, value * arrays[f"L{depth}_exact"][:, i], **style.PREDICTED)
            axes.plot(
                scale,
                value * arrays[f"L{depth}_measured"][:, i],
                "o",
                color=colour,
                markersize=9 - 1.5 * i,
            )
        power = int(depth) - 2
        slope = "a logarithm" if power == 0 else rf"$\varepsilon^{{-{power}}}$"
        axes.set(
            xscale="log",
            yscale="linear" if power == 0 else "log",
            xlabel=r"initialization scale $\varepsilon$",
            title=f"depth $L={depth}$: {slope}",
        )
        for axis in (axes.xaxis, axes.yaxis) if power else ():
            axis.set_major_locator(LogLocator(subs=(1, 3)))
            axis.set_major_formatter("{x:g}")
            axis.set_minor_formatter(NullFormatter())
        if depth == depths[0]:
            axes.set_ylabel(r"$t_i\,\sigma^*_i$")
    half = f"{settings['level']:.0%}"
    style.legend_above(
        figure,
        [
            Line2D([], [], linestyle="", marker="o", color=c, label=rf"$\sigma^*={v:g}$")
            for v, c in zip(targets, colours, strict=True)
        ]
        + [
            Line2D([], [], **style.PREDICTED, label=f"exact time to {half}"),
            Line2D([], [], color=style.GREY, linewidth=0.9, label=r"its limit $\varepsilon\to0$"),
        ],
    )
    return figure
