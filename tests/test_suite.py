"""The suite as a whole: every statement has a check, users add their own, two runs compare."""

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from theory_checks import registry, runner, selection
from theory_checks.cli import main
from theory_checks.compare import without_times
from theory_checks.coverage import NOT_CHECKED, STATEMENTS, Statement, checks_of, sides, table
from theory_checks.registry import Check, Evidence
from theory_checks.setting import Setting

DOCS = Path(__file__).parents[1] / "docs"
THEORY = (DOCS / "theory.md").read_text("utf-8")


@pytest.fixture(autouse=True)
def _checks_of_a_test_are_its_own():
    with registry.only_here():
        yield


def test_the_statements_are_those_of_the_theory_with_its_titles_status_and_sources():
    found = {}
    for number, title, body in re.findall(r"^### (\d\.\d+) (.+)\n\n(.+)$", THEORY, re.MULTILINE):
        status = re.match(r"\*(.+?)\*", body)[1]
        sources = re.findall(r"\[(\d{4}\.\d{4,5})\]", status)
        sources = ["2311.05061"] if status.startswith("Claimed in the paper") else sources
        found[number] = Statement(title, re.split(r"[.;:(]", status)[0].strip().lower(), tuple(sources))
    assert len(found) > 25
    assert found == STATEMENTS


def test_every_statement_has_a_check_or_a_reason_but_not_both():
    for number in STATEMENTS:
        assert bool(checks_of(number, selection.all_checks())) != (number in NOT_CHECKED), number
    assert NOT_CHECKED.keys() <= STATEMENTS.keys()


def test_every_check_cites_statements_that_exist():
    for check in selection.all_checks():
        assert set(check.source.split(", ")) <= STATEMENTS.keys(), check.name


def test_the_coverage_page_is_that_of_the_registered_checks():
    page = (DOCS / "coverage.md").read_text("utf-8")
    assert page.endswith(table(selection.all_checks()))
    assert sides(selection.all_checks()) in page


def test_one_side_of_every_check_is_not_the_library_or_is_pinned_by_a_check_where_one_is_not():
    checks = {check.name: check for check in selection.all_checks()}
    for check in checks.values():
        assert check.rests_on is not None, check.name
        if set(check.rests_on) == {"library"}:
            assert set(checks[check.pinned_by].rests_on) != {"library"}, check.name
        else:
            assert not check.pinned_by, check.name


def test_a_side_that_rests_on_nothing_known_is_refused():
    with pytest.raises(ValueError, match=r"rests on .*hearsay.*expected two of"):
        registry.check("x", claim="", source="", controls={"x": {}}, rests_on=("hearsay", "library"))(print)


def test_a_check_whose_hypotheses_do_not_hold_is_neither_pass_nor_fail(tmp_path):
    (tmp_path / "mine.py").write_text(UNMET, "utf-8")
    command = ["run", "--load", str(tmp_path / "mine.py"), "--only", "unmet*", "--out", str(tmp_path)]
    assert main(command) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    unmet, control = report["checks"]
    assert unmet["outcome"] == "not-applicable"
    assert unmet["detail"] == "not applicable, because the sky is green"
    assert not unmet["passed"]
    assert control["outcome"] == "pass"
    assert [entry["broken"] for entry in control["control"]] == ["another"]
    assert report["verdict"]["ok"]
    assert (report["verdict"]["passed"], report["verdict"]["not_applicable"]) == (1, 1)
    assert "1 of 1 checks hold, 1 does not apply" in report["verdict"]["sentence"]
    assert "because the sky is green" in (tmp_path / "report.html").read_text()


UNMET = """
from theory_checks.registry import Evidence, NotApplicable, check

@check("unmet", claim="", source="1.1", controls={"broken": {}})
def unmet(setting):
    raise NotApplicable("the sky is green")

BROKEN = {"one": {"error": None}, "another": {"error": 2.0}}

@check("unmet-in-a-control", claim="", source="1.2", controls=BROKEN)
def unmet_in_a_control(setting, /, *, error=0.5):
    if error is None:
        raise NotApplicable("it is")
    return Evidence(error, 1.0, "by definition", "error", 0, 0)
"""


def test_the_tables_of_the_documentation_name_every_check_and_every_figure():
    from figures.registry import names

    checks, figures = ((DOCS / page).read_text("utf-8") for page in ("checks.md", "figures.md"))
    assert [check.name for check in selection.all_checks() if f"`{check.name}`" not in checks] == []
    assert [name for name in names() if name not in figures] == []


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


FAILING = """from theory_checks import check


def divide(by):
    return 1 / by


@check("mine-fails", claim="", source="1.1", controls={"x": {}})
def mine(setting):
    return divide(0)
"""


