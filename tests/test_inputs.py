"""What is taken, converted, refused (docs/inputs.md), by every constructor in the same way.

Troubles that others had are named by their public source, `project #number`.
"""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy

import lowdim_jax as ld
from lowdim_jax.initialization import balanced
from lowdim_jax.linalg import LowRank, low_rank
from lowdim_jax.problems import whiten
from lowdim_jax.sweeps import sweep

MATRIX = np.array([[3, 1, 0], [1, 2, 1], [0, 1, 4], [2, 0, 1]])
TAKERS = {
    "factorization": lambda matrix: ld.factorization(matrix).target,
    "completion": lambda matrix: ld.completion(matrix).values,
    "truth": lambda matrix: ld.completion(np.eye(4, 3), truth=matrix).truth,
    "surrogate": lambda matrix: ld.compress(matrix, depth=2, scale=1.0, rank=2)[0],
    "matrix": lambda matrix: balanced(matrix, depth=2)[0],
    "measurements": lambda matrix: ld.sensing(matrix[None], np.ones(1)).operator.matrices[0],
    "labels": lambda matrix: ld.sensing(np.ones((4, 2, 2)), matrix[:, 0]).labels,
    "values": lambda matrix: ld.observed_completion([0, 1, 2, 3], [0] * 4, matrix[:, 0]).by_row.values,
    "left": lambda matrix: low_rank(matrix, np.ones(3), np.eye(3)).left,
    "singular_values": lambda matrix: ld.random_target(jax.random.key(0), (4, 4), matrix[0]).singular_values,
    "inputs": lambda matrix: whiten(matrix.T),
}


@pytest.mark.parametrize("taker", TAKERS)
def test_every_real_type_is_converted_alike(taker):
    """jax #13795, findiff #32, optax #160: the same numbers in another type are the same input."""
    take = TAKERS[taker]
    reference = take(MATRIX.astype(np.float32))
    for dtype in ("f2", ">f4", "<f8", ">f8", "g", "i4", ">i8", "u1", jnp.bfloat16):
        given = take(MATRIX.astype(dtype))
        assert given.dtype == jnp.float32, dtype
        np.testing.assert_allclose(given, reference, atol=1e-6)
    assert take(MATRIX.astype(bool)).dtype == jnp.float32
    assert take(jnp.asarray(MATRIX)).dtype == jnp.float32


@pytest.mark.parametrize("taker", TAKERS)
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda m: m.astype(object), "entries of type object, expected real numbers"),
        (lambda m: m.astype(complex), "entries of type complex128, expected real numbers"),
        (lambda m: m.astype(str), "entries of type <U21, expected real numbers"),
        (lambda m: np.where(m == 3, np.inf, m), "NaN or infinite"),
        (lambda m: np.where(m == 3, 1e39, m), "too large for float32"),
        (lambda m: np.ma.masked_array(m, m == 3), "masked entries"),
    ],
)
def test_what_is_no_array_of_real_numbers_is_refused_by_name(taker, spoil, message):
    if message == "masked entries" and taker in ("completion", "values"):
        return  # masked is not observed
    name = {"factorization": "target", "completion": "matrix"}.get(taker, taker)
    with pytest.raises(ValueError, match=message) as refusal:
        TAKERS[taker](spoil(MATRIX))
    assert str(refusal.value).startswith(name)
    assert len(str(refusal.value)) < 200


def test_a_sparse_matrix_is_taken_as_observed_entries_only():
    sparse = scipy.sparse.csr_array(MATRIX)
    assert ld.observed_completion(sparse).count == np.count_nonzero(MATRIX)
    for take in (ld.factorization, ld.completion, ld.sensing):
        with pytest.raises(ValueError, match="is a sparse matrix: observed_completion takes"):
            take(sparse)


def test_what_is_masked_was_not_observed():
    """jax-ml/jax #13795, sherpa #695."""
    matrix = np.arange(12.0).reshape(4, 3)
    hidden = matrix > 8
    problem = ld.completion(np.ma.masked_array(np.where(hidden, np.nan, matrix), hidden))
    np.testing.assert_array_equal(problem.mask, ~hidden)
    both = ld.completion(np.ma.masked_array(matrix, hidden), matrix > 2)
    np.testing.assert_array_equal(both.mask, ~hidden & (matrix > 2))
    rows, columns = np.indices(matrix.shape).reshape(2, -1)
    observed = ld.observed_completion(rows, columns, np.ma.masked_array(matrix, hidden).ravel())
    np.testing.assert_array_equal(observed.triplets()[2], matrix[~hidden])


