"""What sibling papers say of features, activations and singular vectors: statements 1.1, 3.10 and 4.3."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

import lowdim_jax as ld
from lowdim_jax.nn.reference import digits
from theory_checks.reference import networks as reference
from theory_checks.registry import Curve, Evidence, check
from theory_checks.runs import once
from theory_checks.setting import Setting

# --- Activations ----------------------------------------------------------------------------------

ACTIVATIONS = {"tanh": jnp.tanh, "GELU": jax.nn.gelu, "SiLU": jax.nn.silu, "ReLU": jax.nn.relu}
CLASSES, SAMPLES = 10, 400
LEVEL = 0.15
"""Training loss at which the networks are compared."""


@check(
    "smooth-activations",
    claim="At one training loss on the digits, the updates of a perceptron's hidden layers leave at least "
    "twice as much energy outside 2K directions with ReLU as with tanh, GELU or SiLU (2602.06208).",
    source="1.1",
    controls={"ReLU in the place of the smooth ones": {"smooth": ("ReLU",)}},
    any_target=False,
    rests_on=("theorem", "library"),
)
def smooth_activations(setting: Setting, /, *, smooth=("tanh", "GELU", "SiLU")) -> Evidence:
    """Five seeds whatever the run's number, in float32."""
    seeds = range(5)
    outside = {
        name: np.array([once(setting, _outside, name=name, seed=seed) for seed in seeds])
        for name in dict.fromkeys((*smooth, "ReLU"))
    }
    ratios = {name: outside[name] / outside["ReLU"] for name in smooth}
    return Evidence(
        errors=np.max(list(ratios.values()), axis=0),
        tolerance=0.5,
        reason="stated in the claim",
        quantity="share of ‖W(t) − W(0)‖_F² outside the 20 largest directions, mean of both hidden layers, "
        "relative to ReLU's",
        predicted={"relative to ReLU's": "≤ 0.5"},
        measured={f"share outside, {name}": values for name, values in outside.items()},
    )


def _outside(_: Setting, *, name: str, seed: int) -> float:
    images, labels = digits()
    picked = np.random.default_rng(seed).permutation(len(labels))[:SAMPLES]
    pixels = images[picked].reshape(SAMPLES, -1).T
    inputs, hot = jnp.asarray(pixels - pixels.mean(1, keepdims=True)), np.eye(CLASSES)[labels[picked]].T
    act, hot = Partial(ACTIVATIONS[name]), jnp.asarray(hot, inputs.dtype)
    loss = Partial(_perceptron_loss, act, inputs, hot)  # one program for all seeds
    start = ld.orthogonal(jax.random.key(seed), (64, 64, 64, CLASSES), scale=0.7, dtype="float32")
    run = ld.gradient_descent(
        loss, start, ld.GradientDescent(0.3), steps=600, record_every=5, tolerance=LEVEL
    )
    shares = []
    for after, before in zip(run.weights[:2], start[:2], strict=True):
        energies = np.linalg.svd(np.asarray(after - before, float), compute_uv=False) ** 2
        shares.append(energies[2 * CLASSES :].sum() / energies.sum())
    return float(np.mean(shares)) if int(run.num_steps) < 600 else np.nan  # every network reaches the level


def _perceptron_loss(act, inputs, hot, weights):
    first, second, last = weights
    logits = last @ act(second @ act(first @ inputs))
    return jnp.mean(jax.nn.logsumexp(logits, axis=0) - jnp.sum(logits * hot, axis=0))


# --- Features over layers -------------------------------------------------------------------------


@check(
    "feature-compression",
    claim="Within-class over between-class spread falls by ε² n^{−1/L} at every layer but the last.",
    source="3.10",
    controls={"a start of scale one": {"scale": 1.0}},
    any_target=False,
    rests_on=("theorem", "library"),
)
def feature_compression(setting: Setting, /, *, scale=0.1) -> Evidence:
    depth, classes, per_class = 4, 3, 20
    d = classes * per_class
    labels = np.repeat(np.arange(classes), per_class)
    factor = 0.1**2 * per_class ** (-1 / depth)  # of the claim's ε, whatever the control starts from
    errors, lines = [], []
    for seed in range(setting.seeds):
        rng = np.random.default_rng(seed)
        inputs = np.linalg.qr(rng.standard_normal((d, d)))[0]
        target = jnp.asarray(np.eye(classes)[:, labels] @ inputs.T, setting.dtype)
        spaces = (*(d,) * depth, classes)
        start = ld.orthogonal(jax.random.key(seed), spaces, scale=scale, dtype=setting.dtype)
        problem = ld.factorization(target)
        rate = 0.3 * float(ld.max_learning_rate(problem, depth=depth))
        run = ld.gradient_descent(
            problem, start, ld.GradientDescent(rate), steps=20_000, record_every=100, tolerance=1e-9
        )
        features, spreads = inputs, [_spread(inputs, labels)]
        for weight in run.weights[:-1]:
            features = np.asarray(weight, float) @ features
            spreads.append(_spread(features, labels))
        steps = np.diff(np.log(spreads))
        errors.append(np.max(np.abs(steps - np.log(factor))))
        lines.append(spreads)
    layers = np.arange(depth)
    return Evidence(
        errors=np.array(errors),
        tolerance=0.05,
        reason="O(K/d) = 0.05; motion of the bulk and imbalance of the last layer, O(ε²)",
        quantity="largest difference of ln(D_l / D_{l−1}) from ln(ε² n^{−1/L})",
        predicted={"factor": factor},
        measured={"factors, seed 0": np.exp(np.diff(np.log(lines[0])))},
        curves=(
            Curve("within-class over between-class spread", layers,
                  np.repeat((lines[0][0] * factor**layers)[:, None], len(lines), axis=1), np.transpose(lines),
                  xlabel="layer", ylabel="D", ylog=True),
        ),
    )


