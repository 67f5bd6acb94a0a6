"""Test accuracy and time of the compressed network before a classifier, against its width r̂.

Source: docs/theory.md 1.2; what the paper's overestimated rank costs and gains in a nonlinear network.
Setting and clock are those of `nonlinear-accuracy`; the deep linear network it stands in for is drawn
as a horizontal line. Accuracies are means over seeds with one standard deviation; the time is the
shortest over seeds.
"""

import numpy as np
from matplotlib.figure import Figure

from figures import nonlinear_accuracy, style
from figures.protocol import Arrays, Settings
from lowdim_jax.nn import reference


def compute(settings: Settings) -> Arrays:
    """Final accuracies and seconds, `(ranks, seeds)`, and `(seeds,)` for the deep network."""
    images = reference.load_images(settings["data"] or None)
    runs = [
        nonlinear_accuracy.train("compressed", images, settings, rank=rank, spectral=True)
        for rank in settings["ranks"]
    ]
    deep = nonlinear_accuracy.train("deep", images, settings, rank=None, spectral=False)
    return {
        "accuracy": np.array([accuracies[:, -1] for accuracies, _ in runs]),
        "seconds": np.array([seconds[:, -1] for _, seconds in runs]),
        "deep_accuracy": deep[0][:, -1],
        "deep_seconds": deep[1][:, -1],
    }


def plot(arrays: Arrays, settings: Settings) -> Figure:
    """Two panels over r̂: accuracy, and seconds of the whole training."""
    figure = style.new_figure(height=3.3)
    quality, cost = figure.subplots(1, 2)
    ranks, look = settings["ranks"], {"color": style.COMPRESSED, "marker": "o", "markersize": 4}
    deep, values = arrays["deep_accuracy"], arrays["accuracy"]
    quality.axhspan(deep.mean() - deep.std(), deep.mean() + deep.std(), color=style.ORIGINAL, alpha=0.15)
    quality.axhline(deep.mean(), color=style.ORIGINAL, label="deep linear", linewidth=2)
    quality.errorbar(
        ranks, values.mean(axis=1), yerr=values.std(axis=1), capsize=2, label="compressed",
        **look, **style.MEASURED,
    )
    cost.axhline(arrays["deep_seconds"].min(), color=style.ORIGINAL, linewidth=2)
    cost.plot(ranks, arrays["seconds"].min(axis=1), **look, **style.MEASURED)
    quality.set_ylabel(f"test accuracy after {settings['steps']} steps")
    cost.set_ylabel("seconds, without compilation")
    cost.set_ylim(0, None)
    for axes in (quality, cost):
        axes.axvline(9, **style.PREDICTED, label="classes − 1")
        axes.set(xscale="log", xlabel=r"width $\hat{r}$ of the compressed network")
        axes.set_xticks(ranks, [str(rank) for rank in ranks])
        axes.minorticks_off()
    handles = figure.axes[0].get_legend_handles_labels()[0]
    style.legend_above(figure, handles, title="mean and one standard deviation over seeds")
    return figure
