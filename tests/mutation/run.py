"""Break the library in one place after another, and count what notices. See docs/mutation.md.

Each mutant is a fork of one process that has JAX and its like imported, but neither the library nor a
device: the child imports the library with one module's source replaced. Results are appended to a file, one
line a mutant, so that a run goes on where the last one ended.
"""

import argparse
import importlib.abc
import importlib.util
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

from enumeration import SETTINGS, Mutant, mutants  # noqa: E402  (its folder is on the path only now)

HEAVY = ("jax", "optax", "diffrax", "flax.nnx", "scipy.optimize", "scipy.integrate", "scipy.sparse.linalg",
         "mpmath", "rich.table", "jinja2", "pytest", "sklearn.datasets")  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Run the mutants asked for that the results do not have yet, and print the score of all results."""
    arguments = _parser().parse_args(argv)
    known = _read(arguments.results)
    chosen = [mutant for mutant in mutants() if not mutant.equivalent]
    if arguments.sample:
        chosen = random.Random(arguments.seed).sample(chosen, arguments.sample)
    if arguments.list:
        print(*(f"{mutant.name}  line {mutant.line}: {mutant.code}" for mutant in chosen), sep="\n")
        return 0
    for module in HEAVY:
        importlib.import_module(module)
    if not known and not _passes_unbroken(chosen, arguments.with_tests):
        return 1
    begin = time.monotonic()
    for mutant in chosen:
        if mutant.name in known:
            continue
        if arguments.minutes and time.monotonic() - begin > 60 * arguments.minutes:
            print(f"stopped after {arguments.minutes:g} minutes: run again to go on")
            break
        result = _judge(mutant, arguments)
        known[mutant.name] = result
        with arguments.results.open("a", encoding="utf-8") as file:
            file.write(json.dumps(result, ensure_ascii=False) + "\n")
        verdict = result["killed_by"] or "SURVIVED"
        print(f"{verdict:9} {result['seconds']:5.0f} s  {mutant.name}  {mutant.code}", flush=True)
    _print_score([known[mutant.name] for mutant in chosen if mutant.name in known])
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="run.py", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--sample", type=int, metavar="N", help="N mutants drawn at random, not all")
    parser.add_argument("--seed", type=int, default=0, help="of the draw; default: 0")
    parser.add_argument("--first-only", action="store_true",
                        help="only the checks, and test files, that look at the module most directly")
    parser.add_argument("--with-tests", action="store_true", help="let the tests try what the checks miss")
    parser.add_argument("--minutes", type=float, metavar="M", help="start no mutant after M minutes")
    parser.add_argument("--timeout", type=float, default=900, help="seconds after which one has no end")
    parser.add_argument("--results", type=Path, default=ROOT / "mutation.jsonl", metavar="FILE")
    parser.add_argument("--list", action="store_true", help="print the mutants, run nothing")
    return parser


def _judge(mutant: Mutant, arguments: argparse.Namespace) -> dict:
    """Run checks, and then tests, on a mutant until something notices."""
    begin, killed_by = time.monotonic(), ""
    first = _of(mutant, SETTINGS["first"])
    stages = [("a check", lambda: _run_checks(first))]
    if not arguments.first_only:
        stages.append(("a check", lambda: _run_checks(())))
    if arguments.with_tests:
        files = [str(ROOT / "tests" / name) for name in _of(mutant, SETTINGS["tests"])]
        there = [name for name in files if Path(name).exists()]
        stages.append(("a test", lambda: _run_tests(there)))
        if not arguments.first_only:
            stages.append(("a test", lambda: _run_tests([str(ROOT / "tests")])))
    for name, stage in stages:
        code = _in_a_fork(mutant, stage, arguments.timeout)
        killed_by = {0: "", 1: name, None: "no end"}.get(code, "an error")
        if killed_by:
            break
    seconds = round(time.monotonic() - begin, 1)
    return {
        "name": mutant.name, "line": mutant.line, "code": mutant.code, "killed_by": killed_by,
        "seconds": seconds, "first_only": arguments.first_only, "with_tests": arguments.with_tests,
    }  # fmt: skip


def _passes_unbroken(chosen: Sequence[Mutant], with_tests: bool) -> bool:
    """Whether the first checks, and test files, pass where nothing is broken: else a kill shows nothing."""
    stages = {"checks": lambda: _run_checks(_first_of(chosen))}
    if with_tests:
        files = {name for mutant in chosen for name in _of(mutant, SETTINGS["tests"])}
        stages["tests"] = lambda: _run_tests([str(ROOT / "tests" / name) for name in sorted(files)])
    for name, stage in stages.items():
        if (code := _in_a_fork(None, stage, 3600)) != 0:
            print(f"the {name} do not pass where nothing is broken: exit code {code}", file=sys.stderr)
            return False
    return True


def _first_of(chosen: Iterable[Mutant]) -> list[str]:
    """Every check that is the first for one of the mutants."""
    return sorted({name for mutant in chosen for name in _of(mutant, SETTINGS["first"])})


def _of(mutant: Mutant, table: dict[str, list[str]]) -> list[str]:
    return table[mutant.module.partition("/")[0]]


def _run_checks(names: Iterable[str]) -> int:
    from theory_checks.cli import main

    only = [part for name in names for part in ("--only", name)]
    with tempfile.TemporaryDirectory() as folder:
        return main(["run", "--seeds", "1", "--fail-fast", "--out", folder, *only])


def _run_tests(files: Sequence[str]) -> int:
    import pytest

    plain = ["-x", "-q", "-p", "no:cacheprovider", "--assert=plain", "--rootdir", str(ROOT)]
    return int(pytest.main([*plain, *files]))


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


def _in_a_fork(mutant: Mutant | None, stage, timeout: float) -> int | None:
    """Exit code of a stage in a child with the mutant, or with nothing broken; None where it had no end."""
    child = os.fork()
    if child == 0:
        code = 3
        try:
            os.setsid()
            sink = os.open(os.devnull, os.O_WRONLY)
            os.dup2(sink, 1)
            os.dup2(sink, 2)
            sys.dont_write_bytecode = True
            if mutant is not None:
                sys.meta_path.insert(0, _Finder(mutant))
            code = stage()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 3
        except BaseException:
            code = 3
        finally:
            os._exit(code)
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.1)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def _read(path: Path) -> dict[str, dict]:
    if not path.exists():
        return {}
    lines = (json.loads(line) for line in path.read_text("utf-8").splitlines())
    return {result["name"]: result for result in lines}


def _print_score(results: Sequence[dict]) -> None:
    by = Counter(result["killed_by"] for result in results)
    checks = by["a check"] + by["an error"] + by["no end"]
    total = max(len(results), 1)
    together = checks + by["a test"]
    print(f"{len(results)} mutants: {checks} killed by checks ({checks / total:.0%}), {by['a test']} more by "
          f"tests ({together / total:.0%} together), {by['']} survived")
    for result in results:
        if not result["killed_by"]:
            print(f"  {result['name']}, line {result['line']}: {result['code']}")


if __name__ == "__main__":
    sys.exit(main())
