"""Every headline number from one command, beside the paper's own code: see docs/benchmarks.md.

    pytest tests/benchmarks/bench_speed.py [--peer DIR] [--sizes quick] [--table FILE] [--benchmark-json FILE]
"""

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy  # which loads its parts on first use

import lowdim_jax as ld
from lowdim_jax import theory
from lowdim_jax._host import as_pytree
from lowdim_jax.descent import initial_state

sys.path.append(str(Path(__file__).parent))
import works
from conftest import best_seconds

WIDTHS = (100, 300, 1000, 3000)
QUICK_WIDTHS = (100,)


@pytest.fixture
def record(benchmark, ceilings, quick):
    """Time a function of no arguments, with what the table says about it."""

    def measure(work, run, *, steps=1, operations=None, traffic=None, rounds=5, setup=None, **info):
        benchmark.extra_info.update(work=work, steps=steps, ceilings=ceilings, **info)
        if operations is not None:
            benchmark.extra_info.update(operations=operations, bytes=traffic)
        rounds = 2 if quick else rounds
        benchmark.pedantic(lambda: jax.block_until_ready(run()), rounds=rounds, warmup_rounds=1, setup=setup)

    return measure


def counted(loss, weights) -> dict[str, float]:
    """Operations of a gradient as the compiler counts them, and bytes that a step cannot do without."""
    cost = jax.jit(jax.value_and_grad(loss)).lower(weights).compile().cost_analysis()
    problem, weights = (sum(leaf.nbytes for leaf in jax.tree.leaves(of)) for of in (as_pytree(loss), weights))
    return {"operations": cost["flops"], "traffic": problem + 2 * weights}


@pytest.mark.parametrize("network", works.NETWORKS)
@pytest.mark.parametrize("d", WIDTHS)
def test_step(d, network, record, peer, quick):
    if quick and d not in QUICK_WIDTHS:
        pytest.skip("full sizes only")
    loss, weights = works.factorization(network, d)
    state = jax.jit(initial_state)(as_pytree(loss), ld.GradientDescent(works.RATE), weights)
    steps = works.steps_of(network, d, seconds=0.02 if quick else 1.0)
    seconds = None
    if peer and network in ("original dense", "compressed dense"):
        from loss import create_loss  # pyright: ignore[reportMissingImports]

        target = ld.random_target(jax.random.key(0), (d, d), jnp.asarray(works.SIGMA)).dense()
        rate = works.RATE * d**2  # the peer's loss is a mean
        seconds = works.peer_steps(create_loss(target), weights, rate, steps=steps, rounds=3)
    record(
        f"step, {network}, d={d}",
        lambda: ld.gradient_descent(
            loss, state, ld.GradientDescent(works.RATE), steps=steps, record_every=steps
        ).weights,
        steps=steps,
        rounds=3 if d == 3000 else 5,
        against=None if network == "original dense" else f"step, original dense, d={d}",
        peer=seconds,
        **counted(loss, weights),
    )


def test_sensing_step(record, peer, quick):
    d, m = (30, 200) if quick else (200, 4000)
    problem, weights = works.sensing(d, m)
    gradient = jax.jit(jax.value_and_grad(type(problem).loss, argnums=1))
    seconds = None
    if peer:
        from loss import create_loss_ms  # pyright: ignore[reportMissingImports]

        loss = create_loss_ms(problem.labels / m**0.5, problem.operator.matrices / m**0.5)
        seconds = works.peer_steps(loss, weights, 20.0, steps=3, rounds=3)
    record(
        f"sensing step, d={d}, m={m}",
        lambda: gradient(problem, weights),
        operations=4 * m * d**2,
        traffic=2 * 8 * m * d**2,
        peer=seconds,
    )


def test_making_measurements(record, peer, quick):
    d, m = (30, 200) if quick else (200, 4000)
    seconds = None
    if peer:
        from data import generate_ms  # pyright: ignore[reportMissingImports]

        start = time.perf_counter()
        keys = jax.random.split(jax.random.PRNGKey(0), m)
        jax.block_until_ready(jnp.asarray(generate_ms(keys, m, (d, d))))
        seconds = [time.perf_counter() - start]
    record(
        f"making measurements, d={d}, m={m}",
        lambda: ld.gaussian_measurements(jax.random.key(0), m, (d, d)),
        rounds=3,
        peer=seconds,
    )


def test_completion_from_data(record, peer, quick):
    """Fresh processes, taken alternately: compilation is in, import is not."""
    theirs, ours = [], []
    for _ in range(1 if quick else 5):
        ours.append(in_child("completion", "ours", 100))
        if peer:
            theirs.append(in_child("completion", peer, 100))
    record("completion from data to 1e-12, fresh process", lambda: None, seconds=ours, peer=theirs or None)


def test_warm_completion(record):
    target, mask = works.completion(100)
    record("completion from data to 1e-12, warm", lambda: works.our_completion(target, mask))


def test_observed_entries_gradient(record, quick):
    full = 2_500_000, works.OBSERVED_SHAPE, works.OBSERVED_RANK
    count, shape, rank = (20_000, (1000, 800), 10) if quick else full
    problem, weights = works.observations(count, shape, rank)
    gradient = jax.jit(jax.value_and_grad(type(problem).loss, argnums=1))
    record(
        f"observed-entries gradient, {count:,} of {shape[0]:,}×{shape[1]:,}, r̂={rank}",
        lambda: gradient(problem, weights),
        operations=2 * 4 * rank * problem.count,  # by row and by column: products, then sums
        traffic=2 * (8 * rank + 12) * problem.count,  # a gathered row, a value, an index
    )


