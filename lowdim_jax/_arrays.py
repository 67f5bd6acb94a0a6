"""What every constructor does with the arrays and numbers it is given: one conversion, one refusal.

docs/inputs.md has the table. Tracers pass: nothing is known of their values.
"""

import operator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lowdim_jax._host import as_array, is_traced
from lowdim_jax._reading import because, short


def as_floats(name: str, values: Any, /, *, finite: bool = True) -> jax.Array:
    """An array of floats that JAX computes with, from anything that is an array of real numbers.

    Booleans and integers become JAX's default float, half precision becomes single, long doubles double;
    any byte order is taken. Double precision becomes single unless JAX has it enabled.

    Raises
    ------
    ValueError
        Naming the argument: if it is no array of real numbers, is sparse, has masked entries, or (where
        concrete) entries that are NaN, infinite, or too large for the precision.
    """
    if is_traced(values):
        array = jnp.asarray(values)
        _check_kind(name, array.dtype)
        return array.astype(_float_for(array.dtype))
    if isinstance(values, jax.Array):
        _check_kind(name, values.dtype)
        wanted = _float_for(values.dtype)
        converted = values if values.dtype == wanted else values.astype(wanted)
        if finite:
            check_finite(name, converted)
        return converted
    return as_array(host_floats(name, values, finite=finite))


def host_floats(name: str, values: Any, /, *, finite: bool = True, double: bool = False) -> np.ndarray:
    """As `as_floats`, of concrete values, as a NumPy array: nothing is compiled for it.

    With `double`, double precision stays, and integers become it, whatever JAX has enabled.
    """
    array = real_array(name, values)
    if finite:
        check_finite(name, array)
    wanted = _float_for(array.dtype, double)
    with np.errstate(over="ignore"):
        converted = array.astype(wanted, copy=False)
    lost = np.isinf(converted) & ~np.isinf(array) if converted is not array else np.zeros(0, bool)
    if lost.any():
        index = tuple(map(int, np.argwhere(lost)[0]))
        raise ValueError(
            f"{name} has {array[index]!s} at index {index}, too large for {np.dtype(wanted).name}: scale "
            "it, or enable double precision with jax.config.update('jax_enable_x64', True)"
        )
    return converted


def real_array(name: str, values: Any, /) -> np.ndarray:
    """A NumPy array of real numbers of any type; `ValueError` if it is something else."""
    array = plain(name, values)
    _check_kind(name, array.dtype)
    return array


def plain(name: str, values: Any, /) -> np.ndarray:
    """A NumPy array of what was given, if nothing of it is lost.

    Raises
    ------
    ValueError
        If it is sparse, ragged, or has masked entries.
    """
    if type(values).__module__.startswith("scipy.sparse"):
        raise ValueError(
            f"{name} is a sparse matrix: observed_completion takes its stored entries as the observed ones, "
            "everything else takes its toarray()"
        )
    hidden = np.ma.count_masked(values) if isinstance(values, np.ma.MaskedArray) else 0
    if hidden:
        raise ValueError(
            f"{name} has {hidden} masked entries: completion takes them as not observed, everything else "
            "its filled(…) array"
        )
    try:
        return np.asarray(values)
    except (ValueError, TypeError) as error:  # ragged lists
        raise ValueError(f"{name} is not an array: {because(error)}") from error


def check_finite(name: str, array: Any, /) -> None:
    """Raise `ValueError` if a concrete array has NaN or infinite entries (traced ones pass)."""
    if is_traced(array):
        return
    if isinstance(array, jax.Array):
        whole = array.is_fully_addressable or array.is_fully_replicated
        if not (whole and all(device.platform == "cpu" for device in array.devices())):
            if all_finite(array):
                return
            if not whole:  # no process has it
                raise ValueError(f"{name} has entries that are NaN or infinite")
    values = np.asarray(array)
    bad = ~np.isfinite(values)
    if bad.any():
        index = tuple(map(int, np.argwhere(bad)[0]))
        raise ValueError(
            f"{name} has {bad.sum()} entries that are NaN or infinite, the first at index {index}"
        )


def all_finite(array: jax.Array, /) -> bool:
    """Whether a concrete array has no NaN or infinite entry: found where it is, without a copy of it."""
    with jax.ensure_compile_time_eval():  # a number, also while a function that holds the array is traced
        return bool(jnp.isfinite(array).all())


def as_count(name: str, value: Any, /, *, least: int | None = None) -> int:
    """A whole number as Python's `int`: NumPy's and JAX's are taken, floats and booleans are not.

    Raises
    ------
    ValueError
        Naming the argument, if it is none or below `least`.

    >>> as_count("depth", np.int64(3))
    3
    """
    expected = "an integer" if least is None else f"an integer of at least {least}"
    try:
        if isinstance(value, bool | np.bool_):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise ValueError(f"{name}={short(value)}, expected {expected}") from None
    if least is not None and number < least:
        raise ValueError(f"{name}={number}, expected at least {least}")
    return number


def as_integer(name: str, value: Any, /, *, least: int) -> int:
    """As `as_count`, with one sentence for what is no integer and for what is too small."""
    try:
        return as_count(name, value, least=least)
    except ValueError:
        raise ValueError(f"{name}={short(value)}, expected an integer of at least {least}") from None


def as_shape(name: str, shape: Any, /) -> tuple[int, int]:
    """`(d_out, d_in)` as two positive integers, from any sequence of two.

    Raises
    ------
    ValueError
        Naming the argument, if it is something else.
    """
    wrong = ValueError(f"{name}={short(shape)}, expected two positive integers (d_out, d_in)")
    try:
        d_out, d_in = (as_count(name, side, least=1) for side in shape)
    except (TypeError, ValueError):
        raise wrong from None
    return d_out, d_in


def _check_kind(name: str, dtype) -> None:
    kind = getattr(dtype, "kind", "")  # random keys have none
    if not ((kind and kind in "biuf") or jnp.issubdtype(dtype, jnp.floating)):
        raise ValueError(f"{name} has entries of type {str(dtype)[:40]}, expected real numbers")


def _float_for(dtype, double: bool = False) -> np.dtype:
    """The float that JAX, as it is set, computes with where an array of this type is given."""
    size = 8 if dtype.kind in "biu" else min(max(np.dtype(dtype).itemsize, 4), 8)
    return np.dtype(f"f{size}") if double else np.dtype(jax.dtypes.canonicalize_dtype(f"f{size}"))
