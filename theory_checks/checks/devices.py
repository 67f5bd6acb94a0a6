"""Problems spread over the devices that there are, against loops over entries on none."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import lowdim_jax as ld
from lowdim_jax import distributed
from lowdim_jax.distributed import sharded_completion
from theory_checks.checks.losses import start_of
from theory_checks.pairs import evidence_of
from theory_checks.reference import networks
from theory_checks.registry import Evidence, check
from theory_checks.setting import Setting

SHAPE, STEPS = (7, 5), 11  # rows that do not come out even on two devices


@check(
    "spread-over-devices",
    claim="Completion and sensing spread over all devices here have the losses, gradients, surrogates and "
    "training runs of loops over entries and measurements. A CPU is taken as two devices.",
    source="1.3, 1.4",
    controls={"of a matrix twice as large": {"factor": 2.0}},
    any_target=False,
    rests_on=("reference", "library"),
)
def spread_over_devices(setting: Setting, /, *, factor=1.0) -> Evidence:
    mesh = distributed.mesh()
    pairs = _of_completion(setting, mesh, factor) | _of_sensing(setting, mesh, factor)
    return evidence_of(
        pairs,
        tolerance=setting.rounding(STEPS),
        reason=f"rounding of {STEPS} steps",
        quantity=f"largest difference relative to the largest entry predicted, devices: {mesh.size}",
    )


def _of_completion(setting: Setting, mesh, factor: float) -> dict[str, Any]:
    rng = np.random.default_rng(15)
    matrix = factor * rng.standard_normal((SHAPE[0], 2)) @ rng.standard_normal((2, SHAPE[1]))
    mask = rng.random(SHAPE) < 0.7
    mask[2] = False  # a row without any entry
    rows, columns = np.nonzero(mask)
    values = matrix[rows, columns]
    problem = sharded_completion(rows, columns, values.astype(setting.dtype), shape=SHAPE, mesh=mesh)
    exact = networks.observed(rows, columns, values / factor, SHAPE)
    surrogate = np.where(mask, matrix, 0) / np.mean(mask) / factor
    sigma = np.linalg.svd(surrogate, compute_uv=False)
    error = (np.sum((values / factor) ** 2) * (1 - np.mean(mask))) ** 0.5 / np.mean(mask)
    pairs: dict[str, Any] = {
        "fraction": (np.mean(mask), problem.fraction),
        "leading singular values": (sigma[:2], problem.surrogate(2).singular_values),
        "noise level": (error * sum(side**-0.5 for side in SHAPE), problem.surrogate_error()),
    }
    for widths in ((5, 3, 7), (5, 3, 3, 7)):
        start = start_of(*widths)
        given = problem.place([jnp.asarray(layer, setting.dtype) for layer in start])
        loss, slopes = networks.loss_and_gradients(exact, start)
        value, found = jax.jit(jax.value_and_grad(problem.loss))(given)
        name = f"completion, L = {len(start)}"
        pairs[f"loss, {name}"] = loss, value
        for layer, (a, b) in enumerate(zip(slopes, problem.gather(found), strict=True), 1):
            pairs[f"gradient of layer {layer}, {name}"] = a, b
        rule = ld.GradientDescent(0.03, alpha=2.0, momentum=0.5, weight_decay=0.1)
        run = ld.gradient_descent(problem, given, rule, steps=STEPS, record_every=4)
        history = networks.descent(exact, start, rate=0.03, alpha=2.0, momentum=0.5, decay=0.1, steps=STEPS)
        for layer, (a, b) in enumerate(zip(history[-1], problem.gather(run.weights), strict=True), 1):
            pairs[f"layer {layer} after training, {name}"] = a, b
    return pairs


def _of_sensing(setting: Setting, mesh, factor: float) -> dict[str, Any]:
    """Five measurements, which do not come out even on two devices: filled up with zeros."""
    key = jax.random.key(4)
    drawn = ld.gaussian_measurements(key, 5, SHAPE, dtype=setting.dtype)
    stack = distributed.gaussian_measurements(key, 5, SHAPE, mesh=mesh, dtype=setting.dtype)
    labels = np.arange(1.0, 6.0)
    filled = np.zeros(len(stack))
    filled[:5] = labels * factor
    problem = ld.sensing(stack, jnp.asarray(filled, setting.dtype), curvature=1.0)
    exact = networks.sensing(np.asarray(drawn, float), labels, 1.0)
    start = start_of(5, 3, 7)
    loss, slopes = networks.loss_and_gradients(exact, start)
    given = tuple(jnp.asarray(layer, setting.dtype) for layer in start)
    value, found = jax.jit(jax.value_and_grad(problem.loss))(given)
    sides = zip(slopes, found, strict=True)
    pairs = {f"gradient of layer {layer}, sensing": pair for layer, pair in enumerate(sides, 1)}
    padded = np.zeros(stack.shape)
    padded[:5] = np.asarray(drawn)
    return pairs | {"loss, sensing": (loss, value), "measurements": (padded, stack)}
