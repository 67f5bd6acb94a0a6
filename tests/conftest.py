"""Strict JAX settings for all tests, and float64 where a test asks for it."""

import gc
import inspect
import os
import sys
from contextlib import contextmanager

# Before NumPy: threads that wait, spin. None said: as many as there are cores, as users have it.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "0" if any("benchmarks" in word for word in sys.argv) else "1")

import jax
import pytest

from lowdim_jax._cache import compile_quickly

TIMED = any("benchmarks" in word for word in sys.argv)
"""Benchmarks are compiled as users have it."""
if not TIMED:
    compile_quickly()  # tests run a program once: compiling is most of their time
    os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"  # of processes that tests start, too
    jax.config.update("jax_disable_most_optimizations", True)  # where a plugin of pytest imported JAX before

# Several processes share a GPU: test workers, and the processes that tests start.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
# Command lines that tests call in this process would write every later program of it to the user's cache.
jax.config.update("jax_enable_compilation_cache", False)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")


@pytest.fixture(autouse=True, scope="session")
def _own_cache_directory(tmp_path_factory):
    """The command lines keep compiled programs in the user's cache directory; tests stay out of it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True, scope="module")
def _programs_dropped():
    """Linux gives a process 65,530 memory maps, and a program takes some eight: each file drops its own."""
    yield
    jax.clear_caches()
    gc.collect()


@pytest.fixture(autouse=True)
def _settings_of_jax_restored():
    """A command line sets up the JAX of its process, which here is that of the other tests."""
    names = ("jax_enable_x64", "jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: jax.config.values[name] for name in names}
    yield
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.fixture
def x64():
    """Double precision, for this test only."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(params=["float32", "float64"])
def dtype(request):
    """Both precisions: the default float is the one named."""
    with jax.enable_x64(request.param == "float64"):
        yield request.param


@contextmanager
def _compilations():
    events = []

    def listener(event: str, duration_secs: float, **_: str | int) -> None:
        del duration_secs
        events.append(event)

    jax.monitoring.register_event_duration_secs_listener(listener)
    try:
        yield events
    finally:
        jax.monitoring.unregister_event_duration_listener(listener)


@pytest.fixture
def compilations():
    """`with compilations() as events:` lists JAX's events within, a "backend_compile" for every program."""
    return _compilations


def small_settings(module_name: str) -> dict:
    """Settings at size small of the figure that a module of `figures` makes."""
    from figures import registry

    return dict(registry.describe(module_name.replace("_", "-")).settings["small"])


@pytest.fixture(scope="module")
def made(request):
    """Arrays and settings of every figure in a test file's `MODULES`, small but for its `TINY`, by name."""
    results = {}
    with jax.enable_x64(True):
        for module in request.module.MODULES:
            name = module.__name__.rpartition(".")[2]
            settings = small_settings(name) | request.module.TINY[name]
            results[name] = module.compute(settings), settings
    return results


LONG = (
    "docs", "distributed", "theory", "sharded", "tutorials", "examples", "recovery", "figures_parsimony",
    "flow", "window", "reduction", "nn_adapters", "figures", "nn", "figures_nonlinear",
)  # fmt: skip
"""Files that take longest."""


def pytest_configure(config):
    """Files come in the order below, not those with most tests first."""
    config.option.loadscopereorder = False


def pytest_collection_modifyitems(config, items):
    """Long files first: what is left for the end is short, and two workers come to it together.

    Where annotations are executed they refuse first: tests of the library's own refusals are left out.
    """
    place = {f"test_{name}": k for k, name in enumerate(LONG)}
    items.sort(key=lambda item: place.get(item.path.stem, len(LONG)))
    if config.getoption("jaxtyping_packages", None):
        refusals = [item for item in items if "pytest.raises(" in inspect.getsource(item.function)]
        config.hook.pytest_deselected(items=refusals)
        items[:] = [item for item in items if item not in refusals]


def pytest_collection_finish():
    """What is imported stays: looking through it for garbage, as tracing has Python do, takes long."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 20, 10)
