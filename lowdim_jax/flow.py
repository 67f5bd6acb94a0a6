"""Gradient flow with error control: the continuous-time limit of gradient descent."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, Literal
from unittest.mock import patch

import diffrax
import equinox._errors
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Real

from lowdim_jax._arrays import as_count, as_floats
from lowdim_jax._host import AnyArray, as_pytree, is_traced
from lowdim_jax._rosenbrock import Rosenbrock, Scaled, rms
from lowdim_jax.networks import roles
from lowdim_jax.problems.base import Problem, loss_of, max_learning_rate
from lowdim_jax.trajectory import Status, Trajectory, blank, trim

RTOL = 1e-8
"""Error per step by default, where the precision resolves it."""
EXPLICIT_BUDGET = 20_000
"""Predicted explicit steps up to which `solver="auto"` is explicit."""
_STABILITY_INTERVAL = 3.3
"""Step length times fastest rate that the explicit method stays stable for."""


def gradient_flow(
    objective: Problem | Callable,
    weights: Any,
    times: Real[AnyArray, " n"],
    /,
    *,
    alpha=1.0,
    solver: Literal["auto", "explicit", "implicit"] = "auto",
    rtol: float | None = None,
    atol: float | None = None,
    max_steps: int | None = None,
    observe: Callable | None = None,
    throw: bool = False,
) -> Trajectory:
    """Integrate `Ẇ_l = −α_l ∇_{W_l} ℓ(W)` and record at `times`.

    Composes with `jit`, `vmap` and forward-mode differentiation.

    Parameters
    ----------
    objective
        A problem, or a function of the weights.
    weights
        Initial weights at time 0: a tuple, one entry a layer.
    times
        Increasing, from zero or later on.
    alpha
        Rate of the first and the last layer relative to those between (docs/theory.md 2.5).
    solver
        `"explicit"`: Dormand and Prince's method of order 8. Its steps are limited by the fastest rate of
        the components fitted already, while it waits for the last one (docs/theory.md 2.6).
        `"implicit"`: a Rosenbrock method of order 5 with matrix-free linear solves, for deep networks
        and small initializations. `"auto"`: explicit unless `objective` is a problem whose largest
        stable learning rate predicts more than 20,000 explicit steps; explicit under `jit`.
    rtol, atol
        Error per step allowed, relative to the size of a row or column of a layer (of an entry, where a
        layer is a vector) and absolute. `rtol` is by default 1e-8, or 64 rounding units where that is more
        (8e-6 in single precision). `atol` is by default `rtol / 10` times the root mean square of the
        smallest initial layer that is not zero: the wait on a plateau depends on the *relative* accuracy
        of components that are still tiny.
    max_steps
        Step budget, rejected steps included; by default 200,000 explicit or 50,000 implicit ones.
    observe
        Function of the weights whose result is recorded with the loss.
    throw
        Raise `RuntimeError` where the run fails, instead of only saying so in the status.

    Returns
    -------
    `Trajectory` with these `times`. Its `status` is `OUT_OF_STEPS` where the step budget ended first,
    `SOLVER_FAILED` where no step was small enough, `DIVERGED` where loss or gradient at the start are
    not finite; `message` says why, and how far the run came.

    Raises
    ------
    ValueError
        If `times` is not an increasing vector of non-negative finite times, `rtol` is not in `(0, 1)`, or
        `solver` is unknown.

    Examples
    --------
    >>> import jax.numpy as jnp, lowdim_jax as ld, numpy as np
    >>> problem = ld.factorization(jnp.diag(jnp.array([2.0, 1.0])))
    >>> network = ld.compress(problem, depth=2, scale=0.1, rank=2)
    >>> times = jnp.array([0.0, 1.0, 2.0, 8.0])
    >>> run = ld.gradient_flow(problem, network, times, observe=ld.spectra.singular_values)
    >>> print(np.asarray(run.observed[:, 0]).round(3))
    [0.01  0.431 1.875 2.   ]
    >>> print(np.asarray(ld.theory.mode_trajectory(times, 2.0, depth=2, scale=0.1)).round(3))
    [0.01  0.431 1.875 2.   ]
    """
    _check_times(times)
    if solver not in ("auto", "explicit", "implicit"):
        raise ValueError(f"solver={solver!r}, expected 'auto', 'explicit' or 'implicit'")
    if rtol is None:
        rtol = max(RTOL, 64 * float(jnp.finfo(jnp.result_type(*jax.tree.leaves(weights))).eps))
    if not is_traced(rtol) and not 0 < rtol < 1:
        raise ValueError(f"rtol={rtol}, expected a relative tolerance between 0 and 1")
    if not is_traced(alpha) and not np.all((np.asarray(alpha) >= 0) & np.isfinite(alpha)):
        raise ValueError(f"alpha={alpha}, expected a finite number, at least 0")
    if atol is not None and not is_traced(atol) and not 0 <= atol < np.inf:
        raise ValueError(f"atol={atol}, expected a non-negative finite tolerance")
    max_steps = None if max_steps is None else as_count("max_steps", max_steps, least=1)
    times = as_floats("times", times)
    end = times[-1]
    rate = _fastest_rate(objective, weights, alpha, end)
    if solver == "auto":
        predicted = 0.0 if rate is None else float(end) * rate / _STABILITY_INTERVAL
        solver = "implicit" if predicted > EXPLICIT_BUDGET else "explicit"
    if max_steps is None:
        max_steps = 50_000 if solver == "implicit" else 200_000
    with _without_callbacks():
        trajectory, reached = _integrate(
            as_pytree(loss_of(objective)),
            weights,
            times,
            alpha,
            rtol,
            atol,
            None if observe is None else as_pytree(observe),
            implicit=solver == "implicit",
            max_steps=max_steps,
        )
    if not is_traced(trajectory.status):
        trajectory = trim(trajectory)
        if not trajectory.ok:
            hint = _why(trajectory, float(reached), float(end), rate, solver)
            trajectory = replace(trajectory, hint=hint)
        if throw:
            trajectory.raise_if_failed()
    return trajectory


@partial(jax.jit, static_argnames=("implicit", "max_steps"))
def _integrate(loss, weights, times, alpha, rtol, atol, observe, *, implicit, max_steps):
    y0, unravel = ravel_pytree(weights)
    rates = _rates(weights, alpha, y0.dtype)
    sizes = jnp.stack([rms(layer) for layer in jax.tree.leaves(weights)])
    smallest = jnp.min(jnp.where(sizes > 0, sizes, jnp.inf))
    atol = rtol * jnp.where(jnp.isfinite(smallest), smallest, 1) / 10 if atol is None else atol

    def scale(y):
        return atol + rtol * ravel_pytree(jax.tree.map(_entry_size, unravel(y)))[0]

    # In units of the last time, so that step sizes and their lower limit are relative to it.
    end = times[-1].astype(y0.dtype)
    ticks = times.astype(y0.dtype) / end
    gradient = jax.grad(lambda y: loss(unravel(y)))
    start = -end * rates * gradient(y0)
    starts = jnp.all(jnp.isfinite(start))  # otherwise zeros stay where they are, and the run is over at once
    start = jnp.where(starts, start, 0)
    begin = jnp.where(starts, y0, 0)
    first_step = jnp.clip(rtol**-0.8 / rms(start / scale(begin)), 1e-10, 1e-2)
    inverse_rates = jnp.where(rates > 0, 1 / jnp.where(rates > 0, rates, 1), 0)

    def record(t, y, args):
        layers = unravel(y)
        return (loss(layers),) if observe is None else (loss(layers), observe(layers))

    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(lambda t, y, args: jnp.where(starts, -end * rates * gradient(y), 0)),
        Rosenbrock(inverse_rates, scale) if implicit else Scaled(diffrax.Dopri8(scan_kind="lax"), scale),
        jnp.zeros((), y0.dtype),
        jnp.ones((), y0.dtype),
        first_step,
        begin,
        stepsize_controller=diffrax.ClipStepSizeController(
            diffrax.PIDController(
                rtol=0.0, atol=1.0, pcoeff=0.3, icoeff=0.4, safety=0.8, dtmin=1e-20, force_dtmin=False
            ),
            step_ts=ticks,
        ),
        max_steps=max_steps,
        adjoint=diffrax.ForwardMode(),
        saveat=diffrax.SaveAt(
            subs=[diffrax.SubSaveAt(ts=ticks, fn=record), diffrax.SubSaveAt(t1=True)]
        ),
        throw=False,
    )
    assert solution.ts is not None  # for the type checker: something is saved
    assert solution.ys is not None
    recorded = jnp.isfinite(solution.ts[0]) & starts
    losses, *observed = jax.tree.map(
        lambda leaf: _blank_where_unrecorded(leaf, recorded), solution.ys[0]
    )
    results = diffrax.RESULTS
    status = jnp.select(
        [
            ~starts,
            solution.result == results.successful,
            solution.result == results.max_steps_reached,
        ],
        [int(Status.DIVERGED), int(Status.COMPLETED), int(Status.OUT_OF_STEPS)],
        int(Status.SOLVER_FAILED),
    )
    trajectory = Trajectory(
        losses=losses,
        observed=observed[0] if observed else (),
        weights=unravel(jnp.where(starts, solution.ys[1][0], y0)),
        status=status,
        count=jnp.sum(recorded),
        num_steps=solution.stats["num_steps"],
        times=jnp.where(recorded, times, jnp.nan),
    )
    return trajectory, solution.ts[1][0] * end


@contextmanager
def _without_callbacks() -> Iterator[None]:
    """Equinox's runtime errors are callbacks to the host, which neither other devices nor the cache can have.

    Nothing is lost: times are checked here, and how the solver ended is the trajectory's status.
    """
    with patch.object(equinox._errors, "EQX_ON_ERROR", "off"):
        yield


def _rates(weights, alpha, dtype) -> jax.Array:
    """Relative rate of every entry, flattened as the weights are."""
    by_role = {"outer": jnp.asarray(alpha, dtype), "middle": jnp.ones((), dtype)}
    layers = tuple(
        jax.tree.map(lambda leaf, role=role: jnp.broadcast_to(by_role[role], leaf.shape), layer)
        for layer, role in zip(weights, roles(weights), strict=True)
    )
    return ravel_pytree(layers)[0]


def _entry_size(layer: jax.Array) -> jax.Array:
    """Size of each entry for error control.

    Entries of a matrix are as large as their row or their column, whichever is smaller: a component
    that is still at `ε` keeps its relative accuracy next to fitted ones, and zeros ask for nothing.
    """
    if layer.ndim < 2:
        return jnp.abs(layer)
    squares = layer * layer
    row, column = jnp.mean(squares, -1, keepdims=True), jnp.mean(squares, -2, keepdims=True)
    return jnp.sqrt(jnp.minimum(*jnp.broadcast_arrays(row, column)))


def _blank_where_unrecorded(leaf: jax.Array, recorded: jax.Array) -> jax.Array:
    mask = recorded.reshape(-1, *(1,) * (leaf.ndim - 1))
    return jnp.where(mask, leaf, blank(leaf.dtype))


def _check_times(times) -> None:
    if jnp.ndim(times) != 1 or jnp.size(times) == 0:
        raise ValueError(f"times has shape {jnp.shape(times)}, expected a non-empty vector")
    if is_traced(times):
        return
    values = np.asarray(times)
    if not (values[0] >= 0 and 0 < values[-1] < np.inf and np.all(np.diff(values) > 0)):
        raise ValueError("times is not an increasing sequence of non-negative finite times")


def _fastest_rate(objective, weights, alpha, end) -> float | None:
    """Fastest rate `2 / edge` of the flow at its minimum, where there is a problem that can tell it."""
    if not isinstance(objective, Problem) or is_traced(objective, weights, alpha, end):
        return None
    with jax.ensure_compile_time_eval():
        return float(2 / jnp.min(max_learning_rate(objective, depth=len(weights), alpha=alpha)))


def _why(trajectory: Trajectory, reached: float, end: float, rate, solver: str) -> str:
    """Why a concrete run failed, as far as it can be known."""
    if trajectory.status == Status.DIVERGED:
        return "loss or gradient are not finite at the initial weights"
    text = f"it came to t = {reached:.6g} of {end:.6g}"
    if rate is None:
        return text
    eps = float(jnp.finfo(trajectory.losses.dtype).eps)
    if end * eps * rate > 1:
        return (
            f"{text}; times near {end:.3g} are {end * eps:.1g} apart in this precision, longer than the "
            f"{1 / rate:.1g} a component takes to rise"
        )
    if solver == "explicit":
        needed = end * rate / _STABILITY_INTERVAL
        return (
            f"{text}; stability alone takes about {needed:.1g} explicit steps: "
            "solver='implicit' does not need them"
        )
    return f"{text}; raise max_steps or rtol"
