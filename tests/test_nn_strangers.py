"""Claims on models as strangers build them: shared weights, odd names, other layers, wrong arguments."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lowdim_jax import nn
from lowdim_jax.nn import gradients

X = jnp.asarray(np.random.default_rng(0).standard_normal((5, 4)), "float32")
SCALE = 1.0


def squares(model, x):
    return jnp.sum(model(x) ** 2)


def scaled(model, x):
    return SCALE * squares(model, x)


class Pair(nnx.Module):
    """Two layers in one of a few arrangements; what `y = W_b W_a x` does is the same in all."""

    def __init__(self, kind):
        a, b = (nnx.Linear(4, 4, use_bias=False, rngs=nnx.Rngs(seed)) for seed in (0, 1))
        if kind == "one kernel":
            b.kernel = a.kernel
        arrangements = {
            "numbers for names": lambda: nnx.Dict({"0": a, "1": b}),
            "numbers for keys": lambda: nnx.data({5: a, 7: b}),
            "points in names": lambda: nnx.data({"in.0": a, "out": b}),
            "nested": lambda: nnx.data([{"a": [a]}, (b,)]),
        }
        self.parts = arrangements.get(kind, lambda: nnx.List([a, b]))()
        self.kind = kind

    def both(self):
        parts = self.parts
        if self.kind == "nested":
            return parts[0]["a"][0], parts[1][0]
        if self.kind == "numbers for names":
            return parts["0"], parts["1"]
        return tuple(parts.values()) if self.kind in KEYS else tuple(parts)

    def __call__(self, x):
        a, b = self.both()
        return b(a(x))


KEYS = "numbers for keys", "points in names"


@pytest.mark.parametrize("kind", ["numbers for names", *KEYS, "nested", "one kernel"])
def test_layers_are_found_where_they_are_and_each_has_a_gradient_of_its_own(kind):
    model = Pair(kind)
    a, b = (np.asarray(layer.kernel[...]).T for layer in model.both())
    slope = 2 * np.asarray(X) @ a.T @ b.T  # ∂/∂y of Σ y²
    report = nn.adapt(model, "parts.*", rank=4, loss=squares, batch=(X,), zero=None)
    by_hand = -slope.T @ np.asarray(X) @ a.T, -b.T @ slope.T @ np.asarray(X)  # of W_b, of W_a
    assert len(report.layers) == 2
    for layer, surrogate in zip(model.both()[::-1], by_hand, strict=True):
        u, _, vt = np.linalg.svd(surrogate)
        delta = layer.merge().kernel[...].T - layer.base.kernel[...].T
        np.testing.assert_allclose(delta, u @ vt, atol=2e-4)
    assert {w.shape for w in nn.matrices(model).values()} == {(4, 4)}
    assert nn.merge(model) == 2


def test_a_shared_layer_fits_with_any_of_its_paths_and_is_one_in_its_surrogate():
    model = Pair("plain")
    alone = nn.layer_surrogate(model, "parts.0", squares, X, at="current")
    model.also = model.parts[0]
    shared = nn.layer_surrogate(model, "parts.0", squares, X, at="current")
    np.testing.assert_allclose(shared, alone, rtol=1e-6)
    assert nn.adapt(model, "parts.0", rank=1, loss=squares, batch=(X,)).ranks == {"also": 1}
    assert model.also is model.parts[0]


def test_other_kinds_of_layers_and_numbers_are_left_alone_by_name():
    model = nnx.Sequential(
        nnx.ConvTranspose(4, 4, (3,), rngs=nnx.Rngs(0)), *(nnx.Linear(4, 4, rngs=nnx.Rngs(s)) for s in (1, 2))
    )
    model.layers[1].kernel = nnx.Param(jnp.ones((4, 4), "int8"))
    report = nn.adapt(model, ".*", rank=1, start="random", rngs=nnx.Rngs(3))
    assert list(report.ranks) == ["layers.2"]
    assert {path: reason.split()[-1] for path, reason in report.skipped.items()} == {
        "layers.0": "Embed", "layers.1": "numbers",
    }  # fmt: skip
    assert "holds int8" in report.skipped["layers.1"]


def test_the_kind_of_a_parameter_survives_cutting_and_merging():
    class Frozen(nnx.Variable):
        pass

    model = nnx.Sequential(nnx.Linear(4, 4, rngs=nnx.Rngs(0)), nnx.Conv(4, 4, (1,), rngs=nnx.Rngs(1)))
    for layer in model.layers:
        layer.kernel = Frozen(layer.kernel[...])
    nn.compress(model, ".*", rank=4)
    assert len(nnx.to_flat_state(nnx.state(model, Frozen))) == 6
    nn.merge(model)
    assert all(type(layer.kernel) is Frozen for layer in model.layers)


def test_matrices_of_adapted_and_compressed_layers_are_those_they_apply():
    model = nnx.Sequential(nnx.Linear(4, 4, rngs=nnx.Rngs(0)), nnx.Conv(4, 4, (1,), rngs=nnx.Rngs(1)))
    start = nn.matrices(model)
    nn.adapt(model, "layers.0", rank=1, start="random", zero=None, scale=2.0, rngs=nnx.Rngs(2))
    nn.compress(model, "layers.1", rank=2)
    changes = nn.updates(start, nn.matrices(model))
    np.testing.assert_allclose(changes["layers.0"].singular_values, [4, 0, 0, 0], atol=1e-5)
    kept = np.linalg.svd(start["layers.1"], compute_uv=False)[2:]
    np.testing.assert_allclose(changes["layers.1"].singular_values, [*kept, 0, 0], atol=1e-5)
    with pytest.raises(ValueError, match=r"path='layers\.1' has a matrix at the start and none now"):
        nn.updates(start, {"layers.0": start["layers.0"]})
    with pytest.raises(ValueError, match=r"the update at 'layers\.0'"):
        nn.updates(start, start | {"layers.0": start["layers.0"] * jnp.nan})


def test_what_a_loss_reads_from_its_module_is_read_each_time(monkeypatch):
    """Changed globals are seen by a function that reads them and by one that calls it."""
    model = Pair("plain")
    assert gradients.constants_of(squares) == ()
    assert gradients.constants_of(lambda model, x, at=[1.0]: at) is None
    before = nn.layer_surrogate(model, "parts.0", scaled, X, at="current")
    monkeypatch.setitem(globals(), "SCALE", 3.0)
    after = nn.layer_surrogate(model, "parts.0", scaled, X, at="current")
    np.testing.assert_allclose(after, 3 * before, rtol=1e-5)


def many(model, x):
    return model(x)


def with_extra(model, x):
    return squares(model, x), x


BAD = {
    "an array for a batch": (lambda m: nn.adapt(m, ".*", loss=squares, batch=X), "batch is of type"),
    "an array to cut on": (lambda m: nn.compress(m, ".*", rank=1, batch=X), "batch is of type"),
    "many losses": (lambda m: nn.adapt(m, ".*", loss=many, batch=(X,)), r"gives float32\[5, 4\]"),
    "an extra": (lambda m: nn.adapt(m, ".*", loss=with_extra, batch=(X,)), "gives tuple"),
    "no alpha": (lambda m: nn.adapt(m, ".*", loss=squares, batch=(X,), alpha=0), "alpha=0, expected"),
    "half a budget": (
        lambda m: nn.adapt(m, ".*", rank=None, budget=9.5, loss=squares, batch=(X,)), "budget=9.5, expected"
    ),
    "noise to cut by": (lambda m: nn.compress(m, ".*", rank="noise"), "rank='noise', expected"),
    "a seed": (lambda m: nn.adapt(m, ".*", start="random", rngs=3), "rngs=3, expected an nnx.Rngs"),
    "a number to lose": (lambda m: nn.adapt(m, ".*", loss=3), "loss=3, expected"),
    "no inputs": (lambda m: nn.compress(m, ".*", rank=1, batch=(0 * X,)), "gets no inputs other than 0"),
    "no numbers": (lambda m: nn.compress(m, ".*", rank=1, batch=(X * jnp.nan,)), "inputs of the layer at"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_wrong_arguments_are_named(name):
    act, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        act(Pair("plain"))


def test_a_member_of_a_stack_without_gradient_is_named():
    @nnx.split_rngs(splits=3)
    @nnx.vmap
    def make(rngs):
        return nnx.Linear(4, 4, rngs=rngs)

    model = nnx.Sequential(make(nnx.Rngs(0)))

    def first_two(model, x):
        kernel = model.layers[0].kernel[...]
        return sum(jnp.sum((x @ kernel[member]) ** 2) for member in (0, 1))

    with pytest.raises(ValueError, match=r"gradient 0 in member 2 of its stack.* rngs="):
        nn.adapt(model, ".*", rank=1, loss=first_two, batch=(X,))
    left, right = _sides(model)
    report = nn.adapt(model, ".*", rank=1, loss=first_two, batch=(X,), zero=None, rngs=nnx.Rngs(0))
    delta = model.layers[0].delta
    inward, outward = np.asarray(delta.inward.kernel[...]), np.asarray(delta.outward[...])
    np.testing.assert_allclose(np.linalg.norm(inward, axis=(1, 2)), 1, rtol=1e-5)
    np.testing.assert_allclose((inward @ outward)[:2], left @ right, atol=1e-5)
    assert 0 < report.layers[0].energy < 1


def _sides(model):
    """Best rank-1 parts of the negative gradients of the first two members, by NumPy."""
    kernel = np.asarray(model.layers[0].kernel[...], float)[:2]
    x = np.asarray(X, float)
    surrogates = [-2 * x.T @ x @ matrix for matrix in kernel]  # of Σ (x W)²
    parts = [np.linalg.svd(matrix) for matrix in surrogates]
    return np.stack([u[:, :1] for u, _, _ in parts]), np.stack([v[:1] for _, _, v in parts])


def test_a_layer_without_gradient_starts_at_random_where_the_others_start_from_theirs():
    parts = {name: nnx.Linear(4, 4, rngs=nnx.Rngs(0)) for name in ("used", "unused")}

    class Half(nnx.Module):
        def __init__(self):
            self.parts = nnx.data(dict(parts))

        def __call__(self, x):
            return self.parts["used"](x)

    options = {"loss": squares, "batch": (X,), "rngs": nnx.Rngs(0)}
    for rank in (1, None, "noise"):
        half = nnx.clone(Half())
        report = nn.adapt(half, ".*", rank=rank, **options)
        energies = {line.path: line.energy for line in report.layers}
        assert np.isnan(energies["parts.unused"]), rank
        assert energies["parts.used"] > 0, rank
        assert report.ranks["parts.unused"] == 1, rank
        assert np.any(half.parts["unused"].delta.inward.kernel[...]), rank
    with pytest.raises(ValueError, match=r"'parts\.unused' has the gradient 0"):
        nn.adapt(Half(), ".*unused", rank=1, **options)


def test_a_layer_inside_a_weight_norm_is_left_alone_and_the_report_says_why():
    inner = nnx.Linear(4, 4, rngs=nnx.Rngs(0))
    model = nnx.Sequential(nnx.Linear(4, 4, rngs=nnx.Rngs(1)), nnx.WeightNorm(inner, rngs=nnx.Rngs(2)))
    report = nn.adapt(model, ".*", rank=1, loss=squares, batch=(X,))
    assert report.ranks == {"layers.0": 1}
    assert report.skipped == {"layers.1.layer_instance": "a WeightNorm around it reads its parameters"}
    with pytest.raises(ValueError, match="a WeightNorm around it"):
        nn.compress(model, r"layers\.1.*", rank=1)
