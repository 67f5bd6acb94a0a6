"""Real matrices as targets: reading them, and cutting them to a rank that can be checked."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np

from lowdim_jax.compression import estimate_rank
from lowdim_jax.linalg import LowRank, svd

ENERGY = 0.95
MAX_RANK = 5
MAX_SIDE = 256
"""Longest side at size "small": a step of the original network costs the product of three widths."""
TOP = 20.0


def load_matrix(name: str) -> np.ndarray:
    """Read a matrix from `.npy`, `.npz`, `.csv` or `.mtx`; `"digits"` is scikit-learn's.

    Raises
    ------
    ValueError
        With one sentence on what is wrong with the file.
    """
    if name == "digits":
        return _digits()
    path = Path(name)
    if not path.is_file():
        raise ValueError(f"target {name!r} is neither a file nor 'digits'")
    readers = {".npy": _read_npy, ".npz": _read_npz, ".csv": _read_csv, ".mtx": _read_mtx}
    if path.suffix not in readers:
        raise ValueError(f"target {name!r} ends in none of {', '.join(readers)}")
    if path.stat().st_size == 0:
        raise ValueError(f"target {name!r} is an empty file")
    try:
        matrix = readers[path.suffix](path)
    except (ValueError, OSError, EOFError) as error:
        raise ValueError(f"target {name!r} cannot be read: {error}") from error
    return _validated(name, matrix)


def prepare(
    matrix: np.ndarray, /, *, rank: int | None, dtype: str, size: str = "small"
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
        If `rank` is out of range or the matrix has fewer components.
    """
    shape = matrix.shape
    if size == "small":
        matrix = matrix[:MAX_SIDE, :MAX_SIDE]
    parts = svd(jnp.asarray(matrix, dtype))
    available = estimate_rank(parts)
    chosen = min(estimate_rank(parts, energy=ENERGY), MAX_RANK) if rank is None else rank
    if not 1 <= chosen <= available:
        raise ValueError(f"rank={rank}, expected 1 ≤ rank ≤ {available}, the target's rank")
    kept = parts.truncate(chosen)
    held = float(jnp.sum(kept.singular_values**2) / jnp.sum(parts.singular_values**2))
    scale = TOP / float(kept.singular_values[0])
    rule = "given" if rank is not None else f"fewest that hold {ENERGY:.0%}, at most {MAX_RANK}"
    note = (
        f"{_cut(shape, matrix.shape)} of rank {available}; its leading {chosen} "
        f"components ({rule}) hold {held:.1%} of its squared Frobenius norm; scaled by {scale:.3g} "
        f"to σ*_1 = {TOP:g}"
    )
    return LowRank(kept.left, kept.singular_values * scale, kept.right), note


def _cut(shape: tuple[int, ...], kept: tuple[int, ...]) -> str:
    whole = f"{shape[0]}×{shape[1]} matrix"
    return whole if kept == shape else f"leading {kept[0]}×{kept[1]} block of a {whole} (--size paper: all)"


def _digits() -> np.ndarray:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ValueError("target 'digits' needs scikit-learn: pip install scikit-learn") from error
    return load_digits(return_X_y=True)[0]


def _validated(name: str, matrix: np.ndarray) -> np.ndarray:
    matrix = np.asarray(matrix)
    if matrix.ndim != 2 or min(matrix.shape) < 2:
        raise ValueError(
            f"target {name!r} has shape {matrix.shape}, expected a matrix with both sides ≥ 2"
        )
    if not np.issubdtype(matrix.dtype, np.number) or np.iscomplexobj(matrix):
        raise ValueError(f"target {name!r} has entries of type {matrix.dtype}, expected real numbers")
    bad = np.argwhere(~np.isfinite(matrix))
    if len(bad):
        row, column = bad[0]
        raise ValueError(
            f"target {name!r} has {len(bad)} entries that are NaN or infinite, "
            f"the first in row {row + 1}, column {column + 1}"
        )
    if not matrix.any():
        raise ValueError(f"target {name!r} is zero: there is no component to learn")
    return matrix


def _read_npy(path: Path) -> np.ndarray:
    return np.load(path, allow_pickle=False)


def _read_npz(path: Path) -> np.ndarray:
    from zipfile import BadZipFile

    try:
        with np.load(path, allow_pickle=False) as arrays:
            names = list(arrays)
            if len(names) != 1:
                raise ValueError(f"it holds {len(names)} arrays ({', '.join(names)}), expected one")
            return arrays[names[0]]
    except BadZipFile as error:
        raise ValueError(str(error)) from error


def _read_csv(path: Path) -> np.ndarray:
    import csv

    with path.open(newline="", encoding="utf-8") as file:
        rows = [(number, row) for number, row in enumerate(csv.reader(file), start=1) if row]
    if not rows:
        raise ValueError("it has no rows")
    width = len(rows[0][1])
    values = []
    for number, row in rows:
        if len(row) != width:
            raise ValueError(f"line {number} has {len(row)} fields, the first line has {width}")
        try:
            values.append([float(field) for field in row])
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from error
    return np.array(values)


def _read_mtx(path: Path) -> np.ndarray:
    from scipy.io import mmread

    matrix = mmread(path)
    return matrix if isinstance(matrix, np.ndarray) else matrix.toarray()
