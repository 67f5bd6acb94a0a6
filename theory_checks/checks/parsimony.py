"""Section 3 of docs/theory.md: the original network, exactly, in 2r dimensions."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import lowdim_jax as ld
from lowdim_jax import spectra
from theory_checks.registry import Curve, Evidence, check
from theory_checks.runs import edge, keep, observe_alignment, original, per_seed
from theory_checks.setting import Setting

DEPTH, SCALE = 3, 0.3
STEPS, EVERY = 400, 10
NUMBER = 2
"""The layer whose bulk is looked at, a middle one."""

CHAINS = {
    "d_out < d_in": (30, 30, 30, 20),
    "d_out > d_in": (20, 30, 30, 30),
    "bottleneck": (30, 20, 20, 30),
}
"""Widths, input to output, whose layers are not all square."""

OPTIMIZERS = {
    "gradient descent": {},
    "momentum": {"momentum": 0.8},
    "Nesterov momentum": {"momentum": 0.8, "nesterov": True},
    "weight decay": {"weight_decay": 0.05},
    "discrepant rates": {"alpha": 3.0},
}


def _descent(rate: float, **numbers: Any) -> ld.GradientDescent:
    """Descent with every number given, so that rules which differ in numbers only share a program."""
    every: dict[str, Any] = {"alpha": 1.0, "momentum": 0.0, "weight_decay": 0.0} | numbers
    return ld.GradientDescent(rate, **every)


def _rule(name: str, rate: float) -> ld.GradientDescent:
    fraction = {"discrepant rates": 3.0 ** (-2 / DEPTH), "momentum": 0.2, "Nesterov momentum": 0.2}
    return _descent(rate * fraction.get(name, 1.0), **OPTIMIZERS[name])


def _full_and_reduced(target, weights, optimizer, *, steps=STEPS, every=EVERY, observe=keep):
    """The same training twice: all weights of the full network, and its reduction."""
    problem = ld.factorization(target.dense())
    full = ld.gradient_descent(
        problem.loss, weights, optimizer, steps=steps, record_every=every, observe=observe
    )
    reduction = ld.reduce(weights, target, strict=False)
    small = ld.reduced_descent(
        reduction, optimizer, steps=steps, record_every=every, observe=keep, strict=False
    )
    return full, reduction, small


def _relative_gaps(weights, others):
    """Relative Frobenius difference of each layer."""
    pairs = zip(weights, others, strict=True)
    return jnp.stack([jnp.linalg.norm(w - v) / jnp.linalg.norm(w) for w, v in pairs])


@check(
    "lossless-reduction",
    claim="The reduced network gives every layer of the full one: descent, momentum, Nesterov, weight "
    "decay, discrepant rates.",
    source="3.1, 3.2, 3.5",
    controls={
        "Adam, which does not rotate with the weights": {"optimizers": ("Adam",)},
        "Gaussian instead of orthogonal initialization": {
            "init": "gaussian", "optimizers": ("gradient descent",),
        },
    },
)
def lossless_reduction(
    setting: Setting, /, *, init="orthogonal", optimizers=tuple(OPTIMIZERS)
) -> Evidence:
    rate = 0.5 * edge(setting, depth=DEPTH)
    starts = per_seed(original, setting, {"scale": SCALE}, depth=DEPTH, init=init)
    by_optimizer, lines = {}, []
    for name in optimizers:
        rule = {"rate": 10 * rate} if name == "Adam" else {"rule": _rule(name, rate)}
        gaps = np.asarray(per_seed(_gaps_of_layers, setting, rule, starts=starts))
        by_optimizer[name] = np.max(gaps, axis=(1, 2))
        lines.append(np.max(gaps[0], axis=1))
    return Evidence(
        errors=np.max(np.asarray(list(by_optimizer.values())), axis=0),
        tolerance=setting.rounding(STEPS),
        reason=f"rounding of {STEPS} steps",
        quantity="largest relative Frobenius difference of a layer, over layers, steps and optimizers",
        predicted={"difference": 0},
        measured={name: float(np.max(error)) for name, error in by_optimizer.items()},
        curves=(
            Curve("largest difference of a layer, one line an optimizer",
                  np.arange(0, STEPS + 1, EVERY),
                  np.full((STEPS // EVERY + 1, len(lines)), setting.eps),
                  np.maximum(np.transpose(lines), setting.eps / 10), xlabel="step",
                  ylabel="relative difference", ylog=True, labels=("rounding unit", "measured")),
        ),
    )


def _gaps_of_layers(target, weights, *, rule=None, rate=None):
    """Relative difference of full and lifted layers, `(records, layers)`; with a `rate`, Adam's."""
    optimizer = rule if rate is None else optax.adam(rate)
    full, reduction, small = _full_and_reduced(target, weights, optimizer)
    return jax.vmap(_relative_gaps)(full.observed, jax.vmap(reduction.lift)(small.observed))


