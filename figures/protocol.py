"""What every figure's module has: `compute` and `plot`.

It may also have `variants(arrays, settings)`, more drawings by name, and `animate(arrays, settings)`: a
figure, a function that moves it to a frame, and the number of frames.
"""

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from matplotlib.figure import Figure

Settings = Mapping[str, Any]
"""Settings of a figure at one size, from settings.toml."""
Arrays = dict[str, np.ndarray]
"""What a figure shows, by name: saved, and enough to draw it again."""


class FigureModule(Protocol):
    """A module of this package that makes a figure."""

    def compute(self, settings: Settings, /) -> Arrays:
        """Train, and return what the figure shows."""
        ...

    def plot(self, arrays: Arrays, settings: Settings, /) -> Figure:
        """Draw the figure from its arrays."""
        ...
