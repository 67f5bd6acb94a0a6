"""Labelled images: scikit-learn's digits, and readers of MNIST's and CIFAR-10's files."""

import gzip
import importlib.util
import math
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

IDX_BYTES = 0x08  # the type code of unsigned bytes, the only one MNIST and its successors use
CIFAR_SHAPE = (3, 32, 32)


class Images(NamedTuple):
    """Images with labels.

    Attributes
    ----------
    images
        `(n, height, width, channels)`, float32 in `[0, 1]`.
    labels
        `(n,)`, int32, from 0.

    Examples
    --------
    >>> from lowdim_jax.nn import reference
    >>> data = reference.digits()
    >>> train, test = data.split(held_out=0.2)
    >>> train.images.shape[1:], len(train.labels) + len(test.labels)
    ((8, 8, 1), 1797)
    """

    images: np.ndarray
    labels: np.ndarray

    def split(self, *, held_out: float = 0.2, seed: int = 0) -> tuple["Images", "Images"]:
        """Training and test images: a random fraction `held_out` becomes the test images.

        Raises
        ------
        ValueError
            If one of the two would be empty.
        """
        count = len(self.labels)
        test = round(held_out * count)
        if not 0 < test < count:
            raise ValueError(f"held_out={held_out} of {count} images leaves one part empty")
        order = np.random.default_rng(seed).permutation(count)
        return tuple(Images(self.images[i], self.labels[i]) for i in (order[test:], order[:test]))  # type: ignore[return-value]


def digits() -> Images:
    """The 1,797 handwritten digits of 8×8 pixels that scikit-learn brings along.

    Examples
    --------
    >>> digits().images.shape
    (1797, 8, 8, 1)
    """
    table = _digits_table()
    images, labels = table[:, :-1], table[:, -1]
    return Images((images.reshape(-1, 8, 8, 1) / 16).astype("float32"), labels.astype("int32"))


def _digits_table() -> np.ndarray:
    """Pixels and labels from scikit-learn's own file: importing it takes two seconds, and reading 0.1."""
    package = importlib.util.find_spec("sklearn")
    if package is not None and package.origin is not None:
        path = Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz"
        if path.is_file():
            return np.loadtxt(path, delimiter=",")
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    return np.column_stack([np.asarray(images), np.asarray(labels)])


def load_images(directory: str | Path | None = None, /) -> Images:
    """The digits, or the training images of MNIST's or CIFAR-10's format that a directory holds.

    A directory with only MNIST's second part gives that one.

    Raises
    ------
    ValueError
        If there are none in the directory, or they cannot be read.

    Examples
    --------
    >>> load_images().images.shape  # without a folder: the digits
    (1797, 8, 8, 1)
    """
    if directory is None:
        return digits()
    readers = {
        "train-images-idx3-ubyte": lambda: mnist(directory, "train"),
        "t10k-images-idx3-ubyte": lambda: mnist(directory, "t10k"),
        "data_batch_1.bin": lambda: cifar10(directory, "train"),
    }
    for name, read in readers.items():
        if any((Path(directory) / (name + end)).is_file() for end in ("", ".gz")):
            return read()
    raise ValueError(f"there is none of {', '.join(readers)} in {directory}, with or without .gz")


def mnist(directory: str | Path, /, part: str = "train") -> Images:
    """MNIST, FashionMNIST or another set in their format, from a directory.

    Reads `{part}-images-idx3-ubyte` and `{part}-labels-idx1-ubyte`, each as it is or with `.gz`.

    Parameters
    ----------
    directory
        Where the files are.
    part
        `"train"` or `"t10k"`.

    Raises
    ------
    ValueError
        If a file is missing, truncated, not in IDX format, or the two do not belong together.

    Examples
    --------
    >>> import gzip, numpy as np, pathlib, tempfile
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> header = bytes([0, 0, 8, 3, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 2])
    >>> _ = (folder / "train-images-idx3-ubyte").write_bytes(header + bytes([0, 255, 0, 0]))
    >>> _ = (folder / "train-labels-idx1-ubyte").write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 1, 7]))
    >>> data = mnist(folder)
    >>> data.images.shape, data.labels
    ((1, 2, 2, 1), array([7], dtype=int32))
    """
    images, labels = (
        read_idx(_find(directory, f"{part}-{name}-ubyte"))
        for name in ("images-idx3", "labels-idx1")
    )
    if images.ndim != 3 or labels.shape != images.shape[:1]:
        raise ValueError(
            f"{part} in {directory}: images have shape {images.shape} and labels {labels.shape}, "
            "expected (n, height, width) and (n,)"
        )
    return Images(images[..., None].astype("float32") / 255, labels.astype("int32"))


