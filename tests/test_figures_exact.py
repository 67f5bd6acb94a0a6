"""What the figures of two layers and of the two-cycle show is so, at tiny sizes."""

import matplotlib
import numpy as np
import pytest
from print_rules import assert_fit_for_print

from figures import bifurcation, style, two_layers
from theory_checks.reference import modes

MODULES = (two_layers, bifurcation)
TINY = {
    "two_layers": {"d": 5, "panels": [[0.1, 0.1, 5], [0.1, 0.6, 5], [0.1, 0.1, 2]], "end": 3.0, "times": 12},
    "bifurcation": {"d": 4, "depths": [2], "rates": 12, "to": 1.3, "steps": 800, "last": 8},
}


@pytest.mark.parametrize("module", MODULES)
def test_every_figure_is_drawn_from_finite_arrays(made, module, tmp_path):
    arrays, settings = made[module.__name__.rpartition(".")[2]]
    assert all(np.all(np.isfinite(array)) for array in arrays.values())
    with matplotlib.rc_context(style.RC):
        figure = module.plot(arrays, settings)
        assert_fit_for_print(figure)
        figure.savefig(tmp_path / "figure.png")


def test_trained_networks_of_two_layers_follow_the_closed_form(made):
    arrays, settings = made["two_layers"]
    for number in range(len(settings["panels"])):
        np.testing.assert_allclose(arrays[f"{number}_measured"], arrays[f"{number}_predicted"], atol=1e-5)
    assert np.all(arrays["2_measured"][:, 2] < 1e-6)  # a bottleneck of two units learns two components
    assert np.all(arrays["1_measured"][3, :3] > arrays["0_measured"][3, :3])  # λ > 0 is earlier


def test_descent_ends_on_the_predicted_branches_up_to_the_limit(made):
    arrays, _ = made["bifurcation"]
    multiples, measured = arrays["L2_multiple"], arrays["L2_measured"]
    inside = (multiples < arrays["L2_limits"][0]) & (np.abs(multiples - 1) > 0.02)
    for multiple, values in zip(multiples[inside], measured[inside], strict=True):
        low, high = (float(end) for end in modes.two_cycle(1.0, depth=2, learning_rate=multiple))
        np.testing.assert_allclose([values.min(), values.max()], [low, high], atol=1e-6)
    beyond = multiples > arrays["L2_limits"][0] + 0.02
    assert all(len(np.unique(values.round(5))) > 2 for values in measured[beyond])
