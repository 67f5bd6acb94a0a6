"""Break the library in one place after another, and count what notices. See docs/mutation.md.

Each mutant is a fork of one process that has JAX and its like imported, but neither the library nor a
device: the child imports the library with one module's source replaced. It runs the checks that run the
function which is broken, the cheapest first, until one fails. Results are appended to a file, one line a
mutant, so that a run goes on where the last one ended.
"""

import argparse
import json
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

from enumeration import SETTINGS, Mutant, mutants  # noqa: E402  (its folder is on the path only now)
from forks import in_a_fork, learn, preload, run_parts, run_tests  # noqa: E402

SEEN = Path(__file__).with_name("seen.json")
"""Seconds that each part of a check takes, and the parts that run each function, from `--measure`."""
PRECISE = ("closed-forms", "stability-formulas", "derivatives")
"""Checks whose reference takes longer than the library: its numbers are computed once for all mutants."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the mutants asked for that the results do not have yet, and print the score of all results."""
    arguments = _parser().parse_args(argv)
    if arguments.cache:
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str(arguments.cache)
    if arguments.measure is not None:
        _prepare(arguments)
        return _measure(arguments.measure)
    known = _read(arguments.results)
    chosen = [mutant for mutant in mutants() if not mutant.equivalent]
    if arguments.sample:
        chosen = random.Random(arguments.seed).sample(chosen, arguments.sample)
    if arguments.list:
        print(*(f"{mutant.name}  line {mutant.line}: {mutant.code}" for mutant in chosen), sep="\n")
        return 0
    _prepare(arguments)
    begin = time.monotonic()
    for number, mutant in enumerate(chosen):
        before = known.get(mutant.name)
        mine = number % arguments.of[1] == arguments.of[0]
        if not mine or (before and not _goes_on(before, mutant, arguments)):
            continue
        if arguments.minutes and time.monotonic() - begin > 60 * arguments.minutes:
            print(f"stopped after {arguments.minutes:g} minutes: run again to go on")
            break
        result = _judge(mutant, arguments, before)
        known[mutant.name] = result
        with arguments.results.open("a", encoding="utf-8") as file:
            file.write(json.dumps(result, ensure_ascii=False) + "\n")
        verdict = result["killed_by"] or "SURVIVED"
        print(f"{verdict:9} {result['seconds']:5.0f} s  {mutant.name}  {result['detail']}", flush=True)
    _print_score([known[mutant.name] for mutant in chosen if mutant.name in known])
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="run.py", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--sample", type=int, metavar="N", help="N mutants drawn at random, not all")
    parser.add_argument("--seed", type=int, default=0, help="of the draw; default: 0")
    parser.add_argument("--most", type=float, default=float("inf"), metavar="S",
                        help="seconds of checks, by what they take unbroken, beyond those that look at its "
                        "module directly; default: all that run it. With more than before survivors go on")
    parser.add_argument("--with-tests", action="store_true", help="let the tests try what the checks miss")
    parser.add_argument("--minutes", type=float, metavar="M", help="start no mutant after M minutes")
    parser.add_argument("--timeout", type=float, default=600, metavar="S",
                        help="processor seconds after which one has no end; default: 600")
    parser.add_argument("--results", type=Path, default=ROOT / "mutation.jsonl", metavar="FILE")
    parser.add_argument("--cache", type=Path, metavar="DIR", help="of compiled programs, between runs")
    parser.add_argument("--of", type=_share, default=(0, 1), metavar="K/N",
                        help="the K-th of every N mutants: for N processes with a results file each")
    parser.add_argument("--measure", nargs="*", metavar="CHECK",
                        help="write anew which check runs which function, and its seconds (some minutes)")
    parser.add_argument("--list", action="store_true", help="print the mutants, run nothing")
    return parser


def _prepare(arguments: argparse.Namespace) -> None:
    """Import what forks need, and compute what they have in common."""
    preload()
    with TemporaryDirectory() as own:
        folder = arguments.cache or Path(own)
        folder.mkdir(parents=True, exist_ok=True)
        learn(PRECISE, folder / "reference.pickle", arguments.timeout)


def _share(text: str) -> tuple[int, int]:
    number, _, count = text.partition("/")
    return int(number) - 1, int(count)


