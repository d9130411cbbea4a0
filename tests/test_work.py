"""Unfinished work: what is committed is whole, whatever comes after."""

import numpy as np
import pytest

from mocoembed.data.loader import FACTS, Failure
from mocoembed.embed.work import EMBEDDED, FAILED, WorkFile, describe_work
from mocoembed.errors import FormatError, MocoembedError, UsageError

KEY = {"folder": "/a", "encoder": "f"}


def facts(n):
    value = np.zeros(n, FACTS)
    value["width"] = np.arange(n) + 1
    return value


def test_goes_on_after_what_was_committed(tmp_path):
    path = tmp_path / "w"
    with WorkFile(path, KEY, 10, 3) as work:
        assert work.committed == 0
        work.write(0, np.full((4, 3), 1.0), facts(4), [Failure(2, "OSError", "bad \u00e4")])
        work.commit(4)
        work.write(4, np.full((4, 3), 9.0), facts(4), [])  # written, never committed
    with WorkFile(path, KEY, 10, 3) as work:
        assert work.committed == 4
        work.write(4, np.full((6, 3), 2.0), facts(6), [])
        work.commit(10)
        ((_, block),) = work.blocks()
        assert block["status"].tolist() == [EMBEDDED, EMBEDDED, FAILED] + [EMBEDDED] * 7
        assert block["vector"][:, 0].tolist() == [1, 1, 0, 1] + [2] * 6
        assert block["reason"][2].decode() == "bad \u00e4"
        assert block["facts"]["width"].tolist() == [1, 2, 0, 4, 1, 2, 3, 4, 5, 6]
        assert [(first, len(one)) for first, one in work.blocks(4)] == [(0, 4), (4, 4), (8, 2)]
    assert describe_work(path) == {"format": 1, "committed": 10, "listed": 10, "dimension": 3, **KEY}


def test_refuses_the_work_of_other_settings_by_name(tmp_path):
    with WorkFile(tmp_path / "w", KEY, 10, 3):
        pass
    with pytest.raises(UsageError, match=r"other settings \(encoder\).*--fresh"):
        WorkFile(tmp_path / "w", {**KEY, "encoder": "g"}, 10, 3)
    (tmp_path / "w").write_bytes(b"junk")
    with pytest.raises(UsageError, match="--fresh"):
        WorkFile(tmp_path / "w", KEY, 10, 3)


def test_a_damaged_counter_is_refused(tmp_path):
    with WorkFile(tmp_path / "w", KEY, 10, 3) as work:
        work.commit(99)
    with pytest.raises(FormatError, match="damaged"):
        WorkFile(tmp_path / "w", KEY, 10, 3)


def test_asks_for_the_space_first(tmp_path):
    with pytest.raises(MocoembedError, match=r"needs .* MB"):
        WorkFile(tmp_path / "w", KEY, 10**12, 2048)
    assert list(tmp_path.iterdir()) == []
