"""Every public computation lowers for GPUs of both vendors and for TPUs, without one of them."""

import subprocess
import sys
from functools import cache

import jax
import jax.numpy as jnp
import pytest

import lowdim_jax as ld
from lowdim_jax import spectra, theory
from theory_checks.lowering import lower, recording

PLATFORMS = ("cuda", "rocm", "tpu")
LAPACK = {
    "cuda": {"cusolver_geqrf_ffi", "cusolver_gesvdj_ffi", "cusolver_orgqr_ffi"},
    "rocm": {"hipsolver_geqrf_ffi", "hipsolver_gesvdj_ffi", "hipsolver_orgqr_ffi"},
    "tpu": {"Eigh", "ProductOfElementaryHouseholderReflectors", "Qr"},
}
"""The only custom calls there may be: each vendor's own QR and singular value decompositions."""


@cache
def computations(dtype):
    """Jitted functions by name, with their arguments: each is traced once, and lowered for every platform."""
    return [(name, jax.jit(function), arguments) for name, function, arguments in _computations(dtype)]


def _computations(dtype):
    key = jax.random.key(0)
    values = jnp.asarray([2.0, 1.0], dtype)
    target = ld.random_target(key, (8, 8), values)
    mask = jax.random.uniform(key, (8, 8)) < 0.7
    rule = ld.GradientDescent(jnp.asarray(0.05, dtype), alpha=2.0, momentum=0.5, nesterov=True)
    problems = {
        "factored": ld.factorization(target),
        "dense": ld.factorization(target.dense()),
        "completion": ld.completion(target.dense(), mask),
        "observed": ld.completion(target.dense(), mask).observed(),
        "sensing": ld.sensing(ld.gaussian_measurements(key, 20, (8, 8), dtype=dtype), truth=target),
    }
    weights = ld.compress(target, depth=3, scale=0.1, rank=4)
    times = jnp.asarray([0.0, 0.5], dtype)
    for name, problem in problems.items():
        yield f"descent on {name}", lambda w, p=problem: _trained(p, w, rule), (weights,)
        yield f"Hessian on {name}", lambda w, p=problem: jax.jvp(jax.grad(p.loss), (w,), (w,))[1], (weights,)
    for solver in ("explicit", "implicit"):

        def flow(w, solver=solver):
            return ld.gradient_flow(problems["dense"], w, times, solver=solver).weights

        yield f"{solver} flow", flow, (weights,)
    yield "spectral start", lambda m: ld.spectral(m, rank=4, depth=3, scale=0.1), (target.dense(),)
    yield "orthogonal start", lambda k: ld.orthogonal(k, (8, 8, 8), scale=0.1, dtype=dtype), (key,)
    yield "alignment", lambda w: spectra.alignment(w, target), (weights,)
    yield "modes", lambda w: spectra.modes(w, target), (weights,)
    yield "sampled reduction", lambda k: _sampled(k, values, rule), (key,)
    yield "mode trajectory", lambda t: theory.mode_trajectory(t, 2.0, depth=3, scale=0.1), (times,)
    yield "mode time", lambda s: theory.mode_time(s, 2.0, depth=4, scale=0.5), (values / 2,)
    yield "mode with α", lambda t: theory.mode_trajectory(t, 2.0, depth=3, scale=0.5, alpha=2.0), (times,)
    yield "two-cycle", lambda s: theory.two_cycle(s, depth=3, learning_rate=0.3), (values,)
    yield "mode of the original", lambda t: theory.original_mode(t, 2.0, depth=3, scale=0.1), (times,)
    two = (times, weights[0], weights[0].T, target.dense())
    yield "flow of two layers", lambda *given: theory.two_layer_flow(*given).end_to_end, two
    yield "subspace angles", lambda a: ld.linalg.subspace_angles(a, target.left), (target.right,)


def _trained(problem, weights, rule):
    run = ld.gradient_descent(problem, weights, rule, steps=3, observe=spectra.singular_values)
    return run.observed, run.weights


def _sampled(key, values, rule):
    reduction = ld.sample(key, 8, values, depth=3, scale=0.1)
    return ld.reduced_descent(reduction, rule, steps=3).weights


@pytest.mark.parametrize("platform", PLATFORMS)
def test_every_computation_lowers(dtype, platform):
    calls = set()
    for name, function, arguments in computations(dtype):
        program = lower(function, platform, *arguments)
        assert not program.error, f"{name}: {program.error}"
        calls |= set(program.calls)
    assert calls <= LAPACK[platform]


def test_what_cannot_be_lowered_is_found():
    def calls_the_host(x):
        return jax.pure_callback(lambda x: x, x, x)

    assert lower(jax.jit(calls_the_host), "tpu", jnp.ones(2)).error


def test_programs_of_functions_jitted_inside_are_recorded_once_a_shape():
    with recording("tpu") as programs:
        double = jax.jit(lambda x: 2 * x)
        for size in (2, 2, 3):
            assert double(jnp.ones(size)).shape == (size,)
        jax.make_jaxpr(double)(jnp.ones(4))  # traced: part of another program
    assert len(programs) == 2
    assert jax.jit is not None
    assert not hasattr(jax.jit, "_programs")


def test_a_device_that_is_not_here_is_one_sentence():
    """In a process of its own: this one has its device already."""
    if any(device.platform == "gpu" for device in jax.devices()):
        pytest.skip("there is a GPU")
    command = [sys.executable, "-m", "theory_checks", "run", "--device", "gpu", "--only", "scalar-map"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 2
    assert done.stderr == "theory-checks: error: --device gpu: no such device for JAX on this machine\n"
