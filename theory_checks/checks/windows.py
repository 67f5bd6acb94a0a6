"""Statements 3.8 and 3.9 of docs/theory.md: any loss, any data, any width; compressed networks."""

from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy  # which loads its parts on first use
from jax.tree_util import Partial

import lowdim_jax as ld
from lowdim_jax.window import _cores_of_outer
from theory_checks.reference import networks as reference
from theory_checks.reference.random_matrices import standard_errors
from theory_checks.registry import Curve, Evidence, check
from theory_checks.runs import once
from theory_checks.setting import Setting

SPACES, SAMPLES, BATCH = (8, 40, 40, 3), 12, 4
CHAINS = {"cross-entropy": SPACES, "Huber": (8, 40, 3), "squared": (8, 40, 30, 35, 3)}
"""Widths for each loss: three layers, two, and four whose hidden widths fall and rise."""
SHOWN_OUTPUTS = {"cross-entropy": 3, "Huber": 3, "squared": 2}
"""Outputs that a loss looks at."""
CORES = {"cross-entropy": (8, 11, 11, 3), "Huber": (8, 11, 3), "squared": (8, 18, 10, 12, 2)}
"""Widths of the cores: `n + k` in the narrowest hidden space; wider ones have up to `n`, or `k`, more
(3.5, 3.8)."""
STEPS, MOMENTUM, DECAY = 60, 0.8, 0.02
RATES = {"cross-entropy": 0.02, "Huber": 0.02, "squared": 0.002}


def _network(rng: np.random.Generator, spaces, *, middle="orthogonal") -> list[np.ndarray]:
    """Gaussian outer layers, and middle ones orthogonal times a scale each; or, as a control, Gaussian."""
    shapes = [(after, before) for before, after in pairwise(spaces)]
    weights = [rng.standard_normal(shape) / shape[1] ** 0.5 for shape in shapes]
    if middle == "orthogonal":
        for number, weight in enumerate(weights[1:-1]):
            left, _, right = np.linalg.svd(weight, full_matrices=False)
            weights[number + 1] = (0.7 + 0.1 * number) * left @ right
    return weights


def _data(rng: np.random.Generator, spaces, samples: int):
    """Inputs, labels and outputs, one sample a column."""
    labels = rng.integers(0, spaces[-1], samples)
    return rng.standard_normal((spaces[0], samples)), labels, rng.standard_normal((spaces[-1], samples))


def _loss(name: str, data, batches):
    """The same losses as the reference's, in JAX and with optax, on the batch of a step.

    The data are leaves of a `Partial`: runs on other data are one program.
    """
    of_name = {"cross-entropy": _cross_entropy, "Huber": _huber, "squared": _squared}[name]
    return Partial(of_name, tuple(map(jnp.asarray, data)), jnp.asarray(batches))


def _cross_entropy(data, batches, weights, step):
    inputs, labels, _ = data
    logits = ld.forward(weights, inputs[:, batches[step]])
    return optax.softmax_cross_entropy_with_integer_labels(logits.T, labels[batches[step]]).mean()


def _first_batch(data, batches, weights):
    return _cross_entropy(data, batches, weights, 0)


def _huber(data, batches, weights, step):
    inputs, _, outputs = data
    return optax.huber_loss(ld.forward(weights, inputs[:, batches[step]]), outputs[:, batches[step]]).mean()


def _squared(data, batches, weights, step):
    inputs, _, outputs = data
    misfit = ld.forward(weights, inputs[:, batches[step]]) - outputs[:, batches[step]]
    return jnp.sum(misfit[: SHOWN_OUTPUTS["squared"]] ** 2) / 2


def _reference(name: str, data, batches):
    inputs, labels, outputs = data
    make = {
        "cross-entropy": lambda b: reference.cross_entropy(inputs[:, b], labels[b]),
        "Huber": lambda b: reference.huber(inputs[:, b], outputs[:, b]),
        "squared": lambda b: _of_some_outputs(reference.regression(inputs[:, b], outputs[:2, b])),
    }[name]
    return reference.alternating([make(batch) for batch in batches])


