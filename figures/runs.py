"""What several figures train, from their settings, and how long it took."""

import time
from collections.abc import Callable
from typing import Any

import jax

import lowdim_jax as ld
from figures.protocol import Settings


def separated_target(settings: Settings) -> ld.LowRank:
    """The paper's target: separated singular triplets of a Gaussian matrix."""
    return ld.separated_target(jax.random.key(settings["seed"]), settings["d"], settings["r"])


def original(settings: Settings) -> ld.Weights:
    """Original network, orthogonally initialized."""
    shape = ld.full_widths(settings["d"], settings["d"], depth=settings["depth"])
    key = jax.random.key(settings["seed"] + 1)
    return ld.orthogonal(key, shape, scale=settings["scale"])


def compressed(problem: Any, settings: Settings) -> ld.Weights:
    """Compressed network of `factor` times the target's rank, spectrally initialized."""
    rank = settings["factor"] * settings["r"]
    return ld.compress(problem, depth=settings["depth"], rank=rank, scale=settings["scale"])


def both(problem: Any, settings: Settings) -> dict[str, ld.Weights]:
    """The original and the compressed network of a problem."""
    return {"original": original(settings), "compressed": compressed(problem, settings)}


def problem_of(target: ld.LowRank, settings: Settings) -> Any:
    """What networks train on: a fraction `observed` of the entries, `measurements`, or the whole target.

    Measurements are float32 ones, in half the memory and time; networks are float64 all the same.
    """
    key = jax.random.key(settings["seed"] + 3)
    if "observed" in settings:
        mask = jax.random.uniform(key, target.shape) < settings["observed"]
        return ld.completion(target.dense(), mask, truth=target)
    if "measurements" in settings:
        stack = ld.gaussian_measurements(key, settings["measurements"], target.shape, dtype="float32")
        return ld.sensing(stack, truth=target, curvature=1.0)
    return ld.factorization(target.dense())


def descent(
    problem: Any, weights: ld.Weights, settings: Settings, *, observe: Callable[[ld.Weights], Any]
) -> ld.Trajectory:
    """Gradient descent at a figure's settings, `alpha` among them where it is not 1."""
    return ld.gradient_descent(
        problem.loss,
        weights,
        ld.GradientDescent(settings["learning_rate"], alpha=settings.get("alpha", 1.0)),
        steps=settings["steps"],
        record_every=settings["record_every"],
        observe=observe,
        throw=True,
    )


def timed_descent(
    problem: Any,
    weights: ld.Weights,
    settings: Settings,
    *,
    observe: Callable[[ld.Weights], Any] | None = None,
) -> tuple[ld.Trajectory, float]:
    """Gradient descent, by default observing recovery errors, and the seconds an iteration takes.

    These are measured over a run of `timed_steps` iterations.
    """
    seen = problem.recovery_error if observe is None else observe
    short = {**settings, "steps": settings["timed_steps"]}
    _, seconds = timed(
        lambda: descent(problem, weights, short, observe=seen), repeats=settings["repeats"]
    )
    return descent(problem, weights, settings, observe=seen), seconds / short["steps"]


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
