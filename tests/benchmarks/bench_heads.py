"""A compressed network before the classifier of a perceptron, a conv net and a vision transformer, tuned.

    python tests/benchmarks/bench_heads.py [--data DIR] [--models MLP ConvNet VisionTransformer] [--out FILE]

Heads: none ("plain"), two narrow factors from He's start, the paper's deep network, and the compressed one
from random directions at the `ε` that keeps the variance of activations and from spectral ones at `ε = 1`,
which keeps it for them: they catch nearly all of the features, random ones a share of `r̂/d`. Momentum 0.9,
the same steps and batches for all. Each head's rate is the best by its mean accuracy on held-out training
images of two splits that no seed has, at the last three records, on a grid of factors √10 that is extended
until the best is inside it; the table is of test images over seeds. Seconds are of processor time in the
updates alone, without compilation and measuring, the spectral start included; the heads take turns, seed by
seed. Every run is appended to FILE at once; a run that is in it already is not repeated.

The table of docs/compress-a-layer.md, on one thread of a server's core 20 minutes in all (XLA_FLAGS=
--xla_cpu_multi_thread_eigen=false):

    bench_heads.py --models MLP ConvNet
    bench_heads.py --models VisionTransformer --steps 600 --every 40 --batch 16
    bench_heads.py --data DIR --held-out 0.1 --models MLP --steps 300
    bench_heads.py --data DIR --held-out 0.1 --models ConvNet --steps 400 --every 20 --batch 32 --shrink 2
    bench_heads.py --data DIR --held-out 0.1 --models VisionTransformer --steps 600 --every 40 --batch 16
"""

import argparse
import json
import statistics
import time
from functools import partial
from pathlib import Path

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
TUNING_SEEDS = 100, 101


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
def train(graph, state, memory, rate, data, rows):
    """One update for each of the rows `(every, batch)`."""

    def step(carry, picked):
        state, memory = carry
        batch = tuple(part[picked] for part in data)
        slope = jax.grad(lambda s: reference.cross_entropy(nnx.merge(graph, s, copy=True), *batch))(state)
        direction, memory = MOMENTUM.update(slope, memory)
        return (jax.tree.map(lambda p, d: p - rate * d, state, direction), memory), None

    return jax.lax.scan(step, (state, memory), rows)[0]


@partial(jax.jit, static_argnums=0)
def accuracy(graph, state, images, labels):
    """Fraction of images whose largest logit is their label's."""
    logits = nnx.merge(graph, state, copy=True)(images)
    return jnp.mean(jnp.argmax(logits, axis=1) == labels)


def run(name, head, images, seed, rate, options, *, validate, records=None):
    """Accuracies at the records, processor seconds of an update, and those of the start."""
    data, test = images.split(seed=seed, held_out=options.held_out)
    if validate:
        data, test = data.split(seed=1000 + seed, held_out=len(test.labels) / len(data.labels))
    model, begin = make(name, head, data.images.shape[1:], seed), time.process_time()
    if head == "compressed, spectral":
        batch = tuple(jnp.asarray(part[:512]) for part in data)
        nn.spectral_start(model, "head.network", reference.cross_entropy, *batch, scale=1.0)
    started = time.process_time() - begin
    rng, records = np.random.default_rng(seed), records or options.steps // options.every
    graph, state = nnx.split(model)
    memory, rate, spent = MOMENTUM.init(state), jnp.float32(rate), 0.0
    data, test = (tuple(map(jnp.asarray, part)) for part in (data, test))
    seen = [float(accuracy(graph, state, *test))]
    for _ in range(records):
        rows = jnp.asarray(rng.integers(0, len(data[1]), (options.every, options.batch)), jnp.int32)
        begin = time.process_time()
        state, memory = jax.block_until_ready(train(graph, state, memory, rate, data, rows))
        spent += time.process_time() - begin
        seen.append(float(accuracy(graph, state, *test)))
    return {"seen": seen, "update": spent / (records * options.every), "start": started}


