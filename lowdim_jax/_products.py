"""Products of matrices whose gradients a CPU multiplies in rows."""

from typing import Any

import jax

from lowdim_jax._host import AnyArray

LARGE = 10_000
"""Entries of a matrix from which on writing its transpose out takes longer than it saves."""


def product(a: AnyArray, b: AnyArray) -> AnyArray:
    """`A B`; gradients `G Bᵀ` and `Aᵀ G` of small matrices are products with transposes written out."""
    return a @ b if max(a.size, b.size) >= LARGE else _product(a, b)


@jax.custom_jvp
def _product(a, b):
    return a @ b


@_product.defjvp
def _product_jvp(primals, tangents):
    (a, b), (da, db) = primals, tangents
    a_t, b_t = written_out((a.T, b.T))
    return a @ b, da @ b_t.T + a_t.T @ db


def written_out(transposes: Any, /) -> Any:
    """Transposes as arrays of their own, which products read in rows.

    XLA would have products read the originals in columns, for which a CPU takes up to 1.7 times as long. For
    other devices it is left to XLA: there an operation more takes as long as a small product.
    """
    return jax.lax.optimization_barrier(transposes) if jax.default_backend() == "cpu" else transposes
