"""One process of `lowdim_jax.distributed`: takes its settings as JSON, trains, prints, and ends at once."""

import json
import os
import resource
import sys
import threading
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np

from lowdim_jax._cache import cache_programs
from lowdim_jax._command import BAD_INPUT, OK
from lowdim_jax.checkpoints import Checkpoints
from lowdim_jax.descent import DescentState
from lowdim_jax.distributed.command import DIVERGED, LOST
from lowdim_jax.distributed.effects import main_effects
from lowdim_jax.distributed.placement import mesh, process_rows
from lowdim_jax.distributed.sharded import sharded_completion
from lowdim_jax.distributed.shards import open_shards
from lowdim_jax.fitting import fit
from lowdim_jax.networks import Weights
from lowdim_jax.trajectory import Status

CRASHED = 70
EFFECTS = "effects.npz"
"""File beside the checkpoints: a network of two layers, to be added to the one that was trained."""
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
    shards, devices = open_shards(settings["folder"]), mesh(across=settings["across"])
    own = process_rows(shards.shape[0], mesh=devices)
    entries = shards.read(own)
    problem = sharded_completion(*entries, shape=shards.shape, mesh=devices)
    say(
        f"process {process} of {processes}: {jax.local_device_count()} devices, "
        f"rows {own.start} to {own.stop}, {len(entries[0])} of {problem.count} entries"
    )
    del entries
    held, known = None, [shards.data]
    if settings["hold_out"] is not None:
        problem, held = problem.split(settings["hold_out"])
        known.append(str(settings["hold_out"]))
    if settings["effects"]:
        effects = main_effects(problem)
        problem, held = problem.residual(effects), held and held.residual(effects)
        known.append("effects")
        _write(Path(settings["checkpoints"]) / EFFECTS, problem.gather(effects), process)
    problem = replace(problem, fingerprint="-".join(known))
    resumed = Checkpoints(settings["checkpoints"]).latest
    if resumed is not None and process == 0:
        say(f"goes on from step {resumed}")

    def tell(state: DescentState) -> None:
        loss = float(state.loss)
        if process == 0:
            say(f"step {int(state.step)} loss {loss:.10g}")

    result = fit(
        problem,
        **{name: settings[name] for name in ("depth", "rank", "alpha", "scale", "learning_rate", "steps")},
        check_every=settings["check_every"],
        checkpoint=settings["checkpoints"],
        callback=tell,
        validate=held.loss if held else None,
        finish=False,
    )
    if held and process == 0:  # a loss is half the squared misfit over the share of entries
        rmse = (2 * np.nanmin(result.validation) / np.prod(shards.shape, dtype=float)) ** 0.5
        say(f"held out: root mean square error {rmse:.6g} at step {result.best_step}")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    say(f"process {process} of {processes}: {result.message}, peak memory {peak} MB")
    return DIVERGED if result.status == Status.DIVERGED else OK


def _write(path: Path, weights: Weights, process: int) -> None:
    if process == 0:
        path.parent.mkdir(parents=True, exist_ok=True)
        first, last = weights
        np.savez(path, W1=first, W2=last)


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