class Log:
    """Runs in a file of JSON lines, or in memory."""

    def __init__(self, options, images):
        self.path, self.options, self.images = options.out and Path(options.out), options, images
        lines = self.path.read_text().splitlines() if self.path and self.path.exists() else []
        self.runs = [json.loads(line) for line in lines]
        self.warm = set()

    def get(self, **setting):
        """The run of this setting, from the file or made now."""
        kept = "data", "steps", "every", "batch", "held_out", "shrink"
        setting |= {name: getattr(self.options, name) for name in kept}
        for one in self.runs:
            if all(one[key] == value for key, value in setting.items()):
                return one
        what = [setting[key] for key in ("model", "head", "seed", "rate")]
        place = *what[:2], setting["validate"]
        if place not in self.warm:  # compiles
            self.warm.add(place)
            run(*what[:2], self.images, *what[2:], self.options, validate=setting["validate"], records=1)
        one = setting | run(*what[:2], self.images, *what[2:], self.options, validate=setting["validate"])
        self.runs.append(one)
        if self.path:
            with self.path.open("a") as file:
                file.write(json.dumps(one) + "\n")
        return one


def tuned(log: Log, model: str, head: str) -> float:
    """Rate with the highest final accuracy on held-out training images, inside its grid."""
    found, around = {}, {-1, 0, 1}
    while True:
        for k in around - found.keys():
            rate = float(f"{0.03 * 10 ** (k / 2):.2g}")
            runs = [log.get(model=model, head=head, seed=s, rate=rate, validate=True) for s in TUNING_SEEDS]
            found[k] = (np.mean([one["seen"][-3:] for one in runs]), rate)
        best = max(found, key=lambda k: found[k][0])
        if min(found) < best < max(found):
            return found[best][1]
        around = {best - 1, best, best + 1}


def shrunk(images, times: int):
    """Images whose pixels are means over squares of the given ones."""
    count, height, across, channels = images.images.shape
    squares = images.images.reshape(count, height // times, times, across // times, times, channels)
    return images._replace(images=squares.mean(axis=(2, 4)))


def main() -> None:
    """Tune, run, report."""
    whole = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=whole)
    parser.add_argument("--data", help="folder with MNIST files; scikit-learn's digits by default")
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--heads", nargs="+", default=list(HEADS), choices=HEADS)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--every", type=int, default=10)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--held-out", type=float, default=0.2, help="fraction of the images to test on")
    parser.add_argument("--shrink", type=int, default=1, help="mean over squares of so many pixels a side")
    parser.add_argument("--out", help="file of JSON lines to keep runs in")
    options = parser.parse_args()
    log = Log(options, shrunk(reference.load_images(options.data), options.shrink))
    heads = [head for head in HEADS if head in {*options.heads, "deep"}]  # the deep one sets the goal
    for model in options.models:
        rates = {head: tuned(log, model, head) for head in heads}
        runs = {
            (head, seed): log.get(model=model, head=head, seed=seed, rate=rates[head], validate=False)
            for seed in range(options.seeds)
            for head in heads
        }
        for head in heads:
            report(model, head, rates[head], [
                (runs[head, seed], runs["deep", seed]["seen"][-1] - 0.003) for seed in range(options.seeds)
            ], options.every)  # fmt: skip


def report(model, head, rate, runs, every) -> None:
    """One line: final accuracy, medians of steps and seconds to the goals, of an update and the start."""
    final = 100 * np.array([one["seen"][-1] for one, _ in runs])
    steps, seconds = [], []
    for one, goal in runs:
        reached = np.flatnonzero(np.array(one["seen"]) >= goal)
        steps.append(every * reached[0] if len(reached) else float("inf"))
        seconds.append(one["start"] + steps[-1] * one["update"])
    update, start = (statistics.median(one[key] for one, _ in runs) for key in ("update", "start"))
    print(f"{model:18} {head:22} rate {rate:<7} {final.mean():6.2f} ± {final.std(ddof=1):.2f} %  "
          f"{statistics.median(steps):5.0f} steps {statistics.median(seconds):7.3f} s, "
          f"update {1e3 * update:.2f} ms, start {start:.3f} s", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
