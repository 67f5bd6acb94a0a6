"""Recovery error per iteration and per second: what the trajectory figures have in common."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

import lowdim_jax as ld
from figures import runs, style
from figures.protocol import Arrays, Settings


def compute(
    problem: Any,
    starts: Mapping[str, ld.Weights],
    settings: Settings,
    *,
    observe: Callable[[ld.Weights], Any] | None = None,
) -> Arrays:
    """Errors `(n,)` of several networks, `iteration` `(n,)`, and each one's seconds an iteration."""
    arrays = {}
    for name, weights in starts.items():
        trajectory, seconds = runs.timed_descent(problem, weights, settings, observe=observe)
        arrays["iteration"] = np.asarray(trajectory.steps)
        arrays[name] = np.asarray(trajectory.observed)
        arrays[f"{name}_seconds"] = np.array(seconds)
    return arrays


def lines(settings: Settings) -> dict[str, dict[str, Any]]:
    """How the lines of the original and the compressed network look."""
    label = rf"compressed, $\hat{{r}}={settings['factor']}r$"
    return {
        "original": {"color": style.ORIGINAL, "label": "original", **style.THIN},
        "compressed": {"color": style.COMPRESSED, "label": label, **style.THICK},
    }


def draw(
    panels: Sequence[Axes], arrays: Arrays, looks: Mapping[str, Mapping[str, Any]], *, least: float
) -> list[Line2D]:
    """Errors down to `least` against iterations, and against seconds; returns the lines' handles."""
    by_iteration, by_second = panels
    iteration, handles = arrays["iteration"], []
    for name, look in looks.items():
        look = {**style.MEASURED, **look}
        handles += by_iteration.plot(iteration, arrays[name], **look)
        by_second.plot(iteration * arrays[f"{name}_seconds"], arrays[name], **look)
    by_iteration.set(yscale="log", xlim=(0, iteration[-1]), ylim=(least, 2), xlabel="iteration")
    style.thousands(by_iteration)
    by_second.set(xlim=(0, None), xlabel="seconds, measured, without compilation")
    by_second.xaxis.set_major_locator(MaxNLocator(5))
    return handles
