"""What the project's command lines share: a parser, exit codes, one-line errors, and safe writing."""

import argparse
import errno
import glob
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import lowdim_jax

OK, FAILED, BAD_INPUT, INTERRUPTED, BROKEN_PIPE, TERMINATED = 0, 1, 2, 130, 141, 143
"""Exit codes. The last three are those a shell gives to what SIGINT, SIGPIPE or SIGTERM ends."""


LONGEST_ERROR = 600
"""Characters of a message."""


class Terminated(BaseException):
    """SIGTERM has come: what is open is closed, and nothing temporary is left."""


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one sentence, as a `ValueError` for `run`; its subcommands, too."""

    def error(self, message: str) -> NoReturn:
        """Refuse a command line; one without its command, with those there are."""
        if message.endswith("required: COMMAND"):
            commands = [name for action in self._actions for name in action.choices or ()]
            message = f"a command is missing: {', '.join(commands)}; --help says what they do"
        raise ValueError(message)


class _Version(argparse.Action):
    """Looks the version up only when asked for it."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        print(f"{parser.prog} of lowdim-jax {lowdim_jax.__version__}")
        parser.exit()


def new_parser(prog: str, description: str) -> Parser:
    """A parser with `--version`."""
    parser = Parser(prog=prog, description=description)
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    return parser


def run(parser: Parser, argv: Sequence[str] | None = None) -> int:
    """Run `arguments.command(arguments)`, as the parser's defaults name it; returns its exit code.

    Bad input, which is a `ValueError`, and what the system refuses, an `OSError`, become one sentence on
    stderr and exit code 2. A reader that leaves early (`… | head`) is no error to speak of.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # consoles without Greek get question marks
            stream.reconfigure(errors="replace")  # pyright: ignore[reportAttributeAccessIssue]
    try:
        with _ended_in_order():
            arguments = parser.parse_args(argv)
            code = arguments.command(arguments)
            sys.stdout.flush()
            return code
    except BrokenPipeError:
        # What is still buffered goes nowhere, or Python would complain at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except (ValueError, OSError) as error:
        print(f"{parser.prog}: error: {_one_line(_said(error))}", file=sys.stderr)
        return BAD_INPUT
    except MemoryError as error:
        print(f"{parser.prog}: error: out of memory: {_one_line(str(error))}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print(f"{parser.prog}: interrupted", file=sys.stderr)
        return INTERRUPTED
    except Terminated:
        return TERMINATED


@contextmanager
def _ended_in_order() -> Iterator[None]:
    """SIGTERM as an exception, in the main thread: Python would end without tidying up."""

    def came(*_: object) -> NoReturn:
        raise Terminated

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, came)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _said(error: Exception) -> str:
    """A message; that of the system without its number."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename!r}: {error.strerror}" if error.filename else error.strerror
    return str(error)


def _one_line(text: str) -> str:
    """A message in one line, without the middle of what somebody gave an option in a million characters."""
    text = " ".join(text.split())
    half = LONGEST_ERROR // 2
    return text if len(text) <= LONGEST_ERROR else f"{text[:half]} … {text[-half:]}"


def whole_number(least: int) -> Callable[[str], int]:
    """The type of an option that takes a whole number from `least` on."""

    def parse(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = least - 1
        if number < least:
            wanted = "a positive integer" if least == 1 else f"an integer of {least} or more"
            raise argparse.ArgumentTypeError(f"{text!r} is not {wanted}")
        return number

    return parse


def require_writable(folder: Path, option: str = "--out") -> None:
    """Find out before a long run, not after it, that its results cannot be written.

    Raises
    ------
    ValueError
        If the folder cannot be made, or no file in it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = "it is a file, not a folder" if folder.is_file() else error.strerror
        raise ValueError(f"{option} {str(folder)!r} cannot be written to: {reason}") from error


@contextmanager
def replace_files(*paths: Path) -> Iterator[tuple[Path, ...]]:
    """Temporary names to write to, which take the place of `paths` once all are written.

    No reader ever sees half a file, nor does the disk keep one through a power cut. If anything fails, the
    files that were there stay, and nothing temporary is left. Suffixes are kept, as some writers add one that
    is missing.

    >>> from pathlib import Path; from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     with replace_files(Path(folder, "a.txt")) as (temporary,):
    ...         _ = temporary.write_text("whole")
    ...     [path.name for path in Path(folder).iterdir()]
    ['a.txt']
    """
    temporary = tuple(path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}") for path in paths)
    for path in paths:
        if path.is_dir():  # before one of several has taken its place
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        _sweep(path)
    try:
        yield temporary
        for new in temporary:
            with new.open("rb") as file:
                os.fsync(file.fileno())
        for new, path in zip(temporary, paths, strict=True):
            new.replace(path)
    finally:
        for new in temporary:
            new.unlink(missing_ok=True)


def _sweep(path: Path) -> None:
    """Remove what a process that was killed while it wrote a file has left."""
    for left in path.parent.glob(f".{glob.escape(path.stem)}.*{glob.escape(path.suffix)}"):
        writer = left.name[len(path.stem) + 2 : len(left.name) - len(path.suffix)]
        if writer.isascii() and writer.isdigit() and not _runs(int(writer)):
            left.unlink(missing_ok=True)


def _runs(process: int) -> bool:
    """Whether there is a process of this number."""
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True
