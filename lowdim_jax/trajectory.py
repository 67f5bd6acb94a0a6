"""What a solver returns: the recorded history of a run and how the run ended."""

from dataclasses import dataclass, replace
from enum import IntEnum
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from lowdim_jax._host import as_array, is_traced, on_host


class Status(IntEnum):
    """How a run ended.

    Examples
    --------
    >>> [status.name for status in Status]
    ['COMPLETED', 'REACHED_TOLERANCE', 'DIVERGED', 'OUT_OF_STEPS', 'SOLVER_FAILED', 'STOPPED']
    """

    COMPLETED = 0
    """All requested steps or times were reached."""
    REACHED_TOLERANCE = 1
    """The loss fell to the tolerance; the run stopped early."""
    DIVERGED = 2
    """The loss became NaN or infinite."""
    OUT_OF_STEPS = 3
    """The ODE solver used up its step budget before the last requested time."""
    SOLVER_FAILED = 4
    """The ODE solver could not take a step (step size or nonlinear solve failed)."""
    STOPPED = 5
    """The caller's `callback` asked to stop."""


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("losses", "observed", "weights", "status", "count", "num_steps", "steps", "times"),
    meta_fields=(),
    drop_fields=("hint",),
)
@dataclass(frozen=True, repr=False)
class Trajectory:
    """Recorded history of a training run, one row a record.

    Records are rows `0 … count − 1`. Outside of `jit` and `vmap` the arrays are cut to them; inside,
    their length is fixed, and rows past `count` hold NaN (0 in integer arrays).

    Attributes
    ----------
    losses
        `(n,)`: loss at each record.
    observed
        What the caller's `observe(weights)` returned, stacked along a new first axis.
    weights
        Weights at the last record.
    status
        A `Status`, as an integer array.
    count
        Number of records.
    num_steps
        Steps the solver took. For gradient descent that diverged: the step whose loss was not finite.
    steps
        `(n,)`: step numbers of the records of gradient descent; None for gradient flow. Step `k` of learning
        rate `η` corresponds to time `η k`.
    times
        `(n,)`: times of the records of gradient flow; None for gradient descent.
    hint
        What would help a run that failed, in words. No part of the pytree: it stays behind where
        `jax.tree.map` makes another trajectory of this one.

    Examples
    --------
    >>> import jax.numpy as jnp, lowdim_jax as ld
    >>> start = (0.5 * jnp.eye(2), 0.5 * jnp.eye(2))
    >>> run = ld.gradient_descent(ld.factorization(jnp.eye(2)), start, ld.GradientDescent(9.0), steps=50)
    >>> Status(int(run.status)).name, bool(run.ok)
    ('DIVERGED', False)
    """

    losses: Float[Array, " n"]
    observed: Any
    weights: Any
    status: Int[Array, ""]
    count: Int[Array, ""]
    num_steps: Int[Array, ""]
    steps: Any = None  # an integer array or None; typed as what whoever knows the solver can use
    times: Any = None
    hint: str = ""

    def __repr__(self) -> str:
        """Status, records and shapes; the arrays themselves are not printed."""
        shapes = jax.tree.map(lambda leaf: "×".join(map(str, jnp.shape(leaf))), (self.weights, self.observed))
        if is_traced(self) or jnp.ndim(self.status):
            told = f"{jnp.shape(self.losses)} losses"
        else:
            told = f"{self.message}; {int(self.count)} records"
            if int(self.count):
                told += f", loss {float(self.losses[0]):.4g} → {float(self.losses[int(self.count) - 1]):.4g}"
        return f"Trajectory({told}; weights {shapes[0]}, observed {shapes[1]})"

    @property
    def ok(self) -> bool:
        """Whether the run ended as it should (of a concrete, single run)."""
        good = (Status.COMPLETED, Status.REACHED_TOLERANCE, Status.STOPPED)
        return Status(int(self.status)) in good

    @property
    def message(self) -> str:
        """One sentence on how the run ended."""
        status, steps, last = Status(int(self.status)), int(self.num_steps), int(self.count) - 1
        at = self.steps if self.times is None else self.times
        recorded = float(np.asarray(at)[last]) if last >= 0 else float("nan")
        text = {
            Status.COMPLETED: f"completed: {steps} steps",
            Status.REACHED_TOLERANCE: f"reached the loss tolerance after {steps} steps",
            Status.STOPPED: f"stopped by its callback after {steps} steps",
            Status.DIVERGED: f"diverged: the loss is not finite at step {steps}",
            Status.OUT_OF_STEPS: f"out of steps: the budget of {steps} steps ended after t = "
            f"{recorded:g}",
            Status.SOLVER_FAILED: f"solver failed after {steps} steps, past t = "
            f"{recorded:g}",
        }[status]
        return text if self.ok or not self.hint else f"{text}; {self.hint}"

    def raise_if_failed(self) -> "Trajectory":
        """Return the trajectory, or raise `RuntimeError` with its message if the run failed."""
        if not self.ok:
            raise RuntimeError(self.message)
        return self


def blank(dtype):
    """What fills the rows of a history that hold no record."""
    return np.asarray(np.nan if jnp.issubdtype(dtype, jnp.inexact) else 0, dtype)


def trim(trajectory: Trajectory) -> Trajectory:
    """Cut the history of a concrete trajectory to its records; a traced one is returned as is."""
    if is_traced(trajectory.count) or trajectory.count.ndim:
        return trajectory
    count = int(trajectory.count)
    if count == len(trajectory.losses):
        return trajectory
    names = ("steps", "times", "losses", "observed")
    history = on_host({name: getattr(trajectory, name) for name in names})
    return replace(trajectory, **jax.tree.map(lambda leaf: as_array(leaf[:count]), history))
