"""The original network's outer layers turn towards the target's leading singular vectors.

Source: the paper's alignment ("power method") figure; docs/theory.md 3.1 and 6. The left singular
vector `u_{L,1}` of the last layer and the right singular vector `v_{1,1}` of the first are compared
with `u*_1` and `v*_1`; the compressed network starts with both at 1.

All singular values of an orthogonal layer are equal, so at `t = 0` these vectors are arbitrary and
are not drawn. The first gradient splits them: with `R = Q_L ⋯ Q_1`, the last layer is
`ε (I + t ε^{L−2} Φ Rᵀ) Q_L` to first order, whose leading left singular vector is the leading
eigenvector of `Φ Rᵀ + R Φᵀ` (dashed). In a wide network that lies halfway between `u*_1` and
`R v*_1`, its alignment with either `1/√2`: the climb from there to 1 is what the compressed network
is spared.
"""

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import lowdim_jax as ld
from figures import runs, style
from figures.protocol import Arrays, Settings


def compute(settings: Settings) -> Arrays:
    """Alignments `(n,)` of the outer layers, relative gaps of their singular values, and `σ_1`."""
    target = runs.separated_target(settings)
    problem = ld.factorization(target.dense())
    start = runs.original(settings)

    def observe(weights: ld.Weights) -> dict[str, jax.Array]:
        last = ld.spectra.network_svd(weights[-1:])
        first = ld.spectra.network_svd(weights[:1])
        return {
            "left": jnp.abs(last.left[:, 0] @ target.left[:, 0]),
            "right": jnp.abs(first.right[:, 0] @ target.right[:, 0]),
            "gap": last.singular_values[0] / last.singular_values[1] - 1,
            "top": ld.spectra.singular_values(weights, rank=1)[0],
        }

    trajectory = ld.gradient_descent(
        problem.loss,
        start,
        ld.GradientDescent(settings["learning_rate"]),
        steps=settings["steps"],
        record_every=settings["record_every"],
        observe=observe,
        throw=True,
    )
    rotation = ld.end_to_end(start) / settings["scale"] ** settings["depth"]
    tilt = target.dense() @ rotation.T
    leading = jnp.linalg.eigh(tilt + tilt.T)[1][:, -1]
    mirrored = rotation.T @ leading  # the same vector, seen from the input
    return {
        "iteration": np.asarray(trajectory.steps),
        **{name: np.asarray(value) for name, value in trajectory.observed.items()},
        "target_top": np.asarray(target.singular_values[0]),
        "left_start": np.asarray(jnp.abs(leading @ target.left[:, 0])),
        "right_start": np.asarray(jnp.abs(mirrored @ target.right[:, 0])),
    }


def plot(arrays: Arrays, settings: Settings) -> Figure:
    """Alignment on the left, what the network has learned meanwhile on the right."""
    iteration = arrays["iteration"][1:]
    figure = style.new_figure(height=3.4)
    angle, learned = figure.subplots(1, 2)
    angle.plot(
        iteration,
        arrays["left"][1:],
        color=style.ORIGINAL,
        **style.MEASURED,
        label=r"$|\langle u_{L,1}, u^*_1\rangle|$, last layer",
    )
    angle.plot(
        iteration,
        arrays["right"][1:],
        color="#56B4E9",
        **{**style.MEASURED, "linestyle": (0, (1, 1.5)), "linewidth": 2.4},
        label=r"$|\langle v_{1,1}, v^*_1\rangle|$, first layer",
    )
    angle.axhline(1, color=style.COMPRESSED, linewidth=1.6, zorder=1, label="compressed, both")
    for side in ("left", "right"):
        angle.plot(
            iteration[[0, len(iteration) // 4]],
            [arrays[f"{side}_start"]] * 2,
            **style.PREDICTED,
            label="after the first gradient, predicted" if side == "left" else None,
        )
    angle.set(
        xlim=(0, iteration[-1]),
        ylim=(0.5, 1.03),
        xlabel="iteration",
        ylabel="alignment",
        title="Leading singular vectors",
    )
    angle.legend(loc="lower right")
    style.thousands(angle)

    learned.plot(
        iteration,
        arrays["top"][1:] / arrays["target_top"],
        color=style.ORIGINAL,
        **style.MEASURED,
        label=r"$\sigma_1(W)\,/\,\sigma^*_1$",
    )
    learned.plot(
        iteration,
        arrays["gap"][1:],
        color="#777777",
        linewidth=1.4,
        linestyle=(0, (6, 1.5, 1, 1.5)),
        label=r"$\sigma_1/\sigma_2-1$ of the last layer",
    )
    learned.set(
        xlim=(0, iteration[-1]),
        yscale="log",
        xlabel="iteration",
        title="What the network has learned meanwhile",
    )
    learned.legend(loc="upper left")
    style.thousands(learned)
    return figure
