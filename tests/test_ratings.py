"""Claims on files of ratings: what is read, what is refused by line, and what the command writes."""

import csv
import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lowdim_jax import ratings
from lowdim_jax.ratings import columnar, comparison, factors
from lowdim_jax.ratings import command as program
from lowdim_jax.ratings.command import main

LAYOUTS = {
    "u.data": "7\t3\t4\t99\n7\t5\t2\t98\n8\t3\t1\t97\n",
    "blanks": "7 3 4\n7  5  2\n\n8 3 1",
    "MovieLens-1M": "7::3::4::99\n7::5::2::98\n8::3::1::97\n",
    "CSV": "7,3,4\n7,5,2\n8,3,1\n",
    "CSV with header": "userId,movieId,rating\n7,3,4\n7,5,2\n8,3,1\n",
    "columns in another order": "rating,Item ID,year,USER\n4,3,1999,7\n2,5,1999,7\n1,3,1999,8\n",
    "quotes": '"user","item","rating"\n"7","3","4"\n"7","5","2"\n"8","3","1"\n',
    "header and tabs": "user\titem\trating\n7\t3\t4\n7\t5\t2\n8\t3\t1\n",
    "from Windows": "\ufeffuser,item,rating\r\n7,3,4\r\n7,5,2\r\n8,3,1\r\n",
}


def write(folder, text, name="ratings"):
    path = folder / name
    path.write_text(text, "utf-8", newline="")
    return path


def synthetic(folder, *, size=(60, 40), name="u.data"):
    """Ratings of rank 2 with noise, as a file."""
    rng = np.random.default_rng(0)
    users, items = np.nonzero(rng.random(size) < 0.6)
    low = 3 + 0.5 * (rng.standard_normal((size[0], 2)) @ rng.standard_normal((2, size[1])))
    low += 0.3 * rng.standard_normal(size)
    rows = zip(users, items, low[users, items], strict=True)
    return write(folder, "".join(f"{u}\t{i}\t{v:.3f}\n" for u, i, v in rows), name)


def refused(capsys, arguments, *words, out=""):
    """The command ends with code 2 and one sentence that has these words in it."""
    assert main(list(map(str, arguments))) == 2
    printed, error = capsys.readouterr()
    assert printed == out
    assert error.startswith("lowdim-ratings: error: ")
    assert error.count("\n") == 1
    for word in words:
        assert word in error


# --- Reading -----------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_read_alike(tmp_path, layout):
    (read,) = ratings.read_ratings(write(tmp_path, LAYOUTS[layout]))
    assert (read.user_names, read.item_names) == (("7", "8"), ("3", "5"))
    np.testing.assert_array_equal([read.users, read.items, read.values], [[0, 0, 1], [0, 1, 0], [4, 2, 1]])


def test_names_may_be_any_text(tmp_path):
    comma = write(tmp_path, 'user,item,rating\nZoë,"Amélie, 2001",4.5\nZoë,八\u2028月,-1e0\n', "a")
    tab = write(tmp_path, "Zoë\tThe Thin Man\t3\n", "b")
    first, second = ratings.read_ratings(comma, tab)
    assert first.user_names == second.user_names == ("Zoë",)
    assert first.item_names == second.item_names == ("Amélie, 2001", "八\u2028月", "The Thin Man")
    assert first.shape == second.shape == (1, 3)
    np.testing.assert_array_equal(first.values, [4.5, -1])
    np.testing.assert_array_equal(second.items, [2])


CASES = Path(__file__).with_name("cases")


@pytest.mark.parametrize("name", ["r01_leading_blank.csv", "r05_semicolon_utf8.csv", "r17_gz.csv.gz"])
def test_layouts_that_others_had_trouble_with_are_read(name):
    """CsvHelper #2170, lightfm #199: 60 ratings each, the same ones but for the names of items."""
    (read,) = ratings.read_ratings(CASES / name)
    (plain,) = ratings.read_ratings(CASES / "r01_leading_blank.csv")
    for part in ("users", "items", "values"):
        np.testing.assert_array_equal(getattr(read, part), getattr(plain, part))
    assert read.user_names == plain.user_names