def _of_some_outputs(problem: reference.MatrixLoss) -> reference.MatrixLoss:
    """The same loss of the matrix's first two rows, with no gradient by the third."""

    def evaluate(matrix):
        loss, gradient = problem(matrix[:2])
        return loss, np.vstack([gradient, np.zeros_like(matrix[2:])])

    return evaluate


@check(
    "window-reduction",
    claim="Under cross-entropy, Huber's and the squared loss on mini-batches, with momentum and weight decay "
    "and any outer layers, the reduced network gives every layer of one wider than its inputs and outputs.",
    source="3.8",
    controls={
        "Adam, which does not rotate with the weights": {"adam": True, "losses": ("cross-entropy",)},
        "a Gaussian middle layer": {"middle": "gaussian", "losses": ("cross-entropy",)},
        "a loss that sees all of the network": {"shown": 5, "losses": ("squared",)},
    },
    any_target=False,
    rests_on=("library", "reference"),
)
def window_reduction(
    setting: Setting, /, *, losses=tuple(RATES), middle="orthogonal", adam=False, shown=SAMPLES
) -> Evidence:
    """`shown` samples span the window: fewer than the loss sees are the last control's."""
    errors, moved, widths = [], [], {}
    for seed in range(setting.seeds):
        rng = np.random.default_rng(seed)
        data, batches = _data(rng, SPACES, SAMPLES), rng.integers(0, SAMPLES, (STEPS + 1, BATCH))
        worst = []
        for name in losses:
            weights = _network(rng, CHAINS[name], middle=middle)
            start = [jnp.asarray(weight, setting.dtype) for weight in weights]
            outputs = np.eye(SPACES[-1], SHOWN_OUTPUTS[name], dtype=setting.dtype)
            data_here = tuple(np.asarray(part, setting.dtype if part.ndim > 1 else int) for part in data)
            reduction = ld.reduce(
                start, _loss(name, data_here, batches), window=(outputs, data_here[0][:, :shown]),
                per_step=True, strict=False,
            )
            rule = ld.GradientDescent(RATES[name], momentum=MOMENTUM, weight_decay=DECAY)
            optimizer = optax.adam(RATES[name]) if adam else rule
            run = ld.reduced_descent(reduction, optimizer, steps=STEPS, record_every=STEPS, strict=False)
            lifted = [np.asarray(layer, float) for layer in reduction.lift(run.weights)]
            problem = _reference(name, data, batches)
            if adam:
                full = reference.adam(problem, weights, rate=RATES[name], steps=STEPS)[-1]
            else:
                full = reference.descent(
                    problem, weights, rate=RATES[name], steps=STEPS, momentum=MOMENTUM, decay=DECAY
                )[-1]
            worst.append(max(_gap(a, b) for a, b in zip(full, lifted, strict=True)))
            moved.append(max(_gap(a, b) for a, b in zip(full, weights, strict=True)))
            cores = reduction.layers[0].core.shape[1], *(layer.core.shape[0] for layer in reduction.layers)
            widths[name] = cores
        errors.append(worst)
    table = np.array(errors)  # seeds × losses
    fit = shown < SAMPLES or all(widths[name] == CORES[name] for name in losses)
    return Evidence(
        errors=np.max(table, axis=1) if fit else np.full(setting.seeds, np.inf),
        tolerance=setting.rounding(STEPS),
        reason=f"rounding of {STEPS} steps",
        quantity="largest relative Frobenius difference of a layer from that trained at full width; ∞ where "
        "a core has another width than predicted",
        predicted={"difference": 0} | {f"core widths, {name}": CORES[name] for name in losses},
        measured={f"core widths, {name}": widths[name] for name in losses}
        | {f"difference, {name}": float(np.max(table[:, k])) for k, name in enumerate(losses)}
        | {"how far a layer moves, at least": float(min(moved))},
    )


