"""What several figures train, from their settings, and how long it took."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import jax

import lowdim_jax as ld


def separated_target(settings: Mapping[str, Any]) -> ld.LowRank:
    """The paper's target: separated singular triplets of a Gaussian matrix."""
    return ld.separated_target(jax.random.key(settings["seed"]), settings["d"], settings["r"])


def original(settings: Mapping[str, Any]) -> ld.Weights:
    """Original network, orthogonally initialized."""
    shape = ld.full_widths(settings["d"], settings["d"], depth=settings["depth"])
    key = jax.random.key(settings["seed"] + 1)
    return ld.orthogonal(key, shape, scale=settings["epsilon"])


def timed_descent(problem, weights, settings: Mapping[str, Any]) -> tuple[ld.Trajectory, float]:
    """Recovery error along gradient descent at a figure's settings, and its wall time in seconds."""
    return timed(
        lambda: ld.gradient_descent(
            problem.loss,
            weights,
            ld.SGD(settings["learning_rate"]),
            steps=settings["steps"],
            record_every=settings["record_every"],
            observe=problem.recovery_error,
            throw=True,
        ),
        repeats=settings["repeats"],
    )


def timed(run: Callable[[], ld.Trajectory], *, repeats: int) -> tuple[ld.Trajectory, float]:
    """What a run returns, and its wall time in seconds.

    The first run compiles and is not counted; the time is the shortest of `repeats` more.
    """
    result = jax.block_until_ready(run())
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(run())
        seconds.append(time.perf_counter() - start)
    return result, min(seconds)
