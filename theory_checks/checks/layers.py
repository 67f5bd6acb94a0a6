"""Layers inside Flax models: surrogates, adapters, cuts, narrow layers and roles against NumPy."""

from functools import cache
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from lowdim_jax import linalg, nn
from lowdim_jax.nn.ranks import ranks_within
from theory_checks.pairs import evidence_of, gap
from theory_checks.reference import networks
from theory_checks.registry import Evidence, check
from theory_checks.setting import Setting

D_IN, HIDDEN, D_OUT, SAMPLES = 5, 4, 3, 12
SCALE, ALPHA = 0.7, 1.5
STEPS = 6


@cache
def _data() -> dict[str, np.ndarray]:
    """Two dense layers, inputs and outputs, one sample a row as Flax has them."""
    rng = np.random.default_rng(12)
    shapes = {"first": (HIDDEN, D_IN), "second": (D_OUT, HIDDEN), "bias": (HIDDEN,), "x": (SAMPLES, D_IN),
              "y": (SAMPLES, D_OUT)}  # fmt: skip
    return {name: rng.standard_normal(shape) for name, shape in shapes.items()}


def _squares(model, x, y):
    return jnp.sum((model(x) - y) ** 2) / 2


def _slope(first: np.ndarray) -> np.ndarray:
    """Negative gradient of the loss by the first layer's matrix, there."""
    data = _data()
    outputs = (data["x"] @ first.T + data["bias"]) @ data["second"].T
    return -data["second"].T @ (outputs - data["y"]).T @ data["x"]


def _model(setting: Setting, first: nnx.Module | None = None) -> Any:
    """The two layers, the first one as given."""
    data, rngs = _data(), nnx.Rngs(0)
    dense: Any = nnx.Linear(D_IN, HIDDEN, param_dtype=setting.dtype, rngs=rngs)
    dense.kernel[...], dense.bias[...] = _cast(setting, data["first"].T), _cast(setting, data["bias"])
    last = nnx.Linear(HIDDEN, D_OUT, use_bias=False, param_dtype=setting.dtype, rngs=rngs)
    last.kernel[...] = _cast(setting, data["second"].T)
    if first is not None:
        first.bias[...] = _cast(setting, data["bias"])  # type: ignore[attr-defined]
    return nnx.Sequential(dense if first is None else first, last)


def _cast(setting: Setting, value: Any) -> jax.Array:
    return jnp.asarray(value, setting.dtype)


@check(
    "library-layers",
    claim="Surrogates, spectral starts, adapters, cuts, narrow layers and roles in Flax models, and what is "
    "measured of their updates, are those of matrices in NumPy.",
    source="1.1, 1.2, 1.3, 1.4, 3.8",
    controls={"of a layer that is not the model's": {"other": 1.0}},
    any_target=False,
    rests_on=("NumPy", "library"),
)
def library_layers(setting: Setting, /, *, other=0.0) -> Evidence:
    pairs = _of_surrogates(setting, other)
    if not other:
        pairs |= _of_adapters(setting) | _of_kinds(setting) | _of_cuts(setting)
        pairs |= _of_training(setting) | _of_updates(setting) | _of_ranks()
    return evidence_of(
        pairs,
        tolerance=setting.rounding(60),
        reason="rounding of products of matrices and of their singular vectors",
        quantity="largest difference relative to the largest entry predicted",
    )


