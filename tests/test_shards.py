"""Entries in files by ranges of rows."""

import numpy as np
import pytest

from lowdim_jax.distributed import command
from lowdim_jax.distributed.shards import even_bounds, open_shards, synthesize, write_shards

SHAPE, BOUNDS = (50, 20), (0, 12, 25, 37, 50)
SIZES = ["--rows", "9", "--columns", "6", "--rank", "2", "--observations", "30"]


@pytest.fixture
def shards(tmp_path):
    parts = synthesize(SHAPE, BOUNDS, rank=2, observations=400, seed=3)
    return write_shards(tmp_path / "data", parts, shape=SHAPE, bounds=BOUNDS)


def test_a_range_of_rows_reads_its_own_files_only(shards):
    whole = shards.read(range(50))
    for other in (0, 3):
        shards.file(other).unlink()
    own = shards.read(range(14, 30))
    inside = (whole[0] >= 14) & (whole[0] < 30)
    for part, expected in zip(own, whole, strict=True):
        np.testing.assert_array_equal(part, expected[inside])
    with pytest.raises(ValueError, match=r"00000\.npz' has no arrays rows, columns and values"):
        shards.read(range(10, 30))


def test_rows_without_a_file_have_no_entries(shards):
    assert [len(part) for part in shards.read(range(50, 50))] == [0, 0, 0]


def test_a_synthetic_range_does_not_depend_on_the_others(shards):
    *_, last = synthesize(SHAPE, BOUNDS, rank=2, observations=400, seed=3)
    assert last[0].min() >= 37
    inside = [part[shards.read(range(50))[0] >= 37] for part in shards.read(range(50))]
    for part, expected in zip(last, inside, strict=True):
        np.testing.assert_array_equal(part, expected)


def test_synthetic_entries_are_those_of_one_matrix_of_the_rank_asked_for(shards):
    rows, columns, values = next(synthesize((40, 30), (0, 40), rank=2, observations=100_000))
    dense = np.zeros((40, 30))
    dense[rows, columns] = values
    assert len(values) == 40 * 30
    assert np.linalg.matrix_rank(dense) == 2
    pairs = shards.read(range(50))[0] * 20 + shards.read(range(50))[1]
    assert len(np.unique(pairs)) == len(pairs)


def test_the_commands_write_what_training_reads(tmp_path, capsys):
    rows, columns, values = next(synthesize((9, 6), (0, 9), rank=2, observations=500))
    np.savez(tmp_path / "entries.npz", rows=rows, columns=columns, values=values)
    assert command.main(["shard", f"{tmp_path}/entries.npz", f"{tmp_path}/data", "--shards", "4"]) == 0
    shards = open_shards(tmp_path / "data")
    assert shards.shape == (9, 6)
    assert shards.bounds == (0, 2, 4, 6, 9)
    for part, expected in zip(shards.read(range(9)), (rows, columns, values), strict=True):
        np.testing.assert_array_equal(part, expected)
    assert command.main(["synthesize", f"{tmp_path}/more", *SIZES, "--shards", "3"]) == 0
    assert open_shards(tmp_path / "more").bounds == (0, 3, 6, 9)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["shard", "missing.npz", "DATA"], "'missing.npz' has no arrays rows, columns and values"),
        (
            ["synthesize", "/dev/null/data", *SIZES],
            "Not a directory: '/dev/null/data'",
        ),
        (["train", "missing", "RUN", "--rank", "2"], "'missing' is not a folder of shards"),
        (["train", "DATA", "RUN", "--rank", "2", "--process-id", "0"], "are expected together"),
        (
            ["train", "DATA", "RUN", "--rank", "2", "--coordinator", "localhost:1", "--num-processes", "2",
             "--process-id", "2"],
            "process-id=2 of 2 processes",
        ),
        (["train", "DATA", "RUN", "--rank", "2", "--processes", "0"], "processes=0, expected at least one"),
        (
            ["train", "DATA", "RUN", "--rank", "2", "--processes", "2", "--process-id", "0"],
            "leave out coordinator, num-processes and process-id",
        ),
        (
            ["synthesize", "DATA", "--rows", "3", "--columns", "6", "--rank", "2", "--observations", "9"],
            "shards=8, expected from 1 to 3",
        ),
    ],
)
def test_bad_input_is_one_sentence(shards, capsys, arguments, message):
    arguments = [str(shards.folder) if argument == "DATA" else argument for argument in arguments]
    assert command.main(arguments) == command.BAD_INPUT
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1


def test_bounds_cover_all_rows_evenly():
    bounds = even_bounds(100, 7)
    assert (bounds[0], bounds[-1]) == (0, 100)
    assert set(np.diff(bounds)) == {14, 15}
