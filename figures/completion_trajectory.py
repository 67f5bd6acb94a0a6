"""Error on unobserved entries of the compressed and the original network in matrix completion.

Source: the paper's trajectory figure for matrix completion; docs/theory.md 1.4 and 1.5. Both networks take
outer learning rates of `α = 5` times the middle one. A row of panels for each rank `r`.

The paper's code states `η = 10` for half the mean over observed entries. Here the loss is
`‖P_Ω(W − Φ)‖_F² / 2p`, which is `d²` times as large, so that its rate is `10 / d² = 1e-3` at d = 100, the
one used: a quarter of the edge of stability with `α` (docs/theory.md 5.2). The smaller matrix takes the same
fraction of its own edge.

Seconds are the number of iterations times the time of one, measured over a short run without compilation.
"""

import jax.tree_util as jtu

from figures import networks, style, trajectories

SETTINGS = {
    "small": {
        "d": 40,
        "ranks": [2, 4],
        "observed": 0.5,
        "factor": 2,
        "depth": 3,
        "epsilon": 0.03,
        "alpha": 5.0,
        "learning_rate": 2e-3,
        "steps": 2200,
        "record_every": 5,
        "timed_steps": 500,
        "repeats": 5,
        "seed": 0,
    },
    "paper": {
        "d": 100,
        "ranks": [5, 10],
        "observed": 0.3,
        "factor": 2,
        "depth": 3,
        "epsilon": 1e-2,
        "alpha": 5.0,
        "learning_rate": 1e-3,
        "steps": 8000,
        "record_every": 10,
        "timed_steps": 500,
        "repeats": 5,
        "seed": 0,
    },
}


def compute(settings):
    """Errors `(n,)` and seconds an iteration of both networks, by rank: `r5_original` and so on."""
    arrays = {}
    for r in settings["ranks"]:
        of_rank = {**settings, "r": r}
        problem = networks.problem_of(networks.separated_target(of_rank), of_rank)
        found = trajectories.compute(
            problem,
            networks.both(problem, of_rank),
            of_rank,
            observe=jtu.Partial(trajectories.unobserved_error, problem),
        )
        arrays |= {f"r{r}_{key}": array for key, array in found.items()}
    return arrays


def of_rank(arrays, r):
    """The arrays of one rank, under names without it."""
    prefix = f"r{r}_"
    return {key.removeprefix(prefix): array for key, array in arrays.items() if key.startswith(prefix)}


def plot(arrays, settings):
    """A row a rank; error against iterations, and against seconds."""
    ranks = settings["ranks"]
    figure = style.new_figure(height=0.6 + 2.4 * len(ranks))
    rows = figure.subplots(len(ranks), 2, sharey=True, squeeze=False)
    handles = []
    for row, r in zip(rows, ranks, strict=True):
        handles = trajectories.draw(row, of_rank(arrays, r), trajectories.LINES, least=1e-6)
        row[0].set_ylabel("relative error on\nunobserved entries")
        row[0].set_title(f"rank $r={r}$", loc="left")
    style.legend_above(figure, handles)
    return figure
