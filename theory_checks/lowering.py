"""A dry run for a device that is not here: programs are lowered for it, and run on the CPU.

Lowering needs no device: it is what JAX does before a compiler for one is asked. A program that cannot be
lowered (a callback to the host, an operation that a platform lacks) is found out, and so are the custom
calls, the functions of vendors' libraries that it needs there.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import jax
from jax.core import Tracer

PLATFORMS = {"gpu": "cuda", "cuda": "cuda", "rocm": "rocm", "tpu": "tpu", "cpu": "cpu"}
"""What JAX calls the devices of `--device`."""


@dataclass(frozen=True)
class Program:
    """One program: its name, its custom calls, and why it could not be lowered, if so."""

    name: str
    calls: tuple[str, ...] = ()
    error: str = ""
    platform: str = ""


def lower(function: Any, platform: str, /, *args: Any, **kwargs: Any) -> Program:
    """Lower a jitted function, called with these arguments, for a platform.

    Examples
    --------
    >>> import jax, jax.numpy as jnp
    >>> lower(jax.jit(jnp.linalg.norm), "tpu", jnp.ones(3))
    Program(name='norm', calls=(), error='', platform='tpu')
    """
    name = getattr(function, "__name__", type(function).__name__)
    try:
        text = function.trace(*args, **kwargs).lower(lowering_platforms=(platform,)).as_text()
    except Exception as error:  # whatever it is, it is what would happen there
        return Program(name, error=f"{type(error).__name__}: {error}", platform=platform)
    return Program(name, tuple(sorted(set(re.findall(r"custom_call @([\w.]+)", text)))), platform=platform)


@contextmanager
def recording(*platforms: str) -> Iterator[list[Program]]:
    """Within, every function that is jitted is lowered for `platforms` when it is called with new shapes.

    Modules that jit functions while they are imported have to be imported inside.
    """
    programs: list[Program] = []
    original = jax.jit

    def jit(function: Callable | None = None, /, **options: Any) -> Any:
        if function is None:
            return lambda function: jit(function, **options)
        return _Recorded(original(function, **options), platforms, programs)

    jax.jit = jit
    try:
        yield programs
    finally:
        jax.jit = original


class _Recorded:
    """A jitted function that is lowered for another platform, too."""

    def __init__(self, jitted: Any, platforms: Sequence[str], programs: list[Program]):
        self._jitted, self._platforms, self._programs = jitted, platforms, programs
        self._seen: set[str] = set()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        leaves, structure = jax.tree.flatten((args, kwargs))
        if not any(isinstance(leaf, Tracer) for leaf in leaves):
            kinds = [f"{leaf.dtype}{leaf.shape}" if hasattr(leaf, "dtype") else repr(leaf) for leaf in leaves]
            key = f"{kinds}{structure}"
            if key not in self._seen:
                self._seen.add(key)
                for platform in self._platforms:
                    self._programs.append(lower(self._jitted, platform, *args, **kwargs))
        return self._jitted(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._jitted, name)
