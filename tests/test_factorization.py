"""Claims on the factorization problem: one loss, dense or factored, accurate and small."""

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowdim_jax as ld
from lowdim_jax import theory

VALUES = np.array([3.0, 2.0, 0.5])


def factors(shape=(7, 9), values=VALUES):
    rng = np.random.default_rng(0)
    left, right = (np.linalg.qr(rng.standard_normal((d, len(values))))[0] for d in shape)
    return tuple(jnp.asarray(a, float) for a in (left, values, right))


def network(spaces, scale=0.5, seed=1):
    rng = np.random.default_rng(seed)
    return tuple(
        jnp.asarray(scale * rng.standard_normal((after, before)), float)
        for before, after in pairwise(spaces)
    )


def shapes_formed(jaxpr):
    """Shapes of every array a program forms, inner programs included."""
    for equation in jaxpr.eqns:
        for variable in equation.outvars:
            yield variable.aval.shape
        for value in jax.tree.leaves(
            equation.params, is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")
        ):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from shapes_formed(inner)


@pytest.mark.parametrize("spaces", [(9, 7), (9, 3, 7), (9, 2, 2, 7), (9, 7, 8, 7), (9, 12, 5, 12, 7)])
def test_dense_and_factored_targets_have_one_loss_and_gradient(x64, spaces):
    target = ld.low_rank(*factors())
    weights = network(spaces)
    dense, factored = ld.factorization(target.dense()), ld.factorization(target)
    expected = np.sum((np.asarray(ld.end_to_end(weights)) - np.asarray(target.dense())) ** 2) / 2
    for problem in (dense, factored):
        np.testing.assert_allclose(problem.loss(weights), expected, rtol=1e-12)
        np.testing.assert_allclose(
            problem.recovery_error(weights),
            np.sqrt(2 * expected) / np.linalg.norm(VALUES),
            rtol=1e-12,
        )
    for a, b in zip(jax.grad(dense.loss)(weights), jax.grad(factored.loss)(weights), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-11)


@pytest.mark.parametrize("form", ["dense", "factored"])
def test_the_gradient_is_that_of_finite_differences(x64, form):
    target = ld.low_rank(*factors())
    problem = ld.factorization(target.dense() if form == "dense" else target)
    weights, direction = network((9, 3, 4, 7)), network((9, 3, 4, 7), seed=5)
    _, slope = jax.jvp(problem.loss, (weights,), (direction,))
    step = 1e-5

    def moved(sign):
        pairs = zip(weights, direction, strict=True)
        return problem.loss(tuple(w + sign * step * v for w, v in pairs))

    np.testing.assert_allclose(slope, (moved(1) - moved(-1)) / (2 * step), rtol=1e-8)


def test_the_recovery_error_is_accurate_to_rounding(x64):
    left, values, right = factors()
    problem = ld.factorization((left, values, right))
    for size in (1e-2, 1e-6, 1e-10, 1e-13):
        weights = (right.T, left * (values * (1 + size))[None])
        np.testing.assert_allclose(problem.recovery_error(weights), size, rtol=2e-15 / size + 1e-9)
    exact = (right.T, left * values[None])
    assert problem.recovery_error(exact) < 1e-14
    assert all(bool(jnp.all(jnp.isfinite(g))) for g in jax.grad(problem.loss)(exact))


def test_an_error_outside_the_targets_spaces_is_accurate_too(x64):
    left, values, right = factors()
    rng = np.random.default_rng(3)
    out = rng.standard_normal((7, 1))
    out -= np.asarray(left @ (left.T @ out))
    out /= np.linalg.norm(out)
    inside = rng.standard_normal((9, 1))
    inside -= np.asarray(right @ (right.T @ inside))
    inside /= np.linalg.norm(inside)
    for size in (1e-3, 1e-9, 1e-13):
        weights = (
            jnp.concatenate([right, inside], axis=1).T,
            jnp.concatenate([left * values[None], size * out], axis=1),
        )
        error = ld.factorization((left, values, right)).recovery_error(weights)
        np.testing.assert_allclose(error, size / np.linalg.norm(VALUES), rtol=2e-15 / size + 1e-9)


def test_a_matrix_of_twenty_thousand_is_never_formed():
    d = 20_000
    target = ld.random_target(jax.random.key(0), (d, d), jnp.array([3.0, 2.0, 1.0]))
    problem = ld.factorization(target)
    weights = ld.compress(problem, depth=3, scale=0.1, rank=6)
    assert [w.shape for w in weights] == [(6, d), (6, 6), (d, 6)]
    step = jax.jit(jax.value_and_grad(problem.loss))
    memory = step.lower(weights).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 100 * d * 4  # d² would be 20,000 of them
    formed = shapes_formed(jax.make_jaxpr(jax.value_and_grad(problem.loss))(weights).jaxpr)
    assert max(np.prod(shape) for shape in formed) <= 6 * d
    run = ld.gradient_descent(problem, weights, ld.GradientDescent(0.05), steps=3)
    assert run.losses[-1] < run.losses[0]
    assert problem.recovery_error(run.weights) < 1


