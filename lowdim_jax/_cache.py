"""How programs are compiled: shortly where they run briefly, and by command lines kept between runs.

Importing the library leaves JAX's own settings alone.
"""

import os
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import cache, partial, update_wrapper
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
from jax.core import Tracer
from jax.extend.core import get_opaque_trace_state


def cache_programs() -> None:
    """Keep compiled programs in the user's cache directory, so that the next run starts at once.

    `JAX_COMPILATION_CACHE_DIR` overrides the place, `JAX_ENABLE_COMPILATION_CACHE=false` turns it off.
    Call it before anything is compiled.
    """
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lowdim_jax"
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            return  # a home that cannot be written to: compile every time
        jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


QUICKLY = {
    "--xla_cpu_use_fusion_emitters=false": (0, 11),
    "--xla_cpu_parallel_codegen_split_count=1": (0, 12, 1),
    "--xla_cpu_enable_concurrency_optimized_scheduler=false": (0, 12, 1),
    "--xla_disable_hlo_passes=while-loop-invariant-code-motion": (0, 12, 1),
}
"""Flags of XLA, each with the first jaxlib that has lost it, or that it was not tried with."""
FIRST_TRIED = (0, 10)
OVERHEAD = 1_000
"""Entries of an array that are gone through in the time that a program's operations take to start."""
FEW, MANY = 10_000_000, 2_000_000_000
"""Entries gone through up to which programs without optimizations and with some save more than they cost."""


def compile_quickly() -> None:
    """Have XLA compile CPU programs in less time: they run once, and compiling is most of a first run.

    Without fusion emitters, 1.3 times as fast. A program is not split into parts that are compiled side by
    side either, which takes a third less processor time: other processes have the other cores. Nor are parts
    run side by side: two batched factorizations would each hold a thread and wait for the other's, for ever
    (jaxlib 0.10, two cores). What stays the same throughout a loop is computed in each round: to move it out,
    XLA copies the loop again and again, a third of the time that a differential equation takes to compile.
    Call it before anything is computed. `XLA_FLAGS` of the user's own stays as it is. A flag that XLA does
    not know ends the process: each goes only to versions that are known to have it.
    """
    flags = flags_known_to(version("jaxlib"))
    if flags:
        os.environ.setdefault("XLA_FLAGS", " ".join(flags))
        _share_context()


def _share_context() -> None:
    """Give all programs of the process one context of MLIR: 5 ms and a megabyte each, 7 % of a first run.

    JAX makes one for every program. This is in no interface of its, so commands have it, and the library not.
    """
    with suppress(ImportError, AttributeError):
        from jax._src.interpreters import mlir

        mlir.make_ir_context = cache(mlir.make_ir_context)


def flags_known_to(jaxlib: str, /) -> list[str]:
    """Flags of `QUICKLY` that a version of jaxlib has.

    >>> [flag for flag in QUICKLY if flag not in flags_known_to("0.11.2")]
    ['--xla_cpu_use_fusion_emitters=false']
    """
    numbers = tuple(int(part) for part in re.findall(r"\d+", jaxlib)[:3])
    return [flag for flag, lost in QUICKLY.items() if FIRST_TRIED <= numbers < lost]


@cache
def options_known_to(jaxlib: str, /) -> tuple[dict[str, Any], dict[str, Any]]:
    """Options of a program that is to be compiled with some of the optimizations, and with few of them.

    Some: a third of the time to compile, the same numbers, products of matrices as fast. Few: a seventh;
    loops over entries take up to four times as long.
    """
    flags = [flag for flag in flags_known_to(jaxlib) if "passes" not in flag]
    pairs = (flag.removeprefix("--").split("=") for flag in flags)
    some: dict[str, Any] = {name: value != "false" and int(value) for name, value in pairs}
    few = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
    return some, {**some, **few} if some else {}


class Program:
    """A function as `jax.jit` has it, compiled on a CPU with the effort that its run is worth.

    A small problem is solved in less time than XLA's optimizations of its programs take. How much is
    optimized follows from the sizes of the arguments alone, so that it is the same in every run: from
    `(entries + OVERHEAD) · times`, for a program that goes through its arguments so many times. Other devices
    compile as ever. So do transformations, whose program this is a part of: there JAX takes no options.
    """

    def __init__(self, function: Callable, **static: Any):
        some, few = options_known_to(version("jaxlib"))
        jitted = partial(jax.jit, function, **static)
        self._plain, self._quickly = jitted(), jitted(compiler_options=some)
        self._unoptimized = jitted(compiler_options=few)
        update_wrapper(self, function)

    def __call__(self, *args: Any, times: int = 1, **kwargs: Any) -> Any:
        """Call the function, which goes through its arguments about `times` times."""
        return self._program((args, kwargs), times)(*args, **kwargs)

    def _program(self, arguments: Any, times: int) -> Callable:
        if jax.default_backend() != "cpu" or get_opaque_trace_state() != _eager():
            return self._plain
        entries = OVERHEAD
        for leaf in jax.tree.leaves(arguments):
            if isinstance(leaf, Tracer):
                return self._plain
            entries += getattr(leaf, "size", 0)
            if isinstance(leaf, jax.Array) and next(iter(leaf.sharding.device_set)).platform != "cpu":
                return self._plain
        if entries * times <= FEW:
            return self._unoptimized
        return self._quickly if entries * times <= MANY else self._plain

    def __getattr__(self, name: str) -> Any:
        return getattr(self._plain, name)


@cache
def _eager() -> Any:
    """JAX's state where nothing is traced, which is that of any new thread."""
    with ThreadPoolExecutor(1) as threads:
        return threads.submit(get_opaque_trace_state).result()


MOST_MAPS = 30_000
"""Memory maps after which programs are forgotten: Linux grants a process 65,530, and then it is killed."""


def forget_programs(most: int = MOST_MAPS, /) -> None:
    """Forget compiled programs, each of which holds some memory maps, where there are too many of these.

    What is needed again is compiled again, or read from the cache on disk.
    """
    try:
        with open("/proc/self/maps", "rb") as maps:
            count = sum(1 for _ in maps)
    except OSError:
        return  # not Linux: no such limit
    if count > most:
        jax.clear_caches()


@contextmanager
def optimizing(on: bool, /) -> Iterator[None]:
    """Within, XLA optimizes what it compiles, or does not and takes half the time (JAX's own switch)."""
    name = "jax_disable_most_optimizations"
    before = jax.config.values[name]
    jax.config.update(name, not on)
    try:
        yield
    finally:
        jax.config.update(name, before)