def cifar10(directory: str | Path, /, part: str = "train") -> Images:
    """CIFAR-10 in its binary version, from a directory.

    Parameters
    ----------
    directory
        Where `data_batch_1.bin` … `data_batch_5.bin` and `test_batch.bin` are, each as it is or
        with `.gz`.
    part
        `"train"` or `"test"`.

    Raises
    ------
    ValueError
        If a file is missing or truncated, or a label is none of 0 … 9.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> _ = (folder / "test_batch.bin").write_bytes(bytes([3]) + bytes(3072))
    >>> data = cifar10(folder, "test")
    >>> data.images.shape, data.labels
    ((1, 32, 32, 3), array([3], dtype=int32))
    """
    names = {"train": [f"data_batch_{i}.bin" for i in range(1, 6)], "test": ["test_batch.bin"]}
    if part not in names:
        raise ValueError(f"part={part!r}, expected 'train' or 'test'")
    rows = np.concatenate([_cifar_rows(_find(directory, name)) for name in names[part]])
    images = rows[:, 1:].reshape(-1, *CIFAR_SHAPE).transpose(0, 2, 3, 1)
    return Images(images.astype("float32") / 255, rows[:, 0].astype("int32"))


def read_idx(path: str | Path, /) -> np.ndarray:
    """Array of bytes in a file of IDX format, gzipped or not.

    Raises
    ------
    ValueError
        If the file is not one of unsigned bytes in IDX format, or its size is not what its header
        says.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp(), "labels")
    >>> _ = path.write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 2, 7, 9]))
    >>> read_idx(path)
    array([7, 9], dtype=uint8)
    """
    data = _read(path)
    if len(data) < 4 or data[:2] != b"\0\0" or data[2] != IDX_BYTES:
        raise ValueError(
            f"{path} starts with {data[:4].hex() or 'nothing'}, expected 000008 and a number of "
            "dimensions: the magic number of IDX files of bytes"
        )
    dimensions = data[3]
    header = 4 + 4 * dimensions
    if dimensions == 0 or len(data) < header:
        raise ValueError(f"{path} ends inside its header of {dimensions} dimensions")
    shape = tuple(int(n) for n in np.frombuffer(data, ">u4", dimensions, offset=4))
    expected = header + math.prod(shape)
    if len(data) != expected:
        raise ValueError(f"{path} has {len(data)} bytes, expected {expected} for shape {shape}")
    return np.frombuffer(data, np.uint8, offset=header).reshape(shape)


def _cifar_rows(path: Path) -> np.ndarray:
    """Rows of one label byte and the pixels, channel by channel."""
    data = _read(path)
    row = 1 + math.prod(CIFAR_SHAPE)
    if not data or len(data) % row:
        raise ValueError(f"{path} has {len(data)} bytes, expected a positive multiple of {row}")
    rows = np.frombuffer(data, np.uint8).reshape(-1, row)
    if rows[:, 0].max() > 9:
        raise ValueError(f"{path} has the label {rows[:, 0].max()}, expected 0 to 9")
    return rows


def _find(directory: str | Path, name: str) -> Path:
    for path in (Path(directory) / name, Path(directory) / f"{name}.gz"):
        if path.is_file():
            return path
    raise ValueError(f"there is neither {name} nor {name}.gz in {directory}")


def _read(path: str | Path) -> bytes:
    try:
        data = Path(path).read_bytes()
        return gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