def _gap(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.linalg.norm(a - b) / np.linalg.norm(a))


@check(
    "width-independence",
    claim="Networks of all hidden widths whose outer layers have the same Gram matrix have the same losses "
    "at every step: those of the cores that are drawn without any of them.",
    source="3.8",
    controls={"outer layers drawn anew at each width": {"anew": True}},
    any_target=False,
    rests_on=("library", "reference"),
)
def width_independence(setting: Setting, /, *, anew=False) -> Evidence:
    steps, rate, scale, hidden = 40, 0.05, (1.0, 0.8, 0.5), (12, 25, 50)
    d_in, d_out = 5, 3
    errors, lines, curve = [], [], np.zeros(steps + 1)
    for seed in range(setting.seeds):
        rng = np.random.default_rng(seed)
        inputs, labels, _ = data = _data(rng, (d_in, d_out), SAMPLES)
        drawn = ld.sample(
            jax.random.key(seed), (d_in, 10**6, 10**6, d_out),
            Partial(_first_batch, tuple(map(jnp.asarray, data)), jnp.arange(SAMPLES)[None]), scale=scale,
            outer="gaussian", dtype=setting.dtype,
        )  # fmt: skip
        curve = np.asarray(ld.reduced_descent(drawn, ld.GradientDescent(rate), steps=steps).losses, float)
        problem = reference.cross_entropy(inputs, labels)
        worst = []
        for h in hidden:
            basis, middle = (np.linalg.qr(rng.standard_normal((h, m)))[0] for m in (d_in + d_out, h))
            cores = [np.asarray(layer.core, float) for layer in drawn.layers]
            if anew:
                cores = [core * rng.standard_normal(core.shape) for core in cores]
            full = [basis @ cores[0], scale[1] * middle, cores[-1] @ (middle @ basis).T]
            history = reference.descent(problem, full, rate=rate, steps=steps)
            losses = np.array([problem(reference.product(weights))[0] for weights in history])
            worst.append(float(np.max(np.abs(losses - curve)) / curve[0]))
            if seed == setting.seeds - 1:
                lines.append(losses)
        errors.append(worst)
    table = np.array(errors)
    far = max(once(setting, _of_drawn_cores).values())  # in standard errors of a mean: more than 5 is none
    return Evidence(
        errors=np.where(far > 5, np.inf, np.max(table, axis=1)),
        tolerance=setting.rounding(steps),
        reason=f"rounding of {steps} steps",
        quantity="largest difference of the loss at a step, relative to its start; ∞ where moments of the "
        "cores drawn are five standard errors from those of the layers that they stand for",
        predicted={"difference": 0},
        measured={f"hidden width {h}": float(np.max(table[:, k])) for k, h in enumerate(hidden)},
        curves=(
            Curve("cross-entropy at three hidden widths, and of cores drawn at 10⁶", np.arange(steps + 1),
                  np.repeat(curve[:, None], len(hidden), axis=1), np.transpose(lines), xlabel="step",
                  ylabel="loss"),
        ),
    )


