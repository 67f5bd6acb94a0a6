"""Telling values from tracers, and functions that carry their values with them as leaves."""

from collections.abc import Callable

import jax
from jax.core import Tracer


def is_traced(*trees) -> bool:
    """Whether any leaf is a tracer, of `jit`, `vmap` or a derivative."""
    return any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(trees))


def as_pytree(function: Callable) -> Callable:
    """A callable as a pytree: a method of a problem keeps the problem's arrays as leaves."""
    owner = getattr(function, "__self__", None)
    if owner is not None and not jax.tree_util.all_leaves([owner]):
        return jax.tree_util.Partial(function.__func__, owner)
    if isinstance(function, jax.tree_util.Partial):
        return function
    return jax.tree_util.Partial(function)
