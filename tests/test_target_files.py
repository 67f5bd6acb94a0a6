"""Claims on matrices from files: right, or one sentence that names the file; whatever is in it.

Troubles that others had are named by their public source, `project #number`.
"""

import gzip
import os
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
import scipy

from theory_checks.target_file import load_matrix, prepare

CASES = Path(__file__).with_name("cases")
MATRIX = np.array([[1.5, 2.0], [0.0, -4.0], [3.0, 5.0]])


MTX = "%%MatrixMarket matrix"


def npy(folder, header=None, *, shape="(2, 2)", descr="<f8", data=b""):
    path = folder / "a.npy"
    header = header or f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}}}"
    text = f"{header}\n".encode("latin-1")
    path.write_bytes(b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + data)
    return path


def file(folder, name, content):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def zipped(folder, name="a.npz", *, compression=zipfile.ZIP_DEFLATED, content=None):
    np.save(folder / "inner.npy", MATRIX)
    with zipfile.ZipFile(folder / name, "w", compression) as archive:
        archive.writestr("arr_0.npy", (folder / "inner.npy").read_bytes() if content is None else content)
    return folder / name


def patched(path, *edits):
    """A file with some bytes replaced, each wherever it stands."""
    content = path.read_bytes()
    for old, new in edits:
        assert old in content
        content = content.replace(old, new)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("dtype", ["f2", ">f8", ">i4", "f4", "i8", "u1", "?", "g"])
def test_every_real_type_is_taken(tmp_path, dtype):
    matrix = np.array([[1, 0], [1, 1]]).astype(dtype)
    np.save(tmp_path / "a.npy", matrix)
    np.testing.assert_array_equal(load_matrix(str(tmp_path / "a.npy")), matrix)
    target, _ = prepare(load_matrix(str(tmp_path / "a.npy")), rank=2, dtype="float32")
    reference = np.linalg.svd(matrix.astype(float), compute_uv=False)
    np.testing.assert_allclose(target.singular_values / 20, reference / reference[0], rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", "1.5,2\n0,-4\n3,5\n"),
        ("a.csv", "\ufeff1.5,2\r\n0,-4\r\n3,5\r\n"),  # numpy #18861
        ("a.csv", "# a comment\n\n1.5,2\n0,-4\n3,5"),
        ("a.csv", "1.5;2\n0;-4\n3;5\n"),
        ("a.csv", "1.5\t2\n0\t-4\n3\t5\n"),
        ("a.csv", "1.5,2\n0,-4\n3,5\n".encode("utf-16")),
        ("A.CSV", '"1.5","2"\n"0","-4"\n"3","5"\n'),
        ("a.csv.gz", gzip.compress(b"1.5,2\n0,-4\n3,5\n", mtime=0)),
        ("a.MTX", f"{MTX} array real general\n3 2\n1.5\n0\n3\n2\n-4\n5\n"),
        ("a.mtx", f"{MTX} coordinate real general\n3 2 5\n1 1 1.5\n1 2 2\n2 2 -4\n3 1 3\n3 2 5\n"),
    ],
)  # fmt: skip
def test_every_spelling_of_a_format_is_read_alike(tmp_path, name, content):
    read = load_matrix(str(file(tmp_path, name, content)))
    np.testing.assert_array_equal(read.toarray() if scipy.sparse.issparse(read) else read, MATRIX)


