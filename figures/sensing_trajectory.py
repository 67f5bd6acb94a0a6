"""Recovery error of the compressed and the original network in matrix sensing, per iteration and second.

Source: the paper's trajectory figure for matrix sensing; docs/theory.md 1.5. That the compressed network
stays below is an observation here, not a theorem: a late component may rise some steps earlier in the
original (the check `recovery-dominance` measures by how much).

The paper's code has `A_i ~ N(0, 1)/m`, the loss `½‖𝒜(W) − y‖²` and `η = 20`. Here `A_i ~ N(0, 1/m)`,
a loss `m` times as large, so that its rate is `20 / m = 5e-3` at m = 4000, the one used. Measurements are
float32 ones, and the networks float64: products with the measurements are exact to about 1e-7, below what
the start `ε` leaves in the end.

Seconds are the number of iterations times the time of one, measured over a short run without compilation.
Both networks spend most of it in the same two passes over the measurements, so that compression saves
iterations here, but little time in each.
"""

from matplotlib.figure import Figure

from figures import runs, style, trajectories
from figures.protocol import Arrays, Settings


def compute(settings: Settings) -> Arrays:
    """Recovery errors `(n,)` of both networks, and their seconds an iteration."""
    problem = runs.problem_of(runs.separated_target(settings), settings)
    return trajectories.compute(problem, runs.both(problem, settings), settings)


def plot(arrays: Arrays, settings: Settings) -> Figure:
    """Two panels, error against iterations and against seconds."""
    figure = style.new_figure(height=3.4)
    panels = figure.subplots(1, 2, sharey=True)
    handles = trajectories.draw(panels, arrays, trajectories.lines(settings), least=2e-6)
    panels[0].set_ylabel(r"recovery error $\|W-\Phi\|_F\,/\,\|\Phi\|_F$")
    style.legend_above(figure, handles)
    return figure
