"""Leading singular triplets of matrices that are far too large for all of them, to the accuracy asked for.

Block Krylov iteration on products with the matrix and its transpose (Musco and Musco 2015): the matrix may be
sparse, of any shape, and is never made dense. In the precision of its entries, and with the same result every
time.
"""

from typing import Any

import numpy as np

from lowdim_jax._host import as_array
from lowdim_jax.linalg import LowRank

BLOCK = 8
"""Directions that are multiplied at once where it is not known how many components there are."""
ACCURACY = 1e-4
"""Relative accuracy of singular values."""
NO_LEVEL = float("inf")


def leading_triplets(
    matrix: Any, /, *, least: int = 1, above: float = NO_LEVEL, accuracy: float = ACCURACY
) -> LowRank:
    """The `least` leading singular triplets, and all others whose singular value is above a level.

    Ritz values rise towards singular values, by less in every iteration. The iteration ends where the rises
    of those asked for are below `accuracy`, and the next one, if a level is given, is below the level by
    twice its rise. Of the left vectors the largest entry is positive, as in `linalg.leading_svd`.

    Parameters
    ----------
    matrix
        Dense or SciPy sparse, of floating point numbers.
    least
        Number of triplets that are wanted in any case.
    above
        Level, infinite by default.
    accuracy
        Relative accuracy of singular values; the squares of the vectors' errors are of that order.
    """
    wide = matrix.shape[0] < matrix.shape[1]
    tall = matrix.T if wide else matrix
    basis, images, gram = _iterate(tall, least, above, accuracy)
    squares, directions = np.linalg.eigh(gram)
    shown = int(np.sum(squares > above**2))
    directions = directions[:, ::-1][:, : max(least, shown)].astype(tall.dtype)
    parts = np.split(directions, np.cumsum([image.shape[1] for image in images])[:-1])
    orthonormal, core = np.linalg.qr(sum(image @ part for image, part in zip(images, parts, strict=True)))
    u, values, vt = np.linalg.svd(core)
    left, right = orthonormal @ u, basis @ (directions @ vt.T)
    left, right = (right, left) if wide else (left, right)
    signs = np.sign(left[np.argmax(np.abs(left), axis=0), np.arange(len(values))])
    return LowRank(*map(as_array, (left * signs, values, right * signs)))


def leading_value(matrix: Any, /, *, accuracy: float = ACCURACY) -> float:
    """The largest singular value, from below."""
    tall = matrix.T if matrix.shape[0] < matrix.shape[1] else matrix
    _, _, gram = _iterate(tall, 1, NO_LEVEL, accuracy)
    return float(max(np.linalg.eigvalsh(gram)[-1], 0) ** 0.5)


def _iterate(tall: Any, least: int, above: float, accuracy: float):
    """An orthonormal basis that holds the right vectors asked for; its images, and their Gram matrix."""
    side, dtype = tall.shape[1], tall.dtype
    block = min(side, max(least, 1 if above == NO_LEVEL else BLOCK))
    new = np.linalg.qr(np.random.default_rng(0).standard_normal((side, block)).astype(dtype))[0]
    basis, images, gram, before = np.zeros((side, 0), dtype), [], np.zeros((0, 0)), np.zeros(0)
    while True:
        images.append(tall @ new)
        cross = np.concatenate([images[-1].T @ image for image in images], axis=1)
        gram = np.block([[gram, cross[:, : len(gram)].T], [cross]])
        basis = np.concatenate([basis, new], axis=1)
        values = np.sqrt(np.maximum(np.linalg.eigvalsh(gram)[::-1], 0))
        if basis.shape[1] == side or _settled(values, before, least, above, accuracy):
            return basis, images, gram
        new, before = _orthonormal(tall.T @ images[-1], basis, values[0]), values
        if new.shape[1] == 0:
            return basis, images, gram


def _settled(values, before, least: int, above: float, accuracy: float) -> bool:
    """Whether the values asked for have stopped rising, and the next one is known to be below the level."""
    shown = int(np.sum(values > above))
    wanted = max(least, shown)
    next_one = int(above != NO_LEVEL)
    if wanted + next_one > len(before):
        return False
    rises = values[: wanted + 1][: len(before)] - before[: wanted + 1]
    if np.any(rises[:wanted] > accuracy * values[:wanted]):
        return False
    return not next_one or wanted > shown or bool(values[wanted] + 2 * rises[wanted] < above)


def _orthonormal(vectors: np.ndarray, basis: np.ndarray, size: float) -> np.ndarray:
    """Orthonormal basis of what columns add to a basis; nothing where that is rounding."""
    for _ in range(2):  # once leaves rounding of the size of what is taken off
        vectors = vectors - basis @ (basis.T @ vectors)
    new, values, _ = np.linalg.svd(vectors, full_matrices=False)
    return new[:, values > len(basis) ** 0.5 * np.finfo(vectors.dtype).eps * size**2]
