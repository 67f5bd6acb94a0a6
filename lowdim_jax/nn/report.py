"""What was done to the layers of a model, in one object to print."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lowdim_jax._host import is_traced


@dataclass(frozen=True)
class AdaptedLayer:
    """One line of a report.

    Attributes
    ----------
    path, kind
        Where it is, and the class of the base.
    shape, copies
        `(d_out, d_in)` of its matrix, and how many of them a stacked layer has.
    rank, parameters
        `r`, and the entries of all factors.
    energy
        Share of the surrogate's `Σ σ_i²` in its `r` leading components; NaN from a random start.

    Examples
    --------
    >>> from flax import nnx
    >>> from lowdim_jax import nn
    >>> model = nnx.Sequential(nnx.Linear(6, 5, rngs=nnx.Rngs(0)))
    >>> report = nn.adapt(model, "layers.0", rank=2, start="random", rngs=nnx.Rngs(1))
    >>> report.layers[0].path, report.layers[0].rank
    ('layers.0', 2)
    """

    path: str
    kind: str
    shape: tuple[int, int]
    copies: int
    rank: int
    parameters: int
    energy: Any

    def __str__(self) -> str:
        copies = f" ×{self.copies}" if self.copies > 1 else ""
        shape = f"{self.shape[0]}×{self.shape[1]}{copies}"
        known = not is_traced(self.energy) and not math.isnan(self.energy)
        energy = f", energy {self.energy:.3f}" if known else ""
        return f"{self.path}: {self.kind} {shape}, rank {self.rank}, {self.parameters:,} parameters{energy}"


@dataclass(frozen=True)
class Report:
    """What `adapt` or `compress` did.

    Attributes
    ----------
    layers
        One entry for each layer that was replaced.
    skipped
        Why a layer whose path fits was left alone, by path.

    Examples
    --------
    >>> from flax import nnx
    >>> from lowdim_jax import nn
    >>> model = nnx.Sequential(nnx.Linear(6, 5, rngs=nnx.Rngs(0)))
    >>> report = nn.adapt(model, "layers.0", rank=2, start="random", rngs=nnx.Rngs(1))
    >>> report.ranks, report.parameters
    ({'layers.0': 2}, 22)
    """

    layers: tuple[AdaptedLayer, ...]
    skipped: Mapping[str, str] = field(default_factory=dict)

    @property
    def parameters(self) -> int:
        """Entries of all factors."""
        return sum(layer.parameters for layer in self.layers)

    @property
    def ranks(self) -> dict[str, int]:
        """Rank by path: given as `rank`, the same model is built again."""
        return {layer.path: layer.rank for layer in self.layers}

    def __str__(self) -> str:
        lines = [str(layer) for layer in self.layers]
        lines += [f"{path}: left alone, {reason}" for path, reason in self.skipped.items()]
        layers = "1 layer" if len(self.layers) == 1 else f"{len(self.layers)} layers"
        return "\n".join([*lines, f"{layers}, {self.parameters:,} parameters"])