def _of_surrogates(setting: Setting, other: float) -> dict[str, Any]:
    """Gradients by one layer's matrix, and compressed layers that start from them."""
    data = _data()
    batch = _cast(setting, data["x"]), _cast(setting, data["y"])
    model, shifted = _model(setting), data["first"] + other
    pairs: dict[str, Any] = {
        "surrogate at zero": (
            _slope(np.zeros_like(shifted) + other), nn.layer_surrogate(model, "layers.0", _squares, *batch)
        ),
        "surrogate where it is": (
            _slope(shifted), nn.layer_surrogate(model, "layers.0", _squares, *batch, at="current")
        ),
        "surrogate at a matrix": (
            _slope(2 * shifted),
            nn.layer_surrogate(model, "layers.0", _squares, *batch, at=_cast(setting, 2 * data["first"])),
        ),
    }  # fmt: skip
    small = nn.CompressedLinear(D_IN, HIDDEN, rank=2, depth=4, param_dtype=setting.dtype, rngs=nnx.Rngs(1))
    for name, at in {"zero": np.zeros_like(shifted), "current": None}.items():
        start = _model(setting, small)
        if at is None:
            at = networks.product([np.asarray(weight, float) for weight in small.weights])
        nn.spectral_start(start, "layers.0", _squares, *batch, scale=SCALE, at=name)
        exact = networks.spectral_start(_slope(at), rank=2, depth=4, scale=SCALE)
        for layer, (a, b) in enumerate(zip(_up_to_signs(exact), _up_to_signs(small.weights), strict=True), 1):
            pairs[f"spectral start at {name}, part {layer}"] = a, b
    return pairs


def _up_to_signs(weights) -> list[np.ndarray]:
    """What of outer factors does not depend on the signs of singular vectors, and the middle ones."""
    first, *middle, last = (np.asarray(weight, float) for weight in weights)
    return [first.T @ first, last @ last.T, last @ first, *middle]


def _of_adapters(setting: Setting) -> dict[str, Any]:
    """Layers plus `α` times factors: at the start, after the factors moved, and merged."""
    data = _data()
    x, y = _cast(setting, data["x"]), _cast(setting, data["y"])
    pairs: dict[str, Any] = {}
    plain = data["x"] @ data["first"].T + data["bias"]
    left, _, right = np.linalg.svd(_slope(data["first"]))
    cases: tuple[tuple[Any, int], ...] = (("last", 2), ("offset", 3), (None, 3))
    for zero, depth in cases:
        model = _model(setting)
        report = nn.adapt(
            model, "layers.0", rank=2, depth=depth, loss=_squares, batch=(x, y), zero=zero, alpha=ALPHA,
            scale=SCALE,
        )  # fmt: skip
        adapted, name = model.layers[0], f"zero={zero}"
        added = ALPHA * SCALE**depth * left[:, :2] @ right[:2]
        start = plain + data["x"] @ added.T * (zero is None)
        pairs[f"adapted at the start, {name}"] = start, adapted(x)
        inward = np.asarray(adapted.delta.inward.kernel[...], float)
        pairs[f"its first factor, {name}"] = SCALE**2 * right[:2].T @ right[:2], inward @ inward.T
        energy = np.linalg.svd(_slope(data["first"]), compute_uv=False) ** 2
        pairs[f"its energy, {name}"] = energy[:2].sum() / energy.sum(), report.layers[0].energy
        pairs[f"its parameters, {name}"] = 2 * (D_IN + HIDDEN) + (depth - 2) * 4, report.parameters
        rng = np.random.default_rng(depth)
        move = rng.standard_normal((2, HIDDEN))
        adapted.delta.outward[...] = adapted.delta.outward[...] + _cast(setting, move)
        between = np.eye(2) * SCALE if depth == 3 else np.eye(2)
        moved = data["first"] + (added if zero is None else 0) + ALPHA * (inward @ between @ move).T
        pairs[f"adapted after a move, {name}"] = data["x"] @ moved.T + data["bias"], adapted(x)
        pairs[f"layers merged, {name}"] = 1, nn.merge(model)
        pairs[f"merged, {name}"] = moved.T, model.layers[0].kernel[...]
        pairs[f"bias of the merged, {name}"] = data["bias"], model.layers[0].bias[...]
    model = _model(setting)
    nn.adapt(model, "layers.0", rank=2, start="random", zero=None, scale=SCALE, rngs=nnx.Rngs(3))
    inward = model.layers[0].delta.inward.kernel[...]
    pairs["random factors"] = SCALE**2 * np.eye(2), inward.T @ inward
    # Identical halves leave no noise: every component of the surrogate stands above it.
    twice = tuple(jnp.concatenate([part, part]) for part in (x, y))
    model = _model(setting)
    found = nn.adapt(model, "layers.0", rank="noise", loss=_squares, batch=twice)
    pairs["rank above no noise"] = 3, min(3, found.layers[0].rank)
    return pairs


