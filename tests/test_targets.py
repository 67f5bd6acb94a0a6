"""Targets: regression on whitened data is factorization of `Y Xᵀ`."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowdim_jax as ld


def data(d_in=6, d_out=4, samples=40):
    key_inputs, key_labels = jax.random.split(jax.random.key(0))
    inputs = jax.random.normal(key_inputs, (d_in, samples)) * jnp.arange(1.0, d_in + 1)[:, None]
    return inputs, jax.nn.one_hot(jax.random.randint(key_labels, (samples,), 0, d_out), d_out).T


def test_whitened_inputs_have_the_identity_as_second_moment(x64):
    white = ld.problems.whiten(data()[0])
    np.testing.assert_allclose(white @ white.T, np.eye(6), atol=1e-14)


def test_regression_on_whitened_inputs_is_factorization_plus_a_constant(x64):
    inputs, labels = data()
    white = ld.problems.whiten(inputs)
    target = ld.problems.regression_target(white, labels)
    weights = ld.gaussian(jax.random.key(1), (6, 5, 4), scale=1.0)

    def regression(weights):
        return jnp.sum((ld.forward(weights, white) - labels) ** 2) / 2

    problem = ld.factorization(target)
    constant = (np.sum(labels**2) - np.sum(target.singular_values**2)) / 2
    np.testing.assert_allclose(regression(weights), problem.loss(weights) + constant, rtol=1e-12)
    for a, b in zip(jax.grad(regression)(weights), jax.grad(problem.loss)(weights), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-12)


def test_the_rank_is_at_most_the_number_of_classes(x64):
    inputs, labels = data(d_in=20, d_out=3, samples=60)
    assert ld.problems.regression_target(ld.problems.whiten(inputs), labels).singular_values.shape == (3,)
    outputs = jnp.concatenate([labels, labels])  # the same three rows again
    assert ld.problems.regression_target(ld.problems.whiten(inputs), outputs).singular_values.shape == (3,)


def test_single_precision_whitening_is_accepted():
    inputs, labels = data()
    assert ld.problems.regression_target(ld.problems.whiten(inputs), labels).dtype == jnp.float32


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x, y: ld.problems.regression_target(x, y), "inputs are not white: an entry of X Xᵀ is"),
        (
            lambda x, y: ld.problems.regression_target(ld.problems.whiten(x), y[:, :5]),
            "(6, 40) and outputs (4, 5)",
        ),
        (lambda x, y: ld.problems.regression_target(ld.problems.whiten(x)[0], y), "inputs has shape (40,)"),
        (lambda x, y: ld.problems.whiten(x[:, :3]), "inputs of shape (6, 3) span fewer than 6 dimensions"),
        (lambda x, y: ld.problems.whiten(jnp.concatenate([x, x])), "(12, 40) span fewer than 12 dimensions"),
        (
            lambda x, y: ld.problems.whiten(x.at[1, 2].set(jnp.nan)),
            "NaN or infinite, the first at index (1, 2)",
        ),
    ],
)
def test_bad_data_is_named(x64, call, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        call(*data())
