"""What descent does beyond the edge of stability: two values, then four, then chaos, as predicted.

Source: docs/theory.md 5.3. One component, trained from a spectral start (a compressed network of rank one) at
many learning rates; the singular values of its last steps, over the roots of the two-cycle's equation. The
cycle attracts up to `two_cycle_limit` times the edge; a run's factor can change its sign from
`first_sign_change` on.
"""

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

import lowdim_jax as ld
from figures import style
from figures.protocol import Arrays, Settings

SIGMA = 1.0  # sets the unit of rates only
DENSE = 200  # rates from which on dots have to be smaller to leave room between them


def compute(settings: Settings) -> Arrays:
    """For each depth `L`: rates in units of the edge, the last singular values at each, and both branches."""
    target = ld.random_target(jax.random.key(settings["seed"]), (settings["d"],) * 2, jnp.array([SIGMA]))
    arrays = {}
    for depth in settings["depths"]:
        limits = ld.theory.two_cycle_limit(depth), ld.theory.first_sign_change(depth)
        multiples = np.linspace(settings["from"], min(limits[1], settings["to"]), settings["rates"])
        edge = float(ld.max_learning_rate(ld.factorization(target), depth=depth))
        measured = last_values(target, edge * multiples, depth=depth, settings=settings)
        low, high = ld.theory.two_cycle(SIGMA, depth=depth, learning_rate=edge * multiples)
        arrays |= {
            f"L{depth}_multiple": multiples,
            f"L{depth}_measured": measured,
            f"L{depth}_low": np.asarray(low),
            f"L{depth}_high": np.asarray(high),
            f"L{depth}_limits": np.array(limits),
        }
    return arrays


def last_values(target: ld.LowRank, rates: np.ndarray, *, depth: int, settings: Settings) -> np.ndarray:
    """Singular values `(rates, last)` of the last steps of descent, at each rate."""
    problem = ld.factorization(target)
    start = ld.compress(target, depth=depth, scale=settings["scale"], rank=1)

    def run(rate):
        rule = ld.GradientDescent(rate)
        steps = settings["steps"]
        wait = ld.gradient_descent(problem, start, rule, steps=steps, record_every=steps)
        end = ld.gradient_descent(
            problem, wait.weights, rule, steps=settings["last"], observe=jax.tree_util.Partial(_modes, target)
        )
        return end.observed[:, 0]

    return np.asarray(jax.jit(jax.vmap(run))(jnp.asarray(rates)))


def _modes(target, weights):
    return ld.spectra.modes(weights, target)


def plot(arrays: Arrays, settings: Settings) -> Figure:
    """Measured values over the predicted branches, one panel a depth."""
    depths = settings["depths"]
    figure = style.new_figure(height=3.6)
    for depth, axes in zip(depths, np.atleast_1d(figure.subplots(1, len(depths), sharey=True)), strict=True):
        multiples, measured = arrays[f"L{depth}_multiple"], arrays[f"L{depth}_measured"]
        across = np.broadcast_to(multiples[:, None], measured.shape)
        dot = {"markersize": 1.5 if len(multiples) <= DENSE else 0.5, "rasterized": True}
        axes.plot(across.ravel(), measured.ravel(), ".", color=style.COMPRESSED, **dot)
        for name in ("low", "high"):
            axes.plot(multiples, arrays[f"L{depth}_{name}"], **style.PREDICTED)
        limit, sign = arrays[f"L{depth}_limits"]
        axes.axvline(limit, color=style.GREY, linewidth=0.9)
        axes.annotate(f"{limit:.4f}", (limit, 0.02), (3, 0), xycoords=("data", "axes fraction"),
                      textcoords="offset points", color=style.GREY, fontsize=8)
        axes.set(
            title=f"$L={depth}$" + ("" if multiples[-1] < sign else f", to the first sign change {sign:.4f}"),
            xlabel="learning rate / edge of stability",
        )
    figure.axes[0].set_ylabel(r"singular value / $\sigma^*$, last steps")
    style.legend_above(
        figure,
        [
            Line2D([], [], linestyle="", marker=".", color=style.COMPRESSED, label="descent"),
            Line2D([], [], **style.PREDICTED, label="predicted two-cycle"),
            Line2D([], [], color=style.GREY, linewidth=0.9, label="up to here it attracts"),
        ],
    )
    return figure
