"""Looking for the rank that the data hold, where a first fit leaves a misfit: grow, or hold out and choose.

docs/recovery.md has the procedure in words, and what it reaches beside other methods.
"""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from lowdim_jax._host import on_host
from lowdim_jax.closing import (
    RIDGES,
    Closed,
    close,
    exact_loss,
    factors,
    gradients_of_a_sweep,
    graduated,
    parts_of,
    residual_of,
    value_of,
)
from lowdim_jax.compression import Visible, leading_surrogate, visible_components
from lowdim_jax.linalg import LowRank

MARGIN = 1.05
"""How far above its noise edge a residual's singular value has to be to count as structure."""
LOOK_AHEAD = 2
"""Ranks tried after residuals began to look like noise, or held-out errors began to rise."""
FEW_RANKS = 10
"""Ranks that are all tried, where the data determine no more: near the information limit none shows."""
MOST_DATA = 0.95
"""Degrees of freedom of an exact fit, as a fraction of the data: more would fit anything."""
HELD_OUT = 0.1
"""Fraction of noisy data on which rank and number of steps are chosen."""
FEWEST = 40
"""Data below which none are held out."""
EACH, EACH_HELD_OUT = 1500, 500
"""Gradients that one closing may take: without noise it ends long before, where the data suffice."""
MOST_GENERALIZED, MUCH = 0.75, 0.02
"""Freedom over data up to which the misfit itself tells a rank, and how much better it has to be."""
NOISY_STALL = 3e-2
"""Three steps that reduce a noisy loss by less than this fraction are the last."""


OF_A_PATH = len(RIDGES) * gradients_of_a_sweep()
"""Gradients that a graduated fit takes: one is begun only where it can be ended."""
CLEAR = 2.0
"""Standard errors by which a fit has to be better on held-out data than the best constant matrix."""
CLEAR_RIDGE = 1.0
"""Standard errors by which a ridge has to be better than none: it leaves small components where none are."""


class Stage(NamedTuple):
    """The best matrix of one rank that was found, its loss, and how the residual looks.

    `structure` is the residual's largest singular value over its noise edge.
    """

    parts: LowRank
    loss: float
    structure: float

    @property
    def rank(self) -> int:
        """Number of components."""
        return len(self.parts.singular_values)


class Budget:
    """Gradients that may be spent, and those that one closing may take."""

    def __init__(self, gradients: int, each: int = EACH):
        self.left, self.spent, self.each = gradients, 0, each

    def close(self, problem: Any, start: LowRank, **settings: Any) -> Closed:
        """Close from a start, as far as gradients are left."""
        closed = close(problem.loss, start, gradients=min(self.left, self.each), **settings)
        self.take(closed.gradients)
        return closed

    def take(self, gradients: int) -> None:
        """Note that gradients were spent."""
        self.left -= gradients
        self.spent += gradients


def freedom(problem: Any, rank: int, /) -> int:
    """Degrees of freedom `r (d_out + d_in − r)` of a matrix of rank `r`."""
    return rank * (sum(problem.shape) - rank)


def largest_rank(problem: Any, /) -> int:
    """Largest rank that the data determine, at least one."""
    most, count = min(problem.shape), getattr(problem, "count", None)
    if count is None:
        return most
    ranks = np.arange(1, most + 1)
    fits = ranks * (sum(problem.shape) - ranks) <= MOST_DATA * count
    return most if fits.all() else max(1, int(np.argmin(fits)))


