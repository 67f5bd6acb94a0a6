"""The four command lines behave alike, and what they write appears whole or not at all."""

import os
import signal
import subprocess
import sys

import pytest

import figures.__main__
import lowdim_jax.distributed.command
import lowdim_jax.ratings.command
import theory_checks.cli
from lowdim_jax import _command

MAINS = {
    "theory-checks": theory_checks.cli.main,
    "figures": figures.__main__.main,
    "lowdim-ratings": lowdim_jax.ratings.command.main,
    "lowdim_jax.distributed": lowdim_jax.distributed.command.main,
}
BAD = {
    "theory-checks": ["run", "--seeds", "0"],
    "figures": ["make", "alignment", "--size", "q"],
    "lowdim-ratings": ["fit", "none", "--seed", "q"],
    "lowdim_jax.distributed": ["train", "data", "run", "--rank", "q"],
}


def refused(capsys, prog, arguments):
    """The command ends with code 2 and one sentence, without usage."""
    assert MAINS[prog](arguments) == 2
    printed, error = capsys.readouterr()
    assert printed == ""
    assert error.startswith(f"{prog}: error: ")
    assert error.count("\n") == 1
    assert "usage" not in error
    return error


@pytest.mark.parametrize("prog", MAINS)
def test_bad_values_and_unknown_commands_and_options_are_refused_in_one_sentence(prog, capsys):
    assert BAD[prog][-1] in refused(capsys, prog, BAD[prog])
    assert "walk" in refused(capsys, prog, ["walk"])
    good = "small" if prog == "figures" else "1"
    assert "--nothing" in refused(capsys, prog, [*BAD[prog][:-1], good, "--nothing"])


@pytest.mark.parametrize("prog", MAINS)
def test_every_command_says_its_version(prog, capsys):
    with pytest.raises(SystemExit) as stop:
        MAINS[prog](["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out.startswith(f"{prog} of lowdim-jax ")


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (ValueError("a\nb"), 2, "prog: error: a b\n"),
        (FileNotFoundError(2, "Not there", "x"), 2, "prog: error: 'x': Not there\n"),
        (OSError(28, "No space left on device"), 2, "prog: error: No space left on device\n"),
        (KeyboardInterrupt(), 130, "prog: interrupted\n"),
    ],
)
def test_what_ends_a_command_is_one_line_and_a_code(error, code, said, capsys):
    def fail(arguments):
        raise error

    parser = _command.new_parser("prog", "")
    parser.set_defaults(command=fail)
    assert _command.run(parser, []) == code
    assert capsys.readouterr().err == said


def test_a_reader_that_leaves_early_ends_the_command_quietly():
    program = (
        "import sys; from lowdim_jax import _command as c; p = c.new_parser('prog', '');"
        "p.set_defaults(command=lambda _: [print('line ' * 100) for _ in range(10000)] and 0);"
        "sys.exit(c.run(p, []))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == _command.BROKEN_PIPE


@pytest.mark.parametrize("written", [1, 2])
def test_files_are_replaced_together_or_not_at_all(tmp_path, written):
    paths = tmp_path / "a.npz", tmp_path / "b.csv"
    for path in paths:
        path.write_text("old")

    def fail():
        with _command.replace_files(*paths) as temporary:
            for path in temporary[:written]:
                path.write_text("new")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a.npz": "old", "b.csv": "old"}
    with _command.replace_files(*paths) as (a, b):
        assert (a.suffix, b.suffix) == (".npz", ".csv")
        a.write_text("new")
        b.write_text("new")
        assert paths[0].read_text() == "old"
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a.npz": "new", "b.csv": "new"}


def test_nothing_is_replaced_by_what_was_not_written(tmp_path):
    path = tmp_path / "a"
    path.write_text("old")
    with pytest.raises(FileNotFoundError), _command.replace_files(path):
        pass
    assert path.read_text() == "old"


def test_what_a_killed_process_left_is_swept_and_what_a_living_one_writes_is_not(tmp_path):
    told = [sys.executable, "-c", "import os; print(os.getpid())"]
    ended = int(subprocess.run(told, capture_output=True, check=True).stdout)
    gone = tmp_path / f".a.{ended}.txt"
    living, other = tmp_path / f".a.{os.getppid()}.txt", tmp_path / ".a.notes.txt"
    for path in (gone, living, other):
        path.write_text("")
    with _command.replace_files(tmp_path / "a.txt") as (temporary,):
        temporary.write_text("whole")
    assert {path.name for path in tmp_path.iterdir()} == {"a.txt", living.name, other.name}


def test_a_folder_in_the_place_of_one_of_two_files_leaves_both_as_they_were(tmp_path):
    (tmp_path / "b.txt").mkdir()
    both = tmp_path / "a.txt", tmp_path / "b.txt"
    with pytest.raises(IsADirectoryError), _command.replace_files(*both):
        raise AssertionError("nothing is to be written")
    assert [path.name for path in tmp_path.iterdir()] == ["b.txt"]


def test_termination_leaves_nothing_temporary(tmp_path):
    def write(arguments):
        with _command.replace_files(tmp_path / "a.txt") as (temporary,):
            temporary.write_text("half")
            signal.raise_signal(signal.SIGTERM)
        return 0

    before = signal.getsignal(signal.SIGTERM)
    parser = _command.new_parser("p", "")
    parser.set_defaults(command=write)
    assert _command.run(parser, []) == 143
    assert list(tmp_path.iterdir()) == []
    assert signal.getsignal(signal.SIGTERM) is before
