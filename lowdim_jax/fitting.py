"""Recovery from data alone: a compressed network trained without tuning, stopped and closed with care."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lowdim_jax._host import as_array, as_pytree, on_host
from lowdim_jax.checked_run import CheckedRun, fingerprint, progress_bar, same_run
from lowdim_jax.closing import parts_of, value_of
from lowdim_jax.compression import Visible, leading_surrogate, visible_components
from lowdim_jax.descent import DescentState, gradient_descent, initial_state
from lowdim_jax.growing import (
    EACH_HELD_OUT,
    FEWEST,
    HELD_OUT,
    MARGIN,
    MUCH,
    NOISY_STALL,
    OF_A_PATH,
    Budget,
    Stage,
    best_constant,
    choose,
    generalized,
    largest_rank,
    path,
    stages,
    zero_matrix,
)
from lowdim_jax.initialization import spectral
from lowdim_jax.linalg import LowRank
from lowdim_jax.networks import Weights, check_depth, compressed_widths, widths
from lowdim_jax.optimizers import GradientDescent
from lowdim_jax.problems.base import Problem, check_problem
from lowdim_jax.theory import stability
from lowdim_jax.trajectory import Status

EDGE_FRACTION = 0.5
"""Learning rate, as a fraction of the edge of stability of docs/theory.md 5.2."""
START = 1e-7
"""Singular values `ε^L` of the initial product, as a fraction of the surrogate's largest one."""
TOLERANCE = 1e-11
"""Loss at which training ends, as a fraction of the loss of the zero matrix."""
PATIENCE = 0.5
"""How much longer than to its best validation loss a run goes on, as a fraction of that time."""
SMALLEST = 2.0**-20
"""Size of data below which, and above whose inverse, they are scaled."""


@dataclass(frozen=True)
class Fit:
    """A trained network, how it was trained, and how that went.

    Attributes
    ----------
    weights
        Those of the smallest validation loss; the last ones, if nothing was validated on.
    best_step
        The step they are from.
    steps, losses, validation
        `(n,)`: step number, training loss and validation loss (NaN without one) at every check. After the
        descent a row for every matrix that closing it found; its gradients count as steps.
    settings
        `depth`, `rank`, `scale`, `alpha`, `learning_rate` and `check_every`, as used.
    status
        How the run ended.
    message
        The same in words: how it ended, by how much the data are missed, the rank and why.
    misfit
        What the weights leave of the data, `‖𝒜(W) − y‖ / ‖y‖`: the square root of the loss over that of the
        zero matrix.
    converged
        Whether the misfit is at the tolerance.
    noisy
        Whether what is left looks like noise, so that rank and steps were chosen on held-out data; None
        where that was not looked at.

    Examples
    --------
    >>> import jax.numpy as jnp, lowdim_jax as ld
    >>> result = ld.fit(ld.factorization(jnp.diag(jnp.array([3.0, 2.0]))), depth=2, rank=2, steps=500)
    >>> result.status.name, result.settings["rank"], result.converged
    ('REACHED_TOLERANCE', 2, True)
    """

    weights: Weights
    best_step: int
    steps: np.ndarray
    losses: np.ndarray
    validation: np.ndarray
    settings: dict[str, Any]
    status: Status
    message: str
    misfit: float = float("nan")
    converged: bool = False
    noisy: bool | None = None


