"""The suite as a whole: every statement has a check, users add their own, two runs compare."""

import json
import re
from pathlib import Path

import jax
import pytest

from theory_checks import registry
from theory_checks.cli import main
from theory_checks.coverage import NOT_CHECKED, checks_of, statements, table

DOCS = Path(__file__).parents[1] / "docs"
THEORY = (DOCS / "theory.md").read_text("utf-8")


@pytest.fixture(autouse=True)
def _process_settings_restored():
    registry.all_checks()
    before, checks = jax.config.jax_enable_x64, dict(registry._REGISTRY)
    yield
    jax.config.update("jax_enable_x64", before)
    registry._REGISTRY.clear()
    registry._REGISTRY.update(checks)


def test_every_statement_has_a_check_or_a_reason_but_not_both():
    numbers = statements(THEORY)
    assert len(numbers) > 25
    for number in numbers:
        assert bool(checks_of(number, registry.all_checks())) != (number in NOT_CHECKED), number


def test_every_check_cites_statements_that_exist():
    for check in registry.all_checks():
        assert set(check.source.split(", ")) <= statements(THEORY).keys(), check.name


def test_the_coverage_page_is_that_of_the_registered_checks():
    assert (DOCS / "coverage.md").read_text("utf-8").endswith(table(THEORY, registry.all_checks()))


def test_the_example_of_the_documentation_runs_and_its_control_fails(tmp_path, capsys):
    page = (DOCS / "your-own-check.md").read_text("utf-8")
    (tmp_path / "my_checks.py").write_text(re.search(r"```python\n(.*?)```", page, re.DOTALL)[1], "utf-8")
    command = ["run", "--load", str(tmp_path / "my_checks.py"), "--only", "exact-*", "--seeds", "2"]
    assert main([*command, "--out", str(tmp_path)]) == 0
    (entry,) = json.loads((tmp_path / "report.json").read_text())["checks"]
    assert entry["name"] == "exact-rank-suffices"
    assert entry["control"][0]["refuted"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("import no_such_module_here", "ModuleNotFoundError"),
        ("from theory_checks.registry import check\n"
         "check('dominance', claim='', source='', controls={'x': {}})(print)", "registered twice"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_loaded_is_named(text, expected, tmp_path, capsys):
    path = tmp_path / "bad.py"
    path.write_text(text)
    assert main(["list", "--load", str(path)]) == 2
    error = capsys.readouterr().err
    assert expected in error
    assert "bad.py" in error
    assert main(["list", "--load", str(tmp_path / "none.py")]) == 2
    assert "there is no such file" in capsys.readouterr().err


def report(**changes):
    entry = {"name": "a", "outcome": "pass", "passed": True, "errors_by_seed": [1e-3], "error": 1e-3,
             "tolerance": 1e-2}
    return {
        "device": "cpu: cpu", "dtype": "float64", "matmul_precision": "highest", "seeds": [0],
        "versions": {"jax": "0.10"}, "settings": {"size": "small"}, "checks": [entry | changes],
    }


def compare(tmp_path, before, after):
    for name, content in (("a.json", before), ("b.json", after)):
        (tmp_path / name).write_text(json.dumps(content))
    return main(["compare", str(tmp_path / "a.json"), str(tmp_path / "b.json")])


def test_equal_runs_compare_as_equal(tmp_path, capsys):
    assert compare(tmp_path, report(), report()) == 0
    assert "the same errors and outcomes in all 1 checks" in capsys.readouterr().out


def test_a_check_that_no_longer_holds_is_named_and_fails_the_comparison(tmp_path, capsys):
    after = report(outcome="fail", passed=False, error=0.5, errors_by_seed=[0.5]) | {"dtype": "float32"}
    assert compare(tmp_path, report(), after) == 1
    output = capsys.readouterr().out
    assert "dtype: float64 → float32" in output
    assert "pass → fail" in output
    assert "5.0e-01" in output
    assert "no longer hold: a" in output


def test_checks_of_one_run_only_are_shown(tmp_path, capsys):
    assert compare(tmp_path, report(), report(name="b")) == 0
    assert "pass → not run" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["", "[]", '{"checks": []}'])
def test_files_that_are_no_reports_are_refused(text, tmp_path, capsys):
    (tmp_path / "x.json").write_text(text)
    assert main(["compare", str(tmp_path / "x.json"), str(tmp_path / "x.json")]) == 2
    assert "x.json" in capsys.readouterr().err
