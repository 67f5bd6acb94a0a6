"""Dominance proved, not sampled: both networks in ball arithmetic, at every iteration (docs/theory.md 1.5).

Singular values, overlap, scale and learning rate are rational. The original network is its reduction of
width 2r (3.2), the compressed one is scalar maps (2.1); every number is a ball of Arb that contains the true
one, so that a positive gap between the squared errors is a proof for its step. Once all compressed modes are
in intervals that their maps contract, a comparison of rates proves the gap for all later steps. python-flint
is needed: `pip install lowdim-jax[certify]`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import Any

import numpy as np

TOO_LARGE = "overlap has a spectral norm of 1 or more, expected less"
PROVED, REFUTED, UNDECIDED = "proved", "refuted", "undecided"
GUARD_BITS = 64
"""Bits that balls keep beyond their own accuracy."""
BITS_A_STEP = 1.0
"""Precision that a step costs at half the edge of stability: a ball there can double its radius."""
SPARE_BITS = 96
"""Relative accuracy, in bits, that a run should still have where it ends."""


@dataclass(frozen=True)
class Case:
    """What is to be proved: a target, a start and a learning rate, all rational.

    Attributes
    ----------
    singular_values
        `σ*_1 > … > σ*_r > 0`.
    overlap
        `C = (R_Lᵀ U*)ᵀ V*`, r × r, of spectral norm below 1: all of the original's start that matters (3.4).
    width
        `d ≥ 2r`.
    depth, scale, learning_rate
        `L ≥ 2`, `ε` and `η`.
    compressed_rank
        `r̂`, from r to d.
    """

    singular_values: tuple[Fraction, ...]
    overlap: tuple[tuple[Fraction, ...], ...]
    width: int
    depth: int
    scale: Fraction
    learning_rate: Fraction
    compressed_rank: int

    def __post_init__(self):
        sigma, r = self.singular_values, len(self.singular_values)
        if not sigma or min(sigma) <= 0 or any(a <= b for a, b in pairwise(sigma)):
            raise ValueError(f"singular_values={_plain(sigma)}, expected positive and decreasing numbers")
        if len(self.overlap) != r or any(len(row) != r for row in self.overlap):
            raise ValueError(f"overlap has not the shape ({r}, {r})")
        if self.width < 2 * r:
            raise ValueError(f"width={self.width}, expected at least 2r = {2 * r}")
        if self.depth < 2:
            raise ValueError(f"depth={self.depth}, expected at least 2")
        for name, value in (("scale", self.scale), ("learning_rate", self.learning_rate)):
            if value <= 0:
                raise ValueError(f"{name}={value}, expected more than 0")
        if not r <= self.compressed_rank <= self.width:
            raise ValueError(f"compressed_rank={self.compressed_rank}, expected from {r} to {self.width}")


@dataclass(frozen=True)
class Certificate:
    """What the arithmetic proved.

    Attributes
    ----------
    verdict
        `"proved"` for every step, `"refuted"` at `step`, or `"undecided"` beyond `step`.
    step
        Step from which the tail argument takes over; the step of the violation; or the last one proved.
    bits
        Bits of precision of the run that decided.
    smallest_gap
        Lower bound of the gap of squared errors over the steps proved one by one, relative to the original's.
    case
        What it is about.
    """

    verdict: str
    step: int
    bits: int
    smallest_gap: float
    case: Case

    @property
    def sentence(self) -> str:
        """The certificate in one sentence."""
        case = self.case
        about = (
            f"for σ* = {_plain(case.singular_values)}, d = {case.width}, r̂ = {case.compressed_rank}, "
            f"L = {case.depth}, ε = {case.scale}, η = {case.learning_rate} and the overlap given"
        )
        if self.verdict == PROVED:
            return (
                f"Proved {about}: the compressed network's error is below the original's at every iteration, "
                f"0 to {self.step} one by one ({self.bits} bits) and all later ones by comparison of rates."
            )
        if self.verdict == REFUTED:
            return (
                f"Refuted {about}: at iteration {self.step} the compressed network's error is the larger one "
                f"({self.bits} bits)."
            )
        return f"Undecided {about}: proved for iterations 0 to {self.step} only ({self.bits} bits)."


def certify(case: Case, *, max_steps: int = 100_000, bits: int | None = None) -> Certificate:
    """Prove or refute dominance at every iteration of gradient descent.

    Parameters
    ----------
    case
        Rational data.
    max_steps
        Steps to go at most; beyond them the answer is `"undecided"`.
    bits
        Precision to begin with; by default what an ordinary run's length suggests. It is doubled, four times
        at most, while a ball gets too wide.

    Raises
    ------
    ValueError
        If python-flint is not installed, or the overlap has not a spectral norm below 1.
    """
    flint = _flint()
    expected, frames = _rehearse(case, max_steps)
    if bits is None:
        bits = GUARD_BITS + SPARE_BITS + int(BITS_A_STEP * expected)
    for _ in range(5):
        certificate = _run(flint, case, frames, max_steps, bits)
        if certificate is not None:
            return certificate
        bits *= 2
    return Certificate(UNDECIDED, 0, bits, float("nan"), case)


def random_case(
    seed: int,
    *,
    rank: int,
    width: int,
    depth: int,
    scale: Fraction,
    singular_values: Sequence[Fraction] | None = None,
    compressed_rank: int | None = None,
    edge_fraction: Fraction = Fraction(1, 2),
) -> Case:
    """A case with the overlap of a Haar-random start, rounded to 32 bits; `σ*` from 20 to 9 unless given.

    The learning rate is the fraction of the edge of stability (5.1), rounded down to six decimals.
    """
    if singular_values is None:
        singular_values = [20 - Fraction(11 * i, max(rank - 1, 1)) for i in range(rank)]
    rng = np.random.default_rng(seed)
    left, right = (np.linalg.qr(rng.standard_normal((width, rank)))[0] for _ in range(2))
    overlap = tuple(tuple(Fraction(round(x * 2**32), 2**32) for x in row) for row in left.T @ right)
    edge = 2 / (depth * float(singular_values[0]) ** (2 - 2 / depth))
    rate = Fraction(int(float(edge_fraction) * edge * 10**6), 10**6)
    return Case(
        tuple(singular_values), overlap, width, depth, scale, rate,
        min(2 * rank, width) if compressed_rank is None else compressed_rank,
    )


def _flint() -> Any:
    try:
        import flint
    except ImportError:
        raise ValueError("certify needs python-flint: pip install 'lowdim-jax[certify]'") from None
    return flint


def _plain(numbers: Sequence[Fraction]) -> str:
    return ", ".join(map(str, numbers))


# --- The two networks in balls --------------------------------------------------------------------


@dataclass
class _Balls:
    """Both networks at one step: layers of the small original, its bulk, and the compressed modes."""

    layers: list
    bulk: Any
    modes: list


class _System:
    """The maps of one case, at the precision that Arb's context has."""

    def __init__(self, flint, case: Case, frames: Sequence[np.ndarray]):
        self.flint, self.case = flint, case
        self.rank = len(case.singular_values)
        self.sigma = [self.ball(value) for value in case.singular_values]
        self.rate, self.scale = self.ball(case.learning_rate), self.ball(case.scale)
        frames = [self._frame(frame) for frame in frames]
        self.layers = [self.scale * (b * a.transpose()) for a, b in pairwise(frames)]
        self.target = frames[-1] * self._small_target() * frames[0].transpose()

    def ball(self, value: Fraction):
        return self.flint.arb(self.flint.fmpq(value.numerator, value.denominator))

    def _small_target(self):
        """`[[Cᵀ], [K]] Σ [I 0]` with `KᵀK = I − C Cᵀ` (3.4)."""
        r, arb_mat = self.rank, self.flint.arb_mat
        overlap = arb_mat([[self.ball(x) for x in row] for row in self.case.overlap])
        identity = arb_mat(r, r, [int(i == j) for i in range(r) for j in range(r)])
        lower = _cholesky(identity - overlap * overlap.transpose())
        rows = overlap.transpose().tolist() + lower.transpose().tolist()
        zero = self.flint.arb(0)
        return arb_mat([[x * s for x, s in zip(row, self.sigma, strict=True)] + [zero] * r for row in rows])

    def _frame(self, frame: np.ndarray):
        """An orthogonal matrix close to a given one: Gram–Schmidt on its rows, in balls."""
        rows = []
        for given in frame.tolist():
            row = [self.flint.arb(x) for x in given]
            for other in rows:
                along = sum((a * b for a, b in zip(row, other, strict=True)), self.flint.arb(0))
                row = [a - along * b for a, b in zip(row, other, strict=True)]
            norm = self.flint.arb(sum(a * a for a in row)).sqrt()
            rows.append([a / norm for a in row])
        return self.flint.arb_mat(rows)

    def start(self) -> _Balls:
        return _Balls(list(self.layers), self.scale, [self.scale] * self.rank)

    def residual(self, now: _Balls):
        """`z_L ⋯ z_1 − φ`, and the products `z_l ⋯ z_1` on the way."""
        products = [now.layers[0]]
        for layer in now.layers[1:]:
            products.append(layer * products[-1])
        return products[-1] - self.target, products

    def step(self, now: _Balls, residual, products) -> _Balls:
        depth = self.case.depth
        back = residual * self.rate  # η (z_L ⋯ z_{l+1})ᵀ E
        layers = list(now.layers)
        for index in reversed(range(depth)):
            gradient = back * products[index - 1].transpose() if index else back
            layers[index] = now.layers[index] - gradient
            if index:
                back = now.layers[index].transpose() * back
        modes = [
            x + self.rate * (sigma - _power(x, depth)) * _power(x, depth - 1)
            for x, sigma in zip(now.modes, self.sigma, strict=True)
        ]
        return _Balls(layers, now.bulk * (1 - self.rate * _power(now.bulk, 2 * depth - 2)), modes)

    def gap(self, now: _Balls, residual):
        """Squared error of the original minus that of the compressed network, and the original's."""
        case, power = self.case, 2 * self.case.depth
        zero = self.flint.arb(0)
        square = sum((x * x for x in residual.entries()), zero)
        pairs = zip(now.modes, self.sigma, strict=True)
        misfit = sum((_power(sigma - _power(x, case.depth), 2) for x, sigma in pairs), zero)
        # d − 2r directions of the original rest at ρ, and r̂ − r modes of the compressed network.
        idle = case.width - self.rank - case.compressed_rank
        whole = square + (case.width - 2 * self.rank) * _power(now.bulk, power)
        return square - misfit + idle * _power(now.bulk, power), whole

    def tail_holds(self, now: _Balls) -> bool:
        """Whether the gap is positive at this and every later step, whatever the original does in `z`.

        Mode i stays in the interval of radius `δ = |x − x*|` about its limit, on which `|f′| ≤ q < 1`: its
        misfit is at most `L (x* + δ)^{L−1} δ q^j` after j steps. The idle directions decay more slowly: each
        step multiplies `ρ^{2L}` by at least `(1 − η ρ^{2L−2})^{2L}`.
        """
        arb, case, depth = self.flint.arb, self.case, self.case.depth
        idle = case.width - self.rank - case.compressed_rank
        if idle <= 0:
            return False
        bound, contraction = arb(0), arb(0)
        for x, sigma in zip(now.modes, self.sigma, strict=True):
            limit = sigma.root(depth)
            radius = abs(x - limit).upper()
            around = limit + arb(0, radius)
            push = (depth - 1) * sigma * _power(around, depth - 2)
            slope = 1 + self.rate * (push - (2 * depth - 1) * _power(around, 2 * depth - 2))
            largest = abs(slope).upper()
            if not largest < 1:
                return False
            contraction = contraction.max(largest)
            bound += _power(depth * _power(limit + radius, depth - 1) * radius, 2)
        shrink = 1 - self.rate * _power(now.bulk, 2 * depth - 2)
        if not (shrink > 0 and _power(contraction, 2) < _power(shrink, 2 * depth)):
            return False
        return bool(bound < idle * _power(now.bulk, 2 * depth))


