"""The reduced network, lifted back, is the full network in every layer: to rounding, at all times.

Source: docs/theory.md 3.2. The largest relative difference `‖W_l − lift(z)_l‖_F / ‖W_l‖_F` of any
layer, between a full, dense run and a run of its reduction to width `2r`. The law is exact for
every optimizer that rotates with the weights. Two controls must break it: Adam, which divides entry
by entry, and a start that is not orthogonal (Gaussian; reduced from the nearest orthogonal one).
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.lines import Line2D

import lowdim_jax as ld
from figures import networks, style

SETTINGS = {
    "small": {
        "d": 40,
        "r": 4,
        "depth": 3,
        "epsilon": 0.3,
        "learning_rate": 1e-3,
        "steps": 1500,
        "record_every": 30,
        "seed": 0,
    },
    "paper": {
        "d": 100,
        "r": 10,
        "depth": 3,
        "epsilon": 0.3,
        "learning_rate": 4e-4,
        "steps": 3000,
        "record_every": 30,
        "seed": 0,
    },
}
OPTIMIZERS = {
    "plain": lambda rate: ld.SGD(rate),
    "momentum": lambda rate: ld.SGD(rate / 10, momentum=0.9),
    "Nesterov": lambda rate: ld.SGD(rate / 10, momentum=0.9, nesterov=True),
    "weight decay": lambda rate: ld.SGD(rate, weight_decay=0.3),
    "discrepant": lambda rate: ld.SGD(rate / 2, alpha=3.0),
}
CONTROLS = {
    "Adam": lambda rate: optax.adam(3 * rate),
    "Gaussian start": lambda rate: ld.SGD(rate),
}


def compute(settings):
    """For each optimizer: differences `(n, L)` of the layers, and losses `(n,)` of both runs."""
    target = networks.separated_target(settings)
    problem = ld.factorization(target.dense())
    orthogonal = networks.original(settings)
    gaussian = ld.gaussian(
        jax.random.key(settings["seed"] + 2),
        ld.widths(orthogonal),
        scale=settings["epsilon"] / settings["d"] ** 0.5,
    )
    options = {
        "steps": settings["steps"],
        "record_every": settings["record_every"],
        "observe": _itself,
        "throw": True,
    }
    arrays = {}
    for name, build in {**OPTIMIZERS, **CONTROLS}.items():
        optimizer, strict = build(settings["learning_rate"]), name not in CONTROLS
        start = gaussian if name == "Gaussian start" else orthogonal
        reduction = ld.reduce(start, target, strict=strict)
        full = ld.gradient_descent(problem.loss, start, optimizer, **options)
        reduced = ld.reduced_descent(reduction, optimizer, strict=strict, **options)
        arrays["iteration"] = np.asarray(full.t)
        arrays[f"{name}_difference"] = np.asarray(
            _differences(reduction, full.observed, reduced.observed)
        )
        arrays[f"{name}_loss"] = np.asarray(full.losses)
        arrays[f"{name}_reduced_loss"] = np.asarray(reduced.losses)
    return arrays


def _itself(weights):
    return weights


@jax.jit
def _differences(reduction, full, reduced):
    """Relative difference in every record and layer, `(n, L)`."""

    def row(record):
        weights, layers = record
        pairs = zip(weights, reduction.lift(layers), strict=True)
        return jnp.stack(
            [jnp.linalg.norm(dense - lifted) / jnp.linalg.norm(dense) for dense, lifted in pairs]
        )

    return jax.lax.map(row, (full, reduced))


def plot(arrays, settings):
    """Differences on the left, what the runs have learned meanwhile on the right."""
    iteration = arrays["iteration"]
    d, width = settings["d"], 2 * settings["r"]
    looks = {
        "plain": {"color": style.ORIGINAL, "linestyle": "-"},
        "momentum": {"color": "#56B4E9", "linestyle": (0, (6, 1.5))},
        "Nesterov": {"color": style.EXACT_RANK, "linestyle": (0, (3, 1.2))},
        "weight decay": {"color": "#E69F00", "linestyle": (0, (6, 1.5, 1, 1.5))},
        "discrepant": {"color": style.OTHER_RANK, "linestyle": (0, (1.2, 1.2))},
        "Adam": {"color": style.DARK, "linestyle": "-"},
        "Gaussian start": {"color": "#888888", "linestyle": "-"},
    }
    figure = style.new_figure(height=3.9)
    apart, loss = figure.subplots(1, 2, width_ratios=(1.15, 1))
    for name, look in looks.items():
        worst = np.max(arrays[f"{name}_difference"], axis=1)
        label = {"discrepant": "discrepant rates"}.get(name, name)
        apart.plot(iteration, worst, **{**style.MEASURED, **look}, label=label)
        if name == "Gaussian start":
            continue
        unit = arrays[f"{name}_loss"][0]
        wide = {**look, "linestyle": "-", "alpha": 0.55, "linewidth": 4}
        loss.plot(iteration, arrays[f"{name}_loss"] / unit, **wide)
        thin = {**look, "linestyle": style.PREDICTED["linestyle"], "linewidth": 1.4}
        loss.plot(iteration, arrays[f"{name}_reduced_loss"] / unit, **thin)
    apart.set(
        yscale="log",
        xlim=(0, iteration[-1]),
        ylim=(1e-16, 10),
        xlabel="iteration",
        title="Largest relative difference of a layer",
    )
    loss.set(
        yscale="log",
        xlim=(0, iteration[-1]),
        xlabel="iteration",
        title="Loss, relative to its start",
    )
    for axes in (apart, loss):
        style.thousands(axes)
    loss.legend(
        handles=[
            Line2D([], [], color="#888888", linewidth=4, alpha=0.55, label=f"full, width {d}"),
            Line2D(
                [],
                [],
                color="#555555",
                linewidth=1.4,
                linestyle=style.PREDICTED["linestyle"],
                label=f"reduced, width {width}",
            ),
        ],
        loc="upper right",
    )
    figure.legend(*apart.get_legend_handles_labels(), loc="outside upper center", ncols=7)
    return figure
