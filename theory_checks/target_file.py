"""Real matrices as targets: reading them, and cutting them to a rank that can be checked."""

import csv
import math
import os
import re
from decimal import Decimal
from io import BytesIO
from pathlib import Path
from typing import Any, Literal, TypeAlias
from zipfile import ZipFile

import jax.numpy as jnp
import numpy as np
import scipy

from lowdim_jax._reading import (
    GZIP,
    LARGEST,
    because,
    named,
    number_of,
    read_bytes,
    read_text,
    regular_file,
    short,
)
from lowdim_jax.compression import estimate_rank
from lowdim_jax.linalg import LowRank, svd

Matrix: TypeAlias = "np.ndarray | scipy.sparse.coo_array"

ENERGY = 0.95
MAX_RANK = 5
MAX_SIDE = 256
"""Longest side at size "small": a step of the original network costs the product of three widths."""
MAX_ENTRIES = 10**8
"""Entries of the largest matrix that is decomposed as a whole, at the other sizes: `10,000 × 10,000`."""
TOP = 20.0
ROWS = 4096
"""Rows that are looked at together: a mapped file is never in memory as a whole."""


def load_matrix(name: str) -> Matrix:
    """Read a matrix from `.npy`, `.npz`, `.csv` or `.mtx`, or one of these packed as `.gz`.

    `"digits"` is scikit-learn's. A sparse `.mtx` stays sparse; entries of any real type become
    float64. docs/inputs.md has what is taken.

    Raises
    ------
    ValueError
        With one sentence on what is wrong with the file.
    """
    if name == "digits":
        return _digits()
    what, path = f"target {named(name)}", Path(name)
    kind = next((suffix for suffix in reversed(path.suffixes) if suffix.lower() != ".gz"), "").lower()
    if not os.path.exists(name):  # which is False for names too long for a file, too
        raise ValueError(f"{what} is neither a file nor 'digits'")
    size = regular_file(path, what)
    if kind not in READERS:
        raise ValueError(f"{what} ends in none of {', '.join(READERS)}")
    if size == 0:
        raise ValueError(f"{what} is an empty file")
    try:
        matrix = READERS[kind](path, what)
    except Exception as error:  # decoders of zip, LZMA, NumPy and Matrix Market each raise their own
        said = because(error)
        raise ValueError(said if said.startswith(what) else f"{what} cannot be read: {said}") from error
    return _validated(what, matrix)


def prepare(
    matrix: Matrix, /, *, rank: int | None, dtype: str, size: str = "small"
) -> tuple[LowRank, str]:
    """Cut a matrix to a rank and scale it, and say so.

    At size "small" only its first 256 rows and columns are taken; larger sizes take all of it.

    The checks follow individual components, so the target must have a few clearly present ones:
    its leading `r` singular triplets, `r` the smallest number that holds 95% of `Σ σ_i²`, at most 5.
    It is divided by a number so that `σ*_1 = 20`, the size of the synthetic targets: this changes
    neither singular vectors nor the theory.

    Raises
    ------
    ValueError
        If `rank` is out of range or the matrix has fewer components; if what is taken of it is zero,
        or too large to be decomposed.
    """
    shape = matrix.shape
    block = _block(matrix, size)
    largest = float(np.abs(block).max())
    if largest == 0:
        raise ValueError(f"target's {_cut(shape, block.shape)} is zero: there is no component to learn")
    parts = svd(jnp.asarray(block / largest, dtype))  # whose squares neither overflow nor vanish
    available = estimate_rank(parts)
    chosen = min(estimate_rank(parts, energy=ENERGY), MAX_RANK) if rank is None else rank
    if not 1 <= chosen <= available:
        raise ValueError(f"rank={rank}, expected 1 ≤ rank ≤ {available}, the target's rank")
    kept = parts.truncate(chosen)
    held = float(jnp.sum(kept.singular_values**2) / jnp.sum(parts.singular_values**2))
    scale = TOP / float(kept.singular_values[0])
    factor = Decimal(scale) / Decimal(largest)  # which may be beyond float64
    rule = "given" if rank is not None else f"fewest that hold {ENERGY:.0%}, at most {MAX_RANK}"
    note = (
        f"{_cut(shape, block.shape)} of rank {available}; its leading {chosen} "
        f"components ({rule}) hold {held:.1%} of its squared Frobenius norm; scaled by {factor:.3g} "
        f"to σ*_1 = {TOP:g}"
    )
    return LowRank(kept.left, kept.singular_values * scale, kept.right), note


def _block(matrix: Any, size: str) -> np.ndarray:
    """The part of a matrix that a run of this size takes, dense and in double precision."""
    side = MAX_SIDE if size == "small" else max(matrix.shape)
    shape = tuple(min(side, length) for length in matrix.shape)
    if math.prod(shape) > MAX_ENTRIES:
        raise ValueError(
            f"target of shape {matrix.shape} is too large to be decomposed, expected at most {MAX_ENTRIES:,} "
            f"entries; --size small takes its leading {MAX_SIDE}×{MAX_SIDE} block"
        )
    if not scipy.sparse.issparse(matrix):
        return np.asarray(matrix[: shape[0], : shape[1]], np.float64)
    inside = (matrix.row < shape[0]) & (matrix.col < shape[1])
    places = matrix.row[inside], matrix.col[inside]
    values = matrix.data[inside].astype(np.float64)
    block: Any = scipy.sparse.coo_array((values, places), shape)
    return block.toarray()