def stages(
    problem: Any, first: LowRank, /, *, exact: float, most: int, budget: Budget, stall: float = 1e-2
) -> Iterator[Stage]:
    """Best matrices of growing rank; the caller ends it, or it ends where nothing is left to see.

    A stage starts from the one before and the components that its residual shows above the residual's own
    noise edge (one at least); where then nothing is left to see, also from the end of a graduated fit that is
    wider (`closing.graduated`), cut. The first finds small components beside large ones, the second equal
    ones of which too few were seen. A rank that was not fitted is tried again from the one above it, cut:
    nearest to the information limit the way there leads through more dimensions.

    Parameters
    ----------
    first
        Where the first stage starts; its rank is the first rank.
    exact
        Loss at which a fit is exact.
    most
        Largest rank.
    budget
        Gradients to spend.
    stall
        As in `close`.
    """
    quiet, before, start = 0, None, first
    at_zero = loss_at_zero(problem, first.dtype, rank=len(first.singular_values))
    goal = exact_loss(at_zero, first.dtype)
    while budget.left > 0:
        rank = len(start.singular_values)
        best = budget.close(problem, start, goal=goal, stall=stall)
        if best.loss <= exact:
            if before is not None:
                best = _from_above(problem, best, before, exact, goal, budget, stall) or best
            if best.loss > goal and budget.left > 0:  # as far as rounding, where the way is long
                best = budget.close(problem, best.parts, goal=goal, stall=stall)
            yield Stage(best.parts, best.loss, 0.0)
            return
        shown = visible_components(on_host(residual_of(problem, best.parts)), margin=MARGIN)
        if not _structure(shown) > MARGIN and budget.left > OF_A_PATH:
            again = budget.close(problem, _graduated_start(problem, rank, budget), goal=goal, stall=stall)
            if again.loss < best.loss:
                best = again
                shown = visible_components(on_host(residual_of(problem, best.parts)), margin=MARGIN)
        if before is not None and quiet:
            below = _from_above(problem, best, before, exact, goal, budget, stall)
            if below is not None:
                yield Stage(below.parts, below.loss, 0.0)
                return
        structure, before = _structure(shown), rank
        yield Stage(best.parts, best.loss, structure)
        if best.loss <= exact or rank >= most:
            return
        quiet = 0 if structure > MARGIN else quiet + 1
        if quiet > LOOK_AHEAD and most > FEW_RANKS:
            return
        start = _sum(best.parts, shown.parts.truncate(most - rank))


def path(problem: Any, rank: int, budget: Budget, /, *, last: int = len(RIDGES)) -> Iterator[LowRank]:
    """A graduated fit of a width, from the surrogate's leading components, up to its `last` ridge."""
    start = leading_surrogate(on_host(problem), rank)
    top = float(np.asarray(start.singular_values)[0])
    for point in graduated(problem.loss, start, [top * ridge for ridge in RIDGES[:last]]):
        budget.take(gradients_of_a_sweep())
        yield point


def _graduated_start(problem: Any, rank: int, budget: Budget) -> LowRank:
    """Leading components of the end of a graduated fit with room for twice as many."""
    *_, end = path(problem, min(2 * rank + 1, *problem.shape), budget)
    return end.truncate(rank)


def _from_above(problem, best: Closed, rank: int, exact, goal, budget: Budget, stall) -> Closed | None:
    """An exact fit of a lower rank from a matrix cut to it, if that leads to one."""
    if budget.left <= 0:
        return None
    below = budget.close(problem, best.parts.truncate(rank), goal=goal, stall=stall)
    return below if below.loss <= exact else None


class Choice(NamedTuple):
    """What held-out data chose.

    Components to start from, what they leave of the held-out data, and the number of ridges of a graduated
    fit up to which it is best; None where no ridge is.
    """

    parts: LowRank | None
    loss: float
    ridges: int | None = None


def choose(train: Any, held: Any, /, *, exact: float, most: int, budget: Budget) -> Choice:
    """Rank and ridge of the smallest loss on held-out data, and that of the best constant matrix.

    `parts` is None where none does clearly better than the constant (or the zero matrix). A ridge is chosen
    where it does clearly better than none.
    """
    first = visible_components(on_host(train)).parts.truncate(most)
    constant = best_constant(train, first.dtype)
    trivials = zero_matrix(held, first.dtype), constant
    loss, trivial = min(((value_of(held.loss, one), one) for one in trivials), key=lambda pair: pair[0])
    best, worse, plain = Choice(None, loss), 0, []
    for stage in stages(train, first, exact=exact, most=most, budget=budget, stall=NOISY_STALL):
        points = path(train, stage.rank, budget) if budget.left >= OF_A_PATH else ()
        candidates = [(stage.parts, None), *_counted(points)]
        choices = [Choice(parts, value_of(held.loss, parts), ridges) for parts, ridges in candidates]
        plain.append(choices[0])
        least = min(choices, key=lambda choice: choice.loss)
        worse = worse + 1 if not least.loss < best.loss else 0
        best = best if worse else least
        if worse >= LOOK_AHEAD and most > FEW_RANKS:
            break
    if best.ridges is not None:
        without = min(plain, key=lambda choice: choice.loss)
        best = best if _is_clear(held, best, without, errors=CLEAR_RIDGE) else without
    return best if _is_clear(held, best, Choice(trivial, loss), errors=CLEAR) else Choice(None, loss)


