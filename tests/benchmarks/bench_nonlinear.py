"""Plain, deep linear and compressed classifiers on MNIST: accuracy, time, parameters, memory, updates.

    python tests/benchmarks/bench_nonlinear.py --data DIR [--best-rates] [--seeds 5] [--epochs 12]

`DIR` holds MNIST or FashionMNIST files of one part, such as `t10k-images-idx3-ubyte.gz` and its labels; a
fifth of the images is held out for testing, by a split of its own for each seed. Every run has a process of
its own, so that its time includes compilation and its peak memory is its alone. The clock covers building
the model, the spectral start, and training; it stands still while the accuracy is measured. `--cache DIR`
keeps compiled programs there, as JAX does for whoever sets `JAX_COMPILATION_CACHE_DIR`, and every variant has
run once before the first that counts. `--processor` counts seconds of processor time, on a machine that is
not quiet.

By default all variants learn at one rate, and the outer factors of the compressed one at five times that,
the paper's ratio. `--best-rates` gives each the rates that were best for it on a fifth of the *training*
images (`--validate` measures there instead of on the test images, so that the choice can be repeated).
"""

import argparse
import multiprocessing
import resource
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from typing import NamedTuple

CLASSES, BATCH = 10, 128
VARIANTS = {
    "plain": ("plain", False),
    "+ DLN": ("deep", False),
    "+ C-DLN, spectral": ("compressed", True),
    "+ C-DLN, random": ("compressed", False),
}
BEST_RATES = {  # rate and ratio α of the outer factors' rate to it
    "plain": (0.1, 1.0),
    "+ DLN": (0.03, 1.0),
    "+ C-DLN, spectral": (0.03, 2.0),
    "+ C-DLN, random": (0.03, 2.0),
}


class Run(NamedTuple):
    """What one process measured: steps, accuracies and seconds at the records, and what it took."""

    steps: list[int]
    accuracies: list[float]
    seconds: list[float]
    parameters: int
    head_parameters: int
    peak_megabytes: float
    updates: dict[str, tuple[float, float, float]]


def train(variant: str, seed: int, options: argparse.Namespace) -> Run:
    """Train one model in this process."""
    import jax
    from flax import nnx

    if options.cache:
        jax.config.update("jax_compilation_cache_dir", options.cache)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    import lowdim_jax as ld
    from lowdim_jax import nn
    from lowdim_jax.nn import reference

    kind, spectral = VARIANTS[variant]
    data, test = reference.mnist(options.data, options.part).split(seed=seed)
    if options.validate:
        data, test = data.split(seed=1000 + seed)
    rate, alpha = BEST_RATES[variant] if options.best_rates else (options.rate, options.alpha)
    clock = time.process_time if options.processor else time.perf_counter
    start = clock()
    model = nn.build(
        lambda: reference.MLP(
            data.images.shape[1:],
            CLASSES,
            width=options.width,
            head=kind,
            rank=options.rank,
            scale=options.scale,
            rngs=nnx.Rngs(seed),
        )
    )
    if spectral:
        batch = data.images[:1024], data.labels[:1024]
        nn.spectral_start(model, "head.network", reference.cross_entropy, *batch, scale=options.scale)
    outer, same = make_optimizer(options.optimizer, alpha * rate), make_optimizer(options.optimizer, rate)
    tx = nn.partition(model, outer=outer, middle=same, other=same) if kind == "compressed" else same
    before = nn.matrices(model)
    steps, accuracies, seconds, paused = [], [], [], 0.0
    schedule = {
        "steps": options.epochs * (len(data.labels) // BATCH),
        "batch_size": BATCH,
        "record_every": options.record_every,
        "seed": seed,
    }
    for step in reference.train(model, tx, data, **schedule):
        jax.block_until_ready(nnx.state(model))
        stop = clock()
        steps.append(step)
        seconds.append(stop - start - paused)
        accuracies.append(reference.accuracy(model, test))
        paused += clock() - stop
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    updates = {
        path: (*(float(nn.top_energy(update, k)) for k in (10, 20)),
               float(ld.spectra.stable_rank(update.singular_values)))
        for path, update in nn.updates(before, nn.matrices(model)).items()
    }
    network = model.head.network
    return Run(
        steps,
        accuracies,
        seconds,
        sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param))),
        ld.parameter_count(network.weights) if network else 0,
        peak,
        updates,
    )