def _of_drawn_cores(setting: Setting) -> dict[str, float]:
    """Moments of Gram matrices of outer layers drawn as cores, in standard errors, beside expectations."""
    d_in, d_out, h, draws, scale = 3, 2, 7, 800, (0.5, 0.7, 2.0)

    def draw(key):
        ends = (d_in, d_in), (d_out, d_out)
        return [_cores_of_outer(key, h, *ends, kind, setting.dtype) for kind in ("gaussian", "orthogonal")]

    drawn = jax.jit(lambda keys: jax.lax.map(draw, keys))(jax.random.split(jax.random.key(0), draws))
    found: dict[str, float] = {}
    for kind, (first, last) in zip(("gaussian", "orthogonal"), drawn, strict=True):
        small: Any = ld.sample(
            jax.random.split(jax.random.key(0), draws)[0], (d_in, h, h, d_out), _product_squared, scale=scale,
            outer=kind, dtype=setting.dtype,
        )  # fmt: skip
        known = scale[0] * first[0], scale[1] * np.eye(d_in + d_out), scale[2] * last[0]
        gaps = [np.max(np.abs(core - layer.core)) for core, layer in zip(known, small.layers, strict=True)]
        found[f"what is sampled, {kind}"] = 0.0 if max(gaps) < setting.rounding(1) else np.inf
    columns = [np.concatenate([first, last.swapaxes(1, 2)], axis=2).astype(float) for first, last in drawn]
    normal, frames = (each.swapaxes(1, 2) @ each for each in columns)
    for i in range(d_in + d_out):
        # Gaussian columns of entries of variance 1/h: |g|² is χ²_h / h, g·g' has variance 1/h.
        found[f"Gaussian, norm {i}"] = standard_errors(normal[:, i, i], 1.0)
        found[f"Gaussian, spread {i}"] = standard_errors((normal[:, i, i] - 1) ** 2, 2 / h)
        for j in range(i):
            found[f"Gaussian, product {i}, {j}"] = standard_errors(normal[:, i, j], 0.0)
            found[f"Gaussian, square {i}, {j}"] = standard_errors(normal[:, i, j] ** 2, 1 / h)
    own = frames - np.eye(d_in + d_out)
    own[:, d_in:, :d_in] = own[:, :d_in, d_in:] = 0
    found["orthonormal frames"] = 0.0 if np.max(np.abs(own)) < setting.rounding(1) else np.inf
    for i in range(d_in):
        for j in range(d_in, d_in + d_out):  # two independent frames: an entry of a Haar matrix
            found[f"frames, product {i}, {j}"] = standard_errors(frames[:, i, j], 0.0)
            found[f"frames, square {i}, {j}"] = standard_errors(frames[:, i, j] ** 2, 1 / h)
    return found


def _product_squared(weights):
    return jnp.sum(ld.end_to_end(weights) ** 2)


