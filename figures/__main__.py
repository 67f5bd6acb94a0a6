"""`python -m figures`, or `lowdim-figures`: list the figures, or make them."""

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from figures import registry
from lowdim_jax._command import OK, Parser, new_parser, require_writable, run

OUT = Path("figures", "out")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0, or 2 for bad input."""
    return run(_parser(), argv)


def _parser() -> Parser:
    parser = new_parser("figures", "Make the figures of the paper.")
    parser.set_defaults(command=_list)
    commands = parser.add_subparsers(metavar="COMMAND")

    show = commands.add_parser("list", help="list the figures (also without a command)")
    show.set_defaults(command=_list)

    make = commands.add_parser("make", help="compute, save and draw figures")
    make.add_argument("names", nargs="*", metavar="NAME", help="figures to make")
    make.add_argument("--all", action="store_true", help="make all of them")
    make.add_argument("--size", choices=registry.SIZES, default="small", help=registry.SIZES_MEAN)
    make.add_argument("--out", type=Path, default=OUT, metavar="DIR", help="default: figures/out")
    make.add_argument(
        "--redraw", action="store_true", help="draw again from saved arrays, without computing"
    )
    make.add_argument(
        "--data", type=Path, metavar="DIR", help="your own data, for the figures that read images or ratings"
    )
    make.set_defaults(command=_make)
    return parser


def _list(arguments: argparse.Namespace) -> int:
    lines = [f"sizes: {registry.SIZES_MEAN}", ""]
    for name in registry.names():
        figure = registry.describe(name)
        lines += [name, f"    {figure.summary}"]
        for size, settings in figure.settings.items():
            shown = ", ".join(f"{key} {_short(value)}" for key, value in settings.items() if value != "")
            lines.append(f"    {size}: {shown}")
    print("\n".join(lines))
    return OK


def _short(value: object) -> str:
    if isinstance(value, dict):
        return " / ".join(f"{key}: {_short(item)}" for key, item in value.items())
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _make(arguments: argparse.Namespace) -> int:
    size, out, redraw = arguments.size, arguments.out, arguments.redraw
    names = registry.select(arguments.names, everything=arguments.all)
    registry.check_data(names, arguments.data, redraw=redraw)
    saved = {name: registry.read(name, size=size, out=out) for name in names if redraw}
    require_writable(out)
    if not redraw:
        from lowdim_jax._cache import cache_programs  # here, because it imports JAX

        cache_programs()
    doing = "drawing" if redraw else "computing"
    for name in _announced(names, doing, estimates={} if redraw else _estimates(names, size)):
        start = time.perf_counter()
        if redraw:
            paths = registry.draw(name, saved[name], size=size, out=out)
        else:
            paths = registry.make(name, size=size, out=out, data=arguments.data)
        seconds = time.perf_counter() - start
        print(f"{name} ({size}, {seconds:.1f} s): {', '.join(map(str, paths))}", flush=True)
    return OK


def _estimates(names: Sequence[str], size: str) -> dict[str, float]:
    """What each figure takes on two cores; none where one is not known."""
    known = {name: registry.describe(name).seconds.get(size, 0.0) for name in names}
    return known if all(known.values()) else {}


def _announced(
    names: Sequence[str],
    doing: str,
    *,
    estimates: Mapping[str, float],
    clock: Callable[[], float] = time.perf_counter,
) -> Iterator[str]:
    """The names, each once the one before is done; says on stderr what is made and how long the rest takes.

    What is left is the sum of `estimates`, times what the figures so far took beside theirs.
    """
    from rich.console import Console

    console, start, done = Console(stderr=True), clock(), 0.0
    for number, name in enumerate(names, 1):
        what = f"figure {number} of {len(names)}: {doing} {name}"
        if estimates:
            slower = (clock() - start) / done if done else 1.0
            left = slower * sum(estimates[later] for later in names[number - 1 :])
            what += f", {_about(left)} left"
            done += estimates[name]
        if console.is_terminal:
            with console.status(what):
                yield name
        else:
            print(what, file=sys.stderr, flush=True)
            yield name


def _about(seconds: float) -> str:
    """A duration to plan with: `about 20 s`, `about 3 min`."""
    return f"about {seconds:.0f} s" if seconds < 90 else f"about {seconds / 60:.0f} min"


if __name__ == "__main__":
    sys.exit(main())
