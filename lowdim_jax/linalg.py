"""Matrices kept as factors, and thin decompositions that never form the full matrix."""

import sys
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import scipy  # which loads its parts on first use
from jaxtyping import Float, Real

from lowdim_jax._arrays import as_floats, check_finite  # noqa: F401 (of matrices, by this name, too)
from lowdim_jax._host import AnyArray, as_array, is_traced, on_host

SMALL = 1 << 20
"""Entries up to which a sparse matrix is made dense to be decomposed."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LowRank:
    """A matrix `Σ_i s_i u_i v_iᵀ` as its thin singular value decomposition.

    Build it with `low_rank`, which makes the columns orthonormal and orders `s`.

    Attributes
    ----------
    left
        `(d_out, r)`, orthonormal columns `u_i`.
    singular_values
        `(r,)`, descending, non-negative.
    right
        `(d_in, r)`, orthonormal columns `v_i`.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> matrix = LowRank(jnp.eye(3, 2), jnp.array([3.0, 2.0]), jnp.eye(4, 2))
    >>> matrix.shape, matrix.dense().sum().item(), matrix.truncate(1).singular_values
    ((3, 4), 5.0, Array([3.], dtype=float32))
    """

    left: Float[AnyArray, "*n d_out r"]
    singular_values: Float[AnyArray, "*n r"]
    right: Float[AnyArray, "*n d_in r"]

    @property
    def shape(self) -> tuple[int, int]:
        """Shape `(d_out, d_in)` of the matrix it stands for."""
        return self.left.shape[0], self.right.shape[0]

    @property
    def dtype(self):
        """Data type of the entries."""
        return self.left.dtype

    def dense(self) -> Float[AnyArray, "d_out d_in"]:
        """The matrix itself: forms `d_out · d_in` entries."""
        compute = _dense_in_one if isinstance(self.left, jax.Array) else _dense
        return compute(self.left, self.singular_values, self.right)

    def truncate(self, rank: int) -> "LowRank":
        """The leading `rank` components."""
        if rank >= len(self.singular_values):
            return self
        left, values, right = on_host((self.left, self.singular_values, self.right))
        return LowRank(*map(as_array, (left[:, :rank], values[:rank], right[:, :rank])))


def _dense(left, values, right):
    return (left * values[None, :]) @ right.T


_dense_in_one = jax.jit(_dense, inline=True)


def low_rank(
    left: Real[AnyArray, "d_out r"], core: Real[AnyArray, " r"], right: Real[AnyArray, "d_in r"], /
) -> LowRank:
    """The matrix `left · diag(core) · rightᵀ` as a `LowRank`; the factors may be any thin ones.

    Costs `O((d_out + d_in) r²)`; no `d_out × d_in` array is formed.

    Raises
    ------
    ValueError
        If the shapes do not fit together, `r` exceeds a side, or an entry is not finite.

    Examples
    --------
    >>> import jax, jax.numpy as jnp
    >>> a, b = jax.random.normal(jax.random.key(0), (1000, 2)), jax.random.normal(jax.random.key(1), (800, 2))
    >>> low_rank(a, jnp.ones(2), b).shape  # no 1000 × 800 array is formed
    (1000, 800)
    """
    left, core, right = as_floats("left", left), as_floats("core", core), as_floats("right", right)
    if left.ndim != 2 or right.ndim != 2 or core.ndim != 1:
        raise ValueError(
            f"factors have shapes {left.shape}, {core.shape}, {right.shape}, "
            "expected (d_out, r), (r,), (d_in, r)"
        )
    r = core.shape[0]
    if not left.shape[1] == right.shape[1] == r or not 1 <= r <= min(len(left), len(right)):
        raise ValueError(
            f"factors have shapes {left.shape}, {core.shape}, {right.shape}, "
            "expected (d_out, r), (r,), (d_in, r) with 1 ≤ r ≤ min(d_out, d_in)"
        )
    return thin_svd(left * core[None, :], right.T)


def thin_svd(a: Float[AnyArray, "d_out k"], b: Float[AnyArray, "k d_in"], /) -> LowRank:
    """Singular value decomposition of the product `a b` through two thin QR factorizations.

    Costs `O((d_out + d_in) k²)` and returns `min(k, d_out, d_in)` components.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> thin_svd(jnp.array([[2.0], [0.0]]), jnp.array([[0.0, 3.0]])).singular_values
    Array([6.], dtype=float32)
    """
    return _thin_svd(a, b)


@partial(jax.jit, inline=True)
def _thin_svd(a, b) -> LowRank:
    q_left, r_left = jnp.linalg.qr(a)
    q_right, r_right = jnp.linalg.qr(b.T)
    u, s, vt = jnp.linalg.svd(r_left @ r_right.T, full_matrices=False)
    return LowRank(q_left @ u, s, q_right @ vt.T)


def svd(matrix: AnyArray | LowRank, /) -> LowRank:
    """Thin singular value decomposition of a dense matrix; a `LowRank` is returned as it is.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> svd(jnp.diag(jnp.array([1.0, 3.0]))).singular_values
    Array([3., 1.], dtype=float32)
    """
    if isinstance(matrix, LowRank):
        return matrix
    here = on_host(matrix)
    u, s, vt = here.__array_namespace__().linalg.svd(here, full_matrices=False)
    return LowRank(*map(as_array, (u, s, vt.T)))


def spectral_norm(matrix: AnyArray, /):
    """Largest singular value of a dense matrix.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> float(spectral_norm(jnp.diag(jnp.array([1.0, -3.0]))))
    3.0
    """
    here = on_host(matrix)
    return here.__array_namespace__().linalg.norm(here, ord=2)


def leading_svd(matrix, rank: int | None = None, /, *, dtype=None) -> LowRank:
    """Leading `rank` singular triplets of a dense, `LowRank`, or SciPy sparse matrix; all by default.

    A dense matrix much larger than `rank` is first tried for having few components (Halko, Martinsson
    and Tropp 2011, algorithm 4.1): if so, `O(d_out d_in rank)` operations give them to rounding, and
    further vectors are arbitrary orthonormal ones. A sparse matrix of more than a million entries
    is decomposed by Lanczos iterations on products with it, converged to rounding (SciPy's `svds` with
    tolerance zero, in float64). The result depends on the matrix only: it is ordered, the iterations
    start from fixed vectors, and of a sparse matrix's left vectors the largest entry is positive.
    Vectors of singular values that coincide are arbitrary.

    Raises
    ------
    ValueError
        If `rank` is not between 1 and the smaller side.

    Examples
    --------
    >>> import scipy.sparse
    >>> leading_svd(scipy.sparse.diags_array([5.0, 4.0, 3.0, 2.0, 1.0]), 2).singular_values.round(3)
    Array([5., 4.], dtype=float32)
    """
    rank = min(matrix.shape) if rank is None else rank
    if not 1 <= rank <= min(matrix.shape):
        raise ValueError(f"rank={rank}, expected 1 ≤ rank ≤ {min(matrix.shape)}")
    if isinstance(matrix, LowRank):
        return matrix.truncate(rank)
    if not is_sparse(matrix):
        few = svd_within(on_host(matrix), 2 * rank) if 8 * rank <= min(matrix.shape) else None
        return (svd(matrix) if few is None else few).truncate(rank)
    matrix = matrix.astype(np.float64)
    if matrix.shape[0] * matrix.shape[1] <= SMALL or rank >= min(matrix.shape) - 1:
        left, values, right = np.linalg.svd(matrix.toarray(), full_matrices=False)
    else:
        start = np.random.default_rng(0).standard_normal(min(matrix.shape))
        left, values, right = scipy.sparse.linalg.svds(matrix, k=rank, v0=start)
    order = np.argsort(-values, kind="stable")[:rank]
    left, values, right = np.asarray(left)[:, order], values[order], np.asarray(right)[order].T
    signs = np.sign(left[np.argmax(np.abs(left), axis=0), np.arange(len(order))])
    dtype = jax.dtypes.canonicalize_dtype(float if dtype is None else dtype)
    parts = left * signs, values, right * signs
    return LowRank(*(as_array(part.astype(dtype)) for part in parts))


def svd_within(matrix: AnyArray, width: int, /) -> LowRank | None:
    """Singular value decomposition in `width` dimensions, if they hold the matrix up to rounding, else None.

    For a NumPy matrix of floats; None of any other. `O(d_out d_in width)` operations (Halko, Martinsson and
    Tropp 2011, algorithm 4.1, from fixed vectors).

    Examples
    --------
    >>> rows = np.ones((50, 1)) * np.arange(40.0)
    >>> svd_within(rows, 4).singular_values.shape, svd_within(rows + np.eye(50, 40), 4)
    ((4,), None)
    """
    if not isinstance(matrix, np.ndarray) or matrix.dtype not in (np.float32, np.float64):
        return None
    directions = np.random.default_rng(0).standard_normal((matrix.shape[1], width), matrix.dtype)
    basis, _ = np.linalg.qr(matrix @ directions)
    core = basis.T @ matrix
    rounding = max(matrix.shape) ** 0.5 * np.finfo(matrix.dtype).eps
    if np.linalg.norm(matrix - basis @ core) > rounding * np.linalg.norm(matrix):
        return None
    left, values, right = np.linalg.svd(core, full_matrices=False)
    return LowRank(*map(as_array, (basis @ left, values, right.T)))


def is_sparse(matrix) -> bool:
    """Whether this is a SciPy sparse matrix, without loading `scipy.sparse` where nobody else did."""
    sparse = sys.modules.get("scipy.sparse")
    return sparse is not None and sparse.issparse(matrix)


def noise_norm(energy, shape: tuple[int, int], /):
    """Spectral norm of a large random matrix of independent entries, from its squared Frobenius norm.

    `s (√d_out + √d_in)` for entries of variance `s²`, `energy = s² d_out d_in` (Bai and Yin 1993).

    Examples
    --------
    >>> round(float(noise_norm(100.0 * 100, (100, 100))), 3)  # unit entries: √100 + √100
    20.0
    """
    d_out, d_in = shape
    return energy**0.5 * (d_out**-0.5 + d_in**-0.5)


def dense(matrix: AnyArray | LowRank, /) -> AnyArray:
    """The matrix as a plain array.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> dense(LowRank(jnp.eye(2), jnp.array([3.0, 2.0]), jnp.eye(2)))
    Array([[3., 0.],
           [0., 2.]], dtype=float32)
    """
    return matrix.dense() if isinstance(matrix, LowRank) else matrix


def frobenius_norm(matrix: AnyArray | LowRank, /) -> AnyArray | np.floating:
    """Frobenius norm, from the singular values where those are at hand.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> float(frobenius_norm(jnp.array([[3.0, 4.0]])))
    5.0
    """
    values = matrix.singular_values if isinstance(matrix, LowRank) else matrix
    return (values**2).sum() ** 0.5


def extend_orthonormal(
    basis: Float[AnyArray, "d k"], count: int, /, key: jax.Array | None = None
) -> Float[AnyArray, "d n"]:
    """Extend orthonormal columns to `count` of them by random directions orthogonal to the rest.

    Raises
    ------
    ValueError
        If more than `d` columns are asked for.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> basis = extend_orthonormal(jnp.eye(5, 2), 4)
    >>> basis.shape, bool(jnp.allclose(basis.T @ basis, jnp.eye(4), atol=1e-6))
    ((5, 4), True)
    """
    d, k = basis.shape
    if count > d:
        raise ValueError(f"count={count}, expected at most d={d} orthonormal columns")
    if count <= k:
        return basis[:, :count]
    return _extended(basis, jax.random.key(0) if key is None else key, count)


@partial(jax.jit, static_argnames="count", inline=True)
def _extended(basis, key, count):
    d, k = basis.shape
    new = jax.random.normal(key, (d, count - k), basis.dtype)
    for _ in range(2):  # once leaves rounding of size cond(new), twice is orthogonal to rounding
        new = new - basis @ (basis.T @ new)
        new, _ = jnp.linalg.qr(new)
    return jnp.concatenate([basis, new], axis=1)


def as_matrix(name: str, matrix, /) -> "AnyArray | LowRank":
    """A matrix a caller gave, as an array of floats, or the `LowRank` it is (docs/inputs.md).

    Raises
    ------
    ValueError
        If it is no non-empty matrix of real numbers, or (where concrete) not finite, or a `LowRank` whose
        columns are not orthonormal or whose singular values are not descending.
    """
    if isinstance(matrix, LowRank):
        return as_factors(name, matrix)
    matrix = as_floats(name, matrix)
    if matrix.ndim != 2 or matrix.size == 0:
        raise ValueError(f"{name} has shape {matrix.shape}, expected a non-empty matrix")
    return matrix


def as_factors(name: str, matrix: LowRank, /) -> LowRank:
    """A `LowRank` that a caller may have made by hand, checked where it is concrete.

    Raises
    ------
    ValueError
        If the columns are not orthonormal, or the singular values not descending and non-negative.
    """
    if not isinstance(matrix, LowRank):
        raise ValueError(f"{name} is a {type(matrix).__name__}, expected a LowRank: linalg.svd makes one")
    parts = {part: getattr(matrix, part) for part in ("left", "singular_values", "right")}
    parts = {part: as_floats(f"{name}'s {part}", value) for part, value in parts.items()}
    shapes = [value.shape for value in parts.values()]
    if [len(shape) for shape in shapes] != [2, 1, 2] or len({shape[-1] for shape in shapes}) > 1:
        given = ", ".join(map(str, shapes))
        raise ValueError(f"{name} has factors of shapes {given}, expected (d_out, r), (r,), (d_in, r)")
    if is_traced(parts) or not all(value.is_fully_addressable for value in parts.values()):
        return LowRank(**parts)
    left, values, right = (np.asarray(value) for value in parts.values())
    tolerance = np.finfo(values.dtype).eps ** 0.5  # far above rounding, far below what is made by hand
    for part, factor in (("left", left), ("right", right)):
        off = np.abs(factor.T @ factor - np.eye(len(values), dtype=factor.dtype)).max(initial=0)
        if off > tolerance:
            raise ValueError(
                f"{name}'s {part} has columns that are not orthonormal, by {off:.2g}: "
                "low_rank(left, values, right) takes any factors"
            )
    if np.any(values < 0) or np.any(np.diff(values) > tolerance * values.max(initial=0)):
        raise ValueError(
            f"{name}'s singular_values are not descending and non-negative: low_rank orders them"
        )
    return LowRank(**parts)


def estimate_rank(
    matrix: AnyArray | LowRank,
    /,
    *,
    energy: float | None = None,
    rtol: float | None = None,
    atol: float | None = None,
) -> int:
    """Number of components a matrix has, at least one, by one of three stated rules.

    Parameters
    ----------
    matrix
        Concrete, dense or `LowRank`.
    energy
        If given: the smallest `k` whose leading components hold this fraction of `Σ σ_i²`.
    rtol
        Otherwise: the number of `σ_i > rtol · σ_1`. By default `max(d_out, d_in)` times the rounding
        unit, the numerical rank.
    atol
        The number of `σ_i > atol`, for example a level of noise.

    Raises
    ------
    ValueError
        If two rules are given, or `energy` is not in `(0, 1]`.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> matrix = jnp.diag(jnp.array([3.0, 2.0, 1e-3, 0.0]))
    >>> estimate_rank(matrix), estimate_rank(matrix, rtol=0.01), estimate_rank(matrix, energy=0.5)
    (3, 2, 1)
    """
    rules = {"energy": energy, "rtol": rtol, "atol": atol}
    given = {name: value for name, value in rules.items() if value is not None}
    if len(given) > 1:
        several = " and ".join(f"{name}={value}" for name, value in given.items())
        raise ValueError(f"{several} are two rules: give one of them")
    for name in ("rtol", "atol"):
        if not given.get(name, 0) >= 0:
            raise ValueError(f"{name}={given[name]}, expected a non-negative tolerance")
    matrix = as_matrix("matrix", matrix)
    with jax.ensure_compile_time_eval():  # so that it works on concrete values under `jit`, too
        sigma = np.asarray(svd(matrix).singular_values)
    if energy is None:
        rtol = max(matrix.shape) * float(np.finfo(sigma.dtype).eps) if rtol is None else rtol
        return max(1, int(np.sum(sigma > (rtol * sigma[0] if atol is None else atol))))
    if not 0 < energy <= 1:
        raise ValueError(f"energy={energy}, expected a fraction in (0, 1]")
    held = np.cumsum(sigma**2) / np.sum(sigma**2)
    return min(int(np.sum(held < energy)) + 1, len(sigma))


def subspace_angles(a: Float[AnyArray, "d k"], b: Float[AnyArray, "d m"], /) -> Float[AnyArray, " n"]:
    """Principal angles between the column spaces of two matrices, in radians, descending.

    Accurate for small and for large angles alike: cosines where they are small, sines elsewhere
    (Björck and Golub 1973; Knyazev and Argentati 2002). Returns `min(k, m)` angles; both matrices
    must have full column rank.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> subspace_angles(jnp.eye(3, 1), jnp.array([[1.0], [1.0], [0.0]])).round(4)  # π/4
    Array([0.7854], dtype=float32)
    """
    if a.shape[0] != b.shape[0]:
        raise ValueError(f"a and b have shapes {a.shape} and {b.shape}, expected as many rows in both")
    if a.shape[1] < b.shape[1]:
        a, b = b, a
    q_a, _ = jnp.linalg.qr(a)
    q_b, _ = jnp.linalg.qr(b)
    overlap = q_a.T @ q_b
    cosines = jnp.linalg.svd(overlap, compute_uv=False)[::-1]
    sines = jnp.linalg.svd(q_b - q_a @ overlap, compute_uv=False)
    from_sine = jnp.arcsin(jnp.clip(sines, 0, 1))
    from_cosine = jnp.arccos(jnp.clip(cosines, 0, 1))
    return jnp.where(sines**2 <= 0.5, from_sine, from_cosine)
