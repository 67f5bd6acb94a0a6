"""Time of one step, side by side in one run: original dense and reduced, compressed dense and factored.

    python tests/benchmarks/bench_steps.py [--widths 100 1000] [--repeats 5]

Prints medians over repeats, and ratios to the dense loop on the original network. Compilation is left out;
every repeat runs a fixed number of steps of the same compiled loop.
"""

import argparse
import statistics
import time

import jax
import jax.numpy as jnp

import lowdim_jax as ld

RANK, DEPTH, SCALE = 10, 3, 0.1


def milliseconds_a_step(loss, weights, rate, *, steps: int, repeats: int) -> float:
    """Median over repeats, after one run that compiles."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        run = ld.gradient_descent(loss, weights, ld.SGD(rate), steps=steps, record_every=steps)
        jax.block_until_ready(run.weights)
        times.append(1e3 * (time.perf_counter() - start) / steps)
    return statistics.median(times[1:])


def rows(d: int, repeats: int):
    """Names and milliseconds a step at one width; the dense original is left out above 3,000."""
    sigma = jnp.linspace(20.0, 9.0, RANK)
    target = ld.random_target(jax.random.key(0), (d, d), sigma)
    rate = 0.5 * float(ld.theory.edge_of_stability(sigma[0], depth=DEPTH))
    factored = ld.factorization(target)
    compressed = ld.compress(target, depth=DEPTH, scale=SCALE, rank=2 * RANK)
    if d <= 3000:
        dense = ld.factorization(target.dense())
        full = ld.orthogonal(jax.random.key(1), (d,) * (DEPTH + 1), scale=SCALE)
        steps = max(3, min(2000, 2_000_000_000 // d**3))
        yield "original, dense", milliseconds_a_step(dense.loss, full, rate, steps=steps, repeats=repeats)
        steps = max(20, min(4000, 200_000_000 // d**2))
        yield (
            "compressed, dense target",
            milliseconds_a_step(dense.loss, compressed, rate, steps=steps, repeats=repeats),
        )
    steps = max(20, min(4000, 2_000_000 // d))
    yield (
        "compressed, factored target",
        milliseconds_a_step(factored.loss, compressed, rate, steps=steps, repeats=repeats),
    )
    reduction = ld.sample(jax.random.key(2), d, sigma, depth=DEPTH, scale=SCALE)
    yield (
        "original, reduced to 2r",
        milliseconds_a_step(
            reduction.problem.loss, reduction.layers, rate, steps=20_000, repeats=repeats
        ),
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--widths", type=int, nargs="+", default=[100, 1000])
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    print(f"{'width':>9}  {'network':28}  {'ms a step':>10}  {'times faster':>12}")
    for d in arguments.widths:
        slowest = None
        for name, value in rows(d, arguments.repeats):
            slowest = slowest or (value if name == "original, dense" else None)
            ratio = f"{slowest / value:.1f}" if slowest else "–"
            print(f"{d:>9,}  {name:28}  {value:>10.4f}  {ratio:>12}", flush=True)


if __name__ == "__main__":
    main()
