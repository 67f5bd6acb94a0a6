"""Arguments of predictions: scalars and arrays of one data type, each checked where it is concrete."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike
from jaxtyping import Array

from lowdim_jax._arrays import as_integer


def cast(*values: ArrayLike) -> list[Array]:
    """Arrays of one inexact data type, which is that of the most precise argument."""
    arrays = [jnp.asarray(value) for value in values]
    with jax.numpy_dtype_promotion("standard"):
        dtype = jnp.result_type(1.0, *arrays)
    return [array.astype(dtype) for array in arrays]


def broadcast(*values: ArrayLike) -> list[Array]:
    return jnp.broadcast_arrays(*cast(*values))


def check_integer(name, value, *, least):
    as_integer(name, value, least=least)


def check(name, value, holds, expected):
    """Raise `ValueError` where a concrete argument is not finite or out of range."""
    if not isinstance(value, Tracer):
        value = np.asarray(value)
        bad = value[~(np.isfinite(value) & holds(value))]
        if bad.size:
            raise ValueError(f"{name}={bad.flat[0]}, expected a finite number, {expected}")
