"""Claims on compressed networks: rank rules, surrogates, and what training keeps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowdim_jax as ld
from lowdim_jax import compression, theory


def target_of(values, shape=(8, 10)):
    return ld.random_target(jax.random.key(0), shape, jnp.asarray(values, float))


@pytest.mark.parametrize(
    ("values", "shape", "width"),
    [([3.0, 2.0], (8, 10), 4), ([3.0], (8, 10), 2), ([3.0, 2.0, 1.0], (5, 10), 5)],
)
@pytest.mark.parametrize("form", ["dense", "factored", "problem"])
def test_the_default_width_is_twice_the_rank_capped_by_the_matrix(x64, values, shape, width, form):
    target = target_of(values, shape)
    given = {
        "dense": target.dense(),
        "factored": target,
        "problem": ld.factorization(target.dense()),
    }[form]
    weights = ld.compress(given, depth=3, scale=0.1)
    assert ld.widths(weights) == (shape[1], width, width, shape[0])


def test_a_narrower_network_can_be_asked_for(x64):
    target = target_of([3.0, 2.0, 1.0])
    assert ld.widths(ld.compress(target, depth=2, scale=0.1, rank=1)) == (10, 1, 8)


def test_the_surrogate_matrix_compresses_too():
    assert ld.widths(ld.compress(jnp.eye(4), depth=3, scale=0.1, rank=2)) == (4, 2, 2, 4)


def test_numpy_matrices_compress():
    weights = ld.compress(np.eye(4, dtype="float32"), depth=3, scale=0.1, rank=2)
    assert ld.widths(weights) == (4, 2, 2, 4)


def test_the_numerical_rank_is_the_default_rule(dtype):
    assert ld.linalg.estimate_rank(target_of([3.0, 2.0, 1.0]).dense()) == 3
    assert ld.linalg.estimate_rank(target_of([3.0, 1e-10]).dense()) == (2 if dtype == "float64" else 1)
    assert ld.linalg.estimate_rank(target_of([3.0, 2.0, 1.0])) == 3


def test_the_tolerance_rule_counts_what_exceeds_it(x64):
    matrix = target_of([4.0, 2.0, 1.0])
    assert [ld.linalg.estimate_rank(matrix, rtol=c) for c in (0.1, 0.3, 0.6, 2.0)] == [3, 2, 1, 1]


def test_the_energy_rule_is_the_fewest_components_that_hold_it(x64):
    matrix = target_of([3.0, 2.0, 1.0])  # energies 9, 4, 1 of 14
    rules = {0.5: 1, 9 / 14 - 1e-9: 1, 9 / 14 + 1e-9: 2, 0.9: 2, 13 / 14 + 1e-9: 3, 1.0: 3}
    assert {energy: ld.linalg.estimate_rank(matrix, energy=energy) for energy in rules} == rules


def test_energy_one_does_not_count_components_that_are_zero(x64):
    assert ld.linalg.estimate_rank(jnp.diag(jnp.array([2.0, 1.0, 0.0, 0.0])), energy=1.0) == 2


def test_the_surrogate_of_a_loss_is_its_negative_gradient_at_zero(x64):
    target = target_of([3.0, 2.0]).dense()
    factorization = compression.loss_surrogate(lambda w: jnp.sum((w - target) ** 2) / 2, (8, 10))
    np.testing.assert_allclose(factorization, target, atol=1e-15)
    mask = jnp.asarray(np.random.default_rng(0).random((8, 10)) < 0.5)
    completion = compression.loss_surrogate(
        lambda w: jnp.sum(jnp.where(mask, w - target, 0.0) ** 2) / 2, (8, 10)
    )
    np.testing.assert_allclose(completion, jnp.where(mask, target, 0.0), atol=1e-15)
    a = jnp.asarray(np.random.default_rng(0).standard_normal((30, 8, 10)))
    y = jnp.einsum("nij,ij->n", a, target)
    sensing = compression.loss_surrogate(
        lambda w: jnp.sum((jnp.einsum("nij,ij->n", a, w) - y) ** 2) / 2, (8, 10)
    )
    np.testing.assert_allclose(sensing, jnp.einsum("n,nij->ij", y, a), atol=1e-11)
    single = compression.loss_surrogate(lambda w: jnp.sum(w), (2, 3), dtype=jnp.float32)
    assert single.dtype == jnp.float32


def test_a_compressed_network_trains_as_its_scalar_modes(x64):
    values = [3.0, 2.0, 1.0]
    target = target_of(values)
    run = ld.gradient_descent(
        ld.factorization(target).loss,
        ld.compress(target, depth=3, scale=0.2, rank=5),
        ld.GradientDescent(0.03),
        steps=100,
        record_every=10,
        observe=lambda w: (ld.spectra.modes(w, target), ld.spectra.singular_values(w)),
    )
    expected = theory.mode_descent(
        jnp.array([*values, 0.0, 0.0]),
        depth=3,
        scale=0.2,
        learning_rate=0.03,
        steps=100,
        record_every=10,
    )
    np.testing.assert_allclose(run.observed[0], expected[:, :3], rtol=1e-11)
    np.testing.assert_allclose(run.observed[1], -np.sort(-expected, axis=1), rtol=1e-9)


def test_compressing_maps_over_targets_and_scales(x64):
    target = target_of([3.0, 2.0])

    def first_loss(scale, factor):
        problem = ld.factorization(factor * target.dense())
        return problem.loss(ld.compress(problem, depth=3, scale=scale, rank=2))

    scales, factors = jnp.array([0.1, 0.5]), jnp.array([1.0, 2.0])
    mapped = jax.jit(jax.vmap(first_loss))(scales, factors)
    looped = [first_loss(s, f) for s, f in zip(scales, factors, strict=True)]
    np.testing.assert_allclose(mapped, looped, rtol=1e-12)


BAD = {
    "rank zero": ("rank=0, expected 1 ≤ rank ≤ 3", {"rank": 0}),
    "rank above": ("rank=4, expected 1 ≤ rank ≤ 3 for a 3×3 matrix", {"rank": 4}),
    "depth one": ("depth=1, expected an integer of at least 2", {"depth": 1}),
    "depth zero": ("depth=0, expected an integer of at least 2", {"depth": 0}),
    "scale": ("scale=0, expected a positive finite", {"scale": 0}),
    "nan": ("has 1 entries that are NaN", {"matrix": jnp.eye(3).at[0, 1].set(jnp.nan)}),
    "vector": (r"has shape \(3,\), expected", {"matrix": jnp.ones(3)}),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named(name):
    message, change = BAD[name]
    settings = {"matrix": jnp.eye(3), "depth": 3, "scale": 0.1, **change}
    with pytest.raises(ValueError, match=message):
        ld.compress(settings.pop("matrix"), **settings)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"energy": 0.9, "rtol": 0.1}, r"energy=0\.9 and rtol=0\.1 are two rules"),
        ({"energy": 0.0}, r"energy=0\.0, expected a fraction in \(0, 1\]"),
        ({"energy": 1.5}, r"energy=1\.5, expected a fraction"),
        ({"rtol": -1.0}, r"rtol=-1\.0, expected"),
    ],
)
def test_bad_rank_rules_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        ld.linalg.estimate_rank(jnp.eye(3), **options)


def test_the_rank_of_a_matrix_that_is_not_finite_is_refused():
    with pytest.raises(ValueError, match="has 1 entries that are NaN"):
        ld.linalg.estimate_rank(jnp.eye(3).at[0, 1].set(jnp.nan))
