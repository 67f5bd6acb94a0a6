"""Statements 1.1 to 1.5 of docs/theory.md in nonlinear networks: small classifiers of digits.

They train in float32 whatever the run's precision: their tolerances are statistical, not rounding.
"""

from functools import cache

import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from lowdim_jax import nn
from lowdim_jax.nn import reference
from theory_checks.reference.networks import product
from theory_checks.registry import Curve, Evidence, check
from theory_checks.setting import Setting

SHAPE, CLASSES, WIDTH = (8, 8, 1), 10, 64
HELD = 0.75
"""Share of the energy that counts as nearly all."""
STEPS, EVERY = 200, 5
SCALE, RATE = 0.5, 0.02
GOAL = 0.9
"""Test accuracy to be reached early."""


@check(
    "nonlinear-low-rank-updates",
    claim="In a trained multilayer perceptron as many directions as there are classes hold at least 3/4 of "
    "every layer's weight update, and those found after a quarter of training still do at its end.",
    source="1.1",
    controls={"labels drawn at random": {"labels": "random"}},
    any_target=False,
    rests_on=("theorem", "library"),
)
def low_rank_updates(setting: Setting, /, *, labels="true") -> Evidence:
    own, early = np.array([_energies(seed, labels) for seed in range(setting.seeds)]).swapaxes(0, 1)
    return Evidence(
        errors=1 - np.minimum(own, early).min(axis=1),
        tolerance=1 - HELD,
        reason="stated in the claim; an unstructured update of the smallest layer leaves out two thirds",
        quantity="largest share of ‖W(t) − W(0)‖_F² outside 10 directions, over the hidden layers",
        predicted={"share inside": f"≥ {HELD}"},
        measured={"share inside the 10 largest": own.min(axis=1), "inside the early 10": early.min(axis=1)},
    )


@check(
    "merge",
    claim="The merged layer has the outputs of the network of factors it came from, which are those of their "
    "product.",
    source="1.2",
    controls={"a factor left out": {"left_out": 1}},
    any_target=False,
    rests_on=("reference", "library"),
)
def merge(setting: Setting, /, *, left_out=0) -> Evidence:
    def error(key, depth, make):
        rngs = nnx.Rngs(key)
        layer = make(WIDTH, WIDTH, depth=depth, param_dtype=setting.dtype, rngs=rngs)
        x = rngs.normal((20, WIDTH), setting.dtype)
        shorter = make(WIDTH, WIDTH, depth=depth - left_out, param_dtype=setting.dtype, rngs=rngs)
        shorter.set_weights((layer.weights[0], *layer.weights[1 + left_out :]))
        matrix = product([np.asarray(weight, float) for weight in layer.weights])
        exact = np.asarray(x, float) @ matrix.T + np.asarray(0 if layer.bias is None else layer.bias[...])
        found = np.asarray(layer(x)), np.asarray(shorter.merge()(x))
        return max(np.linalg.norm(side - exact) for side in found) / np.linalg.norm(exact)

    def compressed(*sizes, **options):
        layer = nn.CompressedLinear(*sizes, rank=CLASSES, **options)
        # Away from the identity, so that every factor counts.
        layer.set_weights([weight + 0.1 for weight in layer.weights])
        return layer

    cases = [(depth, make) for depth in (3, 4, 5) for make in (nn.DeepLinear, compressed)]
    errors = [max(float(error(key, *case)) for case in cases) for key in setting.keys]
    return Evidence(
        errors=np.array(errors),
        tolerance=setting.rounding(1),
        reason="rounding of at most five products of matrices",
        quantity="relative Frobenius difference of the outputs, L = 3, 4, 5, deep and compressed layers",
        predicted={"difference": 0},
        measured={"difference": np.array(errors)},
    )


