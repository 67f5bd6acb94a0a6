"""The checks in several processes: one compiles while another runs. Results come in order, as from one."""

import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from typing import Any

import jax

from lowdim_jax.linalg import LowRank
from theory_checks.interrupts import Interrupts
from theory_checks.registry import Check
from theory_checks.runner import Result, run_check, run_checks
from theory_checks.selection import select
from theory_checks.setting import Setting

FEWEST = 8
"""Checks from which on starting processes is worth its seconds."""
MOST = 6
"""Processes beyond which the longest check is what a run waits for."""
NUMPY_THREADS = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS")
"""What tells NumPy's linear algebra, as it is loaded, how many threads to start."""


def default_processes(platform: str, checks: Sequence[Check], /) -> int:
    """As many as there are cores to compile, up to `MOST`, where there are many checks; one on a TPU.

    A program is compiled for a GPU on several cores; a TPU is one process's alone.
    """
    cores = os.cpu_count() or 1
    useful = {"cpu": cores, "gpu": cores // 2}.get(platform, 1)
    return max(1, min(useful, MOST)) if len(checks) >= FEWEST else 1


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
    queue = _Queue(shared, [_new_pool(configure, *_given(setting)) for _ in range(processes)])
    try:
        interrupts.allowed = True
        queue.start()
        for check in shared:
            interrupts.allowed = True
            results.append(_result(check, queue.futures[check.name]))
            interrupts.allowed = False
            yield results[-1]
    except BaseException:
        queue.stop()
        raise
    for pool in queue.pools:
        pool.shutdown()
    yield from run_checks(alone, setting, results, interrupts)


class _Queue:
    """Checks for processes, one each; a process takes those of a module first that it has taken before.

    They share runs, and compiled programs. Where a process ends before its time, the others go on.
    """

    def __init__(self, checks: Sequence[Check], pools: Sequence[ProcessPoolExecutor]) -> None:
        self.waiting, self.pools, self.alive = list(checks), pools, len(pools)
        self.futures: dict[str, Future[Result]] = {check.name: Future() for check in checks}
        self.owners: dict[str, ProcessPoolExecutor] = {}
        self.lock = threading.Lock()

    def start(self) -> None:
        with _one_thread_each():
            for pool in self.pools:
                self._feed(pool)

    def stop(self) -> None:
        """End the processes now, whatever they are at."""
        with self.lock:
            self.waiting.clear()
        for pool in self.pools:
            running: Any = getattr(pool, "_processes", None) or {}
            for process in list(running.values()):
                process.kill()  # SIGTERM can wait for a GPU's compiler
            pool.shutdown(wait=False, cancel_futures=True)

    def _feed(self, pool: ProcessPoolExecutor) -> None:
        with self.lock:
            check = self._next(pool)
        if check is None:
            return
        promised = self.futures[check.name]
        try:
            came = pool.submit(_run, check.name)
        except RuntimeError as error:  # its process has just ended
            self._ended(promised, error)
        else:
            came.add_done_callback(partial(self._done, pool, promised))

    def _next(self, pool: ProcessPoolExecutor) -> Check | None:
        own = (c for c in self.waiting if self.owners.setdefault(c.compare.__module__, pool) is pool)
        check = next(own, None) or next(iter(self.waiting), None)
        if check is not None:
            self.waiting.remove(check)
        return check

    def _done(self, pool: ProcessPoolExecutor, promised: Future[Result], came: Future[Result]) -> None:
        """In a thread of the pool's: hand the result over, and give its process more to do."""
        error = BrokenProcessPool() if came.cancelled() else came.exception()
        if error is not None:
            self._ended(promised, error)
            return
        promised.set_result(came.result())
        self._feed(pool)

    def _ended(self, promised: Future[Result], error: BaseException) -> None:
        """What a process that has ended leaves: its check, and all that wait once it was the last."""
        promised.set_exception(error)
        with self.lock:
            self.alive -= 1
            lost = [] if self.alive else [self.waiting.pop() for _ in list(self.waiting)]
        for check in lost:
            self.futures[check.name].set_exception(error)


def _given(setting: Setting) -> tuple[Setting, LowRank]:
    """What a process starts from: NumPy's arrays, since JAX's are read in float32 until it is configured."""
    target, targets = jax.device_get((setting.target, setting.targets))
    return replace(setting, target=target), targets


def _new_pool(configure: Callable[[], None], setting: Setting, targets: LowRank) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(
        1, mp_context=get_context("spawn"), initializer=_prepare, initargs=(configure, setting, targets)
    )


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


_SETTING: list[Setting] = []
"""What the checks of this process are given: one object, with the targets that the first process drew."""


def _prepare(configure: Callable[[], None], setting: Setting, targets: LowRank) -> None:
    """In a new process: Ctrl-C is for the one that started it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    configure()
    setting.__dict__["targets"] = jax.device_put(targets)
    _SETTING[:] = [setting]


def _run(name: str) -> Result:
    (check,) = select([name])
    return run_check(check, *_SETTING)


def _result(check: Check, future: Future[Result]) -> Result:
    try:
        return future.result()
    except BrokenProcessPool:
        detail = "the process that ran it has ended, as one that is out of memory does: try --processes 1"
        return Result(check.name, check.claim, check.source, outcome="error", detail=detail)
