"""What a check presumes of a target is looked at first, and named where it does not hold."""

import numpy as np
import pytest

from theory_checks import selection
from theory_checks.registry import NotApplicable
from theory_checks.runner import run_check
from theory_checks.runs import require_distinct, require_room, require_small_overlap
from theory_checks.setting import Setting
from theory_checks.target_file import prepare

RNG = np.random.default_rng(0)


def setting_of(matrix, rank=None):
    target, note = prepare(matrix, rank=rank, dtype="float32")
    return Setting(dtype="float32", seeds=1, target=target, target_note=note)


def of_rank(d, rank):
    left, right = (np.linalg.qr(RNG.standard_normal((d, rank)))[0] for _ in range(2))
    return left * np.linspace(3, 1, rank) @ right.T


ROW, NUMBER = np.arange(1.0, 10.0)[None], np.array([[2.0]])
IDENTITY, SQUARE, CROWDED = np.eye(12), of_rank(6, 3), of_rank(12, 5)


@pytest.mark.parametrize(
    ("requirement", "matrix", "rank", "because"),
    [
        (require_distinct, IDENTITY, None, "values 1 and 2 of the target, 20 and 20, are not distinct"),
        (require_room, SQUARE, 3, "r̂ = 6 is more than max(r, d − r) = 3, with r = 3 and d = 6"),
        (require_room, CROWDED, 5, "r̂ = 10 is more than max(r, d − r) = 7, with r = 5 and d = 12"),
        (require_small_overlap, CROWDED, 5, "r² = 25 is more than d = 12"),
    ],
)
def test_a_hypothesis_that_does_not_hold_is_named_with_its_numbers(requirement, matrix, rank, because):
    with pytest.raises(NotApplicable) as caught:
        requirement(setting_of(matrix, rank))
    assert because in str(caught.value)


@pytest.mark.parametrize("requirement", [require_distinct, require_room, require_small_overlap])
def test_the_synthetic_targets_meet_every_hypothesis(requirement):
    requirement(Setting(dtype="float32", seeds=2))


@pytest.mark.parametrize(
    ("name", "matrix", "rank"),
    [
        ("dominance", SQUARE, 3), ("dominance", CROWDED, 5), ("dominance", IDENTITY, None),
        ("incremental-fitting", IDENTITY, None), ("incremental-fitting", CROWDED, 5),
        ("two-cycle", IDENTITY, None), ("fit-times-original", IDENTITY, None),
        ("parameter-count", ROW, None), ("dominance", ROW, None), ("lossless-reduction", NUMBER, None),
        ("matmul-precision", NUMBER, None),
    ],
)  # fmt: skip
def test_such_a_target_is_not_reported_as_a_theorem_that_fails(name, matrix, rank):
    (check,) = selection.select([name])
    result = run_check(check, setting_of(matrix, rank))
    assert result.outcome == "not-applicable", result.detail
    assert result.detail.startswith("not applicable, because ")
    assert not result.passed
