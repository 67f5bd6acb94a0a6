"""Test accuracy against iteration and seconds: a plain perceptron, + DLN, + compressed DLN.

Source: the paper's nonlinear experiment; docs/theory.md 1.2, 1.3. A deep linear network of three layers
before the classifier, or its compressed twin, started spectrally or from random orthonormal outer
factors; all at one scale `ε` and one learning rate, on scikit-learn's digits or the images of
`--data DIR` (MNIST's or CIFAR-10's files). Lines are means over seeds, bands one standard deviation.

Seconds include the spectral start and exclude compilation and the measuring of the accuracy: every model
is trained once before the clock starts.
"""

import time
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from figures import style
from figures.protocol import Arrays, Settings
from lowdim_jax import nn
from lowdim_jax.nn import reference

CLASSES, SURROGATE_BATCH = 10, 2048
VARIANTS = {
    "plain": ("plain", False),
    "deep": ("deep", False),
    "compressed": ("compressed", True),
    "compressed_random": ("compressed", False),
}


def compute(settings: Settings) -> Arrays:
    """Accuracies and seconds `(seeds, records)` of each variant."""
    images, arrays = reference.load_images(settings["data"] or None), {}
    for name, (head, spectral) in VARIANTS.items():
        accuracies, seconds = train(head, images, settings, rank=settings["rank"], spectral=spectral)
        arrays[name], arrays[f"{name}_seconds"] = accuracies, seconds
    return {**arrays, "iteration": np.arange(0, settings["steps"] + 1, settings["record_every"])}


def train(
    head: str, images: reference.Images, settings: Settings, *, rank: int | None, spectral: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Accuracies and seconds `(seeds, records)` of one variant; compiled by a run beforehand."""
    tx = _momentum(settings["learning_rate"])
    seeds = 0, *range(settings["seeds"])
    run = [_follow(head, tx, images.split(seed=seed), settings, rank, spectral, seed) for seed in seeds]
    accuracies, seconds = zip(*run[1:], strict=True)
    return np.array(accuracies), np.array(seconds)


@cache  # one object for each rate: training compiles anew for every new optimizer
def _momentum(rate: float) -> optax.GradientTransformation:
    return optax.sgd(rate, momentum=0.9)


def _follow(
    head: str,
    tx: optax.GradientTransformation,
    parts: tuple[reference.Images, reference.Images],
    settings: Settings,
    rank: int | None,
    spectral: bool,
    seed: int,
) -> tuple[list[float], list[float]]:
    train, test = parts
    start = time.perf_counter()
    model = reference.MLP(
        train.images.shape[1:], CLASSES, width=settings["width"], head=head, rank=rank,
        scale=settings["scale"], rngs=nnx.Rngs(seed),
    )
    if spectral:
        batch = (jnp.asarray(part[:SURROGATE_BATCH]) for part in train)
        nn.spectral_start(model, "head.network", reference.cross_entropy, *batch, scale=settings["scale"])
    accuracies, seconds, paused = [], [], 0.0
    schedule = {"steps": settings["steps"], "record_every": settings["record_every"], "seed": seed}
    for _ in reference.train(model, tx, train, **schedule):
        jax.block_until_ready(nnx.state(model))
        stop = time.perf_counter()
        seconds.append(stop - start - paused)
        accuracies.append(reference.accuracy(model, test))
        paused += time.perf_counter() - stop
    return accuracies, seconds


def plot(arrays: Arrays, settings: Settings) -> Figure:
    """Two panels, accuracy against iterations and against seconds."""
    lines = {
        "plain": {"color": style.EXACT_RANK, "label": "plain", "linestyle": (0, (1, 1.2))},
        "deep": {"color": style.ORIGINAL, "label": "+ deep linear", **style.THIN},
        "compressed": {
            **style.THICK,
            "color": style.COMPRESSED,
            "label": rf"+ compressed, $\hat{{r}}={settings['rank']}$",
        },
        "compressed_random": {
            "color": style.OTHER_RANK,
            "label": "+ compressed, random start",
            "linestyle": (0, (4, 1.2)),
        },
    }
    figure = style.new_figure(height=3.5)
    by_iteration, by_second = figure.subplots(1, 2, sharey=True)
    handles = []
    for name, look in lines.items():
        mean, spread = arrays[name].mean(axis=0), arrays[name].std(axis=0)
        seconds = arrays[f"{name}_seconds"].mean(axis=0)
        for axes, x in ((by_iteration, arrays["iteration"]), (by_second, seconds)):
            axes.fill_between(x, mean - spread, mean + spread, color=look["color"], alpha=0.15, linewidth=0)
            (line,) = axes.plot(x, mean, **{**style.MEASURED, **look})
        handles.append(line)
    lowest = 0.9 * min(arrays[name][:, -1].mean() for name in lines)
    by_iteration.set(xlim=(0, settings["steps"]), xlabel="iteration")
    by_iteration.set(ylim=(lowest, 1.0), ylabel="test accuracy")
    visible = min(
        arrays[f"{name}_seconds"].mean(axis=0)[arrays[name].mean(axis=0) >= lowest][0] for name in lines
    )
    by_second.set_xscale("log")
    by_second.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    by_second.xaxis.set_major_formatter("{x:g}")
    by_second.xaxis.set_minor_formatter(NullFormatter())
    by_second.set(xlim=(0.9 * visible, None), xlabel="seconds, measured, without compilation")
    style.legend_above(figure, handles, title="mean and one standard deviation over seeds")
    return figure
