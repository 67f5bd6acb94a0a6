"""The mutants made by machine: there are enough, each is another program, and the machinery can tell."""

import ast
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("cosmic_ray")

FOLDER = Path(__file__).parent / "mutation"


@pytest.fixture(scope="module")
def tool():
    """`tests/mutation/run.py` as a module."""
    sys.path.insert(0, str(FOLDER))
    try:
        spec = importlib.util.spec_from_file_location("mutation_run", FOLDER / "run.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        yield module
    finally:
        sys.path.remove(str(FOLDER))


@pytest.fixture(scope="module")
def mutants(tool):
    return tool.mutants()


def test_there_are_thousands_of_mutants_and_those_nothing_can_show_are_told_apart(mutants):
    assert len(mutants) > 3000
    assert len({mutant.name for mutant in mutants}) == len(mutants)
    assert {mutant.equivalent.partition(":")[0] for mutant in mutants} == {
        "", "an annotation", "the wording of a message", "no program",
    }  # fmt: skip
    assert sum(bool(mutant.equivalent) for mutant in mutants) < len(mutants) / 10


def test_a_mutant_is_a_program_that_differs_in_one_line(tool, mutants):
    for mutant in [mutant for mutant in mutants if not mutant.equivalent][::300]:
        before = (tool.ROOT / mutant.path).read_text("utf-8").splitlines()
        after = mutant.source().splitlines()
        ast.parse(mutant.source())
        pairs = enumerate(zip(before, after, strict=True), 1)
        assert [number for number, (a, b) in pairs if a != b] == [mutant.line], mutant


def test_every_module_has_checks_and_tests_that_look_at_it_first(tool, mutants):
    from theory_checks.selection import all_checks

    names = {check.name for check in all_checks()}
    for module in {mutant.module for mutant in mutants}:
        key = module.partition("/")[0]
        assert set(tool.SETTINGS["first"][key]) <= names, module
        assert all((FOLDER.parent / name).exists() for name in tool.SETTINGS["tests"][key]), module


def test_the_draw_is_the_same_every_time(tool, capsys):
    for _ in range(2):
        assert tool.main(["--sample", "3", "--list"]) == 0
    first, second = capsys.readouterr().out.splitlines()[:3], capsys.readouterr().out
    assert len(first) == 3
    assert second == ""


def test_a_mutant_is_shown_the_checks_that_run_its_function_those_of_its_module_first(tool, mutants):
    seen = json.loads((FOLDER / "seen.json").read_text("utf-8"))
    measured = {part.partition("/")[0] for part in seen["seconds"]}
    assert measured >= {name for names in tool.SETTINGS["first"].values() for name in names}
    mutant = next(m for m in mutants if m.module == "sweeps" and m.function == "sweep" and not m.equivalent)
    assert tool.parts_for(mutant, float("inf")) == (["domains/_solvers", "library-descent/_sweeps"], True)
    mutant = next(m for m in mutants if m.module == "flow" and m.function == "gradient_flow")
    few, most = tool.parts_for(mutant, 0.0), tool.parts_for(mutant, 20.0)
    assert few[0][0] == "domains/_solvers"
    assert {part.partition("/")[0] for part in few[0]} == {"domains", "flow-solvers"}
    assert not few[1]
    assert len(few[0]) < len(most[0]) < len(tool.parts_for(mutant, float("inf"))[0])


def test_pieces_of_checks_are_functions_beside_them_or_values_of_their_arguments(tool):
    from theory_checks.selection import select

    for name, pieces in tool.SETTINGS["pieces"].items():
        (check,) = select([name])
        for piece in pieces:
            argument, is_argument, _ = piece.partition("=")
            module = vars(sys.modules[check.compare.__module__])
            known = check.compare.__kwdefaults__ if is_argument else module
            assert piece == "rest" or argument in known, f"{name}/{piece}"


def test_a_survivor_goes_on_where_there_is_more_to_show_it(tool, mutants):
    mutant = next(m for m in mutants if m.module == "sweeps" and m.function == "sweep" and not m.equivalent)
    survived = {"killed_by": "", "shown": ["domains/_solvers"], "with_tests": False}

    def goes_on(result, *options):
        return tool._goes_on(result, mutant, tool._parser().parse_args(options))

    assert goes_on(survived)
    survived["shown"].append("library-descent/_sweeps")
    assert not goes_on(survived)
    assert goes_on(survived, "--with-tests")
    assert not goes_on(survived | {"killed_by": "a check"}, "--with-tests")


FORKS = """
import time
from functools import partial
from forks import in_a_fork

def stage(say, code):
    say({"held": True})
    if code == "raise":
        raise RuntimeError
    if code == "spin":
        while True:
            pass

print([in_a_fork(None, partial(stage, code=code), 1) for code in ("", "raise", "spin")])
"""


def test_a_fork_says_what_it_found_and_how_it_ended():
    """In a process of its own: one that has a device must not fork."""
    command = [sys.executable, "-c", FORKS]
    done = subprocess.run(command, cwd=FOLDER, capture_output=True, text=True, check=True)
    said = [{"held": True}]
    assert done.stdout == f"{[(said, ''), (said, 'an error'), (said, 'no end')]}\n"


def test_results_are_read_back_and_scored(tool, tmp_path, capsys):
    results = [{"name": str(k), "killed_by": by, "line": 1, "code": "x = 1"} for k, by in
               enumerate(["a check", "an error", "no end", "a test", ""])]  # fmt: skip
    tool._print_score(results)
    told = capsys.readouterr().out
    assert "5 mutants: 3 killed by checks (60%), 1 more by tests (80% together), 1 survived" in told
    assert "4, line 1: x = 1" in told
