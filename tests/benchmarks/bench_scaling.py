"""How a gradient of observed entries scales: with observations, and over virtual devices. Prints Markdown.

    python tests/benchmarks/bench_scaling.py [--largest 1e8] [--table FILE]

Random entries in single precision, a network of depth 3 and rank 20, 100 entries a row on average, 20,000
columns. Every size runs in a process of its own. Sizes beyond `--largest` are a linear model's, and marked.
"""

import argparse
import ctypes
import datetime
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from units import digits, duration

RANK, DEPTH, COLUMNS, PER_ROW = 20, 3, 20_000, 100
SIZES = [10**k for k in range(5, 11)]
DEVICES = (1, 2, 4, 8)
REPEATS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--largest", type=float, default=1e8, help="observations that are measured up to")
    parser.add_argument("--devices-at", type=float, default=1e6, help="observations over virtual devices")
    parser.add_argument("--table", type=Path, help="write the tables to this file, too")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        kind, count = json.loads(arguments.child)
        print(json.dumps({"size": size, "devices": over_devices}[kind](int(count))))
        return
    measured = [child("size", count) for count in SIZES if count <= arguments.largest]
    spread = child("devices", arguments.devices_at, JAX_NUM_CPU_DEVICES=str(max(DEVICES)))
    text = "\n\n".join((machine(), sizes_table(measured), devices_table(spread)))
    print(text)
    if arguments.table:
        arguments.table.write_text(text + "\n", encoding="utf-8")


def child(kind: str, count: float, **environment):
    """What a process of its own measures."""
    command = [sys.executable, __file__, "--child", json.dumps([kind, count])]
    run = subprocess.run(
        command, env={**os.environ, "JAX_PLATFORMS": "cpu", **environment}, stdout=subprocess.PIPE, check=True
    )
    return json.loads(run.stdout.splitlines()[-1])


def entries(count: int):
    """Random places, each once, in a matrix with 100 of them a row; random values."""
    rows = max(1, count // PER_ROW)
    rng = np.random.default_rng(0)
    places = np.unique(rng.integers(0, rows * COLUMNS, count))
    row, column = (index.astype(np.int32) for index in divmod(places, COLUMNS))
    return row, column, rng.standard_normal(len(places), np.float32), (rows, COLUMNS)


def step_of(problem, weights):
    """The compiled gradient, and its median time."""
    import jax

    step = jax.jit(lambda problem, weights: jax.value_and_grad(problem.loss)(weights))
    compiled = step.lower(problem, weights).compile()
    times = []
    for _ in range(REPEATS + 1):
        start = time.perf_counter()
        jax.block_until_ready(compiled(problem, weights))
        times.append(time.perf_counter() - start)
    return compiled, statistics.median(times[1:])


def size(count: int) -> dict:
    """Time and memory of set-up and of a step, on one device."""
    import jax

    import lowdim_jax as ld

    *data, shape = entries(count)
    start = time.perf_counter()
    problem = ld.observed_completion(*data, shape=shape)
    setup, setup_peak = time.perf_counter() - start, peak()
    observations = len(data[2])
    del data
    weights = ld.gaussian(jax.random.key(0), (shape[1], *(RANK,) * (DEPTH - 1), shape[0]), scale=0.1)
    forget_peak()
    compiled, seconds = step_of(problem, weights)
    memory = compiled.memory_analysis()
    return {
        "observations": observations,
        "setup": setup,
        "setup_peak": setup_peak,
        "step": seconds,
        "step_memory": memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        + memory.temp_size_in_bytes,
        "step_peak": peak(),
    }


def over_devices(count: int) -> list[dict]:
    """Time of a step, bytes on a device, and bytes that a step sums, over virtual devices."""
    import jax
    from collectives import collectives

    import lowdim_jax as ld
    from lowdim_jax import distributed

    *data, shape = entries(count)
    weights = ld.gaussian(jax.random.key(0), (shape[1], *(RANK,) * (DEPTH - 1), shape[0]), scale=0.1)
    rows = []
    for devices in DEVICES:
        mesh = distributed.mesh(jax.devices()[:devices])
        problem = distributed.sharded_completion(*data, shape=shape, mesh=mesh)
        placed = problem.place(weights)
        compiled, seconds = step_of(problem, placed)
        counted = collectives(compiled)
        assert set(counted) <= {"all-reduce"}, counted
        rows.append(
            {
                "devices": devices,
                "step": seconds,
                "device_bytes": max(
                    sum(leaf.addressable_shards[k].data.nbytes for leaf in jax.tree.leaves((problem, placed)))
                    for k in range(devices)
                ),
                "counted": counted["all-reduce"],
                "formula": 4 * (shape[1] * RANK + RANK**2 + 1),
            }
        )
    return rows


def peak() -> int:
    """Peak memory of this process in bytes."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def forget_peak() -> None:
    """Start the peak anew from what is in use now, with what the allocator kept given back."""
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")


def sizes_table(measured: list[dict]) -> str:
    counts = np.array([row["observations"] for row in measured], float)
    columns = ("step", "step_memory", "step_peak", "setup", "setup_peak")

    def model(column):
        """Least squares of relative errors for `a + b n`."""
        values = np.array([row[column] for row in measured])
        terms = np.stack([np.ones_like(counts), counts], 1) / values[:, None]
        return np.linalg.lstsq(terms, np.ones_like(values))[0]

    models = {column: model(column) for column in columns}
    header = (
        "| observations | step | per observation | it needs | peak | set-up | peak of set-up |",
        "|---|---|---|---|---|---|---|",
    )

    def line(row, mark=""):
        count = row["observations"]
        return (
            f"| {count:,.0f}{mark} | {duration(row['step'])} | {1e9 * row['step'] / count:.3g} ns | "
            f"{gigabytes(row['step_memory'])} | {gigabytes(row['step_peak'])} | {duration(row['setup'])} | "
            f"{gigabytes(row['setup_peak'])} |"
        )

    lines = [line(row) for row in measured]
    for count in SIZES[len(measured) :]:
        predicted = {column: a + b * count for column, (a, b) in models.items()}
        lines.append(line({"observations": count, **predicted}, " (model)"))
    fits = ", ".join(
        f"{column.replace('_', ' ')} {a:.2g} + {b:.3g} n" for column, (a, b) in models.items()
    )
    return "\n".join([*header, *lines, "", f"Model (seconds, bytes): {fits}."])


def devices_table(rows: list[dict]) -> str:
    header = (
        "| virtual devices | step | bytes on a device | summed over devices a step, counted | formula |",
        "|---|---|---|---|---|",
    )
    lines = [
        f"| {row['devices']} | {duration(row['step'])} | {row['device_bytes']:,} | {row['counted']:,} | "
        f"{row['formula']:,} |"
        for row in rows
    ]
    return "\n".join([*header, *lines])


def gigabytes(number: float) -> str:
    return f"{digits(number / 1e9)} GB"


def machine() -> str:
    from importlib.metadata import version

    return f"{datetime.date.today()}, {os.cpu_count()} cores, jax {version('jax')}, numpy {version('numpy')}."


if __name__ == "__main__":
    main()