def _histories(target, weights, *, rule):
    """Every layer at every record, `(records, layers, d, d)`."""
    run = ld.gradient_descent(
        ld.factorization(target.dense()).loss, weights, rule, steps=STEPS, record_every=EVERY, observe=keep
    )
    return jnp.stack(run.observed, axis=1)


@check(
    "block-structure",
    claim="In every layer all but 2r singular values are equal, follow ρ ← ρ(1 − ηλ − ηρ^{2L−2}), and "
    "their singular subspaces stay where they were.",
    source="3.2",
    controls={"Gaussian instead of orthogonal initialization": {"init": "gaussian"}},
    any_target=False,
)
def block_structure(setting: Setting, /, *, init="orthogonal", decay=0.05) -> Evidence:
    rate = 0.5 * edge(setting, depth=DEPTH)
    d, bulk = min(setting.shape), min(setting.shape) - 2 * setting.rank

    starts = per_seed(original, setting, {"scale": SCALE}, depth=DEPTH, init=init)
    rule = _descent(rate, weight_decay=decay)
    history = np.asarray(per_seed(_histories, setting, {"rule": rule}, starts=starts))
    rates = {"learning_rate": rate, "weight_decay": decay}
    start = jnp.asarray(SCALE, setting.dtype)
    rho = np.asarray(ld.theory.bulk_descent(start, depth=DEPTH, steps=STEPS, **rates))[::EVERY]

    singular = np.linalg.svd(history, compute_uv=False)
    distance = np.sort(np.abs(singular - rho[None, :, None, None]), axis=-1)
    spread = distance[..., bulk - 1]  # the worst of the `bulk` singular values nearest to ρ
    # Directions v of the bulk: W(t) v = (ρ(t)/ε) W(0) v. They are what the moved part's complement is.
    moved = history - (rho / SCALE)[None, :, None, None, None] * history[:, :1]
    extra = np.linalg.svd(moved, compute_uv=False)[..., d - bulk]
    by_seed = np.maximum(spread, extra).max(axis=(1, 2)) / SCALE
    every = np.arange(0, STEPS + 1, EVERY)
    return Evidence(
        errors=by_seed,
        tolerance=setting.rounding(STEPS),
        reason=f"rounding of {STEPS} steps",
        quantity="largest of |σ − ρ(t)| over the d − 2r bulk singular values, and the (2r+1)-th singular "
        "value of W_l(t) − (ρ(t)/ε) W_l(0), relative to ε",
        predicted={"bulk count": bulk, "ρ at the end": rho[-1]},
        measured={
            "bulk count, fewest over layers and steps": int(
                np.min(np.sum(distance < setting.rounding(STEPS) * SCALE, axis=-1))
            ),
            "median singular value at the end, seed 0": float(np.median(singular[0, -1, 0])),
        },
        curves=(
            Curve(f"singular values of layer {NUMBER}, and ρ(t)", every,
                  np.repeat(rho[:, None], d, axis=1), singular[0, :, NUMBER - 1], xlabel="step",
                  ylabel="singular value"),
        ),
    )


