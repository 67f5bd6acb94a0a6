"""Section 3 of docs/theory.md: the original network, exactly, in 2r dimensions."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import lowdim_jax as ld
from theory_checks.reference import networks as reference
from theory_checks.reference import originals
from theory_checks.registry import Curve, Evidence, NotApplicable, check
from theory_checks.runs import edge, keep, observe_alignment, original, per_seed
from theory_checks.setting import Setting

DEPTH, SCALE = 3, 0.3
STEPS, EVERY = 400, 10
NUMBER = 2
"""The layer whose bulk is looked at, a middle one."""

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


def _rule(name: str, rate: float) -> tuple[dict[str, Any], dict[str, Any]]:
    """An optimizer as the library's rule, and as the numbers of the reference's."""
    if name == "Adam":
        return {"adam": 10 * rate}, {"adam": True, "rate": 10 * rate}
    fraction = {"discrepant rates": 3.0 ** (-2 / DEPTH), "momentum": 0.2, "Nesterov momentum": 0.2}
    rate, numbers = rate * fraction.get(name, 1.0), dict(OPTIMIZERS[name])
    rule = {"rule": _descent(rate, **numbers)}
    if "weight_decay" in numbers:
        numbers["decay"] = numbers.pop("weight_decay")
    return rule, {"rate": rate} | numbers


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


def _steps(setting: Setting) -> int:
    """Steps of a run that NumPy repeats at full width: fewer where that takes minutes."""
    return STEPS if max(setting.shape) <= 128 else 40


def followed(target: np.ndarray, weights, *, steps: int, rule: Mapping[str, Any]) -> list[np.ndarray]:
    """Every layer at every record of the full network, trained in NumPy: `(records, d_l, d_{l−1})` each."""
    numbers = dict(rule)
    train = reference.adam if numbers.pop("adam", False) else reference.descent
    problem = reference.factorization(target)
    history = train(problem, [np.asarray(w, float) for w in weights], steps=steps, **numbers)
    return [np.array(layer) for layer in zip(*history[::EVERY], strict=True)]


def layer_gaps(full: Sequence[np.ndarray], lifted: Sequence[np.ndarray]) -> np.ndarray:
    """Relative Frobenius difference of each layer at each record, `(layers, records)`."""
    pairs = zip(full, lifted, strict=True)
    return np.array([np.linalg.norm(w - v, axis=(1, 2)) / np.linalg.norm(w, axis=(1, 2)) for w, v in pairs])


@check(
    "lossless-reduction",
    claim="The reduced network gives every layer of the full one, its loss and its singular values: descent, "
    "momentum, Nesterov, weight decay, discrepant rates.",
    source="3.1, 3.2, 3.5",
    controls={
        "Adam, which does not rotate with the weights": {"optimizers": ("Adam",)},
        "Gaussian instead of orthogonal initialization": {
            "init": "gaussian", "optimizers": ("gradient descent",),
        },
    },
    rests_on=("library", "reference"),
)
def lossless_reduction(
    setting: Setting, /, *, init="orthogonal", optimizers=tuple(OPTIMIZERS)
) -> Evidence:
    """The full network is trained in NumPy, so that both sides have nothing but its start in common."""
    if max(setting.shape) == 1:
        raise NotApplicable("a network of scalars has no smaller one")
    if init == "gaussian" and min(setting.shape) == 1:
        raise NotApplicable("layers with one row or column are orthogonal, however they are drawn")
    rate, steps = 0.5 * edge(setting, depth=DEPTH), _steps(setting)
    starts = per_seed(original, setting, {"scale": SCALE}, depth=DEPTH, init=init)
    by_optimizer, lines = {}, []
    for name in optimizers:
        rule, numbers = _rule(name, rate)
        found = per_seed(_lifted, setting, rule, starts=starts, steps=steps)
        layers, losses, spectrum, (left, right) = jax.tree.map(lambda part: np.asarray(part, float), found)
        worst = []
        for seed in range(setting.seeds):
            target = _dense(setting, seed)
            full = followed(target, [w[seed] for w in starts], steps=steps, rule=numbers)
            gaps = layer_gaps(full, [layer[seed] for layer in layers])
            products = [reference.product(net) for net in zip(*full, strict=True)]
            exact = np.array([np.sum((w - target) ** 2) / 2 for w in products])
            sigma = np.linalg.svd(products[-1], compute_uv=False)
            worst.append([
                np.max(gaps), np.max(np.abs(losses[seed] - exact)) / exact[0],
                max(np.max(np.abs(np.sort(spectrum[seed]) - np.sort(sigma))),
                    _off_diagonal(left[seed].T @ products[-1] @ right[seed], spectrum[seed])) / sigma[0],
            ])
            if seed == 0:
                lines.append(np.max(gaps, axis=0))
        by_optimizer[name] = np.array(worst)
    errors = np.array(list(by_optimizer.values()))  # optimizers × seeds × quantities
    every = np.arange(0, steps + 1, EVERY)
    return Evidence(
        errors=np.max(errors, axis=(0, 2)),
        tolerance=setting.rounding(steps),
        reason=f"rounding of {steps} steps",
        quantity="largest of: relative Frobenius difference of a layer; difference of the loss, relative to "
        "its start; difference of a singular value at the end, also along its vectors, relative to the first",
        predicted={"difference": 0},
        measured={
            f"{name}: {what}": float(np.max(error[:, k]))
            for name, error in by_optimizer.items() for k, what in enumerate(("layers", "loss", "spectrum"))
        },
        curves=(
            Curve("largest difference of a layer, one line an optimizer", every,
                  np.full((len(every), len(lines)), setting.eps),
                  np.maximum(np.transpose(lines), setting.eps / 10), xlabel="step",
                  ylabel="relative difference", ylog=True, labels=("rounding unit", "measured")),
        ),
    )


def _off_diagonal(core: np.ndarray, values: np.ndarray) -> float:
    """Largest difference of a matrix from the diagonal one of the leading values."""
    return float(np.max(np.abs(core - np.diag(values[: len(core)]))))


def _dense(setting: Setting, seed: int) -> np.ndarray:
    """One seed's target, formed in float64."""
    left, sigma, right = (np.asarray(part[seed], float) for part in jax.tree.leaves(setting.targets))
    return left * sigma @ right.T