@pytest.mark.parametrize(
    ("content", "names"),
    [
        ('"a\tb"\t"x"\t3\n', ("a\tb", "x")),
        ("# user item rating\n\n% by hand\na x 3\n", ("a", "x")),
        ("#1,x,3\n", ("#1", "x")),
        ("Zoë,x,3\n".encode("latin-1"), ("Zoë", "x")),
        ("\ufeffZoë;x;3\n".encode("utf-16-le"), ("Zoë", "x")),
        ("Book-Rating,user_id,ISBN\n3,a,x\n", ("a", "x")),
        ("reviewerID,reviewerName,asin,overall\na,Ann,x,3\n", ("a", "x")),
        ("timestamp;score;Customer No;Product ID\n7;3;a;x\n", ("a", "x")),
        ("a x 3 2001-01-01 10:00:00\n", ("a", "x")),
    ],
)
def test_spellings_of_headers_encodings_and_comments(tmp_path, content, names):
    path = tmp_path / "ratings"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    (read,) = ratings.read_ratings(path)
    assert (read.user_names + read.item_names, list(read.values)) == (names, [3])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (CASES / "r06_jester_wide.csv",  # cornac #398
         "line 1 was read as 101 columns separated by commas, no header"),
        ("u1,5,3,NA,4,5\n", "was read as 6 columns separated by commas, no header; but more than 4 columns"),
        ("1.5;2.5;3;1\n", "user '1.5' and item '2.5' are no names"),
        ("a,x,978300000\nb,x,978300001\n", "every rating is a whole number from 1e+08 on, as times are"),
        ("user,i1,i2,i3\na,1,2,3\n",
         "one column named item, found 'user,i1,i2,i3': 4 columns separated by commas (names taken for"),
        ("1,2,3\n1,3,4,5\n", "line 2 has 4 fields, expected 3 as in the first line"),
        ("1 2 1_0\n", "expected user, item and rating"),
        ("1,2,3\n" + "x" * 10**6 + ",2,3\n", "expected user, item and rating, found 'xxx"),
        ("1 2 3\n" + "x" * 10**6 + " 2 3\n", "a name of 1,000,000 characters, expected at most 500"),
        ("1,2,3\n1," + "y" * 200_000 + ",3\n", "line 2: expected user, item and rating, found '1,yyy"),
        (b"\x1f\x8bnothing", "cannot be read: "),
        (b"1,2\0,3\n", "it is no text, which byte 4 shows"),
        (None, "it is a pipe or a device, expected a regular file"),
    ],
)  # fmt: skip
def test_what_does_not_look_like_ratings_is_refused_with_what_was_understood(tmp_path, content, message):
    path = content if isinstance(content, Path) else tmp_path / "ratings"
    if content is None:
        os.mkfifo(path)
    elif path is not content:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=re.escape(message)) as refusal:
        ratings.read_ratings(path)
    assert len(str(refusal.value)) < 450


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 2 3\n1 3\n", "line 2: expected user, item and rating, found '1 3'"),
        ("1 2 3\n1 3 good\n", "line 2: expected user"),
        ("1 2 3\n1 3 nan\n", "line 2: expected user"),
        ("1 2 3\n1 3 -1e300\n", "line 2: expected user"),
        ("1,2,3\n1,,3\n", "line 2: expected user, item and rating, found '1,,3'"),
        ("1::2::3\n1 3 4\n", "line 2: expected user"),
        ("user,item,rating\n1,2,3\n1,3\n", "line 3: expected user"),
        ("1 2 3\r\n\r\n1 2 4\r\n", "line 3: user 1 has rated item 2 before, in line 1"),
        ("1,2,3\n4,5,6\n7,8,9\n4,5,1\n", "line 4: user 4 has rated item 5 before, in line 2: say which"),
        ("1 3\n", "line 1: expected user, item and rating, or a header with one column named user"),
        ("name,item,rating\n1,2,3\n", "line 1: expected user, item and rating, or a header with one column"),
        ("user,item,movie,rating\n1,2,3,4\n", "one column named item, found 'user,item,movie,rating'"),
        ("user,item,rating\n", "holds no rating"),
        ("", "holds no rating"),
    ],
)
def test_malformed_lines_are_named_by_number(tmp_path, capsys, text, message):
    path = write(tmp_path, text)
    refused(capsys, ["evaluate", path, "--out", tmp_path / "out"], message, repr(str(path)))
    assert not (tmp_path / "out").exists()


