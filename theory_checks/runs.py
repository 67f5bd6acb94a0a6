"""What several checks train: compressed and original networks, one run a seed, in one program."""

from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

import lowdim_jax as ld
from lowdim_jax.linalg import extend_orthonormal
from theory_checks.reference import modes
from theory_checks.registry import NotApplicable
from theory_checks.setting import Setting

FITTED = 1e-3
"""Relative accuracy to which the last component is fitted where a run ends."""


def keep(weights):
    """Record the weights themselves."""
    return weights


def observe_modes(target: ld.LowRank) -> Partial:
    """Observable `u*_iᵀ W v*_i`; a `Partial` of one function, so that no run recompiles for it."""
    return Partial(_modes, target)


def observe_alignment(target: ld.LowRank) -> Partial:
    """Observable `spectra.alignment` with a target."""
    return Partial(_alignment, target)


def _modes(target, weights):
    return ld.spectra.modes(weights, target)


def _alignment(target, weights):
    return ld.spectra.alignment(weights, target)


def per_seed(
    function: Callable, setting: Setting, /, numbers: Mapping[str, Any] | None = None, *,
    targets=None, starts=None, **static,
):
    """`function(target, key, **numbers, **static)` of every seed, stacked, in one program.

    `targets` replaces those of the setting; with `starts`, one a seed, `function(target, start, …)`.
    A function of module level is compiled once for each set of `static` arguments, whatever `numbers`
    and `starts`: a control that differs in these shares the claim's program. One seed after the other:
    on a CPU a batch of matrix products is slower than as many single ones.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from theory_checks import Setting, per_seed
    >>> setting = Setting(size="small", dtype="float32", seeds=2)
    >>> def twice(target, key, *, factor):
    ...     return factor * target.singular_values.size
    >>> per_seed(twice, setting, factor=2).tolist()
    [8, 8]
    """
    inputs = (
        setting.targets if targets is None else targets,
        setting.keys if starts is None else starts,
    )
    return _per_seed(function, inputs, dict(numbers or {}), tuple(sorted(static.items())))


@partial(jax.jit, static_argnames=("function", "static"))
def _per_seed(function, inputs, numbers, static):
    return jax.lax.map(lambda seed: function(*seed, **numbers, **dict(static)), inputs)


def once(setting: Setting, make: Callable, /, **arguments):
    """`make(setting, **arguments)`, made once a run: for controls that break what it is compared with.

    Examples
    --------
    >>> from theory_checks import Setting
    >>> from theory_checks.runs import once
    >>> setting, made = Setting(seeds=2), []
    >>> for _ in range(2):
    ...     once(setting, made.append)
    >>> len(made)
    1
    """
    made = setting.__dict__.setdefault("_made", {})
    key = make, tuple(sorted(arguments.items()))
    if key not in made:
        made[key] = make(setting, **arguments)
    return made[key]


@jax.jit
def modes_under_flow(targets: ld.LowRank, weights, times, alpha, rtol) -> jax.Array:
    """`u*_iᵀ W v*_i` of every seed at `times`, `(seeds, times, r)`.

    Compiled once a depth: claims, controls and checks that differ in numbers only share it.
    """

    def follow(seed):
        target, weights = seed
        loss = ld.factorization(target).loss
        run = ld.gradient_flow(
            loss, weights, times, alpha=alpha, rtol=rtol, observe=observe_modes(target)
        )
        return run.observed

    return jax.lax.map(follow, (targets, weights))


@partial(jax.jit, static_argnames="steps")
def errors_under_descent(targets: ld.LowRank, weights, rate, *, steps: int) -> jax.Array:
    """Relative recovery error of every seed at every step, `(seeds, steps + 1)`; dense targets."""

    def follow(seed):
        target, weights = seed
        problem = ld.factorization(target.dense())
        run = ld.gradient_descent(
            problem.loss, weights, ld.GradientDescent(rate), steps=steps, observe=problem.recovery_error
        )
        return run.observed

    return jax.lax.map(follow, (targets, weights))


