"""Train completion on many devices and processes: `python -m lowdim_jax.distributed` (docs/many-devices.md).

The command starts the processes that train as its children, and stays behind to say in one sentence how
they ended: JAX's runtime ends a process that has lost another one from outside of Python.
"""

import argparse
import json
import math
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import jax

from lowdim_jax._command import BAD_INPUT, FAILED, OK, Parser, new_parser, run
from lowdim_jax._triplets import LARGEST_SIDE, checked_triplets, merged
from lowdim_jax.distributed.rendezvous import Missing, meet, parse
from lowdim_jax.distributed.shards import (
    Shards,
    even_bounds,
    open_shards,
    read_entries,
    split,
    synthesize,
    write_shards,
)

PROGRAM = "lowdim_jax.distributed"
DIVERGED, LOST = FAILED, 3
"""Exit codes of the command and of the processes that train, beside those of all commands."""
OWN = ("folder", "checkpoints", "process_id", "coordinator", "timeout", "processes", "command")
"""Options in which processes may differ; all others have to be the same."""
NOT_FOR_WORKERS = ("command", "processes", "coordinator", "num_processes", "process_id")
GRACE = 5.0
"""Seconds beyond the timeout after which processes that outlive a lost one are killed."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0, 1 diverged, 2 bad input, 3 a process was lost."""
    return run(_parser(), argv)


