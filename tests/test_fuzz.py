"""One fuzzer a way in: what comes out is right, or one sentence; no traceback, nothing half-written.

A hundred examples each, always the same ones; `pytest -m fuzz` takes a thousand new ones each.
"""

import json
import shutil
import tempfile
from pathlib import Path

import fuzzing
import numpy as np
import pytest
import scipy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import lowdim_jax as ld
from figures.__main__ import main as figures
from lowdim_jax.distributed.command import main as distributed
from lowdim_jax.distributed.shards import even_bounds, open_shards, synthesize, write_shards
from lowdim_jax.ratings import read_ratings
from lowdim_jax.ratings.command import main as ratings
from theory_checks import cli, runner, selection
from theory_checks.compare import read_report
from theory_checks.target_file import load_matrix, prepare

FEW = settings(
    max_examples=100, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)
MANY = settings(FEW, max_examples=1000, derandomize=False)


@pytest.fixture(params=[FEW, pytest.param(MANY, marks=pytest.mark.fuzz)], ids=["few", "many"])
def run(request):
    """Run a function of one example on many."""

    def run(strategy, check, few=FEW.max_examples):
        chosen = request.param if request.param is MANY else settings(FEW, max_examples=few)
        chosen(given(strategy)(check))()

    return run


def sentence(error) -> str:
    text = str(error)
    assert text
    assert "\n" not in text
    assert len(text) < 700, text
    return text


def allowed(case, error) -> None:
    """A refusal that is one sentence, of what may be refused."""
    text = sentence(error)
    assert isinstance(case.right, str), f"{case.kind}: {text}"


def test_matrices(run):
    def check(case):
        with tempfile.TemporaryDirectory() as folder:
            try:
                matrix = load_matrix(case.write(Path(folder)))
            except ValueError as error:
                allowed(case, error)
                return
            assert not (isinstance(case.right, str) and case.right == fuzzing.REFUSED), case.kind
            if not isinstance(case.right, str):
                whole = matrix.toarray() if scipy.sparse.issparse(matrix) else matrix
                np.testing.assert_array_equal(np.asarray(whole, float), np.asarray(case.right, float))
            if case.kind in ("sparse of 200,000²", "zero leading block", "scale 1e200", "scale 1e-200"):
                try:
                    target, _ = prepare(matrix, rank=None, dtype="float32")
                    assert target.singular_values[0] == pytest.approx(20, rel=1e-5)
                except ValueError as error:
                    sentence(error)

    run(fuzzing.matrix_files(), check)


def test_triplets(run):
    def check(case):
        given = case.rows, case.columns, case.values
        try:
            problem = ld.observed_completion(*given)
        except ValueError as error:
            allowed(case, error)
        else:
            assert case.right != fuzzing.REFUSED, case.kind
            rows, columns, values = problem.triplets()
            assert dict(zip(zip(rows, columns, strict=True), values, strict=True)) == case.right
        weights = np.ones((1, 7), np.float32), np.ones((9, 1), np.float32)
        if "ids" in case.kind or "negative" in case.kind:
            with pytest.raises(ValueError, match=r"rows|columns") as refusal:
                ld.entries(weights, case.rows, case.columns)
            sentence(refusal.value)

    run(fuzzing.triplets(), check)


def test_files_of_entries(run, capsys):
    def check(case):
        with tempfile.TemporaryDirectory() as name:
            folder, right = Path(name), case.right
            np.savez(folder / "e.npz", rows=case.rows, columns=case.columns, values=case.values)
            if case.kind == "masked values":
                right = fuzzing.REFUSED  # a file has no masks: the NaN behind it is one
            code = distributed(["shard", str(folder / "e.npz"), str(folder / "data"), "--shards", "1"])
            error = capsys.readouterr().err.removesuffix("\n")
            if code == 0 and case.kind == "too large for float32":
                return  # files keep double precision
            assert (code, right == fuzzing.REFUSED) in ((0, False), (2, True)), f"{case.kind}: {error}"
            if code == 2:
                sentence(error)
                assert not (folder / "data").exists()
                return
            shards = open_shards(folder / "data")
            rows, columns, values = shards.read(range(shards.shape[0]))
            assert dict(zip(zip(rows, columns, strict=True), values, strict=True)) == right

    run(fuzzing.triplets(), check)


