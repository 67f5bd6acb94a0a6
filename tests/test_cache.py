"""Compiled programs are kept from run to run, where there is a place to keep them."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from lowdim_jax._cache import flags_known_to, forget_programs
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
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
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
