"""What the figures of the law of parsimony show is so, at tiny sizes."""

import jax.numpy as jnp
import numpy as np
import pytest
from print_rules import assert_fit_for_print

import lowdim_jax as ld
from figures import digits_widths, escape_ratio, law_of_parsimony, lossless_equivalence, style, widths

MODULES = (law_of_parsimony, lossless_equivalence, widths, digits_widths, escape_ratio)
TINY = {
    "law_of_parsimony": {"d": 14, "r": 2, "learning_rate": 2e-3, "steps": 900, "record_every": 50},
    "lossless_equivalence": {"d": 12, "r": 2, "learning_rate": 2e-3, "steps": 800},
    "widths": {
        "targets": [8.0, 5.0],
        "scale": 0.2,
        "steps": 1000,
        "widths": [100, 10000],
        "dense_widths": [20, 40],
        "samples": 8,
    },
    "digits_widths": {"widths": [64, 1000000], "outers": [0.1, 1.0], "dense_width": 80, "steps": 66},
    "escape_ratio": {"scales": {"3": [0.1, 0.01], "4": [0.1, 0.03]}},
}


@pytest.mark.parametrize("module", MODULES)
def test_every_figure_is_drawn_from_finite_arrays(made, module, tmp_path):
    import matplotlib

    arrays, settings = made[module.__name__.rpartition(".")[2]]
    assert all(np.all(np.isfinite(array)) for array in arrays.values())
    with matplotlib.rc_context(style.RC):
        figure = module.plot(arrays, settings)
        assert_fit_for_print(figure)
        figure.savefig(tmp_path / "figure.png")


def test_all_but_2r_singular_values_stay_together_at_the_predicted_value(made):
    arrays, settings = made["law_of_parsimony"]
    d, r = settings["d"], settings["r"]
    values, bulk = arrays["values"], arrays["predicted_bulk"]
    np.testing.assert_allclose(values[:, r : d - r], np.tile(bulk[:, None], d - 2 * r), rtol=1e-12)
    moving = np.delete(values, np.s_[r : d - r], axis=1)
    np.testing.assert_allclose(moving, arrays["predicted_core"], rtol=1e-11)
    assert np.all(values[-1, :r] > 3 * bulk[0])
    assert np.all(values[-1, d - r :] < 0.95 * bulk[-1])


def test_the_bulk_never_turns_while_leading_vectors_do(made):
    arrays, _ = made["law_of_parsimony"]
    for side in ("left", "right"):
        assert np.max(arrays[f"{side}_bulk_angle"][1:]) < 1e-11
        assert np.min(arrays[f"{side}_angle"][-1]) > 0.1


def test_angles_are_exact_when_small_and_blind_to_signs():
    x, y = np.eye(3)[:, :1], np.eye(3)[:, 1:2]
    for angle in (1e-13, 0.3, np.pi / 2):
        for sign in (1, -1):
            turned = sign * (np.cos(angle) * x + np.sin(angle) * y)
            np.testing.assert_allclose(law_of_parsimony._angle(turned, x), angle, rtol=1e-12)


def test_the_lifted_reduction_is_the_full_run_except_under_adam(made):
    arrays, settings = made["lossless_equivalence"]
    for name in lossless_equivalence.OPTIMIZERS:
        difference, loss = arrays[f"{name}_difference"], arrays[f"{name}_loss"]
        assert difference.shape == (len(arrays["iteration"]), settings["depth"])
        assert np.max(difference[0]) < 1e-14
        assert loss[-1] < 0.1 * loss[0], "a run that learns nothing shows nothing"
        if name == lossless_equivalence.CONTROL:
            assert np.min(difference[-1]) > 0.1
        else:
            assert np.max(difference) < 1e-13
            np.testing.assert_allclose(arrays[f"{name}_reduced_loss"], loss, rtol=1e-10)


def test_fit_times_scatter_less_the_wider_the_network(made):
    arrays, settings = made["widths"]
    assert arrays["fit_times"].shape == (2, settings["samples"], 2)
    deviation = np.sqrt(np.mean((arrays["fit_times"] / arrays["limit"] - 1) ** 2, axis=1))
    drop = deviation[0] / deviation[1]  # d^(1/2): 10, give or take the scatter of 8 samples
    assert np.all((drop > 3) & (drop < 40))
    assert np.all(deviation[1] < 5e-3)
    assert np.all(arrays["seconds"] > 0)
    assert np.all(arrays["dense_seconds"] > 0)


def test_the_limit_of_fit_times_is_that_of_single_components(made, x64):
    """At infinite width the reduced network splits into one of width 2 for each component."""
    arrays, settings = made["widths"]
    rate = settings["learning_rate"]
    for value, limit in zip(settings["targets"], arrays["limit"], strict=True):
        axes = jnp.eye(2)
        alone = ld.LowRank(axes[:, :1], jnp.array([value]), axes[:, 1:])
        run = ld.reduced_descent(
            ld.reduction.reduce_identity(alone, depth=settings["depth"], scale=settings["scale"]),
            ld.GradientDescent(rate),
            steps=settings["steps"],
            observe=lambda layers: ld.spectra.singular_values(ld.reduction.cores(layers))[:1],
        )
        level = jnp.array([1 - settings["fit_tolerance"]]) * value
        time = rate * ld.spectra.crossing_time(run.steps, run.observed, level)
        np.testing.assert_allclose(time, limit, rtol=1e-3)


def test_escape_ratios_converge_to_the_prediction_as_the_scale_falls(made):
    arrays, _ = made["escape_ratio"]
    assert arrays["limit"] == pytest.approx(1.451369, abs=1e-6)
    for depth in (3, 4):
        gap = np.abs(arrays[f"L{depth}_ratio"] - arrays[f"L{depth}_predicted"])
        scale = arrays[f"L{depth}_scale"]
        assert gap[-1] < 0.005
        order = np.log(gap[0] / gap[1]) / np.log(scale[0] / scale[1])
        assert order == pytest.approx(depth - 2, abs=0.15)


def test_the_compressed_half_time_is_measured_too(x64):
    axes = jnp.eye(4)
    target = ld.LowRank(axes[:, :1], jnp.array([escape_ratio.SIGMA]), axes[:, 1:2])
    problem = ld.factorization(target.dense())
    narrow = ld.compress(problem, depth=3, rank=1, scale=0.1)
    predicted = escape_ratio.compressed_half_time(depth=3, scale=0.1)
    measured = escape_ratio.half_time(problem.loss, narrow, within=2 * predicted, rtol=1e-8)
    assert measured == pytest.approx(predicted, rel=1e-6)
    with pytest.raises(RuntimeError, match="not halved"):
        escape_ratio.half_time(problem.loss, narrow, within=0.5 * predicted, rtol=1e-8)


def test_digits_are_learned_alike_at_every_width_and_the_dense_network_is_its_reduction(made):
    arrays, _ = made["digits_widths"]
    assert np.all(arrays["accuracy"][:, -1] > 0.85)
    assert np.ptp(arrays["accuracy"][:, -1]) < 0.06
    assert np.max(arrays["gaps"]) < 1e-12
    rich, lazy = arrays["moves"][:, 0]
    assert rich > 5 * lazy