def _goes_on(before: dict[str, Any], mutant: Mutant, arguments: argparse.Namespace) -> bool:
    """Whether a survivor of an earlier run has not been shown all that it would be now."""
    more = set(parts_for(mutant, arguments.most)[0]) - set(before["shown"])
    return not before["killed_by"] and bool(more or arguments.with_tests > before["with_tests"])


def _judge(mutant: Mutant, arguments: argparse.Namespace, before: dict[str, Any] | None) -> dict[str, Any]:
    """Test parts of checks not tested before, and then run tests, on a mutant until something notices."""
    begin = time.monotonic()
    earlier = before["shown"] if before else []
    parts, all_of_them = parts_for(mutant, arguments.most)
    parts = [part for part in parts if part not in earlier]
    usual = json.loads(SEEN.read_text("utf-8"))["seconds"]
    stage = partial(run_parts, parts, usual=usual, controls=all_of_them)
    said, end = in_a_fork(mutant, stage, arguments.timeout)
    failed = next((line for line in said if not line["held"]), None)
    killed_by = "a check" if failed else end
    detail = f"{failed['check']}: {failed['detail']}" if failed else ""
    if not killed_by and arguments.with_tests:
        files = [str(ROOT / "tests" / name) for name in _tests_of(mutant)]
        said, end = in_a_fork(mutant, partial(run_tests, files), arguments.timeout)
        killed_by = "a test" if end or not all(line["held"] for line in said) else ""
    return {
        "name": mutant.name, "line": mutant.line, "code": mutant.code, "killed_by": killed_by,
        "detail": detail, "shown": earlier + parts, "all": all_of_them, "with_tests": arguments.with_tests,
        "seconds": round(time.monotonic() - begin, 1),
    }  # fmt: skip


def parts_for(mutant: Mutant, most: float) -> tuple[list[str], bool]:
    """Parts of checks that run what a mutant breaks, in turn, and whether these are all.

    First those of the checks that look at the module most directly, then of the others the cheapest, up to
    `most` seconds. What is at the level of a module, or runs while it is imported, can reach all of them.
    """
    seen = json.loads(SEEN.read_text("utf-8"))
    function = mutant.function
    running = seen["functions"].get(mutant.module, {}).get(function) or seen["seconds"]
    first = _first(mutant)

    def turn(part: str) -> tuple[bool, float]:
        return part.partition("/")[0] not in first, seen["seconds"][part]

    kept, spent = [], 0.0
    for part in sorted(running, key=turn):
        is_other, seconds = turn(part)
        spent += is_other * seconds
        if kept and spent > most:
            return kept, False
        kept.append(part)
    return kept, True


def _first(mutant: Mutant) -> list[str]:
    table = SETTINGS["first"]
    return table.get(mutant.module) or table[mutant.module.partition("/")[0]]


def _tests_of(mutant: Mutant) -> list[str]:
    table = SETTINGS["tests"]
    names = table.get(mutant.module) or table[mutant.module.partition("/")[0]]
    return [name for name in names if (ROOT / "tests" / name).exists()]


def _measure(patterns: Sequence[str]) -> int:
    """Test every part of the checks named, unbroken, in a fork each, and write which functions it runs."""
    said, _ = in_a_fork(None, partial(_names, patterns), 300)
    names = said[0]["names"] if said else []
    seen = json.loads(SEEN.read_text("utf-8")) if patterns else {"seconds": {}, "functions": {}}
    seconds, functions = seen["seconds"], seen["functions"]
    for part in [part for part in seconds if part.partition("/")[0] in names]:
        del seconds[part]
    for table in functions.values():
        for function, parts in table.items():
            table[function] = [part for part in parts if part.partition("/")[0] not in names]
    for part in [f"{name}/{piece}" if piece else name
                 for name in names for piece in SETTINGS["pieces"].get(name, [""])]:  # fmt: skip
        said, end = in_a_fork(None, partial(run_parts, [part], trace=True), 900)
        if end or not said[0]["held"]:
            print(f"{part} does not hold where nothing is broken: {end or said[0]['detail']}")
            return 1
        seconds[part] = said[0]["seconds"]
        for module, function in said[0]["ran"]:
            functions.setdefault(module, {}).setdefault(function, []).append(part)
    SEEN.write_text(json.dumps(seen, sort_keys=True, ensure_ascii=False) + "\n", "utf-8")
    return 0


def _names(patterns: Sequence[str], say) -> None:
    from theory_checks.selection import select

    say({"names": [check.name for check in select(list(patterns)) if not check.alone]})


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
