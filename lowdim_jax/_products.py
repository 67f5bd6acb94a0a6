"""Products of matrices whose gradients a CPU multiplies in rows."""

import jax

from lowdim_jax._host import AnyArray


@jax.custom_jvp
def product(a: AnyArray, b: AnyArray) -> AnyArray:
    """`A B`; its gradients `G Bᵀ` and `Aᵀ G` are products with transposes that are written out.

    XLA would have the product read them in columns, for which a CPU takes up to 1.7 times as long.
    """
    return a @ b


@product.defjvp
def _product_jvp(primals, tangents):
    (a, b), (da, db) = primals, tangents
    a_t, b_t = jax.lax.optimization_barrier((a.T, b.T))  # else the transposes go into the products
    return a @ b, da @ b_t.T + a_t.T @ db