def test_files_that_cannot_be_read_are_named(tmp_path, capsys):
    refused(capsys, ["evaluate", tmp_path / "none"], "'", "none' cannot be read: No such file")
    refused(capsys, ["evaluate", tmp_path], "cannot be read: Is a directory")
    (tmp_path / "binary").write_bytes(b"1 2 3\n\x81\x8d 2 3\n")
    message = "binary' cannot be read: it is no text, which byte 7 shows"
    refused(capsys, ["evaluate", tmp_path / "binary"], message)


def test_whole_blocks_are_read_as_lines_are(tmp_path, monkeypatch):
    """Odd lines amid plain ones, in blocks of a few lines each, beside the reader of lines."""
    rng = np.random.default_rng(0)
    plain, odd = ["7", "007", "1e2", "Zoë", "a" * 9, '"y"', "x y ", "八月"], ['"a, b"', "b" * 70, ' "x"']
    names = [*np.repeat(plain, 9), *odd]
    rows = [f"{rng.choice(names)},{k},{rng.integers(9) / 2:g},{k}" for k in range(400)]
    rows[50] = rows[50].rpartition(",")[0]
    text = "who,what,rating,when\r\n" + "\n".join([*rows[:150], "", *rows[150:]])
    path = write(tmp_path, text)
    monkeypatch.setattr(columnar, "BLOCK", 200)
    took = []
    fast = columnar._fast
    monkeypatch.setattr(columnar, "_fast", lambda *given: took.append(fast(*given)) or took[-1])
    (read,) = ratings.read_ratings(path, columns=("who", "what", "rating"))
    assert 5 < sum(part is not None for part in took) < len(took) - 5
    monkeypatch.setattr(columnar, "_fast", lambda *given: None)
    (plain,) = ratings.read_ratings(path, columns=(1, 2, 3))
    assert (read.user_names, read.item_names) == (plain.user_names, plain.item_names)
    for part in ("users", "items", "values"):
        np.testing.assert_array_equal(getattr(read, part), getattr(plain, part))


def test_columns_are_said_by_name_or_number(tmp_path, capsys):
    path = write(tmp_path, "when,what,who,how\n9,x,a,4\n8,y,b,2\n")
    for columns in (("who", "what", "how"), (3, 2, 4)):
        (read,) = ratings.read_ratings(path, columns=columns)
        assert (read.user_names, read.item_names, list(read.values)) == (("a", "b"), ("x", "y"), [4, 2])
    for columns, *words in (
        ("who,what", "'who,what', expected 3 separated by commas: user, item and rating"),
        ("who,what,much", "expected a header with one column named 'much', found 'when, what, who, how'"),
        ("3,2,5", "columns='3,2,5', expected numbers from 1 to 4"),
    ):
        refused(capsys, ["evaluate", path, "--columns", columns], *words)


@pytest.mark.parametrize(("duplicates", "kept"), [("first", [5, 3]), ("last", [2, 3]), ("mean", [10 / 3, 3])])
def test_of_several_ratings_of_a_pair_the_one_asked_for_counts(tmp_path, duplicates, kept):
    path = write(tmp_path, "b x 5\na x 3\nb x 3\nb x 2\n")
    (read,) = ratings.read_ratings(path, duplicates=duplicates)
    np.testing.assert_allclose(read.values, kept)
    assert read.user_names == ("b", "a")
    with pytest.raises(ValueError, match="duplicates='all', expected one of error, first, last, mean"):
        ratings.read_ratings(path, duplicates="all")


# --- The command -------------------------------------------------------------------------


def test_options_out_of_range_are_named(tmp_path, capsys):
    path = synthetic(tmp_path)
    refused(capsys, [], "a command is missing")
    refused(capsys, ["fit"], "FILE")
    refused(capsys, ["fit", path, "--depth", 1], "--depth", "1", "2, 3")
    refused(capsys, ["fit", path, "--rank", 0], "--rank", "'0' is not a positive integer")
    refused(capsys, ["fit", path, "--seed", -1], "--seed", "'-1' is not an integer of 0 or more")
    refused(capsys, ["fit", path, "--model", tmp_path], "--model", "is a folder, expected a file to write")
    refused(capsys, ["evaluate", path, "--out", path], "--out", "cannot be written to")
    refused(capsys, ["recommend", "--top", "0"], "--top", "'0' is not a positive integer")
    refused(capsys, ["predict", "--user", "1"], "expected FILE, or both --user and --item")
    refused(capsys, ["predict", path, "--user", "1"], "expected one of the two")
    refused(capsys, ["predict", path, "--model", tmp_path / "none"], "none' cannot be read: No such file")


