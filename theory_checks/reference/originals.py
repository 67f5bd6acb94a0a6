"""What docs/theory.md 3 says of original networks of any width, counted and iterated by hand."""

from collections.abc import Sequence

import mpmath
import numpy as np

ESCAPE_RATIOS = {3: 1.199679, 4: 1.278465, 5: 1.3200}
"""`κ_L` of 3.7."""


def core_widths(widths: Sequence[int], rank: int) -> list[int]:
    """Widths of the reduced network (3.2, 3.5).

    `2r` in the narrowest space; each space that is wider than its neighbour on the way there has up to `r`
    more.
    """
    narrow = list(widths).index(min(widths))
    cores = {narrow: min(2 * rank, widths[narrow])}
    for space in range(narrow - 1, -1, -1):
        cores[space] = cores[space + 1] + min(rank, widths[space] - widths[space + 1])
    for space in range(narrow + 1, len(widths)):
        cores[space] = cores[space - 1] + min(rank, widths[space] - widths[space - 1])
    return [cores[space] for space in range(len(widths))]


def bulk(
    scale: float, *, depth: int, rate: float, steps: int, decay: float = 0.0, alpha: float = 1.0
) -> np.ndarray:
    """The bulk's value in every layer, `(steps + 1, L)`: `ρ_l ← ρ_l − α_l η (λ ρ_l + Π_k ρ_k² / ρ_l)`."""
    rho = np.full(depth, float(scale))
    rates = np.ones(depth)
    rates[[0, -1]] = alpha
    history = [rho]
    for _ in range(steps):
        rho = rho - rates * rate * (decay * rho + np.prod(rho) ** 2 / rho)
        history.append(rho)
    return np.array(history)


def two_layer_delay(sigma: float, overlap: float = 0.0) -> float:
    """`ln(2 / (1 + c)) / 2σ*`: by how much the original of two layers is later than the compressed (3.7)."""
    return float(np.log(2 / (1 + overlap)) / (2 * sigma))


def escape_ratio(depth: int, overlap: float) -> float:
    """`κ_L(c) = k^{L−2}`, where the principal value of `∫_0^k s^{L−1} / (1 − s²) ds` is `artanh c` (3.7)."""

    def smooth(s):  # of `g(s) / (1 − s)` with `g = s^{L−1} / (1 + s)`, less its pole `g(1) / (1 − s)`
        return (s ** (depth - 1) / (1 + s) - mpmath.mpf(1) / 2) / (1 - s)

    def excess(k):
        value = mpmath.quad(smooth, [0, mpmath.mpf(1) / 2, 0.999, 1.001, k]) - mpmath.log(k - 1) / 2
        return value - mpmath.atanh(overlap)

    return float(mpmath.findroot(excess, (mpmath.mpf("1.01"), 2), solver="anderson") ** (depth - 2))
