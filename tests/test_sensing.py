"""Claims on sensing problems: what the loss is, whose gradient it has, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowdim_jax as ld

SHAPE, M = (6, 8), 40


@pytest.fixture
def target():
    return ld.random_target(jax.random.key(0), SHAPE, jnp.array([3.0, 2.0]))


@pytest.fixture
def stack():
    return ld.gaussian_measurements(jax.random.key(1), M, SHAPE)


def network(scale=0.5):
    return ld.gaussian(jax.random.key(2), (8, 4, 4, 6), scale=scale)


def pair(stack):
    return (
        lambda w: jnp.einsum("nij,ij->n", stack, w),
        lambda y: jnp.einsum("nij,n->ij", stack, y),
    )


def test_the_loss_is_half_the_squared_misfit_over_the_curvature(x64, stack, target):
    problem = ld.sensing(stack, truth=target, curvature=2.0)
    misfit = jnp.einsum("nij,ij->n", stack, ld.end_to_end(network()) - target.dense())
    np.testing.assert_allclose(problem.loss(network()), jnp.sum(misfit**2) / 4, rtol=1e-13)


def test_the_loss_is_half_the_squared_error_on_average_over_measurements(x64, target):
    def loss(key):
        stack = ld.gaussian_measurements(key, M, SHAPE)
        return ld.sensing(stack, truth=target, curvature=1.0).loss(network())

    losses = jax.lax.map(loss, jax.random.split(jax.random.key(3), 400))
    exact = ld.factorization(target).loss(network())
    spread = jnp.std(losses) / 20  # of the mean of 400
    assert abs(losses.mean() - exact) < 4 * spread < 0.1 * exact


def test_the_default_curvature_makes_any_scaling_of_the_measurements_the_same_problem(x64, stack, target):
    one, other = (ld.sensing(c * stack, truth=target) for c in (1.0, 100.0))
    np.testing.assert_allclose(other.curvature / one.curvature, 1e4, rtol=1e-12)
    np.testing.assert_allclose(other.loss(network()), one.loss(network()), rtol=1e-12)
    np.testing.assert_allclose(other.surrogate_matrix(), one.surrogate_matrix(), rtol=1e-12)


@pytest.mark.parametrize("depth", [1, 3])
def test_functions_give_the_numbers_of_the_stack(x64, stack, target, depth):
    weights = network() if depth == 3 else (jnp.ones(SHAPE),)
    dense = ld.sensing(stack, truth=target, curvature=1.0)
    functions = ld.sensing(pair(stack), dense.labels, shape=SHAPE, truth=target, curvature=1.0)
    value, gradient = jax.value_and_grad(dense.loss)(weights)
    same, also = jax.value_and_grad(functions.loss)(weights)
    np.testing.assert_allclose(same, value, rtol=1e-13)
    for a, b in zip(gradient, also, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-12)
    np.testing.assert_allclose(functions.surrogate_matrix(), dense.surrogate_matrix(), atol=1e-13)


def test_the_curvature_of_functions_is_measured_by_probes(x64, stack, target):
    dense = ld.sensing(stack, truth=target)
    functions = ld.sensing(pair(stack), dense.labels, shape=SHAPE)
    assert abs(functions.curvature / dense.curvature - 1) < 0.3


def test_only_the_given_adjoint_is_used_for_gradients(stack, target):
    """`apply` need not be differentiable by JAX, as one that calls other software is not."""
    forward, adjoint = pair(stack)

    def opaque(w):
        shape = jax.ShapeDtypeStruct((M,), w.dtype)
        return jax.pure_callback(lambda w: np.asarray(forward(w)), shape, w, vmap_method="sequential")

    problem = ld.sensing((opaque, adjoint), forward(target.dense()), shape=SHAPE, curvature=1.0)
    gradient = jax.grad(problem.loss)(network())
    expected = jax.grad(ld.sensing(stack, truth=target, curvature=1.0).loss)(network())
    for a, b in zip(gradient, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


def test_the_gradient_is_that_of_the_plain_formula(x64, stack, target):
    problem = ld.sensing(stack, truth=target, curvature=1.0)

    def plain(weights):
        residual = jnp.einsum("nij,ij->n", stack, ld.end_to_end(weights)) - problem.labels
        return jnp.sum(residual**2) / 2

    for a, b in zip(jax.grad(problem.loss)(network()), jax.grad(plain)(network()), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-12)


def test_the_surrogate_is_the_negative_gradient_at_zero(x64, stack, target):
    problem = ld.sensing(stack, truth=target)
    gradient = jax.grad(lambda w: problem.loss((w,)))(jnp.zeros(SHAPE))
    np.testing.assert_allclose(problem.surrogate_matrix(), -gradient, atol=1e-13)


def test_single_precision_measurements_serve_double_precision_weights(x64, stack, target):
    exact = ld.sensing(stack, truth=target, curvature=1.0)
    single = ld.sensing(stack.astype("float32"), exact.labels, curvature=1.0)
    gradient = jax.grad(single.loss)(network())
    for a, b in zip(gradient, jax.grad(exact.loss)(network()), strict=True):
        assert a.dtype == jnp.float64
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_a_problem_can_be_made_while_a_function_that_holds_its_measurements_is_traced(x64, stack, target):
    labels = np.einsum("nij,ij->n", stack, target.dense())
    misfit = np.einsum("nij,ij->n", stack, np.linalg.multi_dot(network()[::-1])) - labels
    loss = jax.jit(lambda weights: ld.sensing(stack, labels, curvature=1.0).loss(weights))
    np.testing.assert_allclose(loss(network()), np.sum(misfit**2) / 2, rtol=1e-13)
    broken = stack / 0
    with pytest.raises(ValueError, match="NaN or infinite"):
        jax.jit(lambda weights: ld.sensing(broken, labels, curvature=1.0).loss(weights))(network())


def test_measurements_are_standard_gaussian_over_root_m(x64):
    stack = ld.gaussian_measurements(jax.random.key(0), 50, (20, 30))
    assert stack.shape == (50, 20, 30)
    scaled = stack * 50**0.5
    assert abs(scaled.mean()) < 4 / 30_000**0.5
    assert abs(jnp.mean(scaled**2) - 1) < 4 * (2 / 30_000) ** 0.5
    assert not np.array_equal(stack[0], stack[1])
    assert ld.gaussian_measurements(jax.random.key(0), 2, (3, 4), dtype="float32").dtype == "float32"


def test_networks_of_many_seeds_train_in_one_run(x64, stack, target):
    problem = ld.sensing(stack, truth=target)
    scales = jnp.array([0.1, 0.2])
    mapped = jax.vmap(lambda scale: jax.grad(problem.loss)(tuple(scale * w for w in network())))(scales)
    for k, scale in enumerate(scales):
        single = jax.grad(problem.loss)(tuple(scale * w for w in network()))
        np.testing.assert_allclose(mapped[0][k], single[0], atol=1e-13)


BAD = {
    "vector": ("measurements has shape \\(3,\\)", {"measurements": jnp.ones(3)}),
    "none": ("measurements has shape \\(0, 6, 8\\)", {"measurements": jnp.ones((0, 6, 8))}),
    "nan": ("measurements has entries that are NaN", {"measurements": jnp.full((M, 6, 8), jnp.nan)}),
    "labels": (r"labels has shape \(3,\), expected \(40,\)", {"labels": jnp.ones(3)}),
    "label": ("labels has 1 entries that are NaN", {"labels": jnp.ones(M).at[3].set(jnp.nan)}),
    "nothing": ("labels and truth are both missing", {"labels": None}),
    "truth": (r"truth has shape \(8, 6\), but", {"truth": jnp.ones((8, 6))}),
    "shape": (r"shape=\(8, 6\), but the measurements", {"shape": (8, 6)}),
    "curvature": ("curvature=0.0, expected a positive", {"curvature": 0.0}),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named(name, stack):
    message, change = BAD[name]
    arguments = {"measurements": stack, "labels": jnp.ones(M), **change}
    with pytest.raises(ValueError, match=message):
        ld.sensing(arguments.pop("measurements"), arguments.pop("labels"), **arguments)


def test_a_wrong_adjoint_is_refused(stack):
    forward, adjoint = pair(stack)
    with pytest.raises(ValueError, match="adjoint is not the adjoint of apply"):
        ld.sensing((forward, lambda y: 2 * adjoint(y)), jnp.ones(M), shape=SHAPE)
    with pytest.raises(ValueError, match=r"adjoint returns shape \(8, 6\)"):
        ld.sensing((forward, lambda y: adjoint(y).T), jnp.ones(M), shape=SHAPE)
    with pytest.raises(ValueError, match="shape=None, expected"):
        ld.sensing((forward, adjoint), jnp.ones(M))


def test_a_recovery_error_needs_a_truth(stack):
    with pytest.raises(ValueError, match="truth is None"):
        ld.sensing(stack, jnp.ones(M)).recovery_error(network())


@pytest.mark.parametrize("form", ["stack", "functions", "observed"])
def test_second_derivatives_are_those_of_differences(x64, form):
    """Hessian–vector products by forward mode over the gradient, against central differences of gradients."""
    rng = np.random.default_rng(0)
    matrices, truth = rng.standard_normal((30, 4, 5)), rng.standard_normal((4, 5))
    if form == "observed":
        rows, columns = np.nonzero(rng.random((4, 5)) < 0.7)
        problem = ld.observed_completion(rows, columns, truth[rows, columns], shape=(4, 5))
    elif form == "stack":
        problem = ld.sensing(matrices, truth=truth)
    else:
        functions = (
            lambda w: jnp.einsum("mij,ij->m", matrices, w),
            lambda y: jnp.einsum("mij,m->ij", matrices, y),
        )
        problem = ld.sensing(functions, truth=truth, shape=(4, 5))
    weights = tuple(jnp.asarray(rng.standard_normal(shape)) for shape in ((3, 5), (4, 3)))
    along = tuple(jnp.asarray(rng.standard_normal(layer.shape)) for layer in weights)
    gradient = jax.grad(problem.loss)
    product = jax.jvp(gradient, (weights,), (along,))[1]

    def moved(step):
        return gradient(tuple(w + step * d for w, d in zip(weights, along, strict=True)))

    for layer, up, down in zip(product, moved(1e-5), moved(-1e-5), strict=True):
        np.testing.assert_allclose(layer, (up - down) / 2e-5, rtol=1e-6, atol=1e-6)
    slope = jax.jvp(problem.loss, (weights,), (along,))[1]
    dots = [float(jnp.vdot(g, d)) for g, d in zip(gradient(weights), along, strict=True)]
    np.testing.assert_allclose(slope, sum(dots), rtol=1e-12)
