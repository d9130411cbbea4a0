"""What was hashed before is not hashed again, unless anything about the file has changed."""

import json
import os
import time

import pytest

from mocoembed import verified
from mocoembed.files import sha256_file
from mocoembed.verified import has_digest


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """A file that has settled, its digest, and how often it was hashed."""
    monkeypatch.setenv("MOCOEMBED_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(verified, "SETTLED_NS", 0)
    path, hashes = tmp_path / "file", []
    path.write_bytes(b"0" * 1000)
    digest = sha256_file(path)

    def check(always: bool = False) -> bool:
        time.sleep(0.01)  # beyond the grain of the file system's times

        def hashed() -> str:
            hashes.append(path)
            return sha256_file(path)

        with open(path, "rb") as file:
            return has_digest(file, digest, hashed, always)

    return path, check, hashes


def test_a_file_is_hashed_once(kept):
    _, check, hashes = kept
    assert check()
    assert check()
    assert check()
    assert len(hashes) == 1
    assert check(always=True)
    assert len(hashes) == 2


def test_any_change_is_seen(kept):
    path, check, hashes = kept
    assert check()
    before = path.stat()
    with open(path, "r+b") as file:
        file.write(b"1")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # size, inode and mtime are as they were
    assert not check()
    with open(path, "r+b") as file:
        file.write(b"0")
    assert check()
    assert len(hashes) == 3
    other = path.with_name("other")
    other.write_bytes(b"2" * 1000)
    os.replace(other, path)
    assert not check()


def test_what_changed_a_moment_ago_is_not_remembered(kept, monkeypatch):
    _, check, hashes = kept
    monkeypatch.setattr(verified, "SETTLED_NS", 3_000_000_000)
    assert check()
    assert check()
    assert len(hashes) == 2


def test_a_file_that_changes_while_it_is_hashed_is_not_remembered(kept):
    path, check, hashes = kept
    digest = sha256_file(path)

    def hashed() -> str:
        path.touch()
        return digest

    time.sleep(0.01)
    with open(path, "rb") as file:
        assert has_digest(file, digest, hashed)
    assert check()
    assert len(hashes) == 1


@pytest.mark.parametrize("damage", [b"", b"[]", b"{", b"\xff\xff", None])
def test_a_damaged_record_is_not_believed(kept, tmp_path, damage):
    _, check, hashes = kept
    assert check()
    (record,) = (tmp_path / "cache" / "verified").iterdir()
    if damage is None:  # a record of other content
        damage = json.dumps({**json.loads(record.read_bytes()), "size": 999}).encode()
    record.write_bytes(damage)
    assert check()
    assert len(hashes) == 2


def test_a_cache_that_cannot_be_written_costs_time_only(kept, tmp_path, monkeypatch):
    _, check, hashes = kept
    (tmp_path / "a file").touch()
    monkeypatch.setenv("MOCOEMBED_CACHE", str(tmp_path / "a file"))
    assert check()
    assert check()
    assert len(hashes) == 2
