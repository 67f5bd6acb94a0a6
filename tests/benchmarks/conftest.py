"""Options of the benchmarks, the machine's ceilings, and the table at the end."""

import datetime
import platform
import statistics
import sys
import time
from importlib.metadata import version
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from units import duration

HEADER = (
    "work", "ours, median", "IQR", "original / this", "peer, median", "peer / ours", "bound by", "of floor"
)  # fmt: skip


def pytest_addoption(parser):
    parser.addoption("--sizes", choices=("quick", "full"), default="full", help="quick: all rows in a minute")
    parser.addoption("--peer", metavar="DIR", help="clone of soominkwon/comp-deep-nets")
    parser.addoption("--table", metavar="FILE", help="write the table to this Markdown file")


@pytest.fixture(scope="session")
def quick(pytestconfig):
    return pytestconfig.getoption("sizes") == "quick"


@pytest.fixture(scope="session")
def peer(pytestconfig):
    """The peer's directory, on the import path; None without one."""
    folder = pytestconfig.getoption("peer")
    if folder is None:
        return None
    if not (Path(folder) / "solver.py").is_file():
        raise pytest.UsageError(f"--peer={folder}: no solver.py there, expected a clone of comp-deep-nets")
    sys.path.append(folder)
    return folder


@pytest.fixture(autouse=True)
def _as_users_run_it():
    """Double precision, and none of the strictness of the other tests, which the peer does not meet."""
    with jax.enable_x64(True), jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture(scope="session")
def ceilings(quick):
    """Measured operations and bytes a second: of a large matrix product, and of a matrix times a vector."""
    with jax.enable_x64(True):
        d = 500 if quick else 2000
        square, tall = jnp.ones((d, d)), jnp.ones((50 * d, d))  # the tall one is far larger than the cache
        product = best_seconds(jax.jit(jnp.matmul), square, square)
        reading = best_seconds(jax.jit(jnp.matmul), tall, square[0])
        return 2 * d**3 / product, tall.nbytes / reading


def best_seconds(function, *arguments, repeats=5):
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        times.append(time.perf_counter() - start)
    return min(times[1:])


def pytest_terminal_summary(terminalreporter, config):
    session = getattr(config, "_benchmarksession", None)
    if session is None or not session.benchmarks:
        return
    table = markdown([entry for entry in session.benchmarks if not entry.has_error])
    terminalreporter.write_line("")
    terminalreporter.write_line(table)
    if path := config.getoption("table"):
        Path(path).write_text(table + "\n", encoding="utf-8")


def markdown(entries) -> str:
    """The table, and the machine that it is of."""
    rows = [row(entry, entries) for entry in entries]
    lines = ["| " + " | ".join(cells) + " |" for cells in (HEADER, ["---"] * len(HEADER), *rows)]
    packages = ", ".join(f"{name} {version(name)}" for name in ("jax", "jaxlib", "numpy", "optax"))
    python, device = platform.python_version(), jax.devices()[0].device_kind
    machine = f"{datetime.date.today()}, {cpu_model()}, JAX device {device}, Python {python}, {packages}."
    return "\n".join([machine, "", *lines])


def row(entry, entries) -> tuple[str, ...]:
    info = entry.extra_info
    if "megabytes" in info:
        return info["work"], f"{info['megabytes']:.0f} MB", *["–"] * 6
    ours, spread = milliseconds(entry)
    original = next((other for other in entries if other.extra_info["work"] == info.get("against")), None)
    times = "–" if original is None else f"{milliseconds(original)[0] / ours:.1f}×"
    peers = 1e3 * statistics.median(info["peer"]) if info.get("peer") else None
    return (
        info["work"],
        duration(1e-3 * ours),
        duration(1e-3 * float(f"{spread:.1g}")) if spread else "0",
        times,
        "–" if peers is None else duration(1e-3 * peers),
        "–" if peers is None else f"{peers / ours:.1f}×",
        *floor(info, ours),
    )


def milliseconds(entry) -> tuple[float, float]:
    """Median and interquartile range of a step."""
    info = entry.extra_info
    seconds = info.get("seconds") or entry.stats.data
    low, median, high = np.percentile(seconds, [25, 50, 75]) * 1e3 / info["steps"]
    return median, high - low


def floor(info, measured) -> tuple[str, str]:
    """What bounds a step, and its time over what its operations and bytes take at the ceilings."""
    if "operations" not in info:
        return "–", "–"
    per_second, bandwidth = info["ceilings"]
    floors = {"arithmetic": 1e3 * info["operations"] / per_second, "memory": 1e3 * info["bytes"] / bandwidth}
    bound = max(floors, key=floors.__getitem__)
    times = measured / floors[bound]
    return ("dispatch" if times > 5 and measured < 1 else bound), f"{times:.1f}×"


def cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"{len(names)} cores, {names[0] if names else platform.machine()}"
