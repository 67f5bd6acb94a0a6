"""Which settings of a checkpoint count as the same, and what a checked descent remembers."""

import numpy as np
import pytest

import lowdim_jax as ld
from lowdim_jax.checked_run import same_run

SAVED = {"depth": 3, "learning_rate": 0.1, "scale": None, "data": "abc", "shape": [3, 4]}


@pytest.mark.parametrize("now", [{}, {"learning_rate": 0.1 * (1 + 5e-6)}])
def test_settings_that_differ_by_rounding_are_those_of_the_checkpoint(now):
    assert same_run(SAVED, SAVED | now, "folder") == SAVED


@pytest.mark.parametrize(
    ("now", "message"),
    [
        ({"learning_rate": 0.1 * (1 + 5e-5)}, "was written with learning_rate=0.1, now it is 0.100005"),
        ({"depth": 2}, "was written with depth=3, now it is 2"),
        ({"depth": 3.0001}, "was written with depth=3"),
        ({"scale": 0.1}, "was written with scale=None, now it is 0.1"),
        ({"learning_rate": None}, "was written with learning_rate=0.1, now it is None"),
        ({"data": "abd"}, "was written for other data"),
        ({"shape": [4, 3]}, "was written with shape="),
        ({"weight_decay": 0.1}, "was written with weight_decay=None, now it is 0.1"),
    ],
)
def test_another_setting_is_named_with_both_values(now, message):
    with pytest.raises(ValueError, match=message):
        same_run(SAVED, SAVED | now, "folder")


@pytest.mark.parametrize(("name", "value"), [("alpha", 2.0), ("weight_decay", 0.1), ("check_every", 7)])
def test_a_run_goes_on_from_a_checkpoint_of_its_own_settings_only(tmp_path, name, value):
    """And then is the run that was not interrupted, bitwise."""
    problem = ld.factorization(np.diag([3.0, 2.0, 0.0]).astype(np.float32))
    settings = {"depth": 2, "rank": 2, "check_every": 5, "finish": False}
    ld.fit(problem, steps=10, checkpoint=tmp_path / "run", **settings)
    again = ld.fit(problem, steps=20, checkpoint=tmp_path / "run", **settings)
    whole = ld.fit(problem, steps=20, **settings)
    np.testing.assert_array_equal(again.weights[0], whole.weights[0])
    np.testing.assert_array_equal(again.losses, whole.losses)
    with pytest.raises(ValueError, match=f"was written with {name}="):
        ld.fit(problem, steps=20, checkpoint=tmp_path / "run", **settings | {name: value})
