"""Optimizers with discrepant learning rates by role, as pytrees whose rates are traced values."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from lowdim_jax._host import is_traced
from lowdim_jax.networks import roles

if TYPE_CHECKING:
    from optax import GradientTransformation
else:
    GradientTransformation = tuple  # which it is; optax takes a fifth of a second to load


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class GradientDescent:
    """Gradient descent, `η` on the middle layers and `α η` on the first and the last.

    Weights are a tuple or a list of layers, each an array or any pytree of arrays. Has the interface of an
    `optax.GradientTransformation` (`init`, `update`), but its numbers are traced: changing them does not
    recompile, and `vmap` maps over them. Momentum, Nesterov momentum and weight decay are optax's; these are
    the optimizers under which the law of parsimony is exact (docs/theory.md 3.2).

    Attributes
    ----------
    learning_rate
        `η`, in units of flow time: one step advances the flow by `η`.
    alpha
        `α`, ratio of outer to middle learning rate (docs/theory.md 1.4).
    momentum
        Decay `β` of the momentum buffer, or None for none.
    weight_decay
        `λ` of the penalty `(λ/2) Σ_l ‖W_l‖_F²`, or None for none.
    nesterov
        Whether the momentum is Nesterov's. Static.

    Raises
    ------
    ValueError
        If a concrete number is negative or not finite, or `nesterov` is given without `momentum`.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, lowdim_jax as ld
    >>> problem = ld.factorization(jnp.diag(jnp.array([3.0, 2.0])))
    >>> network = ld.compress(problem, depth=3, scale=0.3, rank=2)
    >>> fast = ld.GradientDescent(0.02, alpha=5.0)
    >>> bool(ld.gradient_descent(problem, network, fast, steps=200).losses[-1] < 1e-6)
    True
    """

    learning_rate: Any
    alpha: Any = 1.0
    momentum: Any = None
    weight_decay: Any = None
    nesterov: bool = field(default=False, metadata={"static": True})

    def __post_init__(self) -> None:
        for name in ("learning_rate", "alpha", "momentum", "weight_decay"):
            value = getattr(self, name)
            if isinstance(value, int | float | np.ndarray | np.generic | jax.Array) and not is_traced(value):
                numbers = np.asarray(value)
                if not np.all((numbers >= 0) & np.isfinite(numbers)):
                    raise ValueError(f"{name}={value}, expected a finite number, at least 0")
        if self.nesterov and self.momentum is None:
            raise ValueError("nesterov=True without a momentum, expected momentum=β beside it")

    def _direction(self) -> GradientTransformation:
        import optax

        parts = []
        if self.weight_decay is not None:
            parts.append(optax.add_decayed_weights(self.weight_decay))
        if self.momentum is not None:
            parts.append(optax.trace(self.momentum, nesterov=self.nesterov))
        return optax.chain(*parts)

    @property
    def _is_plain(self) -> bool:
        return self.weight_decay is None and self.momentum is None

    def init(self, weights, /):
        """Optimizer state: the momentum buffer, if there is one."""
        return () if self._is_plain else self._direction().init(weights)

    def update(self, gradient, state, weights):
        """Updates to add to the weights, and the next state."""
        direction: Any = gradient
        if not self._is_plain:
            direction, state = self._direction().update(gradient, state, weights)
        rate = {"outer": -self.alpha * self.learning_rate, "middle": -self.learning_rate}

        def scaled(role, layer):
            return jax.tree.map(lambda leaf: jnp.asarray(rate[role], leaf.dtype) * leaf, layer)

        return jax.tree.map(scaled, roles(weights), direction), state


def by_role(outer: GradientTransformation, middle: GradientTransformation) -> GradientTransformation:
    """One optax optimizer for the first and last layers, another for those between.

    For example `by_role(optax.adam(5e-3), optax.adam(1e-3))`: discrepant learning rates for any
    optimizer.

    Examples
    --------
    >>> import jax.numpy as jnp, lowdim_jax as ld, optax
    >>> problem = ld.factorization(jnp.diag(jnp.array([3.0, 2.0])))
    >>> network = ld.compress(problem, depth=3, scale=0.3, rank=2)
    >>> optimizer = ld.by_role(optax.adam(0.05), optax.sgd(0.02))
    >>> bool(ld.gradient_descent(problem, network, optimizer, steps=200).losses[-1] < 0.1)
    True
    """
    import optax

    return optax.partition({"outer": outer, "middle": middle}, roles)
