"""`python -m figures`: list the figures, or make them."""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from figures import registry

BAD_INPUT, INTERRUPTED = 2, 130
OUT = Path(__file__).parent / "out"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0, or 2 for bad input."""
    try:
        arguments = _parser().parse_args(argv)
        return arguments.command(arguments)
    except ValueError as error:
        print(f"figures: error: {error}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print("figures: interrupted", file=sys.stderr)
        return INTERRUPTED


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one sentence."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="figures", description="Make the figures of the paper.")
    parser.set_defaults(command=_list)
    commands = parser.add_subparsers(metavar="COMMAND")

    show = commands.add_parser("list", help="list the figures (also without a command)")
    show.set_defaults(command=_list)

    make = commands.add_parser("make", help="compute, save and draw figures")
    make.add_argument("names", nargs="*", metavar="NAME", help="figures to make")
    make.add_argument("--all", action="store_true", help="make all of them")
    make.add_argument("--size", choices=registry.SIZES, default="small", help="default: small")
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
    lines = []
    for name in registry.NAMES:
        figure = registry.describe(name)
        lines += [name, f"    {figure.summary}"]
        for size, settings in figure.settings.items():
            shown = ", ".join(f"{key} {_short(value)}" for key, value in settings.items())
            lines.append(f"    {size}: {shown}")
    print("\n".join(lines))
    return 0


def _short(value: object) -> str:
    if isinstance(value, dict):
        return " / ".join(f"{key}: {_short(item)}" for key, item in value.items())
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _make(arguments: argparse.Namespace) -> int:
    size, out = arguments.size, arguments.out
    names = registry.select(arguments.names, everything=arguments.all)
    registry.check_data(names, arguments.data, redraw=arguments.redraw)
    if arguments.redraw:
        saved = {name: registry.read(name, size=size, out=out) for name in names}
    registry.require_writable(out)
    if not arguments.redraw:
        from lowdim_jax._cache import cache_programs  # here, because it imports JAX

        cache_programs()
    for name in names:
        start = time.perf_counter()
        if arguments.redraw:
            paths = registry.draw(name, saved[name], size=size, out=out)
        else:
            paths = registry.make(name, size=size, out=out, data=arguments.data)
        seconds = time.perf_counter() - start
        print(f"{name} ({size}, {seconds:.1f} s): {', '.join(map(str, paths))}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())


def test_compiled_programs_are_kept_in_the_cache_directory(tmp_path):
    command = [sys.executable, "-m", "theory_checks", "run", "--only", "mode-trajectories", "--seeds", "1"]
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    subprocess.run([*command, "--out", str(tmp_path)], env=environment, check=True, capture_output=True)
    # Programs of a gradient flow are among them: without host callbacks, JAX can keep those, too.
    assert list((tmp_path / "lowdim_jax").glob("*modes_under_flow*"))


def test_a_cache_directory_that_cannot_be_made_does_no_harm(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert main(["run", "--only", "parameter-count", "--seeds", "1", "--out", str(tmp_path)]) == 0
