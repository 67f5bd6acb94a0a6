"""Digits learned by networks 64 to a million wide: accuracy, singular values, lazy against rich starts.

Source: docs/theory.md 3.8. Three layers with Gaussian ends and an orthogonal middle, cross-entropy on
scikit-learn's digits, mini-batches, momentum. Each network trains as its exact reduction, 74 wide at any
hidden width; the dashed line is a dense network, trained as it is, beside its own reduction. From small
outer layers these move many times their size (rich), from large ones a fraction of it (lazy).
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure

import lowdim_jax as ld
from figures import style
from figures.protocol import Arrays, Settings
from lowdim_jax.nn.reference import digits
from lowdim_jax.reduction import cores

CLASSES = 10


def compute(settings: Settings) -> Arrays:
    """Test accuracies `(widths, records)`, singular values of the middle layers, and the dense run."""
    train, test = digits().split(held_out=0.2, seed=settings["seed"])
    shown = [jnp.asarray(part.images.reshape(len(part.labels), -1).T, float) for part in (train, test)]
    labels = [jnp.asarray(part.labels) for part in (train, test)]
    loss = jax.tree_util.Partial(partial(_loss, settings["batch"]), shown[0], labels[0])
    rule = ld.GradientDescent(settings["learning_rate"], momentum=settings["momentum"])
    options = {"steps": settings["steps"], "record_every": settings["record_every"], "throw": True}

    def follow(reduction: Any) -> tuple[np.ndarray, np.ndarray, list[float]]:
        observe = jax.tree_util.Partial(_measure, shown[1], labels[1])
        run = ld.reduced_descent(reduction, rule, observe=observe, **options)
        accuracy, values = run.observed
        pairs = zip(cores(run.weights), cores(reduction.layers), strict=True)
        moves = [float(jnp.linalg.norm(after - before) / jnp.linalg.norm(before)) for after, before in pairs]
        return np.asarray(accuracy), np.asarray(values[-1])[: settings["shown"]], moves

    def network(width: int, scale: float) -> Any:
        spaces, key = (len(shown[0]), width, width, CLASSES), jax.random.key(settings["seed"])
        options: dict[str, Any] = {"scale": (scale, 1.0, scale), "outer": "gaussian", "per_step": True}
        return ld.sample(key, spaces, loss, **options)

    runs = [follow(network(width, settings["outer"])) for width in settings["widths"]]
    starts = [follow(network(settings["widths"][-1], scale)) for scale in settings["outers"]]

    key = jax.random.key(settings["seed"])
    dense = settings["dense_width"]
    first, middle, last = ld.orthogonal(key, (len(shown[0]), dense, dense, CLASSES), scale=1.0)
    weights = settings["outer"] * first, middle, settings["outer"] * last
    reduction = ld.reduce(weights, loss, per_step=True)
    full = ld.gradient_descent(
        loss, weights, rule, per_step=True, observe=partial(_accuracy, shown[1], labels[1]), **options
    )
    small = ld.reduced_descent(reduction, rule, **options)
    pairs = zip(reduction.lift(small.weights), full.weights, strict=True)
    return {
        "epochs": np.asarray(full.steps) * settings["batch"] / len(labels[0]),
        "accuracy": np.array([accuracy for accuracy, _, _ in runs]),
        "values": np.array([values for _, values, _ in runs]),
        "moves": np.array([moves for _, _, moves in starts]),
        "lazy_accuracy": np.array([accuracy for accuracy, _, _ in starts]),
        "dense": np.asarray(full.observed),
        "gaps": np.array([float(jnp.linalg.norm(a - b) / jnp.linalg.norm(b)) for a, b in pairs]),
    }


def _loss(size: int, images: jax.Array, labels: jax.Array, weights: Any, step: jax.Array) -> jax.Array:
    batch = jax.random.randint(jax.random.key(step), (size,), 0, labels.size)
    logits = ld.forward(weights, images[:, batch]).T
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels[batch]).mean()


def _accuracy(images: jax.Array, labels: jax.Array, weights: Any) -> jax.Array:
    chosen = ld.forward(weights, images).argmax(axis=0).astype(labels.dtype)
    return jnp.mean(chosen == labels, dtype=images.dtype)


def _measure(images: jax.Array, labels: jax.Array, layers: Any) -> tuple[jax.Array, jax.Array]:
    weights = cores(layers)
    return _accuracy(images, labels, weights), jnp.linalg.svd(weights[1], compute_uv=False)


def plot(arrays: Arrays, settings: Settings) -> Figure:
    """Accuracy against epoch, singular values by width, and how far layers move by the scale of the ends."""
    figure = style.new_figure(height=3.6)
    learning, spectrum, lazy = figure.subplots(1, 3)
    colours = style.shades(style.EXACT_RANK, len(settings["widths"]))
    names = [rf"$10^{{{np.log10(h):.0f}}}$" if np.log10(h) % 1 == 0 else f"{h}" for h in settings["widths"]]
    index = np.arange(1, settings["shown"] + 1)
    for k, name in enumerate(names):
        learning.plot(arrays["epochs"], arrays["accuracy"][k], color=colours[k], label=name)
        spectrum.plot(index, arrays["values"][k], "o-", color=colours[k], markersize=3, label=name)
    dense = f"{settings['dense_width']}, dense"
    learning.plot(arrays["epochs"], arrays["dense"], **style.PREDICTED, label=dense)
    learning.set(ylim=(0.5, 1.0), xlabel="epoch", title="Test accuracy")
    learning.legend(title="hidden width", loc="lower right")
    spectrum.set(xlabel="index", title="Middle layer's singular values")
    spectrum.legend(title="hidden width", loc="upper right")
    shades = style.shades(style.OTHER_RANK, 3)
    for k, (name, marker) in enumerate((("first", "o"), ("middle", "s"), ("last", "^"))):
        lazy.plot(settings["outers"], arrays["moves"][:, k], marker + "-", color=shades[k], label=name)
    lazy.set(xscale="log", yscale="log", xlabel=r"$\varepsilon$ of the outer layers")
    lazy.set_title("Distance moved, relative")
    lazy.legend(title="layer", loc="upper right")
    return figure
