"""A compressed network before the classifier of a perceptron, a conv net and a vision transformer, tuned.

    python tests/benchmarks/bench_heads.py [--data DIR] [--models MLP ConvNet VisionTransformer]

Heads: none ("plain"), two narrow factors from He's start, the paper's deep network, and the compressed one
from random and from spectral directions, all at the `ε` that keeps the variance of activations. Momentum
0.9, the same steps and batches for all. Each head's rate is the best on held-out training images of one
split (seed 100), on a grid of factors √10 that is extended until the best is inside it; the table is of
test images over seeds. Seconds are of processor time without compilation, the spectral start included.
"""

import argparse
import statistics
import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from lowdim_jax import nn
from lowdim_jax.nn import reference

CLASSES, RANK = 10, 20
HEADS = ("plain", "two factors, He", "deep", "compressed, random", "compressed, spectral")
MODELS = {
    "MLP": (reference.MLP, {"width": 256}),
    "ConvNet": (reference.ConvNet, {"channels": 8, "width": 128}),
    "VisionTransformer": (reference.VisionTransformer, {"width": 64, "depth": 1}),
}
MOMENTUM = optax.trace(0.9)


def make(name: str, head: str, shape, seed: int):
    """A model with one of the heads."""
    build, options = MODELS[name]
    if name == "VisionTransformer":
        options = options | {"patch": shape[0] // 4}
    kind = head if head in ("plain", "deep") else "compressed"
    model = build(shape, CLASSES, **options, head=kind, rngs=nnx.Rngs(seed))
    if head not in ("plain", "deep"):
        width = model.head.classifier.in_features
        two = {"depth": 2, "kernel_init": nnx.initializers.he_normal()} if head == "two factors, He" else {}
        model.head.network = nn.CompressedLinear(
            width, width, rank=RANK, use_bias=False, **two, rngs=nnx.Rngs(1000 + seed)
        )
    return model


@partial(jax.jit, static_argnums=0)
def train(graph, state, rate, data, rows, test):
    """Accuracy on `test` before each block of rows `(records, every, batch)` and at the end."""

    def accuracy(state):
        logits = nnx.merge(graph, state, copy=True)(test[0])
        return jnp.mean(jnp.argmax(logits, axis=1) == test[1])

    def step(carry, picked):
        state, memory = carry
        batch = tuple(part[picked] for part in data)
        slope = jax.grad(lambda s: reference.cross_entropy(nnx.merge(graph, s, copy=True), *batch))(state)
        direction, memory = MOMENTUM.update(slope, memory)
        return (jax.tree.map(lambda p, d: p - rate * d, state, direction), memory), None

    def block(carry, picked):
        seen = accuracy(carry[0])
        return jax.lax.scan(step, carry, picked)[0], seen

    carry, seen = jax.lax.scan(block, (state, MOMENTUM.init(state)), rows)
    return jnp.append(seen, accuracy(carry[0]))


def run(name, head, images, seed, rate, options, *, validate):
    """Accuracies at the records, seconds a step, and seconds of the start."""
    data, test = images.split(seed=seed)
    if validate:
        data, test = data.split(seed=1000 + seed)
    model, begin = make(name, head, data.images.shape[1:], seed), time.process_time()
    if head == "compressed, spectral":
        batch = tuple(jnp.asarray(part[:512]) for part in data)
        scale = nn.layers.variance_scale((model.head.classifier.in_features, RANK, RANK,
                                          model.head.classifier.in_features))  # fmt: skip
        nn.spectral_start(model, "head.network", reference.cross_entropy, *batch, scale=scale)
    started = time.process_time() - begin
    rng, records = np.random.default_rng(seed), options.steps // options.every
    shape = records, options.every, options.batch
    rows = jnp.asarray(rng.integers(0, len(data.labels), shape), jnp.int32)
    graph, state = nnx.split(model)
    data, test = (tuple(map(jnp.asarray, part)) for part in (data, test))
    begin = time.process_time()
    seen = np.asarray(train(graph, state, jnp.float32(rate), data, rows, test))
    return seen, (time.process_time() - begin) / options.steps, started


def tuned(name, head, images, options) -> float:
    """Rate with the highest final accuracy on held-out training images, inside its grid."""
    found, around = {}, {-1, 0, 1}
    while True:
        for k in around - found.keys():
            rate = float(f"{0.03 * 10 ** (k / 2):.2g}")
            seen, *_ = run(name, head, images, 100, rate, options, validate=True)
            found[k] = (float(seen[-3:].mean()), rate)
        best = max(found, key=lambda k: found[k][0])
        if min(found) < best < max(found):
            return found[best][1]
        around = {best - 1, best, best + 1}


def main() -> None:
    """Tune, run, report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="folder with MNIST files; scikit-learn's digits by default")
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--heads", nargs="+", default=list(HEADS), choices=HEADS)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--every", type=int, default=10)
    parser.add_argument("--batch", type=int, default=64)
    options = parser.parse_args()
    images = reference.load_images(options.data)
    for name in options.models:
        finals, goals = {}, None
        for head in sorted(options.heads, key=lambda head: head != "deep"):
            rate = tuned(name, head, images, options)
            run(name, head, images, 0, rate, options, validate=False)  # compiles
            seeds = range(options.seeds)
            runs = [run(name, head, images, seed, rate, options, validate=False) for seed in seeds]
            finals[head] = np.array([seen[-1] for seen, *_ in runs])
            goals = finals[head] - 0.003 if goals is None else goals
            steps, seconds = [], []
            for (seen, each, started), goal in zip(runs, goals, strict=True):
                reached = np.flatnonzero(seen >= goal)
                steps.append(options.every * reached[0] if len(reached) else float("inf"))
                seconds.append(started + steps[-1] * each)
            final = 100 * finals[head]
            print(f"{name:18} {head:22} rate {rate:<7} {final.mean():6.2f} ± {final.std(ddof=1):.2f} %  "
                  f"{statistics.median(steps):5.0f} steps {statistics.median(seconds):7.3f} s, "
                  f"start {statistics.median(r[2] for r in runs):.3f} s", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