def _power(x, n: int):
    """`xⁿ` by multiplication: Arb's own power can be NaN for a ball about zero."""
    result = x * 0 + 1
    for _ in range(n):
        result = result * x
    return result


def _cholesky(matrix: Any) -> Any:
    """Lower factor `T` with `T Tᵀ` the matrix."""
    n = matrix.nrows()
    lower = [[matrix[0, 0] * 0 for _ in range(n)] for _ in range(n)]
    for j in range(n):
        square = matrix[j, j] - sum((x * x for x in lower[j][:j]), matrix[0, 0] * 0)
        if not square > 0:
            raise ValueError(TOO_LARGE)
        lower[j][j] = square.sqrt()
        for i in range(j + 1, n):
            known = sum((a * b for a, b in zip(lower[i][:j], lower[j][:j], strict=True)), matrix[0, 0] * 0)
            lower[i][j] = (matrix[i, j] - known) / lower[j][j]
    return type(matrix)(lower)


def _run(flint, case: Case, frames, max_steps: int, bits: int) -> Certificate | None:
    """One run at a precision; None where a ball of the gap contains zero."""
    context, before = flint.ctx, flint.ctx.prec
    try:
        context.prec = bits
        system = _System(flint, case, frames)
        now, smallest = system.start(), float("inf")
        for step in range(max_steps + 1):
            residual, products = system.residual(now)
            gap, whole = system.gap(now, residual)
            if gap < 0:
                return Certificate(REFUTED, step, bits, float("nan"), case)
            if not gap > 0:
                return None
            smallest = min(smallest, float((gap / whole).lower()))
            if system.tail_holds(now):
                return Certificate(PROVED, step, bits, smallest, case)
            # Digits beyond a ball's radius are noise: they are not carried along.
            context.prec = min(context.prec, max(GUARD_BITS, _accuracy(now) + GUARD_BITS))
            now = system.step(now, residual, products)
        return Certificate(UNDECIDED, max_steps, bits, smallest, case)
    finally:
        context.prec = before


