"""What the figures of nonlinear networks show is so, at tiny sizes."""

import gzip
import struct

import matplotlib
import numpy as np
import pytest
from print_rules import assert_fit_for_print

from figures import nonlinear_accuracy, rank_accuracy, registry, style, weight_updates
from lowdim_jax.nn import reference

MODULES = (weight_updates, nonlinear_accuracy, rank_accuracy)
TINY = {
    "weight_updates": {
        "d": 12, "r": 2, "linear_steps": 200, "MLP": {"width": 96}, "conv net": {"channels": 4, "width": 16},
        "ViT": {"width": 16, "depth": 1}, "steps": 160, "records": 4,
    },
    "nonlinear_accuracy": {"width": 48, "learning_rate": 0.05, "steps": 100, "record_every": 25, "seeds": 2},
    "rank_accuracy": {
        "width": 48, "ranks": [1, 9], "learning_rate": 0.05, "steps": 80, "record_every": 80, "seeds": 2,
    },
}  # fmt: skip


@pytest.mark.parametrize("module", MODULES)
def test_every_figure_is_drawn_from_finite_arrays(made, module, tmp_path):
    arrays, settings = made[module.__name__.rpartition(".")[2]]
    assert all(np.all(np.isfinite(array)) for array in arrays.values())
    with matplotlib.rc_context(style.RC):
        figure = module.plot(arrays, settings)
        assert_fit_for_print(figure)
        figure.savefig(tmp_path / "figure.png")


def test_all_but_2r_directions_of_a_deep_linear_layer_lose_what_the_bulk_loses(made):
    arrays, settings = made["weight_updates"]
    rho, every = settings["scale"], settings["linear_steps"] // settings["records"]
    for values in arrays["DLN"]:
        for _ in range(every):
            rho *= 1 - settings["learning_rate"] * rho ** (2 * settings["depth"] - 2)
        np.testing.assert_allclose(values[2 * settings["r"] :], settings["scale"] - rho, rtol=1e-6)
    assert arrays["DLN_share"].min() > 1 - 1e-4


def test_updates_stay_in_few_directions_until_random_labels_have_to_be_fitted(made):
    arrays, _ = made["weight_updates"]
    assert arrays["MLP_fit"][-1] > 0.95
    assert arrays["MLP_share"].min() > 0.9
    assert arrays["MLP_random_share"][-1] < arrays["MLP_share"][-1] - 0.15
    for name in weight_updates.MODELS:
        assert np.all(np.diff(arrays[f"{name}_random_share"]) < 1e-3)
        assert arrays[f"{name}_random_fit"][-1] < 0.6 < arrays[f"{name}_fit"][-1]
    # Which labels are fitted last also have their directions last.
    assert arrays["MLP_random_fit"][-1] > arrays["conv net_random_fit"][-1]


def test_a_compressed_network_keeps_the_accuracy_and_a_spectral_start_has_some_at_once(made):
    arrays, settings = made["nonlinear_accuracy"]
    for name in nonlinear_accuracy.VARIANTS:
        assert arrays[name].shape == arrays[f"{name}_seconds"].shape == (settings["seeds"], 5)
        assert np.all(np.diff(arrays[f"{name}_seconds"], axis=1) > 0)
        assert arrays[name][:, -1].min() > 0.85
    assert arrays["compressed"][:, -1].mean() > arrays["deep"][:, -1].mean() - 0.03
    assert arrays["compressed"][:, 0].min() > 0.25 > arrays["compressed_random"][:, 0].max()
    np.testing.assert_array_equal(arrays["iteration"], [0, 25, 50, 75, 100])


def test_a_rank_below_the_number_of_classes_costs_accuracy(made):
    arrays, _ = made["rank_accuracy"]
    one, nine = arrays["accuracy"].mean(axis=1)
    assert one < nine - 0.2
    assert abs(nine - arrays["deep_accuracy"].mean()) < 0.03
    assert arrays["seconds"].min() > 0


def test_figures_read_images_from_a_folder(tmp_path, monkeypatch):
    given = reference.digits()
    pixels, labels = given.images[:300, ..., 0] * 255, given.labels[:300]
    for name, array in (("images-idx3", pixels), ("labels-idx1", labels)):
        header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
        data = gzip.compress(header + array.round().astype("uint8").tobytes())
        (tmp_path / f"t10k-{name}-ubyte.gz").write_bytes(data)
    seen = []
    monkeypatch.setattr(rank_accuracy.nonlinear_accuracy, "train", lambda _, images, *__, **___: (
        seen.append(images), (np.zeros((1, 1)), np.zeros((1, 1)))
    )[1])  # fmt: skip
    registry.make("rank-accuracy", size="small", out=tmp_path, data=tmp_path)
    assert all(images.images.shape == (300, 8, 8, 1) for images in seen)
    np.testing.assert_array_equal(seen[0].labels, given.labels[:300])
    with pytest.raises(ValueError, match="there is none of train-images-idx3-ubyte"):
        registry.make("weight-updates", size="small", out=tmp_path, data=tmp_path / "none")
