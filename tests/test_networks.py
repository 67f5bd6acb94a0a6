"""Claims on networks as tuples of matrices."""

from functools import reduce
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowdim_jax as ld


def network(spaces, seed=0):
    rng = np.random.default_rng(seed)
    return tuple(
        jnp.asarray(rng.standard_normal((after, before)), float)
        for before, after in pairwise(spaces)
    )


def intermediates(function, *arguments):
    """Shapes of every array a function forms, inner programs included."""

    def shapes(jaxpr):
        for equation in jaxpr.eqns:
            for variable in equation.outvars:
                yield variable.aval.shape
            for value in jax.tree.leaves(
                equation.params, is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")
            ):
                inner = getattr(value, "jaxpr", value)
                if hasattr(inner, "eqns"):
                    yield from shapes(inner)

    return set(shapes(jax.make_jaxpr(function)(*arguments).jaxpr))


@pytest.mark.parametrize("spaces", [(5, 4), (5, 3, 4), (5, 2, 6, 3, 4), (2, 7, 7, 2)])
def test_end_to_end_is_the_product_last_layer_first(x64, spaces):
    weights = network(spaces)
    expected = np.eye(spaces[0])
    for weight in weights:
        expected = np.asarray(weight) @ expected
    np.testing.assert_allclose(ld.end_to_end(weights), expected, rtol=1e-12, atol=1e-12)
    if len(spaces) > 2:
        a, b = ld.networks.end_to_end_factors(weights)
        np.testing.assert_allclose(a @ b, expected, rtol=1e-12, atol=1e-12)
        assert a.shape == (spaces[-1], min(spaces[1:-1]))


def test_a_product_that_ends_thin_never_forms_the_wide_matrix():
    weights = network((300, 2, 301, 3, 4))
    assert max(np.prod(s) for s in intermediates(ld.end_to_end, weights)) == 300 * 4


def test_factors_and_forward_of_a_compressed_network_never_form_the_matrix():
    weights = network((300, 3, 3, 301))
    x = jnp.ones((300, 2))
    for shapes in (
        intermediates(ld.networks.end_to_end_factors, weights),
        intermediates(ld.forward, weights, x),
        intermediates(ld.spectra.network_svd, weights),
        intermediates(ld.spectra.singular_values, weights),
    ):
        assert max(np.prod(s) for s in shapes) <= 3 * 301


def test_forward_is_the_matrix_applied(x64):
    weights = network((5, 3, 6, 4))
    x = jnp.asarray(np.random.default_rng(1).standard_normal((5, 7)))
    outputs = ld.networks.activations(weights, x)
    assert [a.shape for a in outputs] == [(5, 7), (3, 7), (6, 7), (4, 7)]
    np.testing.assert_array_equal(outputs[0], x)
    np.testing.assert_allclose(outputs[2], weights[1] @ weights[0] @ x, rtol=1e-12)
    np.testing.assert_allclose(ld.forward(weights, x), ld.end_to_end(weights) @ x, atol=1e-11)


def test_first_and_last_layers_are_outer():
    assert ld.roles((0,)) == ("outer",)
    assert ld.roles((0, 0)) == ("outer", "outer")
    assert ld.roles((0,) * 5) == ("outer", "middle", "middle", "middle", "outer")


def test_widths_and_counts_agree():
    spaces = (5, 3, 6, 4)
    weights = network(spaces)
    assert ld.widths(weights) == spaces
    assert ld.parameter_count(weights) == 15 + 18 + 24
    assert ld.widths(list(weights)) == spaces


