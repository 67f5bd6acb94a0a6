"""Telling values from tracers: input is checked, and hints are given, for values only."""

import jax
from jax.core import Tracer


def is_traced(*trees) -> bool:
    """Whether any leaf is a tracer, of `jit`, `vmap` or a derivative."""
    return any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(trees))
