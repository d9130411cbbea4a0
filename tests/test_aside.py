"""What is made ahead is what would be made in turn, and what is hashed aside has the hash of the whole."""

import hashlib
import threading

import pytest

from mocoembed.embed.aside import SMALL, HashAside, made_ahead


def test_items_come_in_order_each_made_while_the_one_before_is_used():
    made, used = [], threading.Event()

    def items():
        for i in range(5):
            made.append(i)
            if i == 1:
                used.set()
            yield i

    found = []
    for item in made_ahead(items()):
        if item == 0:
            assert used.wait(60)  # the second one is made though the first is still in use
        assert len(made) <= item + 2  # and no more than that
        found.append(item)
    assert found == made == list(range(5))
    assert list(made_ahead([])) == []


def test_an_error_comes_where_it_would():
    def items():
        yield 1
        raise OSError("a bad sector")

    ahead = made_ahead(items())
    assert next(ahead) == 1
    with pytest.raises(OSError, match="a bad sector"):
        next(ahead)


def test_who_stops_early_leaves_no_thread():
    before = threading.active_count()
    items = made_ahead(iter(range(9)))
    assert next(items) == 0
    items.close()
    assert threading.active_count() == before


def test_the_hash_is_that_of_all_in_order():
    parts = [bytes([i]) * (SMALL << i % 2) for i in range(8)] + [b"a little", b"", b"more"]
    with HashAside() as digest:
        assert digest.hexdigest() == hashlib.sha256().hexdigest()
        for part in parts:
            digest.update(part)
        assert digest.hexdigest() == hashlib.sha256(b"".join(parts)).hexdigest()
