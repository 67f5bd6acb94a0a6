"""Many training runs in one compiled program, with no run waiting for a slower one."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lowdim_jax._arrays import as_count
from lowdim_jax._cache import Program
from lowdim_jax._host import as_pytree
from lowdim_jax.descent import LEAST, DescentState, checked_steps, checked_tolerance, initial_state, take_step
from lowdim_jax.optimizers import GradientDescent
from lowdim_jax.problems.base import Problem, loss_of


@dataclass(frozen=True)
class Sweep:
    """How each run of a sweep ended; arrays have one row a run.

    Attributes
    ----------
    weights
        Weights at the end, stacked along a first axis.
    losses
        `(runs,)`: loss at the end; not finite where a run diverged.
    steps
        `(runs,)`: steps taken, exactly the first at which the loss was at most the tolerance.

    Examples
    --------
    >>> import jax.numpy as jnp, lowdim_jax as ld
    >>> starts = (jnp.full((2, 1, 1), 0.5), jnp.full((2, 1, 1), 0.5))
    >>> ends = ld.sweep(ld.factorization(jnp.ones((1, 1))), starts, ld.GradientDescent(0.1), steps=5)
    >>> ends.losses.shape, ends.steps
    ((2,), array([5, 5], dtype=int32))
    """

    weights: Any
    losses: np.ndarray
    steps: np.ndarray


def sweep(
    objective: Problem | Callable,
    weights: Any,
    optimizer: GradientDescent,
    /,
    *,
    steps: int,
    tolerance: float = -np.inf,
    data: Any = None,
    lanes: int | None = None,
    check_every: int = 100,
) -> Sweep:
    """Gradient descent from many starts, with many rates, on one problem or on many.

    For a device that one small run leaves idle, or for the very step at which each run is done. On a CPU
    `gradient_descent`, run by run, is faster: it evaluates the loss at records only.

    Memory is that of `lanes` runs at a time beside the starts and the results. A lane whose run has
    reached its tolerance, diverged or used up its steps takes the next run at the next check, so that a
    slow run holds up nobody; all of it is one program, compiled once.

    Parameters
    ----------
    objective
        A problem, or a function of one run's weights; with `data`, a function of one run's data and its
        weights, for example `Completion.loss` with stacked problems.
    weights
        Initial weights with a first axis of runs, for example
        `jax.vmap(lambda scale: ld.spectral(target, rank=6, depth=3, scale=scale))(scales)`. Networks of
        different rank r̂ go together padded: see `pad`.
    optimizer
        `GradientDescent` whose numbers are scalars, or have one entry a run.
    steps, tolerance
        Each run ends at the first step whose loss is at most `tolerance`, or after `steps`.
    data
        Pytree with a first axis of runs.
    lanes
        Runs worked on at the same time: by default one on a CPU, where a batch of matrix products takes
        longer than as many plain ones from about 40 rows on, and 64 on other devices.
    check_every
        Steps between checks; a single lane needs none.

    Raises
    ------
    ValueError
        If `steps`, `lanes` or `check_every` is below one, or first axes differ.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, lowdim_jax as ld
    >>> problem = ld.factorization(jnp.diag(jnp.array([3.0, 2.0])))
    >>> network = ld.compress(problem, depth=3, scale=0.3, rank=2)
    >>> starts = jax.tree.map(lambda w: jnp.broadcast_to(w, (3, *w.shape)), network)
    >>> rates = ld.GradientDescent(jnp.array([0.01, 0.02, 0.04]))
    >>> ends = ld.sweep(problem, starts, rates, steps=1000, tolerance=1e-6)
    >>> bool(ends.steps[0] > ends.steps[1] > ends.steps[2])
    True
    """
    if lanes is None:
        lanes = 1 if jax.default_backend() == "cpu" else 64
    steps, check_every = checked_steps(steps, check_every, "check_every", least=1)
    lanes, tolerance = as_count("lanes", lanes, least=1), checked_tolerance(tolerance)
    loss = as_pytree(loss_of(objective))
    count = len(jax.tree.leaves(weights)[0])
    optimizer = jax.tree.map(lambda number: np.broadcast_to(np.asarray(number), (count,)), optimizer)
    runs = jax.device_put((weights, optimizer, data))
    if any(len(leaf) != count for leaf in jax.tree.leaves(runs)):
        sizes = sorted({len(leaf) for leaf in jax.tree.leaves(runs)})
        raise ValueError(f"weights, optimizer and data have first axes of sizes {sizes}, expected one size")

    lanes = min(lanes, count)
    check_every = steps if lanes == 1 else check_every
    running, waiting = np.arange(lanes), lanes  # the run in each lane, and the first that has none yet
    states = _start(loss, runs, running)
    results: list[Any] = [None] * count
    active = np.ones(lanes, bool)
    while active.any():
        states, ended = _advance(
            loss, runs, running, states, steps, check_every, tolerance, times=max(steps, LEAST)
        )
        finished = np.flatnonzero(np.asarray(ended) & active)
        if not len(finished):
            continue
        at_end = jax.tree.map(np.asarray, (states.weights, states.loss, states.step))
        for lane in finished:
            results[running[lane]] = jax.tree.map(lambda leaf, lane=lane: leaf[lane], at_end)
        refilled = finished[: count - waiting]
        running[refilled] = np.arange(waiting, waiting + len(refilled))
        waiting += len(refilled)
        active[finished[len(refilled) :]] = False
        fresh = np.isin(np.arange(lanes), refilled)
        states = _refill(loss, runs, running, states, fresh)
    weights, losses, taken = jax.tree.map(lambda *rows: np.stack(rows), *results)
    return Sweep(jax.device_put(weights), losses, taken)


def _of_run(loss, runs, run):
    """Loss, initial weights and optimizer of one run."""
    weights, optimizer, data = jax.tree.map(lambda leaf: leaf[run], runs)
    return (loss if data is None else jax.tree_util.Partial(loss, data)), weights, optimizer


def _each(function, *lanes):
    """`vmap`; over one lane its plain function, whose matrix products are not batched ones."""
    if len(jax.tree.leaves(lanes)[0]) > 1:
        return jax.vmap(function)(*lanes)
    result = function(*jax.tree.map(lambda leaf: leaf[0], lanes))
    return jax.tree.map(lambda leaf: leaf[None], result)


@Program
def _start(loss, runs, running) -> DescentState:
    def start(run):
        of_run, weights, optimizer = _of_run(loss, runs, run)
        return initial_state(of_run, optimizer, weights)

    return _each(start, running)


@Program
def _refill(loss, runs, running, states, fresh) -> DescentState:
    started = _start(loss, runs, running)

    def choose(new, old):
        return jnp.where(fresh.reshape(-1, *(1,) * (new.ndim - 1)), new, old)

    return jax.tree.map(choose, started, states)


@Program
def _advance(loss, runs, running, states, steps, check_every, tolerance):
    """Up to `check_every` more steps in every lane, and which of them have ended."""

    def unfinished(state):
        return (state.step < steps) & jnp.isfinite(state.loss) & (state.loss > tolerance)

    def lane(run, state):
        of_run, _, optimizer = _of_run(loss, runs, run)
        goal = state.step + check_every
        step = partial(take_step, of_run, optimizer)

        return jax.lax.while_loop(lambda state: unfinished(state) & (state.step < goal), step, state)

    states = _each(lane, running, states)
    return states, ~unfinished(states)