def _of_kinds(setting: Setting) -> dict[str, Any]:
    """Adapted layers of every kind, beside Flax's own with the kernel that the factors amount to."""
    rngs = nnx.Rngs(4)
    options: dict[str, Any] = {"param_dtype": setting.dtype, "rngs": rngs}
    rng = np.random.default_rng(13)
    floats = {name: _cast(setting, rng.standard_normal(shape)) for name, shape in {
        "conv": (2, 5, 5, 3), "general": (2, 3, 4), "einsum": (2, 5, 4)}.items()}  # fmt: skip
    cases = {
        "conv": (nnx.Conv(3, 4, (2, 3), **options), floats["conv"]),
        "general": (nnx.LinearGeneral((3, 4), (2, 3), axis=(-2, -1), **options), floats["general"]),
        "einsum": (nnx.Einsum("abc,dcf->abdf", (3, 4, 2), (3, 2), **options), floats["einsum"]),
        "embed": (nnx.Embed(6, 4, **options), jnp.asarray([[0, 3], [5, 1]])),
    }
    pairs: dict[str, Any] = {}
    for name, (layer, inputs) in cases.items():
        model = nnx.Sequential(layer)
        kernel = "embedding" if name == "embed" else "kernel"
        before = np.asarray(getattr(layer, kernel)[...], float)
        nn.adapt(model, "layers.0", rank=2, depth=3, start="random", zero=None, alpha=ALPHA,
                 rngs=nnx.Rngs(5))  # fmt: skip
        adapted: Any = model.layers[0]
        parts = [getattr(adapted.delta.inward, kernel)[...], adapted.delta.middle[0][...],
                 adapted.delta.outward[...]]  # fmt: skip
        first, middle, last = (np.asarray(part, float) for part in parts)
        axes = {"einsum": "cr,rs,sdf->dcf"}.get(name, "...r,rs,s{}->...{}")
        tail = "xy"[: last.ndim - 1]
        added = np.einsum(axes.format(tail, tail), first, middle, last)
        whole: Any = nnx.clone(layer)
        getattr(whole, kernel)[...] = _cast(setting, before + ALPHA * added)
        pairs[f"adapted {name}"] = whole(inputs), adapted(inputs)
        nn.merge(model)
        pairs[f"merged {name}"] = before + ALPHA * added, getattr(model.layers[0], kernel)[...]
        nn.compress(model, "layers.0", rank=2, depth=3)
        matrix = _as_matrix(name, before + ALPHA * added)
        left, sigma, right = np.linalg.svd(matrix, full_matrices=False)
        found = model.layers[0](inputs)
        nn.merge(model)
        plain: Any = model.layers[0]
        cut = _as_matrix(name, np.asarray(getattr(plain, kernel)[...], float))
        pairs[f"cut {name}"] = left[:, :2] * sigma[:2] @ right[:2], cut
        pairs[f"outputs of the cut {name}"] = plain(inputs), found
    return pairs


def _as_matrix(name: str, kernel: np.ndarray) -> np.ndarray:
    """Outputs by inputs."""
    if name == "einsum":
        return kernel.transpose(0, 2, 1).reshape(-1, kernel.shape[1])
    outputs = {"conv": 1, "embed": 1, "general": 2}[name]
    return kernel.reshape(-1, int(np.prod(kernel.shape[-outputs:]))).T