def test_what_nothing_can_be_learned_from_is_refused(tmp_path, capsys):
    refused(capsys, ["evaluate", write(tmp_path, "1 2 3\n")], "number of ratings is 1", "too few")
    constant = write(tmp_path, "".join(f"{k} {k % 4} 3\n" for k in range(40)))
    refused(
        capsys,
        ["evaluate", constant],
        "every rating to learn from is 3",
        out="36 ratings from 3 to 3, of 40 users and 4 items, and 4 to test on\n",
    )
    train = synthetic(tmp_path)
    test = write(tmp_path, f"{train.read_text().splitlines()[5]}\n0\tnew\t3\n", "test")
    refused(capsys, ["evaluate", train, "--test", test], "1 of the 2 ratings in", "learned from")


def test_an_interrupted_fit_writes_nothing(tmp_path, capsys, monkeypatch):
    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(program, "fit_ratings", interrupt)
    out = tmp_path / "out"
    assert main(["fit", str(synthetic(tmp_path)), "--model", str(out / "model.npz")]) == 130
    assert capsys.readouterr().err == "lowdim-ratings: interrupted\n"
    assert list(out.iterdir()) == []


def test_a_full_disk_leaves_neither_of_two_files(tmp_path, monkeypatch, capsys):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(program.csv, "writer", full)
    out = tmp_path / "out"
    command = ["evaluate", str(synthetic(tmp_path)), "--method", "factors", "--no-baselines"]
    assert main([*command, "--out", str(out)]) == 2
    assert "No space left on device" in capsys.readouterr().err
    assert list(out.iterdir()) == []


