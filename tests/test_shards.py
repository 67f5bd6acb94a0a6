"""Entries in files by ranges of rows."""

from pathlib import Path

import numpy as np
import pytest

from lowdim_jax._command import BAD_INPUT
from lowdim_jax.distributed import command
from lowdim_jax.distributed.shards import (
    even_bounds,
    fingerprint,
    open_shards,
    split,
    synthesize,
    write_shards,
)

CASES = Path(__file__).with_name("cases")
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


def write_entries(folder, **changed):
    entries = {"rows": np.array([0, 3, 1]), "columns": np.array([1, 0, 2]), "values": np.ones(3), **changed}
    np.savez(folder / "entries.npz", **entries)
    return ["shard", str(folder / "entries.npz"), str(folder / "data"), "--shards", "2"]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (CASES / "d02_negative.npz", "rows has -1 at position 0"),  # implicit #207
        (CASES / "d04_lengths.npz", "have shapes (146,), (145,) and (146,)"),  # scipy #20200
        ({"rows": np.array([0, 4_000_000_000, 1])}, "rows has 4000000000 at position 1, expected from 0 to"),
        ({"rows": np.array([0.0, 3.0, 1.0])}, "rows has type float64, expected integers"),
        ({"columns": np.array(["a", "b", "c"])}, "columns has type <U1, expected integers"),
        ({"values": np.array([1, np.nan, 2])}, "values has 1 entries that are NaN or infinite"),
        ({"rows": np.array([1, 3, 1]), "columns": np.array([2, 0, 2])}, "more than once, the first in row 1"),
        ({"values": np.array([1, None, 2], object)}, "has no arrays rows, columns and values: Object arrays"),
    ],
)
def test_entries_that_are_wrong_are_refused_and_nothing_is_written(tmp_path, capsys, changed, message):
    command_line = write_entries(tmp_path, **(changed if isinstance(changed, dict) else np.load(changed)))
    assert command.main(command_line) == BAD_INPUT
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "data").exists()


def test_half_precision_is_converted_exactly(tmp_path):
    assert command.main(write_entries(tmp_path, **np.load(CASES / "d12_f16.npz"))) == 0
    shards = open_shards(tmp_path / "data")
    read, given = shards.read(range(shards.shape[0])), np.load(CASES / "d12_f16.npz")
    assert read[2].dtype == np.float32
    order = np.lexsort((given["columns"], given["rows"]))
    np.testing.assert_array_equal(read[2], given["values"][order].astype(np.float32))


def test_a_fingerprint_is_that_of_the_entries_however_they_are_cut(shards, tmp_path):
    whole = shards.read(range(50))
    cut = write_shards(tmp_path / "cut", split(whole, (0, 7, 50)), shape=SHAPE, bounds=(0, 7, 50))
    assert cut.data == shards.data == open_shards(shards.folder).data
    assert fingerprint(tuple(part[::-1] for part in whole)) == fingerprint(whole)
    assert fingerprint((whole[0], whole[1], whole[2][::-1])) != fingerprint(whole)
    for k, change in ((0, 1), (1, 1), (2, 1e-12)):
        changed = [part.copy() for part in whole]
        changed[k][17] += change
        assert fingerprint(tuple(changed)) != fingerprint(whole)


def test_a_file_that_was_changed_is_refused(shards):
    rows, columns, values = shards.read(range(12))
    np.savez(shards.file(0), rows=rows, columns=columns, values=2 * values)
    with pytest.raises(ValueError, match=r"00000\.npz' is not what shards\.json was written for"):
        shards.read(range(12))


def test_a_set_that_cannot_be_written_leaves_the_one_before(shards, monkeypatch):
    before = {path.name: path.read_bytes() for path in shards.folder.iterdir()}

    def parts():
        yield from synthesize(SHAPE, BOUNDS[:3], rank=2, observations=100)
        raise OSError(28, "No space left on device")

    with pytest.raises(ValueError, match=r"data' cannot be written to: No space left on device"):
        write_shards(shards.folder, parts(), shape=SHAPE, bounds=BOUNDS)
    assert {path.name: path.read_bytes() for path in shards.folder.iterdir()} == before


@pytest.mark.parametrize(
    "index", ["{}", "[", "[" * 10**5, '{"shape": [2, 2], "bounds": [0, 1]}', "null", "\0"]
)
def test_an_index_that_is_none_is_refused(shards, index):
    (shards.folder / "shards.json").write_text(index)
    with pytest.raises(ValueError, match="is not a folder of shards"):
        open_shards(shards.folder)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["shard", "missing.npz", "DATA"], "'missing.npz' has no arrays rows, columns and values"),
        (
            ["synthesize", "/dev/null/data", *SIZES],
            "'/dev/null/data' cannot be written to: Not a directory",
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
    assert command.main(arguments) == BAD_INPUT
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1


def test_bounds_cover_all_rows_evenly():
    bounds = even_bounds(100, 7)
    assert (bounds[0], bounds[-1]) == (0, 100)
    assert set(np.diff(bounds)) == {14, 15}
