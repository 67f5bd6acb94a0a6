"""What a solver returns: the recorded history of a run and how the run ended."""

from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from lowdim_jax._tracing import as_array, is_traced, on_host


class Status(IntEnum):
    """How a run ended."""

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
    """The caller's `progress` asked to stop."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Trajectory:
    """Recorded history of a training run, one row a record.

    Records are rows `0 … count − 1`. Outside of `jit` and `vmap` the arrays are cut to them; inside,
    their length is fixed, and rows past `count` hold NaN (0 in integer arrays).

    Attributes
    ----------
    t
        `(n,)`: step numbers for gradient descent, times for gradient flow. Step `k` of learning rate
        `η` corresponds to time `η k`.
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
    steps
        Steps the solver took. For gradient descent that diverged: the step whose loss was not finite.
    """

    t: Float[Array, " n"] | Int[Array, " n"]
    losses: Float[Array, " n"]
    observed: Any
    weights: Any
    status: Int[Array, ""]
    count: Int[Array, ""]
    steps: Int[Array, ""]
    hint: str = field(default="", metadata={"static": True})

    @property
    def ok(self) -> bool:
        """Whether the run ended as it should (of a concrete, single run)."""
        good = (Status.COMPLETED, Status.REACHED_TOLERANCE, Status.STOPPED)
        return Status(int(self.status)) in good

    @property
    def message(self) -> str:
        """One sentence on how the run ended."""
        status, steps, last = Status(int(self.status)), int(self.steps), int(self.count) - 1
        recorded = float(np.asarray(self.t)[last]) if last >= 0 else float("nan")
        text = {
            Status.COMPLETED: f"completed: {steps} steps",
            Status.REACHED_TOLERANCE: f"reached the loss tolerance after {steps} steps",
            Status.STOPPED: f"stopped by progress after {steps} steps",
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
    if count == len(trajectory.t):
        return trajectory
    history = on_host((trajectory.t, trajectory.losses, trajectory.observed))
    t, losses, observed = jax.tree.map(lambda leaf: as_array(leaf[:count]), history)
    return replace(trajectory, t=t, losses=losses, observed=observed)
