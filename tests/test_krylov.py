"""Claims on leading triplets of large matrices: those of NumPy, of any shape, and as many as asked for."""

import jax
import numpy as np
import pytest
import scipy.sparse

import lowdim_jax as ld
from lowdim_jax._krylov import leading_triplets
from lowdim_jax.compression import visible_components

DECAYING = 0.8 ** np.arange(20)


def matrix(shape, values=DECAYING):
    rng = np.random.default_rng(0)
    left, right = (np.linalg.qr(rng.standard_normal((side, len(values))))[0] for side in shape)
    return (left * values) @ right.T


@pytest.mark.parametrize("form", [np.asarray, scipy.sparse.csr_array, scipy.sparse.csc_array])
@pytest.mark.parametrize("shape", [(90, 60), (30, 200)])
def test_triplets_are_numpys_leading_ones(x64, form, shape):
    dense = matrix(shape)
    u, s, vt = np.linalg.svd(dense)
    for found, count in (
        (leading_triplets(form(dense), least=5), 5),
        (leading_triplets(form(dense), above=0.15), 9),  # 0.8^8 > 0.15 > 0.8^9
        (leading_triplets(form(dense), least=12, above=0.15), 12),
        (leading_triplets(form(dense), above=2.0), 1),
    ):
        parts = jax.tree.map(np.asarray, found)
        np.testing.assert_allclose(parts.singular_values, s[:count], rtol=1e-4)
        np.testing.assert_allclose(parts.left.T @ parts.left, np.eye(count), atol=1e-12)
        np.testing.assert_allclose(parts.right.T @ parts.right, np.eye(count), atol=1e-12)
        assert np.abs(np.sum(parts.left * u[:, :count], 0)).min() > 1 - 1e-3
        assert np.abs(np.sum(parts.right * vt[:count].T, 0)).min() > 1 - 1e-3


def test_the_whole_spectrum_of_a_narrow_matrix_is_exact(x64):
    dense = matrix((400, 6), np.array([3.0, 2.0, 2.0, 1e-3, 1e-9, 0.0]))
    found = leading_triplets(dense, least=6)
    np.testing.assert_allclose(found.dense(), dense, atol=1e-13)
    np.testing.assert_allclose(found.singular_values, np.linalg.svd(dense)[1], atol=1e-14)


def test_exact_low_rank_ends_the_iteration(x64):
    for values in ([2.0, 1.0], [0.0]):
        dense = matrix((50, 40), np.array(values))
        found = leading_triplets(dense, least=4)
        np.testing.assert_allclose(found.singular_values, [*values, 0, 0, 0, 0][:4], atol=1e-13)
        assert leading_triplets(dense, above=0.5).shape == (50, 40)


def test_components_and_edge_of_many_thin_entries_need_no_dense_matrix(x64, monkeypatch):
    """Against the eigenvalues of the small Gram matrix, by NumPy; both orientations."""
    rng = np.random.default_rng(0)
    left, right = rng.standard_normal((40, 2)), rng.standard_normal((40_000, 2))
    rows, columns = rng.integers(0, 40, 60_000), rng.integers(0, 40_000, 60_000)
    places = np.unique(rows * 40_000 + columns)
    rows, columns = np.divmod(places, 40_000)
    values = np.sum(left[rows] * right[columns], 1)
    sparse = scipy.sparse.csr_array((values, (rows, columns)), shape=(40, 40_000))
    expected = np.linalg.eigvalsh((sparse @ sparse.T).toarray())[::-1][:2] ** 0.5
    monkeypatch.setattr(scipy.sparse.csr_array, "toarray", lambda _: pytest.fail("made dense"))
    for problem in (
        ld.observed_completion(rows, columns, values, shape=(40, 40_000)),
        ld.observed_completion(columns, rows, values, shape=(40_000, 40)),
    ):
        shown = visible_components(problem)
        assert shown.above == 2
        found = np.asarray(shown.parts.singular_values) * problem.fraction
        np.testing.assert_allclose(found, expected, rtol=1e-4)
