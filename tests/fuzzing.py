"""Inputs that a fuzzer makes for every way in, and what has to come of them.

Nothing of the project is imported here, so that the same inputs can be tried on any version of it. A case
says what is right: a value, `REFUSED`, or `ANY`, where only a traceback, a hang or something half-written is
wrong. Kinds are named after what they are made for.
"""

import gzip
import io
import os
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from hypothesis import strategies as st

REFUSED, ANY = "refused", "any"
BOM = "\ufeff"


class Case(NamedTuple):
    """A file to be read, or something that is none, and what is right."""

    kind: str
    name: str
    content: bytes | None
    right: Any

    def write(self, folder: Path) -> str:
        """Make the file; returns its name as a user would give it."""
        path = folder / self.name
        if self.kind == "a pipe":
            os.mkfifo(path)
        elif self.kind == "a folder":
            path.mkdir()
        elif self.content is not None:
            path.write_bytes(self.content)
        return str(path)


def mutated(draw, content: bytes) -> bytes:
    """Content with some bytes changed, cut or repeated."""
    changed = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, len(changed)))
        what = draw(st.sampled_from(["flip", "cut", "insert"]))
        if what == "flip" and place < len(changed):
            changed[place] ^= draw(st.integers(1, 255))
        elif what == "cut":
            del changed[place : place + draw(st.integers(1, 40))]
        else:
            changed[place:place] = draw(st.binary(min_size=1, max_size=8))
    return bytes(changed)


# --- Matrices ----------------------------------------------------------------------------


def _npy(array) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def _lying_npy(shape, descr="<f8") -> bytes:
    header = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}}}\n".encode()
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header


def _npz(content: bytes, method=zipfile.ZIP_DEFLATED, names=("a.npy",)) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name in names:
            archive.writestr(name, content)
    return file.getvalue()


def _csv(matrix, mark=",", end="\n") -> str:
    return end.join(mark.join(f"{value:g}" for value in row) for row in matrix) + end


def _mtx(matrix) -> str:
    rows, columns = np.nonzero(matrix)
    lines = [f"{i + 1} {j + 1} {matrix[i, j]:g}" for i, j in zip(rows, columns, strict=True)]
    return f"%%MatrixMarket matrix coordinate real general\n{len(matrix)} {len(matrix[0])} {len(rows)}\n" + (
        "\n".join(lines) + "\n"
    )


