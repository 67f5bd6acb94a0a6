"""Claims on completion problems: both forms agree, and every kind of input is defined or refused."""

import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.sparse import coo_array, csr_matrix

import lowdim_jax as ld
from lowdim_jax.baselines import _ridge_regression
from lowdim_jax.linalg import leading_svd
from lowdim_jax.problems import groups

SHAPE = (30, 50)


def data(seed=0, fraction=0.4):
    rng = np.random.default_rng(seed)
    target = ld.random_target(jax.random.key(seed), SHAPE, jnp.array([3.0, 2.0]))
    return target, rng.random(SHAPE) < fraction


def network(scale=0.8):
    return ld.gaussian(jax.random.key(2), (50, 4, 4, 30), scale=scale)


def forms():
    target, mask = data()
    matrix = np.asarray(target.dense())
    rows, columns = np.nonzero(mask)
    order = np.random.default_rng(1).permutation(len(rows))
    values = matrix[rows, columns]
    return target, {
        "mask": ld.completion(matrix, mask, truth=target),
        "zeros and ones": ld.completion(matrix, mask.astype(float), truth=target),
        "junk elsewhere": ld.completion(np.where(mask, matrix, np.inf), mask, truth=target),
        "NaN": ld.completion(np.where(mask, matrix, np.nan), truth=target),
        "triplets": ld.observed_completion(
            rows[order], columns[order], values[order], shape=SHAPE, truth=target
        ),
        "sparse": ld.observed_completion(coo_array((values, (rows, columns)), SHAPE), truth=target),
        "csr": ld.observed_completion(csr_matrix((values, (rows, columns)), SHAPE), truth=target),
        "observed": ld.completion(matrix, mask, truth=target).observed(),
    }


def test_every_form_gives_the_same_numbers(x64):
    target, problems = forms()
    mask = np.asarray(problems["mask"].mask)
    weights = network()

    def plain(weights):
        misfit = jnp.where(mask, ld.end_to_end(weights) - target.dense(), 0)
        return jnp.sum(misfit**2) / (2 * mask.mean())

    value, gradient = jax.value_and_grad(plain)(weights)
    for name, problem in problems.items():
        same, also = jax.value_and_grad(problem.loss)(weights)
        np.testing.assert_allclose(same, value, rtol=1e-13, err_msg=name)
        np.testing.assert_allclose(problem.loss(weights), value, rtol=1e-13, err_msg=name)
        for a, b in zip(gradient, also, strict=True):
            np.testing.assert_allclose(b, a, atol=1e-12, err_msg=name)
        surrogate = problem.surrogate_matrix()
        surrogate = surrogate if isinstance(surrogate, jax.Array) else surrogate.toarray()
        expected = np.where(mask, target.dense(), 0) / mask.mean()
        np.testing.assert_allclose(surrogate, expected, atol=1e-13)
        expected = ld.max_learning_rate(problems["mask"], depth=3, alpha=2.0)
        np.testing.assert_allclose(ld.max_learning_rate(problem, depth=3, alpha=2.0), expected, rtol=1e-10)
        np.testing.assert_allclose(problem.surrogate_error(), problems["mask"].surrogate_error(), rtol=1e-12)
        np.testing.assert_allclose(
            problem.recovery_error(weights), ld.factorization(target).recovery_error(weights), rtol=1e-12
        )


def test_both_forms_train_alike(x64):
    _, problems = forms()
    final = []
    for name in ("mask", "triplets"):
        weights = ld.compress(problems[name], depth=3, scale=0.2, rank=4)
        rate = 0.3 * ld.max_learning_rate(problems[name], depth=3)
        run = ld.gradient_descent(
            problems[name].loss, weights, ld.GradientDescent(rate), steps=200, record_every=50
        )
        final.append(ld.end_to_end(run.weights))
    np.testing.assert_allclose(final[1], final[0], atol=1e-9)


