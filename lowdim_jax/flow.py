"""Gradient flow with error control: the continuous-time limit of gradient descent."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Real

from lowdim_jax._arrays import as_count, as_floats
from lowdim_jax._host import AnyArray, as_pytree, is_traced
from lowdim_jax.problems.base import Problem, loss_of, max_learning_rate
from lowdim_jax.trajectory import Status, Trajectory, trim

RTOL = 1e-8
"""Error per step by default, where the precision resolves it."""
EXPLICIT_BUDGET = 20_000
"""Predicted explicit steps up to which `solver="auto"` is explicit."""
EVALUATIONS = 100_000
"""Gradients that a flow takes, about, or several flows of one program: what its compilation is worth."""
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
    from lowdim_jax._integration import integrate, without_callbacks  # diffrax takes as long to load as JAX

    with without_callbacks():
        trajectory, reached = integrate(
            as_pytree(loss_of(objective)),
            weights,
            times,
            alpha,
            rtol,
            atol,
            None if observe is None else as_pytree(observe),
            implicit=solver == "implicit",
            max_steps=max_steps,
            times=EVALUATIONS,
        )
    if not is_traced(trajectory.status):
        trajectory = trim(trajectory)
        if not trajectory.ok:
            hint = _why(trajectory, float(reached), float(end), rate, solver)
            trajectory = replace(trajectory, hint=hint)
        if throw:
            trajectory.raise_if_failed()
    return trajectory


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