@st.composite
def matrix_files(draw) -> Case:
    """Files for `--target`."""
    d_out, d_in = draw(st.integers(2, 4)), draw(st.integers(2, 4))
    numbers = st.sampled_from([0.0, 1.0, 2.0, -3.0, 0.5, 7.0])
    rows = st.lists(st.lists(numbers, min_size=d_in, max_size=d_in), min_size=d_out, max_size=d_out)
    m = np.array(draw(rows))
    m[0, 0] = 4.0
    whole, text = np.abs(np.floor(m)), _csv(m)
    cut = draw(st.integers(1, 60))
    valid = {
        "float16": ("a.npy", _npy(m.astype("f2")), m),
        "big-endian": ("a.npy", _npy(m.astype(">f8")), m),
        "long double": ("a.npy", _npy(m.astype("g")), m),
        "Fortran order": ("a.npy", _npy(np.asfortranarray(m)), m),
        "integers": ("a.npy", _npy(whole.astype(draw(st.sampled_from(["u1", ">i4", "i8"])))), whole),
        "booleans": ("a.npy", _npy(m != 0), m != 0),
        "scale 1e200": ("a.npy", _npy(m * 1e200), m * 1e200),
        "scale 1e-200": ("a.npy", _npy(m * 1e-200), m * 1e-200),
        "upper-case suffix": ("A.NPY", _npy(m), m),
        "LZMA": ("a.npz", _npz(_npy(m), zipfile.ZIP_LZMA), m),
        "npz": ("a.npz", _npz(_npy(m)), m),
        "csv": ("a.csv", text.encode(), m),
        "csv with ;": ("a.csv", _csv(m, ";").encode(), m),
        "csv with tabs": ("a.csv", _csv(m, "\t").encode(), m),
        "csv with BOM": ("a.csv", (BOM + text).encode(), m),
        "csv in UTF-16": ("a.csv", text.encode("utf-16"), m),
        "csv with comments": ("a.csv", f"# é\n\n{text}".encode("latin-1"), m),
        "csv with CR": ("a.csv", _csv(m, end="\r").encode(), m),
        "csv.gz": ("a.csv.gz", gzip.compress(text.encode()), m),
        "mtx": ("a.mtx", _mtx(m).encode(), m),
        "mtx.gz": ("a.MTX.gz", gzip.compress(_mtx(m).encode()), m),
        "sparse of 200,000²": (
            "a.mtx", b"%%MatrixMarket matrix coordinate real general\n200000 200000 1\n1 1 4.0\n", ANY
        ),
        "zero leading block": (
            "a.mtx", b"%%MatrixMarket matrix coordinate real general\n300 300 1\n300 300 1.5\n", ANY
        ),
    }  # fmt: skip
    invalid = {
        "8 TB header": ("a.npy", _lying_npy("(1000000, 1000000)")),
        "object array": ("a.npy", _lying_npy("(2, 2)", "|O")),
        "complex": ("a.npy", _npy(m.astype(complex))),
        "header without end": ("a.npy", b"\x93NUMPY\x01\x00\x03\x00'''"),
        "nested header": ("a.npy", b"\x93NUMPY\x01\x00\xff\x1f" + b"(" * 0x1FFF),
        "shape of text": ("a.npy", _lying_npy("(2, 'a')")),
        "cut npy": ("a.npy", _npy(m)[:-cut]),
        "cut npz": ("a.npz", _npz(_npy(m))[:-cut]),
        "two arrays": ("a.npz", _npz(_npy(m), names=("a.npy", "b" * 5000 + ".npy"))),
        "encrypted": ("a.npz", _npz(_npy(m)).replace(b"PK\1\2\x14\3\x14\0\0", b"PK\1\2\x14\3\x14\0\1")),
        "unknown compression": ("a.npz", _npz(_npy(m)).replace(b"\x14\0\0\0\x08\0", b"\x14\0\0\0\x63\0")),
        "damaged LZMA": ("a.npz", _npz(_npy(m), zipfile.ZIP_LZMA).replace(b"\x5d\0\0", b"\xff\xff\xff")),
        "cut csv.gz": ("a.csv.gz", gzip.compress(text.encode())[:-9]),
        "field of 140,000": ("a.csv", (text + "1," + "9" * 140_000 + "\n").encode()),
        "ragged": ("a.csv", (text + "1\n").encode()),
        "underscore": ("a.csv", (text + ",".join(["1_0"] * d_in) + "\n").encode()),
        "NUL": ("a.csv", text.encode() + b"\0"),
        "NaN": ("a.csv", (text + ",".join(["nan"] * d_in) + "\n").encode()),
        "mtx that promises": ("a.mtx", b"%%MatrixMarket matrix array real general\n90000 90000\n1\n"),
        "mtx out of range": ("a.mtx", b"%%MatrixMarket matrix coordinate real general\n2 2 1\n3 1 1\n"),
        "a pipe": ("a.npy", None),
        "a folder": ("a.npy", None),
        "name of 5,000": ("x" * 5000 + ".npy", None),
        "NUL in the name": ("a\0.npy", None),
        "missing": ("b.npy", None),
    }
    kind = draw(st.sampled_from([*valid, *invalid, *["mutated"] * 12]))
    if kind == "mutated":
        name, content, _ = valid[draw(st.sampled_from(sorted(set(valid) - {"sparse of 200,000²"})))]
        return Case(kind, name, mutated(draw, content), ANY)
    if kind in valid:
        return Case(kind, *valid[kind])
    name, content = invalid[kind]
    return Case(kind, name, content, REFUSED)


# --- Triplets ----------------------------------------------------------------------------


class Entries(NamedTuple):
    """Rows, columns and values, and what is right: entries by place, or `REFUSED`."""

    kind: str
    rows: Any
    columns: Any
    values: Any
    right: Any