def test_numpy_integers_are_integers_and_lists_are_tuples():
    """numpy #11690, JAXtronomy #98."""
    three, key = np.int64(3), jax.random.key(0)
    same = [
        (lambda n: ld.theory.sharpness(3.0, depth=n), three, 3),
        (lambda n: ld.compress(MATRIX, depth=n, scale=0.1, rank=2), np.uint8(3), 3),
        (lambda n: ld.compress(MATRIX, depth=3, scale=0.1, rank=n), np.int64(2), 2),
        (lambda n: balanced(MATRIX, depth=n), three, 3),
        (lambda n: ld.full_widths(n, n, depth=n), three, 3),
        (lambda n: ld.orthogonal(key, n, scale=1.0), [np.int64(4), 3], (4, 3)),
        (lambda n: ld.random_target(key, n, jnp.array([3.0, 2.0])), [np.int32(5), 4], (5, 4)),
        (lambda n: ld.random_target(key, (5, 4), n), [3, 2], jnp.array([3.0, 2.0])),
        (lambda n: ld.gaussian_measurements(key, n, [2, 2]), np.int64(3), 3),
        (lambda n: ld.factorization(n).target, [np.eye(4)[:, :2], [2, 1], np.eye(3)[:, :2]],
         (jnp.eye(4)[:, :2], jnp.array([2.0, 1.0]), jnp.eye(3)[:, :2])),
    ]  # fmt: skip
    for call, given, plain in same:
        for one, other in zip(jax.tree.leaves(call(given)), jax.tree.leaves(call(plain)), strict=True):
            np.testing.assert_array_equal(one, other)
    for wrong in (3.0, True, "3", None):
        with pytest.raises(ValueError, match=r"depth=.*expected an integer of at least 2"):
            ld.compress(MATRIX, depth=wrong, scale=0.1)
    run = ld.gradient_descent(
        ld.factorization(MATRIX), list(ld.compress(MATRIX, depth=2, scale=0.1)), ld.GradientDescent(0.01),
        steps=np.int64(4), record_every=np.int32(2),
    )  # fmt: skip
    assert run.steps.tolist() == [0, 2, 4]


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"left": np.ones((4, 2))}, "target's left has columns that are not orthonormal, by 4: low_rank"),
        ({"right": 2 * np.eye(3)[:, :2]}, "target's right has columns that are not orthonormal"),
        ({"singular_values": np.array([1.0, 2.0])}, "singular_values are not descending"),
        ({"singular_values": np.array([1.0, -2.0])}, "singular_values are not descending and non-negative"),
        ({"singular_values": np.array([1.0, np.nan])}, "target's singular_values has 1 entries that are NaN"),
        ({"singular_values": np.ones(3)}, "target has factors of shapes (4, 2), (3,), (3, 2), expected"),
    ],
)
def test_factors_made_by_hand_are_checked_where_they_are_concrete(parts, message):
    good = {"left": np.eye(4)[:, :2], "singular_values": np.array([2, 1]), "right": np.eye(3)[:, :2]}
    assert ld.factorization(LowRank(**good)).target.dtype == jnp.float32
    bad = LowRank(**good | parts)
    with pytest.raises(ValueError, match=re.escape(message)):
        ld.factorization(bad)
    with pytest.raises(ValueError, match=r"target|truth"):
        ld.completion(np.eye(4, 3), truth=bad)


def network(rank=2):
    return ld.compress(MATRIX, depth=3, scale=0.3, rank=rank)


