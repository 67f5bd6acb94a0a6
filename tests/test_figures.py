"""The figures: every one shows what it claims, and the command fails clearly."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from print_rules import assert_fit_for_print

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # figures is not installed: it runs from a clone

from figures import registry  # noqa: E402
from figures.__main__ import _announced, main  # noqa: E402

# Where a figure's small size is changed to be fast enough for a test.
TINY = {
    "predicted-vs-measured": {
        "d": 12,
        "targets": [6.0, 4.0],
        "depths": [2, 3],
        "edge_fraction": 0.02,
        "records": 200,
    },
    "factorization-trajectory": {
        "d": 16,
        "r": 2,
        "scale": 0.1,
        "learning_rate": 5e-3,
        "steps": 1400,
        "timed_steps": 1400,  # as many, so that both runs are one program
        "repeats": 1,
    },
    "incremental-learning": {
        "d": 16,
        "r": 3,
        "scale": 0.05,
        "learning_rate": 0.01,
        "steps": 1600,
    },
    "alignment": {
        "d": 24,
        "r": 2,
        "observed": [1.0, 0.7],
        "scale": 0.05,
        "learning_rate": 2e-3,
        "steps": [3000, 3000],
    },
    "rank-overestimation": {
        "d": 16,
        "r": 3,
        "ranks": [2, 3, 5],
        "scale": 0.1,
        "learning_rate": 0.01,
        "steps": 1000,
        "repeats": 1,
    },
    "learning-times": {
        "d": 8,
        "targets": [4.0, 2.0],
        "scales": {"2": [0.001, 0.1], "3": [0.01, 0.1]},
        "edge_fractions": {"2": 0.01, "3": 0.05},
    },
}


@pytest.fixture(scope="module")
def computed():
    """Arrays of each figure at its tiny size, computed once."""
    import jax

    known = {}

    def compute(name):
        if name not in known:
            settings = {**registry.describe(name).settings["small"], **TINY[name]}
            with jax.enable_x64(True):
                known[name] = registry.load(name).compute(settings), settings
        return known[name]

    return compute


@pytest.fixture
def saved(computed, tmp_path, monkeypatch):
    """A folder with a saved figure, whose computation from then on is an error."""
    name = "rank-overestimation"
    arrays, settings = computed(name)
    monkeypatch.setattr(
        registry,
        "describe",
        lambda name: registry.Description(name, "", {"small": settings, "paper": {}}),
    )
    module = registry.load(name)
    monkeypatch.setattr(module, "compute", lambda settings: arrays)
    assert main(["make", name, "--out", str(tmp_path)]) == 0

    def refuse(settings):
        raise AssertionError("redrawing computes")

    monkeypatch.setattr(module, "compute", refuse)
    return name, tmp_path


def fails(capsys, arguments, *words):
    """The command fails with code 2 and one sentence that has these words in it."""
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    (told,) = (line for line in err.splitlines() if not line.startswith("figure 1 of "))
    assert told.startswith("figures: error: ")
    for word in words:
        assert word in told


# --- The command -------------------------------------------------------------------------


def test_list_names_every_figure_and_its_sizes(capsys):
    assert main([]) == 0
    out = capsys.readouterr().out
    for name in registry.names():
        figure = registry.describe(name)
        assert f"{name}\n    {figure.summary}\n    small: " in out
        assert set(figure.settings) == set(registry.SIZES)
        assert figure.settings["small"].keys() == figure.settings["paper"].keys()
    assert main(["list"]) == 0
    assert capsys.readouterr().out == out


def test_sizes_are_explained_where_they_are_named(capsys):
    assert main(["list"]) == 0
    listed = capsys.readouterr().out
    with pytest.raises(SystemExit, match="0"):
        main(["make", "--help"])
    helped = " ".join(capsys.readouterr().out.split())
    for text in (" ".join(listed.split()), helped):
        assert "'small' (default): matrices of 40×40 or so" in text
        assert "'paper': the paper's settings" in text


def test_progress_says_which_figure_is_made_and_how_long_the_rest_takes(capsys):
    """Half as fast as estimated: what is left takes twice its estimate."""
    now, estimates = [0.0], {"one": 30.0, "two": 60.0, "three": 20.0}
    for name in _announced(list(estimates), "computing", estimates=estimates, clock=lambda: now[0]):
        now[0] += 2 * estimates[name]
    assert capsys.readouterr().err.splitlines() == [
        "figure 1 of 3: computing one, about 2 min left",
        "figure 2 of 3: computing two, about 3 min left",
        "figure 3 of 3: computing three, about 40 s left",
    ]
    list(_announced(["one"], "drawing", estimates={}))
    assert capsys.readouterr().err == "figure 1 of 1: drawing one\n"


def test_every_figure_has_an_estimate():
    for name in registry.names():
        assert set(registry.describe(name).seconds) == set(registry.SIZES), name
        assert "seconds" not in registry.describe(name).settings["small"]


def test_list_does_not_wait_for_jax():
    code = (
        "import sys; from figures.__main__ import main; main([]); "
        "sys.exit('jax' in sys.modules or 'matplotlib' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


def test_bad_input_is_one_sentence_and_exit_code_2(capsys, tmp_path):
    file = tmp_path / "file"
    file.write_text("not a folder")
    fails(capsys, ["make", "aligment"], "'aligment'", "alignment")
    fails(capsys, ["make"], "--all")
    fails(capsys, ["make", "alignment", "--all"], "--all")
    fails(capsys, ["make", "alignment", "--size", "huge"], "'huge'", "paper")
    fails(capsys, ["make", "alignment", "--dpi", "3"], "--dpi")
    fails(capsys, ["draw"], "'draw'")
    fails(capsys, ["make", "alignment", "--out", str(file / "out")], "cannot be written to")
    fails(capsys, ["make", "alignment", "--out", str(file)], "cannot be written to")


def test_an_unknown_name_ends_the_process_without_traceback():
    done = subprocess.run(
        [sys.executable, "-m", "figures", "make", "nothing"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("figures: error: there is no figure 'nothing'")
    assert "Traceback" not in done.stderr


# --- Saving and redrawing ----------------------------------------------------------------


def test_a_figure_is_saved_with_its_settings_and_nothing_else_is_left(saved):
    name, folder = saved
    suffixes = {path.name.removeprefix(f"{name}.") for path in folder.iterdir()}
    assert suffixes == {"npz", "png", "svg", "index.html"}
    with np.load(folder / f"{name}.npz") as file:
        assert json.loads(str(file["settings"])) == registry.describe(name).settings["small"]


def test_a_page_beside_the_pictures_says_what_they_show_and_how_they_were_made(saved):
    name, folder = saved
    page = (folder / "index.html").read_text("utf-8")
    assert f'<img src="{name}.png"' in page
    assert "d 16, r 3, ranks 2 3 5" in page
    assert page.count("<figure") == 1


def test_pictures_belong_to_the_figure_with_the_longest_name_that_fits():
    from figures.gallery import _owner

    assert _owner("incremental-learning-lines") == "incremental-learning"
    assert _owner("incremental-learning-sensing") == "incremental-learning-sensing"
    assert _owner("incremental-learning-sensing-lines") == "incremental-learning-sensing"
    assert _owner("something-else") == ""


def test_redraw_gives_the_same_bytes_without_computing(saved):
    name, folder = saved
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    for suffix in ("png", "svg"):
        (folder / f"{name}.{suffix}").unlink()
    assert main(["make", name, "--out", str(folder), "--redraw"]) == 0
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_redraw_shows_what_the_arrays_hold(saved):
    name, folder = saved
    before = (folder / f"{name}.png").read_bytes()
    with np.load(folder / f"{name}.npz") as file:
        arrays = dict(file)
    arrays["errors"] = arrays["errors"] * 10
    np.savez(folder / f"{name}.npz", **arrays)
    assert main(["make", name, "--out", str(folder), "--redraw"]) == 0
    assert (folder / f"{name}.png").read_bytes() != before


def test_redraw_refuses_what_it_cannot_draw(saved, capsys, tmp_path):
    name, folder = saved
    redraw = ["make", name, "--redraw", "--out"]
    capsys.readouterr()
    fails(capsys, [*redraw, str(folder), "--size", "paper"], "other settings", "without --redraw")
    fails(capsys, [*redraw, str(tmp_path / "empty")], "no saved arrays", "without --redraw")
    assert not (tmp_path / "empty").exists()

    broken = tmp_path / "broken"
    broken.mkdir()
    path = broken / f"{name}.npz"
    whole = (folder / f"{name}.npz").read_bytes()
    for content in (b"", b"not an archive", whole[: len(whole) // 2]):
        path.write_bytes(content)
        fails(capsys, [*redraw, str(broken)], "does not hold the arrays", "without --redraw")
    np.savez(path, errors=np.zeros(3))
    fails(capsys, [*redraw, str(broken)], "does not hold the arrays")


def test_a_drawing_that_fails_leaves_the_old_one(saved, monkeypatch, capsys):
    name, folder = saved
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    class Broken:
        def savefig(self, file, **options):
            file.write_bytes(b"half")
            raise OSError("no space left")

    monkeypatch.setattr(registry.load(name), "plot", lambda arrays, settings: Broken())
    capsys.readouterr()
    fails(capsys, ["make", name, "--out", str(folder), "--redraw"], "no space left")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


# --- What the figures show ---------------------------------------------------------------


@pytest.mark.parametrize("name", TINY)
def test_every_figure_computes_finite_arrays_and_draws_them(name, computed, tmp_path):
    import matplotlib

    from figures import style

    arrays, settings = computed(name)
    for key, array in arrays.items():
        assert isinstance(array, np.ndarray)
        assert array.dtype.kind in "iu" or array.dtype == np.float64
        assert np.all(np.isfinite(array)), key
    with matplotlib.rc_context(style.RC):
        figure = registry.load(name).plot(arrays, settings)
        assert_fit_for_print(figure)
        figure.savefig(tmp_path / "figure.png", dpi=50)


def test_prediction_meets_measurement_to_first_order_in_the_learning_rate(computed):
    arrays, settings = computed("predicted-vs-measured")
    for depth in settings["depths"]:
        of_depth = {
            key.removeprefix(f"L{depth}_"): value
            for key, value in arrays.items()
            if key.startswith(f"L{depth}_")
        }
        gap = np.abs(of_depth["measured"] - of_depth["predicted"]) / arrays["targets"]
        # Gradient descent lags by O(η) in time, at most `rate` in units of the fastest rise.
        assert gap.max() < 1.5 * settings["edge_fraction"]
        resolution = of_depth["time"][1]
        assert np.all(np.abs(of_depth["measured_fit"] - of_depth["predicted_fit"]) < 2 * resolution)


def test_compressed_is_below_original_at_every_iteration(computed):
    arrays, _ = computed("factorization-trajectory")
    assert np.all(arrays["compressed"] <= arrays["original"])
    middle = arrays["original"] > 10 * arrays["original"][-1]
    assert np.all(arrays["compressed"][1:][middle[1:]] < arrays["original"][1:][middle[1:]])
    np.testing.assert_allclose(arrays["compressed"], arrays["predicted"], atol=0.08)
    assert np.all(arrays["predicted"][-1] < 1e-3)
    for name in ("original", "compressed", "two_factor_exact", "two_factor_over"):
        assert arrays[name][-1] < 1e-2
        assert arrays[f"{name}_seconds"] > 0


def test_components_rise_one_after_another_and_aligned(computed):
    from figures.incremental_learning import distinct

    arrays, settings = computed("incremental-learning")
    r = settings["r"]
    for name in ("original", "compressed"):
        values = arrays[f"{name}_values"]
        risen = values[:, :r] > arrays["targets"] / 2
        assert np.all(risen[-1])
        assert np.all(np.diff(risen.argmax(axis=0)) > 0)
        assert np.all(values[:, r:] <= 1.01 * settings["scale"] ** settings["depth"])
        for side in ("left", "right"):
            assert np.all(arrays[f"{name}_{side}"][risen] > 0.95)
        assert not distinct(arrays, name)[0].any()
        assert distinct(arrays, name)[-1].all()
    for side in ("left", "right"):
        known = arrays[f"compressed_{side}"][distinct(arrays, "compressed")]
        np.testing.assert_allclose(known, 1, atol=1e-9)


def test_the_flat_and_the_moving_drawing_show_the_same_arrays(computed):
    import matplotlib

    from figures import style

    arrays, settings = computed("incremental-learning")
    module = registry.load("incremental-learning")
    with matplotlib.rc_context(style.RC):
        flat = module.variants(arrays, settings)["lines"]
        assert_fit_for_print(flat)
        moving, update, frames = module.animate(arrays, settings)
    drawn = flat.axes[0].get_lines()[-1].get_ydata()
    np.testing.assert_array_equal(drawn, arrays["original_values"][:, settings["r"] - 1])
    update(frames - 1)
    heights = [bar.get_height() for bar in moving.axes[1].containers[1]]
    np.testing.assert_array_equal(heights, arrays["compressed_values"][-1, : settings["r"]])


@pytest.mark.parametrize("observed", [1.0, 0.7])
def test_outer_layers_start_where_the_first_gradient_puts_them_and_align(computed, observed):
    from figures.alignment import select

    arrays = select(computed("alignment")[0], observed)
    for side in ("left", "right"):
        course = arrays[side][1:]
        assert abs(course[0] - arrays[f"{side}_start"]) < 0.01
        assert 0.4 < arrays[f"{side}_start"] < 0.9
        np.testing.assert_allclose(course[-1], 1, atol=1e-3 if observed == 1 else 2e-2)
        compressed = arrays[f"compressed_{side}"][1:]
        assert np.all(compressed[:5] > course[:5] + 0.1)  # the surrogate is closer than a random start
        if observed == 1:
            assert np.all(np.diff(course) > -1e-6)
            np.testing.assert_allclose(compressed, 1, atol=1e-9)
    early = arrays["top"] < 0.01 * arrays["target_top"]
    assert arrays["left"][early][-1] > (0.9 if observed == 1 else 0.8)  # before anything is learned


def test_final_error_of_a_wrong_rank_is_predicted(computed):
    arrays, settings = computed("rank-overestimation")
    ranks = np.array(settings["ranks"])
    exact = ranks == settings["r"]
    assert np.all(arrays["errors"][-1, exact] < 1e-10)
    measured, predicted = arrays["errors"][-1, ~exact], arrays["predicted"][~exact]
    np.testing.assert_allclose(measured, predicted, rtol=1e-2)
    over = ranks > settings["r"]
    # An overestimate takes the same course down to its floor.
    course = arrays["errors"][:, over]
    floor = course[-1]
    expected = np.broadcast_to(arrays["errors"][:, exact], course.shape)
    np.testing.assert_allclose(course, expected, atol=2 * floor.max())


def test_learning_times_are_predicted_and_inverse_to_singular_values(computed):
    arrays, settings = computed("learning-times")
    for depth in settings["scales"]:
        measured = arrays[f"L{depth}_measured"]
        np.testing.assert_allclose(measured, arrays[f"L{depth}_predicted"], rtol=0.05)
        if int(depth) > 2:
            scaled = measured[0] * arrays["targets"]
            law = settings["scales"][depth][0] ** (2 - int(depth)) / (int(depth) - 2)
            np.testing.assert_allclose(scaled, law, rtol=0.1)
