"""Claims on files of ratings: what is read, what is refused by line, and what the command writes."""

import numpy as np
import pytest

from lowdim_jax import ratings
from lowdim_jax._ratings_cli import main


@pytest.mark.parametrize(
    "text",
    ["7\t3\t4\t99\n7\t5\t2\t98\n8\t3\t1\t97\n", "userId,movieId,rating\n7,3,4\n7,5,2\n8,3,1\n",
     "rating,item,user\n4,3,7\n2,5,7\n1,3,8\n"],
)
def test_every_layout_is_read_alike(tmp_path, text):
    path = tmp_path / "ratings"
    path.write_text(text)
    (read,) = ratings.read_ratings(path)
    assert (read.user_names, read.item_names) == (("7", "8"), ("3", "5"))
    np.testing.assert_array_equal([read.users, read.items, read.values], [[0, 0, 1], [0, 1, 0], [4, 2, 1]])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 2 3\n1 3\n", "line 2: expected user, item and rating, found '1 3'"),
        ("1 2 3\n1 3 good\n", "line 2: expected user"),
        ("1 2 3\n1 3 nan\n", "line 2: expected user"),
        ("1 2 3\n\n1 2 4\n", "line 3: user 1 has rated item 2 before, in line 1"),
        ("name,item,rating\n1,2,3\n", "line 1: expected one column named user"),
        ("", "holds no rating"),
    ],
)
def test_malformed_lines_are_named_by_number(tmp_path, capsys, text, message):
    path = tmp_path / "ratings"
    path.write_text(text)
    assert main(["fit", str(path), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not (tmp_path / "out").exists()


def test_the_command_beats_effects_and_writes_what_it_learned(tmp_path, capsys):
    rng = np.random.default_rng(0)
    users, items = np.nonzero(rng.random((60, 40)) < 0.6)
    low = 3 + 0.5 * (rng.standard_normal((60, 2)) @ rng.standard_normal((2, 40)))
    path = tmp_path / "u.data"
    rows = zip(users, items, low[users, items], strict=True)
    path.write_text("".join(f"{u}\t{i}\t{v:.3f}\n" for u, i, v in rows))
    out = tmp_path / "out"
    assert main(["fit", str(path), "--no-baselines", "--depth", "2", "--rank", "10", "--out", str(out)]) == 0
    table = [line.split("│") for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    errors = {row[1].strip(): float(row[2]) for row in table}
    assert errors["compressed network"] < 0.9 * errors["user and item effects"]
    assert len((out / "predictions.csv").read_text().splitlines()) > 100
    with np.load(out / "factors.npz") as factors:
        assert factors["layer_1"].shape == (10, 40)
        assert factors["user_effects"].shape == (60,)
