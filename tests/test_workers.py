"""Checks in several processes: the same results in the same order as in one."""

import jax
import numpy as np
import pytest

from theory_checks import cli, runner, workers
from theory_checks.interrupts import Interrupts
from theory_checks.selection import select
from theory_checks.setting import Setting

NAMES = ["parameter-count", "balance-drift"]


def float32():
    """What the processes of this test start with."""
    jax.config.update("jax_enable_x64", False)


def test_results_are_those_of_one_process_in_the_order_of_the_checks():
    checks = sorted(select(NAMES), key=lambda check: NAMES.index(check.name))
    setting = Setting(size="small", dtype="float32", seeds=1)
    results = []
    done = list(
        workers.run_in_processes(checks, setting, results, Interrupts(), processes=2, configure=float32)
    )
    assert [result.name for result in done] == [result.name for result in results] == NAMES
    for check, result in zip(checks, done, strict=True):
        here = runner.run_check(check, setting)
        assert result.outcome == here.outcome == "pass"
        np.testing.assert_allclose(result.evidence.error, here.evidence.error, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    ("platform", "count", "cores", "expected"),
    [("cpu", 40, 2, 2), ("cpu", 3, 2, 1), ("cpu", 40, 1, 1), ("gpu", 40, 2, 1)],
)
def test_two_processes_where_that_is_faster(monkeypatch, platform, count, cores, expected):
    monkeypatch.setattr(workers.os, "cpu_count", lambda: cores)
    assert workers.default_processes(platform, [None] * count) == expected


def test_a_process_that_dies_is_an_error_of_its_check_and_not_the_end(monkeypatch):
    class Dead:
        def result(self):
            raise workers.BrokenProcessPool

    (check,) = select(["parameter-count"])
    result = workers._result(check, Dead())
    assert result.outcome == "error"
    assert "try --processes 1" in result.detail


def test_bad_numbers_of_processes_are_one_sentence(capsys):
    assert cli.main(["run", "--processes", "0"]) == 2
    assert "--processes" in capsys.readouterr().err
