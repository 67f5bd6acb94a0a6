"""The original network's outer layers turn towards the target's leading singular vectors.

Source: the paper's alignment ("power method") figure, from the whole matrix and from a part of its entries;
docs/theory.md 3.1 and 6. The left singular vector `u_{L,1}` of the last layer and the right singular vector
`v_{1,1}` of the first are compared with `u*_1` and `v*_1`. The compressed network starts with those of the
surrogate, which are the target's where the whole matrix is known. From a part of the entries the first
singular vector is not one component's all along: while later ones are learned their singular values come
close to the first, which turns among them, and settles when all are learned.

All singular values of an orthogonal layer are equal, so at `t = 0` these vectors are arbitrary and
are not drawn. The first gradient splits them: with `R = Q_L ⋯ Q_1` and `S` the surrogate, the last layer is
`ε (I + t ε^{L−2} S Rᵀ) Q_L` to first order, whose leading left singular vector is the leading
eigenvector of `S Rᵀ + R Sᵀ` (dashed). In a wide network that lies halfway between `u*_1` and
`R v*_1`, its alignment with either `1/√2`: the climb from there to 1 is what the compressed network
is spared.
"""

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import lowdim_jax as ld
from figures import runs, style
from figures.protocol import Arrays, Settings


def compute(settings: Settings) -> Arrays:
    """Alignments `(n,)` of both networks, a layer's gap, and `σ_1`, by part: `p1_left` and so on."""
    arrays = {}
    for observed, steps in zip(settings["observed"], settings["steps"], strict=True):
        found = _of_part({**settings, "observed": observed, "steps": steps})
        arrays |= {f"p{observed:g}_{key}": array for key, array in found.items()}
    return arrays


def select(arrays: Arrays, observed: float) -> Arrays:
    """The arrays of one fraction of observed entries, under names without it."""
    prefix = f"p{observed:g}_"
    return {key.removeprefix(prefix): array for key, array in arrays.items() if key.startswith(prefix)}


def _of_part(settings: Settings) -> Arrays:
    target = runs.separated_target(settings)
    whole = settings["observed"] == 1
    problem = ld.factorization(target.dense()) if whole else runs.problem_of(target, settings)

    def aligned(left: ld.LowRank, right: ld.LowRank) -> dict[str, jax.Array]:
        return {
            "left": jnp.abs(left.left[:, 0] @ target.left[:, 0]),
            "right": jnp.abs(right.right[:, 0] @ target.right[:, 0]),
        }

    def of_layers(weights: ld.Weights) -> dict[str, jax.Array]:
        last, first = ld.spectra.network_svd(weights[-1:]), ld.spectra.network_svd(weights[:1])
        return {
            **aligned(last, first),
            "gap": last.singular_values[0] / last.singular_values[1] - 1,
            "top": ld.spectra.singular_values(weights, rank=1)[0],
        }

    def of_product(weights: ld.Weights) -> dict[str, jax.Array]:
        parts = ld.spectra.network_svd(weights)
        return aligned(parts, parts)

    start = runs.original(settings)
    original = runs.descent(problem, start, settings, observe=of_layers)
    compressed = runs.descent(problem, runs.compressed(problem, settings), settings, observe=of_product)
    rotation = ld.end_to_end(start) / settings["scale"] ** settings["depth"]
    tilt = problem.surrogate().dense() @ rotation.T
    leading = jnp.linalg.eigh(tilt + tilt.T)[1][:, -1]
    mirrored = rotation.T @ leading  # the same vector, seen from the input
    return {
        "iteration": np.asarray(original.steps),
        **{name: np.asarray(value) for name, value in original.observed.items()},
        **{f"compressed_{name}": np.asarray(value) for name, value in compressed.observed.items()},
        "target_top": np.asarray(target.singular_values[0]),
        "left_start": np.asarray(jnp.abs(leading @ target.left[:, 0])),
        "right_start": np.asarray(jnp.abs(mirrored @ target.right[:, 0])),
    }


def plot(arrays: Arrays, settings: Settings) -> Figure:
    """A row a fraction of entries: alignment, and what the network has learned meanwhile."""
    figure = style.new_figure(height=0.4 + 3.0 * len(settings["observed"]))
    rows = figure.subplots(len(settings["observed"]), 2, squeeze=False)
    for (angle, learned), observed in zip(rows, settings["observed"], strict=True):
        part = "the whole matrix" if observed == 1 else f"{observed:.0%} of the entries"
        _draw_angles(angle, select(arrays, observed), part)
        _draw_learned(learned, select(arrays, observed))
    rows[0][0].legend(loc="lower right")
    rows[0][1].legend(loc="upper left")
    return figure


def _draw_angles(axes: Axes, arrays: Arrays, part: str) -> None:
    iteration = arrays["iteration"][1:]
    looks = {
        "left": {"color": style.ORIGINAL, "label": r"$|\langle u_{L,1}, u^*_1\rangle|$, last layer"},
        "right": {
            "color": style.SECOND,
            "linestyle": (0, (1, 1.5)),
            "label": r"$|\langle v_{1,1}, v^*_1\rangle|$, first layer",
        },
    }
    for side, look in looks.items():
        axes.plot(iteration, arrays[side][1:], **style.THIN, **look)
        axes.plot(
            iteration,
            arrays[f"compressed_{side}"][1:],
            color=style.COMPRESSED,
            **style.THICK,
            linestyle=look.get("linestyle", "-"),
            label="compressed, left" if side == "left" else "compressed, right",
        )
    for side in looks:
        axes.plot(
            iteration[[0, len(iteration) // 4]],
            [arrays[f"{side}_start"]] * 2,
            **style.PREDICTED,
            label="after the first gradient, predicted" if side == "left" else None,
        )
    least = min(
        min(arrays[f"{side}_start"], *arrays[side][1:], *arrays[f"compressed_{side}"][1:]) for side in looks
    )
    axes.set(
        xlim=(0, iteration[-1]),
        ylim=(max(0.0, min(0.5, least - 0.03)), 1.03),
        xlabel="iteration",
        ylabel="alignment",
        title=f"Leading singular vectors, {part}",
    )
    style.thousands(axes)


def _draw_learned(axes: Axes, arrays: Arrays) -> None:
    iteration = arrays["iteration"][1:]
    axes.plot(
        iteration,
        arrays["top"][1:] / arrays["target_top"],
        color=style.ORIGINAL,
        **style.MEASURED,
        label=r"$\sigma_1(W)\,/\,\sigma^*_1$",
    )
    axes.plot(
        iteration,
        arrays["gap"][1:],
        color=style.GREY,
        linewidth=1.4,
        linestyle=(0, (6, 1.5, 1, 1.5)),
        label=r"$\sigma_1/\sigma_2-1$ of the last layer",
    )
    axes.set(
        xlim=(0, iteration[-1]),
        yscale="log",
        xlabel="iteration",
        ylabel="ratio",
        title="What the original has learned meanwhile",
    )
    style.thousands(axes)
