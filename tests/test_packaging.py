"""What people who install the project find: statements, versions, a citation."""

import re
import tomllib
from pathlib import Path

import pytest

import lowdim_jax
from theory_checks.cli import main
from theory_checks.coverage import STATEMENTS
from theory_checks.selection import all_checks
from theory_checks.statements import statement

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


def test_every_statement_that_a_check_cites_can_be_printed(capsys):
    cited = {number for check in all_checks() for number in re.split(r", *", check.source)}
    assert cited
    assert main(["statement", *sorted(cited)]) == 0
    printed = capsys.readouterr().out
    for number in cited:
        assert re.search(rf"^{re.escape(number)} \w", printed, re.MULTILINE)


def test_statements_are_those_of_the_document():
    text = (ROOT / "docs" / "theory.md").read_text("utf-8")
    for number, about in STATEMENTS.items():
        heading, _, body = statement(number).partition("\n\n")
        assert heading == f"{number} {about.title}"
        assert body
        assert body in text


def test_a_statement_that_does_not_exist_is_refused_in_a_sentence(capsys):
    assert main(["statement", "9.9"]) == 2
    message = capsys.readouterr().err
    assert "there is no statement '9.9'; there are 1.1, 1.2" in message
    assert message.count("\n") == 1


def test_the_version_is_the_projects():
    assert lowdim_jax.__version__ == PROJECT["version"]
    citation = (ROOT / "CITATION.cff").read_text("utf-8")
    assert f"\nversion: {PROJECT['version']}\n" in citation


@pytest.mark.parametrize("command", PROJECT["scripts"])
def test_every_command_tells_its_version(command, capsys):
    module, _, function = PROJECT["scripts"][command].partition(":")
    run = getattr(__import__(module, fromlist=[function]), function)
    with pytest.raises(SystemExit, match="0"):
        run(["--version"])
    assert PROJECT["version"] in capsys.readouterr().out