def test_an_error_in_a_users_own_check_names_its_file_and_lines(tmp_path, capsys):
    path = tmp_path / "mine.py"
    path.write_text(FAILING)
    assert main(["run", "--load", str(path), "--only", "mine-fails", "--out", str(tmp_path)]) == 1
    (entry,) = json.loads((tmp_path / "report.json").read_text())["checks"]
    assert entry["detail"].splitlines() == [
        "ZeroDivisionError: division by zero",
        f"  {path}, line 10: return divide(0)",
        f"  {path}, line 5: return 1 / by",
    ]
    path.write_text("\nraise RuntimeError('no')")
    assert main(["list", "--load", str(path)]) == 2
    assert "mine.py', line 2: RuntimeError: no" in capsys.readouterr().err


def test_a_target_is_described_and_checks_that_do_not_take_it_are_named(tmp_path, capsys):
    np.save(tmp_path / "a.npy", np.diag([3.0, 2.0, 1.0, 0.0]))
    only = ["--only", "parameter-count", "--only", "haar-overlap"]
    command = ["run", "--target", str(tmp_path / "a.npy"), *only, "--seeds", "1", "--out", str(tmp_path)]
    assert main(command) in (0, 1)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("target: 4×4 matrix of rank 3; its leading 3 components")
    assert lines[1] == "left out, because they make matrices or data of their own: haar-overlap"


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


@pytest.mark.parametrize("outcome", ["pass", "fail"])
def test_a_check_that_vanished_counts_as_worse(outcome, tmp_path, capsys):
    before = report(outcome=outcome, passed=outcome == "pass")
    assert compare(tmp_path, before, report(name="b")) == 1
    output = capsys.readouterr().out
    assert f"{outcome} → not run" in output
    assert "not run → pass" in output
    assert "no longer there: a" in output
    both = report() | {"checks": [*report()["checks"], *report(name="b")["checks"]]}
    assert compare(tmp_path, report(), both) == 0  # a new one is none
    assert "every check that held still holds" in capsys.readouterr().out


@pytest.mark.parametrize(
    "text",
    ["", "[]", '{"checks": []}', "[" * 10**5, json.dumps(report(name=3)), '{"a":' * 900 + "1" + "}" * 900,
     json.dumps(report() | {"checks": 1}), json.dumps(report() | {"settings": []})],
)  # fmt: skip
def test_files_that_are_no_reports_are_refused(text, tmp_path, capsys):
    (tmp_path / "x.json").write_text(text)
    assert main(["compare", str(tmp_path / "x.json"), str(tmp_path / "x.json")]) == 2
    assert "x.json" in capsys.readouterr().err


def run_in_a_process(*arguments, **options):
    return subprocess.Popen(
        [sys.executable, "-m", "theory_checks", "run", *arguments],
        stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **options,
    )  # fmt: skip


def test_two_processes_write_the_same_report_up_to_times(tmp_path):
    only = [part for name in ("parameter-count", "matmul-precision", "balance-drift")
            for part in ("--only", name)]  # fmt: skip
    runs = [run_in_a_process(*only, "--out", str(tmp_path / name)) for name in "ab"]
    outputs = [run.communicate(timeout=300) for run in runs]
    assert [run.returncode for run in runs] == [0, 0], outputs
    first, second = (json.loads((tmp_path / name / "report.json").read_text()) for name in "ab")
    assert len(first["checks"]) == 3
    assert without_times(first) == without_times(second)
    assert [row["statement"] for row in first["coverage"]] == list(STATEMENTS)
    outcomes = {row["statement"]: row["outcome"] for row in first["coverage"]}
    assert outcomes["6.2"] == "pass"
    assert outcomes["2.1"] == "not run"
    assert outcomes["6.5"] == "no check"


def test_times_are_left_out_of_the_comparison_and_nothing_else_is(tmp_path, capsys):
    before, after = report(seconds=1.0, timed=True), report(seconds=2.0, timed=True)
    after["checks"][0] |= {"error": 0.4, "errors_by_seed": [0.4], "measured": {"ratio": 0.4}}
    after["checks"][0]["control"] = before["checks"][0]["control"] = [{"broken": "x", "refuted": True}]
    assert without_times(before) == without_times(after)
    assert compare(tmp_path, before, after) == 0
    assert "the same report up to times" in capsys.readouterr().out
    after["checks"][0]["timed"] = before["checks"][0]["timed"] = False
    assert without_times(before) != without_times(after)


INTERRUPTIBLE = """
import time
from theory_checks.registry import Evidence, check

@check("quick", claim="", source="1.1", controls={"broken": {"error": 2.0}})
def quick(setting, /, *, error=0.5):
    return Evidence(error, 1.0, "by definition", "error", 0, 0)

@check("slow", claim="", source="1.2", controls={"broken": {}})
def slow(setting):
    print("asleep", flush=True)
    time.sleep(600)
"""


