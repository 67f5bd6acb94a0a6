"""Checks in several processes: the same results in the same order as in one."""

from concurrent.futures import Future
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from lowdim_jax.linalg import LowRank
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


def test_a_process_is_given_targets_in_the_precision_of_the_run():
    """Not JAX's arrays: in a new process, which is not configured yet, they would be read in float32."""
    exact = np.linalg.svd(np.diag([2.0, 1 / 3]))
    target = LowRank(*map(jax.device_put, (exact[0], exact[1], exact[2].T)))
    setting, targets = workers._given(Setting(dtype=str(target.dtype), seeds=2, target=target))
    for given in (*jax.tree.leaves(setting.target), *jax.tree.leaves(targets)):
        assert isinstance(given, np.ndarray)
        assert given.dtype == target.dtype


@pytest.mark.parametrize(
    ("platform", "count", "cores", "expected"),
    [
        ("cpu", 40, 2, 2), ("cpu", 40, 16, 6), ("cpu", 3, 2, 1), ("cpu", 40, 1, 1),
        ("gpu", 40, 16, 6), ("gpu", 40, 2, 1), ("tpu", 40, 16, 1),
    ],
)
def test_several_processes_where_that_is_faster(monkeypatch, platform, count, cores, expected):
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


class Pool:
    """A process that does what it is told to, when it is told to."""

    def __init__(self):
        self.given, self.futures = [], []

    def submit(self, _, name):
        self.given.append(name)
        self.futures.append(Future())
        return self.futures[-1]


def test_a_process_keeps_to_its_modules_and_the_last_one_takes_all():
    def check(name, module):
        return SimpleNamespace(name=name, compare=SimpleNamespace(__module__=module))

    first, second = pools = Pool(), Pool()
    queue = workers._Queue([check("a1", "a"), check("a2", "a"), check("b1", "b"), check("b2", "b")], pools)
    queue.start()
    assert (first.given, second.given) == (["a1"], ["b1"])
    second.futures[0].set_result("found")
    assert second.given == ["b1", "b2"]
    second.futures[1].set_result("found, too")
    assert second.given == ["b1", "b2", "a2"]  # what is left, whose it may be
    first.futures[0].set_exception(workers.BrokenProcessPool())
    second.futures[2].set_result("found at last")
    assert [queue.futures[name].result() for name in ("b1", "b2", "a2")] == [
        "found", "found, too", "found at last"
    ]  # fmt: skip
    with pytest.raises(workers.BrokenProcessPool):
        queue.futures["a1"].result()


def test_without_a_process_left_what_waits_is_an_error():
    checks = [SimpleNamespace(name=name, compare=SimpleNamespace(__module__=name)) for name in "abc"]
    first, second = pools = Pool(), Pool()
    queue = workers._Queue(checks, pools)
    queue.start()
    for pool in pools:
        pool.futures[0].set_exception(workers.BrokenProcessPool())
    assert all(isinstance(future.exception(), RuntimeError) for future in queue.futures.values())
    assert first.given + second.given == ["a", "b"]


def test_bad_numbers_of_processes_are_one_sentence(capsys):
    assert cli.main(["run", "--processes", "0"]) == 2
    assert "--processes" in capsys.readouterr().err