def _spread(features: np.ndarray, labels: np.ndarray) -> float:
    """`D`: squared distances from class means, over those of the class means from the overall mean."""
    means = np.stack([features[:, labels == c].mean(axis=1) for c in np.unique(labels)], axis=1)
    within = np.sum((features - means[:, labels]) ** 2)
    return float(within / np.sum((means[:, labels] - features.mean(axis=1, keepdims=True)) ** 2))


# --- Singular vectors -----------------------------------------------------------------------------


@check(
    "singular-vector-rate",
    claim="In a balanced network the singular vectors turn along gradient flow at the rates that the "
    "end-to-end flow gives them.",
    source="4.3",
    controls={"an initialization that is not balanced": {"first_layer": 2.0}},
    any_target=False,
    rests_on=("theorem", "reference"),
)
def singular_vector_rate(setting: Setting, /, *, first_layer=1.0) -> Evidence:
    """SciPy integrates in float64 whatever the run's precision; central differences over a time 2h."""
    depth, d, h = 3, 4, 1e-4
    middles = np.array([0.3, 0.8, 1.6])
    errors, fastest = [], []
    for seed in range(setting.seeds):
        rng = np.random.default_rng(seed)
        start = [0.8 * np.linalg.qr(rng.standard_normal((d, d)))[0] for _ in range(depth)]
        start[0] = first_layer * start[0]
        target = rng.standard_normal((d, d))
        times = (middles[:, None] + h * np.array([-1.0, 0.0, 1.0])).ravel()
        flow = reference.flow(reference.factorization(target), start, list(times))
        matrices = [reference.product(weights) for weights in flow]
        worst, size = 0.0, 0.0
        for k in range(len(middles)):
            before, here, after = matrices[3 * k : 3 * k + 3]
            measured = _turning(before, here, after, h)
            predicted = _turning_predicted(here, target, depth)
            size = max(size, float(np.max(np.abs(predicted))))
            worst = max(worst, float(np.max(np.abs(measured - predicted))))
        errors.append(worst / size)
        fastest.append(size)
    return Evidence(
        errors=np.array(errors),
        tolerance=1e-4,
        reason="central difference: O(h²), and the solver's 1e-12 over h, both times 1/(σ_j² − σ_i²)",
        quantity="largest difference of ⟨u_i, u̇_j⟩ or ⟨v_i, v̇_j⟩, relative to the fastest",
        predicted={"fastest turning, seed 0": fastest[0]},
        measured={"largest difference, seed 0": errors[0] * fastest[0]},
    )


def _turning(before, here, after, h) -> np.ndarray:
    """`⟨u_i, u̇_j⟩` and `⟨v_i, v̇_j⟩` as differences, with each vector's sign that of the middle one."""
    u, _, vt = np.linalg.svd(here)
    sides = []
    for matrix in (before, after):
        left, _, right = np.linalg.svd(matrix)
        signs = np.sign(np.sum(left * u, axis=0))
        sides.append((left * signs, right.T * signs))
    (u_before, v_before), (u_after, v_after) = sides
    pair = np.stack([u.T @ (u_after - u_before), vt @ (v_after - v_before)]) / (2 * h)
    return pair * (1 - np.eye(len(u)))


def _turning_predicted(here, target, depth) -> np.ndarray:
    u, s, vt = np.linalg.svd(here)
    misfit = u.T @ (target - here) @ vt.T
    shared = sum(
        np.outer(s ** (2 * (depth - layer) / depth), s ** (2 * (layer - 1) / depth))
        for layer in range(1, depth + 1)
    )
    moves = shared * misfit
    gap = s[None, :] ** 2 - s[:, None] ** 2 + np.eye(len(s))
    left = (s[None, :] * moves + s[:, None] * moves.T) / gap
    right = (s[:, None] * moves + s[None, :] * moves.T) / gap
    return np.stack([left, right]) * (1 - np.eye(len(s)))