def test_groups_of_every_length_are_summed(x64, monkeypatch):
    """Rows with none, one, just as many and one more than a group's slots, over several chunks."""
    monkeypatch.setattr(groups, "AT_ONCE", 3 * 16)
    monkeypatch.setattr(groups, "SLOTS", (16,))
    counts = [0, 1, 16, 17, 48, 0]
    rng = np.random.default_rng(0)
    mask = np.zeros((6, 60), bool)
    for row, count in enumerate(counts):
        mask[row, rng.choice(60, count, replace=False)] = True
    matrix = rng.standard_normal(mask.shape)
    dense, observed = ld.completion(matrix, mask), ld.completion(matrix, mask).observed()
    assert observed.by_row.owner.shape[0] > 1
    weights = ld.gaussian(jax.random.key(0), (60, 3, 6), scale=1.0)
    for a, b in zip(jax.grad(dense.loss)(weights), jax.grad(observed.loss)(weights), strict=True):
        np.testing.assert_allclose(b, a, atol=1e-12)
    rows, columns, values = observed.triplets()
    np.testing.assert_array_equal(np.stack([rows, columns]), np.nonzero(mask))
    np.testing.assert_array_equal(values, matrix[mask])


def test_the_loss_is_half_the_squared_error_on_average_over_masks(x64):
    target, _ = data()
    exact = ld.factorization(target).loss(network())
    losses = []
    for seed in range(200):
        mask = np.random.default_rng(seed).permutation(1500).reshape(SHAPE) < 600
        losses.append(float(ld.completion(target.dense(), mask).loss(network())))
    spread = np.std(losses) / 200**0.5
    assert abs(np.mean(losses) - exact) < 4 * spread < 0.1 * exact


def test_what_nothing_is_known_of_is_predicted_as_zero(x64):
    target, mask = data()
    mask[3], mask[:, 7] = False, False
    problem = ld.completion(target.dense(), mask).observed()
    weights = ld.compress(problem, depth=3, scale=0.2, rank=4)
    rate = 0.3 * ld.max_learning_rate(problem, depth=3)
    run = ld.gradient_descent(problem, weights, ld.GradientDescent(rate), steps=100)
    predicted = ld.end_to_end(run.weights)
    assert jnp.abs(predicted[3]).max() < 1e-12
    assert jnp.abs(predicted[:, 7]).max() < 1e-12
    assert jnp.abs(predicted).max() > 0.1


def test_single_precision_entries_serve_double_precision_weights(x64):
    target, mask = data()
    matrix = np.asarray(target.dense())
    exact = ld.completion(matrix, mask)
    for problem in (ld.completion(matrix.astype("float32"), mask), exact.observed()):
        for a, b in zip(jax.grad(problem.loss)(network()), jax.grad(exact.loss)(network()), strict=True):
            assert a.dtype == jnp.float64
            np.testing.assert_allclose(a, b, atol=1e-5)


def test_entries_are_those_of_the_end_to_end_matrix(x64):
    rows, columns = np.array([0, 29, 5]), np.array([49, 0, 5])
    expected = ld.end_to_end(network())[rows, columns]
    np.testing.assert_allclose(ld.entries(network(), rows, columns), expected, rtol=1e-12)


def test_repeated_entries_can_be_averaged(x64):
    problem = ld.observed_completion([0, 1, 0], [1, 0, 1], [2.0, 5.0, 4.0], duplicates="mean")
    np.testing.assert_array_equal(problem.triplets(), [[0, 1], [1, 0], [3.0, 5.0]])


def test_splitting_partitions_the_entries(x64):
    _, problems = forms()
    train, held = problems["triplets"].split(0.25, seed=3)
    assert held.count == round(0.25 * problems["triplets"].count)
    together = sorted([*zip(*train.triplets(), strict=True), *zip(*held.triplets(), strict=True)])
    assert together == sorted(zip(*problems["triplets"].triplets(), strict=True))
    assert train.shape == held.shape == SHAPE
    with pytest.raises(ValueError, match="leaves a part without any"):
        problems["triplets"].split(0.0)


def test_the_lanczos_decomposition_is_that_of_the_dense_matrix_and_stable(x64):
    rng = np.random.default_rng(0)
    dense = np.where(rng.random((400, 300)) < 0.1, rng.standard_normal((400, 300)), 0)
    sparse = coo_array(dense)
    parts = jax.tree.map(np.asarray, leading_svd(sparse, 5))
    again = jax.tree.map(np.asarray, leading_svd(sparse.tocsc(), 8).truncate(5))
    values = np.linalg.svd(dense, compute_uv=False)
    np.testing.assert_allclose(parts.singular_values, values[:5], rtol=1e-12)
    np.testing.assert_allclose(dense @ parts.right, parts.left * parts.singular_values, atol=1e-10)
    np.testing.assert_allclose(again.left, parts.left, atol=1e-8)
    peaks = np.abs(parts.left).argmax(axis=0)
    assert np.all(parts.left[peaks, range(5)] > 0)


