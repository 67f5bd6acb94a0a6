"""Compiled programs are kept from run to run, where there is a place to keep them."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowdim_jax._cache import FEW, MANY, OVERHEAD, Program, flags_known_to, forget_programs, options_known_to
from theory_checks.cli import main

FLOW = """
from lowdim_jax._cache import cache_programs
cache_programs()

import jax, jax.numpy as jnp
import lowdim_jax as ld

@jax.jit
def small_flow(start):
    loss = lambda weights: jnp.sum((weights[1] @ weights[0] - 1) ** 2)
    return ld.gradient_flow(loss, start, jnp.arange(2.0))

print(small_flow((jnp.eye(2), jnp.eye(2))).losses)
"""


def test_compiled_programs_are_kept_in_the_cache_directory(tmp_path):
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path), "JAX_DISABLE_MOST_OPTIMIZATIONS": "0"}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    subprocess.run([sys.executable, "-c", FLOW], env=environment, check=True, capture_output=True)
    # Programs of a gradient flow are among them: without host callbacks, JAX can keep those, too.
    assert list((tmp_path / "lowdim_jax").glob("*small_flow*"))


def test_a_cache_directory_that_cannot_be_made_does_no_harm(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert main(["run", "--only", "parameter-count", "--seeds", "1", "--out", str(tmp_path)]) == 0


def test_programs_are_forgotten_before_they_use_up_the_maps_that_linux_grants():
    double = jax.jit(lambda x: 2 * x)
    double(np.float32(1))
    forget_programs()
    assert double._cache_size() == 1
    forget_programs(0)
    assert double._cache_size() == (0 if Path("/proc/self/maps").exists() else 1)
    assert double(np.float32(1)) == 2


@pytest.mark.parametrize(
    ("version", "count"),
    [("0.9.2", 0), ("0.10.0", 4), ("0.10.2", 4), ("0.11.2", 3), ("0.12.0.1", 3), ("1.0.0", 0)],
)
def test_a_version_of_xla_is_given_the_flags_that_it_knows_and_no_other(version, count):
    """One that it does not know ends the process: seen with the first flag and jaxlib 0.11.2, 0.12.0.1."""
    assert len(flags_known_to(version)) == count
    assert all(bool(options) == bool(count) for options in options_known_to(version))


def _compiled(program):
    """Programs compiled without, with some and with all optimizations."""
    return [one._cache_size() for one in (program._unoptimized, program._quickly, program._plain)]


def test_the_effort_of_compilation_follows_from_sizes_alone(monkeypatch):
    program, entries = Program(lambda x: 2 * x), np.ones(24, np.float32)
    gone_through = entries.size + OVERHEAD
    for times, expected in (
        (1, [1, 0, 0]),
        (FEW // gone_through, [1, 0, 0]),
        (FEW // gone_through + 1, [1, 1, 0]),
        (MANY // gone_through, [1, 1, 0]),
        (MANY // gone_through + 1, [1, 1, 1]),
    ):
        assert np.array_equal(program(entries, times=times), 2 * entries)
        assert _compiled(program) == expected
    elsewhere = Program(lambda x: 2 * x)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert np.array_equal(elsewhere(entries), 2 * entries)
    assert _compiled(elsewhere) == [0, 0, 1]


def test_a_program_composes_with_transformations_and_control_flow():
    """Where JAX takes no options for the compiler: also of values that are constants there."""
    program, x = Program(lambda x: x**3), jnp.arange(1.0, 4.0)
    cube, slope = np.arange(1.0, 4.0) ** 3, 3 * np.arange(1.0, 4.0) ** 2
    assert np.allclose(program(x), cube)
    assert np.allclose(jax.jit(program)(x), cube)
    assert np.allclose(jax.jit(lambda y: program(x) * y)(x), cube * x)
    assert np.allclose(jax.vmap(program)(x), cube)
    assert np.allclose(jax.grad(lambda y: program(y).sum())(x), slope)
    assert np.allclose(jax.grad(lambda y: (program(x) * y).sum())(x), cube)
    assert np.allclose(jax.jit(jax.hessian(lambda y: program(y).sum()))(x), np.diag(6 * x))
    assert np.allclose(jax.lax.scan(lambda y, _: (program(x), None), x, length=2)[0], cube)
    assert np.allclose(jax.checkpoint(program)(x), cube)
    assert program.trace(x).lower(lowering_platforms=("cuda",)).as_text()