@st.composite
def triplets(draw) -> Entries:
    """Observed entries."""
    places = draw(st.lists(st.tuples(st.integers(0, 8), st.integers(0, 6)), min_size=2, unique=True))
    rows, columns = (np.array(side) for side in zip(*places, strict=True))
    values = np.array([draw(st.sampled_from([1.0, -2.0, 0.5, 3.0])) for _ in places])
    right = dict(zip(places, values, strict=True))
    hidden = np.arange(len(places)) == draw(st.integers(0, len(places) - 1))
    left = {place: value for place, value, out in zip(places, values, hidden, strict=True) if not out}
    some = np.where(hidden, np.nan, values)
    cases = {
        "plain": (rows, columns, values, right),
        "small integers": (rows.astype("u1"), columns.astype(">i2"), values, right),
        "lists": (rows.tolist(), columns.tolist(), values.tolist(), right),
        "float16": (rows, columns, values.astype("f2"), right),
        "big-endian": (rows, columns, values.astype(">f8"), right),
        "long double": (rows, columns, values.astype("g"), right),
        "integers as values": (rows, columns, np.floor(values).astype(int),
                               {place: np.floor(value) for place, value in right.items()}),
        "masked values": (rows, columns, np.ma.masked_array(some, hidden), left),
        "negative rows": (np.where(hidden, -1, rows), columns, values, REFUSED),
        "negative columns": (rows, np.where(hidden, -3, columns), values, REFUSED),
        "ids of 4e9": (np.where(hidden, 4_000_000_000, rows), columns, values, REFUSED),
        "float ids": (rows + 0.5, columns, values, REFUSED),
        "text ids": (rows.astype(str), columns, values, REFUSED),
        "boolean ids": (rows > 0, columns, values, REFUSED),
        "unequal lengths": (rows, columns[:-1], values, REFUSED),
        "no entry": (rows[:0], columns[:0], values[:0], REFUSED),
        "two dimensions": (rows[None], columns[None], values[None], REFUSED),
        "NaN": (rows, columns, some, REFUSED),
        "too large for float32": (rows, columns, np.where(hidden, 1e300, values), REFUSED),
        "duplicates": (*(np.append(part, part[0]) for part in (rows, columns, values)), REFUSED),
        "objects": (rows, columns, np.where(hidden, np.array(None), values), REFUSED),
        "complex": (rows, columns, values + 1j, REFUSED),
        "text as values": (rows, columns, values.astype(str), REFUSED),
    }  # fmt: skip
    kind = draw(st.sampled_from(sorted(cases)))
    return Entries(kind, *cases[kind])


# --- Rating files ------------------------------------------------------------------------


