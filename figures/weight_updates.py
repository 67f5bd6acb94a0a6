"""Weight updates of a deep linear network, a perceptron, a convolutional net and a transformer.

Source: the paper's opening observation, docs/theory.md 1.1: `W(t) − W(0)` lives in few directions, in
all layers and all along training.

The deep linear network learns a target of rank `r` from an orthogonal start, by gradient descent; its
singular values beyond `2r` are all equal to what the bulk lost, `ε − ρ(t)` of docs/theory.md 3.2, too
little to see here. The other three learn scikit-learn's digits, or the images of `--data DIR`, with
momentum. One middle layer of each is shown: its singular values at several times above, and below the
share of the squared norm that the `classes` largest hold, for the true labels and for labels drawn at
random, with the fraction of the training labels that are fitted in the end.

Random labels spread the update over more directions, and they do so as they are fitted, not before: at
these settings the perceptron fits many of them, the convolutional net few, and the transformer is still
at chance, with an update that hardly differs from the first gradient's few directions.
"""

import jax
import numpy as np
import optax
from flax import nnx
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

import lowdim_jax as ld
from figures import runs, style
from figures.protocol import Arrays, Settings
from lowdim_jax import nn
from lowdim_jax.nn import reference

CLASSES = 10
MODELS = {
    "MLP": (reference.MLP, "layers.1"),
    "conv net": (reference.ConvNet, "convolutions.1"),
    "ViT": (reference.VisionTransformer, "blocks.0.up"),
}
DASHED = {"linestyle": (0, (4, 1.5))}


def compute(settings: Settings) -> Arrays:
    """Singular values `(records, k)`, shares and training accuracies `(records,)` of each network."""
    arrays = {"DLN": _linear_updates(settings)}
    arrays["DLN_share"] = _share(arrays["DLN"], 2 * settings["r"])
    train, _ = reference.load_images(settings["data"] or None).split(seed=settings["seed"])
    rng = np.random.default_rng(settings["seed"])
    shuffled = train._replace(labels=rng.permutation(train.labels))
    tx = optax.sgd(settings["sgd_rate"], momentum=0.9)
    for name in MODELS:
        arrays[name], arrays[f"{name}_fit"] = _updates(name, train, tx, settings)
        random, arrays[f"{name}_random_fit"] = _updates(name, shuffled, tx, settings)
        arrays[f"{name}_share"], arrays[f"{name}_random_share"] = (
            _share(values, CLASSES) for values in (arrays[name], random)
        )
    return arrays


def _linear_updates(settings: Settings) -> np.ndarray:
    start = runs.original(settings)
    target = runs.separated_target(settings)
    run = ld.gradient_descent(
        ld.factorization(target.dense()).loss,
        start,
        ld.GradientDescent(settings["learning_rate"]),
        steps=settings["linear_steps"],
        record_every=settings["linear_steps"] // settings["records"],
        observe=lambda weights: jax.numpy.linalg.svd(weights[1] - start[1], compute_uv=False),
    )
    return np.asarray(run.observed)[1:]


def _updates(
    name: str, data: reference.Images, tx: optax.GradientTransformation, settings: Settings
) -> tuple[np.ndarray, np.ndarray]:
    """Singular values of one layer's update, and the fraction of the training labels fitted."""
    make, path = MODELS[name]
    shape = data.images.shape[1:]
    options = settings[name] | ({"patch": shape[0] // 4} if name == "ViT" else {})
    model = make(shape, CLASSES, **options, rngs=nnx.Rngs(settings["seed"]))
    start = nn.matrices(model, [path])
    every = settings["steps"] // settings["records"]
    schedule = {"steps": settings["steps"], "record_every": every, "seed": settings["seed"]}
    records = [
        (nn.updates(start, nn.matrices(model, [path]))[path].singular_values, reference.accuracy(model, data))
        for _ in reference.train(model, tx, data, **schedule)
    ]
    values, fitted = zip(*records[1:], strict=True)
    return np.array(values, float), np.array(fitted)


def _share(values: np.ndarray, k: int) -> np.ndarray:
    return (values[:, :k] ** 2).sum(axis=1) / (values**2).sum(axis=1)


def plot(arrays: Arrays, settings: Settings) -> Figure:
    """Singular values above, shares of the leading directions below, one column a network."""
    figure = style.new_figure(height=4.9)
    names = ["DLN", *MODELS]
    above, below = figure.subplots(2, len(names), height_ratios=(3, 2))
    times = np.arange(1, settings["records"] + 1) / settings["records"]
    colours = style.shades(style.ORIGINAL, settings["records"])[::-1]
    for column, name in enumerate(names):
        values, k = arrays[name], 2 * settings["r"] if name == "DLN" else CLASSES
        index = np.arange(1, values.shape[1] + 1)
        for row, colour in zip(values, colours, strict=True):
            above[column].plot(index, row, color=colour, linewidth=1.2)
        above[column].axvline(k + 0.5, **style.PREDICTED)
        title = f"{name}, layer 2" if name == "DLN" else f"{name}, {MODELS[name][1]}"
        above[column].set(title=title, xlabel="index", yscale="log", ylim=_limits(values))
        below[column].plot(times, arrays[f"{name}_share"], color=style.ORIGINAL, **style.MEASURED)
        if name != "DLN":
            random = arrays[f"{name}_random_share"]
            below[column].plot(times, random, color=style.OTHER_RANK, **{**style.MEASURED, **DASHED})
        below[column].set(ylim=(0, 1.05), xlim=(0, 1), xlabel="fraction of training")
        below[column].set_title(f"in the top {k}", fontsize=9)
    above[0].set_ylabel(r"singular values of $W(t)-W(0)$")
    below[0].set_ylabel("share of squared norm")
    for column, name in enumerate(MODELS, start=1):
        rows = {"true": ("_fit", style.ORIGINAL, 0.22), "random": ("_random_fit", style.OTHER_RANK, 0.07)}
        for labels, (key, colour, height) in rows.items():
            fitted = f"{labels} labels: {arrays[name + key][-1]:.0%} fitted"
            below[column].text(0.03, height, fitted, color=colour, fontsize=8)
    style.legend_above(
        figure,
        [
            Line2D([], [], color=colours[0], linewidth=1.2, label="early"),
            Line2D([], [], color=colours[-1], linewidth=1.2, label="at the end"),
            Line2D([], [], **style.PREDICTED, label=r"$2r$, or the number of classes"),
            Line2D([], [], color=style.ORIGINAL, **style.MEASURED, label="share, true labels"),
            Line2D(
                [], [], color=style.OTHER_RANK, **{**style.MEASURED, **DASHED}, label="share, random labels"
            ),
        ],
    )
    return figure


def _limits(values: np.ndarray) -> tuple[float, float]:
    """Down to what matters: below 1e-4 of the largest lies rounding."""
    return 1e-4 * values.max(), 2 * values.max()
