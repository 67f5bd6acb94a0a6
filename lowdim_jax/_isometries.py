"""How (semi-)orthogonal layers carry small subspaces from one space to the next (docs/theory.md 3.5, 3.8).

Arrays of NumPy's or of JAX's: concrete ones on a CPU come as NumPy's (`_host.on_host`), for which no program
has to be compiled.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from lowdim_jax._host import AnyArray, is_traced
from lowdim_jax.linalg import check_finite
from lowdim_jax.networks import widths


def narrowest(spaces: Sequence[int]) -> int:
    """Index of the narrowest space."""
    return list(spaces).index(min(spaces))


def is_valley(spaces: Sequence[int]) -> bool:
    """Whether the widths never rise before they fall: towards the narrowest space from either end."""
    narrow = narrowest(spaces)
    down, up = list(spaces[: narrow + 1]), list(spaces[narrow + 1 :])
    return down == sorted(down, reverse=True) and up == sorted(up)


def reached(frames: Sequence[AnyArray]) -> list[jax.Array]:
    """Orthonormal bases of the part of each space that its outer end reaches: all of it, but for a bulge."""
    narrow = narrowest(widths(frames))
    from_input = _reached_from(identity(frames[0], frames[0].shape[1]), frames[:narrow])
    outward = [frame.T for frame in reversed(frames[narrow:])]
    from_output = _reached_from(identity(frames[0], len(frames[-1])), outward)
    return [*from_input[:-1], *reversed(from_output)]


def _reached_from(end: jax.Array, frames: Sequence[AnyArray]) -> list[jax.Array]:
    parts = [end]
    for frame in frames:
        image = frame @ parts[-1]
        wide, thin = image.shape
        parts.append(polar(image) if wide > thin else identity(image, wide))
    return parts


def identity(like: jax.Array, rows: int, columns: int | None = None) -> jax.Array:
    """The (rectangular) identity as an array of another's kind and type."""
    return like.__array_namespace__().eye(rows, columns, dtype=like.dtype)


def polar(matrix: jax.Array) -> jax.Array:
    """Nearest (semi-)orthogonal matrix."""
    u, _, vt = matrix.__array_namespace__().linalg.svd(matrix, full_matrices=False)
    return u @ vt


def frame(weight: jax.Array, number: int, strict: bool) -> tuple[jax.Array, jax.Array]:
    """Split a layer into a semi-orthogonal matrix and its scale.

    A concrete orthogonal layer is told by its Gram matrix and divided by its scale; what may be none,
    that is with `strict=False` or traced, is replaced by its polar factor.
    """
    check_finite(f"layer {number}", weight)
    xp = weight.__array_namespace__()
    if strict and not is_traced(weight):
        gram = weight @ weight.T if weight.shape[0] <= weight.shape[1] else weight.T @ weight
        scale = xp.sqrt(xp.trace(gram) / len(gram))
        _check_nonzero(scale, number)
        unit = identity(gram, len(gram))
        if xp.max(xp.abs(gram / scale**2 - unit)) > 1e3 * xp.finfo(gram.dtype).eps:
            s = xp.linalg.svd(weight, compute_uv=False)
            raise ValueError(
                f"layer {number} has singular values from {float(s[-1]):.6g} to {float(s[0]):.6g}: the law "
                "of parsimony needs an orthogonal initialization, where they are equal; strict=False takes "
                "the nearest one"
            )
        return weight / scale, scale
    scale = xp.mean(xp.linalg.svd(weight, compute_uv=False))
    _check_nonzero(scale, number)
    return polar(weight), scale


def _check_nonzero(scale, number: int) -> None:
    if not is_traced(scale) and scale == 0:
        raise ValueError(f"layer {number} is zero: it has no orthogonal factor")


def embeddings(frames: Sequence[AnyArray]) -> tuple[jax.Array, ...]:
    """Isometries `J_l` from the narrowest space to each space: products of frames, or transposes."""
    spaces = widths(frames)
    narrow = narrowest(spaces)
    embeddings = {narrow: identity(frames[0], spaces[narrow])}
    for space in range(narrow, 0, -1):
        embeddings[space - 1] = frames[space - 1].T @ embeddings[space]
    for space in range(narrow + 1, len(spaces)):
        embeddings[space] = frames[space - 1] @ embeddings[space - 1]
    return tuple(embeddings[space] for space in range(len(spaces)))


def bases(
    frames: Sequence[AnyArray], left: jax.Array, right: jax.Array, /
) -> tuple[jax.Array, ...]:
    """Small bases that hold the columns of `left` and `right` and that the layers map to each other.

    In the narrowest space they are spanned by `right` carried forward and `left` carried back. Where a
    layer widens on the way out from there, the new space also holds the part of `right` (`left`) which
    that layer cuts off. Without layers there is one space, that of both.
    """
    narrow = narrowest(widths(frames)) if frames else 0
    forward = [right]
    for frame in frames[:narrow]:
        forward.append(frame @ forward[-1])
    backward = [left]
    for frame in reversed(frames[narrow:]):
        backward.append(frame.T @ backward[-1])

    xp = right.__array_namespace__()
    chain = [xp.linalg.qr(xp.concatenate([forward[-1], backward[-1]], axis=1))[0]]
    for frame, vectors in zip(reversed(frames[:narrow]), reversed(forward[:-1]), strict=True):
        chain.insert(0, extend(frame.T, chain[0], vectors))
    for frame, vectors in zip(frames[narrow:], reversed(backward[:-1]), strict=True):
        chain.append(extend(frame, chain[-1], vectors))
    return tuple(chain)


def extend(isometry: jax.Array, basis: jax.Array, vectors: jax.Array) -> jax.Array:
    """Basis carried over by an isometry, with the parts of `vectors` outside the isometry's range.

    Concrete vectors that have no part outside add no column. Traced ones, whose shape must not depend on
    their values, add random directions there instead: the core never moves in them.
    """
    carried = isometry @ basis
    wide, thin = isometry.shape
    count = min(vectors.shape[1], wide - thin)
    if count == 0:
        return carried

    def outside(columns):
        return columns - isometry @ (isometry.T @ columns)

    xp = vectors.__array_namespace__()
    u, s, _ = xp.linalg.svd(outside(vectors), full_matrices=False)
    present = s[:count] > 100 * xp.finfo(s.dtype).eps
    if is_traced(present):
        spare = jax.random.normal(jax.random.key(0), (wide, count), u.dtype) / wide**0.5
        columns = jnp.where(present[None, :], u[:, :count], spare)
    else:
        columns = u[:, : int(present.sum())]
    for _ in range(2):
        columns, _ = xp.linalg.qr(outside(columns))
    return xp.concatenate([carried, columns], axis=1)