def _cut(shape: tuple[int, ...], kept: tuple[int, ...]) -> str:
    whole = f"{shape[0]}×{shape[1]} matrix"
    return whole if kept == shape else f"leading {kept[0]}×{kept[1]} block of a {whole} (--size paper: all)"


def _digits() -> np.ndarray:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ValueError("target 'digits' needs scikit-learn: pip install scikit-learn") from error
    return np.asarray(load_digits(return_X_y=True)[0])


def _validated(what: str, matrix: Any) -> Matrix:
    if matrix.ndim != 2 or min(matrix.shape) < 2:
        raise ValueError(f"{what} has shape {matrix.shape}, expected a matrix with both sides ≥ 2")
    if matrix.dtype.kind not in "biuf":
        raise ValueError(f"{what} has entries of type {matrix.dtype}, expected real numbers")
    some, wrong, first = False, 0, (0, 0)
    stored = matrix.data[:, None] if scipy.sparse.issparse(matrix) else matrix
    for start in range(0, len(stored), ROWS):
        rows = stored[start : start + ROWS]
        with np.errstate(over="ignore"):
            bad = np.argwhere(~np.isfinite(rows.astype(np.float64)))
        if len(bad) and not wrong:
            first = bad[0] + (start, 0)
        wrong += len(bad)
        some |= bool(rows.any())
    if wrong:
        row, column = (index[first[0]] for index in matrix.coords) if stored is not matrix else first
        raise ValueError(
            f"{what} has {wrong} entries that are NaN or infinite, the first in row {row + 1}, "
            f"column {column + 1}"
        )
    if not some:
        raise ValueError(f"{what} is zero: there is no component to learn")
    return matrix


def _read_npy(path: Path, what: str) -> np.ndarray:
    with path.open("rb") as file:
        if file.read(2) == GZIP:
            content = read_bytes(path, what)
            return _array(BytesIO(content), len(content))
        file.seek(0)
        shape, order, dtype = _header(file, path.stat().st_size)
        # Mapped, not read: at size "small" only a block of it is used.
        return np.memmap(path, dtype, "r", file.tell(), shape, order)


def _read_npz(path: Path, what: str) -> np.ndarray:
    with ZipFile(BytesIO(read_bytes(path, what))) as archive:
        members = archive.infolist()
        if len(members) != 1:
            names = ", ".join(member.filename.removesuffix(".npy") for member in members)
            raise ValueError(f"it holds {len(members)} arrays ({short(names)[1:-1]}), expected one")
        if members[0].file_size > LARGEST:
            raise ValueError(f"it unpacks to {members[0].file_size:,} bytes: give it as .npy")
        content = archive.read(members[0])
    return _array(BytesIO(content), len(content))


def _array(file, size: int) -> np.ndarray:
    """The array of a file of `size` bytes in NumPy's format."""
    shape, order, dtype = _header(file, size)
    content = file.read(math.prod(shape) * dtype.itemsize)
    return np.frombuffer(content, dtype).reshape(shape, order=order)


def _header(file, size: int) -> tuple[tuple[int, int], Literal["C", "F"], np.dtype]:
    """Shape, order and type of an array in NumPy's format, which has to be in the bytes that follow."""
    version = np.lib.format.read_magic(file)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in readers:
        raise ValueError(f"it is in version {version} of NumPy's format, expected (1, 0) or (2, 0)")
    shape, fortran, dtype = readers[version](file)
    if dtype.kind not in "biuf":
        raise ValueError(f"it has entries of type {short(dtype)}, expected real numbers")
    if len(shape) != 2 or min(shape) < 2:
        raise ValueError(f"it has shape {short(shape)}, expected a matrix with both sides ≥ 2")
    needed, given = math.prod(shape) * dtype.itemsize, size - file.tell()
    if needed > given:
        raise ValueError(f"its header promises shape {short(shape)}, {needed:,} bytes, but {given:,} follow")
    return shape, "F" if fortran else "C", dtype


def _read_csv(path: Path, what: str) -> np.ndarray:
    lines = re.split("\r\n?|\n", read_text(path, what))
    given = [(k, line) for k, line in enumerate(lines, start=1) if line.strip() and line[0] not in "#%"]
    if not given:
        raise ValueError("it has no rows")
    mark = next((mark for mark in "\t;," if mark in given[0][1]), ",")
    values = []
    for number, line in given:
        fields = next(csv.reader([line], delimiter=mark))
        if values and len(fields) != len(values[0]):
            raise ValueError(f"line {number} has {len(fields)} fields, the first line has {len(values[0])}")
        try:
            values.append(np.array([number_of(field) for field in fields]))
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from error
    return np.array(values)


def _read_mtx(path: Path, what: str) -> Matrix:
    content = read_bytes(path, what)
    rows, columns, promised, layout, *_, symmetry = scipy.io.mminfo(BytesIO(content))
    if layout == "array":
        promised = rows * columns if symmetry == "general" else rows * (rows - 1) // 2
    if 2 * promised > len(content):  # an entry takes a character and the end of its line
        raise ValueError(f"its header promises {promised:,} entries, too many for {len(content):,} bytes")
    matrix = scipy.io.mmread(BytesIO(content), spmatrix=False)
    return matrix if isinstance(matrix, np.ndarray) else matrix.tocoo()


READERS = {".npy": _read_npy, ".npz": _read_npz, ".csv": _read_csv, ".mtx": _read_mtx}
