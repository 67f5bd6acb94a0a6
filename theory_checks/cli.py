"""The `theory-checks` command."""

import argparse
import gc
import os
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from fractions import Fraction
from functools import partial
from pathlib import Path

from lowdim_jax._command import (
    FAILED,
    INTERRUPTED,
    OK,
    Parser,
    new_parser,
    require_writable,
    run,
    whole_number,
)

DEVICES = ("cpu", "gpu", "tpu")
DTYPES = ("float64", "float32")
SIZES = ("small", "paper", "large")
MOST_SEEDS = 10_000
OUT = Path("theory-checks-report")
"""Where a report goes, below the current folder, unless it is said."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0 all hold, 1 some fail, 2 bad input."""
    return run(_parser(), argv)


def _parser() -> Parser:
    parser = new_parser(
        "theory-checks", "Train on this machine's device and compare with the theory's predictions."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    only = Parser(add_help=False)
    only.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="GLOB",
        help="only checks whose name matches; may be repeated",
    )

    only.add_argument(
        "--load",
        action="append",
        default=[],
        type=Path,
        metavar="FILE",
        help="a Python file that registers checks of your own; may be repeated",
    )

    show = commands.add_parser("list", parents=[only], help="list the checks and their claims")
    show.set_defaults(command=_list)

    run = commands.add_parser(
        "run", parents=[only], help="run the checks; writes report.html and report.json"
    )
    run.add_argument("--device", choices=DEVICES, help="default: JAX's choice")
    run.add_argument("--dtype", choices=DTYPES, default="float64")
    run.add_argument(
        "--size",
        choices=SIZES,
        default="small",
        help="of synthetic targets: 'small' (default) is 40×40 of rank 4, 'paper' 100×100 of rank 10 as "
        "there, 'large' 512×512 of rank 10, for a GPU; of --target: 'small' takes its leading 256×256 block",
    )
    run.add_argument("--seeds", type=whole_number(1), default=3, metavar="N", help="default: 3")
    run.add_argument(
        "--target",
        metavar="FILE",
        help="your own matrix (.npy, .npz, .csv, .mtx), or 'digits' for scikit-learn's digits",
    )
    run.add_argument(
        "--rank", type=whole_number(1), metavar="R", help="components of the target to keep"
    )
    run.add_argument(
        "--processes",
        type=whole_number(1),
        metavar="N",
        help="processes that share the checks; default: one a core, or for every two beside a GPU, up to 6",
    )
    run.add_argument("--fail-fast", action="store_true", help="stop at the first check that does not hold")
    run.add_argument("--out", type=Path, default=OUT, metavar="DIR", help=f"default: {OUT}")
    run.set_defaults(command=_run)

    dry = commands.add_parser(
        "lower", parents=[only], help="lower every program of the checks for devices that are not here"
    )
    dry.add_argument("--device", choices=("cuda", "rocm", "tpu"), nargs="+", required=True)
    dry.add_argument("--dtype", choices=DTYPES, default="float32")
    dry.set_defaults(command=_lower)

    compare = commands.add_parser("compare", help="what changed between two runs; exit code 1 if worse")
    compare.add_argument("before", type=Path, metavar="A.json")
    compare.add_argument("after", type=Path, metavar="B.json")
    compare.set_defaults(command=_compare)

    tell = commands.add_parser("statement", help="print a numbered statement of the theory")
    tell.add_argument("numbers", nargs="+", metavar="NUMBER", help="as checks cite them, for example 2.1")
    tell.set_defaults(command=_statement)

    prove = commands.add_parser(
        "certify",
        help="prove dominance at every iteration for rational data, in ball arithmetic (needs python-flint)",
    )
    prove.add_argument("--singular-values", type=_fractions, metavar="A,B,…",
                       help="fractions or decimals; default: R of them, from 20 to 9")
    prove.add_argument("--rank", type=whole_number(1), default=2, metavar="R", help="default: 2")
    prove.add_argument("--width", type=whole_number(1), default=100, metavar="D", help="default: 100")
    prove.add_argument("--depth", type=whole_number(1), default=3, metavar="L", help="default: 3")
    prove.add_argument("--scale", type=_fraction, default="1/10", metavar="ε", help="default: 1/10")
    prove.add_argument("--edge-fraction", type=_fraction, default="1/2", metavar="F",
                       help="learning rate as a fraction of the edge of stability; default: 1/2")
    prove.add_argument("--compressed-rank", type=whole_number(1), metavar="R", help="default: 2r")
    prove.add_argument("--seed", type=int, default=0, help="of the original's start; default: 0")
    prove.add_argument("--max-steps", type=whole_number(1), default=100_000, metavar="N")
    prove.add_argument("--no-control", dest="control", action="store_false",
                       help="do not also refute the control: r̂ = d at d = 4r")
    prove.set_defaults(command=_certify)

    explore = commands.add_parser("explore", help="write and open a page to play with incremental learning")
    explore.add_argument(
        "--out", type=Path, default=Path("explorer.html"), metavar="FILE", help="default: explorer.html"
    )
    explore.add_argument("--no-open", action="store_true", help="write it only")
    explore.set_defaults(command=_explore)
    return parser