@pytest.mark.parametrize("lanes", [None, 1, 16])
def test_alpha_sweep(lanes, record, quick):
    target, mask = works.completion(40 if quick else 100, p=0.2 if not quick else 0.5)
    problem = ld.completion(target, mask)
    alphas = np.arange(0.5, 10.0, 0.25)[:: 8 if quick else 1]
    start = ld.compress(problem, depth=3, scale=0.01, rank=10)
    rate = 0.2 * float(ld.max_learning_rate(problem, depth=3, alpha=alphas[-1]))
    starts = jax.tree.map(lambda leaf: jnp.stack([leaf] * len(alphas)), start)
    common = {"steps": 20_000, "tolerance": 1e-6 * float(problem.loss(start))}

    def one_by_one():
        return [
            ld.gradient_descent(
                problem, start, ld.GradientDescent(rate, alpha=alpha), record_every=100, **common
            )
            for alpha in alphas
        ]

    def swept():
        return ld.sweep(
            problem.loss, starts, ld.GradientDescent(rate, alpha=alphas), lanes=lanes, **common
        ).weights

    loop = f"{len(alphas)} values of α, one by one"
    if lanes is None:
        record(loop, one_by_one, rounds=1)
    else:
        record(f"{len(alphas)} values of α, sweep, lanes={lanes}", swept, rounds=1, against=loop)


def test_alpha_sweep_in_threads(record, quick):
    """The runs one by one, two at a time: compiled programs let other threads of Python go on."""
    target, mask = works.completion(40 if quick else 100, p=0.2 if not quick else 0.5)
    problem = ld.completion(target, mask)
    alphas = np.arange(0.5, 10.0, 0.25)[:: 8 if quick else 1]
    start = ld.compress(problem, depth=3, scale=0.01, rank=10)
    rate = 0.2 * float(ld.max_learning_rate(problem, depth=3, alpha=alphas[-1]))
    tolerance = 1e-6 * float(problem.loss(start))

    def run(alpha):
        with jax.enable_x64(True):  # a setting of each thread
            return ld.gradient_descent(
                problem, start, ld.GradientDescent(rate, alpha=alpha), record_every=100, steps=20_000,
                tolerance=tolerance,
            )

    def in_threads():
        with ThreadPoolExecutor(2) as threads:
            return list(threads.map(run, alphas))

    loop = f"{len(alphas)} values of α, one by one"
    record(f"{loop}, in two threads", in_threads, rounds=1, against=loop)


@pytest.mark.parametrize("what", ["mode_time", "mode_trajectory", "original_mode"])
def test_a_point_of_the_theory(what, record, quick):
    """Beside SciPy's hyp2f1, in which a mode's time can be written, point by point at the same values."""
    count, law = (100 if quick else 1000), {"depth": 3, "scale": 0.1}
    sigma = np.linspace(0.2, 1.9, count)
    times = np.asarray(theory.mode_time(sigma, 2.0, **law))
    call = {
        "mode_time": lambda: theory.mode_time(sigma, 2.0, **law),
        "mode_trajectory": lambda: theory.mode_trajectory(times, 2.0, **law),
        "original_mode": lambda: theory.original_mode(times, 2.0, **law),
    }[what]
    seconds = None
    if what == "mode_time":
        ratio = sigma / 2.0
        seconds = [best_seconds(scipy.special.hyp2f1, 1.0, -1 / 3, 2 / 3, ratio) / count for _ in range(5)]
    record(f"{what}, L=3, a point of {count} (peer: SciPy's hyp2f1)", call, steps=count, peer=seconds)


def test_gradient_flow(record, quick):
    d = 20 if quick else 100
    loss, weights = works.factorization("compressed factored", d)
    times = jnp.linspace(0.0, 2.0, 50)
    record(
        f"gradient flow, compressed, d={d}",
        lambda: ld.gradient_flow(loss, weights, times).weights,
        rounds=3,
    )


def test_compilation(record):
    loss, weights = works.factorization("compressed dense", 100)

    def first_run():
        return ld.gradient_descent(loss, weights, ld.GradientDescent(works.RATE), steps=1).weights

    record("compilation of a training loop, d=100", first_run, setup=jax.clear_caches)


@pytest.mark.parametrize("network", works.NETWORKS)
def test_peak_memory(network, record, quick):
    d = 100 if quick else 3000
    megabytes = in_child("memory", network, d)
    record(f"peak memory, {network}, d={d}", lambda: None, megabytes=megabytes)


def test_peak_memory_of_entries(record, quick):
    """29 million draws with repetition: 25 million entries."""
    draws = 290_000 if quick else 29_000_000
    megabytes = in_child("memory", "observed", draws)
    rows, columns = works.OBSERVED_SHAPE
    work = f"peak memory, observed entries, {draws:,} draws of {rows:,}×{columns:,}, r̂={works.OBSERVED_RANK}"
    record(work, lambda: None, megabytes=megabytes)


def in_child(*arguments) -> float:
    """The number that a process of its own prints."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, str(Path(__file__).with_name("child.py")), *map(str, arguments)]
    return float(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)
