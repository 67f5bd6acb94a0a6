"""All but 2r singular values of a wide layer share one value, on directions that never turn.

Source: the law of parsimony, docs/theory.md 3.1 and 3.2. One layer of a full, dense network under
gradient descent with weight decay. Of its `d` singular values `r` rise, `r` sink, and `d − 2r`
stay together at `ρ(t)`; the subspaces of those, right and left, are known before training. Dashed:
the reduced network, of width `2r`. Weight decay makes `ρ` visible: without it `ρ` falls only by
the fraction `ε^{2L−2} t`.

All singular values are equal at `t = 0`, so singular vectors are arbitrary there: the leading ones
are compared with those after the first iteration.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

import lowdim_jax as ld
from figures import runs, style
from figures.protocol import Arrays, Settings


def compute(settings: Settings) -> Arrays:
    """Singular values measured and predicted, angles of the bulk and of the leading `r` vectors."""
    r, number = settings["r"], settings["layer"]
    target = runs.separated_target(settings)
    problem, start = ld.factorization(target.dense()), runs.original(settings)
    reduction: Any = ld.reduce(start, target)
    optimizer = ld.GradientDescent(settings["learning_rate"], weight_decay=settings["weight_decay"])
    predicted_bulk = {
        "left": _complement(reduction.bases[number]),
        "right": _complement(reduction.bases[number - 1]),
    }

    def observe(weights: ld.Weights) -> dict[str, jax.Array]:
        left, values, right = jnp.linalg.svd(weights[number - 1])
        vectors = {"left": left, "right": right.T}
        return {
            "values": values,
            **{f"{side}_leading": columns[:, :r] for side, columns in vectors.items()},
            **{
                f"{side}_bulk_angle": ld.linalg.subspace_angles(columns[:, r:-r], predicted_bulk[side])[0]
                for side, columns in vectors.items()
            },
        }

    def observe_reduced(layers: Any) -> dict[str, jax.Array]:
        core, bulk, _ = layers[number - 1]
        return {"core": jnp.linalg.svd(core, compute_uv=False), "bulk": bulk}

    options = {"steps": settings["steps"], "record_every": settings["record_every"], "throw": True}
    full = ld.gradient_descent(problem, start, optimizer, observe=observe, **options)
    reduced = ld.reduced_descent(reduction, optimizer, observe=observe_reduced, **options)
    once = ld.gradient_descent(problem, start, optimizer, steps=1, observe=observe)
    measured = jax.tree.map(np.asarray, full.observed)
    first = jax.tree.map(lambda array: np.asarray(array[-1]), once.observed)
    return {
        "iteration": np.asarray(full.steps),
        "values": measured["values"],
        "predicted_core": np.asarray(reduced.observed["core"]),
        "predicted_bulk": np.asarray(reduced.observed["bulk"]),
        **{f"{side}_bulk_angle": measured[f"{side}_bulk_angle"] for side in predicted_bulk},
        **{
            f"{side}_angle": _angle(measured[f"{side}_leading"], first[f"{side}_leading"])
            for side in predicted_bulk
        },
    }


def _complement(basis: jax.Array) -> jax.Array:
    full, _ = jnp.linalg.qr(basis, mode="complete")
    return full[:, basis.shape[1] :]


def _angle(vectors: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Angles between unit columns up to sign; exact for small ones, unlike the arc cosine."""
    apart, to_mirrored = (np.linalg.norm(vectors - sign * reference, axis=-2) for sign in (1, -1))
    return 2 * np.arcsin(np.minimum(apart, to_mirrored) / 2)


def plot(arrays: Arrays, settings: Settings) -> Figure:
    """Singular values, the same over `ρ`, and how far singular vectors have turned."""
    d, r, number = settings["d"], settings["r"], settings["layer"]
    iteration, values, bulk = arrays["iteration"], arrays["values"], arrays["predicted_bulk"]
    shades = style.shades(style.ORIGINAL, r)
    figure = style.new_figure(height=3.7)
    course, close, angle = figure.subplots(1, 3)

    for axes, unit in ((course, np.ones_like(bulk)), (close, bulk)):
        axes.plot(iteration, values[:, r : d - r] / unit[:, None], color=style.GREY, linewidth=3.2)
        for group in (values[:, :r], values[:, d - r :][:, ::-1]):
            for column, colour in zip(group.T, shades, strict=True):
                axes.plot(iteration, column / unit, color=colour, **style.MEASURED)
        axes.plot(iteration, bulk / unit, **style.PREDICTED)
        axes.set(xlim=(0, iteration[-1]), xlabel="iteration")
        style.thousands(axes)
    close.plot(iteration, arrays["predicted_core"] / bulk[:, None], **style.PREDICTED)
    course.set(yscale="log", title=f"Singular values of layer {number}")
    lowest = np.min(values[:, -1] / bulk)
    close.set(ylim=(lowest - 0.02, 2 - lowest), title=r"Close-up: divided by $\rho(t)$")

    for side, look in (("right", {}), ("left", {"linestyle": (0, (1, 1.3))})):
        for column, colour in zip(arrays[f"{side}_angle"][1:].T, shades, strict=True):
            angle.plot(iteration[1:], column, color=colour, linewidth=1.3, **look)
        unmoved = arrays[f"{side}_bulk_angle"][1:]
        angle.plot(iteration[1:], unmoved, color=style.GREY, linewidth=2.4, **look)
    for height, text in (
        (2e-3, f"{r} leading vectors"),
        (3e-12, f"subspace of the {d - 2 * r}"),
        (1e-6, "right solid, left dotted"),
    ):
        angle.text(0.97 * iteration[-1], height, text, ha="right", va="center")
    angle.set(
        xlim=(0, iteration[-1]),
        yscale="log",
        ylim=(1e-16, 8),
        xlabel="iteration",
        title="Angle turned by singular vectors",
        ylabel="radians",
    )
    style.thousands(angle)
    style.legend_above(
        figure,
        [
            Line2D([], [], color=shades[r // 3], label=f"{r} rise, {r} sink", **style.MEASURED),
            Line2D([], [], color=style.GREY, linewidth=3.2, label=f"{d - 2 * r} stay together"),
            Line2D([], [], **style.PREDICTED, label=f"predicted, width {2 * r}"),
        ],
    )
    return figure
