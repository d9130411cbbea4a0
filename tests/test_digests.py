"""Finding digests, also where their first eight bytes are the same."""

import hashlib

import numpy as np

from mocoembed.data.digests import DigestTable


def test_finds_the_first_row_of_every_digest():
    digests = [hashlib.sha256(bytes([number % 50])).digest() for number in range(80)]
    table = DigestTable(np.array(digests, "V32"))
    assert [table.find(digest) for digest in digests] == [digests.index(digest) for digest in digests]
    assert table.find(b"\0" * 32) == -1
    assert len(table) == 80


def test_the_same_head_is_not_the_same_digest():
    digests = [b"headhead" + bytes([number]) * 24 for number in (5, 1, 3)]
    table = DigestTable(np.array(digests, "V32"))
    assert [table.find(digest) for digest in digests] == [0, 1, 2]
    assert table.find(b"headhead" + b"\2" * 24) == -1


def test_an_empty_table_finds_nothing():
    assert DigestTable(np.zeros(0, "V32")).find(b"\1" * 32) == -1
