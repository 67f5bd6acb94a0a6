"""Iterations to a tolerance in matrix completion, against the ratio α of outer to middle learning rates.

Source: the paper's ablation of α for matrix completion; docs/theory.md 1.4, 2.5 and 5.2. At one learning
rate `η` for all α, as in the paper, larger α need fewer iterations, about `α^{−2/3}` of them. That is how the
edge of stability falls with α, too: at one fraction of their own edges all α take nearly the same number.

The paper's code states `η = 10` for half the mean over observed entries, and a tolerance of 1e-10. The loss
is `d²` times as large here, so that these are `10 / d² = 1e-3` and 1e-6 at d = 100, those used.

All runs, of both rules and every α, are one `ld.sweep`, one compiled program. Seconds are iterations times
the sweep's wall time an iteration, without compilation, since an iteration costs the same for every α, and
each network's own. The horizontal line is the original network at the same `η` with `α = 1`, as in the paper.
"""

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import lowdim_jax as ld
from figures import runs, style
from figures.protocol import Arrays, Settings

RULES = ("fixed", "edge")


def compute(settings: Settings) -> Arrays:
    """Iterations and recovery errors `(alphas,)` by rule, those of the original, and seconds an iteration."""
    problem = runs.problem_of(runs.separated_target(settings), settings)
    alpha = np.arange(*settings["alphas"])
    edge = np.asarray(ld.max_learning_rate(problem, depth=settings["depth"], alpha=jnp.asarray(alpha)))
    start = runs.compressed(problem, settings)
    rates = np.concatenate(list(_rates(edge, settings).values()))
    starts = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (len(rates), *leaf.shape)), start)
    optimizer = ld.GradientDescent(rates, alpha=np.tile(alpha, len(RULES)))
    steps, errors, seconds = _sweep(problem, starts, optimizer, settings)
    original = jax.tree.map(lambda leaf: leaf[None], runs.original(settings))
    full = _sweep(problem, original, ld.GradientDescent(settings["learning_rate"]), settings)

    arrays = {"alpha": alpha, "edge": edge, "seconds": np.array(seconds)}
    arrays |= {"original_steps": full[0], "original_errors": full[1], "original_seconds": np.array(full[2])}
    halves = np.split(steps, len(RULES)), np.split(errors, len(RULES))
    for rule, of_rule, error in zip(RULES, *halves, strict=True):
        arrays |= {f"{rule}_steps": of_rule, f"{rule}_errors": error}
    return arrays


def _sweep(
    problem: Any, starts: ld.Weights, optimizer: Any, settings: Settings
) -> tuple[np.ndarray, np.ndarray, float]:
    """Iterations to the tolerance and recovery errors then, `(runs,)`, and seconds an iteration."""

    def sweep(steps: int):
        return ld.sweep(problem.loss, starts, optimizer, steps=steps, tolerance=settings["tolerance"])

    sweep(1)  # compiles
    begin = time.perf_counter()
    ends = sweep(settings["steps"])
    seconds = (time.perf_counter() - begin) / np.sum(ends.steps)
    missed = np.sum(~(ends.losses <= settings["tolerance"]))
    if missed:
        raise RuntimeError(f"{missed} of {len(ends.losses)} runs did not reach the tolerance")
    errors = jax.jit(jax.vmap(problem.recovery_error))(ends.weights)
    return ends.steps, np.asarray(errors), seconds


def _rates(edge: np.ndarray, settings: Settings) -> Arrays:
    """Learning rates `(alphas,)` by rule: one for every α, and a fraction of each α's own edge."""
    return {
        "fixed": np.full(len(edge), settings["learning_rate"]),
        "edge": settings["edge_fraction"] * edge,
    }


def plot(arrays: Arrays, settings: Settings) -> Figure:
    """Iterations against α, the same in seconds, and in units of each α's own edge."""
    figure = style.new_figure(height=3.7)
    cost, clock, scaled = figure.subplots(1, 3)
    alpha, edge = arrays["alpha"], arrays["edge"]
    dark, light = style.shades(style.COMPRESSED, 2)
    limit = r"\eta_{\max}(\alpha)"
    looks = {
        "fixed": {"color": dark, "marker": "o", "markersize": 4},
        "edge": {"color": light, "marker": "s", "markersize": 3},
    }
    labels = {
        "fixed": rf"compressed, $\eta={settings['learning_rate']:g}$",
        "edge": rf"compressed, $\eta={settings['edge_fraction']:g}\,{limit}$",
    }
    handles, each = [], float(arrays["seconds"])
    for rule, rates in _rates(edge, settings).items():
        steps, look = arrays[f"{rule}_steps"], {"linewidth": 1.2, **looks[rule]}
        handles += cost.plot(alpha, steps, label=labels[rule], **look)
        clock.plot(alpha, steps * each, **look)
        scaled.plot(alpha, steps * rates / edge, **look)
    steps, seconds = arrays["original_steps"].item(), arrays["original_seconds"].item()
    line = {"color": style.ORIGINAL, "linewidth": 2}
    handles += [cost.axhline(steps, label=r"original, $\alpha=1$", **line)]
    clock.axhline(steps * seconds, **line)
    law = np.interp(1.0, alpha, arrays["fixed_steps"]) * alpha ** (-2 / settings["depth"])
    label = rf"$\propto\alpha^{{-2/{settings['depth']}}}\propto{limit}$"
    handles += cost.plot(alpha, law, label=label, **style.PREDICTED)

    power = round(np.log10(settings["tolerance"]))
    cost.set(ylim=(0, None), xlabel=r"$\alpha$", ylabel=f"iterations to loss $10^{{{power}}}$")
    clock.set(yscale="log", xlabel=r"$\alpha$", ylabel="seconds, without compilation")
    scaled.set(xlabel=r"$\alpha$", ylabel=rf"iterations $\times\;\eta\,/\,{limit}$")
    scaled.set_ylim(0, 1.15 * scaled.dataLim.ymax)
    errors = np.concatenate([arrays[f"{rule}_errors"] for rule in RULES])
    note = f"recovery error at the end:\n{errors.min():.1e} to {errors.max():.1e}"
    scaled.text(0.5, 0.1, note, transform=scaled.transAxes, ha="center", fontsize=8.5)
    for axes in (cost, scaled):
        axes.yaxis.set_major_formatter("{x:,.0f}")
    style.legend_above(figure, handles)
    return figure
