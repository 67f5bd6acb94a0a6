"""Recovery error of the compressed, the original and two-factor networks, per iteration and second.

Source: the paper's trajectory figure for deep matrix factorization; docs/theory.md 1.5 (dominance: for
`r̂ ≤ max(r, d − r)` the compressed network's error is at most the original's at every iteration) and 2.1 and
2.2 (the prediction).

All networks start at one scale `ε` and take the same learning rate, on the loss `½‖W − Φ‖_F²`. The
paper's code states `η = 1` for the mean over the `d²` entries, that is `η = 1/d²` here, with which
the compressed network takes 116,000 iterations and the original 143,000. Its published curves end
after 6,000 and 8,000, about what a rate 20 times larger gives, 2e-3 for d = 100: that one is used
here. Far below the edge of stability the rate only rescales the horizontal axis.

Burer-Monteiro factorizations `U Vᵀ` start at small Gaussian factors. Having two factors, they wait
`ln(1/ε)` where three factors wait `1/ε` (docs/theory.md 2.4), so on a fully known matrix they are
fastest.

Seconds are the number of iterations times the time of one, measured over a short run without
compilation; the loss is formed densely for all networks.
"""

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import lowdim_jax as ld
from figures import runs, style, trajectories
from figures.protocol import Arrays, Settings


def compute(settings: Settings) -> Arrays:
    """Recovery errors `(n,)` of four networks, seconds an iteration, and the prediction."""
    d, r, depth = settings["d"], settings["r"], settings["depth"]
    scale, rate = settings["scale"], settings["learning_rate"]
    rank = settings["factor"] * r
    target = runs.separated_target(settings)
    problem = ld.factorization(target.dense())
    keys = jax.random.split(jax.random.key(settings["seed"] + 2))
    starts = {
        **runs.both(problem, settings),
        "two_factor_exact": ld.gaussian(keys[0], (d, r, d), scale=scale),
        "two_factor_over": ld.gaussian(keys[1], (d, rank, d), scale=scale),
    }
    arrays = trajectories.compute(problem, starts, settings)

    values = jnp.pad(target.singular_values, (0, rank - r))
    times = rate * jnp.asarray(arrays["iteration"], values.dtype)
    predicted = ld.theory.mode_trajectory(
        times[:, None], values[None, :], depth=depth, scale=scale
    )
    error = jnp.linalg.norm(predicted - values[None, :], axis=1) / jnp.linalg.norm(values)
    return {**arrays, "predicted": np.asarray(error)}


def plot(arrays: Arrays, settings: Settings) -> Figure:
    """Two panels, error against iterations and against seconds."""
    r, rank = settings["r"], settings["factor"] * settings["r"]
    lines = {
        **trajectories.lines(settings),
        "two_factor_exact": {
            "color": style.EXACT_RANK,
            "linestyle": (0, (1, 1.2)),
            "label": f"Burer–Monteiro, rank {r}",
        },
        "two_factor_over": {
            "color": style.OTHER_RANK,
            "linestyle": (0, (5, 1.2)),
            "label": f"Burer–Monteiro, rank {rank}",
        },
    }
    figure = style.new_figure(height=3.5)
    by_iteration, by_second = panels = figure.subplots(1, 2, sharey=True)
    handles = trajectories.draw(panels, arrays, lines, least=2e-8)
    handles += by_iteration.plot(
        arrays["iteration"],
        arrays["predicted"],
        **style.PREDICTED,
        label="predicted",
    )
    by_iteration.set_ylabel(r"recovery error $\|W-\Phi\|_F\,/\,\|\Phi\|_F$")
    by_second.set(xscale="log", xlim=(2e-3 * arrays["original_seconds"] * settings["steps"], None))
    style.legend_above(figure, handles)
    return figure
