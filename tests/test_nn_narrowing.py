"""Claims on wide deep linear layers made narrow: the same outputs along all of training."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from lowdim_jax import nn
from lowdim_jax.nn import reference

STEPS = 200


class Perceptron(nnx.Module):
    """ReLU, a deep linear layer wider than its ends together, ReLU, logits."""

    def __init__(self, rngs):
        self.first = nnx.Linear(64, 12, rngs=rngs)
        self.deep = nn.DeepLinear(12, 10, hidden=90, rngs=rngs)
        self.last = nnx.Linear(10, 10, rngs=rngs)

    def __call__(self, images):
        x = jax.nn.relu(self.first(images.reshape(len(images), -1)))
        return self.last(jax.nn.relu(self.deep(x)))


class Transformer(nnx.Module):
    """A small vision transformer with a wide deep linear layer as its first perceptron's upper half."""

    def __init__(self, rngs):
        self.body = reference.VisionTransformer((8, 8, 1), 10, width=8, depth=1, heads=2, rngs=rngs)
        self.body.blocks[0].up = nn.DeepLinear(8, 32, hidden=100, scale=1.0, rngs=rngs)

    @property
    def deep(self):
        return self.body.blocks[0].up

    @deep.setter
    def deep(self, layer):
        self.body.blocks[0].up = layer

    def __call__(self, images):
        return self.body(images)


@nnx.jit
def outputs_of_training(model, optimizer, images, labels, batches):
    """Logits of the first images after every step."""

    def step(carry, batch):
        model, optimizer = carry

        def loss(model):
            logits = model(images[batch])
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels[batch]).mean()

        optimizer.update(model, nnx.grad(loss)(model))
        return (model, optimizer), model(images[:8])

    _, outputs = nnx.scan(step)((model, optimizer), batches)
    return outputs


@pytest.mark.parametrize("kind", [Perceptron, Transformer])
def test_outputs_agree_at_every_step(kind):
    images, labels = reference.digits()
    images, labels = jnp.asarray(images[:400]), jnp.asarray(labels[:400])
    batches = jax.random.randint(jax.random.key(0), (STEPS, 32), 0, 400)
    runs = []
    for narrow in (False, True):
        model = kind(nnx.Rngs(1))
        start = np.asarray(model(images[:8]))
        if narrow:
            model.deep = nn.narrow_layer(model.deep)
            assert {width for factor in list(model.deep.factors)[:-1] for width in factor.shape[:1]} == {
                model.deep.in_features + model.deep.out_features
            }
        chain = optax.chain(optax.add_decayed_weights(1e-3), optax.sgd(0.02, momentum=0.9))
        optimizer = nnx.Optimizer(model, chain, wrt=nnx.Param)
        with jax.default_matmul_precision("highest"):
            runs.append(np.asarray(outputs_of_training(model, optimizer, images, labels, batches)))
    wide, small = runs
    assert np.max(np.abs(wide[-1] - start)) > 0.5, "a run that does not move shows nothing"
    scale = np.max(np.abs(wide), axis=(1, 2))
    gaps = np.max(np.abs(wide - small), axis=(1, 2)) / scale
    # Rounding of the steps so far, amplified by the nonlinear network as any change of the order of sums is.
    assert np.all(gaps < 100 * np.finfo(np.float32).eps * (np.arange(STEPS) + 1))


def test_bias_and_options_are_kept():
    layer = nn.DeepLinear(3, 2, hidden=9, depth=2, param_dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    layer.bias[...] = jnp.ones(2, jnp.bfloat16)
    narrow = nn.narrow_layer(layer)
    assert narrow.factors[0].dtype == jnp.bfloat16
    np.testing.assert_array_equal(narrow.bias[...], layer.bias[...])


def test_layers_that_gain_nothing_or_are_trained_already_are_refused():
    with pytest.raises(ValueError, match=r"hidden widths are \[5, 5\], expected more than in \+ out = 5"):
        nn.narrow_layer(nn.DeepLinear(3, 2, hidden=5, rngs=nnx.Rngs(0)))
    with pytest.raises(ValueError, match="layer is a Linear, expected a DeepLinear"):
        nn.narrow_layer(nnx.Linear(3, 2, rngs=nnx.Rngs(0)))
    init = nnx.initializers.lecun_normal()
    with pytest.raises(ValueError, match="layer 2 has singular values"):
        nn.narrow_layer(nn.DeepLinear(3, 2, hidden=9, kernel_init=init, rngs=nnx.Rngs(0)))
    two = nn.DeepLinear(3, 2, hidden=9, depth=2, kernel_init=init, rngs=nnx.Rngs(0))
    assert nn.narrow_layer(two).factors[0].shape == (5, 3)