@check(
    "nonlinear-accuracy",
    claim="A perceptron with a compressed network before its classifier is as accurate as one with a deep "
    "linear network there.",
    source="1.2, 1.3",
    controls={"a hidden width r̂ far below the number of classes": {"rank": 2}},
    any_target=False,
    rests_on=("theorem", "library"),
)
def accuracy(setting: Setting, /, *, rank=2 * CLASSES) -> Evidence:
    deep, small = (_accuracies(setting.seeds, kind, rank) for kind in ("deep", "compressed"))
    final = {"deep": deep[:, -1].mean(), "compressed": small[:, -1].mean()}
    count = setting.seeds * _images()[1].labels.size
    share = final["deep"]
    tolerance = 2 * float(np.sqrt(2 * share * (1 - share) / count))
    return Evidence(
        errors=np.array([final["deep"] - final["compressed"]]),
        tolerance=tolerance,
        reason=f"two standard errors of the difference of two accuracies on {count} images",
        quantity="mean test accuracy over seeds, deep minus compressed",
        predicted={"difference": "≤ 0"},
        measured={"difference": final["deep"] - final["compressed"]}
        | {f"accuracy, {name}": value for name, value in final.items()},
        curves=(
            Curve("first seed", np.arange(0, STEPS + 1, EVERY), small[0], deep[0], xlabel="iteration",
                  ylabel="test accuracy", labels=("compressed", "deep linear")),
        ),
    )


@check(
    "nonlinear-steps-to-accuracy",
    claim="From a spectral start the compressed network reaches 90% test accuracy in no more steps than the "
    "deep linear one of the same scale and learning rate.",
    source="1.3, 1.5",
    controls={"random orthonormal outer factors": {"start": "random"}},
    any_target=False,
    rests_on=("theorem", "library"),
)
def steps_to_accuracy(setting: Setting, /, *, start="spectral") -> Evidence:
    deep = _accuracies(setting.seeds, "deep", 2 * CLASSES)
    small = _accuracies(setting.seeds, "compressed", 2 * CLASSES, start)
    needed = {"deep": _steps_to(deep), "compressed": _steps_to(small)}
    return Evidence(
        errors=needed["compressed"] / needed["deep"],
        tolerance=1.0,
        reason="no more steps",
        quantity="steps of the compressed network over those of the deep one",
        predicted={"ratio": "≤ 1"},
        measured={"ratio": needed["compressed"] / needed["deep"]}
        | {f"steps, {name}": value for name, value in needed.items()},
    )


@cache
def _images() -> tuple[reference.Images, reference.Images]:
    return reference.digits().split()


def _energies(seed: int, labels: str) -> tuple[list[float], list[float]]:
    """Shares of each hidden layer's final update in its own, and in its early, leading directions."""
    train, _ = _images()
    if labels == "random":
        train = train._replace(labels=np.random.default_rng(seed).permutation(train.labels))
    model = reference.MLP(SHAPE, CLASSES, width=2 * WIDTH, rngs=nnx.Rngs(seed))
    paths = ["layers.0", "layers.1"]
    start = nn.matrices(model, paths)
    records = [
        nn.updates(start, nn.matrices(model, paths))
        for _ in reference.train(model, _fast(), train, steps=320, record_every=80, seed=seed)
    ]
    early, final = records[1], records[-1]
    own = [float(nn.top_energy(final[path], CLASSES)) for path in paths]
    return own, [float(nn.energy_within(final[path], early[path], CLASSES)) for path in paths]


@cache
def _accuracies(seeds: int, kind: str, rank: int, start: str = "spectral") -> np.ndarray:
    """Test accuracies along training, `(seeds, records)`."""
    train, test = _images()
    everything = jnp.asarray(train.images), jnp.asarray(train.labels)

    def follow(seed):
        options = {"width": WIDTH, "head": kind, "rank": rank, "scale": SCALE}
        model = reference.MLP(SHAPE, CLASSES, **options, rngs=nnx.Rngs(seed))
        if kind == "compressed" and start == "spectral":
            nn.spectral_start(model, "head.network", reference.cross_entropy, *everything, scale=SCALE)
        records = reference.train(model, _slow(), train, steps=STEPS, record_every=EVERY, seed=seed)
        return [reference.accuracy(model, test) for _ in records]

    return np.array([follow(seed) for seed in range(seeds)])


def _steps_to(accuracies: np.ndarray) -> np.ndarray:
    """Steps of each seed until the goal is first reached; infinite where it never is."""
    reached = accuracies >= GOAL
    return np.where(reached.any(axis=1), EVERY * reached.argmax(axis=1), np.inf)


@cache  # one object each: training recompiles for every new optimizer
def _slow() -> optax.GradientTransformation:
    return optax.sgd(RATE, momentum=0.9)


@cache
def _fast() -> optax.GradientTransformation:
    return optax.sgd(0.05, momentum=0.9)
