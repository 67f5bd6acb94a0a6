"""Claims on initial weights: orthogonality, one scale for all kinds, spectral initialization."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowdim_jax as ld

WIDTHS = (30, 20, 20, 40)


@pytest.mark.parametrize("make", ["orthogonal", "identity"])
def test_all_singular_values_of_an_orthogonal_layer_are_the_scale(dtype, make):
    tol = 1e-13 if dtype == "float64" else 1e-5
    if make == "orthogonal":
        weights = ld.orthogonal(jax.random.key(0), WIDTHS, scale=0.3)
    else:
        weights = ld.initialization.identity(WIDTHS, scale=0.3)
    assert ld.widths(weights) == WIDTHS
    for weight in weights:
        assert weight.dtype == jnp.dtype(dtype)
        small = np.asarray(weight if weight.shape[0] <= weight.shape[1] else weight.T)
        np.testing.assert_allclose(small @ small.T, 0.09 * np.eye(len(small)), atol=tol)


def test_identity_layers_are_rectangular_identities():
    for weight in ld.initialization.identity((5, 3, 4), scale=2.0):
        np.testing.assert_array_equal(weight, 2 * np.eye(*weight.shape))


@pytest.mark.parametrize("make", [ld.gaussian, ld.initialization.uniform])
def test_random_layers_have_the_orthogonal_norm_in_expectation(x64, make):
    keys = jax.random.split(jax.random.key(0), 400)
    draws = jax.vmap(lambda key: make(key, WIDTHS, scale=0.3))(keys)
    orthogonal = ld.orthogonal(jax.random.key(0), WIDTHS, scale=0.3)
    for many, layer in zip(draws, orthogonal, strict=True):
        squares = np.sum(np.asarray(many) ** 2, axis=(1, 2))
        expected = float(jnp.sum(layer**2))
        np.testing.assert_allclose(expected, 0.09 * min(layer.shape), rtol=1e-12)
        assert abs(squares.mean() - expected) < 5 * squares.std() / 20
        assert abs(np.asarray(many).mean()) < 5 * np.asarray(many).std() / many.size**0.5


def test_layers_and_seeds_are_independent_and_repeatable():
    one, same, other = (
        ld.orthogonal(jax.random.key(seed), (6, 6, 6), scale=1.0) for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(one[0], same[0])
    assert not np.allclose(one[0], other[0], atol=0.1)
    assert not np.allclose(one[0], one[1], atol=0.1)


@pytest.mark.parametrize("make", [ld.orthogonal, ld.gaussian, ld.initialization.uniform])
def test_draws_scale_with_epsilon_and_trace_it(x64, make):
    keys = jax.random.split(jax.random.key(0), 2)
    unit = make(keys[0], (4, 3, 5), scale=1.0)
    mapped = jax.jit(jax.vmap(lambda key, scale: make(key, (4, 3, 5), scale=scale)))(
        keys, jnp.array([0.1, 0.2])
    )
    for many, one in zip(mapped, unit, strict=True):
        np.testing.assert_allclose(many[0], 0.1 * one, atol=1e-14)


@pytest.mark.parametrize("make", [ld.orthogonal, ld.gaussian])
def test_a_constant_scale_compiles(make):
    key = jax.random.key(0)
    compiled = jax.jit(lambda key: make(key, (4, 3, 5), scale=0.1))(key)
    for a, b in zip(compiled, make(key, (4, 3, 5), scale=0.1), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_the_type_can_be_chosen(x64):
    for make in (ld.orthogonal, ld.gaussian, ld.initialization.uniform):
        weights = make(jax.random.key(0), (4, 4), scale=0.5, dtype=jnp.float32)
        assert weights[0].dtype == jnp.float32
    assert ld.initialization.identity((4, 4), scale=0.5, dtype="float32")[0].dtype == jnp.float32


@pytest.mark.parametrize("form", ["dense", "factored"])
def test_spectral_initialization_is_the_singular_vectors_times_the_scale(x64, form):
    target = ld.random_target(jax.random.key(0), (7, 9), jnp.array([3.0, 2.0, 1.0]))
    surrogate = target.dense() if form == "dense" else target
    first, *middle, last = ld.spectral(surrogate, rank=3, depth=4, scale=0.2)
    for layer in middle:
        np.testing.assert_array_equal(layer, 0.2 * np.eye(3))
    signs = np.sign(np.sum(np.asarray(last * target.left), axis=0))
    np.testing.assert_allclose(last, 0.2 * signs * np.asarray(target.left), atol=1e-13)
    np.testing.assert_allclose(first.T, 0.2 * signs * np.asarray(target.right), atol=1e-13)


@pytest.mark.parametrize("form", ["dense", "factored"])
def test_directions_beyond_the_rank_are_orthonormal_too(x64, form):
    target = ld.random_target(jax.random.key(0), (7, 9), jnp.array([3.0, 2.0]))
    surrogate = target.dense() if form == "dense" else target
    first, last = ld.spectral(surrogate, rank=7, depth=2, scale=0.5)
    np.testing.assert_allclose(last.T @ last, 0.25 * np.eye(7), atol=1e-14)
    np.testing.assert_allclose(first @ first.T, 0.25 * np.eye(7), atol=1e-14)
    overlap = np.abs(np.asarray(last[:, :2].T @ target.left))
    np.testing.assert_allclose(overlap, 0.5 * np.eye(2), atol=1e-13)


def test_networks_from_singular_vectors_are_the_product_of_them(x64):
    target = ld.random_target(jax.random.key(0), (7, 9), jnp.ones(2))
    weights = ld.initialization.from_singular_vectors(target.left, target.right, depth=5, scale=0.5)
    np.testing.assert_allclose(
        ld.end_to_end(weights), 0.5**5 * target.left @ target.right.T, atol=1e-15
    )


KEY = jax.random.key(0)
NAN = float("nan")
BAD_SCALES = {
    f"{make.__name__} {scale}": (make, scale)
    for make in (ld.orthogonal, ld.gaussian, ld.initialization.uniform)
    for scale in (0.0, -0.5, NAN, float("inf"))
}


@pytest.mark.parametrize("name", BAD_SCALES)
def test_scales_must_be_positive_and_finite(name):
    make, scale = BAD_SCALES[name]
    with pytest.raises(ValueError, match=f"scale={scale}, expected a positive finite"):
        make(KEY, (3, 3), scale=scale)


BAD = {
    "one width": (r"widths=\(3,\), expected at least two", lambda: ld.orthogonal(KEY, (3,), scale=1)),
    "no width": (r"widths=\(\), expected at least two", lambda: ld.gaussian(KEY, (), scale=1)),
    "zero width": (
        r"widths=\(3, 0\), expected .* positive",
        lambda: ld.initialization.identity((3, 0), scale=1),
    ),
    "negative width": (r"widths=\(3, -1, 2\)", lambda: ld.initialization.uniform(KEY, (3, -1, 2), scale=1)),
    "identity scale": ("scale=0, expected a positive", lambda: ld.initialization.identity((3, 3), scale=0)),
    "spectral scale": (
        r"scale=-0\.1, expected a positive",
        lambda: ld.spectral(jnp.eye(3), rank=1, depth=2, scale=-0.1),
    ),
    "spectral rank": (
        "rank=4, expected 1 ≤ rank ≤ 3 for a 3×3",
        lambda: ld.spectral(jnp.eye(3), rank=4, depth=2, scale=0.1),
    ),
    "spectral depth": (
        "depth=1, expected an integer of at least 2",
        lambda: ld.spectral(jnp.eye(3), rank=1, depth=1, scale=0.1),
    ),
    "surrogate vector": (
        r"surrogate has shape \(3,\), expected",
        lambda: ld.spectral(jnp.ones(3), rank=1, depth=2, scale=0.1),
    ),
    "surrogate not finite": (
        "surrogate has 1 entries that are NaN",
        lambda: ld.spectral(jnp.eye(3).at[0, 1].set(NAN), rank=1, depth=2, scale=0.1),
    ),
    "vectors differ": (
        r"\(5, 2\).*\(6, 3\)",
        lambda: ld.initialization.from_singular_vectors(jnp.eye(5, 2), jnp.eye(6, 3), depth=2, scale=0.1),
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named(name):
    message, call = BAD[name]
    with pytest.raises(ValueError, match=message):
        call()
