"""From one initialization scale, depth 2 fits the observed entries only and depth 3 recovers the matrix.

Source: the paper's figure of depth 2 against depth 3 in matrix completion; docs/theory.md 1.3, 1.4 and 2.4.
Both compressed networks have width `r̂ = 2r` and train towards zero loss. Which of the many matrices that
agree with the observed entries they approach depends on the start `ε`: the smaller, the nearer to the target.
From the paper's `ε = 1e-2` only depth 3 recovers.

That is a matter of scale, not of what two factors can do. Two factors wait `ln(1/ε)` where three wait `1/ε`
(2.4), so they can start as small as floating-point numbers allow, and from `ε = 1e-20` they recover as well,
in about as many iterations. The last panel shows the final error against `ε`, by depth.

The paper's code states `η = 50` for half the mean over observed entries, and `α = 2`. The loss is `d²` times
as large here, so that its rate is `50 / d² = 5e-3` at d = 100, the one used: 0.8 of the edge of stability
with `α` for depth 3, and 0.2 of it for depth 2.
"""

from typing import Any

import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from matplotlib.figure import Figure

import lowdim_jax as ld
from figures import runs, style
from figures.protocol import Arrays, Settings

COLOURS = {"2": style.OTHER_RANK, "3": style.COMPRESSED}
WIDTHS = {"2": style.THIN, "3": style.THICK}
MARKS = {"2": "s", "3": "o"}
STROKES = ("-", "-", (0, (1, 1.2)))


def compute(settings: Settings) -> Arrays:
    """Training and recovery errors `(scales, n)` by depth, and `iteration` `(n,)`."""
    problem = runs.problem_of(runs.separated_target(settings), settings)
    observe = jtu.Partial(_errors, problem)
    arrays = {}
    for depth, scales in settings["scales"].items():
        training, recovery = [], []
        for scale in scales:
            of_start = {**settings, "depth": int(depth), "scale": scale}
            weights = runs.compressed(problem, of_start)
            trajectory = runs.descent(problem, weights, of_start, observe=observe)
            arrays["iteration"] = np.asarray(trajectory.steps)
            training.append(trajectory.observed[0])
            recovery.append(trajectory.observed[1])
        arrays |= {f"L{depth}_training": np.array(training), f"L{depth}_recovery": np.array(recovery)}
    return arrays


def _errors(problem: Any, weights: ld.Weights) -> tuple[jax.Array, jax.Array]:
    """Relative errors on the observed entries and on all."""
    of_zero = problem.loss((jnp.zeros_like(problem.values),))
    return jnp.sqrt(problem.loss(weights) / of_zero), problem.recovery_error(weights)


def plot(arrays: Arrays, settings: Settings) -> Figure:
    """Training and recovery error against iterations, and the final recovery error against `ε`."""
    figure = style.new_figure(height=3.5)
    training, recovery, final = figure.subplots(1, 3, sharey=True, width_ratios=(1.2, 1.2, 1))
    handles = []
    for (depth, scale), stroke in zip(settings["shown"], STROKES, strict=True):
        row = settings["scales"][depth].index(scale)
        look = {
            **style.MEASURED,
            **WIDTHS[depth],
            "color": COLOURS[depth],
            "linestyle": stroke,
            "label": rf"depth {depth}, $\varepsilon=10^{{{round(np.log10(scale))}}}$",
        }
        handles += training.plot(arrays["iteration"], arrays[f"L{depth}_training"][row], **look)
        recovery.plot(arrays["iteration"], arrays[f"L{depth}_recovery"][row], **look)
    for depth, scales in settings["scales"].items():
        error = arrays[f"L{depth}_recovery"][:, -1]
        final.plot(scales, error, f"{MARKS[depth]}-", color=COLOURS[depth], markersize=5, linewidth=1.2)
    for axes in (training, recovery):
        axes.set(xlim=(0, arrays["iteration"][-1]), xlabel="iteration")
        style.thousands(axes)
    training.set(yscale="log", ylim=(1e-7, 2), ylabel="relative error", title="observed entries (training)")
    recovery.set_title("all entries (recovery)")
    final.set(xscale="log", xlabel=r"initialization scale $\varepsilon$", title="all entries, at the end")
    style.legend_above(figure, handles)
    return figure
