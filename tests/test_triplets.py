"""Claims on rows, columns and values: what is taken, and what is refused, the same way by everyone."""

import re

import numpy as np
import pytest

from lowdim_jax._triplets import checked_triplets, merged

GOOD = {"rows": [0, 2, 1], "columns": [1, 0, 0], "values": [1.5, -2.0, 0.0]}


@pytest.mark.parametrize(
    "changed",
    [
        {"values": np.array([1.5, -2, 0], "f2")},
        {"values": np.array([1.5, -2, 0], ">f8")},
        {"values": np.array([1.5, -2, 0], "g")},
        {"rows": np.array([0, 2, 1], ">u2"), "columns": np.array([1, 0, 0], "i1")},
        {"shape": [3, np.int64(2)]},
        {"rows": (0, 2, 1)},
    ],
)
def test_types_that_hold_the_same_numbers_are_taken_alike(changed):
    shape = changed.pop("shape", None)
    (rows, columns, values), shape = checked_triplets(*{**GOOD, **changed}.values(), shape=shape)
    np.testing.assert_array_equal([rows, columns, values], list(GOOD.values()))
    assert values.dtype == np.float32
    assert shape == (3, 2)


def test_a_masked_entry_is_not_observed():
    """jax-ml/jax #13795, sherpa #695."""
    values = np.ma.masked_array([1.0, np.nan, 3.0], mask=[False, True, False])
    (rows, _, kept), shape = checked_triplets([0, 2, 1], np.ma.masked_array([1, 0, 0]), values)
    np.testing.assert_array_equal([rows, kept], [[0, 1], [1, 3]])
    assert shape == (2, 2)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"rows": [0, -1, 2]}, "rows has -1 at position 1, expected from 0 to"),  # implicit #207
        ({"rows": [0, 4_000_000_000, 2]}, "expected from 0 to 2147483646: number them anew"),
        ({"columns": np.array([2**63, 0, 0], np.uint64)}, "columns has 9223372036854775808 at position 0"),
        ({"columns": [0, 1]}, "have shapes (3,), (2,) and (3,)"),  # scipy #20200
        ({"rows": [0.0, 1.0, 2.0]}, "rows has type float64, expected integers"),
        ({"rows": ["a", "b", "c"]}, "rows has type <U1, expected integers"),
        ({"rows": [True, False, True]}, "rows has type bool, expected integers"),
        ({"values": [1.0, np.nan, 2.0]}, "values has 1 entries that are NaN or infinite, the first at"),
        ({"values": [1.0, 1e39, 2.0]}, "values has 1e+39 at index (1,), too large for float32"),
        ({"values": [1.0, None, 2.0]}, "values has entries of type object, expected real numbers"),
        ({"values": [1.0, 2j, 2.0]}, "values has entries of type complex128"),
        ({"values": [[1.0, 2.0, 3.0]]}, "have shapes (3,), (3,) and (1, 3)"),
        ({"rows": [], "columns": [], "values": []}, "at least 1"),
        ({"shape": (2, 2)}, "rows has 2 at position 1, expected from 0 to 1"),
        ({"shape": (3.0, 2)}, "shape=(3.0, 2), expected two positive integers"),
        ({"shape": 3}, "shape=3, expected two positive integers"),
    ],
)
def test_what_is_wrong_with_entries_is_named(changed, message):
    shape = changed.pop("shape", None)
    with pytest.raises(ValueError, match=re.escape(message)):
        checked_triplets(*{**GOOD, **changed}.values(), shape=shape)


def test_an_entry_given_twice_is_named_or_averaged():
    given, shape = checked_triplets([1, 0, 1], [0, 1, 0], [1.0, 2.0, 4.0])
    with pytest.raises(ValueError, match="1 entries are given more than once, the first in row 1, column 0"):
        merged(given, shape, "raise")
    np.testing.assert_array_equal(merged(given, shape, "mean"), [[0, 1], [1, 0], [2, 2.5]])
    with pytest.raises(ValueError, match="duplicates='sum', expected 'raise' or 'mean'"):
        merged(given, shape, "sum")