def _fraction(text: str) -> Fraction:
    try:
        return Fraction(text.strip())
    except (ValueError, ZeroDivisionError):
        raise argparse.ArgumentTypeError(f"{text!r} is not a fraction or decimal") from None


def _fractions(text: str) -> list[Fraction]:
    return [_fraction(part) for part in text.split(",")]


def _certify(arguments: argparse.Namespace) -> int:
    from theory_checks.certify import PROVED, REFUTED, certify, random_case

    sigma = arguments.singular_values
    rank = arguments.rank if sigma is None else len(sigma)
    settings = {
        "rank": rank, "singular_values": sigma, "depth": arguments.depth, "scale": arguments.scale,
        "edge_fraction": arguments.edge_fraction,
    }
    case = random_case(
        arguments.seed, width=arguments.width, compressed_rank=arguments.compressed_rank, **settings
    )
    certificate = certify(case, max_steps=arguments.max_steps)
    print(certificate.sentence, flush=True)
    proved = certificate.verdict == PROVED
    if not arguments.control:
        return 0 if proved else FAILED
    control = random_case(arguments.seed, width=4 * rank, compressed_rank=4 * rank, **settings)
    refutation = certify(control, max_steps=arguments.max_steps)
    print(f"Control, r̂ > d − r. {refutation.sentence}")
    return 0 if proved and refutation.verdict == REFUTED else FAILED


def _list(arguments: argparse.Namespace) -> int:
    from textwrap import fill

    if arguments.load:
        from theory_checks.selection import load, select

        for path in arguments.load:
            load(path)
        checks = select(arguments.only)
    else:  # without JAX, which takes longer to import than all the rest
        from theory_checks.listing import listed, matching

        checks = matching(listed(), arguments.only)
    for check in checks:
        print(f"{check.name}  (docs/theory.md {check.source})")
        print(fill(check.claim, 96, initial_indent="    ", subsequent_indent="    "))
        print(fill("must fail with: " + "; ".join(check.controls), 96, initial_indent="    ",
                   subsequent_indent="    "))
    return OK


def _run(arguments: argparse.Namespace) -> int:
    start = time.perf_counter()
    require_writable(arguments.out)
    if arguments.seeds > MOST_SEEDS:
        raise ValueError(f"--seeds {arguments.seeds}, expected at most {MOST_SEEDS}")
    if arguments.rank is not None and arguments.target is None:
        raise ValueError("--rank is the rank kept of --target: give both")
    _configure_jax(arguments.device, arguments.dtype)

    from theory_checks.coverage import rows
    from theory_checks.interrupts import Interrupts
    from theory_checks.report import print_table, print_verdict, track, write
    from theory_checks.runner import environment
    from theory_checks.selection import all_checks, load, select
    from theory_checks.setting import Setting
    from theory_checks.target_file import load_matrix, prepare
    from theory_checks.workers import default_processes, run_in_processes

    for path in arguments.load:
        load(path)
    checks = select(arguments.only)
    target, note = None, ""
    if arguments.target is not None:
        matrix = load_matrix(arguments.target)
        target, note = prepare(
            matrix, rank=arguments.rank, dtype=arguments.dtype, size=arguments.size
        )
        own = [check.name for check in checks if not check.any_target]
        checks = tuple(check for check in checks if check.any_target)
        if not checks:
            raise ValueError("none of the checks selected applies to --target")
        print(f"target: {note}", file=sys.stderr)
        if own:
            print(
                f"left out, because they make matrices or data of their own: {', '.join(own)}",
                file=sys.stderr,
            )
    setting = Setting(
        size=arguments.size,
        dtype=arguments.dtype,
        seeds=arguments.seeds,
        target=target,
        target_note=note,
    )
    about = environment(setting)
    processes = arguments.processes or default_processes(about["device"].split(":")[0], checks)
    configure = partial(_configure_process, arguments.device, arguments.dtype, tuple(arguments.load))
    results: list = []
    with Interrupts() as interrupts:
        try:
            done = run_in_processes(
                checks, setting, results, interrupts, processes=processes, configure=configure
            )
            for _ in track(done, checks):
                if interrupts.asked:
                    break
                if arguments.fail_fast and results[-1].outcome not in ("pass", "not-applicable"):
                    break
        except KeyboardInterrupt:
            interrupts.asked = True
        if len(results) < len(checks):
            why = "interrupted" if interrupts.asked else "stopped at a failure"
            about["incomplete"] = f"{why} after {len(results)} of {len(checks)} checks"
        if not results:
            print("theory-checks: interrupted before the first check", file=sys.stderr)
            return INTERRUPTED
        about["seconds"] = round(time.perf_counter() - start, 3)
        results.sort(key=lambda result: [check.name for check in checks].index(result.name))
        paths = write(arguments.out, about, results, rows(all_checks(), results))
        print_table(results)
        print_verdict(about, results, paths)
    if interrupts.asked:
        return INTERRUPTED
    return OK if all(result.outcome in ("pass", "not-applicable") for result in results) else FAILED


