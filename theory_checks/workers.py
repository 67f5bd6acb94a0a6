"""The checks in several processes: one compiles while another runs. Results come in order, as from one."""

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing import get_context
from typing import Any

from theory_checks.interrupts import Interrupts
from theory_checks.registry import Check
from theory_checks.runner import Result, run_check, run_checks
from theory_checks.selection import select
from theory_checks.setting import Setting

FEWEST = 8
"""Checks from which on starting processes is worth its seconds."""
NUMPY_THREADS = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS")
"""What tells NumPy's linear algebra, as it is loaded, how many threads to start."""


def default_processes(platform: str, checks: Sequence[Check], /) -> int:
    """Two, where there are two cores and many checks; a GPU or TPU is one process's alone."""
    return 2 if platform == "cpu" and (os.cpu_count() or 1) > 1 and len(checks) >= FEWEST else 1


def run_in_processes(
    checks: Sequence[Check],
    setting: Setting,
    results: list[Result],
    interrupts: Interrupts,
    /,
    *,
    processes: int,
    configure: Callable[[], None],
) -> Iterator[Result]:
    """As `run_checks`, over processes that `configure` prepares; what is timed runs at the end, alone."""
    alone = [check for check in checks if check.alone or processes == 1]
    shared = [check for check in checks if check not in alone]
    if not shared:
        yield from run_checks(alone, setting, results, interrupts)
        return
    plain = replace(setting)  # without the arrays that it has cached
    pool = ProcessPoolExecutor(
        processes, mp_context=get_context("spawn"), initializer=_prepare, initargs=(configure,)
    )
    try:
        interrupts.allowed = True
        with _one_thread_each():
            waiting: list[Future[Result]] = [pool.submit(_run, check.name, plain) for check in shared]
        for check, future in zip(shared, waiting, strict=True):
            interrupts.allowed = True
            results.append(_result(check, future))
            interrupts.allowed = False
            yield results[-1]
    except BaseException:
        _stop(pool)
        raise
    pool.shutdown()
    yield from run_checks(alone, setting, results, interrupts)


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Processes started within leave the other cores to each other: threads of OpenBLAS spin as they wait."""
    ours = [name for name in NUMPY_THREADS if name not in os.environ]
    os.environ.update(dict.fromkeys(ours, "1"))
    try:
        yield
    finally:
        for name in ours:
            del os.environ[name]


def _prepare(configure: Callable[[], None]) -> None:
    """In a new process: Ctrl-C is for the one that started it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    configure()


def _run(name: str, setting: Setting) -> Result:
    (check,) = select([name])
    return run_check(check, setting)


def _result(check: Check, future: Future[Result]) -> Result:
    try:
        return future.result()
    except BrokenProcessPool:
        detail = "the process that ran it has ended, as one that is out of memory does: try --processes 1"
        return Result(check.name, check.claim, check.source, outcome="error", detail=detail)


def _stop(pool: ProcessPoolExecutor) -> None:
    """End the processes now, whatever they are at."""
    running: Any = getattr(pool, "_processes", None) or {}
    for process in list(running.values()):
        process.terminate()
    pool.shutdown(wait=False, cancel_futures=True)
