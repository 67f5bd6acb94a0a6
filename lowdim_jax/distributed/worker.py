"""One process of `lowdim_jax.distributed`: takes its settings as JSON, trains, prints, and ends at once."""

import json
import os
import resource
import sys
import threading
import traceback
from collections.abc import Callable

import jax
import numpy as np

from lowdim_jax._cache import cache_programs
from lowdim_jax._host import as_pytree
from lowdim_jax.checkpoints import Checkpoints
from lowdim_jax.compression import compress
from lowdim_jax.descent import DescentState, gradient_descent, initial_state
from lowdim_jax.distributed.command import BAD_INPUT, DIVERGED, LOST, OK
from lowdim_jax.distributed.sharded import ShardedCompletion, mesh, process_rows, sharded_completion
from lowdim_jax.distributed.shards import open_shards
from lowdim_jax.fitting import EDGE_FRACTION, START
from lowdim_jax.networks import compressed_widths
from lowdim_jax.optimizers import GradientDescent
from lowdim_jax.theory import max_learning_rate

CRASHED = 70
RUN = ("shape", "count", "data", "dtype", "depth", "rank", "alpha", "scale", "learning_rate", "check_every")
"""What a run depends on: that of its checkpoint and that of the command have to be the same."""
CHOSEN = ("scale", "learning_rate")
"""Of these, what has a default that depends on the data."""
ARRIVAL = 60
"""Seconds that processes which have met may take to start, at least."""


def main() -> None:
    """Train and end the process; without waiting for others, which may be gone."""
    settings = json.loads(sys.argv[1])
    say = _own_output()
    _end_with_parent()
    code = CRASHED
    try:
        code = train(settings, say)
        if code == OK and settings["num_processes"] > 1:
            jax.distributed.shutdown()
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        code = BAD_INPUT
    except jax.errors.JaxRuntimeError:
        traceback.print_exc()
        code = LOST if settings["num_processes"] > 1 else CRASHED
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def train(settings: dict, say: Callable[[str], None]) -> int:
    """Load this process's rows and train from the last checkpoint, or from a spectral start."""
    process, processes = settings["process_id"], settings["num_processes"]
    cache_programs()
    if processes > 1:
        jax.config.update("jax_enable_preemption_service", False)  # it would have SIGTERM ignored
        jax.distributed.initialize(
            settings["coordinator"],
            processes,
            process,
            initialization_timeout=max(settings["timeout"], ARRIVAL),
            heartbeat_timeout_seconds=settings["timeout"],
            shutdown_timeout_seconds=settings["timeout"],
        )
    shards, devices = open_shards(settings["folder"]), mesh()
    own = process_rows(shards.shape[0], mesh=devices)
    entries = shards.read(own)
    problem = sharded_completion(*entries, shape=shards.shape, mesh=devices)
    say(
        f"process {process} of {processes}: {jax.local_device_count()} devices, "
        f"rows {own.start} to {own.stop}, {len(entries[0])} of {problem.count} entries"
    )
    del entries
    checkpoints = Checkpoints(settings["checkpoints"])
    state, run, optimizer = _start(problem, {**settings, "data": shards.data}, checkpoints)

    def check(state: DescentState) -> None:
        step, loss = int(state.step), float(state.loss)
        run["losses"].append([step, loss])
        if np.isfinite(loss):  # nothing could go on from a state that diverged
            checkpoints.save(state, run)
        if process == 0:
            say(f"step {step} loss {loss:.10g}")

    if not run["losses"]:
        check(state)
    elif process == 0:
        say(f"goes on from step {int(state.step)}")
    every = settings["check_every"]
    trajectory = gradient_descent(
        problem,
        state,
        optimizer,
        steps=settings["steps"],
        record_every=every,
        callback=check,
        callback_every=every,
    )
    checkpoints.close()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    say(f"process {process} of {processes}: {trajectory.message}, peak memory {peak} MB")
    return OK if trajectory.ok else DIVERGED


def _start(problem: ShardedCompletion, settings: dict, checkpoints: Checkpoints):
    """State to go on from, what is written into checkpoints beside it, and the optimizer."""
    depth, rank, alpha = settings["depth"], settings["rank"], settings["alpha"]
    resumed = checkpoints.latest is not None
    now = {**settings, "shape": list(problem.shape), "count": problem.count, "dtype": str(problem.dtype)}
    run = checkpoints.settings() if resumed else _new_run(problem, now)
    for name in RUN:
        by_default = now[name] is None and name not in run.get("given", ())
        if not by_default and run.get(name) != now[name]:
            value = "the default" if now[name] is None else now[name]
            raise ValueError(
                f"the checkpoints in {settings['checkpoints']!r} were written with {name}={run.get(name)}, "
                f"now it is {value}"
            )
    if resumed:
        widths = compressed_widths(*problem.shape, depth=depth, rank=rank)
        shapes = zip(widths[1:], widths, strict=False)
        weights = problem.place([np.zeros(shape, problem.dtype) for shape in shapes])
    else:
        weights = compress(problem, depth=depth, scale=run["scale"], rank=rank)
    optimizer = GradientDescent(run["learning_rate"], alpha=alpha)
    state = jax.jit(initial_state)(as_pytree(problem.loss), optimizer, weights)
    return (checkpoints.restore(state) if resumed else state), run, optimizer


def _new_run(problem: ShardedCompletion, settings: dict) -> dict:
    """All that a run depends on, with the defaults of `fit`, and its history of losses."""
    given = [name for name in CHOSEN if settings[name] is not None]
    run = {**settings, "given": given, "losses": []}
    top = float(problem.surrogate(run["rank"]).singular_values[0])
    if run["scale"] is None:
        run["scale"] = (START * top) ** (1 / run["depth"])
    if run["learning_rate"] is None:
        edge = max_learning_rate(top, depth=run["depth"], alpha=run["alpha"])
        run["learning_rate"] = EDGE_FRACTION * float(edge)
    return {name: run[name] for name in (*RUN, "given", "losses")}


def _own_output() -> Callable[[str], None]:
    """Printing for this module, with the standard output of libraries in C++ moved to the log."""
    output = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def say(text: str) -> None:
        print(text, file=output, flush=True)

    return say


def _end_with_parent() -> None:
    """End this process when the one that started it is gone, however that happened."""

    def watch() -> None:
        sys.stdin.buffer.read()
        os._exit(CRASHED)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    main()