def test_rating_files(run):
    def check(case):
        with tempfile.TemporaryDirectory() as folder:
            try:
                (read,) = read_ratings(case.write(Path(folder)))
            except ValueError as error:
                allowed(case, error)
                return
        assert case.right != fuzzing.REFUSED, case.kind
        if case.right != fuzzing.ANY:
            names = [read.user_names[k] for k in read.users], [read.item_names[k] for k in read.items]
            expected = [(user.strip(), item, rating) for user, item, rating in case.right]
            assert list(zip(*names, read.values, strict=True)) == expected

    run(fuzzing.rating_files(), check)


def test_command_lines(run, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(cli, "_configure_jax", lambda *_: None)
    monkeypatch.setattr(runner, "environment", lambda setting: {"device": "a: b", "dtype": setting.dtype})
    monkeypatch.setattr(selection, "select", lambda patterns: ())
    monkeypatch.chdir(tmp_path)
    mains = {
        "theory-checks": cli.main, "lowdim-ratings": ratings, "distributed": distributed, "figures": figures,
    }  # fmt: skip

    def check(line):
        command, arguments = line
        try:
            code = mains[command](arguments)
        except SystemExit as end:  # --help and --version
            code = end.code
        error = capsys.readouterr().err.removesuffix("\n")
        assert code in (0, 2, 130), arguments
        if code == 2:
            sentence(error)
        assert not [path for path in tmp_path.rglob("*") if path.name.startswith(".")]

    run(fuzzing.command_lines(), check)


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """Whole files that are read again: shards, their index, a report."""
    folder, bounds = tmp_path_factory.mktemp("kept"), even_bounds(9, 2)
    write_shards(
        folder, synthesize((9, 6), bounds, rank=2, observations=40), shape=(9, 6), bounds=bounds
    )
    entry = {"name": "a", "outcome": "pass", "passed": True, "error": 1e-3, "tolerance": 1e-2}
    about = {"device": "cpu", "dtype": "float64", "matmul_precision": "", "seeds": [0]}
    report = {**about, "versions": {"jax": "0"}, "settings": {}, "checks": [entry]}
    (folder / "report.json").write_text(json.dumps(report))
    return folder


@st.composite
def damaged(draw, folder):
    """A file of a folder, by name, and what has become of its content."""
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    name = draw(st.sampled_from(names))
    content = (folder / name).read_bytes()
    gone = draw(st.integers(0, 9)) == 0
    return name, None if gone else fuzzing.mutated(draw, content)


def copied(folder, to, name, content):
    copy = Path(shutil.copytree(folder, Path(to) / "copy"))
    if content is None:
        (copy / name).unlink()
    else:
        (copy / name).write_bytes(content)
    return copy


def test_what_is_kept_beside_checkpoints(run, kept):
    before = open_shards(kept).read(range(9))

    def check(change):
        with tempfile.TemporaryDirectory() as to:
            copy = copied(kept, to, *change)
            try:
                for part, expected in zip(open_shards(copy).read(range(9)), before, strict=True):
                    np.testing.assert_array_equal(part, expected)
            except ValueError as error:
                sentence(error)
            try:
                read_report(copy / "report.json")
            except ValueError as error:
                sentence(error)

    run(damaged(kept), check)


def fitted(folder, steps):
    target = np.outer([3.0, 1.0, 2.0], [1.0, 2.0])
    return ld.fit(
        ld.factorization(target), depth=2, rank=1, scale=0.3, learning_rate=0.02, steps=steps, check_every=2,
        checkpoint=folder,
    )  # fmt: skip


def test_checkpoints(run, tmp_path):
    folder = tmp_path / "run"
    fitted(folder, 4)
    whole = fitted(Path(shutil.copytree(folder, tmp_path / "whole")), 6)

    def check(change):
        with tempfile.TemporaryDirectory() as to:
            copy = copied(folder, to, *change)
            try:
                result = fitted(copy, 6)
            except ValueError as error:
                sentence(error)
                return
            assert result.steps[-1] == 6
            for layer, expected in zip(result.weights, whole.weights, strict=True):
                np.testing.assert_allclose(layer, expected, rtol=1e-5)

    run(damaged(folder), check, few=10)  # a restored run takes long beside the others
