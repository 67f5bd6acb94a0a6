"""What the figures of recovery from partial measurements show is so, at tiny sizes."""

import numpy as np
import pytest
from print_rules import assert_fit_for_print

from figures import (
    alpha_ablation,
    completion_trajectory,
    depth_two_against_three,
    incremental_learning_completion,
    incremental_learning_sensing,
    sensing_trajectory,
    style,
)
from theory_checks.checks.recovery import EXCESS

MODULES = (
    sensing_trajectory,
    completion_trajectory,
    alpha_ablation,
    depth_two_against_three,
    incremental_learning_sensing,
    incremental_learning_completion,
)
TINY = {
    "sensing_trajectory": {
        "d": 16,
        "ranks": [2],
        "measurements": 200,
        "scale": 0.1,
        "learning_rate": 1e-2,
        "steps": [500],
        "timed_steps": 500,  # as many, so that both runs are one program
        "repeats": 1,
    },
    "completion_trajectory": {
        "d": 20,
        "ranks": [2],
        "observed": 0.6,
        "scale": 0.1,
        "learning_rate": 5e-3,
        "steps": [1000],
        "timed_steps": 1000,
        "repeats": 1,
    },
    "alpha_ablation": {
        "d": 16,
        "r": 2,
        "observed": 0.7,
        "scale": 0.1,
        "learning_rate": 5e-3,
        "tolerance": 1e-3,
    },
    "depth_two_against_three": {
        "d": 20,
        "r": 2,
        "observed": 0.5,
        "learning_rate": 1e-2,
        "steps": 3000,
    },
    "incremental_learning_sensing": {
        "d": 16,
        "r": 2,
        "measurements": 200,
        "scale": 0.1,
        "learning_rate": 1e-2,
        "steps": 500,
    },
    "incremental_learning_completion": {
        "d": 20,
        "r": 2,
        "observed": 0.6,
        "scale": 0.1,
        "learning_rate": 5e-3,
        "steps": 500,
    },
}


@pytest.mark.parametrize("module", MODULES)
def test_every_figure_is_drawn_from_finite_arrays(made, module, tmp_path):
    import matplotlib

    arrays, settings = made[module.__name__.rpartition(".")[2]]
    assert all(np.all(np.isfinite(array)) for array in arrays.values())
    with matplotlib.rc_context(style.RC):
        figure = module.plot(arrays, settings)
        assert_fit_for_print(figure)
        figure.savefig(tmp_path / "figure.png", dpi=50)


@pytest.mark.parametrize("problem", ["sensing", "completion, α = 1", "completion, α = 5"])
def test_compressed_recovers_in_fewer_iterations_and_hardly_ever_lies_above_the_original(made, problem):
    name, _, alpha = problem.partition(", α = ")
    arrays, _ = made[f"{name}_trajectory"]
    if alpha:
        arrays = completion_trajectory.select(arrays, 2, float(alpha))
    else:
        arrays = sensing_trajectory.select(arrays, 2)
    original, compressed = arrays["original"], arrays["compressed"]
    for level in (0.5, 0.1, 0.01):
        needed, more = (arrays["iteration"][np.argmax(e < level)] for e in (compressed, original))
        assert 0 < needed < 0.95 * more
    np.testing.assert_allclose([original[0], compressed[0]], 1, rtol=2e-3)
    assert max(original[-1], compressed[-1]) < 5e-3
    assert np.max(compressed - original) < EXCESS
    assert np.mean((compressed <= original)[original > 0.01]) > 0.9
    assert arrays["original_seconds"] > 0
    assert arrays["compressed_seconds"] > 0


def test_alpha_saves_more_iterations_than_compression(made):
    arrays, _ = made["completion_trajectory"]
    first, second = (completion_trajectory.select(arrays, 2, alpha) for alpha in (1.0, 5.0))
    reached = {
        (name, alpha): found["iteration"][np.argmax(found[name] < 0.01)]
        for alpha, found in ((1, first), (5, second))
        for name in ("original", "compressed")
    }
    assert reached["compressed", 5] < reached["original", 5]
    assert reached["original", 5] < 0.5 * reached["compressed", 1]
    assert reached["compressed", 1] < reached["original", 1]


def test_larger_alpha_helps_at_one_rate_and_hardly_at_one_fraction_of_the_edge(made):
    arrays, settings = made["alpha_ablation"]
    alpha, fixed = arrays["alpha"], arrays["fixed_steps"]
    assert len(alpha) == 38
    assert (alpha[0], alpha[-1]) == (0.5, 9.75)
    assert np.all(np.diff(fixed) < 0)
    at_one = fixed[np.flatnonzero(alpha == 1.0)]
    assert arrays["original_steps"] > at_one
    np.testing.assert_allclose(fixed, at_one * alpha ** (-2 / settings["depth"]), rtol=0.15)
    assert np.ptp(arrays["edge_steps"]) < 0.15 * arrays["edge_steps"].max()
    of_edge = settings["learning_rate"] / arrays["edge"]
    np.testing.assert_allclose(fixed * of_edge, settings["edge_fraction"] * arrays["edge_steps"], rtol=0.02)
    errors = np.concatenate([arrays["fixed_errors"], arrays["edge_errors"]])
    assert np.ptp(errors) < 0.1 * errors.max()  # the last step takes it down by 8%
    assert errors.max() < 0.02


def test_depth_3_recovers_from_where_depth_2_does_not_and_depth_2_from_far_smaller_starts(made):
    arrays, settings = made["depth_two_against_three"]
    at = {depth: scales.index(1e-2) for depth, scales in settings["scales"].items()}
    two, three = arrays["L2_recovery"], arrays["L3_recovery"]
    assert arrays["L2_training"][at["2"], -1] < 3e-3
    assert two[at["2"], -1] > 0.02
    assert three[at["3"], -1] < 1e-4
    for recovery in (two, three):
        assert np.all(np.diff(recovery[:, -1]) < 0)  # scales fall along a row
    assert two[-1, -1] < 1e-4


@pytest.mark.parametrize("name", ["incremental_learning_sensing", "incremental_learning_completion"])
def test_components_rise_in_order_and_turn_to_the_target_after_they_have_risen(made, name):
    arrays, settings = made[name]
    r = settings["r"]
    for network in ("original", "compressed"):
        values = arrays[f"{network}_values"]
        rise = (values[:, :r] > arrays["targets"] / 2).argmax(axis=0)
        assert np.all(rise > 0)
        assert np.all(np.diff(rise) > 0)
        np.testing.assert_allclose(values[-1, :r], arrays["targets"], rtol=5e-3)
        assert np.all(values[:, r:] < 0.02)
        for side in ("left", "right"):
            alignment = arrays[f"{network}_{side}"]
            missing, left = 1 - alignment[rise, np.arange(r)], 1 - alignment[-1]
            assert np.all(left < 1e-3)
            assert np.all(missing > 5 * left)
