"""Statements 3.4 to 3.7 of docs/theory.md: originals of any shape and width, white data, escape times."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy  # which loads its parts on first use

import lowdim_jax as ld
from lowdim_jax import spectra
from theory_checks.checks.parsimony import DEPTH, SCALE, STEPS, followed, layer_gaps
from theory_checks.reference import modes, originals
from theory_checks.reference import networks as reference
from theory_checks.registry import Evidence, check
from theory_checks.runs import per_seed
from theory_checks.setting import Setting

DECAY, FAR = 0.02, 2.3
SAMPLED = "square, drawn reduced"
CHAINS = {
    "d_out < d_in": (30, 30, 30, 20),
    "d_out > d_in": (20, 30, 30, 30),
    "bottleneck": (21, 20, 20, 30),
    SAMPLED: (12, 12, 12, 12),
}
"""Widths, input to output, whose layers are not all square."""


@check(
    "rectangular-reduction",
    claim="With a rectangular end layer 3r dimensions suffice, in both orientations and at bottlenecks; a "
    "network drawn without any large matrix is the one it is lifted to.",
    source="3.4, 3.5",
    controls={
        "Gaussian instead of orthogonal initialization": {
            "init": "gaussian", "chains": {"d_out < d_in": CHAINS["d_out < d_in"]},
        },
    },
    any_target=False,
    rests_on=("reference", "library"),
)
def rectangular_reduction(
    setting: Setting, /, *, init="orthogonal", chains: Mapping = CHAINS
) -> Evidence:
    rank, rate = 3, 0.05
    numbers = {"alpha": 1.5, "momentum": 0.5, "nesterov": True}
    sigma = jnp.linspace(2.0, 1.0, rank, dtype=setting.dtype)
    rule = ld.GradientDescent(rate, weight_decay=DECAY, **numbers)
    errors, predicted, measured = [], {}, {}
    for name, spaces in chains.items():
        run = _reduced_sample if name == SAMPLED else _reduced_chain
        target, weights, lifted, bases, (losses, error) = jax.device_get(
            per_seed(run, setting, {"sigma": sigma, "rule": rule}, spaces=spaces, init=init)
        )
        widths = np.array([basis.shape[-1] for basis in bases])
        expected = np.array(originals.core_widths(spaces, rank))
        predicted[f"core widths, {name}"], measured[f"core widths, {name}"] = expected, widths
        gaps = []
        for seed in range(setting.seeds):
            full = followed(
                np.asarray(target[seed], float), [w[seed] for w in weights], steps=STEPS,
                rule={"rate": rate, "decay": DECAY} | numbers,
            )
            ends = [np.asarray(layer[seed : seed + 1], float) for layer in lifted]
            goal = np.asarray(target[seed], float)
            squares = [np.sum((reference.product([w[k] for w in full]) - goal) ** 2) for k in (0, -1)]
            known = np.append(squares, 2 * squares[0] * squares[1] / np.sum(goal**2)) / 2
            seen = np.append(np.asarray(losses[seed], float), float(error[seed]) ** 2 * squares[0])
            apart = layer_gaps([layer[-1:] for layer in full], ends)
            gaps.append(max(np.max(apart), np.max(np.abs(seen - known)) / known[0]))
        errors.append(gaps if np.array_equal(widths, expected) else np.full(setting.seeds, np.inf))
        measured[f"difference, {name}"] = gaps
    return Evidence(
        errors=np.max(errors, axis=0),
        tolerance=setting.rounding(STEPS),
        reason=f"rounding of {STEPS} steps",
        quantity="largest relative Frobenius difference of a layer from the lifted reduction, and of losses "
        "and recovery error, relative to the start's loss; ∞ where a core has another width than predicted",
        predicted=predicted | {"difference": 0},
        measured=measured,
    )


def _reduced_sample(_, key, *, sigma, rule, spaces, init):
    """The same of a square network that is drawn reduced: in its own coordinates it starts at ε I."""
    del init
    *_, d = spaces
    reduction: Any = ld.sample(key, d, sigma, depth=len(spaces) - 1, scale=SCALE)
    small = ld.reduced_descent(reduction, rule, steps=STEPS, record_every=STEPS)
    inner = reduction.problem.target
    target = reduction.bases[-1] @ inner.dense() @ reduction.bases[0].T
    start = (SCALE * jnp.eye(d, dtype=sigma.dtype),) * (len(spaces) - 1)
    ends = small.losses, reduction.problem.recovery_error(small.weights)
    return target, start, reduction.lift(small.weights), reduction.bases, ends


def _reduced_chain(_, key, *, sigma, rule, spaces, init):
    """A target, a start of given widths, the layers lifted at the end of its reduced run, and its bases."""
    make = {"orthogonal": ld.orthogonal, "gaussian": ld.gaussian}[init]
    target = ld.random_target(key, (spaces[-1], spaces[0]), sigma)
    weights = make(key, spaces, scale=SCALE, dtype=sigma.dtype)
    reduction: Any = ld.reduce(weights, target, strict=False)
    small = ld.reduced_descent(reduction, rule, steps=STEPS, record_every=STEPS, strict=False)
    ends = small.losses, reduction.problem.recovery_error(small.weights)
    return target.dense(), weights, reduction.lift(small.weights), reduction.bases, ends


@check(
    "haar-overlap",
    claim="The overlap (R_LᵀU*)ᵀV* is that of two independent uniform frames in distribution: Beta laws of "
    "entries, rows and columns, E‖·‖_F² = r²/d, drawn directly or through the product of L Haar layers.",
    source="3.4",
    controls={"drawn at half the width": {"drawn_width": 4}},
    any_target=False,
    rests_on=("theorem", "library"),
)
def haar_overlap(setting: Setting, /, *, drawn_width=8) -> Evidence:
    d, rank, draws = 8, 2, 400
    values = jnp.ones(rank, setting.dtype)

    def direct(key):
        drawn: Any = ld.sample(key, drawn_width, values, depth=DEPTH, scale=SCALE)
        target = drawn.problem.target
        return target.left.T @ target.right

    def through_layers(key):
        key_weights, key_target = jax.random.split(key)
        weights = ld.orthogonal(key_weights, (d,) * (DEPTH + 1), scale=1.0, dtype=setting.dtype)
        product = ld.end_to_end(weights)
        target = ld.random_target(key_target, (d, d), values)
        return target.left.T @ product @ target.right

    def draw(target, key):
        del target
        keys = jax.random.split(key, draws)
        # One draw after the other: batched QR inside a loop can deadlock on XLA's CPU threads.
        return jax.lax.map(lambda key: jnp.stack([direct(key), through_layers(key)]), keys)

    overlaps = np.asarray(per_seed(draw, setting), float).swapaxes(1, 2)  # seeds × ways × draws × r × r
    squares = np.sum(overlaps**2, axis=(3, 4))
    means = squares.mean(axis=2)
    scores = np.abs(means - rank**2 / d) / (squares.std(axis=2) / draws**0.5)
    # (1 + c)/2 of an entry c is Beta((d−1)/2, (d−1)/2), the squared norm of a row Beta(r/2, (d−r)/2).
    laws = {
        "entry": ((1 + overlaps[..., 0, 1]) / 2, scipy.stats.beta((d - 1) / 2, (d - 1) / 2)),
        "row": (np.sum(overlaps[..., 0, :] ** 2, axis=3), scipy.stats.beta(rank / 2, (d - rank) / 2)),
        "column": (np.sum(overlaps[..., 1] ** 2, axis=3), scipy.stats.beta(rank / 2, (d - rank) / 2)),
    }
    distances = np.array([
        [[scipy.stats.kstest(sample, law.cdf).statistic * draws**0.5 for sample in ways] for ways in samples]
        for samples, law in laws.values()
    ])  # laws × seeds × ways
    product = overlaps[..., 0, 0] * overlaps[..., 0, 1] * overlaps[..., 1, 0] * overlaps[..., 1, 1]
    expected = -1 / ((d - 1) * d * (d + 2))  # of two columns of independent frames (Collins and Śniady 2006)
    crossed = np.abs(product.mean(axis=2) - expected) / (product.std(axis=2) / draws**0.5)
    return Evidence(
        errors=np.max([*scores.T, *crossed.T, *(distances.max(axis=0) * 5 / FAR).T], axis=0),
        tolerance=5.0,
        reason=f"five standard errors of the mean of {draws} draws; a Kolmogorov–Smirnov distance √n D of "
        f"{FAR:g} counts as five: larger ones have a chance of 5e-5",
        quantity="largest difference of means of ‖overlap‖_F² and of a product of four entries, in standard "
        "errors, and of the laws of an entry, a row and a column from Beta laws",
        predicted={"mean of ‖overlap‖_F²": rank**2 / d, "√n D": 0},
        measured={"drawn directly": means[:, 0], "through the layers": means[:, 1]}
        | {f"√n D, {name}": distances[k].max() for k, name in enumerate(laws)},
    )


@check(
    "whitened-data",
    claim="On inputs with X Xᵀ = I, descent on ½‖W X − Y‖² is descent on ½‖W − Y Xᵀ‖², in every layer.",
    source="3.6",
    controls={"inputs that are not white": {"white": False}},
    any_target=False,
    rests_on=("reference", "library"),
)
def whitened_data(setting: Setting, /, *, white=True) -> Evidence:
    steps = 200
    found = per_seed(_on_regression_target, setting, {"white": white}, steps=steps)
    shown, labels, weights, rates, lasts = jax.tree.map(lambda part: np.asarray(part, float), found)
    errors = []
    for seed in range(setting.seeds):
        problem = reference.regression(shown[seed], labels[seed])
        start = [w[seed] for w in weights]
        history = reference.descent(problem, start, rate=float(rates[seed]), steps=steps)
        ends = [w[seed : seed + 1] for w in lasts]
        errors.append(np.max(layer_gaps([w[None] for w in history[-1]], ends)))
    return Evidence(
        errors=np.array(errors),
        tolerance=setting.rounding(steps),
        reason=f"rounding of {steps} steps",
        quantity="largest relative Frobenius difference of a layer",
        predicted={"difference": 0},
        measured={"difference": np.array(errors)},
    )


def _on_regression_target(target, key, *, white, steps, sizes=(12, 4, 60)):
    """Inputs as the regression is shown them, labels, a start, a rate, and where the factorization ends."""
    (d_in, d_out, samples), dtype = sizes, target.dtype
    key_inputs, key_labels, key_weights = jax.random.split(key, 3)
    raw = jax.random.normal(key_inputs, (d_in, samples), dtype)
    inputs = ld.problems.whiten(raw)
    labels = jax.nn.one_hot(jax.random.randint(key_labels, (samples,), 0, d_out), d_out, dtype=dtype).T
    problem = ld.factorization(ld.problems.regression_target(inputs, labels))
    weights = ld.orthogonal(key_weights, (d_in, d_in, d_out), scale=SCALE, dtype=dtype)
    rate = 0.5 * ld.max_learning_rate(problem, depth=2)
    run = ld.gradient_descent(problem, weights, ld.GradientDescent(rate), steps=steps, record_every=steps)
    return jnp.where(white, inputs, raw / samples**0.5), labels, weights, rate, run.weights


@check(
    "escape-ratio",
    claim="As d → ∞, ε → 0, the original needs κ_L times the compressed network's time to halve the "
    "squared error (κ_3 = 1.199679, κ_4 = 1.278465), and ln 2/(2σ*) more at L = 2.",
    source="3.7",
    controls={"singular vectors that are not orthogonal to each other": {"overlap": 0.7}},
    any_target=False,
    rests_on=("theorem", "library"),
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
            expected = originals.two_layer_delay(sigma)
        else:
            name, value = f"κ_{depth}", original_time / compressed_time
            expected = originals.ESCAPE_RATIOS[depth]
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
    guess = float(modes.mode_time(0.3 * sigma, sigma, depth=depth, scale=scale))
    times = jnp.linspace(0.95 * guess, 1.6 * guess, 2000, dtype=setting.dtype)
    run = ld.gradient_flow(
        reduction.problem.loss, reduction.layers, times, solver="explicit",
        rtol=setting.solver_tolerance(1e-9),
    )
    return float(spectra.crossing_time(run.times, -run.losses[:, None], -(sigma**2) / 4)[0])
