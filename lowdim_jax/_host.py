"""Telling values from tracers, values in this machine's memory, and functions that carry theirs as leaves."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

if TYPE_CHECKING:
    AnyArray = jax.Array  # so that what a function returns can be used as one: NumPy's have the same methods
else:
    AnyArray = jax.Array | np.ndarray
    """What functions take, and return where they were given NumPy's arrays, or `on_host`'s."""


def is_traced(*trees) -> bool:
    """Whether any leaf is a tracer, of `jit`, `vmap` or a derivative."""
    return any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(trees))


def on_host(tree: Any) -> Any:
    """The same pytree with NumPy's view of every concrete array on a CPU; anything else stays as it is.

    NumPy computes at once, where JAX compiles a program for each operation and shape first: 20 ms each,
    which is most of the time that a small problem's set-up takes.
    """

    def view(leaf):
        if not isinstance(leaf, jax.Array) or is_traced(leaf) or not leaf.is_fully_addressable:
            return leaf
        here = all(device.platform == "cpu" for device in leaf.devices())
        is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return np.asarray(leaf) if here and not is_key else leaf

    return jax.tree.map(view, tree)


def of_one_kind(tree, /):
    """Arrays that can be computed with together: NumPy's where all are concrete on a CPU, else JAX's."""
    here = on_host(tree)
    if all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(here)):
        return here
    return jax.tree.map(as_array, tree)


def as_array(values, /) -> jax.Array:
    """`jnp.asarray`, without the program that this compiles for each shape of a NumPy array."""
    return values if isinstance(values, jax.Array) else jax.device_put(np.asarray(values))


def as_pytree(function: Callable) -> Callable:
    """A callable as a pytree: a method of a problem keeps the problem's arrays as leaves."""
    owner, of_class = getattr(function, "__self__", None), getattr(function, "__func__", None)
    if of_class is not None and not jax.tree_util.all_leaves([owner]):
        return jax.tree_util.Partial(of_class, owner)
    if isinstance(function, jax.tree_util.Partial):
        return function
    return jax.tree_util.Partial(function)