def test_any_form_of_target_is_the_same_problem(x64):
    left, values, right = factors()
    matrix = np.asarray((left * values[None]) @ right.T)
    weights = network((9, 4, 7))
    mixed = (left * jnp.array([2.0, 1.0, 1.0])[None], values, right / 3)  # not orthonormal
    expected = ld.factorization(matrix).loss(weights)
    for form in (
        matrix.tolist(),
        jnp.asarray(matrix),
        (left, values, right),
        (left[:, ::-1], values[::-1], right[:, ::-1]),
        (-left, -values, right),
        ld.low_rank(left, values, right),
    ):
        np.testing.assert_allclose(ld.factorization(form).loss(weights), expected, rtol=1e-12)
    odd = ld.factorization(mixed)
    dense = (mixed[0] * mixed[1][None]) @ mixed[2].T
    np.testing.assert_allclose(
        odd.loss(weights), ld.factorization(dense).loss(weights), rtol=1e-12
    )
    np.testing.assert_allclose(
        odd.surrogate().singular_values, np.linalg.svd(dense, compute_uv=False)[:3], rtol=1e-12
    )


def test_whole_numbers_are_a_target():
    problem = ld.factorization([[1, 2], [3, 4]])
    assert problem.target.dtype == jnp.float32
    assert problem.loss((jnp.zeros((2, 2)),)) == 15.0


def test_the_surrogate_is_the_negative_gradient_at_zero(x64):
    target = ld.low_rank(*factors())
    dense = ld.factorization(target.dense())
    np.testing.assert_allclose(
        -jax.grad(lambda w: dense.loss((w,)))(jnp.zeros((7, 9))), dense.surrogate().dense(), atol=2e-14
    )
    for leaf, own in zip(
        jax.tree.leaves(ld.factorization(target).surrogate()), jax.tree.leaves(target), strict=True
    ):
        np.testing.assert_array_equal(leaf, own)


@pytest.mark.parametrize(("depth", "alpha"), [(2, 1.0), (3, 1.0), (3, 2.0), (4, 0.5)])
def test_the_stable_learning_rate_separates_convergence_from_divergence(x64, depth, alpha):
    problem = ld.factorization(ld.low_rank(*factors()))
    edge = float(ld.max_learning_rate(problem, depth=depth, alpha=alpha))
    np.testing.assert_allclose(edge, theory.max_learning_rate(3.0, depth=depth, alpha=alpha))
    weights = ld.compress(problem, depth=depth, scale=0.02 if depth == 2 else 0.1, rank=3)
    losses = [
        ld.gradient_descent(
            problem.loss,
            weights,
            ld.GradientDescent(factor * edge, alpha=alpha),
            steps=6000,
            record_every=6000,
        ).losses[-1]
        for factor in (0.95, 1.05)
    ]
    assert losses[0] < 1e-12
    assert not losses[1] < 1e-6


def test_problems_are_pytrees_that_map_over_targets(x64):
    left, values, right = factors()
    weights = network((9, 4, 7))

    def loss(values):
        return ld.factorization(ld.LowRank(left, values, right)).loss(weights)

    many = jnp.stack([values, 2 * values])
    np.testing.assert_allclose(
        jax.jit(jax.vmap(loss))(many), [loss(values), loss(2 * values)], rtol=1e-12
    )


