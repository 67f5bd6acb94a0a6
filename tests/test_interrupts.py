"""Ctrl-C at any moment of a run: what has finished is written, and no report is replaced by a poorer one."""

import json
import os
import signal
import subprocess
import sys

import pytest

from theory_checks import page, report, selection
from theory_checks.cli import main
from theory_checks.interrupts import Interrupts
from theory_checks.registry import Check, Evidence


def press():
    signal.raise_signal(signal.SIGINT)


def a_check(name, action=lambda: None):
    def compare(setting, *, error=0.5):
        if error == 0.5:
            action()
        return Evidence([error], 1.0, "by definition", "error", 0, 0)

    return Check(name, "claim", "1.1", compare, {"broken": {"error": 2.0}})


def swallowed():
    try:
        press()
    except KeyboardInterrupt as error:
        raise RuntimeError("a callback failed") from error


@pytest.fixture
def run(monkeypatch, tmp_path):
    def run(*checks):
        monkeypatch.setattr(selection, "select", lambda patterns: checks)
        code = main(["run", "--out", str(tmp_path)])
        found = {path.name: path for path in tmp_path.iterdir()}
        reports = {name: json.loads(path.read_text()) for name, path in found.items() if "json" in name}
        assert set(found) == {name.replace("json", end) for name in reports for end in ("json", "html")}
        return code, {
            name: ([entry["name"] for entry in one["checks"]], one["complete"])
            for name, one in reports.items()
        }

    before = signal.getsignal(signal.SIGINT)
    yield run
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("action", [press, swallowed])
def test_in_a_check_it_ends_that_check_and_keeps_those_before(run, capsys, action):
    assert run(a_check("a"), a_check("b", action), a_check("c")) == (130, {"report.json": (["a"], False)})
    assert "interrupted after 1 of 3 checks" in capsys.readouterr().out


def test_while_the_report_is_drawn_it_waits(run, monkeypatch, capfd):
    def drawn(*arguments):
        press()
        press()
        return page.page(*arguments)

    monkeypatch.setattr(report, "page", drawn)
    assert run(a_check("a"), a_check("b")) == (130, {"report.json": (["a", "b"], True)})
    assert "what has finished is being written" in capfd.readouterr().err


def test_between_two_checks_it_ends_the_run(run, monkeypatch):
    shown = report.seconds

    def pressed(number):
        press()
        return shown(number)

    monkeypatch.setattr(report, "seconds", pressed)
    assert run(a_check("a"), a_check("b")) == (130, {"report.json": (["a"], False)})


def test_before_the_first_check_has_finished_nothing_is_written(run, capsys):
    assert run(a_check("a", press), a_check("b")) == (130, {})
    assert "interrupted before the first check" in capsys.readouterr().err


def test_a_complete_report_stays_beside_an_incomplete_one(run):
    both = {"report.json": (["a", "b"], True)}
    assert run(a_check("a"), a_check("b")) == (0, both)
    incomplete = {"report.incomplete.json": (["a"], False)}
    assert run(a_check("a"), a_check("b", press)) == (130, both | incomplete)
    assert run(a_check("a"), a_check("b", press), a_check("c")) == (130, both | incomplete)
    assert run(a_check("c")) == (0, {"report.json": (["c"], True)} | incomplete)


def test_an_incomplete_report_gives_way_to_one_with_as_much(run):
    assert run(a_check("a"), a_check("b", press))[1] == {"report.json": (["a"], False)}
    assert run(a_check("c"), a_check("b", press))[1] == {"report.json": (["c"], False)}
    assert run(a_check("a"), a_check("c"), a_check("b", press))[1] == {"report.json": (["a", "c"], False)}
    assert run(a_check("a"), a_check("b", press))[1]["report.json"] == (["a", "c"], False)


def test_outside_of_checks_it_is_only_noted(capfd):
    with Interrupts() as interrupts:
        press()
        assert interrupts.asked
        interrupts.allowed = True
        with pytest.raises(KeyboardInterrupt):
            press()
        press()  # a second one does not end what follows


def test_the_report_does_not_land_in_the_current_folder(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(selection, "select", lambda patterns: (a_check("a"),))
    assert main(["run"]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["theory-checks-report"]


@pytest.mark.parametrize("command", [["theory_checks", "list"], ["figures", "list"]])
def test_a_closed_pipe_and_a_console_without_greek_are_no_trouble(command):
    env = {**os.environ, "PYTHONIOENCODING": "ascii", "LC_ALL": "C", "PYTHONUTF8": "0"}
    listed = subprocess.run([sys.executable, "-m", *command], env=env, capture_output=True, check=False)
    assert (listed.returncode, listed.stderr) == (0, b"")
    assert b"?" in listed.stdout
    read, write = os.pipe()
    os.close(read)
    closed = subprocess.run(
        [sys.executable, "-m", *command], stdout=write, stderr=subprocess.PIPE, check=False
    )
    os.close(write)
    assert (closed.returncode, closed.stderr) == (141, b"")