def test_a_packed_array_and_one_in_fortran_order_are_read_alike(tmp_path):
    np.save(tmp_path / "a.npy", np.asfortranarray(MATRIX))
    np.testing.assert_array_equal(load_matrix(str(tmp_path / "a.npy")), MATRIX)
    file(tmp_path, "b.NPY.GZ", gzip.compress((tmp_path / "a.npy").read_bytes()))
    np.testing.assert_array_equal(load_matrix(str(tmp_path / "b.NPY.GZ")), MATRIX)
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2):
        np.testing.assert_array_equal(load_matrix(str(zipped(tmp_path, compression=method))), MATRIX)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda f: npy(f, shape="(1000000, 1000000)"),
         "its header promises shape (1000000, 1000000), 8,000,000,000,000 bytes, but 0 follow"),
        (lambda f: npy(f, "{'descr': '<f8', 'fortran_order': False, 'shape': (2, 2)"), "cannot be read"),
        (lambda f: npy(f, shape="(2, 'a')"), "cannot be read"),
        (lambda f: npy(f, "'''{"), "cannot be read"),
        (lambda f: npy(f, "(" * 3000), "cannot be read"),
        (lambda f: npy(f, descr="|O"), "expected real numbers"),
        (lambda f: npy(f, descr="<c16"), "expected real numbers"),
        (lambda f: npy(f, shape="(4,)"), "has shape (4,)"),
        (lambda f: npy(f, shape="(-2, 2)"), "has shape (-2, 2)"),
        (lambda f: npy(f, data=np.array([1, 2, 3, np.nan]).tobytes()), "the first in row 2, column 2"),
        (lambda f: patched(zipped(f), (b"PK\1\2\x14\3\x14\0\0", b"PK\1\2\x14\3\x14\0\1")), "encrypted"),
        (lambda f: patched(zipped(f), (b"\x14\0\0\0\x08\0", b"\x14\0\0\0\x63\0")), "compression"),
        (lambda f: patched(zipped(f, compression=zipfile.ZIP_LZMA), (b"\x5d\0\0", b"\xff" * 3)),
         "cannot be read"),
        (lambda f: file(f, "a.npz", zipped(f).read_bytes()[:-30]), "not a zip file"),
        (lambda f: zipped(f, content=b"no array"), "cannot be read"),
        (lambda f: file(f, "a.csv.gz", gzip.compress(b"1,2\n3,4\n", mtime=0)[:-9]), "cannot be read"),
        (lambda f: file(f, "a.csv", b"1,2\n3,\0\n"), "it is no text, which byte 7 shows"),
        (lambda f: file(f, "a.csv", "1,2\n3," + "9" * 140_000), "larger than field limit"),
        (lambda f: file(f, "a.csv", "1,2\n3,1_0\n"), "line 2: could not convert '1_0' to a number"),
        (lambda f: file(f, "a.csv", "1,2\n3,٣\n"), "line 2: could not convert '٣' to a number"),
        (lambda f: file(f, "a.mtx", f"{MTX} array real general\n200000 200000\n1\n"), "promises"),
        (lambda f: file(f, "a.mtx", f"{MTX} coordinate real general\n9 9 10000000000\n1 1 1\n"), "promises"),
        (lambda f: file(f, "a.mtx", f"{MTX} coordinate complex general\n2 2 1\n1 1 1 1\n"), "expected real"),
        (lambda f: file(f, "a.mtx", f"{MTX} coordinate real general\n2 2 1\n3 1 1\n"), "cannot be read"),
        (lambda f: file(f, "a.mtx", f"{MTX} coordinate real general\n3 2 2\n1 1 1\n3 2 nan\n"),
         "NaN or infinite, the first in row 3, column 2"),
        (lambda f: os.mkfifo(f / "a.npy") or f / "a.npy", "it is a pipe or a device"),
        (lambda f: f, "Is a directory"),
        (lambda f: f / ("x" * 5000 + ".npy"), "is neither a file nor 'digits'"),
        (lambda f: f / "a\0.npy", "is neither a file nor 'digits'"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_one_short_sentence(tmp_path, make, message):
    with pytest.raises(ValueError, match=re.escape(message)) as refused:
        load_matrix(str(make(tmp_path)))
    assert len(str(refused.value)) < 320
    assert "\n" not in str(refused.value)


def test_a_large_sparse_matrix_is_cut_while_it_is_sparse():
    """Elemental #26: 2,000,000 rows and columns, four entries."""
    matrix = load_matrix(str(CASES / "m20_huge_dims.mtx"))
    target, note = prepare(matrix, rank=None, dtype="float32")
    np.testing.assert_allclose(target.singular_values, [20, 16, 12], rtol=1e-6)
    assert "leading 256×256 block of a 2000000×2000000 matrix" in note
    with pytest.raises(ValueError, match="too large to be decomposed"):
        prepare(matrix, rank=None, dtype="float32", size="paper")


@pytest.mark.parametrize("power", [-310, -200, -20, 20, 200, 307])
def test_the_scale_of_a_target_does_not_matter(power, dtype):
    """neural-tangents #197, in double precision."""
    matrix = np.random.default_rng(0).standard_normal((9, 7))
    reference, said = prepare(matrix, rank=3, dtype=dtype)
    target, note = prepare(matrix * 10.0**power, rank=3, dtype=dtype)
    tolerance = {"float32": 1e-5, "float64": 1e-12}[dtype] if power > -310 else 1e-5  # subnormal numbers
    np.testing.assert_allclose(target.singular_values, reference.singular_values, rtol=tolerance)
    assert note.partition(" scaled")[0] == said.partition(" scaled")[0]
    assert "inf" not in note


def test_a_target_of_1e200_is_read(x64):
    target, note = prepare(load_matrix(str(CASES / "m07_1e200.npy")), rank=None, dtype="float64")
    assert target.singular_values[0] == pytest.approx(20)
    assert "of rank 4" in note


def test_a_leading_block_of_zeros_is_said_to_be_one():
    matrix = np.zeros((300, 300))
    matrix[299, 299] = 1
    with pytest.raises(ValueError, match=r"leading 256×256 block of a 300×300 matrix .* is zero"):
        prepare(matrix, rank=None, dtype="float32")
