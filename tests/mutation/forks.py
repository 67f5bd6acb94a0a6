"""Forks of one process that judge a broken library: JAX is imported before, library and device after."""

import importlib.abc
import importlib.util
import json
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from enumeration import ROOT, Mutant

HEAVY = ("jax", "optax", "diffrax", "flax.nnx", "scipy.optimize", "scipy.integrate", "scipy.sparse.linalg",
         "scipy.stats", "mpmath", "rich.table", "jinja2", "pytest", "sklearn.datasets")  # fmt: skip
Say = Callable[[Any], object]


def preload() -> None:
    """Import what every fork needs. No device is made: a process that has one must not fork."""
    flags = "--xla_cpu_use_fusion_emitters=false --xla_cpu_multi_thread_eigen=false"
    os.environ.setdefault("XLA_FLAGS", flags)
    for module in HEAVY:
        importlib.import_module(module)


def in_a_fork(mutant: Mutant | None, stage: Callable[[Say], None], timeout: float) -> tuple[list[Any], str]:
    """What a stage says in a child with the mutant, or with nothing broken; and how the child ended.

    That is `""` where the stage came to its end, else `"an error"` or `"no end"`.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _stand_alone()
        if mutant is not None:
            sys.meta_path.insert(0, _Finder(mutant))
        code = 3
        try:
            stage(lambda value: os.write(writing, (json.dumps(value) + "\n").encode()))
            code = 0
        except BaseException:  # whatever a broken library raises
            code = 3
        finally:
            os._exit(code)
    os.close(writing)
    said, ended = _listen(reading, timeout)
    if not ended:
        os.killpg(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    failed = os.waitstatus_to_exitcode(status) != 0
    return said, "no end" if not ended else "an error" if failed else ""


def _stand_alone() -> None:
    """A process group of its own, so that all of it can be ended; no output."""
    os.setsid()
    sink = os.open(os.devnull, os.O_WRONLY)
    os.dup2(sink, 1)
    os.dup2(sink, 2)
    sys.dont_write_bytecode = True


def _listen(pipe: int, timeout: float) -> tuple[list[Any], bool]:
    """Lines that come through a pipe, as JSON, and whether its other end was closed in time."""
    end, text = time.monotonic() + timeout, b""
    while (left := end - time.monotonic()) > 0 and select.select([pipe], [], [], left)[0]:
        part = os.read(pipe, 1 << 16)
        text += part
        if not part:
            break
    else:
        part = b"more"
    os.close(pipe)
    return [json.loads(line) for line in text.splitlines() if line.endswith(b"}")], not part


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports one module from another source than its file's."""

    def __init__(self, mutant: Mutant):
        self.name = "lowdim_jax." + mutant.module.replace("/", ".")
        self.path, self.source = ROOT / mutant.path, mutant.source()

    def find_spec(self, fullname, path=None, target=None):
        """The module it replaces, and no other."""
        if fullname == self.name:
            return importlib.util.spec_from_file_location(fullname, self.path, loader=self)
        return None

    def create_module(self, spec):
        """As usual."""
        return None

    def exec_module(self, module):
        """Run the other source."""
        exec(compile(self.source, str(self.path), "exec"), module.__dict__)


def run_checks(names: Sequence[str], say: Say, *, trace: bool = False) -> None:
    """Run checks in float64 with one seed until one does not hold; say how each ended, and its seconds.

    With `trace`, run all of them, and say which functions of the library they ran.
    """
    import jax

    from theory_checks.runner import run_check
    from theory_checks.selection import select
    from theory_checks.setting import Setting

    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_num_cpu_devices", 2)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    setting = Setting(seeds=1)
    for name in names:
        (check,) = select([name])
        seen: set[tuple[str, str]] = set()
        begin = time.process_time()
        if trace:
            sys.settrace(_recorder(seen))
        result = run_check(check, setting)
        sys.settrace(None)
        seconds = round(time.process_time() - begin, 1)
        held = result.outcome in ("pass", "not-applicable")
        line = {"check": name, "held": held, "seconds": seconds, "detail": result.detail[:80]}
        say(line | {"ran": sorted(seen)} if trace else line)
        if not held and not trace:
            return


def _recorder(seen: set[tuple[str, str]]) -> Callable:
    """A trace function that remembers the module and name of every function of the library called."""
    below = str(ROOT / "lowdim_jax") + os.sep

    def record(frame, *_):
        if frame.f_code.co_filename.startswith(below):
            module = Path(frame.f_code.co_filename[len(below) :]).with_suffix("").as_posix()
            seen.add((module, frame.f_code.co_qualname.partition(".<locals>")[0]))

    return record


def run_tests(files: Sequence[str], say: Say) -> None:
    """Run test files until a test fails; say whether they passed."""
    import pytest

    plain = ["-x", "-q", "-p", "no:cacheprovider", "--assert=plain", "--rootdir", str(ROOT)]
    say({"held": int(pytest.main([*plain, *files])) == 0})
