"""Ranks for many layers at once, from the singular values of their surrogates."""

import heapq
from collections.abc import Mapping

import numpy as np


def check_rank_choice(rank, energy: float, budget: int | None, *, chosen_from_surrogate: bool) -> None:
    """Raise `ValueError` where the settings that choose a rank contradict each other."""
    if isinstance(rank, str):
        if rank != "noise" or not chosen_from_surrogate:
            raise ValueError(f"rank={rank!r}, expected an integer, None, or 'noise' with a surrogate")
        rank = 1
    given = list(rank.values()) if isinstance(rank, Mapping) else [] if rank is None else [rank]
    for value in given:
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
            raise ValueError(f"rank={value!r}, expected a positive integer")
    if isinstance(energy, bool) or not isinstance(energy, int | float | np.number) or not 0 < energy <= 1:
        raise ValueError(f"energy={energy!r}, expected a fraction in (0, 1]")
    if budget is not None and (isinstance(budget, bool) or not isinstance(budget, int | np.integer)):
        raise ValueError(f"budget={budget!r}, expected an integer, the number of parameters in all")
    if budget is not None and rank is not None:
        raise ValueError(f"budget={budget} and rank={rank} are two rules: give rank=None with a budget")
    if rank is None and not chosen_from_surrogate:
        raise ValueError("rank=None, expected a rank: a random start has no surrogate to choose it from")


def ranks_within(
    energies: Mapping[str, np.ndarray],
    shapes: Mapping[str, tuple[int, int]],
    copies: Mapping[str, int],
    /,
    *,
    depth: int,
    energy: float = 0.9,
    budget: int | None = None,
) -> dict[str, int]:
    """Rank of each layer, from `σ_i²` of its surrogate, descending.

    Parameters
    ----------
    energies, shapes, copies
        By layer: `σ_i²`, summed over the copies of a stacked layer; `(d_out, d_in)`; number of copies.
    depth
        Number of factors: a rank `r` costs `copies · ((d_out + d_in) r + (L − 2) r²)` parameters.
    energy
        Without a budget: the smallest rank that holds this share.
    budget
        Parameters in all. Every layer gets rank 1, then the component with the largest `σ_i²` for each
        parameter it costs, while it fits.

    Raises
    ------
    ValueError
        If rank 1 everywhere exceeds the budget.

    Examples
    --------
    >>> energies = {"a": np.array([9.0, 4.0, 0.1]), "b": np.array([5.0, 0.2, 0.1])}
    >>> same = {"a": (3, 3), "b": (3, 3)}
    >>> ranks_within(energies, same, {"a": 1, "b": 1}, depth=2, budget=18)
    {'a': 2, 'b': 1}
    """
    if budget is None:
        return {path: _smallest(values, energy) for path, values in energies.items()}

    def cost(path, rank):
        return copies[path] * (sum(shapes[path]) * rank + (depth - 2) * rank**2)

    ranks = dict.fromkeys(energies, 1)
    left = budget - sum(cost(path, 1) for path in ranks)
    if left < 0:
        raise ValueError(f"budget={budget}, expected at least {budget - left}: rank 1 in every layer")

    def offer(path):
        rank = ranks[path]
        if rank < len(energies[path]) and energies[path][rank] > 0:
            extra = cost(path, rank + 1) - cost(path, rank)
            heapq.heappush(offers, (-energies[path][rank] / extra, path, extra))

    offers: list[tuple[float, str, int]] = []
    for path in ranks:
        offer(path)
    while offers:
        _, path, extra = heapq.heappop(offers)
        if extra <= left:
            left -= extra
            ranks[path] += 1
            offer(path)
    return ranks


def _smallest(values: np.ndarray, energy: float) -> int:
    if not np.any(values):  # a layer that the loss does not feel
        return 1
    held = np.cumsum(values) / np.sum(values)
    return min(int(np.sum(held < energy)) + 1, len(values))