def fit(
    problem: Problem,
    /,
    *,
    depth: int = 3,
    rank: int | None = None,
    scale: float | None = None,
    start: Weights | None = None,
    alpha: float = 1.0,
    learning_rate: float | None = None,
    weight_decay: float | None = None,
    steps: int = 50_000,
    tolerance: float = TOLERANCE,
    validate: Callable[[Weights], jax.Array] | None = None,
    patience: float = PATIENCE,
    check_every: int = 50,
    finish: bool | None = None,
    checkpoint: str | Path | None = None,
    callback: Callable[[DescentState], bool | None] | None = None,
    progress: bool = False,
) -> Fit:
    """Recover a matrix from its data; every setting has a default that follows from the data.

    A compressed network, as wide as the surrogate has components above its noise edge (docs/theory.md 1.7),
    is trained by gradient descent from a small spectral start. Then, unless told otherwise, Gauss–Newton
    steps on matrices of that rank close it; where the data are not fitted, ranks above are tried; and where
    what is left looks like noise, the rank is chosen on a tenth of the data, held out. The result is never
    worse there than the best constant matrix. docs/recovery.md has the procedure.

    Parameters
    ----------
    problem
        Any `Problem`: completion, sensing, factorization, one spread over devices, one of your own.
    depth
        Number of layers `L ≥ 2`.
    rank
        `r̂`, the width; by default found. Where it is given, no larger one is tried.
    scale
        `ε`; by default `ε^L` is 1e-7 times the surrogate's largest singular value.
    start
        Initial weights, in place of the compressed network of `depth`, `rank` and `scale`.
    alpha
        `α`, ratio of outer to middle learning rate.
    learning_rate
        `η`; by default half of `max_learning_rate(problem, depth=depth, alpha=alpha)`.
    weight_decay
        `λ` of the penalty `(λ/2) Σ_l ‖W_l‖_F²`.
    steps, tolerance
        Train until the loss is `tolerance` times that of the zero matrix, at most `steps` steps. A gradient
        that closing takes counts as a step. Closing goes on to rounding.
    validate
        Function of the weights, for example `held_out.loss`. With it the best weights are kept, nothing
        else is held out, and descent stops `patience` times the best step after that step (ten checks at
        least), but not before the visible components had the time to be learned (docs/theory.md 2.4).
    check_every
        Steps between checks, at which the run validates, saves and may stop.
    finish
        Whether to close the descent and to look for the rank; by default where neither `start` nor
        `weight_decay` is given, and the problem has a `residual`.
    checkpoint
        Folder to which every check saves the state of the run (`lowdim_jax.checkpoints`). If there is one
        in it, the run goes on from it, bitwise as if it had not been interrupted; on another number of
        devices, up to rounding.
    callback
        Called with a `DescentState` at every check of the descent; the run ends where it returns True.
    progress
        Show a progress bar on standard error.

    Raises
    ------
    ValueError
        If a setting is out of range, the data are zero, or the checkpoint is of another run.

    Examples
    --------
    >>> import numpy as np, lowdim_jax as ld
    >>> rng = np.random.default_rng(0)
    >>> matrix = rng.standard_normal((30, 2)) @ rng.standard_normal((2, 20))
    >>> problem = ld.completion(matrix, rng.random((30, 20)) < 0.6, truth=matrix)
    >>> found = ld.fit(problem)
    >>> found.settings["rank"], found.converged, bool(problem.recovery_error(found.weights) < 1e-4)
    (2, True, True)
    """
    check_problem(problem)
    depth = depth if start is None else len(start)
    check_depth(depth, least=2)
    if not 0 < tolerance < 1:
        raise ValueError(f"tolerance={tolerance}, expected a fraction of the initial loss in (0, 1)")
    if not patience > 0:
        raise ValueError(f"patience={patience}, expected a positive number")
    if finish is None:
        finish = start is None and weight_decay is None
    alone = jax.process_count() == 1 or not hasattr(problem, "place")
    finish = finish and alone and hasattr(problem, "residual")
    if start is None and rank is not None:
        _, rank, *_ = compressed_widths(*problem.shape, depth=depth, rank=rank)
    problem, unit = _normalized(problem, depth)
    look = _look(problem, rank, start, edge=finish)
    top = float(np.asarray(look.parts.singular_values)[0])
    if not top > 0:
        raise ValueError("problem has data that are zero throughout: there is nothing to learn")
    if start is None:
        scale = (START * top) ** (1 / depth) if scale is None else float(scale) * unit
        width = len(look.parts.singular_values) if rank is None else rank
        place = getattr(problem, "place", tuple)
        weights = place(spectral(look.parts, rank=width, depth=depth, scale=scale))
    else:
        scale, weights = None, start if unit == 1 else tuple(layer * unit for layer in start)
    if learning_rate is None:
        rate = EDGE_FRACTION * float(stability.max_learning_rate(top, depth=depth, alpha=alpha))
    else:
        rate = float(_times(learning_rate, 1 / unit, 2 * depth - 2))
    decay = None if weight_decay is None else _times(weight_decay, unit, 2 * depth - 2)
    settings = {
        "depth": depth,
        "rank": widths(weights)[1],
        "scale": None if scale is None else scale / unit,
        "alpha": float(alpha),
        "learning_rate": _times(rate, unit, 2 * depth - 2),
        "weight_decay": weight_decay,
        "check_every": check_every,
    }
    plateaus = (0.0, 0.0)
    if scale is not None:
        strengths = np.asarray(look.parts.singular_values)[[0, max(look.above, 1) - 1]]
        first, last = (_plateau(value, depth, scale, alpha) / rate for value in strengths)
        plateaus = first, last
    saved, now, run = None, {}, CheckedRun(validate and _in_units(validate, unit), patience, plateaus)
    if checkpoint is not None:
        from lowdim_jax.checkpoints import Checkpoints  # whose library takes a second to import

        saved = Checkpoints(checkpoint)
        now = {"shape": list(problem.shape), "data": fingerprint(problem), **settings}
        if saved.latest is not None:
            now = same_run(saved.settings(), now, checkpoint)
            settings = {name: now[name] for name in settings}
            rate = _times(settings["learning_rate"], 1 / unit, 2 * depth - 2)
    optimizer = GradientDescent(rate, alpha=settings["alpha"], weight_decay=decay)
    state = initial_state(as_pytree(problem.loss), optimizer, weights)
    here = weights if hasattr(problem, "place") else on_host(weights)
    nothing = jax.tree.map(lambda layer: layer * 0, here)
    zero = float(initial_state(as_pytree(problem.loss), optimizer, nothing).loss)
    asked = False
    with progress_bar(steps) if progress else nullcontext() as show:

        def check(state: DescentState) -> bool:
            nonlocal asked
            run.check(state)
            if saved is not None and np.isfinite(run.history[-1][1]):  # nothing goes on from what diverged
                run.save(saved, now)
            if show is not None:
                show(*run.history[-1])
            asked = callback is not None and bool(callback(state))
            return asked or run.overdue(check_every) or (finish and run.settled(zero))

        if saved is None or saved.latest is None:
            check(state)
        else:
            run.restore(saved, state)
        trajectory = gradient_descent(
            problem,
            run.state,
            optimizer,
            steps=steps,
            record_every=check_every,
            tolerance=tolerance * zero,
            callback=check,
            callback_every=check_every,
        )
    if saved is not None:
        saved.close()
    spent = int(run.state.step)
    status = Status(int(trajectory.status))
    ours = status == Status.STOPPED and not asked
    ended = f"{spent} steps of descent" if ours else trajectory.message
    outcome = _Outcome(run.best, status, ended)
    done = outcome.status == Status.REACHED_TOLERANCE and tolerance != TOLERANCE
    done = done or asked or (rank is not None and run.overdue(check_every))  # its width fits noise
    if finish and spent < steps and not done and outcome.status != Status.DIVERGED:
        whole = getattr(problem, "gather", tuple)(run.state.weights)
        first = parts_of(whole, min(settings["rank"], max(look.above, 1)))
        most = largest_rank(problem) if rank is None else rank
        again = {"depth": depth, "alpha": alpha, "patience": patience, "check_every": check_every}
        outcome = _finish(problem, run, first, zero, tolerance, most, steps - spent, outcome, again)
        if rank is not None:
            outcome = replace(outcome, weights=_widened(outcome.weights, rank))
        outcome = replace(outcome, weights=getattr(problem, "place", tuple)(outcome.weights))
        settings["rank"] = widths(outcome.weights)[1]
    numbers, losses, validation = np.array(run.history).T
    loss = losses[np.searchsorted(numbers, run.best_step)] if outcome.loss is None else outcome.loss
    misfit = float(np.sqrt(max(loss, 0) / zero))
    converged = bool(misfit <= tolerance**0.5 * (1 + 1e-6))
    result = Fit(
        weights=outcome.weights if unit == 1 else tuple(layer / unit for layer in outcome.weights),
        best_step=run.best_step,
        steps=numbers.astype(int),
        losses=_times(losses, 1 / unit, 2 * depth),
        validation=validation,
        settings=settings,
        status=outcome.status,
        message="",
        misfit=misfit,
        converged=converged,
        noisy=False if converged else outcome.noisy,
    )
    return replace(result, message=_message(result, outcome, look, tolerance))