def test_an_interrupted_run_reports_what_finished_and_says_so(tmp_path):
    (tmp_path / "mine.py").write_text(INTERRUPTIBLE)
    only = ["--only", "quick", "--only", "slow", "--load", str(tmp_path / "mine.py")]
    run = run_in_a_process(*only, "--out", str(tmp_path))
    assert run.stdout.readline() == "asleep\n"
    run.send_signal(signal.SIGINT)
    output, errors = run.communicate(timeout=60)
    assert run.returncode == 130
    assert "Traceback" not in errors
    assert "Incomplete, interrupted after 1 of 2 checks: 1 of 1 checks hold so far" in output
    found = json.loads((tmp_path / "report.json").read_text())
    assert found["complete"] is False
    assert [entry["name"] for entry in found["checks"]] == ["quick"]
    assert "interrupted after 1 of 2 checks" in (tmp_path / "report.html").read_text()


def outcome_of(compare, **options):
    check = Check("mine", "claim", "1.1", compare, {"x": {}}, **options)
    return runner.run_check(check, Setting(dtype="float32"))


@pytest.mark.parametrize(
    "compare",
    [
        lambda setting: jnp.zeros((1 << 24, 1 << 24)).block_until_ready(),
        lambda setting: np.zeros((1 << 30, 1 << 20)),
    ],
    ids=["device", "host"],
)
def test_out_of_memory_names_the_check_and_the_size(compare):
    result = outcome_of(compare)
    assert result.outcome == "error"
    assert result.detail.startswith("out of memory: check 'mine' at size 'small'")


def evidence(**changes):
    values = {"errors": 0.5, "predicted": 0, "measured": 0}
    return Evidence(tolerance=1.0, reason="", quantity="", **(values | changes))


@pytest.mark.parametrize(
    ("compare", "expected"),
    [
        (lambda setting: None, "returned NoneType, expected Evidence"),
        (lambda setting: sys.exit(0), "SystemExit"),
        (lambda setting: evidence(errors=[]), "errors is empty"),
        (lambda setting: evidence(measured=object()), "TypeError"),
        (lambda setting: registry.Curve("c", np.ones(3), np.ones(3), np.ones(2)), "curve 'c'"),
    ],
)
def test_what_is_no_evidence_is_an_error_of_the_check_and_not_the_end_of_the_run(compare, expected):
    result = outcome_of(compare)
    assert result.outcome == "error"
    assert expected in result.detail


@pytest.mark.parametrize(("device_error", "outcome"), [(3e-4, "vacuous"), (1e-16, "pass")])
def test_products_in_fewer_bits_are_a_control_where_the_device_has_them(device_error, outcome, monkeypatch):
    """With the error of a device that has TF32, a check that does not notice its default is vacuous."""
    seen = []

    def compare(setting, broken=False):
        seen.append(jax.config.jax_default_matmul_precision)
        return evidence(errors=2.0 if broken else 0.5)

    monkeypatch.setattr(runner, "default_product_error", lambda dtype, width: device_error)
    check = Check("mine", "", "6.2", compare, {"x": {"broken": True}}, precise=True)
    setting = Setting(dtype="float32")
    result = runner.run_check(check, setting)
    assert result.outcome == outcome
    assert seen == ["highest", "highest", "default"][: 3 if outcome == "vacuous" else 2]
    said = runner.environment(setting)["default_matmul"]
    assert ("as one more control" in said) == (outcome == "vacuous")


@pytest.mark.parametrize(
    ("measured", "outcome"),
    [
        (lambda x: np.exp(-x), "vacuous"),
        (lambda x: np.exp(-x) * (1 + 1e-15 * np.arange(9)), "pass"),
        (lambda x: np.where(x > 0.5, np.exp(-x), np.nan), "pass"),
    ],
)
def test_a_curve_that_draws_the_measurement_for_its_prediction_is_no_evidence(measured, outcome):
    x = np.linspace(0, 1, 9)
    curve = registry.Curve("decay", x, np.exp(-x), measured(x))

    def compare(setting, broken=False):
        return Evidence(2.0 if broken else 0.5, 1.0, "by definition", "error", 0, 0, curves=(curve,))

    result = runner.run_check(Check("mine", "", "1.1", compare, {"x": {"broken": True}}), Setting(seeds=1))
    assert result.outcome == outcome
    assert ("what curve 'decay' predicts is the measurement" in result.detail) == (outcome == "vacuous")


def test_counts_and_constants_and_what_is_not_called_a_prediction_may_agree_to_the_bit():
    x = np.arange(4.0)
    same = {"counts": (x, ("predicted", "measured")), "constant": (0 * x + 0.1, ("predicted", "measured")),
            "two networks": (np.exp(x), ("compressed", "original"))}
    for title, (values, labels) in same.items():
        assert not runner.draws_a_copy(registry.Curve(title, x, values, values, labels=labels))


def test_this_machines_products_are_measured():
    assert runner.default_product_error("float32", 40) > 1e-9
    assert {check.name for check in selection.all_checks() if check.precise} == {"matmul-precision"}