def _of_cuts(setting: Setting) -> dict[str, Any]:
    """Layers of least rank error: of the matrix, and of the outputs on a batch; balanced factors."""
    data = _data()
    x = _cast(setting, data["x"])
    left, sigma, right = np.linalg.svd(data["first"], full_matrices=False)
    # In the metric of the inputs: W cut in W (XᵀX)^{1/2}.
    values, vectors = np.linalg.eigh(data["x"].T @ data["x"])
    root = vectors * np.sqrt(values) @ vectors.T
    u, s, vt = np.linalg.svd(data["first"] @ root, full_matrices=False)
    exact = {
        "of the matrix": (left[:, :2] * sigma[:2] @ right[:2], sigma**2, ()),
        "of the outputs": (u[:, :2] * s[:2] @ vt[:2] @ np.linalg.inv(root), s**2, (x,)),
    }
    pairs: dict[str, Any] = {}
    for name, (matrix, energy, batch) in exact.items():
        model = _model(setting)
        report = nn.compress(model, "layers.0", rank=2, depth=3, batch=batch)
        weights = [np.asarray(weight, float) for weight in model.layers[0].weights]
        outputs, share = data["x"] @ matrix.T + data["bias"], energy[:2].sum() / energy.sum()
        found = (networks.product(weights), model.layers[0](x), report.layers[0].energy)
        for what, exact_one, one in zip(("cut", "outputs of the cut", "energy of the cut"),
                                        (matrix, outputs, share), found, strict=True):  # fmt: skip
            if batch:  # moments of inputs are summed in float32
                pairs[f"{what} {name}"] = True, gap(exact_one, one) < 1e-5
            else:
                pairs[f"{what} {name}"] = exact_one, one
        for layer, (w, v) in enumerate(pairwise(weights), 1):
            pairs[f"balance of layer {layer}, cut {name}"] = w @ w.T, v.T @ v
        chosen = nn.compress(_model(setting), "layers.0", batch=batch, energy=0.8)
        count = 1 + int(np.sum(np.cumsum(energy) / energy.sum() < 0.8))
        pairs[f"rank of 80% energy {name}"] = count, chosen.layers[0].rank
    one = nn.compress_layer(_model(setting).layers[0], rank=2, depth=2)
    pairs["one layer cut"] = exact["of the matrix"][0].T, one.merge().kernel[...]
    drawn = nn.DeepLinear(D_IN, HIDDEN, depth=3, param_dtype=setting.dtype, rngs=nnx.Rngs(6))
    scale = (HIDDEN / D_IN / (HIDDEN / D_IN)) ** (1 / 6)  # ε^{2L} Π min(1, d_l / d_{l−1}) = d_L / d_0
    pairs["scale of a deep layer"] = scale**2 * np.eye(HIDDEN), drawn.weights[0] @ drawn.weights[0].T
    small = nn.CompressedLinear(D_IN, HIDDEN, rank=2, param_dtype=setting.dtype, rngs=nnx.Rngs(7))
    root_scale = (HIDDEN / 2) ** (1 / 3)
    pairs["scale of a compressed one"] = root_scale * np.eye(2), small.weights[2].T @ small.weights[2]
    pairs["its middle"] = root_scale**0.5 * np.eye(2), small.weights[1]
    return pairs


def _of_training(setting: Setting) -> dict[str, Any]:
    """Steps of descent of models in Flax: rates by role, and a wide layer beside its narrow one."""
    data = _data()
    x, y = _cast(setting, data["x"]), _cast(setting, data["y"])
    problem = networks.regression(data["x"].T, data["y"].T)
    pairs: dict[str, Any] = {}
    options: dict[str, Any] = {"use_bias": False, "param_dtype": setting.dtype}
    deep = nn.DeepLinear(D_IN, D_OUT, depth=3, rngs=nnx.Rngs(8), **options)
    start = [np.asarray(weight, float) for weight in deep.weights]
    rule = nn.partition(
        nnx.Sequential(deep), outer=optax.sgd(0.03), middle=optax.sgd(0.01), other=optax.sgd(0.0)
    )
    _descend(nnx.Sequential(deep), rule, x, y)
    history = networks.descent(problem, start, rate=0.01, alpha=3.0, steps=STEPS)
    for layer, (a, b) in enumerate(zip(history[-1], deep.weights, strict=True), 1):
        pairs[f"rates by role, layer {layer}"] = a, b
    wide = nn.DeepLinear(D_IN, D_OUT, depth=3, hidden=15, rngs=nnx.Rngs(9), **options)
    start = [np.asarray(weight, float) for weight in wide.weights]
    narrow = nn.narrow_layer(wide)
    pairs["narrow width"] = [D_IN + D_OUT] * 2, [factor.shape[0] for factor in narrow.factors[:-1]]
    rule = optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.01, momentum=0.8))
    _descend(nnx.Sequential(narrow), rule, x, y)
    history = networks.descent(problem, start, rate=0.01, momentum=0.8, decay=0.1, steps=STEPS)
    pairs["narrow layer after training"] = networks.product(history[-1]), narrow.kernel.T
    return pairs


