"""Forks of one process that judge a broken library: JAX is imported before, library and device after."""

import ast
import copyreg
import importlib.abc
import importlib.util
import inspect
import json
import math
import os
import pickle
import resource
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial, wraps
from pathlib import Path
from types import ModuleType
from typing import Any

from enumeration import ROOT, SETTINGS, Mutant

HEAVY = ("jax", "optax", "diffrax", "flax.nnx", "scipy.optimize", "scipy.integrate", "scipy.sparse.linalg",
         "scipy.stats", "mpmath", "rich.table", "jinja2", "pytest", "sklearn.datasets")  # fmt: skip
Say = Callable[[Any], object]


def preload() -> None:
    """Import what every fork needs. No device is made: a process that has one must not fork."""
    flags = "--xla_cpu_use_fusion_emitters=false --xla_cpu_multi_thread_eigen=false"
    os.environ.setdefault("XLA_FLAGS", flags)
    for module in HEAVY:
        importlib.import_module(module)
    for module in ("modes", "originals"):
        _remember(importlib.import_module(f"theory_checks.reference.{module}"))


_VALUES: dict[tuple, Any] = {}
"""What functions of the reference at 30 digits have returned, for arguments that can be a key.

The reference is not broken: what a child without a mutant has computed holds for all.
"""


_LEARNING: list[bool] = []
"""Not empty in the child that learns."""


def _remember(module: ModuleType) -> None:
    """Have the functions of a module return what they returned before."""
    for name, function in vars(module).items():
        if inspect.isfunction(function) and not name.startswith("_") and name != "precisely":
            setattr(module, name, _remembering(f"{module.__name__}.{name}", function))


def _remembering(name: str, function: Callable) -> Callable:
    @wraps(function)
    def remembering(*arguments, **options):
        key = name, arguments, tuple(sorted(options.items()))
        try:
            known = key in _VALUES
        except TypeError:  # a list is no key
            return function(*arguments, **options)
        if not known:
            value = function(*arguments, **options)
            if _LEARNING:
                _VALUES[key] = value
            return value
        return _VALUES[key]

    return remembering


def _number(sign: int, mantissa: int, exponent: int, bits: int) -> Any:
    """A number of mpmath as it was, whose own pickling rounds to the precision of the moment."""
    from mpmath import libmp, mp

    return mp.make_mpf((sign, libmp.MPZ(mantissa), exponent, bits))


def learn(parts: Sequence[str], path: Path, seconds: float) -> None:
    """Fill the memory of the reference's numbers from a file, or by a child that tests these parts."""

    from mpmath import mpf

    copyreg.pickle(mpf, lambda number: (_number, tuple(map(int, number._mpf_))))

    def stage(say: Say) -> None:
        _LEARNING.append(True)
        run_parts(parts, lambda _: None)
        path.write_bytes(pickle.dumps(_VALUES))

    if not path.exists():
        in_a_fork(None, stage, seconds)
    if path.exists():
        _VALUES.update(pickle.loads(path.read_bytes()))


def in_a_fork(mutant: Mutant | None, stage: Callable[[Say], None], seconds: float) -> tuple[list[Any], str]:
    """What a stage says in a child with the mutant, or with nothing broken; and how the child ended.

    That is `""` where the stage came to its end, else `"an error"`, or `"no end"` after `seconds` of
    processor time, or twenty times as long in all.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _stand_alone(seconds)
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
    said, ended = _listen(reading, 20 * seconds)
    if not ended:
        os.killpg(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    endless = not ended or code in (-signal.SIGXCPU, -signal.SIGKILL)
    return said, "no end" if endless else "an error" if code else ""


def _stand_alone(seconds: float) -> None:
    """A process group of its own, so that all of it can be ended; no output, and no more than its seconds."""
    os.setsid()
    used = resource.getrusage(resource.RUSAGE_SELF)
    most = math.ceil(used.ru_utime + used.ru_stime + seconds)
    resource.setrlimit(resource.RLIMIT_CPU, (most, most + 1))
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


def run_parts(
    parts: Sequence[str], say: Say, *, usual: Mapping[str, float] | None = None, controls: bool = False,
    trace: bool = False,
) -> None:
    """Test claims in float64 with one seed until one does not hold, and then whether a control still passes.

    A part is a check's name, or `name/piece` with one piece of its comparisons. Where it is known what a part
    takes as a rule, three times as long, and five seconds, are no end. Controls are run if asked for. With
    `trace`, test all parts, and say which functions of the library they ran.
    """
    import jax

    from theory_checks.runner import run_check
    from theory_checks.setting import Setting

    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_num_cpu_devices", 2)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    setting = Setting(seeds=1)
    for part in parts:
        seen: set[tuple[str, str]] = set()
        begin = time.process_time()
        if usual:
            _, most = resource.getrlimit(resource.RLIMIT_CPU)
            soon = math.ceil(begin + 5 + 3 * usual[part])
            resource.setrlimit(resource.RLIMIT_CPU, (soon if most < 0 else min(soon, most), most))
        with _only(part) as check:
            if trace:
                sys.settrace(_recorder(seen))
            result = run_check(check, setting)
            sys.settrace(None)
        held = result.outcome in ("vacuous", "not-applicable")  # no control was run
        line = {"check": part, "held": held, "seconds": round(time.process_time() - begin, 2),
                "detail": result.detail[:80]}  # fmt: skip
        say(line | {"ran": sorted(seen)} if trace else line)
        if not held and not trace:
            return
    if usual:
        _, most = resource.getrlimit(resource.RLIMIT_CPU)
        resource.setrlimit(resource.RLIMIT_CPU, (most, most))
    for name in dict.fromkeys(part.partition("/")[0] for part in parts) if controls else ():
        missed = _passing_controls(name, setting)
        say({"check": name, "held": not missed, "detail": f"still passes with {missed}"[:80]})
        if missed:
            return


@contextmanager
def _only(part: str) -> Iterator[Any]:
    """A check without its controls, and of a piece only: `argument=value`, or one of its functions."""
    from theory_checks.selection import select

    name, _, piece = part.partition("/")
    (check,) = select([name])
    check, pieces = replace(check, controls={}, precise=False), SETTINGS["pieces"].get(name, [])
    module = sys.modules[check.compare.__module__]
    if "=" in piece:
        argument, _, value = piece.partition("=")
        check = replace(check, compare=partial(check.compare, **{argument: ast.literal_eval(value)}))
    others = [other for other in pieces if piece and "=" not in piece and other not in (piece, "rest")]
    kept = {other: getattr(module, other) for other in others}
    try:
        for other in others:
            setattr(module, other, lambda *_: {})
        yield check
    finally:
        for other, function in kept.items():
            setattr(module, other, function)


def _passing_controls(name: str, setting: Any) -> str:
    """What of a check's controls is not refuted."""
    import jax

    from theory_checks.runner import MATMUL_PRECISION, _control_of, _optimizing
    from theory_checks.selection import select

    (check,) = select([name])
    with jax.default_matmul_precision(MATMUL_PRECISION), _optimizing(check):
        for broken, overrides in check.controls.items():
            control = _control_of(check, setting, broken, overrides)
            if control is not None and not control.refuted:
                return broken
    return ""


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
