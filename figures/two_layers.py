"""Networks of two layers, trained, over their closed form: balanced, λ-balanced, and with a bottleneck.

Source: docs/theory.md 2.7. Gradient flow of whole matrices from orthogonal layers; nothing of the prediction
is integrated: each curve is evaluated at its times. With scales that differ the start is λ-balanced,
`λ = b² − a²`, and the components rise earlier and closer to each other.
"""

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

import lowdim_jax as ld
from figures import style
from figures.protocol import Arrays, Settings


def compute(settings: Settings) -> Arrays:
    """For each panel: singular values of the trained network and of the closed form, `(times, r)`."""
    d, sigma = settings["d"], jnp.array(settings["targets"])
    key_target, key_start = jax.random.split(jax.random.key(settings["seed"]))
    target = ld.random_target(key_target, (d, d), sigma)
    times = jnp.linspace(0.0, settings["end"], settings["times"])
    arrays = {"times": np.asarray(times)}
    for number, (inner_scale, outer_scale, hidden) in enumerate(settings["panels"]):
        inner, outer = ld.orthogonal(key_start, (d, hidden, d), scale=1.0)
        weights = (inner_scale * inner, outer_scale * outer)
        run = ld.gradient_flow(
            ld.factorization(target.dense()), weights, times, rtol=settings["rtol"], observe=ld.end_to_end
        )
        exact = ld.theory.two_layer_flow(times, *weights, target.dense()).end_to_end
        for name, matrices in (("measured", run.observed), ("predicted", exact)):
            values = np.linalg.svd(np.asarray(matrices), compute_uv=False)
            arrays[f"{number}_{name}"] = values[:, : len(sigma)]
    return arrays


def plot(arrays: Arrays, settings: Settings) -> Figure:
    """Singular values against time, one panel a start."""
    figure = style.new_figure(height=3.4)
    panels = settings["panels"]
    colours = style.shades(style.ORIGINAL, len(settings["targets"]))
    for number, axes in enumerate(figure.subplots(1, len(panels), sharey=True)):
        inner, outer, hidden = panels[number]
        for i, colour in enumerate(colours):
            axes.plot(arrays["times"], arrays[f"{number}_measured"][:, i], color=colour, **style.MEASURED)
            axes.plot(arrays["times"], arrays[f"{number}_predicted"][:, i], **style.PREDICTED)
        balance = outer**2 - inner**2
        axes.set(title=rf"$\lambda={balance:.3g}$, {hidden} hidden units", xlabel="flow time $t$")
    figure.axes[0].set_ylabel("singular values of $W_2W_1$")
    style.legend_above(
        figure,
        [
            Line2D([], [], color=style.ORIGINAL, **style.MEASURED, label="trained"),
            Line2D([], [], **style.PREDICTED, label="closed form"),
        ],
    )
    return figure