@check(
    "rectangular-reduction",
    claim="With a rectangular end layer 3r dimensions suffice, in both orientations and at bottlenecks.",
    source="3.5",
    controls={
        "Gaussian instead of orthogonal initialization": {
            "init": "gaussian", "chains": {"d_out < d_in": CHAINS["d_out < d_in"]},
        },
    },
    any_target=False,
)
def rectangular_reduction(
    setting: Setting, /, *, init="orthogonal", chains: Mapping = CHAINS
) -> Evidence:
    rank, scale = 3, 0.3
    make = {"orthogonal": ld.orthogonal, "gaussian": ld.gaussian}[init]
    errors, cores = {}, {}
    for name, spaces in chains.items():

        def distance(target, key, spaces=spaces):
            del target
            sigma = jnp.linspace(2.0, 1.0, rank, dtype=setting.dtype)
            target = ld.random_target(key, (spaces[-1], spaces[0]), sigma)
            weights = make(key, spaces, scale=scale, dtype=setting.dtype)
            optimizer = ld.GradientDescent(0.1, weight_decay=0.02)
            full, reduction, small = _full_and_reduced(
                target, weights, optimizer, every=STEPS, observe=None
            )
            gaps = _relative_gaps(full.weights, reduction.lift(small.weights))
            return jnp.max(gaps), jnp.asarray([b.shape[1] for b in reduction.bases])

        gaps, widths = per_seed(distance, setting)
        errors[name], cores[name] = np.asarray(gaps), np.asarray(widths[0])
    return Evidence(
        errors=np.max(np.asarray(list(errors.values())), axis=0),
        tolerance=setting.rounding(STEPS),
        reason=f"rounding of {STEPS} steps",
        quantity="largest relative Frobenius difference of a layer from the lifted reduction",
        predicted={"largest core width": 3 * rank},
        measured={f"core widths, {name}": widths for name, widths in cores.items()},
    )


@check(
    "haar-overlap",
    claim="The overlap (R_LᵀU*)ᵀV* is that of two independent uniform frames: E‖·‖_F² = r²/d, drawn "
    "directly or through the product of L Haar layers.",
    source="3.4",
    controls={"drawn at half the width": {"drawn_width": 4}},
    any_target=False,
)
def haar_overlap(setting: Setting, /, *, drawn_width=8) -> Evidence:
    d, rank, draws = 8, 2, 400
    values = jnp.ones(rank, setting.dtype)

    def direct(key):
        target = ld.sample(key, drawn_width, values, depth=DEPTH, scale=SCALE).problem.target
        return jnp.sum((target.left.T @ target.right) ** 2)

    def through_layers(key):
        key_weights, key_target = jax.random.split(key)
        weights = ld.orthogonal(key_weights, (d,) * (DEPTH + 1), scale=1.0, dtype=setting.dtype)
        product = ld.end_to_end(weights)
        target = ld.random_target(key_target, (d, d), values)
        return jnp.sum((target.left.T @ product @ target.right) ** 2)

    def draw(target, key):
        del target
        keys = jax.random.split(key, draws)
        # One draw after the other: batched QR inside a loop can deadlock on XLA's CPU threads.
        pairs = jax.lax.map(lambda key: jnp.stack([direct(key), through_layers(key)]), keys)
        return pairs.T

    squares = np.asarray(per_seed(draw, setting))  # seeds × constructions × draws
    means = squares.mean(axis=2)
    standard_errors = squares.std(axis=2) / draws**0.5
    return Evidence(
        errors=np.max(np.abs(means - rank**2 / d) / standard_errors, axis=1),
        tolerance=5.0,
        reason=f"five standard errors of the mean of {draws} draws",
        quantity="largest |mean of ‖overlap‖_F² − r²/d|, in standard errors",
        predicted={"mean of ‖overlap‖_F²": rank**2 / d},
        measured={"drawn directly": means[:, 0], "through the layers": means[:, 1]},
    )


@check(
    "whitened-data",
    claim="On inputs with X Xᵀ = I, descent on ½‖W X − Y‖² is descent on ½‖W − Y Xᵀ‖², in every layer.",
    source="3.6",
    controls={"inputs that are not white": {"white": False}},
    any_target=False,
)
def whitened_data(setting: Setting, /, *, white=True) -> Evidence:
    steps = 200
    errors = np.asarray(per_seed(_regression_gap, setting, {"white": white}, steps=steps))
    return Evidence(
        errors=errors,
        tolerance=setting.rounding(steps),
        reason=f"rounding of {steps} steps",
        quantity="largest relative Frobenius difference of a layer",
        predicted={"difference": 0},
        measured={"difference": errors},
    )