def compressed(
    target: ld.LowRank, key: jax.Array, *, depth: int, scale, rank: int, start: str = "spectral"
):
    """Compressed network; `start` is `"spectral"`, or a control: `"random"` or `"reversed"`."""
    if start == "spectral":
        return ld.compress(target, depth=depth, scale=scale, rank=rank)
    if start == "reversed":
        left = extend_orthonormal(target.left, rank)
        right = extend_orthonormal(target.right[:, ::-1], rank)
        return ld.initialization.from_singular_vectors(left, right, depth=depth, scale=scale)
    random = ld.random_target(key, target.shape, jnp.ones(rank, target.dtype))
    return ld.initialization.from_singular_vectors(random.left, random.right, depth=depth, scale=scale)


def original(target: ld.LowRank, key: jax.Array, *, depth: int, scale, init: str = "orthogonal"):
    """Original network of full width; `init` is `"orthogonal"` or, as a control, `"gaussian"`."""
    make = {"orthogonal": ld.orthogonal, "gaussian": ld.gaussian}[init]
    spaces = ld.full_widths(*target.shape, depth=depth)
    return make(key, spaces, scale=scale, dtype=target.dtype)


def edge(setting: Setting, *, depth: int, alpha=1.0) -> float:
    """Largest learning rate that is stable for every seed's target."""
    top = float(jnp.max(setting.targets.singular_values))
    return 2 / float(modes.sharpness(top, depth=depth, alpha=float(alpha)))


def last_fit(setting: Setting, *, depth: int, scale, alpha=1.0, tolerance=FITTED) -> float:
    """Predicted flow time at which the last component of every seed is fitted."""
    smallest = np.asarray(setting.targets.singular_values)[:, -1].tolist()
    how = {"depth": depth, "scale": float(scale), "tolerance": tolerance, "alpha": float(alpha)}
    return max(float(_fit_time(sigma, **how)) for sigma in smallest)


_fit_time = cache(modes.fit_time)


def require_distinct(setting: Setting, ratio: float = 0.999) -> None:
    """Raise `NotApplicable` if two neighbouring singular values are closer than `ratio`."""
    sigma = np.asarray(setting.targets.singular_values, float)
    ratios = sigma[:, 1:] / sigma[:, :-1]
    if ratios.size and np.max(ratios) > ratio:
        at = int(np.argmax(np.max(ratios, axis=0)))
        raise NotApplicable(
            f"singular values {at + 1} and {at + 2} of the target, {np.max(sigma[:, at]):.6g} and "
            f"{np.max(sigma[:, at + 1]):.6g}, are not distinct: their components have no vectors of their own"
        )


def require_room(setting: Setting) -> None:
    """Raise `NotApplicable` unless `r̂ ≤ max(r, d − r)`: the original keeps more idle directions (1.5)."""
    rank, width, d = setting.rank, setting.compressed_rank, min(setting.shape)
    if width > max(rank, d - rank):
        raise NotApplicable(
            f"r̂ = {width} is more than max(r, d − r) = {max(rank, d - rank)}, with r = {rank} and d = {d}"
        )


def require_small_overlap(setting: Setting) -> None:
    """Raise `NotApplicable` unless `r² ≤ d`, `r²/d` the squared overlap of a random start (3.4)."""
    rank, d = setting.rank, min(setting.shape)
    if rank**2 > d:
        raise NotApplicable(
            f"r² = {rank**2} is more than d = {d}: the start overlaps with the target, so that components of "
            "the original network do not rise one by one"
        )


MOST_STEPS = 3_000_000
"""Steps after which a component is said to take too long: minutes of a small network."""


def steps_to_fit(
    setting: Setting, rate: float, *, depth: int, scale, alpha=1.0, slack=1.1, most: float = MOST_STEPS
) -> int:
    """Steps of learning rate `rate` in which every component of every seed is fitted.

    Raises
    ------
    NotApplicable
        If these are more than `most`: singular values of one target may be far apart.
    """
    steps = np.ceil(slack * last_fit(setting, depth=depth, scale=scale, alpha=alpha) / rate)
    if steps > most:
        raise NotApplicable(
            f"the smallest component would take {steps:.1e} steps of descent, more than {most:.0e}: "
            "take fewer components with --rank"
        )
    return int(steps)
