"""Deep linear layers wider than their inputs and outputs together, made narrow before training at no loss."""

import jax
from flax import nnx

from lowdim_jax.nn.layers import OPTIONS, DeepLinear, at_least_single, metadata_of
from lowdim_jax.window import hidden_bases


def narrow_layer(layer: DeepLinear, /) -> DeepLinear:
    """The layer with hidden width `in + out` in the place of a larger one: the same along all of training.

    Inside any model, a `DeepLinear` of `L` factors whose middle ones are orthogonal times a scale each, as
    they are by default, and whose outer ones are any, is at every step exactly the narrow one that this
    returns (docs/theory.md 3.8, with the rest of the model as part of the loss): under descent with momentum,
    weight decay or clipping of the gradient, not under Adam. With two factors they may be any. Weights fall
    from `h (in + out) + (L − 2) h²` to `(L − 1) (in + out)²`.

    Parameters
    ----------
    layer
        A layer that has not been trained yet; it is left as it is.

    Returns
    -------
    A `DeepLinear` with the same options and bias.

    Raises
    ------
    ValueError
        If `layer` is no plain `DeepLinear`, its hidden layers are no wider than `in + out`, so that nothing
        is saved, grow and then shrink, or a middle factor is not orthogonal, as after training.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> from lowdim_jax import nn
    >>> wide = nn.DeepLinear(6, 4, hidden=200, rngs=nnx.Rngs(0))
    >>> narrow, x = nn.narrow_layer(wide), jnp.ones((1, 6))
    >>> narrow.factors[1].shape, bool(jnp.allclose(narrow(x), wide(x), atol=1e-5))
    ((10, 10), True)
    """
    if type(layer) is not DeepLinear:
        raise ValueError(f"layer is a {type(layer).__name__}, expected a DeepLinear")
    least = layer.in_features + layer.out_features
    hidden = [factor.shape[0] for factor in list(layer.factors)[:-1]]
    if not hidden or min(hidden) <= least:
        raise ValueError(
            f"hidden widths are {hidden}, expected more than in + out = {least}: below that nothing is saved"
        )
    weights = [weight.astype(at_least_single(layer.param_dtype)) for weight in layer.weights]
    with jax.default_matmul_precision("highest"):
        bases = (None, *hidden_bases(weights), None)
        cores = [
            _between(before, weight, after)
            for before, weight, after in zip(bases, weights, bases[1:], strict=False)
        ]
    bias = layer.bias
    narrow = DeepLinear(
        layer.in_features,
        layer.out_features,
        depth=layer.depth,
        hidden=least,
        bias_init=lambda *_: None if bias is None else bias[...],
        kernel_metadata=metadata_of(layer.factors[0]),
        bias_metadata={} if bias is None else metadata_of(bias),
        rngs=nnx.Rngs(0),
        **{name: getattr(layer, name) for name in OPTIONS},
    )
    narrow.set_weights(cores)
    return narrow


def _between(before, weight: jax.Array, after) -> jax.Array:
    weight = weight if before is None else weight @ before
    return weight if after is None else after.T @ weight
