"""Statement 3.7 of docs/theory.md: one component of the original network by three scalars, at any width."""

from dataclasses import replace

import numpy as np

from lowdim_jax import theory
from theory_checks.pairs import evidence_of
from theory_checks.reference import networks
from theory_checks.reference.random_matrices import haar
from theory_checks.registry import Curve, Evidence, check
from theory_checks.setting import Setting

CASES = ((2, 0.1), (3, 0.2), (4, 0.4))
"""Depths and scales."""
WIDTH, SIGMA = 5, 2.0
TIMES = np.array([0.0, 0.5, 1.0, 2.0, 3.0, 5.0, 8.0, 12.0, 80.0])


@check(
    "original-mode",
    claim="With a target of rank one the original network is three scalars: u*ᵀWv*, its largest and smallest "
    "singular value and its alignment with the target, at any overlap c of u* and v* in the start.",
    source="2.7, 3.7",
    controls={
        "the overlap dropped": {"overlap_factor": 0.0, "cases": ((3, 0.2),)},
        "layers of unequal scales": {"stretch": 1.5, "cases": ((3, 0.2),)},
    },
    any_target=False,
    rests_on=("library", "reference"),
)
def original_mode(setting: Setting, /, *, overlap_factor=1.0, stretch=1.0, cases=CASES) -> Evidence:
    pairs, curves = {}, []
    for depth, scale in cases:
        rng = np.random.default_rng(depth)
        rotations = [haar(rng, WIDTH) for _ in range(depth)]
        left, right = haar(rng, WIDTH, 1)[:, 0], haar(rng, WIDTH, 1)[:, 0]
        overlap = float(left @ networks.product(rotations) @ right)
        layers = [scale * rotation for rotation in rotations]
        layers[0], layers[1] = stretch * layers[0], layers[1] / stretch
        run = networks.flow(
            networks.factorization(SIGMA * np.outer(left, right)), layers, TIMES.tolist()
        )
        products = [networks.product(weights) for weights in run]
        parts = [np.linalg.svd(product) for product in products]
        mode = theory.original_mode(
            np.asarray(TIMES, setting.dtype), SIGMA, depth=depth, scale=scale,
            overlap=overlap_factor * overlap,
        )
        measured = (
            [left @ product @ right for product in products],
            [values[0] for _, values, _ in parts],
            [values[-1] for _, values, _ in parts],
        )
        named = zip(("u*ᵀWv*", "largest", "smallest"), mode[:3], measured, strict=True)
        pairs |= {f"{name}, L = {depth}": (value, np.array(found)) for name, value, found in named}
        pairs[f"alignment, L = {depth}"] = (  # at the start every direction is a singular vector
            mode.alignment[1:], np.array([abs(u[:, 0] @ left) for u, _, _ in parts[1:]])
        )
        curves.append(Curve(f"L = {depth}, c = {overlap:.2f}: u*ᵀWv* and the largest singular value", TIMES,
                            np.stack(mode[:2], axis=1), np.stack(measured[:2], axis=1),
                            ylabel="singular value"))
    found = evidence_of(
        pairs,
        tolerance=1e-9 if setting.dtype == "float64" else setting.rounding(100),
        reason="SciPy's solver, which is asked for 1e-12 a step" if setting.dtype == "float64"
        else "float32's rounding over some hundred steps",
        quantity="largest difference relative to the largest value",
    )
    return replace(found, curves=tuple(curves))


WIDTHS, DRAWS, STEPS, SMALL = (16, 64, 256), 400, 500, 0.02


@check(
    "finite-width-spread",
    claim="At width d the original network's wait is spread about κ_L times the compressed one's by "
    "(L−2)(k²−1)/k^L / √d, relatively; k = κ_L^{1/(L−2)}.",
    source="3.4, 3.7",
    controls={"a spread that falls like 1/d": {"power": 1.0}},
    any_target=False,
    rests_on=("theorem", "NumPy"),
)
def finite_width_spread(setting: Setting, /, *, power=0.5) -> Evidence:
    del setting  # two-wide networks in float64
    depth, k = 3, theory.escape_ratio(3)
    constant = (depth - 2) * (k**2 - 1) / k**depth
    rng = np.random.default_rng(0)
    predicted, measured, errors = {}, {}, []
    for width in WIDTHS:
        turned = rng.standard_normal((DRAWS, width))  # R_Lᵀu* of Haar R_L; v* is the first axis
        overlaps = turned[:, 0] / np.linalg.norm(turned, axis=1)
        waits = _waits(np.append(overlaps, 0.0))
        spread = float(np.sqrt(np.mean((waits[:-1] / waits[-1] - 1) ** 2)))
        expected = constant * (width**-power * WIDTHS[0] ** (power - 0.5))
        predicted[f"relative spread, d = {width}"] = expected
        measured[f"relative spread, d = {width}"] = spread
        errors.append(abs(spread / expected - 1))
    return Evidence(
        errors=np.array([max(errors)]),
        tolerance=5 / (2 * DRAWS) ** 0.5 + 2 / WIDTHS[0],
        reason=f"five standard errors of a standard deviation of {DRAWS} draws, and the next order in 1/d",
        quantity="largest relative deviation of the spread of waits",
        predicted=predicted,
        measured=measured,
    )


def _waits(overlaps):
    """Times to half the target, of networks of width two with these overlaps, by Runge–Kutta steps."""
    sine = np.sqrt(1 - overlaps**2)
    target = np.zeros((len(overlaps), 2, 2))
    target[:, 0, 0], target[:, 1, 0] = overlaps, sine
    layers = np.broadcast_to(SMALL * np.eye(2), (3, len(overlaps), 2, 2))
    guess = theory.escape_ratio(3) / SMALL

    def velocity(z):
        first, second, third = z
        rest = target - third @ second @ first
        return np.array([
            (third @ second).transpose(0, 2, 1) @ rest,
            third.transpose(0, 2, 1) @ rest @ first.transpose(0, 2, 1),
            rest @ (second @ first).transpose(0, 2, 1),
        ])

    h = 2 * guess / STEPS
    along = []
    for _ in range(STEPS):
        along.append(np.sum(target * (layers[2] @ layers[1] @ layers[0]), axis=(1, 2)))
        a = velocity(layers)
        b = velocity(layers + h / 2 * a)
        c = velocity(layers + h / 2 * b)
        layers = layers + h / 6 * (a + 2 * b + 2 * c + velocity(layers + h * c))
    along = np.array(along)
    after = np.argmax(along > 0.5, axis=0)
    columns = np.arange(len(overlaps))
    low, high = along[after - 1, columns], along[after, columns]
    return h * (after - 1 + (0.5 - low) / (high - low))
