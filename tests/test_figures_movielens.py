"""The figure of ratings: what its curves show, and on which data it says they were measured."""

import numpy as np
import pytest
from print_rules import assert_fit_for_print

from figures import movielens, registry
from figures.__main__ import main
from lowdim_jax import ratings

TINY = {
    "users": 40,
    "items": 60,
    "ratings": 1400,
    "rank": 4,
    "steps": 200,
    "record_every": 10,
    "sweeps": 8,
}
SETTINGS = {**registry.describe("movielens").settings["small"], **TINY}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with the figure of the stand-in, made by the command."""
    out = tmp_path_factory.mktemp("figure")
    with pytest.MonkeyPatch.context() as patch:
        described = registry.Description("movielens", "", {"small": SETTINGS})
        patch.setattr(registry, "describe", lambda name: described)
        assert main(["make", "movielens", "--out", str(out)]) == 0
        return out, registry.read("movielens", size="small", out=out)


def test_the_compressed_network_is_ahead_of_the_original(made):
    arrays = made[1]
    original, compressed = arrays["original"], arrays["compressed"]
    falling = original > 1.1 * original.min()
    assert falling.sum() > 5
    assert np.all(compressed[falling] <= 1.001 * original[falling])
    assert compressed[-1] < 1.05 * original.min()
    assert compressed[0] > 10 * compressed[-1]
    assert arrays["compressed_seconds"] > 0


def test_alternating_minimization_overfits_without_a_ridge(made):
    arrays = made[1]
    assert arrays["als_0"][-1] > 1.05 * arrays["als_0"].min()
    assert arrays["als_1"][-1] < arrays["als_0"].min()


def test_the_picture_and_the_arrays_say_that_the_data_is_synthetic(made):
    out, arrays = made
    label = "synthetic stand-in: 40 users, 60 items, 1,120 ratings, 280 held out"
    assert str(arrays["data"]) == label
    assert "<!-- synthetic stand-in: 40 users" in (out / "movielens.svg").read_text("utf-8")
    figure = movielens.plot({**arrays, "data": np.array("ml-100k: real")}, SETTINGS)
    assert figure.axes[0].get_title(loc="left") == "ml-100k: real"
    assert_fit_for_print(figure)


def test_the_stand_in_looks_like_ratings(tmp_path):
    movielens.write_stand_in(tmp_path, {**SETTINGS, "users": 150, "items": 250, "ratings": 10_000})
    (read,) = ratings.read_ratings(tmp_path / "u.data")
    assert set(read.values) == {1, 2, 3, 4, 5}
    assert 3 < read.values.mean() < 4
    counts = np.bincount(read.items)
    assert counts.max() > 3 * np.median(counts)  # few items have many ratings
    train, held = ratings.hold_out(read, 0.2, seed=0)
    effects = ratings.model_of(train, ratings.estimate_effects(train))
    assert effects.rmse(held) < 0.9 * held.values.std()


def test_a_folder_of_data_is_read_as_it_is_split(tmp_path):
    (tmp_path / "u.data").write_text("".join(f"{k}\t1\t3\t0\n" for k in range(10)))
    train, test = movielens.read(tmp_path, 0)
    assert (len(train.values), len(test.values)) == (8, 2)
    (tmp_path / "u1.base").write_text("1\t1\t3\t0\n1\t2\t4\t0\n")
    (tmp_path / "u1.test").write_text("2\t2\t5\t0\n")
    train, test = movielens.read(tmp_path, 0)
    np.testing.assert_array_equal(train.values, [3, 4])
    np.testing.assert_array_equal(test.values, [5])


def test_data_goes_to_the_figure_that_reads_it(tmp_path, monkeypatch, capsys):
    seen = []
    monkeypatch.setattr(
        movielens, "compute", lambda settings: seen.append(settings["data"]) or {"x": np.ones(1)}
    )
    monkeypatch.setattr(registry, "draw", lambda name, arrays, **options: [])
    assert main(["make", "movielens", "--data", str(tmp_path), "--out", str(tmp_path / "out")]) == 0
    assert seen == [str(tmp_path)]
    capsys.readouterr()
    for arguments, message in (
        (["alignment", "--data", str(tmp_path)], "--data is for the figures"),
        (["movielens", "--data", str(tmp_path / "none")], "none' is not a folder"),
        (["movielens", "--data", str(tmp_path), "--redraw"], "--redraw exclude each other"),
    ):
        assert main(["make", *arguments, "--out", str(tmp_path / "out")]) == 2
        assert message in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"holds neither u1\.base nor u\.data"):
        movielens.read(tmp_path / "out", 0)
