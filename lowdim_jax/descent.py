"""Gradient descent with any optimizer, as one compiled loop that records as it goes."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lowdim_jax._arrays import as_count
from lowdim_jax._cache import Program
from lowdim_jax._host import as_pytree, is_traced
from lowdim_jax.optimizers import GradientDescent, GradientTransformation
from lowdim_jax.problems.base import Problem, loss_of, max_learning_rate
from lowdim_jax.trajectory import Status, Trajectory, blank, trim

MOST_STEPS = 2**31 - 1
"""Largest number that a step number, of 32 bits, can be."""
LEAST = 10_000
"""Steps for which a loop is compiled at least, so that numbers do not depend on how many were asked for."""


class DescentState(NamedTuple):
    """Everything the next step depends on; a pytree that can be saved and resumed from.

    Examples
    --------
    >>> import jax.numpy as jnp, lowdim_jax as ld
    >>> problem, seen = ld.factorization(2 * jnp.eye(2)), []
    >>> network = ld.initialization.identity((2, 2, 2), scale=0.5)
    >>> ask = dict(steps=4, callback=lambda state: seen.append(int(state.step)), callback_every=2)
    >>> _ = ld.gradient_descent(problem, network, ld.GradientDescent(0.1), **ask)
    >>> seen
    [2, 4]
    """

    step: jax.Array
    weights: Any
    optimizer_state: Any
    loss: jax.Array
    gradient: Any


class _History(NamedTuple):
    rows: jax.Array
    steps: jax.Array
    losses: jax.Array
    observed: Any


def gradient_descent(
    objective: Problem | Callable,
    weights: Any,
    optimizer: GradientDescent | GradientTransformation,
    /,
    *,
    steps: int,
    record_every: int = 1,
    observe: Callable | None = None,
    tolerance: float | None = None,
    per_step: bool = False,
    callback: Callable[[DescentState], bool | None] | None = None,
    callback_every: int | None = None,
    throw: bool = False,
) -> Trajectory:
    """Train `weights` for `steps` steps of `W ← W − η ∇ℓ(W)`, recording every `record_every`.

    Composes with `jit` and `vmap`: the loop is compiled once for each structure and shape, whatever
    the values of weights, target, `η` and `α` (those of `GradientDescent`; an optax optimizer is compiled
    once an object).

    Parameters
    ----------
    objective
        A problem, or a function of the weights. A problem's arrays are traced, not compiled in; so are those
        of a function that is a problem's method or a `jax.tree_util.Partial`.
    weights
        Pytree of initial weights, a tuple of matrices for a deep linear network; or a `DescentState`
        that an earlier run with this objective and optimizer handed to `callback`, to go on from: in the
        same chunks the run is then bitwise the one that was not interrupted.
    optimizer
        `GradientDescent(η, alpha=α, …)`, or any optax optimizer (`by_role` for discrepant rates of one).
    steps, record_every
        Number of steps, and steps between records. Records are at steps `0, k, 2k, …` and at the
        last one.
    observe
        Function of the weights whose result (any pytree of arrays) is recorded with the loss;
        `lambda weights: weights` records the weights themselves.
    tolerance
        Stop at the first record whose loss is at most this.
    per_step
        Whether the loss takes the number of the step, from 0, as a second argument: mini-batches, drawn
        from a key folded with it, and schedules. The loss recorded at a step is then that of its batch.
    callback
        Called with a `DescentState` every `callback_every` steps (by default a hundredth of the run,
        rounded up to a record); the run stops where it returns True. Not under `jit` or `vmap`.
    throw
        Raise `RuntimeError` where the run diverges, instead of only saying so in the status.

    Returns
    -------
    `Trajectory` with step numbers in `steps`. `status` is `DIVERGED` from the first step whose loss is
    not finite.

    Raises
    ------
    ValueError
        If `steps` is negative, `record_every` or `callback_every` is below one, one of them is no integer
        or too large to count in 32 bits, or `tolerance` is NaN.

    Notes
    -----
    Step `k` approximates gradient flow at time `η k` to first order in `η` (docs/theory.md 4.4).
    Forward-mode differentiation goes through the loop; reverse mode does not.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, lowdim_jax as ld, numpy as np
    >>> problem = ld.factorization(jnp.diag(jnp.array([4.0, 2.0])))
    >>> network = ld.compress(problem, depth=2, scale=0.1, rank=2)
    >>> rate = 0.5 * ld.max_learning_rate(problem, depth=2)
    >>> run = ld.gradient_descent(problem, network, ld.GradientDescent(rate), steps=40, record_every=20)
    >>> print(run.message)
    completed: 40 steps
    >>> print(run.steps, np.asarray(run.losses).round(3))
    [ 0 20 40] [9.94 0.   0.  ]
    """
    steps, record_every = checked_steps(steps, record_every)
    if callback_every is not None:
        callback_every = as_count("callback_every", callback_every, least=1)
    tolerance = -jnp.inf if tolerance is None else checked_tolerance(tolerance)
    rule = optimizer if isinstance(optimizer, GradientDescent) else _Static(optimizer)
    run = partial(_run, per_step=per_step, resumable=callback is not None, times=max(steps, LEAST))
    settings = (as_pytree(loss_of(objective)), rule, None if observe is None else as_pytree(observe))

    state = weights
    if not isinstance(weights, DescentState):
        state = initial_state(*settings[:2], weights, per_step=per_step)
    history = _no_records(settings[2], state, rows=-(-steps // record_every) + 1)
    if callback is None:
        state, history, status = run(*settings, state, history, steps, record_every, tolerance)
    else:
        chunk = record_every * max(1, -(-(callback_every or steps // 100) // record_every))
        stopped, status = False, Status.COMPLETED
        while not stopped and status == Status.COMPLETED:
            before = int(state.step)
            end = min(before + chunk, steps)
            state, history, status = run(*settings, state, history, end, record_every, tolerance)
            status = Status(int(status))
            if int(state.step) == before:
                break
            stopped = bool(callback(state))
        if stopped and status == Status.COMPLETED:
            status = Status.STOPPED
        status = jax.device_put(np.int32(status))
    history = _blank_rest(history)
    trajectory = Trajectory(
        losses=history.losses,
        observed=history.observed,
        weights=state.weights,
        status=status,
        count=history.rows,
        num_steps=state.step,
        steps=history.steps,
    )
    trajectory = _with_stability_hint(trim(trajectory), objective, optimizer)
    return trajectory.raise_if_failed() if throw else trajectory


@partial(Program, static_argnames="per_step")
def initial_state(loss: Callable, optimizer, weights, /, *, per_step: bool = False) -> DescentState:
    """State before the first step."""
    start = jnp.zeros((), jnp.int32)
    value, gradient = jax.value_and_grad(loss)(weights, *((start,) if per_step else ()))
    return DescentState(start, weights, optimizer.init(weights), value, gradient)


def take_step(loss: Callable, optimizer, state: DescentState, /, *, per_step: bool = False) -> DescentState:
    """State after one more step."""
    number = state.step + 1
    updates, optimizer_state = optimizer.update(state.gradient, state.optimizer_state, state.weights)
    weights = _updated(state.weights, updates)
    value, gradient = jax.value_and_grad(loss)(weights, *((number,) if per_step else ()))
    return DescentState(number, weights, optimizer_state, value, gradient)


def _updated(weights: Any, updates: Any) -> Any:
    """Their sum, in the precision of the weights."""
    return jax.tree.map(lambda weight, update: (weight + update).astype(weight.dtype), weights, updates)


def _steps_until(goal, loss: Callable, optimizer, state: DescentState, /, *, per_step: bool) -> DescentState:
    """State at step `goal`, with the loss there; its gradient is that of before.

    A gradient is made in the step that uses it: carried from step to step, XLA on a CPU spreads its parts
    over threads, which takes twice as long where they are small.
    """

    def step(carry):
        number, weights, optimizer_state = carry
        gradient = jax.grad(loss)(weights, *((number,) if per_step else ()))
        updates, optimizer_state = optimizer.update(gradient, optimizer_state, weights)
        return number + 1, _updated(weights, updates), optimizer_state

    moving = state.step, state.weights, state.optimizer_state
    number, weights, optimizer_state = jax.lax.while_loop(lambda carry: carry[0] < goal, step, moving)
    value = loss(weights, *((number,) if per_step else ()))
    return DescentState(number, weights, optimizer_state, value, state.gradient)


def checked_steps(
    steps: int, between: int, name: str = "record_every", /, *, least: int = 0
) -> tuple[int, int]:
    """Numbers of steps in all and between two events as Python's integers, which 32 bits can count.

    Raises
    ------
    ValueError
        Naming the one that is no integer, too small or too large.
    """
    steps = as_count("steps", steps, least=least)
    between = min(as_count(name, between, least=1), max(steps, 1))
    if steps + between > MOST_STEPS:
        raise ValueError(f"steps={steps} and {name}={between}, expected at most {MOST_STEPS} together")
    return steps, between


def checked_tolerance(tolerance):
    """The tolerance; `ValueError` if it is concrete and NaN, which no loss would be above."""
    if not is_traced(tolerance) and np.isnan(np.asarray(tolerance)).any():
        raise ValueError(f"tolerance={tolerance}, expected a number")
    return tolerance


def _no_records(observe, state: DescentState, *, rows: int) -> _History:
    columns = jax.tree.map(  # no NaN, which JAX_DEBUG_NANS would take for one of the run
        lambda leaf: jax.device_put(np.zeros((rows, *leaf.shape), leaf.dtype)),
        jax.jit(_row).eval_shape(observe, state),
    )
    return _History(jax.device_put(np.int32(0)), *columns)


def _blank_rest(history: _History) -> _History:
    """A traced history with rows that hold no record left blank; a concrete one is cut to its records."""
    if not is_traced(history.rows):
        return history
    count, *columns = history

    def rest(column):
        unused = jnp.arange(len(column), dtype=count.dtype) >= count
        return jnp.where(unused.reshape(-1, *(1,) * (column.ndim - 1)), blank(column.dtype), column)

    return _History(count, *jax.tree.map(rest, columns))


def _run(*arguments, per_step: bool, resumable: bool, times: int):
    """`_advance`, with the loss evaluated at records only; a run that diverges is repeated with all of it.

    Under `jit` and `vmap`, where nobody can look at the outcome, it is evaluated at every step.
    """
    static = {"per_step": per_step, "resumable": resumable, "times": times}
    if is_traced(arguments):
        return _advance(*arguments, every_step=True, **static)
    ended = _advance(*arguments, every_step=False, **static)
    if int(ended[-1]) != Status.DIVERGED:
        return ended
    return _advance(*arguments, every_step=True, **static)


@partial(Program, static_argnames=("every_step", "per_step", "resumable"))
def _advance(
    loss, optimizer, observe, state, history, end, record_every, tolerance, *, every_step, per_step, resumable
):
    """Run up to step `end`, recording every `record_every` steps; stop early where it should.

    The state that it starts from is recorded, too, in place of the last record: that of the same state.
    With `every_step` a run ends at the first step whose loss is not finite, otherwise at the first record,
    and the gradient at its end is there if it is `resumable`.
    """
    step = partial(take_step, loss, optimizer, per_step=per_step)

    def steps_to_next_record(carry):
        state, history = carry
        goal = jnp.minimum(state.step + record_every, end)
        if every_step:
            state = jax.lax.while_loop(
                lambda state: (state.step < goal) & jnp.isfinite(state.loss), step, state
            )
        else:
            state = _steps_until(goal, loss, optimizer, state, per_step=per_step)
        return state, _record(observe, state, history)

    def unfinished(carry):
        state, _ = carry
        return (state.step < end) & jnp.isfinite(state.loss) & (state.loss > tolerance)

    last = history._replace(rows=jnp.maximum(history.rows - 1, 0))
    history = _record(observe, state, last)
    state, history = jax.lax.while_loop(unfinished, steps_to_next_record, (state, history))
    if resumable and not every_step:
        gradient = jax.grad(loss)(state.weights, *((state.step,) if per_step else ()))
        state = state._replace(gradient=gradient)
    ended = jnp.where(state.loss <= tolerance, Status.REACHED_TOLERANCE, Status.COMPLETED)
    return state, history, jnp.where(jnp.isfinite(state.loss), ended, Status.DIVERGED)


def _row(observe, state: DescentState):
    observed = () if observe is None else observe(state.weights)
    return state.step, state.loss, jax.tree.map(jnp.asarray, observed)


def _record(observe, state: DescentState, history: _History) -> _History:
    count, *columns = history
    rows = _row(observe, state)
    columns = jax.tree.map(lambda column, row: column.at[count].set(row), tuple(columns), rows)
    return _History(count + 1, *columns)


@partial(jax.tree_util.register_dataclass, data_fields=(), meta_fields=("value",))
class _Static:
    """An optax optimizer as a pytree without leaves, told apart by identity."""

    def __init__(self, value: GradientTransformation):
        self.value = value

    def init(self, weights):
        return self.value.init(weights)

    def update(self, gradient, state, weights):
        with jax.numpy_dtype_promotion("standard"):  # some of optax mixes int and float
            return self.value.update(gradient, state, weights)


def _with_stability_hint(trajectory: Trajectory, objective, optimizer) -> Trajectory:
    """Add to a concrete run that diverged the learning rate its problem says would be stable."""
    if is_traced(trajectory.status) or not isinstance(objective, Problem):
        return trajectory
    if int(trajectory.status) != Status.DIVERGED or not isinstance(optimizer, GradientDescent):
        return trajectory
    edge = max_learning_rate(objective, depth=len(trajectory.weights), alpha=optimizer.alpha)
    return replace(
        trajectory,
        hint=f"the learning rate is {float(optimizer.learning_rate):g}, and gradient descent is "
        f"stable below {float(edge):g} here",
    )
