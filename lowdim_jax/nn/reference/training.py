"""Just enough training for checks, figures and examples: a loss, accuracy, shuffled batches."""

from collections.abc import Iterator
from functools import partial
from itertools import islice
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float, Int

from lowdim_jax._triplets import checked_indices
from lowdim_jax.nn.reference.data import Images


def cross_entropy(
    model: nnx.Module, images: Float[Array, "n h w c"], labels: Int[Array, " n"], /
) -> Float[Array, ""]:
    """Mean softmax cross-entropy of a classifier, in nats: optax's, as `loss(model, *batch)`.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> round(float(cross_entropy(lambda x: jnp.zeros((1, 10)), jnp.zeros((1, 2, 2, 1)), jnp.array([3]))), 4)
    2.3026
    """
    logits = model(images)  # type: ignore[operator]
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def train(
    model: nnx.Module,
    tx: optax.GradientTransformation,
    data: Images,
    /,
    *,
    steps: int,
    batch_size: int = 128,
    record_every: int = 50,
    seed: int = 0,
) -> Iterator[int]:
    """Train a classifier in place, and hand back control every few steps.

    `for step in train(…)` runs its body before the first step and after every `record_every`-th, with
    the model as it is then: measure whatever is wanted there. The steps between run in one compiled
    loop, which models of one structure share if they are given the same `tx` and `record_every`.

    Parameters
    ----------
    model
        Maps images to logits.
    tx
        Any optax optimizer, such as `nn.partition(…)`.
    data
        Training images. They are drawn in shuffled epochs; what does not fill a batch is left out.
    steps, batch_size, record_every, seed
        Number of updates, images in each, updates between records, and order of the images.

    Raises
    ------
    ValueError
        If there are fewer images than a batch takes, `record_every` is below 1, or a label is not one of
        the model's classes.

    Examples
    --------
    >>> from flax import nnx
    >>> import optax
    >>> from lowdim_jax.nn import reference
    >>> model = reference.MLP((8, 8, 1), 10, width=16, rngs=nnx.Rngs(0))
    >>> list(reference.train(model, optax.sgd(0.1), reference.digits(), steps=4, record_every=2))
    [0, 2, 4]
    """
    if not 1 <= batch_size <= len(data.labels):
        raise ValueError(f"batch_size={batch_size}, expected 1 to {len(data.labels)}, the number of images")
    if record_every < 1:
        raise ValueError(f"record_every={record_every}, expected at least 1")
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    images, labels = jnp.asarray(data.images), jnp.asarray(data.labels)
    logits: Any = nnx.eval_shape(lambda model, images: model(images), model, images[:1])
    checked_indices("labels", data.labels, logits.shape[-1])
    batches = _batches(len(labels), batch_size, seed)
    yield 0
    for done in range(0, steps, record_every):
        count = min(record_every, steps - done)
        # New each time: JAX shares a NumPy array's memory, and runs on while the next is filled.
        picked = np.zeros((min(record_every, steps), batch_size), np.int32)
        picked[:count] = list(islice(batches, count))
        _run(model, optimizer, images, labels, jnp.asarray(picked), count)
        yield done + count


def accuracy(model: nnx.Module, data: Images, /) -> float:
    """Fraction of images whose largest logit is their label's.

    The model is seen as at evaluation (running statistics, no dropout), and is left as it is.

    Examples
    --------
    >>> from flax import nnx
    >>> from lowdim_jax.nn import reference
    >>> model = reference.MLP((8, 8, 1), 10, width=16, rngs=nnx.Rngs(0))
    >>> 0 <= reference.accuracy(model, reference.digits()) <= 1
    True
    """
    seen = nnx.view(model, deterministic=True, use_running_average=True, raise_if_not_found=False)
    graph, state = nnx.split(seen)
    return float(_accuracy(graph, state, jnp.asarray(data.images), jnp.asarray(data.labels)))


@nnx.jit
def _run(model, optimizer, images, labels, picked, count):
    """One update for each of the first `count` rows of `picked`, the images of its batch."""

    def step(k, trained):
        model, optimizer = trained
        batch = images[picked[k]], labels[picked[k]]
        optimizer.update(model, nnx.grad(cross_entropy)(model, *batch))
        return trained

    nnx.fori_loop(0, count, step, (model, optimizer))


@partial(jax.jit, static_argnums=0)
def _accuracy(graph, state, images, labels):
    logits = nnx.merge(graph, state, copy=True)(images)
    return jnp.mean(jnp.argmax(logits, axis=1).astype(labels.dtype) == labels)


def _batches(count: int, size: int, seed: int) -> Iterator[np.ndarray]:
    rng = np.random.default_rng(seed)
    while True:
        order = rng.permutation(count)
        yield from order[: count // size * size].reshape(-1, size)
