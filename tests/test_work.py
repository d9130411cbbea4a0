"""Unfinished work: what is committed is whole, whatever comes after."""

import time

import numpy as np
import pytest
import torch

from mocoembed.data.facts import FACTS, Failure
from mocoembed.data.loader import EvaluationBatch
from mocoembed.embed import fill
from mocoembed.embed.work import COPIED, EMBEDDED, FAILED, PARTS, WorkFile, describe_work, part_slots, record_type
from mocoembed.errors import FormatError, MocoembedError

DESCRIBED = {"key": {"source": "/a", "encoder": "f"}, "listed": 12}


def facts(n):
    value = np.zeros(n, FACTS)
    value["width"] = np.arange(n) + 1
    return value


def begin(path, slots=10, dimension=3, batch_size=4):
    arrays = {"todo": np.arange(slots), "blob": np.frombuffer(b"abc", np.uint8)}
    WorkFile.begin(path, DESCRIBED, arrays, slots, batch_size, record_type(dimension, "float32"))
    return path


def put(work, first, values, failures=(), copied=()):
    n = len(values)
    work.write(first, np.repeat(np.array(values, np.float32)[:, None], 3, 1), facts(n),
               np.isin(np.arange(n), copied), list(failures))


def test_goes_on_after_what_was_committed(tmp_path):
    path = begin(tmp_path / "w")
    with WorkFile(path) as work:
        assert (work.parts, work.part_slots, work.done()) == (3, 4, 0)
        put(work, 0, [1, 1, 1, 1], [Failure(2, "OSError", "bad \u00e4")], copied=[3])
        work.commit(4)
        put(work, 4, [9, 9, 9, 9])  # written, never committed
    with WorkFile(path) as work:
        assert [work.committed(part) for part in range(3)] == [4, 4, 8]
        assert work.done() == 4
        put(work, 4, [2, 2, 2, 2])
        work.commit(8)
        put(work, 8, [3, 3])
        work.commit(10)
        blocks = list(work.blocks())
        block = np.concatenate([one for _, one in blocks])
        assert [first for first, _ in blocks] == [0, 4, 8]
        assert block["status"].tolist() == [EMBEDDED, EMBEDDED, FAILED, COPIED] + [EMBEDDED] * 6
        assert block["vector"][:, 0].tolist() == [1, 1, 0, 1, 2, 2, 2, 2, 3, 3]
        assert block["reason"][2].decode() == "bad \u00e4"
        assert block["facts"]["width"].tolist() == [1, 2, 3, 4, 1, 2, 3, 4, 1, 2]
        assert work.read(3, 9)["vector"][:, 0].tolist() == [1, 2, 2, 2, 2, 3]
        assert work.array("todo").tolist() == list(range(10))
        assert work.array("blob").tobytes() == b"abc"
    assert describe_work(path) == {"format": 3, "committed": 12, "listed": 12, "unchanged": 2, "dimension": 3,
                                   **DESCRIBED["key"]}


def test_parts_do_not_depend_on_processes(tmp_path):
    assert part_slots(10, 64) == 64
    assert part_slots(64 * PARTS, 64) == 64
    assert part_slots(64 * PARTS + 1, 64) == 128
    assert part_slots(0, 64) == 64
    with WorkFile(begin(tmp_path / "w", slots=0)) as work:
        assert (work.parts, work.done(), list(work.blocks())) == (0, 0, [])


def test_two_processes_fill_their_parts(tmp_path):
    path = begin(tmp_path / "w")
    with WorkFile(path) as one, WorkFile(path) as other:
        put(other, 4, [2, 2])
        other.commit(6)
        put(one, 0, [1, 1, 1, 1])
        one.commit(4)
        assert (one.done(), other.done([1])) == (6, 2)
        assert [(first, len(block)) for first, block in one.blocks()] == [(0, 4), (4, 2)]


def test_damage_is_noticed(tmp_path):
    path = begin(tmp_path / "w")
    data = bytearray(path.read_bytes())
    with WorkFile(path) as work:
        counter = work.header["parts_at"]
    data[counter] = 200
    path.write_bytes(data)
    with WorkFile(path) as work, pytest.raises(FormatError, match=r"damaged.*same command again"):
        work.done()
    path.write_bytes(data[:-1])
    with pytest.raises(FormatError, match=r"truncated.*--fresh"):
        WorkFile(path)
    path.write_text("nonsense")
    with pytest.raises(FormatError, match=r"not an unfinished embedding.*--fresh"):
        WorkFile(path)
    path.write_text('{"format": 1}\n')
    with pytest.raises(FormatError, match=r"format 1, this version reads 3.*--fresh"):
        WorkFile(path)


def test_what_is_written_is_committed_in_time_though_no_batch_comes(tmp_path, monkeypatch):
    monkeypatch.setattr(fill, "COMMIT_SECONDS", 0.05)
    path = begin(tmp_path / "w", slots=12)

    def batch(first):
        return EvaluationBatch(first, None, facts(2), np.zeros(2, bool), [])

    with WorkFile(path) as work, WorkFile(path) as other, fill.Writer(work) as writer:
        for first in (0, 4):
            writer.put(batch(first), np.ones(2, bool), lambda: torch.ones(2, 3))
            deadline = time.monotonic() + 60
            while other.committed(first // 4) < first + 2 and time.monotonic() < deadline:
                time.sleep(0.01)
            assert other.committed(first // 4) == first + 2

        monkeypatch.setattr(work, "commit", lambda end: 1 / 0)
        writer.put(batch(8), np.ones(2, bool), lambda: torch.ones(2, 3))
        while not writer._failed and time.monotonic() < deadline:
            time.sleep(0.01)
        with pytest.raises(ZeroDivisionError):
            writer.close()


def test_space_is_reserved_before_the_work_begins(tmp_path):
    with pytest.raises(MocoembedError, match=r"No space left to write .*w .*free|Cannot write .*w"):
        WorkFile.begin(tmp_path / "w", DESCRIBED, {}, 10**12, 64, record_type(2048, "float32"))
    assert list(tmp_path.iterdir()) == []
