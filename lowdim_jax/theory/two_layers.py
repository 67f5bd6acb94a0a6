"""Two layers in closed form: the flow of the whole network, from any balanced start (docs/theory.md 2.7).

Stack the layers to `Q = [W_1ᵀ; W_2]`. From `W_2ᵀ W_2 − W_1 W_1ᵀ = λ I` the flow of `½‖W_2 W_1 − Φ‖²` is
`Q̇ = F Q − ½ Q Qᵀ Q` with the constant symmetric matrix `F = [[−λ/2, Φᵀ], [Φ, λ/2]]`, and

    P = Q Qᵀ = e^{Ft} Q_0 (I + Q_0ᵀ G Q_0)^{-1} Q_0ᵀ e^{Ft},    G = ∫_0^t e^{2Fs} ds.

As it stands this overflows, and loses all digits long before. In the eigenbasis of `F`, with `A = √G Q_0`
and `D = 2f / (1 − e^{−2ft})`, which is bounded, it is `√D A (I + AᵀA)^{-1} Aᵀ √D`, and the middle part is a
softened projector onto the columns of `A`: its rows differ by factors like `e^{(f_i − f_j) t}`, but after
a factorization with pivots only ratios of at most one are left. Exact at every time, without steps.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from lowdim_jax._host import is_traced
from lowdim_jax.theory._arguments import cast, check


class TwoLayerFlow(NamedTuple):
    """A network of two layers under gradient flow, but for a rotation of its hidden units.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from lowdim_jax import theory
    >>> run = theory.two_layer_flow(jnp.array([0.0, 2.0]), 0.1 * jnp.eye(2), 0.1 * jnp.eye(2), jnp.eye(2))
    >>> run.end_to_end.shape, run.inner_gram.shape
    ((2, 2, 2), (2, 2, 2))
    """

    end_to_end: Float[Array, "... d_out d_in"]
    """`W_2 W_1`."""
    inner_gram: Float[Array, "... d_in d_in"]
    """`W_1ᵀ W_1`."""
    outer_gram: Float[Array, "... d_out d_out"]
    """`W_2 W_2ᵀ`."""


def two_layer_flow(
    t: Float[ArrayLike, "..."],
    inner: Float[ArrayLike, "h d_in"],
    outer: Float[ArrayLike, "d_out h"],
    target: Float[ArrayLike, "d_out d_in"],
    /,
) -> TwoLayerFlow:
    """Two layers under the gradient flow of `½‖W_2 W_1 − Φ‖_F²`, in closed form, at any times.

    The layers start λ-balanced, `W_2ᵀ W_2 − W_1 W_1ᵀ = λ I`, for any number `λ`: orthogonal layers of one
    scale and spectral starts have `λ = 0`, orthogonal square layers of scales `a` and `b` have `λ = b² − a²`.
    Widths are arbitrary, and so is the rank of the target (docs/theory.md 2.7).

    Parameters
    ----------
    t
        Flow times, non-negative, of any shape.
    inner, outer
        `W_1(0)` and `W_2(0)`.
    target
        `Φ`.

    Returns
    -------
    End-to-end matrix and both Gram matrices, after the axes of `t`. Accurate to rounding, relative to the
    largest entry, whatever `t`; as sensitive to the start as the flow itself, which a start that is nearly
    orthogonal to a component amplifies. It composes with `jit` and `vmap`, and with derivatives in `t`,
    `inner` and `outer`; those in `target` go through its singular vectors, which must be unique.

    Raises
    ------
    ValueError
        If the shapes do not fit, a value is not finite, a time is negative, or the start is not balanced.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from lowdim_jax import theory
    >>> target = jnp.diag(jnp.array([3.0, 1.0]))
    >>> start = 0.1 * jnp.eye(2)
    >>> run = theory.two_layer_flow(jnp.array([0.0, 1.0, 1e6]), start, start, target)
    >>> print(np.asarray(run.end_to_end[:, 1, 1]).round(3))
    [0.01  0.069 1.   ]
    """
    check("t", t, lambda v: v >= 0, "at least 0")
    for name, value in (("inner", inner), ("outer", outer), ("target", target)):
        check(name, value, lambda _: True, "as every entry")
    times, inner, outer, target = cast(t, inner, outer, target)
    matrices = inner.ndim == outer.ndim == target.ndim == 2
    if not matrices or (outer.shape, inner.shape) != (
        (target.shape[0], inner.shape[0]), (inner.shape[0], target.shape[1])
    ):
        raise ValueError(
            f"inner, outer and target have shapes {inner.shape}, {outer.shape}, {target.shape}, "
            "expected (h, d_in), (d_out, h), (d_out, d_in)"
        )
    if not is_traced(inner, outer):
        _require_balanced(np.asarray(inner), np.asarray(outer))
    return _flow(times, inner, outer, target)


def tangent_kernel(
    inner_gram: Float[Array, "... d_in d_in"], outer_gram: Float[Array, "... d_out d_out"], /
) -> Float[Array, "... d_out d_in d_out d_in"]:
    """The finite-width tangent kernel of two layers, from their Gram matrices.

    `K[a, i, b, j] = Σ ∂W_ai/∂w ∂W_bj/∂w` over all weights `w`, which is
    `δ_ab (W_1ᵀ W_1)_ij + (W_2 W_2ᵀ)_ab δ_ij`: the end-to-end matrix moves by `Ẇ = −K ∇ℓ(W)` (docs/theory.md
    2.7). Of inputs `x` the kernel of the network's outputs is `Σ_ij x_i x'_j K[a, i, b, j]`.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from lowdim_jax import theory
    >>> kernel = theory.tangent_kernel(jnp.eye(2), jnp.eye(3))
    >>> kernel.shape, float(kernel[0, 0, 0, 0])
    ((3, 2, 3, 2), 2.0)
    """
    return _kernel(inner_gram, outer_gram)


@partial(jax.jit, inline=True)
def _kernel(inner_gram, outer_gram):
    d_in, d_out = inner_gram.shape[-1], outer_gram.shape[-1]
    inner = jnp.einsum("...ij,ab->...aibj", inner_gram, jnp.eye(d_out, dtype=inner_gram.dtype))
    return inner + jnp.einsum("...ab,ij->...aibj", outer_gram, jnp.eye(d_in, dtype=outer_gram.dtype))


def imbalance(inner: np.ndarray, outer: np.ndarray, /) -> tuple[float, float]:
    """`λ` and `‖W_2ᵀ W_2 − W_1 W_1ᵀ − λI‖_F`, relative to `‖W_1‖_F² + ‖W_2‖_F²`.

    Examples
    --------
    >>> import numpy as np
    >>> imbalance(np.eye(2), 2 * np.eye(2))  # λ = 2² − 1, exactly
    (3.0, 0.0)
    """
    difference = outer.T @ outer - inner @ inner.T
    balance = np.trace(difference) / len(difference)
    size = np.sum(inner**2) + np.sum(outer**2)
    rest = np.linalg.norm(difference - balance * np.eye(len(difference)))
    return float(balance), float(rest / size) if size else 0.0


def _require_balanced(inner, outer):
    rest = imbalance(np.asarray(inner, float), np.asarray(outer, float))[1]
    limit = 64 * np.finfo(inner.dtype).eps
    if rest > limit:
        raise ValueError(
            f"inner and outer have the imbalance ‖W_2ᵀW_2 − W_1W_1ᵀ − λI‖ / (‖W_1‖² + ‖W_2‖²) = {rest:.3g}, "
            f"expected a balanced start, at most {limit:.3g}"
        )


@jax.jit
def _flow(times, inner, outer, target):
    d_in = inner.shape[1]
    hidden = inner.shape[0]
    with jax.default_matmul_precision("highest"):
        balance = (jnp.sum(outer**2) - jnp.sum(inner**2)) / hidden
        rates, vectors = _eigenbasis(target, balance)
        stacked = jnp.concatenate([inner.T, outer])
        start = vectors.T @ stacked

        def at(time):
            factor = jnp.where(time == 0, stacked, vectors @ _factor(rates, start, time))
            first, second = factor[:d_in], factor[d_in:]
            return TwoLayerFlow(second @ first.T, first @ first.T, second @ second.T)

        flat = jax.vmap(at)(times.ravel())
    return jax.tree.map(lambda part: part.reshape(*times.shape, *part.shape[1:]), flat)


def _eigenbasis(target, balance):
    """Eigenvalues and vectors of `F`, from the target's singular vectors: `±√(σ² + λ²/4)`, and `±λ/2` beyond.

    On `span(v, u)` of one singular value, `F` is a reflection of `(cos 2θ, sin 2θ) ∝ (−λ/2, σ)`.
    """
    d_out, d_in = target.shape
    left, sigma, right = jnp.linalg.svd(target)
    right = right.T
    k = len(sigma)
    half = balance / 2
    rate = jnp.hypot(sigma, half)
    twice = 2 * rate * (rate + jnp.abs(half))
    still = twice == 0  # any two vectors will do
    safe = jnp.where(still, 1, twice)
    larger = jnp.where(still, 1, jnp.sqrt((rate + jnp.abs(half)) / jnp.where(still, 1, 2 * rate)))
    smaller = sigma / jnp.sqrt(safe)
    cosine, sine = jnp.where(half > 0, smaller, larger), jnp.where(half > 0, larger, smaller)
    up = jnp.concatenate([right[:, :k] * cosine[None], left[:, :k] * sine[None]])
    down = jnp.concatenate([right[:, :k] * sine[None], -left[:, :k] * cosine[None]])
    rest_in = jnp.concatenate([right[:, k:], jnp.zeros((d_out, d_in - k), target.dtype)])
    rest_out = jnp.concatenate([jnp.zeros((d_in, d_out - k), target.dtype), left[:, k:]])
    rates = jnp.concatenate([rate, -rate, jnp.full(d_in - k, -half), jnp.full(d_out - k, half)])
    return rates, jnp.concatenate([up, down, rest_in, rest_out], axis=1)


def _factor(rates, start, time):
    """`K` with `P = K Kᵀ` after `time`, from `start`, both in the eigenbasis of `F`."""
    tiny = jnp.finfo(start.dtype).tiny
    time = jnp.maximum(time, tiny)
    log_g = _log_gain(rates, time)
    ratios, log_pivots = _graded(start, log_g)
    # `A O = ratios · C`, O orthogonal: columns of [1; A O] are divided by what of C exceeds one.
    identity = jnp.diag(jnp.exp(-jnp.maximum(log_pivots, 0)))
    part = ratios * jnp.exp(jnp.minimum(log_pivots, 0))[None]
    upright = jnp.linalg.qr(jnp.concatenate([identity, part]))[0][len(identity):]
    return _root_of_decay(rates, time)[:, None] * upright


def _log_gain(rates, time):
    """`ln ∫_0^t e^{2fs} ds`, finite for any `f t`."""
    x = 2 * rates * time
    small = jnp.abs(x) < 1e-4
    safe = jnp.where(small, 1, x)
    # e^x − 1 over x is e^max(x, 0) (1 − e^−|x|) / |x|
    log_mean = jnp.maximum(x, 0) + jnp.log(-jnp.expm1(-jnp.abs(safe)) / jnp.abs(safe))
    return jnp.log(time) + jnp.where(small, x / 2 + x**2 / 24, log_mean)


def _root_of_decay(rates, time):
    """`√(2f / (1 − e^{−2ft})) = e^{ft} / √g`."""
    x = 2 * rates * time
    small = jnp.abs(x) < 1e-4
    safe = jnp.where(small, 1, x)
    mean = jnp.where(small, 1 - x / 2 + x**2 / 6, -jnp.expm1(-jnp.abs(safe)) / jnp.abs(safe))
    # for f < 0: 1/t · |x| e^{−|x|} / (1 − e^{−|x|})
    return jnp.exp(jnp.where(small, 0, jnp.minimum(x, 0)) / 2) / jnp.sqrt(time * mean)


def _graded(start, log_g):
    """Rotate hidden units so that `√G start` is unit lower triangular, but for the order of rows, times `C`.

    Gram–Schmidt with pivots on the rows of `start`: of those left the largest, as `√g` weighs it, comes next.
    Returns the triangular matrix, whose entries are at most one, and `ln C`.
    """
    n, hidden = start.shape
    count = min(n, hidden)
    info = jnp.finfo(start.dtype)

    def log_norm(rows):
        square = jnp.sum(rows**2, axis=1)
        return jnp.where(square > 0, jnp.log(jnp.where(square > 0, square, 1)) / 2, -jnp.inf)

    size = log_norm(start)

    def pivot(j, carry):
        rows, frame, ratios, pivots, used = carry
        score = jnp.where(used, -jnp.inf, log_g / 2 + log_norm(rows))
        chosen = jnp.argmax(score)
        row = rows[chosen] - frame.T @ (frame @ rows[chosen])  # twice is enough
        norm = jnp.linalg.norm(row)
        log_length = jnp.log(jnp.where(norm > 0, norm, 1))
        alive = (norm > 0) & (log_length > size[chosen] + jnp.log(8 * info.eps))
        direction = jnp.where(alive, row / jnp.where(norm > 0, norm, 1), 0)
        along = rows @ direction
        relative = along / jnp.where(alive, norm, 1)
        weight = jnp.exp(jnp.minimum((log_g - log_g[chosen]) / 2, jnp.log(info.max) - 8))
        column = jnp.where(used | ~alive, 0, weight * relative)
        rows = rows - along[:, None] * direction[None]
        used = used.at[chosen].set(True)
        rows = jnp.where(used[:, None], 0, rows)
        log_pivot = jnp.where(alive, log_g[chosen] / 2 + log_length, -jnp.inf)
        frame, pivots = frame.at[j].set(direction), pivots.at[j].set(log_pivot)
        return rows, frame, ratios.at[:, j].set(column), pivots, used

    dtype = start.dtype
    frame, ratios = jnp.zeros((count, hidden), dtype), jnp.zeros((n, count), dtype)
    carry = start, frame, ratios, jnp.zeros(count, dtype), jnp.zeros(n, bool)
    _, _, ratios, pivots, _ = jax.lax.fori_loop(0, count, pivot, carry)
    return ratios, pivots
