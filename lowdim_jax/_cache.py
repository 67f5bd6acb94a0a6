"""How the command lines compile: kept between runs, and fast; importing the library leaves JAX alone."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import jax


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


def flags_known_to(jaxlib: str, /) -> list[str]:
    """Flags of `QUICKLY` that a version of jaxlib has.

    >>> [flag for flag in QUICKLY if flag not in flags_known_to("0.11.2")]
    ['--xla_cpu_use_fusion_emitters=false']
    """
    numbers = tuple(int(part) for part in re.findall(r"\d+", jaxlib)[:3])
    return [flag for flag, lost in QUICKLY.items() if FIRST_TRIED <= numbers < lost]


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
