"""What needs a process of its own: peak memory, and time from a fresh start. Prints one number.

    python child.py memory NETWORK D | memory observed COUNT | completion ours|PEER_DIR D

Megabytes above those of the imported libraries; seconds after import, compilation included.
"""

import sys
from pathlib import Path

import jax

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_enable_compilation_cache", False)

import works  # noqa: E402

import lowdim_jax as ld  # noqa: E402


def peak() -> float:
    """Megabytes; `getrusage` would give those of the process that started this one, where they are more."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def memory(network: str, d: int) -> float:
    """Peak memory of set-up and three steps; of observed entries with the arrays they are built from."""
    before = peak()
    if network == "observed":
        problem, weights = works.observations(d, works.OBSERVED_SHAPE, works.OBSERVED_RANK)
        loss = problem.loss
    else:
        loss, weights = works.factorization(network, d)
    run = ld.gradient_descent(loss, weights, ld.GradientDescent(works.RATE), steps=3, record_every=3)
    jax.block_until_ready(run.weights)
    return peak() - before


def completion(whose: str, d: int) -> float:
    """Seconds from data to training loss 1e-12."""
    data = works.completion(d)
    jax.devices()  # the backend starts before the clock, for both
    if whose == "ours":
        return works.our_completion(*data)
    sys.path.append(whose)
    return works.peer_completion(*data)


if __name__ == "__main__":
    what, which, d = sys.argv[1:]
    print({"memory": memory, "completion": completion}[what](which, int(d)))
