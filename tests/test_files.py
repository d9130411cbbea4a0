"""Whole files or none, hashes, locks, signals."""

import errno
import os
import pathlib
import signal
import stat
import subprocess
import sys

import pytest

from mocoembed.errors import FormatError, Interrupted, LockedError, MocoembedError, UsageError
from mocoembed.files import (
    StopRequest,
    locked,
    read_json,
    replacing,
    require_file,
    require_space,
    sha256_file,
    through_link,
    write_bytes,
    write_json,
)


def test_replaces_whole_files_and_leaves_no_trace(tmp_path):
    write_bytes(tmp_path / "new" / "a", b"one")
    write_bytes(tmp_path / "new" / "a", b"two")
    assert (tmp_path / "new" / "a").read_bytes() == b"two"
    assert os.listdir(tmp_path / "new") == ["a"]


def test_a_link_is_replaced_unless_it_is_followed(tmp_path):
    """A link to a kept encoder must not let the next one be written into it."""
    write_bytes(tmp_path / "there" / "a", b"one")
    (tmp_path / "b").symlink_to("there/a")
    assert through_link(tmp_path / "b") == (tmp_path / "there" / "a").resolve()
    write_bytes(through_link(tmp_path / "b"), b"two")
    assert (tmp_path / "b").is_symlink()
    assert (tmp_path / "there" / "a").read_bytes() == b"two"
    write_bytes(tmp_path / "b", b"three")
    assert not (tmp_path / "b").is_symlink()
    assert (tmp_path / "there" / "a").read_bytes() == b"two"
    assert through_link(tmp_path / "b") == tmp_path / "b"


def test_a_file_system_whose_folders_cannot_be_synced(tmp_path, monkeypatch):
    real = os.fsync

    def refused(number):
        def fsync(descriptor):
            if stat.S_ISDIR(os.fstat(descriptor).st_mode):
                raise OSError(number, os.strerror(number))
            real(descriptor)
        return fsync

    monkeypatch.setattr(os, "fsync", refused(errno.EINVAL))
    write_bytes(tmp_path / "a", b"one")
    assert (tmp_path / "a").read_bytes() == b"one"
    monkeypatch.setattr(os, "fsync", refused(errno.EIO))
    with pytest.raises(MocoembedError, match=r"Cannot write .*a: Input/output error"):
        write_bytes(tmp_path / "a", b"two")


def test_a_failure_leaves_the_old_file(tmp_path):
    path = tmp_path / "a"
    write_bytes(path, b"old")

    def fail():
        with replacing(path) as temporary:
            temporary.write_bytes(b"ne")
            raise ValueError("midway")

    with pytest.raises(ValueError, match="midway"):
        fail()
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize(("number", "message"), [(errno.ENOSPC, "No space left to write"), (errno.EIO, "Cannot write")])
def test_write_errors_name_the_file(tmp_path, number, message):
    write_bytes(tmp_path / "a", b"old")
    with pytest.raises(MocoembedError, match=f"{message}.*a"), replacing(tmp_path / "a"):
        raise OSError(number, os.strerror(number))
    assert (tmp_path / "a").read_bytes() == b"old"


def test_the_old_or_the_new_file_after_kill_9_at_every_write(tmp_path):
    """A child that rewrites a file for ever is killed; the file is always one of its whole versions."""
    path = tmp_path / "a"
    script = ("import sys; from mocoembed.files import write_bytes\n"
              "for i in range(10**9):\n"
              "    write_bytes(sys.argv[1], bytes([i % 256]) * 200000)\n"
              "    if i == 5: print('going', flush=True)\n")
    for _ in range(4):
        child = subprocess.Popen([sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE)
        child.stdout.readline()
        child.kill()
        child.wait()
        child.stdout.close()
        content = path.read_bytes()
        assert len(content) == 200_000
        assert len(set(content)) == 1
    write_bytes(path, b"new")
    assert os.listdir(tmp_path) == ["a"]  # what the killed writers left is gone


def test_a_writer_that_fails_for_want_of_space_says_so(tmp_path, monkeypatch):
    """torch and HDF5 raise RuntimeError when the disk is full."""
    def fail():
        with replacing(tmp_path / "a"):
            raise RuntimeError("unexpected pos 64 vs 0")

    with pytest.raises(RuntimeError, match="unexpected pos"):
        fail()
    monkeypatch.setattr("mocoembed.files.shutil.disk_usage", lambda path: Full())
    with pytest.raises(MocoembedError, match=r"No space left to write .*a"):
        fail()


class Full:
    """What `shutil.disk_usage` gives for a full disk."""

    free = 0


def test_space_is_asked_for_before(tmp_path):
    require_space(tmp_path / "a", 1)
    with pytest.raises(MocoembedError, match=r"needs 1000000000000\.0 MB and .* has \d+"):
        require_space(tmp_path / "a", 10**18)


def test_json(tmp_path):
    write_json(tmp_path / "a.json", {"ä": [1, 2.5, None]})
    assert read_json(tmp_path / "a.json") == {"ä": [1, 2.5, None]}
    for content in ("{", "[1]"):
        (tmp_path / "a.json").write_text(content)
        with pytest.raises(FormatError):
            read_json(tmp_path / "a.json")


def test_sha256_of_a_file(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256_file(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_one_holder_of_a_lock_and_none_after_kill_9(tmp_path):
    script = ("import sys, time; from mocoembed.files import locked\n"
              "with locked(sys.argv[1], 'it'): print('held', flush=True); time.sleep(60)")
    child = subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "lock")], stdout=subprocess.PIPE)
    child.stdout.readline()
    with pytest.raises(LockedError, match=rf"The file is being written by another process \(id {child.pid}\)"), \
            locked(tmp_path / "lock", "The file"):
        pass
    child.kill()
    child.wait()
    child.stdout.close()
    with locked(tmp_path / "lock", "The file"):
        pass
    assert os.listdir(tmp_path) == []


def test_where_nothing_can_be_written_the_folder_is_named(tmp_path, monkeypatch):
    """A read-only file system also refuses to remove a file that is not there."""
    def refuse(*arguments, **more):
        raise OSError(errno.EROFS, "Read-only file system", "x")

    monkeypatch.setattr("builtins.open", refuse)
    monkeypatch.setattr(pathlib.Path, "unlink", refuse)
    refused = "Read-only file system"
    with pytest.raises(MocoembedError, match=rf"^Cannot write into the folder {tmp_path}: {refused}\. Allow"), \
            locked(tmp_path / ".a.lock", "a"):
        pass
    with pytest.raises(MocoembedError, match=rf"^Cannot write {tmp_path}/a: {refused}\.$"), \
            replacing(tmp_path / "a"):
        refuse()


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_waits_for_a_safe_point(number, status):
    before = signal.getsignal(number)
    with StopRequest() as stop:
        stop.raise_if_set("nothing yet")
        os.kill(os.getpid(), number)
        with pytest.raises(Interrupted, match="saved") as leaving:
            stop.raise_if_set("saved")
    assert leaving.value.status == status
    assert signal.getsignal(number) is before


def test_paths_that_are_not_there_or_of_the_other_kind(tmp_path):
    (tmp_path / "file").write_text("x")
    for call, message in [(lambda: require_file(tmp_path / "no", "The index", "mocoembed index"), "mocoembed index"),
                          (lambda: require_file(tmp_path, "The index", "mocoembed index"), "is a folder")]:
        with pytest.raises(UsageError, match=message):
            call()