def _accuracy(now: _Balls) -> int:
    """Bits to which the layers are known, relative to their largest entry."""
    entries = [x for layer in now.layers for x in layer.entries()]
    size = max(abs(float(x.mid())) for x in entries)
    radius = max((x.rad() for x in entries), key=float)
    if not radius > 0:
        return 10**9
    mantissa, exponent = radius.man_exp()
    return int(np.log2(size)) - int(exponent) - int(mantissa.bit_length())


def _rehearse(case: Case, max_steps: int) -> tuple[int, list[np.ndarray]]:
    """Steps until the tail argument should hold, and bases in which the layers then are nearly diagonal.

    An ordinary run in float64. Nothing rests on it but the width of the balls: in such bases an error in one
    direction does not spill into all others, which costs several bits a step otherwise.
    """
    sigma, depth = np.array(case.singular_values, float), case.depth
    rate, scale, r = float(case.learning_rate), float(case.scale), len(case.singular_values)
    overlap = np.array(case.overlap, float)
    try:
        lower = np.linalg.cholesky(np.eye(r) - overlap @ overlap.T)
    except np.linalg.LinAlgError:
        raise ValueError(TOO_LARGE) from None
    target = np.vstack([overlap.T, lower.T]) * sigma @ np.eye(r, 2 * r)
    layers, bulk, modes = [scale * np.eye(2 * r)] * depth, scale, np.full(r, scale)
    idle = max(case.width - r - case.compressed_rank, 1)
    steps = 0
    while steps < max_steps:
        push, pull = (depth - 1) * sigma * modes ** (depth - 2), (2 * depth - 1) * modes ** (2 * depth - 2)
        slopes = 1 + rate * (push - pull)
        settled = np.all(np.abs(slopes) < 1 - rate * bulk ** (2 * depth - 2))
        if settled and np.sum((sigma - modes**depth) ** 2) < idle * bulk ** (2 * depth) / depth**2:
            break
        residual = _product(layers) - target
        layers = [
            layer - rate * _product(layers[i + 1 :], 2 * r).T @ residual @ _product(layers[:i], 2 * r).T
            for i, layer in enumerate(layers)
        ]
        modes = modes + rate * (sigma - modes**depth) * modes ** (depth - 1)
        bulk *= 1 - rate * bulk ** (2 * depth - 2)
        steps += 1
    if not all(np.all(np.isfinite(layer)) for layer in layers):
        return max_steps, [np.eye(2 * r)] * (depth + 1)
    frames = [np.linalg.svd(layers[0])[2]]
    for layer in layers:
        q, triangle = np.linalg.qr(layer @ frames[-1].T)
        frames.append((q * np.sign(np.diag(triangle))).T)
    return steps, frames


def _product(layers: Sequence[np.ndarray], width: int = 0) -> np.ndarray:
    return np.linalg.multi_dot(layers[::-1]) if len(layers) > 1 else layers[0] if layers else np.eye(width)
