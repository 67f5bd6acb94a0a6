"""Observed entries in files by ranges of rows, so that a process reads those of its own rows only."""

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from lowdim_jax._arrays import as_shape
from lowdim_jax._reading import because, named, regular_file

INDEX = "shards.json"

Entries = tuple[np.ndarray, ...]
"""Rows, columns and values."""
MOST_PACKED = 1200
"""Times that an archive can be smaller than what is in it: more than that, its sizes are wrong."""
AT_ONCE = 2**20
"""Entries that are hashed together."""


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
    fingerprints
        `fingerprint` of each file's entries, when they were written.

    Examples
    --------
    >>> import numpy as np, tempfile
    >>> entries = (np.array([0, 3]), np.array([1, 0]), np.array([2.0, 5.0]))
    >>> shards = write_shards(tempfile.mkdtemp(), split(entries, (0, 2, 4)), shape=(4, 2), bounds=(0, 2, 4))
    >>> shards.shape, shards.bounds
    ((4, 2), (0, 2, 4))
    """

    folder: Path
    shape: tuple[int, int]
    bounds: tuple[int, ...]
    fingerprints: tuple[int, ...]

    @property
    def data(self) -> str:
        """Fingerprint of all entries, however they are cut into files."""
        return f"{sum(self.fingerprints) % 2**64:016x}"

    def file(self, number: int) -> Path:
        """File of a range of rows."""
        return self.folder / f"{number:05d}.npz"

    def read(self, rows: range, /) -> Entries:
        """Entries in the given rows, from the files that have some of them.

        Raises
        ------
        ValueError
            If a file cannot be read, is not one of rows, columns and values, or is not the one that was
            written.
        """
        parts: list[Entries] = []
        for number, (start, stop) in enumerate(pairwise(self.bounds)):
            if max(start, rows.start) < min(stop, rows.stop):
                entries = read_entries(self.file(number))
                if fingerprint(entries) != self.fingerprints[number]:
                    raise ValueError(f"{named(self.file(number))} is not what {INDEX} was written for")
                inside = (entries[0] >= rows.start) & (entries[0] < rows.stop)
                parts.append(entries if inside.all() else tuple(part[inside] for part in entries))
        if not parts:
            return np.zeros(0, np.int64), np.zeros(0, np.int32), np.zeros(0, np.float32)
        return tuple(np.concatenate(part) for part in zip(*parts, strict=True))


def open_shards(folder: str | Path, /) -> Shards:
    """The shards in a folder; `ValueError` if it has none.

    Examples
    --------
    >>> import numpy as np, tempfile
    >>> folder, entries = tempfile.mkdtemp(), (np.array([0, 3]), np.array([1, 0]), np.array([2.0, 5.0]))
    >>> _ = write_shards(folder, split(entries, (0, 2, 4)), shape=(4, 2), bounds=(0, 2, 4))
    >>> open_shards(folder).shape
    (4, 2)
    """
    folder = Path(folder)
    try:
        regular_file(folder / INDEX, INDEX)
        index = json.loads((folder / INDEX).read_text("utf-8"))
        shape, bounds = as_shape("shape", index["shape"]), tuple(index["bounds"])
        prints = tuple(int(text, 16) for text in index.get("fingerprints", ()))
        if not (bounds[0] == 0 and bounds[-1] == shape[0] and all(a < b for a, b in pairwise(bounds))):
            raise ValueError(f"its bounds do not cut {shape[0]} rows")
        if len(prints) != len(bounds) - 1:
            raise ValueError("it has no fingerprints of its files: write it anew")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise ValueError(f"{named(folder)} is not a folder of shards: {because(error)}") from error
    return Shards(folder, shape, bounds, prints)


def write_shards(folder: str | Path, parts: Iterable[Entries], /, *, shape, bounds) -> Shards:
    """Write one file after the other, then the index; what was there before stays until all is written.

    Raises
    ------
    ValueError
        If something cannot be written: nothing of it is left then.

    Examples
    --------
    >>> import numpy as np, pathlib, tempfile
    >>> folder, entries = tempfile.mkdtemp(), (np.array([0, 3]), np.array([1, 0]), np.array([2.0, 5.0]))
    >>> _ = write_shards(folder, split(entries, (0, 2, 4)), shape=(4, 2), bounds=(0, 2, 4))
    >>> sorted(path.name for path in pathlib.Path(folder).glob("*.npz"))
    ['00000.npz', '00001.npz']
    """
    folder, shape, bounds = Path(folder), as_shape("shape", shape), tuple(map(int, bounds))
    written, prints = [], []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for number, (rows, columns, values) in enumerate(parts):
            written.append(folder / f".{number:05d}.{os.getpid()}.npz")
            np.savez(written[-1], rows=rows, columns=columns, values=values)
            prints.append(fingerprint((rows, columns, values)))
        shards = Shards(folder, shape, bounds, tuple(prints))
        index = {"shape": shape, "bounds": bounds, "fingerprints": [f"{number:016x}" for number in prints]}
        written.append(folder / f".{INDEX}.{os.getpid()}")
        written[-1].write_text(json.dumps(index), "utf-8")
        (folder / INDEX).unlink(missing_ok=True)  # from here on, until the last line, there is no set
        for number in range(len(prints)):
            written[number].replace(shards.file(number))
        written[-1].replace(folder / INDEX)
        return shards
    except OSError as error:
        raise ValueError(f"{named(folder)} cannot be written to: {because(error)}") from error
    finally:
        for path in written:
            path.unlink(missing_ok=True)


def fingerprint(entries: Entries, /) -> int:
    """A number of 64 bits that differs, but for chance, where some entry does; in any order of entries.

    The sum of a mixed number for each entry (Steele, Lea and Flood 2014), so that fingerprints of parts
    add up to that of the whole.
    """
    total = 0
    for start in range(0, len(entries[0]), AT_ONCE):
        rows, columns, values = (part[start : start + AT_ONCE] for part in entries)
        mixed = _mix(rows.astype(np.uint64))
        mixed = _mix(mixed + columns.astype(np.uint64))
        mixed = _mix(mixed ^ values.astype(np.float64).view(np.uint64))
        total += int(np.sum(mixed, dtype=np.uint64))
    return total % 2**64


def _mix(number: np.ndarray) -> np.ndarray:
    number = number + np.uint64(0x9E3779B97F4A7C15)
    number = (number ^ (number >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    number = (number ^ (number >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return number ^ (number >> np.uint64(31))


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
    what = named(path)
    try:
        size = regular_file(path, what)
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            if sum(member.file_size for member in arrays.zip.infolist()) > MOST_PACKED * size:
                raise ValueError("it unpacks to far more than it holds")
            return arrays["rows"], arrays["columns"], arrays["values"]
    except Exception as error:  # archives raise errors of zip, zlib, LZMA and NumPy
        raise ValueError(f"{what} has no arrays rows, columns and values: {because(error)}") from error
