"""Observed entries in files by ranges of rows, so that a process reads those of its own rows only."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

INDEX = "shards.json"

Entries = tuple[np.ndarray, ...]
"""Rows, columns and values."""


@dataclass(frozen=True)
class Shards:
    """A folder of files `00000.npz`, …, each with the entries of a range of rows; `open_shards` reads it.

    Attributes
    ----------
    folder
        Where they are.
    shape
        `(d_out, d_in)` of the whole matrix.
    bounds
        File `k` has the rows from `bounds[k]` to `bounds[k + 1]`.
    """

    folder: Path
    shape: tuple[int, int]
    bounds: tuple[int, ...]

    def file(self, number: int) -> Path:
        """File of a range of rows."""
        return self.folder / f"{number:05d}.npz"

    def read(self, rows: range, /) -> Entries:
        """Entries in the given rows, from the files that have some of them.

        Raises
        ------
        ValueError
            If a file cannot be read, or is not one of rows, columns and values.
        """
        parts: list[Entries] = []
        for number, (start, stop) in enumerate(pairwise(self.bounds)):
            if max(start, rows.start) < min(stop, rows.stop):
                entries = read_entries(self.file(number))
                inside = (entries[0] >= rows.start) & (entries[0] < rows.stop)
                parts.append(entries if inside.all() else tuple(part[inside] for part in entries))
        if not parts:
            return np.zeros(0, np.int64), np.zeros(0, np.int32), np.zeros(0, np.float32)
        return tuple(np.concatenate(part) for part in zip(*parts, strict=True))


def open_shards(folder: str | Path, /) -> Shards:
    """The shards in a folder; `ValueError` if it has none."""
    folder = Path(folder)
    try:
        index = json.loads((folder / INDEX).read_text("utf-8"))
        d_out, d_in = index["shape"]
        return Shards(folder, (d_out, d_in), tuple(index["bounds"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{str(folder)!r} is not a folder of shards: {error}") from error


def write_shards(folder: str | Path, parts: Iterable[Entries], /, *, shape, bounds) -> Shards:
    """Write one file after the other; the index last, so that an unfinished folder is not taken for whole."""
    shards = Shards(Path(folder), (int(shape[0]), int(shape[1])), tuple(map(int, bounds)))
    shards.folder.mkdir(parents=True, exist_ok=True)
    (shards.folder / INDEX).unlink(missing_ok=True)
    for number, (rows, columns, values) in enumerate(parts):
        np.savez(shards.file(number), rows=rows, columns=columns, values=values)
    index = {"shape": shards.shape, "bounds": shards.bounds}
    (shards.folder / INDEX).write_text(json.dumps(index), "utf-8")
    return shards


def split(entries: Entries, bounds: tuple[int, ...], /) -> Iterator[Entries]:
    """Entries by ranges of rows."""
    for start, stop in pairwise(bounds):
        inside = (entries[0] >= start) & (entries[0] < stop)
        yield tuple(part[inside] for part in entries)


def synthesize(
    shape: tuple[int, int], bounds: tuple[int, ...], /, *, rank: int, observations: int, seed: int = 0
) -> Iterator[Entries]:
    """Entries of a random matrix of a given rank, one range of rows after the other.

    `Φ = A B` with normal factors, scaled so that entries have variance one; about as many observations
    as asked for, at uniformly random places. A range depends on the seed and on its number only.
    """
    d_out, d_in = shape
    right = np.random.default_rng([seed, 0]).standard_normal((d_in, rank)) / rank**0.5
    for number, (start, stop) in enumerate(pairwise(bounds), start=1):
        rng = np.random.default_rng([seed, number])
        left = rng.standard_normal((stop - start, rank))
        asked = round(observations * (stop - start) / d_out)
        places = np.unique(rng.integers(0, (stop - start) * d_in, asked))
        rows, columns = divmod(places, d_in)
        values = np.einsum("nr,nr->n", left[rows], right[columns])
        yield rows + start, columns.astype(np.int32), values


def even_bounds(length: int, parts: int, /) -> tuple[int, ...]:
    """Bounds of ranges of about the same size."""
    if not 1 <= parts <= length:
        raise ValueError(f"shards={parts}, expected from 1 to {length}, the number of rows")
    return tuple(length * k // parts for k in range(parts + 1))


def read_entries(path: Path, /) -> Entries:
    """Arrays `rows`, `columns` and `values` of an `.npz` file; `ValueError` if it has no such arrays."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return file["rows"], file["columns"], file["values"]
    except (OSError, ValueError, EOFError, KeyError, BadZipFile) as error:
        raise ValueError(f"{str(path)!r} has no arrays rows, columns and values: {error}") from error