@check(
    "largest-margin",
    claim="Under the exponential loss on separable data a network of width 10⁶ turns to the direction of "
    "largest margin, and its layers align: all but the first singular value of each vanish beside it.",
    source="3.8",
    controls={"labels that no direction separates": {"separable": False}},
    any_target=False,
    rests_on=("NumPy", "library"),
)
def largest_margin(setting: Setting, /, *, separable=True) -> Evidence:
    """Its logarithm has the loss's gradient directions, and shortens a wait that is exponential in `‖W‖`."""
    d, samples, steps = 4, 16, 2000
    errors, angles, ratios = [], [], []
    for seed in range(setting.seeds):
        rng = np.random.default_rng(seed)
        teacher = rng.standard_normal(d)
        inputs = rng.standard_normal((d, samples))
        signs = np.sign(teacher @ inputs)
        inputs += 0.5 * np.outer(teacher / np.linalg.norm(teacher), signs)  # a margin
        shown = signs.copy()
        if not separable:
            shown[: samples // 4] *= -1
        signed = jnp.asarray(inputs * shown, setting.dtype)
        loss = Partial(_log_exponential, signed)
        key, spaces = jax.random.key(seed), (d, 10**6, 10**6, 1)
        small: Any = ld.sample(key, spaces, loss, scale=0.3, dtype=setting.dtype)
        run = ld.reduced_descent(small, ld.GradientDescent(0.005), steps=steps, tolerance=-60.0)
        network = [np.asarray(weight, float) for weight in small.problem.network(run.weights)]
        direction = reference.product(network)[0]
        best = _largest_margin(inputs * signs)
        cosine = direction @ best / np.linalg.norm(direction) / np.linalg.norm(best)
        angles.append(float(np.arccos(np.clip(cosine, -1, 1))))
        spectra = [np.linalg.svd(weight, compute_uv=False) for weight in network[:-1]]
        ratios.append(max(float(values[1] / values[0]) for values in spectra))
        errors.append(max(angles[-1], ratios[-1]))
    return Evidence(
        errors=np.array(errors),
        tolerance=0.1,
        reason="both fall as a power of 1/‖W‖, and the runs end at a loss of e⁻⁶⁰, ‖W‖ of about 100",
        quantity="larger of the angle to the direction of largest margin (quadratic programme, SciPy) and "
        "the second over the first singular value of a layer's moving part",
        predicted={"angle": 0, "ratio": 0},
        measured={"angle": angles, "ratio": ratios},
    )


def _log_exponential(signed, weights):
    return jax.nn.logsumexp(-(ld.end_to_end(weights) @ signed)[0])


def _largest_margin(signed: np.ndarray) -> np.ndarray:
    """Shortest `w` with `w · y_i x_i ≥ 1` for all samples."""
    start = np.linalg.lstsq(signed.T, np.ones(signed.shape[1]), rcond=None)[0]
    found = scipy.optimize.minimize(
        lambda w: w @ w / 2, start, jac=lambda w: w, method="SLSQP",
        constraints={"type": "ineq", "fun": lambda w: w @ signed - 1, "jac": lambda w: signed.T},
        options={"maxiter": 500, "ftol": 1e-12},
    )
    return found.x


@check(
    "compressed-reduction",
    claim="A compressed network on a known target reduces from any start, in every layer: to ends r̂ wide "
    "from the spectral one, r̂ + r from others.",
    source="3.9",
    controls={"a target of higher rank than the reduction was told of": {"told": 2}},
    any_target=False,
    rests_on=("library", "reference"),
)
def compressed_reduction(setting: Setting, /, *, told=3) -> Evidence:
    d_out, d_in, rank, factor, steps = 30, 26, 3, 2, 60
    rate, decay = 0.02, 0.02
    optimizer = ld.GradientDescent(rate, alpha=1.5, momentum=0.6, weight_decay=decay)
    found: dict[str, list[float]] = {}
    ends: dict[str, tuple[int, int]] = {}
    for seed in range(setting.seeds):
        key = jax.random.key(seed)
        sigma = jnp.linspace(3.0, 1.2, rank, dtype=setting.dtype)
        target = ld.random_target(key, (d_out, d_in), sigma)
        width = factor * rank
        spaces = (d_in, width, width, d_out)
        starts = {
            "spectral": ld.compress(target, depth=3, rank=width, scale=0.3),
            "orthogonal": ld.orthogonal(key, spaces, scale=0.5, dtype=setting.dtype),
            "Gaussian": ld.gaussian(key, spaces, scale=0.5, dtype=setting.dtype),
        }
        problem = reference.factorization(np.asarray(target.dense(), float))
        for name, start in starts.items():
            reduction = ld.reduce(start, target.truncate(told))
            run = ld.reduced_descent(reduction, optimizer, steps=steps, record_every=steps)
            full = reference.descent(
                problem, [np.asarray(w, float) for w in start], rate=rate, steps=steps, alpha=1.5,
                momentum=0.6, decay=decay,
            )[-1]
            lifted = [np.asarray(w, float) for w in reduction.lift(run.weights)]
            found.setdefault(name, []).append(max(_gap(a, b) for a, b in zip(full, lifted, strict=True)))
            ends[name] = (reduction.layers[0].core.shape[1], reduction.layers[-1].core.shape[0])
    predicted = {"spectral": (6, 6), "orthogonal": (9, 9), "Gaussian": (9, 9)}
    table = np.array(list(found.values()))
    return Evidence(
        errors=np.max(table, axis=0) if ends == predicted else np.full(setting.seeds, np.inf),
        tolerance=setting.rounding(steps),
        reason=f"rounding of {steps} steps",
        quantity="largest relative Frobenius difference of a layer; ∞ where an end has another width",
        predicted={f"ends, {name}": pair for name, pair in predicted.items()} | {"difference": 0},
        measured={f"ends, {name}": pair for name, pair in ends.items()}
        | {f"difference, {name}": max(gaps) for name, gaps in found.items()},
    )
