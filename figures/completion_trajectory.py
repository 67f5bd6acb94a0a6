"""Error on unobserved entries in matrix completion: what compression and what the ratio α contribute.

Source: the paper's trajectory figure for matrix completion; docs/theory.md 1.4, 1.5 and 5.2. The paper's code
trains the original network with `α = 1` and the compressed one with outer learning rates of `α = 5` times the
middle one, the two outermost of the four lines here. With both networks at both α, most of the difference in
iterations turns out to be that of α, which is a larger learning rate more than anything (`alpha-ablation`).
Compression saves a seventh or so of the iterations, and most of the time of each. A row for each rank.

The paper's code states `η = 10` for half the mean over observed entries. Here the loss is
`‖P_Ω(W − Φ)‖_F² / 2p`, which is `d²` times as large, so that its rate is `10 / d² = 1e-3` at d = 100, the
one used: a quarter of the edge of stability for `α = 5`. The smaller matrix takes the same fraction of its
own edge.

Seconds are the number of iterations times the time of one, measured over a short run without compilation.
"""

from typing import Any

import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from matplotlib.figure import Figure

import lowdim_jax as ld
from figures import runs, style, trajectories
from figures.protocol import Arrays, Settings

STROKES = ((0, (1.5, 1.2)), "-")


def compute(settings: Settings) -> Arrays:
    """Errors `(n,)` and seconds an iteration of both networks, `r5_alpha1_original` and so on."""
    arrays = {}
    for r, steps in zip(settings["ranks"], settings["steps"], strict=True):
        of_rank = {**settings, "r": r, "steps": steps}
        problem = runs.problem_of(runs.separated_target(of_rank), of_rank)
        observe = jtu.Partial(_unobserved_error, problem)
        starts = runs.both(problem, of_rank)
        for alpha in settings["alphas"]:
            found = trajectories.compute(problem, starts, {**of_rank, "alpha": alpha}, observe=observe)
            arrays |= {f"{_prefix(r, alpha)}{key}": array for key, array in found.items()}
    return arrays


def _unobserved_error(problem: Any, weights: ld.Weights) -> jax.Array:
    """`‖P_Ωᶜ(W − Φ)‖_F / ‖P_Ωᶜ(Φ)‖_F`, relative error on the entries that were not observed."""
    truth = problem.truth.dense()
    missed = jnp.where(problem.mask, 0, ld.end_to_end(weights) - truth)
    return jnp.linalg.norm(missed) / jnp.linalg.norm(jnp.where(problem.mask, 0, truth))


def select(arrays: Arrays, r: int, alpha: float) -> Arrays:
    """The arrays of one rank and one α, under names without them."""
    prefix = _prefix(r, alpha)
    return {key.removeprefix(prefix): array for key, array in arrays.items() if key.startswith(prefix)}


def _prefix(r: int, alpha: float) -> str:
    return f"r{r}_alpha{alpha:g}_"


def plot(arrays: Arrays, settings: Settings) -> Figure:
    """A row a rank; error against iterations, and against seconds."""
    ranks = settings["ranks"]
    figure = style.new_figure(height=0.6 + 2.4 * len(ranks))
    rows = figure.subplots(len(ranks), 2, sharey=True, squeeze=False)
    handles = []
    for row, r in zip(rows, ranks, strict=True):
        handles = []
        for alpha, stroke in zip(settings["alphas"], STROKES, strict=True):
            looks = {
                name: {**look, "linestyle": stroke, "label": rf"{look['label']}, $\alpha={alpha:g}$"}
                for name, look in trajectories.lines(settings).items()
            }
            handles += trajectories.draw(row, select(arrays, r, alpha), looks, least=1e-6)
        slowest = row[1].dataLim.xmax
        row[1].set(xscale="log", xlim=(5e-3 * slowest, 1.1 * slowest))
        row[0].set_ylabel("relative error on\nunobserved entries")
        row[0].set_title(f"rank $r={r}$", loc="left")
    style.legend_above(figure, handles)
    return figure
