"""Recovery error of the compressed and the original network in matrix sensing, per iteration and second.

Source: the paper's trajectory figure for matrix sensing; docs/theory.md 1.5. That the compressed network
stays below is an observation here, not a theorem: a late component may rise some steps earlier in the
original (the check `recovery-dominance` measures by how much).

The paper's code has `A_i ~ N(0, 1)/m`, the loss `½‖𝒜(W) − y‖²` and `η = 20`. Here `A_i ~ N(0, 1/m)`,
a loss `m` times as large, so that its rate is `20 / m = 5e-3` at m = 4000, the one used. Measurements are
float32 ones, and the networks float64: products with the measurements are exact to about 1e-7, below what
the start `ε` leaves in the end.

At size paper rank 10 is not recovered: its r (2d − r) = 3900 degrees of freedom leave 1.03 measurements for
each, and errors fall to 0.82 and rise to 1.02 again (docs/reproduce.md).

Seconds are the number of iterations times the time of one, measured over a short run without compilation.
Both networks spend most of it in the same two passes over the measurements, so that compression saves
iterations here, but little time in each.
"""

from matplotlib.figure import Figure

from figures import runs, style, trajectories
from figures.protocol import Arrays, Settings


def compute(settings: Settings) -> Arrays:
    """Recovery errors `(n,)` of both networks, and their seconds an iteration, `r5_original` and so on."""
    arrays = {}
    for r, steps in zip(settings["ranks"], settings["steps"], strict=True):
        of_rank = {**settings, "r": r, "steps": steps}
        problem = runs.problem_of(runs.separated_target(of_rank), of_rank)
        found = trajectories.compute(problem, runs.both(problem, of_rank), of_rank)
        arrays |= {f"r{r}_{key}": array for key, array in found.items()}
    return arrays


def select(arrays: Arrays, r: int) -> Arrays:
    """The arrays of one rank, under names without it."""
    return {key.removeprefix(f"r{r}_"): array for key, array in arrays.items() if key.startswith(f"r{r}_")}


def plot(arrays: Arrays, settings: Settings) -> Figure:
    """A row a rank: error against iterations, and against seconds."""
    ranks = settings["ranks"]
    figure = style.new_figure(height=0.6 + 2.4 * len(ranks))
    rows = figure.subplots(len(ranks), 2, sharey=True, squeeze=False)
    handles = []
    for row, r in zip(rows, ranks, strict=True):
        handles = trajectories.draw(row, select(arrays, r), trajectories.lines(settings), least=2e-6)
        row[0].set_ylabel(r"recovery error $\|W-\Phi\|_F\,/\,\|\Phi\|_F$")
        row[0].set_title(f"rank $r={r}$", loc="left")
    style.legend_above(figure, handles)
    return figure
