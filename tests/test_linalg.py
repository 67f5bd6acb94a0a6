"""Claims on factored matrices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy

import lowdim_jax as ld
from lowdim_jax.linalg import (
    check_finite,
    dense,
    extend_orthonormal,
    frobenius_norm,
    leading_svd,
    svd,
    thin_svd,
)


def test_low_rank_orders_and_orthonormalizes_any_thin_factors(dtype):
    tol = 1e-13 if dtype == "float64" else 1e-5
    rng = np.random.default_rng(0)
    left, right = (jnp.asarray(rng.standard_normal((d, 3)), float) for d in (7, 5))
    core = jnp.array([0.5, -2.0, 0.0])
    matrix = ld.low_rank(left, core, right)
    expected = np.asarray(left) * np.asarray(core) @ np.asarray(right).T
    np.testing.assert_allclose(matrix.dense(), expected, atol=10 * tol)
    for basis in (matrix.left, matrix.right):
        np.testing.assert_allclose(basis.T @ basis, np.eye(3), atol=tol)
    s = np.asarray(matrix.singular_values)
    assert np.all(np.diff(s) <= 0)
    assert np.all(s >= 0)
    np.testing.assert_allclose(s, np.linalg.svd(expected, compute_uv=False)[:3], atol=10 * tol)
    assert matrix.shape == (7, 5)
    assert matrix.dtype == jnp.dtype(dtype)
    np.testing.assert_allclose(frobenius_norm(matrix), np.linalg.norm(expected), rtol=1e2 * tol)
    np.testing.assert_allclose(
        frobenius_norm(dense(matrix)), np.linalg.norm(expected), rtol=1e2 * tol
    )
    assert svd(matrix) is matrix
    two = matrix.truncate(2)
    assert two.shape == (7, 5)
    np.testing.assert_allclose(two.dense(), expected, atol=10 * tol)  # the third is zero


@pytest.mark.parametrize(("d_out", "k", "d_in"), [(8, 3, 6), (3, 5, 8), (8, 5, 3), (1, 1, 1)])
def test_thin_svd_is_the_dense_one(x64, d_out, k, d_in):
    rng = np.random.default_rng(0)
    a, b = jnp.asarray(rng.standard_normal((d_out, k))), jnp.asarray(rng.standard_normal((k, d_in)))
    parts = thin_svd(a, b)
    rank = min(k, d_out, d_in)
    assert parts.singular_values.shape == (rank,)
    np.testing.assert_allclose(parts.dense(), a @ b, atol=1e-12)
    np.testing.assert_allclose(
        parts.singular_values, np.linalg.svd(a @ b, compute_uv=False)[:rank], atol=1e-12
    )


@pytest.mark.parametrize("components", [3, 10, 12, 100])
def test_leading_triplets_are_those_of_the_full_decomposition_whatever_the_rank(dtype, components):
    """With up to 20 components they come from random products, with more from the decomposition."""
    tol = 1e-12 if dtype == "float64" else 1e-5
    rng = np.random.default_rng(0)
    left, right = (np.linalg.qr(rng.standard_normal((d, components)))[0] for d in (120, 100))
    matrix = jax.device_put(((left * 0.7 ** np.arange(components)) @ right.T).astype(dtype))
    parts, expected = leading_svd(matrix, 10), np.linalg.svd(np.asarray(matrix, "float64"))
    parts = jax.tree.map(np.asarray, parts)
    np.testing.assert_allclose(parts.singular_values, expected[1][:10], atol=tol)
    for found, vectors in ((parts.left, expected[0]), (parts.right, expected[2].T)):
        np.testing.assert_allclose(found.T @ found, np.eye(10), atol=tol)
        aligned = np.abs((found * vectors[:, :10]).sum(axis=0))[: min(components, 10)]
        np.testing.assert_allclose(aligned, 1, atol=tol)


def test_tiny_singular_values_of_a_product_keep_their_accuracy(x64):
    """Thin factors of graded size: the smallest value is 10⁻²⁰ of the largest."""
    q = np.linalg.qr(np.random.default_rng(0).standard_normal((6, 2)))[0]
    grades = jnp.array([1.0, 1e-10])
    parts = thin_svd(jnp.asarray(q) * grades[None], jnp.diag(grades))
    np.testing.assert_allclose(parts.singular_values, [1.0, 1e-20], rtol=1e-4)


@pytest.mark.parametrize("count", [2, 3, 6, 9])
def test_orthonormal_columns_extend_to_any_count(x64, count):
    basis = jnp.linalg.qr(jnp.asarray(np.random.default_rng(0).standard_normal((9, 3))))[0]
    longer = extend_orthonormal(basis, count)
    np.testing.assert_allclose(longer.T @ longer, np.eye(count), atol=1e-14)
    np.testing.assert_array_equal(longer[:, :3], basis[:, :count])
    other = extend_orthonormal(basis, count, key=jax.random.key(7))
    assert np.allclose(longer, other) == (count <= 3)


def test_traced_arrays_pass_the_check_for_finite_entries():
    jax.jit(lambda x: check_finite("x", x))(jnp.array([jnp.nan]))
    check_finite("x", jnp.ones(3))


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="count=4, expected at most d=3"):
        extend_orthonormal(jnp.eye(3, 2), 4)
    with pytest.raises(ValueError, match=r"x has 2 entries .* first at index \(1,\)"):
        check_finite("x", jnp.array([1.0, jnp.nan, jnp.inf]))
    with pytest.raises(ValueError, match=r"expected \(d_out, r\), \(r,\), \(d_in, r\)"):
        ld.low_rank(jnp.eye(3), jnp.eye(3), jnp.eye(3))
    with pytest.raises(ValueError, match=r"shapes \(3, 0\).*1 ≤ r"):
        ld.low_rank(jnp.ones((3, 0)), jnp.ones(0), jnp.ones((3, 0)))


def test_targets_have_the_spectrum_asked_for(x64):
    target = ld.random_target(jax.random.key(0), (6, 8), jnp.array([1.0, 3.0, 2.0]))
    np.testing.assert_array_equal(target.singular_values, [3.0, 2.0, 1.0])
    assert target.shape == (6, 8)
    for basis in (target.left, target.right):
        np.testing.assert_allclose(basis.T @ basis, np.eye(3), atol=1e-14)
    separated = ld.separated_target(jax.random.key(0), 40, 4)
    full = np.linalg.svd(np.asarray(jax.random.normal(jax.random.key(0), (40, 40))))[1]
    np.testing.assert_allclose(separated.singular_values, full[[0, 5, 10, 15]], rtol=1e-12)
    np.testing.assert_allclose(separated.left.T @ separated.left, np.eye(4), atol=1e-13)


@pytest.mark.parametrize(
    ("message", "call"),
    [
        (r"rank=0, expected 1 ≤ rank ≤ d/2 = 4", lambda k: ld.separated_target(k, 8, 0)),
        (r"rank=5, expected 1 ≤ rank ≤ d/2 = 4", lambda k: ld.separated_target(k, 8, 5)),
        (
            "3 singular values do not fit a 2×5 matrix",
            lambda k: ld.random_target(k, (2, 5), jnp.ones(3)),
        ),
        (
            "singular_values has 1 entries that are NaN",
            lambda k: ld.random_target(k, (4, 5), jnp.array([1.0, jnp.nan])),
        ),
        (
            "singular_values .*(negative|positive)",
            lambda k: ld.random_target(k, (4, 5), jnp.array([1.0, -1.0])),
        ),
        ("singular_values", lambda k: ld.random_target(k, (4, 5), jnp.ones((2, 2)))),
        ("singular_values", lambda k: ld.random_target(k, (4, 5), jnp.ones(0))),
    ],
)
def test_bad_targets_are_named(message, call):
    with pytest.raises(ValueError, match=message):
        call(jax.random.key(0))


def test_a_thin_sparse_matrix_is_never_made_dense(x64, monkeypatch):
    """Few rows, many columns; against the eigenvalues of its Gram matrix, by NumPy."""
    rng = np.random.default_rng(0)
    matrix = scipy.sparse.csr_array(
        (rng.standard_normal(3000), (rng.integers(0, 40, 3000), rng.integers(0, 40_000, 3000))),
        shape=(40, 40_000),
    )
    gram = (matrix @ matrix.T).toarray()
    monkeypatch.setattr(type(matrix), "toarray", lambda _: pytest.fail("made dense"))
    parts = ld.linalg.leading_svd(matrix, 3)
    np.testing.assert_allclose(parts.singular_values**2, np.linalg.eigvalsh(gram)[::-1][:3], rtol=1e-10)