def _lower(arguments: argparse.Namespace) -> int:
    from theory_checks.lowering import recording

    failed = 0
    with recording(*arguments.device) as programs:  # before the library's modules are imported
        _configure_jax("cpu", arguments.dtype)

        from theory_checks.runner import run_check
        from theory_checks.selection import load, select
        from theory_checks.setting import Setting

        for path in arguments.load:
            load(path)
        for check in select(arguments.only):
            before = len(programs)
            result = run_check(check, Setting(dtype=arguments.dtype, seeds=1))
            new = programs[before:]
            count = len(new) // len(arguments.device)
            calls = sorted({call for program in new for call in program.calls})
            print(f"{check.name}: {count} programs, custom calls {', '.join(calls) or 'none'}", flush=True)
            bad = {(program.name, program.platform): program.error for program in new if program.error}
            for (name, platform), error in bad.items():
                reason = error.splitlines()[0][:160]
                print(f"    {name} cannot be lowered for {platform}: {reason}", flush=True)
            if result.outcome == "error":
                print(f"    the check itself failed here: {result.detail[:160]}")
            failed += bool(bad) or result.outcome == "error"
    count, devices = len(programs) // len(arguments.device), ", ".join(arguments.device)
    print(f"{count} programs lowered for {devices} in {arguments.dtype}; none has run there")
    return FAILED if failed else OK


def _statement(arguments: argparse.Namespace) -> int:
    from theory_checks.statements import statement

    print("\n\n".join([statement(number) for number in arguments.numbers]))
    return OK


def _explore(arguments: argparse.Namespace) -> int:
    import webbrowser

    from theory_checks.explorer import write

    path = write(arguments.out)
    print(f"wrote {arguments.out}")
    if not arguments.no_open and not webbrowser.open(path.as_uri()):
        print(f"no browser could be started: open {path} in one")
    return OK


def _compare(arguments: argparse.Namespace) -> int:
    from theory_checks.compare import print_comparison, read_report, worse

    before, after = read_report(arguments.before), read_report(arguments.after)
    print_comparison(before, after)
    return FAILED if worse(before, after) else OK


def _configure_process(device: str | None, dtype: str, files: tuple[Path, ...]) -> None:
    """What a process needs before it runs checks: JAX's settings, and the user's own checks."""
    from theory_checks.selection import load

    _configure_jax(device, dtype)
    for path in files:
        load(path)


def _configure_jax(device: str | None, dtype: str) -> None:
    import jax

    from lowdim_jax._cache import cache_programs, compile_quickly

    gc.set_threshold(10_000)  # what JAX traces stays: looking through all of it for cycles took 5 % of a run
    compile_quickly()
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # processes share a GPU's memory
    if device is not None:
        jax.config.update("jax_platforms", {"gpu": "cuda"}.get(device, device))
    with suppress(RuntimeError):  # there is a device already
        jax.config.update("jax_num_cpu_devices", 2)  # so that what is spread over devices is, on a CPU too
    jax.config.update("jax_enable_x64", dtype == "float64")
    cache_programs()
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # AssertionError: no plugin for CUDA at all
        raise ValueError(f"--device {device}: no such device for JAX on this machine") from error