def _lifted(target, weights, *, rule=None, adam=None, steps):
    """Layers lifted from the reduction at every record, its losses, and the singular values at the end."""
    optimizer: Any = rule if adam is None else optax.adam(adam)
    reduction: Any = ld.reduce(weights, target, strict=False)
    small = ld.reduced_descent(
        reduction, optimizer, steps=steps, record_every=EVERY, observe=keep, strict=False
    )
    core, bulk = reduction.end_to_end(small.weights)
    rest = min(target.shape) - len(core.singular_values)
    spectrum = jnp.concatenate([core.singular_values, jnp.full(max(rest, 0), jnp.abs(bulk))])
    vectors = core.left, core.right
    return jax.vmap(reduction.lift)(small.observed), small.losses, spectrum[: min(target.shape)], vectors


def _histories(target, weights, *, rule):
    """Every layer at every record, `(records, layers, d, d)`."""
    run = ld.gradient_descent(
        ld.factorization(target.dense()).loss, weights, rule, steps=STEPS, record_every=EVERY, observe=keep
    )
    return jnp.stack(run.observed, axis=1)


@check(
    "block-structure",
    claim="In every layer all but 2r singular values are equal, follow "
    "ρ_l ← ρ_l − α_l η (λ ρ_l + Π ρ_k²/ρ_l), and their singular subspaces stay where they were.",
    source="3.2",
    controls={"Gaussian instead of orthogonal initialization": {"init": "gaussian", "alphas": (1.0,)}},
    any_target=False,
    rests_on=("reference", "library"),
)
def block_structure(setting: Setting, /, *, init="orthogonal", decay=0.05, alphas=(1.0, 2.0)) -> Evidence:
    d, bulk = min(setting.shape), min(setting.shape) - 2 * setting.rank
    every = np.arange(0, STEPS + 1, EVERY)
    starts = per_seed(original, setting, {"scale": SCALE}, depth=DEPTH, init=init)
    errors, curves, ends, counts, medians = [], [], {}, {}, {}
    for alpha in alphas:
        rate = 0.5 * edge(setting, depth=DEPTH, alpha=alpha)
        rule = _descent(rate, weight_decay=decay, alpha=alpha)
        history = np.asarray(per_seed(_histories, setting, {"rule": rule}, starts=starts))
        rho = originals.bulk(SCALE, depth=DEPTH, rate=rate, steps=STEPS, decay=decay, alpha=alpha)[::EVERY]

        singular = np.linalg.svd(history, compute_uv=False)
        distance = np.sort(np.abs(singular - rho[None, :, :, None]), axis=-1)
        spread = distance[..., bulk - 1]  # the worst of the `bulk` singular values nearest to ρ
        # Directions v of the bulk: W(t) v = (ρ(t)/ε) W(0) v. They are what the moved part's complement is.
        moved = history - (rho / SCALE)[None, :, :, None, None] * history[:, :1]
        extra = np.linalg.svd(moved, compute_uv=False)[..., d - bulk]
        errors.append(np.maximum(spread, extra).max(axis=(1, 2)) / SCALE)
        name = f"α = {alpha:g}"
        ends[f"ρ at the end, {name}"] = rho[-1]
        medians[f"median singular values at the end, {name}"] = np.median(singular[0, -1], axis=-1)
        close = np.sum(distance < setting.rounding(STEPS) * SCALE, axis=-1)
        counts[f"fewest of the bulk over layers and steps, {name}"] = int(np.min(close))
        curves.append(
            Curve(f"singular values of layer {NUMBER}, and ρ(t), {name}", every,
                  np.repeat(rho[:, NUMBER - 1, None], d, axis=1), singular[0, :, NUMBER - 1], xlabel="step",
                  ylabel="singular value")
        )
    return Evidence(
        errors=np.max(errors, axis=0),
        tolerance=setting.rounding(STEPS),
        reason=f"rounding of {STEPS} steps",
        quantity="largest of |σ − ρ_l(t)| over the d − 2r bulk singular values, and the (2r+1)-th singular "
        "value of W_l(t) − (ρ_l(t)/ε) W_l(0), relative to ε",
        predicted={"bulk count": bulk} | ends,
        measured=counts | medians,
        curves=tuple(curves),
    )


