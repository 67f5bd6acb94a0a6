"""The checks as a command: what it accepts, what it refuses, and that its verdicts can fail."""

import json
import subprocess
import sys

import numpy as np
import pytest

from theory_checks import listing, registry, runner, selection
from theory_checks.cli import main
from theory_checks.registry import Check, Evidence
from theory_checks.setting import Setting


def refused(capsys, *arguments: str) -> str:
    """Standard error of a command line that has to be refused with exit code 2."""
    try:
        code = main(arguments)
    except SystemExit as stop:  # argparse's own refusals
        code = stop.code
    assert code == 2
    output = capsys.readouterr().err
    assert "Traceback" not in output
    return output


def write(path, text):
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["run", "--only", "no-such-check"], "no check matches 'no-such-check'"),
        (["list", "--only", "no-such-check"], "no check matches"),
        (["run", "--device", "quantum"], "invalid choice: 'quantum'"),
        (["run", "--dtype", "float16"], "invalid choice: 'float16'"),
        (["run", "--size", "huge"], "invalid choice: 'huge'"),
        (["run", "--seeds", "0"], "'0' is not a positive integer"),
        (["run", "--seeds", "-1"], "'-1' is not a positive integer"),
        (["run", "--rank", "2"], "--rank is the rank kept of --target"),
        (["run", "--target", "missing.npy"], "neither a file nor 'digits'"),
        (["walk"], "invalid choice: 'walk'"),
        ([], "a command is missing"),
    ],
)
def test_bad_options_are_refused_in_one_sentence(arguments, expected, capsys, tmp_path):
    if arguments[:1] == ["run"]:
        arguments = [*arguments, "--out", str(tmp_path)]
    assert expected in refused(capsys, *arguments)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("empty.csv", "", "is an empty file"),
        ("ragged.csv", "1,2,3\n4,5\n", "line 2 has 2 fields, the first line has 3"),
        ("words.csv", "1,2\n3,four\n", "line 2: could not convert"),
        ("nan.csv", "1,2\n3,nan\n", "1 entries that are NaN or infinite, the first in row 2, column 2"),
        ("inf.csv", "1,inf\n3,4\n", "NaN or infinite"),
        ("zero.csv", "0,0\n0,0\n", "is zero"),
        ("row.csv", "1,2,3\n", "both sides ≥ 2"),
        ("text.npy", "not an array", "cannot be read"),
        ("text.npz", "not an archive", "cannot be read"),
        ("text.mtx", "not a matrix", "cannot be read"),
        ("matrix.txt", "1 2\n3 4\n", "ends in none of"),
    ],
)
def test_bad_target_files_are_refused_in_one_sentence(name, text, expected, capsys, tmp_path):
    target = write(tmp_path / name, text)
    assert expected in refused(capsys, "run", "--target", target, "--out", str(tmp_path / "out"))
    assert not list((tmp_path / "out").iterdir())


def test_a_rank_above_the_targets_is_refused(capsys, tmp_path):
    np.save(tmp_path / "a.npy", np.outer(np.arange(1.0, 5), np.arange(1.0, 4)))
    target = str(tmp_path / "a.npy")
    message = refused(capsys, "run", "--target", target, "--rank", "2", "--out", str(tmp_path))
    assert "rank=2, expected 1 ≤ rank ≤ 1" in message


def test_an_unwritable_output_is_refused_before_the_run(capsys, tmp_path):
    blocker = tmp_path / "file"
    blocker.write_text("")
    assert "cannot be written to" in refused(capsys, "run", "--out", str(blocker / "report"))


def test_list_names_every_check_with_its_controls(capsys):
    assert main(["list"]) == 0
    output = capsys.readouterr().out
    for check in selection.all_checks():
        assert check.name in output
        assert check.controls


def test_list_does_not_wait_for_jax():
    code = "import sys; from theory_checks.cli import main; main(['list']); sys.exit('jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_list_read_from_source_is_that_of_the_registered_checks():
    read = [(one.name, one.claim, one.source, one.controls) for one in listing.listed()]
    registered = [(one.name, one.claim, one.source, tuple(one.controls)) for one in selection.all_checks()]
    assert read == registered


def test_run_writes_a_report_with_all_it_promises(tmp_path, capsys):
    assert main(["run", "--only", "parameter-count", "--seeds", "1", "--out", str(tmp_path)]) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    (entry,) = report["checks"]
    promised = {"name", "claim", "source", "passed", "measured", "predicted", "error", "tolerance"}
    promised |= {"tolerance_reason", "control", "seconds"}
    assert promised <= set(entry)
    assert {"device", "dtype", "matmul_precision", "versions", "settings", "seeds"} <= set(report)
    assert entry["passed"] is True
    assert "parameter-count" in (tmp_path / "report.html").read_text()


def test_every_target_format_is_read_alike(tmp_path):
    from scipy.io import mmwrite

    from theory_checks.target_file import load_matrix

    matrix = np.arange(6.0).reshape(3, 2)
    np.save(tmp_path / "a.npy", matrix)
    np.savez(tmp_path / "a.npz", matrix=matrix)
    mmwrite(tmp_path / "a.mtx", matrix)
    np.savetxt(tmp_path / "a.csv", matrix, delimiter=",")
    for name in ("a.npy", "a.npz", "a.mtx", "a.csv"):
        np.testing.assert_array_equal(load_matrix(str(tmp_path / name)), matrix)


def evidence(error: float) -> Evidence:
    return Evidence(np.array([error]), 1.0, "by definition", "error", None, None)


def verdict(error: float, control_error: float) -> runner.Result:
    compare = lambda setting, broken=False: evidence(control_error if broken else error)  # noqa: E731
    check = Check("c", "claim", "1.1", compare, {"something": {"broken": True}})
    return runner.run_check(check, Setting())


def test_a_check_passes_only_if_it_holds_and_its_control_is_refuted():
    assert verdict(0.5, 2.0).outcome == "pass"
    assert verdict(2.0, 2.0).outcome == "fail"
    assert verdict(0.5, 0.5).outcome == "vacuous"
    assert verdict(float("nan"), 2.0).outcome == "fail"
    assert verdict(0.5, float("nan")).outcome == "pass"
    assert not verdict(0.5, 0.5).passed


def test_a_check_that_raises_is_an_error_and_not_a_pass():
    def compare(setting):
        raise RuntimeError("out of luck")

    result = runner.run_check(Check("c", "claim", "1.1", compare, {"x": {}}), Setting())
    assert result.outcome == "error"
    assert "out of luck" in result.detail
    assert not result.passed


def test_a_check_without_a_control_cannot_be_registered():
    with pytest.raises(ValueError, match="no negative control"):
        registry.check("bare", claim="", source="", controls={})(lambda setting: None)
    with pytest.raises(ValueError, match="registered twice"):
        registry.check("scalar-map", claim="", source="", controls={"x": {}})(lambda setting: None)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_quick_checks_hold_in_both_precisions(dtype, tmp_path, capsys):
    command = ["run", "--dtype", dtype, "--out", str(tmp_path)]
    for name in ("surrogate", "balance-drift", "fit-times-original"):
        command += ["--only", name]
    assert main(command) == 0, capsys.readouterr()
