"""Recovery from partial measurements (docs/theory.md 1.2 to 1.5, 1.7)."""

import time
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

import lowdim_jax as ld
from lowdim_jax.trajectory import Status
from theory_checks.registry import Curve, Evidence, check
from theory_checks.runs import compressed, once, original, per_seed
from theory_checks.setting import Setting

START = 3e-7
"""`ε^L` as a fraction of the surrogate's largest singular value."""
FRACTION = 0.5
"""Learning rate as a fraction of the edge of stability."""
STEPS = 4000
RECOVERED = 1e-2
"""Relative recovery error below which a matrix counts as recovered."""
EXCESS = 0.05
DRAWS = 12
"""Draws of the measurements over which an angle is averaged."""
OBSERVED = {"small": 0.5, "paper": 0.3, "large": 0.3}
"""Fraction of entries observed; below these sizes' values even depth 3 fails for some seeds."""


def _completion(target: ld.LowRank, key, fraction) -> ld.problems.Completion:
    key = jax.random.fold_in(key, 1)  # a key apart: the target is made of the seed's own
    mask = jax.random.uniform(key, target.shape) < fraction
    return ld.completion(target.dense(), mask, truth=target)


def _problems(kind: str, targets: Sequence[ld.LowRank], key, size) -> list:
    """The problem of each target, from the same measurements."""
    if kind == "completion":
        return [_completion(target, key, size) for target in targets]
    key, first = jax.random.fold_in(key, 1), targets[0]
    stack = ld.gaussian_measurements(key, size, first.shape, dtype=first.dtype)
    return [ld.sensing(stack, truth=target.dense(), curvature=1.0) for target in targets]


def _for_stacks(setting: Setting) -> Setting:
    """The small width at every size: a stack of measurements has of the order of `d⁴` entries."""
    return setting if setting.size == "small" else replace(setting, size="small")


def _trained(problem, weights, *, alpha, steps=STEPS, every=STEPS):
    """Recovery errors every few steps, at half the edge; for `α < 1` at that of `α = 1`."""
    rate = FRACTION * ld.max_learning_rate(problem, depth=len(weights), alpha=jnp.maximum(alpha, 1.0))
    run = ld.gradient_descent(
        problem.loss,
        weights,
        ld.GradientDescent(rate, alpha=alpha),
        steps=steps,
        record_every=every,
        observe=problem.recovery_error,
    )
    return run.observed


def _scale(problem, depth: int, start: float = START):
    top = jnp.linalg.norm(problem.surrogate_matrix(), 2)
    return (start * top) ** (1 / depth)


@check(
    "surrogate-accuracy",
    claim="The surrogate's squared Frobenius error is ‖Φ‖²(d_out d_in + 1)/m for sensing and ‖Φ‖²(1 − p)/p "
    "for completion.",
    source="1.7",
    controls={
        "labels of another matrix": {"swap": True},
    },
    any_target=False,
    optimized=True,
    rests_on=("theorem", "library"),
)
def surrogate_accuracy(setting: Setting, /, *, swap=False) -> Evidence:
    squares = once(setting, _squares)[:, int(swap)]
    return Evidence(
        errors=np.max(np.abs(squares - 1), axis=1),
        tolerance=0.25,
        reason="spread of a squared norm over measurements, some hundred independent components a target",
        quantity="relative difference of squared error and its expectation, the worst of two m and two p",
        predicted={"squared error / expectation": [1, 1, 1, 1]},
        measured={"squared error / expectation": squares.mean(axis=0)},
    )


def _squares(setting: Setting) -> np.ndarray:
    return np.asarray(per_seed(_surrogate_errors, _for_stacks(setting)))


