"""Any loss, any data, any width: networks that a loss sees through a window, exactly, in a few dimensions.

Let a loss see the network only through a window, `ℓ(W) = f(Uᵀ W V)` with orthonormal columns `U`
(`d_out × k`) and `V` (`d_in × n`): data that span `n` directions, `k` outputs; `f` is any differentiable
function. With orthogonal middle layers and *any* outer ones, every layer is at all times

    W_l(t) = B_l z_l(t) B_{l−1}ᵀ + rest_l(t) (W_l(0) − B_l B_lᵀ W_l(0) B_{l−1} B_{l−1}ᵀ),

where the cores `z` are a deep linear network of widths `n → m → … → m → k`, `m ≤ n + k`, trained by the
same optimizer on `f(z_L ⋯ z_1)`, and `rest` is 1 or what weight decay leaves of it. Derivation:
docs/theory.md 3.8.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lowdim_jax import _isometries
from lowdim_jax._embedding import embedding_gap
from lowdim_jax._host import AnyArray, as_array, as_pytree, is_traced, of_one_kind, on_host
from lowdim_jax.initialization import check_scale, gaussian, orthogonal
from lowdim_jax.linalg import check_finite
from lowdim_jax.networks import Weights, widths
from lowdim_jax.optimizers import GradientDescent


class WindowLayer(NamedTuple):
    """What changes in one layer.

    Attributes
    ----------
    core
        `z_l`, `(m_l, m_{l−1})`.
    rest
        Factor of all that the loss does not see of the layer; only weight decay moves it from 1.

    >>> import jax, lowdim_jax as ld
    >>> reduction = ld.sample(jax.random.key(0), (3, 10_000, 2), lambda w: (w[1] @ w[0]).sum(), scale=1.0)
    >>> reduction.layers[0].core.shape, float(reduction.layers[0].rest)
    ((5, 3), 1.0)
    """

    core: Float[Array, "m_out m_in"]
    rest: Float[Array, ""]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Window:
    """Orthonormal columns `U`, `V` between which a loss sees the end-to-end matrix, as `Uᵀ W V`.

    Attributes
    ----------
    left
        `U`, `(d_out, k)`; None for all outputs.
    right
        `V`, `(d_in, n)`; None for all inputs.

    >>> import jax.numpy as jnp, lowdim_jax as ld
    >>> weights = jnp.ones((4, 3)), jnp.ones((2, 4))
    >>> window = ld.window.Window(right=jnp.eye(3, 1))
    >>> [weight.shape for weight in window.restrict(weights)]
    [(4, 1), (2, 4)]
    """

    left: Float[Array, "d_out k"] | None = None
    right: Float[Array, "d_in n"] | None = None

    def restrict(self, weights: Sequence[AnyArray], /) -> Weights:
        """`(W_1 V, W_2, …, Uᵀ W_L)`, whose end-to-end matrix is `Uᵀ W V`."""
        first, *others = weights
        *others, last = (first if self.right is None else first @ self.right, *others)
        return (*others, last if self.left is None else self.left.T @ last)

    def widen(self, weights: Sequence[AnyArray], /) -> Weights:
        """`(z_1 Vᵀ, z_2, …, U z_L)`: a network between all inputs and outputs, zero outside the window."""
        first, *others = weights
        *others, last = (first if self.right is None else first @ self.right.T, *others)
        return (*others, last if self.left is None else self.left @ last)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class WindowLoss:
    """The problem of a reduced network: the full network's loss, of the cores.

    Attributes
    ----------
    function
        The loss of a network with any hidden widths, a function of its weights.
    window
        What it sees of the end-to-end matrix.
    per_step
        Whether it takes the number of the step as a second argument.

    >>> import jax, lowdim_jax as ld
    >>> weights = ld.orthogonal(jax.random.key(0), (3, 50, 2), scale=1.0)
    >>> loss = lambda weights: (ld.end_to_end(weights) ** 2).sum()
    >>> reduction = ld.reduce(weights, loss)
    >>> abs(float(reduction.problem.loss(reduction.layers) - loss(weights))) < 1e-6
    True
    >>> [weight.shape for weight in reduction.problem.network(reduction.layers)]
    [(5, 3), (2, 5)]
    """

    function: Callable
    window: Window
    per_step: bool = field(default=False, metadata={"static": True})

    def loss(self, layers: Sequence[WindowLayer], /, *step) -> Float[Array, ""]:
        """Loss of the full network."""
        return self.function(self.network(layers), *step)

    def network(self, layers: Sequence[WindowLayer], /) -> Weights:
        """Narrow network that maps what the window shows as the full one does."""
        return self.window.widen(tuple(layer.core for layer in layers))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class WindowReduction:
    """A reduced network and the way back to the full one; made by `reduce` and `sample`.

    Attributes
    ----------
    layers
        Initial weights of the reduced network.
    problem
        Its `WindowLoss`.
    bases
        `V, B_1, …, B_{L−1}, U`; None where they were never drawn.
    start
        Initial weights of the full network, a scalar `ε` for a layer `ε I`; None where there are none.

    >>> import jax, jax.numpy as jnp, lowdim_jax as ld
    >>> weights = ld.orthogonal(jax.random.key(0), (3, 50, 50, 2), scale=1.0)
    >>> loss = lambda weights: jnp.sum((ld.end_to_end(weights) - 1) ** 2)
    >>> reduction, rule = ld.reduce(weights, loss), ld.GradientDescent(0.02)
    >>> small = ld.reduced_descent(reduction, rule, steps=20)
    >>> full = ld.gradient_descent(loss, weights, rule, steps=20)
    >>> bool(jnp.allclose(reduction.lift(small.weights)[1], full.weights[1], atol=1e-5))
    True
    """

    layers: tuple[WindowLayer, ...]
    problem: WindowLoss
    bases: tuple[Float[Array, "d m"] | None, ...] | None
    start: tuple[jax.Array, ...] | None

    def lift(self, layers: Sequence[WindowLayer], /) -> Weights:
        """Weights of the full network: forms every `d_l × d_{l−1}` matrix.

        Raises
        ------
        ValueError
            If only the cores were drawn.
        """
        if self.bases is None or self.start is None:
            raise ValueError(
                "the reduction was sampled as its cores only: there is no full network to lift to; "
                "sample(…, core_only=False) draws one"
            )
        layers, starts, bases = of_one_kind((tuple(layers), self.start, self.bases))
        return tuple(
            as_array(_lift(layer, start, before, after))
            for layer, start, before, after in zip(layers, starts, bases, bases[1:], strict=False)
        )

    def check_optimizer(self, optimizer: Any, /) -> None:
        """Raise `ValueError` for an optimizer under which the reduction is not exact.

        `GradientDescent` is known to be; any other optax optimizer takes a few steps on a small network
        and on the same one embedded in a wider one.
        """
        if isinstance(optimizer, GradientDescent):
            return
        gap = embedding_gap(optimizer, WindowLayer)
        if not gap < 1e3 * float(jnp.finfo(jnp.zeros(()).dtype).eps):
            raise ValueError(
                f"optimizer moves a network and the same one in a wider space apart, by {gap:.2g} of a "
                "step: the reduction needs updates that rotate with the weights, such as descent, "
                "momentum, weight decay or clipping of gradients, not entrywise ones as Adam's; "
                "strict=False trains the reduced network all the same"
            )


def _lift(layer: WindowLayer, start, before, after) -> jax.Array:
    if start.ndim == 0:
        start = start * _isometries.identity(after, len(after))
    inside = _outside(before, after, _inside(before, after, start))
    return _outside(before, after, layer.core) + layer.rest * (start - inside)


def _inside(before, after, weight: jax.Array) -> jax.Array:
    """`B_lᵀ W B_{l−1}`; a basis that is None is the identity."""
    weight = weight if before is None else weight @ before
    return weight if after is None else after.T @ weight


def _outside(before, after, core: jax.Array) -> jax.Array:
    """`B_l z B_{l−1}ᵀ`."""
    core = core if before is None else core @ before.T
    return core if after is None else after @ core


def reduce_window(
    weights: Sequence[AnyArray],
    loss: Callable,
    /,
    *,
    window: Any = None,
    per_step: bool = False,
    strict: bool = True,
) -> WindowReduction:
    """Exact reduction of a network under any loss that sees it through a window: see `reduction.reduce`."""
    spaces = widths(weights)
    seen = make_window(window, (spaces[-1], spaces[0]))
    here, sides = of_one_kind((tuple(weights), seen))
    chain = (sides.right, *hidden_bases(sides.restrict(here), strict=strict), sides.left)
    layers = tuple(
        WindowLayer(as_array(_inside(before, after, weight)), as_array(np.ones((), weight.dtype)))
        for weight, before, after in zip(here, chain, chain[1:], strict=False)
    )
    problem = WindowLoss(as_pytree(loss), seen, per_step)
    if strict and not is_traced(weights, problem):
        _check_loss(problem, layers)
    return WindowReduction(layers, problem, jax.tree.map(as_array, chain), tuple(weights))


def hidden_bases(weights: Sequence[AnyArray], /, *, strict: bool = True) -> tuple[jax.Array, ...]:
    """`B_1, …, B_{L−1}` of a network whose outer layers are any and whose middle ones are orthogonal.

    Raises
    ------
    ValueError
        If a middle layer is not orthogonal, or the hidden widths grow and then shrink.
    """
    if len(weights) == 1:
        return ()
    spaces = widths(weights)[1:-1]
    if strict and not _isometries.is_valley(spaces):
        raise ValueError(
            f"hidden widths {spaces} grow and then shrink: no small subspace is closed under such layers, so "
            "there is no exact reduction; equal ones, or ones without a bulge, have one, and strict=False "
            "takes the nearest network of such widths"
        )
    frames = [
        _isometries.frame(weight, number, strict)[0] for number, weight in enumerate(weights[1:-1], 2)
    ]
    left, right = (side.__array_namespace__().linalg.qr(side)[0] for side in (weights[-1].T, weights[0]))
    return _isometries.bases(frames, left, right)


def make_window(window: Any, shape: tuple[int, int], /) -> Window:
    """A `Window` from what `reduce` takes for one: matrices whose columns span what the loss sees.

    Raises
    ------
    ValueError
        If it is neither a `Window`, nor a matrix of inputs, nor a pair `(outputs, inputs)`, or does not
        have the rows that `shape`, `(d_out, d_in)`, asks for.
    """
    if isinstance(window, Window):
        window = (window.left, window.right)
    if not isinstance(window, tuple | list):
        window = (None, window)
    if len(window) != 2:
        raise ValueError(f"window has {len(window)} entries, expected a matrix or (outputs, inputs)")
    sides = zip(window, shape, ("outputs", "inputs"), strict=True)
    return Window(*(_spanned(side, size, name) for side, size, name in sides))


def _spanned(columns, size: int, name: str) -> jax.Array | None:
    """Orthonormal basis of the span of columns; None where that is everything."""
    if columns is None:
        return None
    columns = jnp.asarray(columns)
    if columns.ndim != 2 or len(columns) != size:
        raise ValueError(
            f"window of {name} has shape {columns.shape}, expected {size} rows and a column for each sample"
        )
    check_finite(f"window of {name}", columns)
    if is_traced(columns):
        return jnp.linalg.qr(columns)[0] if columns.shape[1] < size else None
    columns = on_host(columns)
    xp = columns.__array_namespace__()
    u, s, _ = xp.linalg.svd(columns, full_matrices=False)
    rank = int(xp.sum(s > s[0] * max(columns.shape) * xp.finfo(s.dtype).eps))
    if rank == 0:
        raise ValueError(f"window of {name} is zero: the loss sees nothing of the network")
    return as_array(u[:, :rank]) if rank < size else None


def sample_window(
    key: jax.Array,
    spaces: Sequence[int],
    loss: Callable,
    /,
    *,
    scale,
    outer: str = "orthogonal",
    window: Any = None,
    per_step: bool = False,
    core_only: bool = True,
    dtype=None,
) -> WindowReduction:
    """A network of any hidden width, already reduced, with Haar-distributed middle layers.

    See `reduction.sample`.
    """
    d_in, *hidden, d_out = spaces
    _check_sample(spaces, outer)
    scales = _scales(scale, len(spaces) - 1, dtype)
    seen = make_window(window, (d_out, d_in))
    n, k = (d if side is None else side.shape[1] for d, side in ((d_in, seen.right), (d_out, seen.left)))
    if core_only and hidden[0] >= max(n + k, d_in, d_out):
        first, last = _cores_of_outer(key, hidden[0], (d_in, n), (d_out, k), outer, scales.dtype)
        eye = jnp.eye(n + k, dtype=scales.dtype)
        cores = (scales[0] * first, *(s * eye for s in scales[1:-1]), scales[-1] * last)
        layers = tuple(WindowLayer(core, jnp.ones((), core.dtype)) for core in cores)
        problem = WindowLoss(as_pytree(loss), seen, per_step)
        _check_loss(problem, layers)
        return WindowReduction(layers, problem, None, None)
    # The middle layers are the identity in coordinates that they themselves carry along (docs/theory.md 3.1),
    # and what the outer layers are then is distributed as they are.
    make = {"orthogonal": orthogonal, "gaussian": gaussian}[outer]
    first, last = make(key, (d_in, hidden[0], d_out), scale=1.0, dtype=scales.dtype)
    outers = scales[0] * first, scales[-1] * last
    reduction = reduce_window(outers, loss, window=seen, per_step=per_step)
    basis: Any = tuple(reduction.bases or ())[1]
    middle = tuple(
        WindowLayer(s * jnp.eye(basis.shape[1], dtype=s.dtype), jnp.ones((), s.dtype)) for s in scales[1:-1]
    )
    layers = (reduction.layers[0], *middle, reduction.layers[-1])
    chain = (seen.right, *(basis,) * len(hidden), seen.left)
    start = (outers[0], *scales[1:-1], outers[1])
    return WindowReduction(layers, reduction.problem, *((None, None) if core_only else (chain, start)))


def _cores_of_outer(key, h: int, inputs, outputs, outer: str, dtype) -> tuple[jax.Array, jax.Array]:
    """`B_1ᵀ W_1 V` and `Uᵀ W_L B_{L−1}` of two outer layers of scale one, drawn without either of them.

    A Gaussian `h × (n + k)` matrix is an orthonormal basis times a triangular factor whose entries are
    independent (Bartlett): normal above the diagonal, chi-distributed on it.
    """
    (d_in, n), (d_out, k) = inputs, outputs
    key_diagonal, key_above = jax.random.split(key)
    freedom = h - jnp.arange(n + k)
    diagonal = jnp.sqrt(jax.random.chisquare(key_diagonal, freedom.astype(dtype), dtype=dtype))
    factor = jnp.triu(jax.random.normal(key_above, (n + k, n + k), dtype), 1) + jnp.diag(diagonal)
    first, last = factor[:, :n], factor[:, n:]
    if outer == "gaussian":
        return first / max(h, d_in) ** 0.5, last.T / max(h, d_out) ** 0.5
    # Gram and Schmidt make uniform frames of Gaussian columns: the first n become coordinate vectors.
    frame, triangle = jnp.linalg.qr(last)
    return jnp.eye(n + k, n, dtype=dtype), (frame * jnp.sign(jnp.diag(triangle))[None, :]).T


def _check_sample(spaces: Sequence[int], outer: str) -> None:
    if len(spaces) < 3 or min(spaces) < 1:
        raise ValueError(f"widths={tuple(spaces)}, expected d_in, at least one hidden width, and d_out")
    if len(set(spaces[1:-1])) > 1:
        raise ValueError(f"widths={tuple(spaces)}, expected hidden layers of one width")
    if outer not in ("orthogonal", "gaussian"):
        raise ValueError(f"outer={outer!r}, expected 'orthogonal' or 'gaussian'")


def _scales(scale, depth: int, dtype) -> jax.Array:
    """`ε_l`, one a layer."""
    check_scale(scale)
    values = jnp.asarray(scale, jnp.zeros((), dtype).dtype)
    if values.shape not in ((), (depth,)):
        raise ValueError(f"scale has shape {values.shape}, expected one number or {depth}, one a layer")
    return jnp.broadcast_to(values, (depth,))


def _check_loss(problem: WindowLoss, layers: Sequence[WindowLayer]) -> None:
    """Refuse a loss whose gradient shows that it sees more than the window's part of the product."""
    weights, window = _shaken(problem.network(layers)), problem.window
    step = (jnp.zeros((), jnp.int32),) if problem.per_step else ()
    gradient = _gradient(problem.function, weights, *step)
    weights, gradient, window = on_host((weights, gradient, window))
    if not all(np.all(np.isfinite(leaf)) for leaf in gradient):
        raise ValueError("loss has a gradient that is not finite near the initial weights")
    tolerance = 1e3 * float(np.finfo(weights[0].dtype).eps)
    sides = (("inputs", window.right, gradient[0]), ("outputs", window.left, gradient[-1].T))
    for name, basis, slope in sides:
        if basis is None:
            continue
        share = np.linalg.norm(slope - (slope @ basis) @ basis.T) / max(np.linalg.norm(slope), 1e-300)
        if share > tolerance:
            raise ValueError(
                f"loss sees more than the window: {share:.2g} of its gradient in the {name} lies outside; "
                f"widen the window, or leave it out to let it see all {name}"
            )
    pairs = zip(weights, weights[1:], gradient, gradient[1:], strict=False)
    for number, (before, after, slope, next_slope) in enumerate(pairs, 1):
        inner, outer = slope @ before.T, after.T @ next_slope
        if np.linalg.norm(inner - outer) > tolerance * np.linalg.norm(slope) * np.linalg.norm(before):
            raise ValueError(
                f"loss sees layers {number} and {number + 1} apart, not only their product: the reduction is "
                "of losses of the end-to-end matrix; a penalty on weights is the optimizer's weight_decay"
            )


@jax.jit
def _shaken(weights: Weights) -> Weights:
    """A network with parts outside the window, too: the loss is not to see them."""
    keys = jax.random.split(jax.random.key(0), len(weights))
    return tuple(
        weight + jnp.sqrt(jnp.mean(weight**2)) * jax.random.normal(key, weight.shape, weight.dtype)
        for weight, key in zip(weights, keys, strict=True)
    )


@jax.jit
def _gradient(loss, weights, *step):
    return jax.grad(loss)(weights, *step)