def _parser() -> Parser:
    parser = new_parser(PROGRAM, "Matrix completion on many devices and processes.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    command = commands.add_parser("synthesize", help="write shards of a random low-rank matrix's entries")
    command.add_argument("folder", metavar="DATA")
    for name in ("rows", "columns", "rank", "observations"):
        command.add_argument(f"--{name}", type=int, required=True, metavar="N")
    command.add_argument("--shards", type=int, default=8, metavar="N", help="number of files")
    command.add_argument("--seed", type=int, default=0)
    command.set_defaults(command=_synthesize)

    command = commands.add_parser("shard", help="cut a file of entries into shards")
    command.add_argument("file", metavar="FILE", help="an .npz file with arrays rows, columns and values")
    command.add_argument("folder", metavar="DATA")
    command.add_argument("--shards", type=int, default=8, metavar="N", help="number of files")
    command.set_defaults(command=_shard)

    command = commands.add_parser("train", help="train, from the last checkpoint if there is one")
    command.add_argument("folder", metavar="DATA", help="a folder of shards")
    command.add_argument("checkpoints", metavar="CHECKPOINTS", help="where the run is kept, at every check")
    command.add_argument("--rank", type=int, required=True, metavar="R", help="width of the network")
    command.add_argument("--depth", type=int, default=3, metavar="L", help="number of layers (3)")
    command.add_argument("--alpha", type=float, default=1.0, help="ratio of outer to middle rate (1)")
    command.add_argument("--scale", type=float, help="initialization scale ε; default: as `ld.fit`")
    command.add_argument("--learning-rate", type=float, help="η; default: half of the edge of stability")
    command.add_argument("--steps", type=int, default=1000, metavar="N", help="in all (1000)")
    command.add_argument("--check-every", type=int, default=50, metavar="N", help="steps between checks (50)")
    command.add_argument(
        "--hold-out",
        type=float,
        metavar="FRACTION",
        help="of the entries, on which the run is stopped and evaluated; default: none",
    )
    command.add_argument(
        "--across", type=int, default=1, metavar="N", help="blocks of columns (1); devices across share rows"
    )
    command.add_argument(
        "--effects", action="store_true", help="subtract mean, row and column effects first, as for ratings"
    )
    where = command.add_argument_group("processes", "either several on this machine, or one of several")
    where.add_argument("--processes", type=int, metavar="N", help="start N processes on this machine")
    where.add_argument("--coordinator", metavar="HOST:PORT", help="address of process 0, any free port")
    where.add_argument("--num-processes", type=int, metavar="N")
    where.add_argument("--process-id", type=int, metavar="I", help="from 0 to N − 1")
    where.add_argument(
        "--timeout", type=int, default=30, metavar="SECONDS", help="without a sign of another process (30)"
    )
    command.set_defaults(command=_train)
    return parser


def _synthesize(arguments: argparse.Namespace) -> int:
    shape = arguments.rows, arguments.columns
    if min(*shape, arguments.rank, arguments.observations) < 1:
        raise ValueError("rows, columns, rank and observations are expected to be positive")
    if max(shape) > LARGEST_SIDE or arguments.rank > min(shape) or arguments.observations > math.prod(shape):
        raise ValueError(
            f"rank={arguments.rank} and observations={arguments.observations} of a matrix of shape {shape}, "
            f"expected at most its smaller side, its number of entries, and {LARGEST_SIDE} rows or columns"
        )
    bounds = even_bounds(arguments.rows, arguments.shards)
    parts = synthesize(
        shape, bounds, rank=arguments.rank, observations=arguments.observations, seed=arguments.seed
    )
    write_shards(arguments.folder, parts, shape=shape, bounds=bounds)
    return 0


def _shard(arguments: argparse.Namespace) -> int:
    entries, shape = checked_triplets(*read_entries(Path(arguments.file)), double=True)
    entries = merged(entries, shape, "raise")
    bounds = even_bounds(shape[0], arguments.shards)
    write_shards(arguments.folder, split(entries, bounds), shape=shape, bounds=bounds)
    return 0


def _train(arguments: argparse.Namespace) -> int:
    shards = open_shards(arguments.folder)  # a wrong name is found out before processes start
    here, count, own = arguments.processes, arguments.num_processes, arguments.process_id
    by_hand = (arguments.coordinator, count, own)
    if here is not None and by_hand != (None,) * 3:
        raise ValueError("with processes, leave out coordinator, num-processes and process-id")
    if here is not None and here < 1:
        raise ValueError(f"processes={here}, expected at least one")
    if None in by_hand and by_hand != (None,) * 3:
        raise ValueError("coordinator, num-processes and process-id are expected together")
    if own is not None and not 0 <= own < count:
        raise ValueError(f"process-id={own} of {count} processes, expected 0 ≤ process-id < num-processes")
    count = count or here or 1
    processes = range(count) if own is None else [own]
    for name, value in (("timeout", arguments.timeout), ("check-every", arguments.check_every)):
        if value < 1:
            raise ValueError(f"{name}={value}, expected at least 1")
    if arguments.hold_out is not None and not 0 < arguments.hold_out < 1:
        raise ValueError(f"hold-out={arguments.hold_out}, expected a fraction between 0 and 1")
    coordinator = arguments.coordinator or f"localhost:{_free_port()}"
    parse(coordinator)
    if own is not None and count > 1:
        try:
            meet(coordinator, own, count, _card(arguments, shards), arguments.timeout)
        except Missing as error:
            print(f"{PROGRAM}: error: {error}; nothing was started", file=sys.stderr)
            return LOST
    settings = {name: value for name, value in vars(arguments).items() if name not in NOT_FOR_WORKERS}
    workers = [
        {"process_id": k, "num_processes": count, "coordinator": coordinator, **settings} for k in processes
    ]
    return _supervise(workers, arguments)


def _card(arguments: argparse.Namespace, shards: Shards) -> dict:
    """What all processes of a run have to agree on: settings, data, precision and JAX's version."""
    settings = {name: value for name, value in vars(arguments).items() if name not in OWN}
    x64 = bool(jax.config.jax_enable_x64)  # pyright: ignore[reportAttributeAccessIssue]
    return {**settings, "shape": list(shards.shape), "data": shards.data, "x64": x64, "jax": jax.__version__}


def _supervise(workers: list[dict], arguments: argparse.Namespace) -> int:
    """Start this machine's processes, wait for them, and say how they ended."""
    logs = Path(tempfile.mkdtemp(prefix="lowdim_jax."))
    children: dict[int, subprocess.Popen] = {}
    try:
        for worker in workers:
            with (logs / f"{worker['process_id']}.log").open("wb") as log:
                children[worker["process_id"]] = subprocess.Popen(
                    [sys.executable, "-m", "lowdim_jax.distributed.worker", json.dumps(worker)],
                    stdin=subprocess.PIPE,  # whose end tells a child that this process is gone
                    stderr=log,
                )
        ended = _wait(children, arguments.timeout + GRACE)
    finally:
        for child in children.values():
            child.kill()
            child.wait()
    bad = [(process, code) for process, code in ended if code != OK]
    if not bad or bad[0][1] == DIVERGED:
        shutil.rmtree(logs)
        return DIVERGED if bad else OK
    told = [process for process, code in bad if code == BAD_INPUT]
    if told:
        lines = (logs / f"{told[0]}.log").read_text("utf-8", errors="replace").splitlines()
        shutil.rmtree(logs)
        raise ValueError(lines[-1] if lines else f"process {told[0]} refused its input")
    text = _what_happened(bad, Path(arguments.checkpoints))
    print(f"{PROGRAM}: error: {text} (details: {logs})", file=sys.stderr)
    return LOST


def _wait(children: dict[int, subprocess.Popen], patience: float) -> list[tuple[int, int]]:
    """Processes and exit codes in the order in which they ended; without those that had to be killed."""
    ended: list[tuple[int, int]] = []
    deadline = float("inf")
    while len(ended) < len(children) and time.monotonic() < deadline:
        for process, child in children.items():
            if process not in dict(ended) and (code := child.poll()) is not None:
                ended.append((process, code))
                if code != OK:
                    deadline = min(deadline, time.monotonic() + patience)
        time.sleep(0.05)
    return ended


def _what_happened(ended: list[tuple[int, int]], checkpoints: Path) -> str:
    """One sentence. JAX ends a process that has lost another one by SIGABRT, so that is no cause."""
    killed = [(k, code) for k, code in ended if code < 0 and code != -signal.SIGABRT]
    process, code = killed[0] if killed else ended[0]
    if killed:
        cause = f"process {process} was ended by {signal.Signals(-code).name}"
    elif code in (LOST, -signal.SIGABRT):
        cause = f"process {process} lost the connection to another process"
    else:
        cause = f"process {process} failed with exit code {code}"
    steps = [int(path.name) for path in checkpoints.glob("*") if path.name.isdigit()]
    since = f"from its checkpoint at step {max(steps)}" if steps else "from the start, without a checkpoint"
    return f"{cause}, and the run ended; the same command goes on {since}"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]