def test_compressed_networks_have_the_stated_parameter_count():
    d_out, d_in, rank, depth = 9, 7, 4, 5
    spaces = ld.compressed_widths(d_out, d_in, depth=depth, rank=rank)
    assert spaces == (7, 4, 4, 4, 4, 9)
    weights = jax.eval_shape(lambda: ld.initialization.identity(spaces, scale=1.0))
    assert ld.parameter_count(weights) == (d_out + d_in) * rank + (depth - 2) * rank**2
    assert ld.full_widths(9, 7, depth=3) == (7, 7, 7, 9)
    assert ld.full_widths(9, 7, depth=3, hidden=8) == (7, 8, 8, 9)
    assert ld.full_widths(9, 7, depth=1) == (7, 9)


BAD = {
    "no layer": ("weights is empty", lambda: ld.widths(())),
    "vector": (r"layer 2 has shape \(3,\), expected a matrix", lambda: ld.networks.validate(
        (jnp.ones((3, 2)), jnp.ones(3))
    )),
    "mismatch": (
        r"layer 2 has shape \(4, 5\) and takes 5 inputs, but layer 1 of shape \(3, 2\) gives 3",
        lambda: ld.end_to_end((jnp.ones((3, 2)), jnp.ones((4, 5)))),
    ),
    "mismatch on forward": (
        "layer 2 .* takes 5 inputs",
        lambda: ld.forward((jnp.ones((3, 2)), jnp.ones((4, 5))), jnp.ones((2, 1))),
    ),
    "rows of data": (
        r"x has shape \(3, 2\), expected \(2, n\)",
        lambda: ld.forward((jnp.ones((3, 2)),), jnp.ones((3, 2))),
    ),
    "vector of data": (
        r"x has shape \(2,\), expected \(2, n\)",
        lambda: ld.networks.activations((jnp.ones((3, 2)),), jnp.ones(2)),
    ),
    "nothing to split": (
        "weights has one layer",
        lambda: ld.networks.end_to_end_factors((jnp.ones((3, 2)),)),
    ),
    "depth zero": (
        "depth=0, expected an integer of at least 1",
        lambda: ld.full_widths(3, 2, depth=0),
    ),
    "depth one": (
        "depth=1, expected an integer of at least 2",
        lambda: ld.compressed_widths(3, 2, depth=1, rank=1),
    ),
    "depth 2.5": (
        r"depth=2\.5, expected an integer",
        lambda: ld.full_widths(3, 2, depth=2.5),
    ),
    "depth True": ("depth=True, expected an integer", lambda: ld.full_widths(3, 2, depth=True)),
    "rank zero": (
        r"rank=0, expected 1 ≤ rank ≤ 2 for a 3×2 matrix",
        lambda: ld.compressed_widths(3, 2, depth=2, rank=0),
    ),
    "rank above": (
        r"rank=3, expected 1 ≤ rank ≤ 2 for a 3×2 matrix",
        lambda: ld.compressed_widths(3, 2, depth=2, rank=3),
    ),
    "hidden zero": ("hidden=0", lambda: ld.full_widths(3, 2, depth=2, hidden=0)),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named(name):
    message, call = BAD[name]
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("widths", [(7, 2, 9, 3, 8), (8, 5, 6, 4, 9), (6, 1, 1, 7), (9, 9, 9, 4, 9, 9)])
def test_a_compiled_product_is_the_product_in_as_few_operations(widths):
    """Of the cheapest order, as an exhaustive search finds it; narrow networks are multiplied another way."""
    rng = np.random.default_rng(0)
    shapes = [(after, before) for before, after in pairwise(widths)]
    weights = tuple(rng.standard_normal(shape).astype(np.float32) for shape in shapes)
    compiled = jax.jit(ld.end_to_end).lower(weights).compile()
    expected = reduce(np.matmul, (weight.astype(float) for weight in reversed(weights)))
    assert np.allclose(compiled(weights), expected, rtol=1e-5, atol=1e-5)

    def least(sides):
        costs = (
            least(sides[: k + 1]) + least(sides[k:]) + sides[0] * sides[k] * sides[-1]
            for k in range(1, len(sides) - 1)
        )
        return min(costs, default=0)

    assert compiled.cost_analysis()["flops"] <= 2 * least(widths)