def _is_clear(held: Any, best: Choice, other: Choice, *, errors: float) -> bool:
    """Whether the best of many tries is better than another by more than chance allows.

    By so many standard errors of the difference, `2 √(ℓ(best) ½‖δ‖² / n)` for independent errors of the best,
    where the two differ by `δ` on the `n` data held out.
    """
    both = [choice.parts for choice in (best, other) if choice.parts is not None]
    if len(both) < 2:
        return False
    halves = (LowRank(parts.left, parts.singular_values / 2, parts.right) for parts in both)
    apart = max(2 * (best.loss + other.loss) - 4 * value_of(held.loss, _sum(*halves)), 0.0)
    return other.loss - best.loss > errors * 2 * (best.loss * apart / held.count) ** 0.5


def _counted(points: Iterable[LowRank]) -> Iterator[tuple[LowRank, int]]:
    """Points of a path, each with its number, from one."""
    return ((point, number) for number, point in enumerate(points, start=1))


def generalized(problem: Any, found: list[Stage], /) -> tuple[Stage | None, float]:
    """The stage of least generalized cross-validation, `ℓ / (1 − freedom / data)²`, and that.

    An estimate of the loss on data held out that needs none: near the information limit there are none to
    spare. Only of ranks whose degrees of freedom leave room (Golub, Heath and Wahba 1979).
    """
    scored = []
    for stage in found:
        share = freedom(problem, stage.rank) / problem.count
        if share <= MOST_GENERALIZED:
            scored.append((stage.loss / (1 - share) ** 2, stage))
    value, stage = min(scored, key=lambda pair: pair[0], default=(np.inf, None))
    return stage, value


def best_constant(problem: Any, dtype: Any, /) -> LowRank:
    """The matrix `c 1 1ᵀ` of least loss, a quadratic function of `c`."""
    before, here, after = (
        value_of(problem.loss, constant_matrix(problem.shape, c, dtype)) for c in (-1.0, 0.0, 1.0)
    )
    curvature = before - 2 * here + after
    return constant_matrix(problem.shape, (before - after) / (2 * curvature) if curvature > 0 else 0.0, dtype)


def constant_matrix(shape: tuple[int, int], constant: float, dtype: Any, /) -> LowRank:
    """The matrix with all entries the same."""
    left, right = (np.full((side, 1), side**-0.5, dtype) for side in shape)
    size = abs(constant) * (shape[0] * shape[1]) ** 0.5
    parts: Any = left * np.sign(constant).astype(dtype), np.array([size], dtype), right
    return LowRank(*parts)


def zero_matrix(problem: Any, dtype: Any, /) -> LowRank:
    """The zero matrix."""
    return constant_matrix(problem.shape, 0.0, dtype)


def loss_at_zero(problem: Any, dtype: Any, /, *, rank: int = 1) -> float:
    """Loss of the zero matrix, as one of so many components: a program is compiled for each number."""
    d_out, d_in = problem.shape
    parts: Any = (np.zeros(shape, dtype) for shape in ((d_out, rank), rank, (d_in, rank)))
    return value_of(problem.loss, LowRank(*parts))


def _structure(shown: Visible) -> float:
    """Largest singular value of a residual, over its noise edge."""
    return float(np.asarray(shown.parts.singular_values)[0]) / shown.edge if shown.edge else np.inf


def _sum(parts: LowRank, more: LowRank) -> LowRank:
    """The sum of two matrices of few components, as one."""
    (right, left), (more_right, more_left) = map(on_host, (factors(parts), factors(more)))
    both: Any = np.concatenate([right, more_right]), np.concatenate([left, more_left], axis=1)
    return parts_of(both)