def test_entries_are_asked_for_by_valid_indices_only():
    w = network()
    rows, columns = np.array([0, 3]), np.array([2, 0])
    np.testing.assert_allclose(ld.entries(w, rows, columns), ld.end_to_end(w)[rows, columns], rtol=1e-5)
    for bad, message in (
        ([0, 4], "rows has 4 at position 1, expected from 0 to 3"),
        ([0, -1], "rows has -1 at position 1"),  # implicit #207
        ([0.0, 1.0], "rows has type float64, expected integers"),
        (["a", "b"], "rows has type <U1"),
        ([0], "have shapes (1,) and (2,)"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            ld.entries(w, bad, columns)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ld.GradientDescent(-0.1), "learning_rate=-0.1, expected a finite number, at least 0"),
        (lambda: ld.GradientDescent(np.nan), "learning_rate=nan"),
        (lambda: ld.GradientDescent(0.1, alpha=-1), "alpha=-1"),
        (lambda: ld.GradientDescent(0.1, weight_decay=np.array([0.1, -1])), "weight_decay="),
        (lambda: ld.GradientDescent(0.1, nesterov=True), "nesterov=True without a momentum"),
        (lambda: train(tolerance=np.nan), "tolerance=nan, expected a number"),
        (lambda: train(steps=2**31), "steps=2147483648 and record_every=1, expected at most 2147483647"),
        (lambda: train(steps=2**31 - 2, record_every=2**30), "expected at most 2147483647 together"),
        (lambda: train(steps=2.5), "steps=2.5, expected an integer"),
        (lambda: ld.compress(ld.completion(np.zeros((4, 3))), depth=3, scale=1.0), "surrogate is zero"),
    ],
)
def test_settings_that_mean_nothing_are_refused(make, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make()


def train(**settings):
    problem = ld.factorization(MATRIX)
    return ld.gradient_descent(problem, network(), ld.GradientDescent(0.01), **{"steps": 3, **settings})


def test_records_further_apart_than_32_bits_end_the_run_all_the_same():
    assert train(record_every=2**40).steps.tolist() == [0, 3]
    weights = jax.tree.map(lambda leaf: leaf[None], network())
    runs = sweep(ld.factorization(MATRIX), weights, ld.GradientDescent(0.01), steps=3, check_every=2**40)
    assert runs.steps.tolist() == [3]


def test_a_network_narrower_than_the_target_lacks_components():
    """PyDMD #177."""
    target = ld.random_target(jax.random.key(0), (12, 9), [3.0, 2.0, 1.0])
    for rank in (1, 2):
        found = ld.spectra.alignment(ld.compress(target, depth=3, scale=0.1, rank=rank), target)
        for part in found:
            assert part.shape == (3,)
            np.testing.assert_array_equal(part[rank:], 0)
        np.testing.assert_allclose(found.left[:rank], 1, rtol=1e-5)


def test_the_stable_rank_does_not_depend_on_scale():
    values = jnp.array([4.0, 2.0, 1.0])
    for scale in (1.0, 1e-30, 1e30):
        assert ld.spectra.stable_rank(scale * values) == pytest.approx(21 / 16, rel=1e-6)


def test_a_tiny_target_is_not_zero():
    """Its squares are, in single precision."""
    assert np.any(ld.factorization(1e-30 * MATRIX).target)
    factors = np.eye(4)[:, :1], [1e-30], np.eye(3)[:, :1]
    assert ld.factorization(factors).target.singular_values[0] > 0


def test_a_layer_that_starts_at_zero_flows(x64):
    """microsoft/LoRA #98, torchdiffeq #38."""
    problem = ld.factorization(ld.random_target(jax.random.key(0), (12, 9), [3.0, 2.0, 1.0]))
    a, b, c = ld.compress(problem, depth=3, scale=0.3)
    times, runs = jnp.array([0.0, 0.5, 5.0]), []
    for options in ({"solver": "explicit"}, {"solver": "implicit"}, {"atol": 1e-11}):
        runs.append(ld.gradient_flow(problem, (a, b, jnp.zeros_like(c)), times, **options))
        assert runs[-1].ok
    for run in runs[1:]:
        np.testing.assert_allclose(run.losses, runs[0].losses, rtol=1e-6)
    assert runs[0].losses[-1] < 0.1 * runs[0].losses[0]


@pytest.mark.parametrize("flag", ["disable_jit", "debug_nans"])
def test_debugging_flags_change_nothing(flag):
    """jax-md #212, jax #24989."""

    def results():
        problem = ld.completion(MATRIX, MATRIX > 0)
        weights = ld.compress(problem, depth=3, scale=0.3, rank=2)
        descent = ld.GradientDescent(0.02, momentum=0.5)
        stopped = ld.gradient_descent(problem, weights, descent, steps=6, record_every=4, tolerance=1e9)
        run = ld.gradient_descent(problem, weights, descent, steps=3, observe=ld.spectra.singular_values)
        fitted = ld.fit(ld.factorization(np.eye(3)), steps=4, check_every=2)
        many = sweep(problem, jax.tree.map(lambda leaf: leaf[None], weights), descent, steps=2)
        return stopped.losses, run.losses, run.observed, fitted.losses, many.losses

    plain = results()
    with {"disable_jit": jax.disable_jit, "debug_nans": jax.debug_nans}[flag](True):
        flagged = results()
    for one, other in zip(plain, flagged, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4)