def test_evaluating_beats_effects_and_writes_what_predicts_alike(tmp_path, capsys, monkeypatch):
    baselines = {
        name: baseline._replace(grid=baseline.grid[:1]) for name, baseline in comparison.BASELINES.items()
    }
    monkeypatch.setattr(comparison, "BASELINES", baselines)
    monkeypatch.setattr(comparison, "BEYOND", 0)
    out = tmp_path / "out"
    command = ["evaluate", str(synthetic(tmp_path)), "--depth", "2", "--rank", "10", "--out", str(out)]
    assert main([*command, "--method", "network"]) == 0
    printed, error = capsys.readouterr()
    assert error == ""  # no progress bar where nobody watches
    table = [line.split("│") for line in printed.splitlines() if line.startswith("│")]
    errors = {row[1].strip(): float(row[2]) for row in table if row[2].strip()}
    assert len(errors) == 2 + len(baselines)
    assert errors["this model"] < 0.9 * errors["user and item effects"]

    assert {path.name for path in out.iterdir()} == {"model.npz", "predictions.csv"}
    with (out / "predictions.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) > 100
    with np.load(out / "model.npz") as factors:
        assert factors["layer_1"].shape == (10, 40)
        users, items = list(factors["users"]), list(factors["items"])
        matrix = factors["mean"] + factors["user_effects"][:, None] + factors["item_effects"]
        matrix = np.clip(matrix + factors["layer_2"] @ factors["layer_1"], *factors["scale"])
    predicted = np.array([float(row["predicted"]) for row in rows])
    again = np.array([matrix[users.index(row["user"]), items.index(row["item"])] for row in rows])
    np.testing.assert_allclose(predicted, again, atol=6e-5)
    given = np.array([float(row["rating"]) for row in rows])
    rmse = np.sqrt(np.mean((predicted - given) ** 2))
    assert abs(rmse - errors["this model"]) < 2e-4


def test_a_model_predicts_recommends_and_flags_what_it_has_not_seen(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train = synthetic(tmp_path, name="train")
    assert main(["fit", "train", "--method", "factors"]) == 0
    assert capsys.readouterr().out.endswith("ratings-model.npz\n")
    model = ratings.RatingModel.load("ratings-model.npz")
    seen = {tuple(line.split("\t")[:2]) for line in train.read_text().splitlines()}

    write(tmp_path, "item,user\n3,0\n3,nobody\nnothing,0\nnothing,nobody\n", "pairs")
    assert main(["predict", "pairs"]) == 0
    printed, error = capsys.readouterr()
    rows = list(csv.DictReader(printed.splitlines()))
    assert [row["unseen"] for row in rows] == ["", "user", "item", "both"]
    assert "2 of 4 predictions are of a user without ratings, 2 of an item without" in error
    numbers = model.numbers(["0"], ["3"])
    assert rows[0]["predicted"] == f"{model.predict(*numbers)[0]:.4f}"
    assert rows[3]["predicted"] == f"{model.effects.mean:.4f}"

    assert main(["recommend", "0", "nobody", "--top", "4", "--out", "best.csv"]) == 0
    assert "1 of 2 users have no ratings" in capsys.readouterr().err
    with open("best.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["user"], row["place"], row["unseen"]) for row in rows] == [
        (user, str(place), flag) for user, flag in (("0", ""), ("nobody", "user")) for place in range(1, 5)
    ]
    unrated = [item for item in model.item_names if ("0", item) not in seen]
    best = sorted(unrated, key=lambda item: -model.predict(*model.numbers(["0"], [item]))[0])
    assert {row["item"] for row in rows[:4]} <= set(unrated)
    highest = model.predict(*model.numbers(["0"], best[:1]))[0]
    assert float(rows[0]["predicted"]) == pytest.approx(highest, abs=1e-4)

    assert main(["evaluate", "train", "--model", "ratings-model.npz"]) == 0
    printed, error = capsys.readouterr()
    assert f"{len(seen):,} of the {len(seen):,} ratings are of pairs that the model has learned from" in error
    assert float(printed.rpartition("RMSE ")[2]) < 0.6


@pytest.mark.parametrize("damage", ["cut", "pickle", "other", "version", "shape", "nan", "text"])
def test_files_that_are_no_whole_model_are_refused_in_one_sentence(tmp_path, capsys, damage):
    (read,) = ratings.read_ratings(write(tmp_path, "a x 5\nb x 1\nb y 2\n"))
    path = tmp_path / "model.npz"
    weights = np.ones((1, 2)), np.zeros((2, 1))
    ratings.model_of(read, ratings.estimate_effects(read), weights).save(path)
    assert ratings.RatingModel.load(path).rmse(read) < 2
    with np.load(path) as file:
        arrays = dict(file)
    changes = {
        "pickle": {"mean": np.array([object()])}, "version": {"version": np.array(2)},
        "shape": {"layer_2": np.zeros((3, 1))}, "nan": {"user_effects": np.array([np.nan, 0])},
        "other": {"format": np.array("something")},
    }  # fmt: skip
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    elif damage == "text":
        path.write_text("a x 5\n")
    else:
        np.savez(path, **{**arrays, **changes[damage]})
    refused(capsys, ["recommend", "a", "--model", path], f"model {str(path)!r} cannot be read: ")


# --- What is fitted ----------------------------------------------------------------------


def long_tailed(seed=0, size=(150, 120), ratings_=6000):
    """Ratings of rank 3 where users differ in how much they rate, and whom they rate tells what they like."""
    rng = np.random.default_rng(seed)
    left, right = rng.standard_normal((size[0], 3)), rng.standard_normal((size[1], 3))
    likes = left @ right.T / 3**0.5
    popularity = 0.7 * likes + rng.standard_normal(size[0])[:, None] + rng.standard_normal(size[1])
    pairs = np.argsort((popularity + rng.gumbel(size=size)).ravel())[-ratings_:]
    users, items = np.divmod(rng.permutation(pairs), size[1])
    values = 3 + 0.7 * likes[users, items] + 0.4 * rng.standard_normal(size[1])[items]
    values += 0.7 * rng.standard_normal(ratings_)
    return ratings.Ratings(users, items, values, *(tuple(map(str, range(side))) for side in size))


def test_factors_predict_better_than_effects_and_than_ridge_regression_in_turns():
    train, test = ratings.hold_out(long_tailed(), 0.2, seed=1)
    effects = comparison.effects_alone(train)
    model, chosen = ratings.fit_ratings(train, methods=("factors",))
    solve = comparison.BASELINES["alternating minimization"].solve
    problem = ratings.residual_problem(train, effects.effects)
    solutions = [solve(problem, ridge) for ridge in (4.0, 8.0, 16.0)]
    alternating = [ratings.model_of(train, effects.effects, weights).rmse(test) for weights in solutions]
    assert chosen.method == "factors"
    assert model.rmse(test) < min(alternating) < effects.rmse(test)


def test_a_scale_of_any_size_gives_the_same_predictions():
    data = long_tailed(size=(30, 20), ratings_=300)
    one, chosen = ratings.fit_ratings(data, methods=("factors",))
    for unit in (1e-30, 1e13):
        other, again = ratings.fit_ratings(replace(data, values=unit * data.values), methods=("factors",))
        np.testing.assert_allclose(other.predict(data.users, data.items) / unit,
                                   one.predict(data.users, data.items), rtol=1e-2)
        assert again.method == chosen.method


def test_posteriors_are_those_of_bayesian_regression_where_the_other_side_is_known():
    """With certain items, a user's posterior is that of a linear regression with a Gaussian prior."""
    data = long_tailed(size=(6, 40), ratings_=150)
    found = ratings.start_factors(data, rank=2)
    rng = np.random.default_rng(2)
    found.items.mean[:] = rng.standard_normal((40, 3))
    found.items.covariance[:] = 0
    expected = factors._posteriors(found.users, found.items, 1.7)
    missed = 0.0
    for user in range(6):
        of = data.users == user
        design = np.column_stack((np.ones(of.sum()), found.items.mean[data.items[of], 1:]))
        left = (data.values[of] - found.mean) / found.unit - found.items.mean[data.items[of], 0]
        precision = 1.7 * design.T @ design + np.diag([5.0, 3, 3])
        mean = np.linalg.solve(precision, 1.7 * design.T @ left)
        np.testing.assert_allclose(found.users.mean[user], mean, rtol=1e-4, atol=1e-5)
        covariance = np.linalg.inv(precision)
        np.testing.assert_allclose(found.users.covariance[user], covariance, rtol=1e-3, atol=1e-6)
        missed += np.sum((left - design @ mean) ** 2) + np.trace(design.T @ design @ covariance)
    np.testing.assert_allclose(expected, missed, rtol=1e-4)


def test_where_there_is_nothing_beyond_effects_they_are_chosen():
    """Noise around effects: whatever else is tried fits noise, and is dropped on the held-out ratings."""
    data = long_tailed(ratings_=3000)
    rng = np.random.default_rng(3)
    noise = 3 + rng.standard_normal(120)[data.items] + rng.standard_normal(len(data.values))
    train, test = ratings.hold_out(replace(data, values=noise), 0.3, seed=0)
    model, chosen = ratings.fit_ratings(train, depths=(2,), widths=(4,))
    assert chosen.errors[chosen.method] <= 1.001 * min(chosen.errors.values())
    assert model.rmse(test) <= 1.01 * comparison.effects_alone(train).rmse(test)


# --- Effects -----------------------------------------------------------------------------


def test_effects_are_shrunken_means_and_predict_what_is_unknown_by_the_rest(tmp_path):
    train, test = ratings.read_ratings(
        write(tmp_path, "a x 5\nb x 5\na y 1\nb y 1\n", "train"), write(tmp_path, "c x 5\na z 3\n", "test")
    )
    effects = ratings.estimate_effects(train)
    shrunk = 2 * 2 / (2 + ratings.model.RIDGE)  # two ratings, each 2 above the mean
    np.testing.assert_allclose(effects.items, [shrunk, -shrunk, 0])
    np.testing.assert_allclose(effects.users, 0, atol=1e-12)
    np.testing.assert_allclose(effects.predict(test.users, test.items), [3 + shrunk, 3])
    explained = ratings.estimate_effects(train, minus=train.values - 3)
    np.testing.assert_allclose([*explained.items, *explained.users, explained.mean], [0] * 6 + [3])


def test_predictions_stay_on_the_scale_of_the_ratings(tmp_path):
    (train,) = ratings.read_ratings(write(tmp_path, "a x 5\nb x 1\n"))
    weights = np.array([[10.0]]), np.array([[1.0], [-1.0]])
    model = ratings.model_of(train, ratings.estimate_effects(train), weights)
    np.testing.assert_array_equal(model.predict(np.array([0, 1]), np.array([0, 0])), [5, 1])
    assert model.rmse(train) == 0


def test_a_depth_without_a_start_is_refused(tmp_path):
    (train,) = ratings.read_ratings(synthetic(tmp_path))
    with pytest.raises(ValueError, match="depths has 4, expected some of 2, 3"):
        ratings.fit_ratings(train, depths=(2, 4))