def _surrogate_errors(target, key):
    """Squared errors of surrogates over their expectations, with the target's labels and with another's.

    Half of and twice as many measurements as entries, then a fifth and four fifths of the entries.
    """
    size = target.shape[0] * target.shape[1]
    counts, fractions = (size // 2, 2 * size), (0.2, 0.8)
    seen = target, ld.random_target(key, target.shape, target.singular_values)
    norm = jnp.sum(target.singular_values**2)
    cases = [("sensing", m, (size + 1) / m) for m in counts]
    cases += [("completion", p, (1 - p) / p) for p in fractions]
    squares = [
        [
            jnp.sum((problem.surrogate_matrix() - target.dense()) ** 2) / (norm * expected)
            for problem in _problems(kind, seen, key, measured)
        ]
        for kind, measured, expected in cases
    ]
    return jnp.array(squares).T


@check(
    "surrogate-angle",
    claim="The root mean square sine of the angles between leading singular subspaces of surrogate and "
    "target is what first-order perturbation says, so that it falls as 1/√m and √((1 − p)/p).",
    source="1.7",
    controls={"labels of another matrix": {"swap": True}},
    any_target=False,
    rests_on=("theorem", "library"),
)
def surrogate_angle(setting: Setting, /, *, swap=False) -> Evidence:
    """On small matrices of its own, well measured: first order is for small angles."""
    counts, fractions = (500, 4000), (0.7, 0.95)
    data = (("sensing", counts), ("completion", fractions))
    sines, predicted = once(setting, _sines, data=data)  # seeds × data
    measured = sines[..., int(swap)]
    names = [f"m = {m}" for m in counts] + [f"p = {p}" for p in fractions]
    return Evidence(
        errors=np.max(np.abs(measured / predicted - 1), axis=1),
        tolerance=0.2,
        reason=f"sampling of {DRAWS} draws, some per cent, and second-order terms, squares of the sines",
        quantity="relative difference of measured and predicted sine, the worst over m and p",
        predicted=dict(zip(names, predicted.mean(axis=0), strict=True)),
        measured=dict(zip(names, measured.mean(axis=0), strict=True)),
    )


def _sines(setting: Setting, *, data) -> tuple[np.ndarray, np.ndarray]:
    sines, predicted = per_seed(_surrogate_sines, setting, data=data, dtype=setting.dtype)
    return np.asarray(sines), np.asarray(predicted)


def _surrogate_sines(_, key, *, data, dtype):
    """Root mean square sines over draws, with the target's labels and with another's, and predicted ones."""
    sigma = jnp.array([2.0, 1.0], dtype)
    means, predicted = [], []
    for kind, sizes in data:
        d = 12 if kind == "sensing" else 40
        target = ld.random_target(jax.random.fold_in(key, d), (d, d), sigma)
        seen = target, ld.random_target(key, target.shape, sigma)
        for size in sizes:
            def squares(key, kind=kind, target=target, seen=seen, size=size):
                matrices = [problem.surrogate_matrix() for problem in _problems(kind, seen, key, size)]
                leading = jnp.linalg.svd(jnp.stack(matrices))[0][..., : len(sigma)]
                angles = jax.vmap(ld.linalg.subspace_angles, (0, None))(leading, target.left)
                return jnp.sum(jnp.sin(angles) ** 2, axis=1)

            means.append(jnp.mean(jax.lax.map(squares, jax.random.split(key, DRAWS)), axis=0))
            known = {"measurements" if kind == "sensing" else "observed": size}
            predicted.append(ld.theory.surrogate_angle(target, **known))
    return jnp.sqrt(jnp.stack(means)), jnp.stack(predicted)


@check(
    "recovery-dominance",
    claim="In sensing and completion, too, the compressed network's recovery error stays below the "
    f"original's, but for an excess of at most {EXCESS} of ‖Φ‖.",
    source="1.5",
    controls={"random orthonormal outer factors": {"random": True}},
    any_target=False,
    rests_on=("library", "library"),
    pinned_by="library-descent",
)
def recovery_dominance(setting: Setting, /, *, random=False) -> Evidence:
    every = 10
    worst, share, curves = [], {}, []
    for name in ("completion", "sensing"):
        spectral, unaligned, full = once(setting, _errors_in, name=name, every=every)
        small = unaligned if random else spectral
        worst.append(np.max(small - full, axis=1))
        above = full > RECOVERED
        share[name] = float(np.mean(small[above] <= full[above]))
        curves.append(
            Curve(name, every * np.arange(small.shape[1]), small[0], full[0], xlabel="iteration",
                  ylabel="relative recovery error", ylog=True, labels=("compressed", "original"))
        )
    return Evidence(
        errors=np.max(worst, axis=0),
        tolerance=EXCESS,
        reason="measured: dominance is proved for a known matrix of rank one only; here a late component "
        "may rise some steps earlier in the original",
        quantity="largest (error of compressed − error of original) over all iterations",
        predicted={"largest difference": f"≤ {EXCESS}"},
        measured={
            "largest difference": np.max(worst, axis=0),
            f"share of iterations with compressed ≤ original, down to {RECOVERED:g}": share,
        },
        curves=tuple(curves),
    )


def _errors_in(setting: Setting, *, name, every) -> np.ndarray:
    """Recovery errors of every seed along training, `(3, seeds, records)`."""
    if name == "sensing":
        setting = _for_stacks(setting)
        size = 3 * setting.shape[0] * setting.shape[1] // 8
    else:
        size = OBSERVED[setting.size]
    rank = setting.compressed_rank
    errors = per_seed(_errors_of_three, setting, name=name, size=size, rank=rank, every=every)
    return np.moveaxis(np.asarray(errors), 1, 0)


def _errors_of_three(target, key, *, name, size, rank, every):
    """Recovery errors of the compressed network, of one with random outer factors, and of the original."""
    (problem,) = _problems(name, (target,), key, size)
    common = {"depth": 3, "scale": 0.03}
    starts = (
        ld.compress(problem, rank=rank, **common),
        compressed(target, key, rank=rank, start="random", **common),
    )
    train = partial(_trained, problem, alpha=1.0, steps=1200, every=every)
    narrow = jax.lax.map(train, jax.tree.map(lambda *layers: jnp.stack(layers), *starts))
    return jnp.concatenate([narrow, train(original(target, key, **common))[None]])


@check(
    "completion-recovery",
    claim="The compressed network of depth 3 recovers a matrix from a part of its entries, with outer "
    "learning rates of one and of five times the middle one.",
    source="1.3, 1.4",
    controls={
        "outer factors frozen (α = 0)": {"alphas": (0.0,)},
        "outer factors frozen, from the size of the solution": {"alphas": (0.0,), "start": 1.0},
        "two factors, from a start that depth 3 recovers from": {"depth": 2},
    },
    any_target=False,
    rests_on=("theorem", "library"),
)
def completion_recovery(
    setting: Setting, /, *, alphas=(1.0, 5.0), depth=3, start=START
) -> Evidence:
    errors = np.stack(
        [
            _completion_errors(setting, alpha=alpha, start=start, depth=depth, rank=setting.compressed_rank)
            for alpha in alphas
        ],
        axis=1,
    )
    return Evidence(
        errors=np.max(errors, axis=1),
        tolerance=1e-3,
        reason=f"what {STEPS} steps and the start ε leave, with a margin over seeds",
        quantity="relative recovery error, the worst of the α",
        predicted={"recovery error": 0},
        measured={f"α = {alpha:g}": errors[:, k] for k, alpha in enumerate(alphas)},
    )


def _completion_errors(setting: Setting, /, *, alpha=1.0, start=START, depth=3, rank: int) -> np.ndarray:
    """Recovery error of every seed after training a compressed network on a part of the entries."""
    numbers = {"alpha": alpha, "start": start}
    fixed = {"depth": depth, "rank": rank, "fraction": OBSERVED[setting.size]}
    return np.asarray(per_seed(_completion_error, setting, numbers, **fixed))


def _completion_error(target, key, *, alpha, start, depth, rank, fraction):
    problem = _completion(target, key, fraction)
    weights = ld.compress(problem, depth=depth, scale=_scale(problem, depth, start), rank=rank)
    return _trained(problem, weights, alpha=alpha)[-1]


@check(
    "rank-overestimation",
    claim="Completion's recovery error is as small for r̂ from r to 4r.",
    source="1.2",
    controls={"r̂ = r − 1": {"factors": (1,), "shift": -1}},
    any_target=False,
    rests_on=("theorem", "library"),
)
def rank_overestimation(setting: Setting, /, *, factors=(1, 2, 4), shift=0) -> Evidence:
    ranks = [factor * setting.rank + shift for factor in factors]
    errors = np.stack([_completion_errors(setting, rank=rank) for rank in ranks], axis=1)
    return Evidence(
        errors=np.max(errors, axis=1),
        tolerance=5e-3,
        reason=f"what {STEPS} steps and the start ε leave, with a margin over seeds",
        quantity="relative recovery error, the worst of the ranks",
        predicted={"recovery error": 0},
        measured={f"r̂ = {rank}": errors[:, k] for k, rank in enumerate(ranks)},
    )


@check(
    "compression-speed",
    claim="To the same recovery error, compilation included, the compressed network takes at most half of "
    "the original's wall time.",
    source="1.5",
    controls={"the original network against itself": {"narrow": False, "repeats": 1}},
    any_target=False,
    optimized=True,
    alone=True,
    rests_on=("theorem", "library"),
)
def compression_speed(setting: Setting, /, *, narrow=True, repeats=2) -> Evidence:
    problem, goal, rate, spectral, full = once(setting, _large_completion)
    small = spectral if narrow else full

    def measure(weights):
        def nothing(_):  # a function of its own, so that the program is compiled anew
            return ()

        with _kept_out_of_the_cache():
            begin = time.perf_counter()
            run = ld.gradient_descent(
                problem.loss,
                weights,
                ld.GradientDescent(rate),
                steps=10 * STEPS,
                record_every=20,
                tolerance=goal,
                observe=nothing,
            )
            jax.block_until_ready(run.weights)
            seconds = time.perf_counter() - begin
        return seconds if run.status == Status.REACHED_TOLERANCE else np.inf, int(run.num_steps)

    # In turns, and the faster of each: other programs on the machine disturb some runs, not all.
    runs = [(measure(small), measure(full)) for _ in range(repeats)]
    (fast, few), (slow, many) = (min(side) for side in zip(*runs, strict=True))
    ratio = fast / slow if np.isfinite(slow) else np.inf
    return Evidence(
        errors=np.array([ratio]),
        tolerance=0.5,
        reason="the paper's claim",
        quantity="wall time of the compressed network over that of the original, both compiled anew, the "
        "faster of two runs each",
        predicted={"ratio": "≤ 0.5"},
        measured={"ratio": ratio, "seconds": [fast, slow], "steps": [few, many]},
        timed=True,
    )


def _large_completion(setting: Setting) -> tuple:
    """Two starts on a matrix of one size, whatever the setting's: smaller ones measure but the compiler."""
    size = 160 if jax.default_backend() == "cpu" else 3000
    target = ld.separated_target(jax.random.key(0), size, 5, dtype=setting.dtype)
    problem = _completion(target, jax.random.key(1), 0.3)
    goal = 1e-4 * float(problem.loss((jnp.zeros(target.shape, setting.dtype),)))
    scale = float(_scale(problem, 3))
    rate = FRACTION * float(ld.max_learning_rate(problem, depth=3))
    full = ld.orthogonal(
        jax.random.key(2), ld.full_widths(*target.shape, depth=3), scale=scale, dtype=setting.dtype
    )
    return problem, goal, rate, ld.compress(problem, depth=3, scale=scale, rank=10), full


@contextmanager
def _kept_out_of_the_cache():
    """Write no program to the persistent cache: the next run would find it, and not compile."""
    name = "jax_persistent_cache_min_compile_time_secs"
    before = jax.config.values[name]
    jax.config.update(name, float("inf"))
    try:
        yield
    finally:
        jax.config.update(name, before)