def _regression_gap(target, key, *, white, steps, sizes=(12, 4, 60)):
    """Worst difference of a layer between regression on data and factorization of its target."""
    (d_in, d_out, samples), dtype = sizes, target.dtype
    key_inputs, key_labels, key_weights = jax.random.split(key, 3)
    raw = jax.random.normal(key_inputs, (d_in, samples), dtype)
    inputs = ld.problems.whiten(raw)
    labels = jax.nn.one_hot(jax.random.randint(key_labels, (samples,), 0, d_out), d_out, dtype=dtype).T
    problem = ld.factorization(ld.problems.regression_target(inputs, labels))
    shown = jnp.where(white, inputs, raw / samples**0.5)
    weights = ld.orthogonal(key_weights, (d_in, d_in, d_out), scale=SCALE, dtype=dtype)
    rule = ld.GradientDescent(0.5 * ld.max_learning_rate(problem, depth=2))
    runs = [
        ld.gradient_descent(loss, weights, rule, steps=steps, record_every=steps)
        for loss in (lambda w: jnp.sum((ld.forward(w, shown) - labels) ** 2) / 2, problem.loss)
    ]
    return jnp.max(_relative_gaps(*(run.weights for run in runs)))


@check(
    "low-rank-updates",
    claim="Weight updates W_l(t) − W_l(0) have rank at most 2r, up to the slow motion of the bulk.",
    source="1.1, 3.2",
    controls={"Gaussian instead of orthogonal initialization": {"init": "gaussian"}},
    any_target=False,
)
def low_rank_updates(setting: Setting, /, *, init="orthogonal") -> Evidence:
    rate = 0.5 * edge(setting, depth=DEPTH)

    # At ε ≪ 1 the bulk rests to order ε^{2L−2}, so that W_l(t) − W_l(0) itself is low-rank.
    starts = per_seed(original, setting, {"scale": SCALE}, depth=DEPTH, init=init)
    rule = _descent(rate)
    history = np.asarray(per_seed(_histories, setting, {"rule": rule}, starts=starts))
    values = np.linalg.svd(history[:, -1] - history[:, 0], compute_uv=False)  # seeds × layers × d
    m = 2 * setting.rank
    errors = np.max(values[:, :, m] / values[:, :, 0], axis=1)
    rest = rate * STEPS * SCALE ** (2 * DEPTH - 1)
    index = np.arange(1, values.shape[-1] + 1)
    floor = np.where(index <= m, values[0, NUMBER - 1], rest)
    return Evidence(
        errors=errors,
        tolerance=rest / float(np.min(values[:, :, 0])) + setting.rounding(STEPS),
        reason="motion of the bulk, at most ε^{2L−1} η k in k steps, relative to the largest singular value",
        quantity="(2r+1)-th over the first singular value of W_l(t) − W_l(0), over layers",
        predicted={"singular values above the bulk's motion": m},
        measured={"ratio": errors},
        curves=(
            Curve(f"singular values of the update of layer {NUMBER}", index, floor,
                  np.maximum(values[0, NUMBER - 1], setting.eps / 10), xlabel="index",
                  ylabel="singular value", ylog=True, labels=("the bulk's motion past 2r", "measured")),
        ),
    )


@check(
    "escape-ratio",
    claim="As d → ∞, ε → 0, the original needs κ_L times the compressed network's time to halve the "
    "squared error (κ_3 = 1.199679, κ_4 = 1.278465), and ln 2/(2σ*) more at L = 2.",
    source="3.7",
    controls={"singular vectors that are not orthogonal to each other": {"overlap": 0.7}},
    any_target=False,
)
def escape_ratio(setting: Setting, /, *, overlap=0.0) -> Evidence:
    sigma = 2.0
    scales = {2: 1e-3, 3: 3e-3, 4: 0.03}
    measured, predicted, errors = {}, {}, []
    for depth, scale in scales.items():
        original_time, compressed_time = (
            _half_time(setting, depth, scale, sigma, cosine) for cosine in (overlap, 1.0)
        )
        if depth == 2:
            name, value = "delay at L = 2", original_time - compressed_time
            expected = float(ld.theory.escape_delay(sigma))
        else:
            name, value = f"κ_{depth}", original_time / compressed_time
            expected = ld.theory.escape_ratio(depth)
        measured[name], predicted[name] = value, expected
        errors.append(abs(value / expected - 1))
    return Evidence(
        errors=np.array([max(errors)]),
        tolerance=5e-3,
        reason="next order in ε at ε = 0.003 (L = 3) and 0.03 (L = 4), and the resolution of the records",
        quantity="largest relative deviation from the predicted ratio or delay",
        predicted=predicted,
        measured=measured,
    )