def _descend(model: nnx.Module, rule: optax.GradientTransformation, x, y) -> None:
    optimizer = nnx.Optimizer(model, rule, wrt=nnx.Param)
    for _ in range(STEPS):
        optimizer.update(model, _gradient(model, x, y))


_gradient = nnx.jit(nnx.grad(_squares))


def _of_updates(setting: Setting) -> dict[str, Any]:
    """Shares of energy and angles of updates."""
    rng = np.random.default_rng(14)
    a, b = rng.standard_normal((2, 5, 4))
    first, second = (linalg.svd(_cast(setting, matrix)) for matrix in (a, b))
    (u, s, vt), (p, _, qt) = np.linalg.svd(a, full_matrices=False), np.linalg.svd(b, full_matrices=False)
    inside = p[:, :2].T @ a @ qt[:2].T
    angles = [np.arccos(np.clip(np.linalg.svd(g, compute_uv=False), 0, 1))[::-1]
              for g in (u[:, :2].T @ p[:, :2], vt[:2] @ qt[:2].T)]  # fmt: skip
    model = _model(setting)
    before = nn.matrices(model)
    model.layers[0].kernel[...] = model.layers[0].kernel[...] + _cast(setting, a[:, :4])
    moved = nn.updates(before, nn.matrices(model))
    return {
        "energy of the largest": (np.sum(s[:2] ** 2) / np.sum(s**2), nn.top_energy(first, 2)),
        "energy within another": (np.sum(inside**2) / np.sum(a**2), nn.energy_within(first, second, 2)),
        "turn": (np.max(angles, axis=0), nn.turn(first, second, 2)),
        "matrices": (_data()["first"], before["layers.0"]),
        "update": (a[:, :4].T, moved["layers.0"].dense()),
        "no update": (np.zeros((D_OUT, HIDDEN)), moved["layers.1"].dense()),
    }


def _of_ranks() -> dict[str, Any]:
    """Ranks for a share of energy, and for a budget of parameters, worked by hand."""
    energies = {"a": np.array([9.0, 4.0, 0.1]), "b": np.array([5.0, 3.0, 0.1])}
    shapes, copies = {"a": (3, 3), "b": (3, 9)}, {"a": 1, "b": 2}
    by_energy = ranks_within(energies, shapes, copies, depth=2, energy=0.9)
    # Rank 1 costs 6 and 24; the second component 4/6 a parameter of a, 3/24 of b; a third of a 0.1/6.
    budgets = {31: (1, 1), 36: (2, 1), 60: (2, 2), 66: (3, 2)}
    pairs: dict[str, Any] = {"ranks of 90% energy": ([2, 2], list(by_energy.values()))}
    for budget, ranks in budgets.items():
        found = ranks_within(energies, shapes, copies, depth=2, budget=budget)
        pairs[f"ranks within {budget} parameters"] = ranks, tuple(found.values())
    deeper = ranks_within(energies, shapes, copies, depth=3, budget=42)  # of a 6 + 1, then 6 + 3; of b 24 + 2
    pairs["ranks within 42 parameters, L = 3"] = (2, 1), tuple(deeper.values())
    return pairs
