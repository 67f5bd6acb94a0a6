"""What a run of the checks is given: sizes, seeds, precision, target; and the tolerances it implies."""

from dataclasses import dataclass
from functools import cached_property

import jax
import jax.numpy as jnp
import numpy as np

from lowdim_jax.linalg import LowRank
from lowdim_jax.problems.targets import separated_target

SIZES = {"small": (40, 4), "paper": (100, 10), "large": (512, 10)}
"""Width `d` and rank `r` of the synthetic targets."""


@dataclass(frozen=True)
class Setting:
    """Settings of one run, handed to every check.

    Attributes
    ----------
    size
        `"small"`, `"paper"` or `"large"`.
    dtype
        `"float64"` or `"float32"`.
    seeds
        Number of seeds; every check reports the worst.
    target
        The user's matrix, already cut to its rank and scaled; None for synthetic targets.
    target_note
        What was done to the user's matrix, for the report.

    Examples
    --------
    >>> setting = Setting(size="small", dtype="float32", seeds=3)
    >>> setting.rank, setting.shape
    (4, (40, 40))
    """

    size: str = "small"
    dtype: str = "float64"
    seeds: int = 3
    target: LowRank | None = None
    target_note: str = ""

    @cached_property
    def eps(self) -> float:
        """Rounding unit of the run's precision."""
        return float(np.finfo(self.dtype).eps)

    @cached_property
    def keys(self) -> jax.Array:
        """One random key a seed."""
        return jax.random.split(jax.random.key(0), self.seeds)

    @cached_property
    def targets(self) -> LowRank:
        """One target a seed, stacked along a first axis; the user's matrix is the same for all."""
        if self.target is not None:
            return jax.tree.map(
                lambda leaf: jnp.broadcast_to(leaf, (self.seeds, *leaf.shape)), self.target
            )
        d, rank = SIZES[self.size]
        make = jax.vmap(lambda key: separated_target(key, d, rank, dtype=self.dtype))
        return jax.jit(make)(self.keys)

    @property
    def rank(self) -> int:
        """Rank of the targets."""
        return self.targets.singular_values.shape[-1]

    @property
    def shape(self) -> tuple[int, int]:
        """Shape `(d_out, d_in)` of the targets."""
        return self.targets.left.shape[-2], self.targets.right.shape[-2]

    @property
    def compressed_rank(self) -> int:
        """`r̂ = 2r`, the paper's choice, where the matrix is large enough."""
        return min(2 * self.rank, *self.shape)

    def solver_tolerance(self, wanted: float) -> float:
        """Error per step to ask of the ODE solver: `wanted`, or what the precision can resolve."""
        return max(wanted, 20 * self.eps)

    def integration(self, wanted: float) -> float:
        """Error that the ODE solver may build up: `1000` times `solver_tolerance(wanted)`.

        A run takes some hundred steps, and the steep rises amplify what came before.
        """
        return 1e3 * self.solver_tolerance(wanted)

    def linearization(self) -> float:
        """Error of a law that is first order in a perturbation of size `√ε_mach`: 50 times that."""
        return 50 * self.eps**0.5

    def rounding(self, steps: int) -> float:
        """Error that rounding may build up over `steps` steps: `32 ε_mach` times their number.

        Each step commits a relative error of the rounding unit; the escape from a small
        initialization amplifies early errors by at most the number of steps it takes.
        """
        return 32 * self.eps * steps