def _half_time(setting: Setting, depth: int, scale: float, sigma: float, cosine: float) -> float:
    """Flow time at which a rank-one run halves its squared error; `cosine` is `⟨R_Lᵀu*, v*⟩`.

    With `cosine = 1` the reduced network is the compressed one: `u` and `v` coincide in its basis.
    """
    sine = (1 - cosine**2) ** 0.5
    left = jnp.asarray([[cosine], [sine], [0.0], [0.0]], setting.dtype)
    right = jnp.asarray([[1.0], [0.0], [0.0], [0.0]], setting.dtype)
    target = ld.LowRank(left, jnp.asarray([sigma], setting.dtype), right)
    reduction = ld.reduction.reduce_identity(target, depth=depth, scale=scale)
    guess = float(
        ld.theory.mode_time(0.3 * sigma, sigma, depth=depth, scale=scale)
    )
    times = jnp.linspace(0.95 * guess, 1.6 * guess, 2000, dtype=setting.dtype)
    run = ld.gradient_flow(
        reduction.problem.loss, reduction.layers, times, solver="explicit",
        rtol=setting.solver_tolerance(1e-9),
    )
    return float(spectra.crossing_time(run.times, -run.losses[:, None], -(sigma**2) / 4)[0])


@check(
    "prediction-against-device",
    claim="The wide network trained on this device follows its 2r-wide reduction: leading singular values "
    "and loss at every record, and alignment with the target at the end.",
    source="3.3",
    controls={"Gaussian instead of orthogonal initialization": {"init": "gaussian"}},
    any_target=False,
)
def prediction_against_device(setting: Setting, /, *, init="orthogonal") -> Evidence:
    wide = 512 if jax.default_backend() == "cpu" else 4096
    d = {"small": 128, "paper": 256, "large": wide}[setting.size]
    rank, scale, steps = 5, 0.3, 300
    sigma = jnp.linspace(2.0, 1.0, rank, dtype=setting.dtype) * 5
    rate = 0.5 * float(ld.theory.max_learning_rate(sigma[0], depth=DEPTH))

    def train(key):
        target = ld.random_target(key, (d, d), sigma)
        weights = original(target, key, depth=DEPTH, scale=scale, init=init)
        full, reduction, small = _full_and_reduced(
            target, weights, ld.GradientDescent(rate), steps=steps, observe=observe_alignment(target)
        )
        align = observe_alignment(reduction.problem.target)
        predicted = jax.vmap(lambda layers: align(ld.reduction.cores(layers)))(small.observed)
        return (full.observed, full.losses), (predicted, small.losses)

    gaps = []
    for key in setting.keys:
        (measured, losses), (predicted, small_losses) = jax.tree.map(np.asarray, train(key))
        sides = zip(measured[1:], predicted[1:], strict=True)
        gaps.append({
            "singular values": np.max(np.abs(measured[0] - predicted[0])) / float(sigma[0]),
            "loss": np.max(np.abs(losses - small_losses)) / small_losses[0],
            "alignment at the end": max(np.max(np.abs(a[-1] - b[-1])) for a, b in sides),
        })
    every = np.arange(0, steps + 1, EVERY)
    return Evidence(
        errors=np.array([max(gap.values()) for gap in gaps]),
        tolerance=setting.rounding(steps),
        reason=f"rounding of {steps} steps",
        quantity="largest difference of leading singular values, relative to σ*_1, of the loss, relative "
        f"to its start, and of |⟨u_i, u*_i⟩|, |⟨v_i, v*_i⟩| at the end, d = {d}",
        predicted=dict.fromkeys(gaps[0], 0) | {"σ at the end": predicted[0][-1]},
        measured={name: max(gap[name] for gap in gaps) for name in gaps[0]}
        | {"σ at the end": measured[0][-1]},
        curves=(
            Curve(f"leading singular values, d = {d}", every, predicted[0], measured[0], xlabel="step",
                  ylabel="singular value"),
            Curve(f"loss, d = {d}", every, small_losses, losses, xlabel="step", ylabel="loss", ylog=True),
        ),
    )