@check(
    "low-rank-updates",
    claim="Weight updates W_l(t) − W_l(0) have 2r singular values of their own; all others are the bulk's "
    "slow motion |ρ_l(t) − ε|.",
    source="1.1, 3.2",
    controls={"Gaussian instead of orthogonal initialization": {"init": "gaussian"}},
    any_target=False,
    rests_on=("reference", "library"),
)
def low_rank_updates(setting: Setting, /, *, init="orthogonal") -> Evidence:
    rate, m = 0.5 * edge(setting, depth=DEPTH), 2 * setting.rank
    starts = per_seed(original, setting, {"scale": SCALE}, depth=DEPTH, init=init)
    history = np.asarray(per_seed(_histories, setting, {"rule": _descent(rate)}, starts=starts))
    steps = _steps(setting)
    moved = history[:, steps // EVERY] - history[:, 0]
    measured = np.linalg.svd(moved, compute_uv=False)  # seeds × layers × d
    rest = np.abs(originals.bulk(SCALE, depth=DEPTH, rate=rate, steps=steps)[-1] - SCALE)
    predicted = np.tile(rest[None, :, None], (setting.seeds, 1, measured.shape[-1]))
    for seed in range(setting.seeds):
        start = [w[seed] for w in starts]
        full = followed(_dense(setting, seed), start, steps=steps, rule={"rate": rate})
        for layer, weights in enumerate(full):
            update = np.linalg.svd(weights[-1] - weights[0], compute_uv=False)
            own = np.argsort(np.abs(update - rest[layer]))[-m:]  # the 2r furthest from the bulk's motion
            predicted[seed, layer, own] = update[own]
    errors = np.max(np.abs(measured - predicted) / measured[:, :, :1], axis=(1, 2))
    index = np.arange(1, measured.shape[-1] + 1)
    floor = setting.eps / 10
    return Evidence(
        errors=errors,
        tolerance=setting.rounding(steps),
        reason=f"rounding of {steps} steps",
        quantity="largest difference of a singular value of W_l(t) − W_l(0), relative to the first; 2r of "
        "them predicted by NumPy, the others by ρ_l(t)",
        predicted={f"the others, layer {NUMBER}": rest[NUMBER - 1], f"the first of layer {NUMBER}, seed 0":
                   predicted[0, NUMBER - 1, :3]},
        measured={f"the others, layer {NUMBER}": measured[0, NUMBER - 1, m:].max(),
                  f"the first of layer {NUMBER}, seed 0": measured[0, NUMBER - 1, :3]},
        curves=(
            Curve(f"singular values of the update of layer {NUMBER}", index,
                  np.maximum(predicted[0, NUMBER - 1], floor), np.maximum(measured[0, NUMBER - 1], floor),
                  xlabel="index", ylabel="singular value", ylog=True),
        ),
    )


@check(
    "prediction-against-device",
    claim="The wide network trained on this device follows its 2r-wide reduction: leading singular values "
    "and loss at every record, and alignment with the target at the end.",
    source="3.3",
    controls={"Gaussian instead of orthogonal initialization": {"init": "gaussian"}},
    any_target=False,
    rests_on=("library", "library"),
    pinned_by="lossless-reduction",
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
        reduction: Any
        full, reduction, small = _full_and_reduced(
            target, weights, ld.GradientDescent(rate), steps=steps, observe=observe_alignment(target)
        )
        align = observe_alignment(reduction.problem.target)
        predicted = jax.vmap(lambda layers: align(ld.reduction.cores(layers)))(small.observed)
        return (full.observed, full.losses), (predicted, small.losses)

    gaps = []
    found = [jax.tree.map(np.asarray, train(key)) for key in setting.keys]
    for (measured, losses), (predicted, small_losses) in found:
        sides = zip(measured[1:], predicted[1:], strict=True)
        gaps.append({
            "singular values": np.max(np.abs(measured[0] - predicted[0])) / float(sigma[0]),
            "loss": np.max(np.abs(losses - small_losses)) / small_losses[0],
            "alignment at the end": max(np.max(np.abs(a[-1] - b[-1])) for a, b in sides),
        })
    every = np.arange(0, steps + 1, EVERY)
    (measured, losses), (predicted, small_losses) = found[-1]
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
