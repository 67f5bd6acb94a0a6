"""Observed entries as rows, columns and values: one set of conditions, for everyone who takes them."""

from typing import Any

import numpy as np

from lowdim_jax._arrays import as_shape, host_floats, plain
from lowdim_jax._reading import short

Triplets = tuple[np.ndarray, np.ndarray, np.ndarray]
LARGEST_SIDE = 2**31 - 1
"""Rows or columns that 32-bit integers can number."""


def checked_triplets(
    rows: Any, columns: Any, values: Any, /, *, shape: Any = None, double: bool = False
) -> tuple[Triplets, tuple[int, int]]:
    """Rows, columns and values of observed entries, and the shape of their matrix.

    An entry any part of which is masked was not observed and is left out. Types of values are converted
    as everywhere (docs/inputs.md); with `double`, double precision stays whatever JAX has enabled.

    Raises
    ------
    ValueError
        If the three are not arrays of one length, at least 1; if an index is no integer or out of range;
        if a value is not finite.
    """
    given = (rows, columns, values)
    seen = _not_masked(given)
    arrays = []
    for name, part in zip(("rows", "columns", "values"), given, strict=True):
        array = plain(name, part.data if isinstance(part, np.ma.MaskedArray) else part)
        arrays.append(array if seen is None or array.shape != seen.shape else array[seen])
    rows, columns, values = arrays
    if rows.ndim != 1 or not rows.shape == columns.shape == values.shape or rows.size == 0:
        raise ValueError(
            f"rows, columns and values have shapes {rows.shape}, {columns.shape} and {values.shape}, "
            "expected three arrays of one length, at least 1"
        )
    sides = (None, None) if shape is None else as_shape("shape", shape)
    rows, found_rows = checked_indices("rows", rows, sides[0])
    columns, found_columns = checked_indices("columns", columns, sides[1])
    return (rows, columns, host_floats("values", values, double=double)), (found_rows, found_columns)


def checked_indices(name: str, index: Any, size: int | None, /) -> tuple[np.ndarray, int]:
    """Indices below `size`, and `size`; by default the smallest that holds them.

    Raises
    ------
    ValueError
        If one is no integer, negative, or not below `size`.
    """
    index = plain(name, index)
    if index.dtype.kind not in "iu":
        raise ValueError(f"{name} has type {index.dtype}, expected integers: number them from zero")
    if index.size == 0:
        return index, size or 0
    lowest, highest = int(index.min()), int(index.max())
    limit = LARGEST_SIDE if size is None else size
    if lowest < 0 or highest >= limit:
        bad = np.flatnonzero((index < 0) | (index >= limit))[0]
        raise ValueError(
            f"{name} has {index.flat[bad]} at position {bad}, expected from 0 to {limit - 1}"
            + (": number them anew, by np.unique(…, return_inverse=True)" if size is None else "")
        )
    return index, highest + 1 if size is None else size


def merged(triplets: Triplets, shape: tuple[int, int], duplicates: str, /) -> Triplets:
    """Entries ordered by row, then column, each of them once.

    Raises
    ------
    ValueError
        If an entry is given twice and `duplicates` is `"raise"`; or is neither this nor `"mean"`.
    """
    if duplicates not in ("raise", "mean"):
        raise ValueError(f"duplicates={short(duplicates)}, expected 'raise' or 'mean'")
    rows, columns = (  # of 16 bits if they can be, which NumPy sorts in linear time
        index.astype(np.min_scalar_type(size - 1))
        for index, size in zip(triplets[:2], shape, strict=True)
    )
    order = np.lexsort((columns, rows))
    rows, columns, values = rows[order], columns[order], triplets[2][order]
    again = np.append(False, (rows[1:] == rows[:-1]) & (columns[1:] == columns[:-1]))
    if not again.any():
        return rows, columns, values
    if duplicates == "raise":
        first = np.argmax(again)
        raise ValueError(
            f"{again.sum()} entries are given more than once, the first in row {rows[first]}, column "
            f"{columns[first]}: remove them, or take duplicates='mean'"
        )
    place = np.cumsum(~again) - 1
    means = np.bincount(place, values) / np.bincount(place)
    return rows[~again], columns[~again], means.astype(values.dtype)


def _not_masked(parts) -> np.ndarray | None:
    """Where no part is masked; None where no part has a mask that says so of all of one length."""
    masks = [np.ma.getmaskarray(part) for part in parts if isinstance(part, np.ma.MaskedArray)]
    same = masks and all(mask.shape == masks[0].shape for mask in masks)
    return ~np.logical_or.reduce(masks) if same else None