def make_optimizer(name: str, rate: float):
    """An optimizer by its name on the command line."""
    import optax

    if name == "momentum":
        return optax.sgd(rate, momentum=0.9)
    return {"adam": optax.adam, "sgd": optax.sgd}[name](rate)


def first_record(run: Run, accuracy: float) -> tuple[float, float]:
    """Steps and seconds until a run first reaches an accuracy; infinite if it never does."""
    records = zip(run.steps, run.seconds, run.accuracies, strict=True)
    return next(((step, s) for step, s, a in records if a >= accuracy), (float("inf"),) * 2)


def step_milliseconds(run: Run) -> float:
    """Median over the intervals between records, the first of which compiles."""
    gaps = zip(run.steps[1:], run.steps[2:], run.seconds[1:], run.seconds[2:], strict=False)
    return 1000 * statistics.median((t - s) / (b - a) for a, b, s, t in gaps)


def spread(values) -> str:
    """Mean and standard deviation."""
    values = list(values)
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):7.2f} ± {deviation:.2f}"


def report(runs: dict[str, list[Run]]) -> None:
    """Print the tables."""
    print(f"{'variant':20} {'final accuracy %':>18} {'best record %':>18} {'seconds':>16} {'set-up s':>14} "
          f"{'ms a step':>14} {'parameters':>12} {'DLN part':>10} {'peak MB':>8}")
    for name, those in runs.items():
        print(
            f"{name:20} {spread(100 * run.accuracies[-1] for run in those):>18} "
            f"{spread(100 * max(run.accuracies) for run in those):>18} "
            f"{spread(run.seconds[-1] for run in those):>16} {spread(run.seconds[0] for run in those):>14} "
            f"{spread(map(step_milliseconds, those)):>14} {those[0].parameters:>12,} "
            f"{those[0].head_parameters:>10,} {max(run.peak_megabytes for run in those):>8.0f}"
        )
    if "+ DLN" in runs:
        goals = [run.accuracies[-1] - 0.003 for run in runs["+ DLN"]]
        print("\nto the DLN's final accuracy of the seed, less 0.3 points: medians, then seconds by seed")
        for name, those in runs.items():
            reached = [first_record(run, goal) for run, goal in zip(those, goals, strict=True)]
            steps, seconds = (statistics.median(column) for column in zip(*reached, strict=True))
            row = "  ".join(f"{s:7.2f}" for _, s in reached)
            print(f"{name:20} {steps:6.0f} steps {seconds:7.2f} s   {row}")
    print("\nupdates: share of energy in the top 10 and top 20 directions, stable rank (means over seeds)")
    for name, those in runs.items():
        for path in those[0].updates:
            columns = zip(*(run.updates[path] for run in those), strict=True)
            means = [statistics.mean(column) for column in columns]
            print(f"{name:20} {path:26} {means[0]:.3f}  {means[1]:.3f}  {means[2]:6.2f}")


def main() -> None:
    """Run every variant with every seed, one process after the other."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--part", default="t10k", choices=("train", "t10k"))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--rank", type=int, default=2 * CLASSES)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--alpha", type=float, default=5.0, help="outer over middle rate, compressed part")
    parser.add_argument("--cache", help="folder for compiled programs")
    parser.add_argument("--processor", action="store_true", help="processor time rather than the clock's")
    parser.add_argument("--best-rates", action="store_true", help="each variant at its own best rates")
    parser.add_argument("--validate", action="store_true", help="measure on held-out training images")
    parser.add_argument("--optimizer", default="momentum", choices=("adam", "momentum", "sgd"))
    parser.add_argument("--rate", type=float, default=0.01)
    parser.add_argument("--record-every", type=int, default=10)
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    options = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    runs: dict[str, list[Run]] = {name: [] for name in options.variants}

    def one(*arguments) -> Run:
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            return pool.submit(train, *arguments).result()

    if options.cache:
        for name in options.variants:
            one(name, 0, argparse.Namespace(**vars(options) | {"epochs": 1}))
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        for name in options.variants:
            run = one(name, seed, options)
            runs[name].append(run)
            final = f"{100 * run.accuracies[-1]:.2f} %  {run.seconds[-1]:.1f} s"
            print(f"seed {seed}  {name:20} {final}", flush=True)
    report(runs)


if __name__ == "__main__":
    main()
