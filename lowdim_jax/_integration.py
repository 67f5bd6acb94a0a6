"""Gradient flow integrated with diffrax: the compiled part of `gradient_flow`, loaded when it is needed."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from unittest.mock import patch

import diffrax
import equinox._errors
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from lowdim_jax._cache import Program
from lowdim_jax._rosenbrock import Rosenbrock, Scaled, rms
from lowdim_jax.networks import roles
from lowdim_jax.trajectory import Status, Trajectory, blank


@partial(Program, static_argnames=("implicit", "max_steps"))
def integrate(loss, weights, times, alpha, rtol, atol, observe, *, implicit, max_steps):
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
def without_callbacks() -> Iterator[None]:
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