@dataclass(frozen=True)
class _Outcome:
    """Weights, how they came about, and what was learned of the data on the way."""

    weights: Weights
    status: Status
    ended: str
    loss: float | None = None
    noisy: bool | None = None
    why: str = ""


def _finish(
    problem: Any,
    run: CheckedRun,
    first: LowRank,
    zero: float,
    tolerance: float,
    most: int,
    budget: int,
    descent: _Outcome,
    again: dict[str, Any],
) -> _Outcome:
    """Close the descent, grow the rank until the data are fitted, or choose it on data held out."""
    step, depth, before = int(run.state.step), again["depth"], descent.ended
    may_hold_out = run.validate is None and getattr(problem, "count", 0) >= FEWEST
    may_hold_out = may_hold_out and budget >= 6 * OF_A_PATH  # less would tell a constant from nothing
    exploring = Budget(budget // 2 if may_hold_out else budget)
    found: list[Stage] = []
    for stage in stages(problem, first, exact=tolerance * zero, most=most, budget=exploring):
        found.append(stage)
        run.add(step + exploring.spent, stage.loss, _deepened(stage.parts, depth))
    ended = f"{before}; closed by {exploring.spent} more gradients"
    if not found:
        return descent
    last = found[-1]
    if last.loss <= tolerance * zero:
        why = "the smallest tried at which the data are fitted" if len(found) > 1 else ""
        return _Outcome(_deepened(last.parts, depth), Status.REACHED_TOLERANCE, ended, last.loss, False, why)
    noisy = last.structure <= MARGIN
    if not may_hold_out:
        least = min(found, key=lambda stage: stage.loss)
        best = next((stage for stage in found if stage.structure <= MARGIN), least)
        weights = _deepened(best.parts, depth) if run.validate is None else run.best
        loss = best.loss if run.validate is None else None
        status = Status.COMPLETED if run.validate is None else Status.STOPPED
        return _Outcome(weights, status, ended, loss, noisy, "")
    return _hold_out(problem, found, run, zero, tolerance, most, budget - exploring.spent, ended, again)


def _hold_out(problem, found, run, zero, tolerance, most, budget, ended, again) -> _Outcome:
    """Choose rank and number of steps on data held out, and fit all of them so."""
    depth, dtype = again["depth"], found[0].parts.dtype
    train, held = problem.split(HELD_OUT, seed=0)
    spending = Budget(max(budget - OF_A_PATH, 0), EACH_HELD_OUT)
    choice = choose(train, held, exact=tolerance * zero, most=most, budget=spending)
    spending.left += min(budget, OF_A_PATH)  # so that what was chosen can be fitted to all data
    stage, estimate = generalized(problem, found)
    left = (choice.loss / value_of(held.loss, zero_matrix(held, dtype))) ** 0.5
    if stage is not None and estimate < MUCH * choice.loss:
        parts, why = stage.parts, "chosen by generalized cross-validation: too few data to hold any out"
    elif choice.parts is None:
        parts = best_constant(problem, dtype)
        why = f"on {HELD_OUT:.0%} of the data, held out, a constant does as well ({left:.3g} left)"
    elif choice.ridges is not None:
        *_, parts = path(problem, len(choice.parts.singular_values), spending, last=choice.ridges)
        why = f"with a ridge, chosen on {HELD_OUT:.0%} of the data, held out, of which it leaves {left:.3g}"
    else:
        same = [stage.parts for stage in found if stage.rank == len(choice.parts.singular_values)]
        starts = [choice.parts, *same]
        closed = [spending.close(problem, start, goal=0.0, stall=NOISY_STALL) for start in starts]
        parts = min(closed, key=lambda closed: closed.loss).parts
        why = f"chosen on {HELD_OUT:.0%} of the data, held out, of which it leaves {left:.3g}"
    loss, weights = value_of(problem.loss, parts), _deepened(parts, depth)
    run.add(run.history[-1][0] + spending.spent, loss, weights)
    return _Outcome(weights, Status.STOPPED, ended, loss, True, why)


def _message(fit: Fit, outcome: _Outcome, look: Visible, tolerance: float) -> str:
    """How a fit went, in words."""
    parts, goal = [outcome.ended], f"{tolerance**0.5:.2g}"
    if fit.converged:
        parts.append(f"converged, misfit {fit.misfit:.2g} of the data")
    elif fit.noisy:
        left = f"misfit {fit.misfit:.2g} of the data, which looks like noise"
        parts.append(f"{left} (not converged: goal {goal})")
    else:
        parts.append(f"not converged: misfit {fit.misfit:.2g} of the data (goal {goal})")
    width = fit.settings["rank"]
    if look.edge is not None:
        values = "1 singular value" if look.above == 1 else f"{look.above} singular values"
        parts.append(
            f"rank {width}; {values} of the surrogate above its noise edge"
            + (f"; {outcome.why}" if outcome.why else "")
        )
    return "; ".join(parts)


def _deepened(parts: LowRank, depth: int, /) -> Weights:
    """The matrix as a balanced network of given depth, `(Σ^{1/L} Vᵀ, Σ^{1/L}, …, U Σ^{1/L})`."""
    left, values, right = map(np.asarray, (parts.left, parts.singular_values, parts.right))
    root = values ** values.dtype.type(1 / depth)
    middle = (np.diag(root),) * (depth - 2)
    return tuple(map(as_array, (root[:, None] * right.T, *middle, left * root[None, :])))


def _widened(weights: Weights, width: int) -> Weights:
    """With hidden layers filled up with zeros to a width."""
    last = len(weights) - 1

    def fill(index: int, layer: Any):
        rows = 0 if index == last else width - layer.shape[0]
        columns = 0 if index == 0 else width - layer.shape[1]
        return as_array(np.pad(np.asarray(layer), ((0, max(rows, 0)), (0, max(columns, 0)))))

    return tuple(fill(index, layer) for index, layer in enumerate(weights))


def _normalized(problem: Any, depth: int) -> tuple[Any, float]:
    """The problem with data of ordinary size, and the factor of its networks' layers.

    The factor is a power of two, and one unless squares could leave the range of numbers: nothing is rounded.
    """
    size = getattr(problem, "magnitude", None)
    size = float(size) if size is not None else 0.0
    if size == 0 or SMALLEST <= size <= 1 / SMALLEST:
        return problem, 1.0
    dtypes = {leaf.dtype for leaf in jax.tree.leaves(problem) if np.issubdtype(leaf.dtype, np.floating)}
    most = min(np.finfo(dtype).maxexp for dtype in dtypes) - 2
    unit = 2.0 ** round(np.clip(-np.log2(size), -most, most) / depth)
    return problem.scaled(unit**depth), unit


def _look(problem: Any, rank: int | None, start: Weights | None, *, edge: bool) -> Visible:
    """Components of the surrogate: those above the noise, or as many as asked for."""
    data = on_host(problem)
    if start is not None:
        return Visible(leading_surrogate(data, 1), 1, None)
    if rank is None:
        return visible_components(data)
    parts = leading_surrogate(data, rank)
    if not edge or not hasattr(data, "noise_edge"):
        return Visible(parts, rank, None)
    level = float(data.noise_edge())
    return Visible(parts, int(np.sum(np.asarray(parts.singular_values) > level)), level)


def _plateau(value: float, depth: int, scale: float, alpha: float) -> float:
    """Twice the time that a component takes to be learned from a small start (docs/theory.md 2.4, 2.5)."""
    if depth == 2:
        return 2 * np.log(max(value / scale**2, 2.0)) / (2 * value)
    return 2 * scale ** (2 - depth) / ((depth - 2) * value) / max(alpha, 1.0)


def _times(value: Any, unit: float, power: int) -> Any:
    """`value · unit^power`, infinite or zero where that is out of the range of numbers."""
    value = np.asarray(value, float)
    with np.errstate(over="ignore", under="ignore"):
        for _ in range(power if unit != 1 else 0):
            value = value * unit
    return value if value.ndim else float(value)


def _in_units(validate: Callable, unit: float) -> Callable:
    """Validation of weights in the units of the caller's data."""
    return validate if unit == 1 else lambda weights: validate(tuple(layer / unit for layer in weights))