@st.composite
def rating_files(draw) -> Case:
    """Files for `lowdim-ratings`; right are user, item and rating of every line."""
    names = st.text(st.sampled_from("abcXYZ019é"), min_size=1, max_size=6)
    pairs = draw(st.lists(st.tuples(names, names), min_size=1, max_size=6, unique=True))
    right = [(u, i, draw(st.sampled_from([1.0, 2.5, 5.0, -1.0]))) for u, i in pairs]
    plain = [(f"u{u}", f"i{i}", r) for u, i, r in right]

    def lines(mark, rows=plain, quote="", more=""):
        rows = [(u, i, f"{r:g}") for u, i, r in rows]
        return "".join(mark.join(f"{quote}{x}{quote}" for x in row) + more + "\n" for row in rows)

    wide = "".join(",".join(f"{(7 * i + j) % 19 - 9 + 0.25:g}" for j in range(12)) + "\n" for i in range(4))
    valid = {
        "commas": lines(","), "tabs": lines("\t"), "::": lines("::"), "blanks": lines(" "),
        "semicolons": lines(";"), "quotes and semicolons": lines(";", quote='"'),
        "quoted tabs": lines("\t", [(f"{u} \t", i, r) for u, i, r in plain], '"'),
        "times": lines(",", more=",978300760"), "blank first line": "\n \n" + lines(","),
        "comments": "# user item rating\n% more\n" + lines(","), "BOM": BOM + lines(","),
        "header": "userId,movieId,rating\n" + lines(","),
        "header as of books": '"User-ID";"ISBN";"Book-Rating"\n' + lines(";", quote='"'),
        "header as of reviews": "reviewerID\tasin\toverall\n" + lines("\t"),
        "CRLF": lines(",").replace("\n", "\r\n"),
    }  # fmt: skip
    refused = {
        "user × item table": wide,
        "table with users": "".join(f"u{k},{line}\n" for k, line in enumerate(wide.splitlines())),
        "times as ratings": "a,x,978300000\nb,x,978300001\n",
        "two columns": "a,x\nb,y\n",
        "underscore": lines(",") + "a,b,1_0\n",
        "other digits": lines(",") + "a,b,٣\n",
        "no number": lines(",") + "a,b,good\n",
        "twice": lines(",") + lines(",", plain[:1]),
        "name of 10⁶": lines(",") + "x" * 10**6 + ",b,3\n",
        "field of 140,000": lines(",") + '"' + "y" * 140_000 + '",b,3\n',
        "NUL": lines(",") + "a\0,b,3\n",
        "nothing": "", "header alone": "user,item,rating\n",
    }  # fmt: skip
    kind = draw(st.sampled_from(
        [*valid, *refused, "gzip", "Latin-1", "UTF-16", "cut gzip", "a pipe", "a folder", *["mutated"] * 8]
    ))  # fmt: skip
    packed = gzip.compress(lines(",").encode())
    if kind == "quoted tabs":
        return Case(kind, "r", valid[kind].encode(), [(f"{u}", i, r) for u, i, r in plain])
    if kind in valid:
        return Case(kind, "r", valid[kind].encode(), plain)
    if kind in refused:
        return Case(kind, "r", refused[kind].encode(), REFUSED)
    special = {
        "gzip": (packed, plain), "cut gzip": (packed[:-9], REFUSED),
        "Latin-1": ("é,x,3\n".encode("latin-1"), [("é", "x", 3.0)]),
        "UTF-16": (lines(";").encode("utf-16"), plain),
    }  # fmt: skip
    if kind in special:
        return Case(kind, "r", *special[kind])
    if kind == "mutated":
        return Case(kind, "r", mutated(draw, valid[draw(st.sampled_from(sorted(valid)))].encode()), ANY)
    return Case(kind, "r", None, REFUSED)


# --- Command lines -----------------------------------------------------------------------

ODD = ["", "-1", "0", "1", "2", "nan", "1e9", "é", "x" * 100_000, "a\0b", "9" * 20, "--", "-", "["]
COMMANDS = {
    "theory-checks": [
        ("run", ["--seeds", "--rank", "--target", "--device", "--dtype", "--size", "--only", "--load"]),
        ("list", ["--only", "--load"]), ("compare", []), ("", ["--help", "--version"]),
    ],
    "lowdim-ratings": [
        ("fit", ["--depth", "--rank", "--seed", "--columns", "--duplicates", "--method"]),
        ("predict", ["--user", "--item", "--columns", "--model", "--out"]),
        ("recommend", ["--top", "--model", "--rated"]), ("evaluate", ["--test", "--model"]), ("", ["--help"]),
    ],
    "distributed": [
        ("synthesize", ["--rows", "--columns", "--rank", "--observations", "--shards", "--seed"]),
        ("shard", ["--shards"]),
        ("train", ["--rank", "--depth", "--coordinator", "--num-processes", "--process-id", "--timeout",
                   "--processes", "--scale", "--learning-rate", "--steps"]),
    ],
    "figures": [("make", ["--size", "--redraw", "--data"]), ("list", [])],
}  # fmt: skip


@st.composite
def command_lines(draw) -> tuple[str, list[str]]:
    """A command, and arguments that it may never have seen."""
    command = draw(st.sampled_from(sorted(COMMANDS)))
    name, options = draw(st.sampled_from(COMMANDS[command]))
    arguments = [name] if name else []
    arguments += draw(st.lists(st.sampled_from(ODD), max_size=2))
    for option in draw(st.lists(st.sampled_from([*options, "--bogus"]), max_size=3)):
        arguments += [option, draw(st.sampled_from(ODD))]
    return command, arguments
