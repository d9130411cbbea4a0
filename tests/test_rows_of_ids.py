"""Ids -> rows: ids as embeddings files have them, and ids that lie unevenly."""

import numpy as np
import pytest

from mocoembed.search.rows_of_ids import END, SHARING, RowsOfIds

RANDOM = np.random.default_rng(0)
IDS = {
    "digests": RANDOM.integers(0, END, 10_000),
    "counted": RANDOM.permutation(10_000),
    "one": np.array([7]),
    "zero": np.array([0]),
    "together": np.concatenate([np.arange(5_000), END - np.arange(3)]),  # all but three have the same first bits
    "below 0": np.array([5, -3, 2, -(1 << 63)]),
    "none": np.empty(0, np.int64),
}


@pytest.mark.parametrize("name", IDS)
def test_each_id_has_its_row_and_others_have_none(name):
    ids = IDS[name].astype(np.int64)
    rows = RowsOfIds(ids)
    np.testing.assert_array_equal(rows(ids), np.arange(len(ids)))
    others = np.setdiff1d(np.concatenate([ids + 1, ids - 1, ids >> 1, [-1, 0, END, -(1 << 63)]]), ids)
    assert len(others)
    assert (rows(others) == -1).all()
    some = np.resize(np.concatenate([ids[::-1], others]), (4, 5))
    np.testing.assert_array_equal(rows(some), [[np.flatnonzero(ids == one)[0] if one in ids else -1 for one in line]
                                               for line in some])


def test_even_ids_are_found_by_their_first_bits_and_uneven_ones_are_not():
    assert len(RowsOfIds(IDS["digests"])._first)
    uneven = np.concatenate([np.arange(SHARING + 1), [END - 1]])
    assert not len(RowsOfIds(uneven)._first)
