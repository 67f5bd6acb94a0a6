"""Test accuracy against iteration and seconds: a plain perceptron, + DLN, + compressed DLN.

Source: the paper's nonlinear experiment; docs/theory.md 1.2, 1.3. A deep linear network of three layers
before the classifier, or its compressed twin, started spectrally or from random orthonormal outer
factors; all at one scale `ε` and one learning rate, on scikit-learn's digits. Lines are means over
seeds, bands one standard deviation.

Seconds include the spectral start and exclude compilation and the measuring of the accuracy: every model
is trained once before the clock starts.
"""

import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from figures import style
from lowdim_jax import nn

SHAPE, CLASSES = (8, 8, 1), 10
VARIANTS = {
    "plain": ("plain", False),
    "deep": ("deep", False),
    "compressed": ("compressed", True),
    "compressed_random": ("compressed", False),
}
SETTINGS = {
    "small": {
        "width": 256,
        "rank": 20,
        "epsilon": 0.5,
        "rate": 0.02,
        "steps": 240,
        "record_every": 8,
        "seeds": 5,
    },
    "paper": {
        "width": 1024,
        "rank": 20,
        "epsilon": 0.5,
        "rate": 0.02,
        "steps": 400,
        "record_every": 8,
        "seeds": 10,
    },
}


def compute(settings):
    """Accuracies and seconds `(seeds, records)` of each variant."""
    arrays = {}
    for name, (head, spectral) in VARIANTS.items():
        accuracies, seconds = train(head, settings, rank=settings["rank"], spectral=spectral)
        arrays[name], arrays[f"{name}_seconds"] = accuracies, seconds
    return {**arrays, "iteration": np.arange(0, settings["steps"] + 1, settings["record_every"])}


def train(head, settings, *, rank, spectral):
    """Accuracies and seconds `(seeds, records)` of one variant; compiled by a run beforehand."""
    tx = optax.sgd(settings["rate"], momentum=0.9)
    run = [_follow(head, tx, settings, rank, spectral, seed) for seed in (0, *range(settings["seeds"]))]
    accuracies, seconds = zip(*run[1:], strict=True)
    return np.array(accuracies), np.array(seconds)


def _follow(head, tx, settings, rank, spectral, seed):
    train, test = nn.digits().split(seed=seed)
    start = time.perf_counter()
    model = nn.MLP(
        SHAPE, CLASSES, width=settings["width"], head=head, rank=rank, scale=settings["epsilon"],
        rngs=nnx.Rngs(seed),
    )
    if spectral:
        batch = jnp.asarray(train.images), jnp.asarray(train.labels)
        nn.spectral_start(model, "head.network", nn.cross_entropy, *batch, scale=settings["epsilon"])
    accuracies, seconds, paused = [], [], 0.0
    schedule = {"steps": settings["steps"], "record_every": settings["record_every"], "seed": seed}
    for _ in nn.fit(model, tx, train, **schedule):
        jax.block_until_ready(nnx.state(model))
        stop = time.perf_counter()
        seconds.append(stop - start - paused)
        accuracies.append(nn.accuracy(model, test))
        paused += time.perf_counter() - stop
    return accuracies, seconds


def plot(arrays, settings):
    """Two panels, accuracy against iterations and against seconds."""
    lines = {
        "plain": {"color": style.EXACT_RANK, "label": "plain"},
        "deep": {"color": style.ORIGINAL, "label": "+ deep linear"},
        "compressed": {"color": style.COMPRESSED, "label": rf"+ compressed, $\hat{{r}}={settings['rank']}$"},
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
    by_iteration.set(xlim=(0, settings["steps"]), ylim=(0.8, 1.0), xlabel="iteration", ylabel="test accuracy")
    by_second.set(xscale="log", xlabel="seconds, measured, without compilation")
    style.legend_above(figure, handles)
    return figure