NAN = float("nan")
BAD = {
    "vector": (r"target has shape \(3,\), expected a non-empty matrix", lambda: [1.0, 2.0, 3.0]),
    "tensor": (r"target has shape \(1, 1, 1\), expected", lambda: jnp.ones((1, 1, 1))),
    "empty": (r"target has shape \(0, 3\), expected a non-empty", lambda: jnp.ones((0, 3))),
    "zero": ("target is zero", lambda: jnp.zeros((3, 3))),
    "nan": (
        r"target has 2 entries that are NaN or infinite, the first at index \(0, 1\)",
        lambda: jnp.array([[1.0, NAN], [1.0, jnp.inf]]),
    ),
    "nan in factors": (
        r"core has 1 entries .* index \(1,\)",
        lambda: (jnp.eye(3, 2), jnp.array([1.0, NAN]), jnp.eye(3, 2)),
    ),
    "nan in left": (
        r"left has 1 entries .* index \(0, 0\)",
        lambda: (jnp.eye(3, 2).at[0, 0].set(NAN), jnp.ones(2), jnp.eye(3, 2)),
    ),
    "nan in a LowRank": (
        "(target|core|singular_values) has 1 entries",
        lambda: ld.LowRank(jnp.eye(3, 2), jnp.array([1.0, NAN]), jnp.eye(3, 2)),
    ),
    "ranks differ": (
        r"factors have shapes \(3, 2\), \(3,\), \(3, 2\), expected \(d_out, r\)",
        lambda: (jnp.eye(3, 2), jnp.ones(3), jnp.eye(3, 2)),
    ),
    "factors not thin": (
        r"factors have shapes \(2, 3\), .*1 ≤ r ≤ min",
        lambda: (jnp.eye(2, 3), jnp.ones(3), jnp.eye(2, 3)),
    ),
    "factors not matrices": (
        r"factors have shapes \(3,\), \(3,\), \(3,\), expected",
        lambda: (jnp.ones(3), jnp.ones(3), jnp.ones(3)),
    ),
    "zero factors": (
        "target is zero",
        lambda: (jnp.eye(3, 2), jnp.zeros(2), jnp.eye(3, 2)),
    ),
    "complex": ("target .*complex", lambda: np.eye(2) * 1j),
    "ragged": ("target", lambda: [[1.0, 2.0], [3.0]]),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_targets_are_named(name):
    message, target = BAD[name]
    with pytest.raises(ValueError, match=message):
        ld.factorization(target())


@pytest.mark.parametrize("form", ["dense", "factored"])
def test_a_network_of_other_shape_is_named(form):
    target = ld.low_rank(*factors())
    problem = ld.factorization(target.dense() if form == "dense" else target)
    message = r"the network maps 9 inputs to 8 outputs, but the target has shape \(7, 9\)"
    with pytest.raises(ValueError, match=message):
        problem.loss(network((9, 3, 8)))
    with pytest.raises(ValueError, match=message):
        problem.recovery_error(network((9, 3, 8)))
    with pytest.raises(ValueError, match="depth=0, expected an integer of at least 1"):
        ld.max_learning_rate(problem, depth=0)


@pytest.mark.parametrize("kind", ["dense", "factored"])
def test_a_gradient_of_a_narrow_network_takes_the_operations_it_needs(kind):
    """As the compiler counts them, not by a clock: none of `d²` but `Φ Bᵀ` and `Aᵀ Φ` of a dense Φ."""
    d, width, rank = 60, 6, 3
    target = ld.random_target(jax.random.key(0), (d, d), jnp.arange(rank, 0, -1.0))
    weights = ld.compress(target, depth=3, scale=0.1, rank=width)
    problem = ld.factorization(target.dense() if kind == "dense" else target)
    counted = jax.jit(jax.grad(problem.loss)).lower(weights).compile().cost_analysis()["flops"]
    with_target = 4 * d**2 * width if kind == "dense" else 8 * d * rank * width
    in_the_network = 14 * d * width**2  # A, AᵀA, BBᵀ, both in gradients, A in those of its layers
    entrywise = 8 * d * width + 20 * width**3
    assert counted <= with_target + in_the_network + entrywise
    assert counted >= with_target + in_the_network


def test_a_gradient_takes_the_memory_it_needs():
    """As the compiler counts it, beside arguments and result: `d²` numbers for a mask only, no residual.

    Masked and reduced it is half of that for users: tests compile without parts side by side.
    """
    d, width, rank = 60, 6, 3
    target = ld.random_target(jax.random.key(0), (d, d), jnp.arange(rank, 0, -1.0))
    weights = ld.compress(target, depth=3, scale=0.1, rank=width)
    small = ld.sample(jax.random.key(0), 50 * d, target.singular_values, depth=3, scale=0.1)
    mask = np.random.default_rng(0).random((d, d)) < 0.3
    needed = {
        "dense": (ld.factorization(target.dense()), weights, 2 * d * width + width**2),  # A, Φ Bᵀ, a middle
        "factored": (ld.factorization(target), weights, 2 * d * width + width**2),
        "masked": (ld.completion(target.dense(), mask), weights, 2 * d**2 + d * width),
        "reduced": (small.problem, small.layers, 4 * width**2),  # with transposes; whatever the full width
    }
    for name, (problem, network, numbers) in needed.items():
        leaves, tree = jax.tree.flatten(problem)

        def loss(weights, leaves, tree=tree):
            return tree.unflatten(leaves).loss(weights)

        gradient = jax.jit(jax.grad(loss)).lower(network, leaves).compile()
        memory = gradient.memory_analysis()
        given = sum(leaf.nbytes for leaf in jax.tree.leaves(network))
        # By version of XLA: jaxlib 0.12 takes 1.45 times this for a dense target. A residual: five times.
        assert memory.temp_size_in_bytes <= 1.5 * 4 * numbers, name
        assert given <= memory.output_size_in_bytes <= given + 8 * 16, name  # and the tuple's pointers


def test_the_derivative_of_the_loss_is_that_of_the_residual_whatever_its_order(x64):
    rng = np.random.default_rng(0)
    weights = tuple(jnp.asarray(rng.standard_normal(shape)) for shape in ((2, 7), (2, 2), (6, 2)))
    change = tuple(jnp.asarray(rng.standard_normal(layer.shape)) for layer in weights)
    target = jnp.asarray(rng.standard_normal((6, 7)))

    def plain(weights):
        first, second, third = weights
        return jnp.sum((third @ second @ first - target) ** 2) / 2

    def hessian_product(loss):
        return jax.jvp(jax.grad(loss), (weights,), (change,))[1]

    ours = ld.factorization(target).loss
    for found, expected in zip(hessian_product(ours), hessian_product(plain), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)
    slopes = [jax.jvp(loss, (weights,), (change,))[1] for loss in (ours, plain)]
    np.testing.assert_allclose(*slopes, rtol=1e-12)