BAD_DENSE = {
    "shape": (r"mask has shape \(3, 2\), but matrix", jnp.eye(3), jnp.ones((3, 2))),
    "nothing": ("no entry is observed", jnp.eye(3), jnp.zeros((3, 3), bool)),
    "all NaN": ("no entry is observed", jnp.full((3, 3), jnp.nan), None),
    "mask": ("mask has 2.0 at position 0, expected zeros and ones", jnp.eye(3), 2 * jnp.eye(3)),
    "infinite": (r"where observed, has 1 entries .* \(0, 0\)", jnp.eye(3).at[0, 0].set(jnp.inf), None),
}


@pytest.mark.parametrize("name", BAD_DENSE)
def test_bad_dense_input_is_named(name):
    message, matrix, mask = BAD_DENSE[name]
    with pytest.raises(ValueError, match=message):
        ld.completion(matrix, mask)


BAD_TRIPLETS = {
    "lengths": (r"have shapes \(2,\), \(1,\) and \(2,\)", ([0, 1], [0], [1.0, 2.0]), {}),
    "nothing": ("expected three arrays of one length, at least 1", ([], [], []), {}),
    "row": (r"rows has 5 at position 1, expected from 0 ", ([0, 5], [0, 1], [1.0, 2.0]), {"shape": (3, 9)}),
    "column": (r"columns has 7 at position 0", ([0, 1], [7, 1], [1.0, 2.0]), {"shape": (3, 3)}),
    "negative": (r"rows has -1 at position 1", ([0, -1], [0, 1], [1.0, 2.0]), {}),
    "floats": ("columns has type float64, expected integers", ([0, 1], [0.5, 1], [1.0, 2.0]), {}),
    "nan": ("values has 1 entries that are NaN", ([0, 1], [0, 1], [1.0, np.nan]), {}),
    "twice": ("1 entries are given more than once, .* row 0, column 1", ([0, 0], [1, 1], [1, 2]), {}),
    "rule": ("duplicates='last', expected 'raise' or 'mean'", ([0], [0], [1.0]), {"duplicates": "last"}),
    "truth": ("truth has shape", ([0], [0], [1.0]), {"truth": jnp.eye(3), "shape": (2, 2)}),
}


@pytest.mark.parametrize("name", BAD_TRIPLETS)
def test_bad_triplets_are_named(name):
    message, triplets, options = BAD_TRIPLETS[name]
    with pytest.raises(ValueError, match=message):
        ld.observed_completion(*triplets, **options)


def test_one_layer_has_no_factors_to_observe(x64):
    _, problems = forms()
    with pytest.raises(ValueError, match="weights has one layer"):
        problems["triplets"].loss((jnp.ones(SHAPE),))


def test_memory_of_observed_entries_is_tens_of_bytes_an_entry():
    """At these numbers 25 million entries are built and swept over, r̂ = 20, in under 6 GiB."""
    count, shape, rank = 200_000, (2000, 1500), 20
    rng = np.random.default_rng(0)
    rows, columns = divmod(rng.permutation(shape[0] * shape[1])[:count], shape[1])
    values = rng.standard_normal(count)
    tracemalloc.start()
    problem = ld.observed_completion(rows, columns, values, shape=shape)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 80 * count  # beside the three arrays given

    def temporary(function, *arguments):
        return function.lower(*arguments).compile().memory_analysis().temp_size_in_bytes

    weights = ld.gaussian(jax.random.key(0), (shape[1], rank, rank, shape[0]), scale=0.1)
    gradient = jax.jit(jax.value_and_grad(type(problem).loss, argnums=1))
    assert temporary(gradient, problem, weights) < 30 * count
    # Alternating minimization needs r̂ × r̂ numbers a row, not for every group of its entries.
    squares = 4 * shape[0] * rank**2
    assert temporary(_ridge_regression, problem.by_row, weights[0].T, 1.0) < 3 * squares
