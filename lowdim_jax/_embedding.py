"""Whether an optimizer moves a small network as it moves the same one inside a wider one."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lowdim_jax.optimizers import GradientTransformation

PROBE = (3, 7, 8, 4)
"""Widths of the wide network on which an optimizer is tried; its cores are (2, 3, 3, 2)."""


def embedding_gap(optimizer: GradientTransformation, layer: Callable[[Any, Any], Any], /) -> float:
    """How far an optimizer moves a network apart from the same one embedded in a wider one.

    A few steps of given gradients, from tiny to large, on cores `z_l` and on `B_l z_l B_{l−1}ᵀ` plus a part
    that has no gradient; largest difference of a layer, relative to how far it moved.
    """
    rng = np.random.default_rng(0)
    sizes = (2, 3, 3, 2)
    bases = [np.linalg.qr(rng.standard_normal((d, m)))[0] for d, m in zip(PROBE, sizes, strict=True)]
    spans = list(pairwise(bases))
    dtype = jnp.zeros(()).dtype

    def embed(cores):
        return tuple(after @ core @ before.T for core, (before, after) in zip(cores, spans, strict=True))

    def draw():
        return [rng.standard_normal((len(a.T), len(b.T))) for b, a in spans]

    cores, forces = draw(), [size * np.ones(()) for size in (1e-2, 1.0, 30.0, 0.3)]
    gradients = [[force * core for core in draw()] for force in forces]
    outer = [np.eye(len(b)) - b @ b.T for b in bases]
    rests = tuple(
        after @ rng.standard_normal((len(after), len(before))) @ before
        for before, after in pairwise(outer)
    )
    narrow = [tuple(layer(core, np.zeros(())) for core in gradient) for gradient in gradients]

    def as_dtype(tree):
        return jax.tree.map(lambda leaf: np.asarray(leaf, dtype), tree)

    def stacked(trees):
        return as_dtype(jax.tree.map(lambda *leaves: np.stack(leaves), *trees))

    import optax  # as the optimizer's owner has; it takes a fifth of a second to load

    @jax.jit
    def walk(weights, gradients):
        with jax.numpy_dtype_promotion("standard"):  # some of optax mixes int and float
            state = optimizer.init(weights)

            def step(carry, gradient):
                weights, state = carry
                updates, state = optimizer.update(gradient, state, weights)
                return (optax.apply_updates(weights, updates), state), None

            (weights, _), _ = jax.lax.scan(step, (weights, state), gradients)
        return weights

    small: Any = walk(as_dtype(tuple(layer(core, np.ones(())) for core in cores)), stacked(narrow))
    start = tuple(a + b for a, b in zip(embed(cores), rests, strict=True))
    wide: Any = walk(as_dtype(start), stacked([embed(gradient) for gradient in gradients]))
    lifted = embed([np.asarray(moved.core) for moved in small])
    gaps = [
        np.linalg.norm(w - (z + float(moved.rest) * rest)) / max(np.linalg.norm(w - s), 1e-30)
        for w, z, moved, rest, s in zip(map(np.asarray, wide), lifted, small, rests, start, strict=True)
    ]
    return float(max(gaps))
