"""The only way anything reaches the disk: whole files by rename, hashes, locks.

A file is written under a temporary name in its own folder, flushed, fsynced and renamed, and the folder is
fsynced; so a crash leaves the old file or the new one, never half of either.
"""

import contextlib
import errno
import fcntl
import glob
import hashlib
import json
import os
import pathlib
import platform
import shutil
import signal
import time
import warnings
from typing import Any, TextIO

from mocoembed.errors import FormatError, Interrupted, LockedError, MocoembedError, UsageError

NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
NO_FOLDER_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)  # of some network file systems
CHUNK = 1 << 22  # bytes hashed or copied at a time
SECONDS_FOR_THE_DEAD = 1.5  # to let go of a lock
NEARLY_FULL = 1 << 20  # bytes free on a disk that has no room left


@contextlib.contextmanager
def replacing(path):
    """Yield a temporary path beside `path`; on a clean exit it is fsynced and renamed to `path`.

    On an exception the temporary file is removed and `path` stays as it was. A full disk or a refused write
    becomes a `MocoembedError` that names the file and the free space.
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_what_killed_writers_left(path)
    temporary = path.with_name(f".{path.name}.{platform.node()}-{os.getpid()}.tmp")
    try:
        yield temporary
        sync_file(temporary)
        os.replace(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        raise write_error(path, error) from error
    except RuntimeError as error:  # what torch and HDF5 raise for a write that was refused
        if shutil.disk_usage(path.parent).free < NEARLY_FULL:
            raise write_error(path, OSError(errno.ENOSPC, "")) from error
        raise
    finally:
        with contextlib.suppress(OSError):  # where nothing can be written, nothing can be removed
            temporary.unlink(missing_ok=True)


def through_link(path) -> pathlib.Path:
    """The file that a link at `path` names, or `path` itself; writing it by renaming would replace the link."""
    return pathlib.Path(os.path.realpath(path) if os.path.islink(path) else path)


def _remove_what_killed_writers_left(path: pathlib.Path):
    """Delete the temporary files of `path` that a process of this machine left, which is no more."""
    for left in path.parent.glob(f".{glob.escape(f'{path.name}.{platform.node()}')}-*.tmp"):
        number = left.name.removesuffix(".tmp").rpartition("-")[2]
        with contextlib.suppress(ValueError, PermissionError):
            try:
                os.kill(int(number), 0)
            except ProcessLookupError:
                left.unlink(missing_ok=True)


def write_error(path, error: OSError) -> MocoembedError:
    """The error to raise when writing `path` failed with `error`; it states the free space if that is it."""
    if error.errno in NO_SPACE:
        free = shutil.disk_usage(pathlib.Path(path).parent).free
        return MocoembedError(f"No space left to write {path} ({free / 1e6:.1f} MB free). "
                              "Free some space and run the same command again.")
    return MocoembedError(f"Cannot write {path}: {error.strerror or error}.")


def read_at(descriptor: int, length: int, offset: int, path) -> bytearray:
    """`length` bytes from `offset` on; `FormatError` when the file ends before."""
    data = bytearray(length)
    view = memoryview(data)
    while view:
        count = os.preadv(descriptor, [view], offset)
        if not count:
            raise FormatError(f"{path} is truncated. Run the same command with --fresh.")
        view, offset = view[count:], offset + count
    return data


def require_space(path, needed: int):
    """Raise `MocoembedError` unless the file system of `path` has `needed` bytes free."""
    folder = pathlib.Path(path).parent
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise MocoembedError(f"{path} needs {needed / 1e6:.1f} MB and {folder} has {free / 1e6:.1f} MB free. "
                             "Free some space and run the same command again.")


def sync_file(path):
    """fsync the file at `path`."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(path):
    """fsync the folder at `path`, so that a rename in it is on the disk; nothing where folders cannot be synced."""
    try:
        sync_file(path)
    except OSError as error:
        if error.errno not in NO_FOLDER_SYNC:
            raise


def write_bytes(path, data: bytes):
    """Replace `path` by a file that holds `data`."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def write_json(path, value):
    """Replace `path` by `value` as indented JSON."""
    write_bytes(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


def read_json(path) -> dict:
    """The JSON object in `path`; `FormatError` if it is anything else."""
    try:
        value = json.loads(pathlib.Path(path).read_bytes())
    except ValueError as error:
        raise FormatError(f"{path} is not valid JSON: {error}.") from error
    if not isinstance(value, dict):
        raise FormatError(f"{path} holds a {type(value).__name__}, not a JSON object.")
    return value


def sha256_file(path) -> str:
    """Hexadecimal SHA-256 of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def sha256_json(value) -> str:
    """Hexadecimal SHA-256 of `value` as canonical JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


@contextlib.contextmanager
def locked(path, what: str):
    """Hold an exclusive lock on the lock file `path` while the block runs; it dies with the process.

    Gives the lock's descriptor: a child process that keeps it open holds the lock, too. Raises `LockedError` at once,
    naming the holder, when another process has it; warns and goes on where the file system has no locks. The lock file
    is removed by its holder; who then finds itself holding the lock of a removed file tries again.
    """
    path = pathlib.Path(path)
    made = not path.parent.exists()
    while True:
        with _lock_file(path) as file:
            _lock(file, what)
            try:
                if not os.path.samestat(os.fstat(file.fileno()), path.stat()):
                    continue
            except FileNotFoundError:
                continue
            try:
                file.truncate(0)
                write_at(file.fileno(), f"{os.getpid()}\n".encode(), 0, path)
                yield file.fileno()
            finally:
                path.unlink(missing_ok=True)
                if made:  # and nothing has come into it
                    with contextlib.suppress(OSError):
                        path.parent.rmdir()
            return


def _lock_file(path: pathlib.Path) -> TextIO:
    """The open lock file, made if it is not there; `MocoembedError` where it cannot be."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return open(path, "a+")
    except OSError as error:
        if error.errno in NO_SPACE:
            raise write_error(path, error) from error
        raise MocoembedError(f"Cannot write into the folder {path.parent}: {error.strerror}. Allow it, or give another "
                             "folder by --output or --workspace.") from error


def _lock(file, what: str):
    """Lock the open lock file; what a dead holder's children still hold is waited for, a moment."""
    deadline = time.monotonic() + SECONDS_FOR_THE_DEAD
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError as error:
            file.seek(0)
            holder = file.read().strip() or "unknown"  # of one that has not written its id yet
            if is_running(holder) or time.monotonic() > deadline:
                raise LockedError(f"{what} is being written by another process (id {holder}). "
                                  "Wait for it to end, or give another name.") from error
            time.sleep(0.05)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            warnings.warn(f"The file system of {file.name} has no locks: make sure that no two processes write "
                          f"{what} at once.", stacklevel=2)
            return


def is_running(process: str) -> bool:
    """Whether there is a process of this id that is not merely waiting to be buried."""
    try:
        os.kill(int(process), 0)
        return pathlib.Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except PermissionError:
        return True
    except FileNotFoundError:
        return not os.path.isdir("/proc/self")
    except (ValueError, ProcessLookupError):
        return False


def reserve(descriptor: int, size: int, path):
    """Give the open file `size` bytes of the disk, or raise the error of a full one (see `write_error`).

    Warns where the file system cannot promise space; then a full disk is found when it is written to.
    """
    try:
        os.posix_fallocate(descriptor, 0, size)
    except (AttributeError, OSError) as error:  # there is none on macOS
        if isinstance(error, OSError) and error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP,
                                                              errno.ENOSYS):
            raise write_error(path, error) from error
        os.ftruncate(descriptor, size)
        warnings.warn(f"The file system of {path} cannot reserve space: if it fills up, run the command again once "
                      "there is room.", stacklevel=2)


def write_at(descriptor: int, data, offset: int, path):
    """Write all bytes of `data` (anything with a buffer) at `offset`; raises what `write_error` gives."""
    view = memoryview(data).cast("B")
    try:
        while view:
            written = os.pwrite(descriptor, view, offset)
            view, offset = view[written:], offset + written
    except OSError as error:
        raise write_error(path, error) from error


class StopRequest:
    """While the block runs, SIGINT and SIGTERM only set `signal_number`; ask `raise_if_set` at a safe point.

    A second signal is left to its usual effect, for people who cannot wait; not with `patient`, for a process that
    gets each signal from several sides. `said` is printed at the first one. Outside the main thread, it does nothing.
    """

    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)

    def __init__(self, patient: bool = False, said: str = ""):
        self.signal_number: int | None = None
        self.patient, self.said = patient, said
        self._previous: dict[int, Any] = {}

    def __enter__(self):
        with contextlib.suppress(ValueError):  # not in the main thread
            for number in self.signals:
                self._previous[number] = signal.signal(number, self._note)
        return self

    def _note(self, number, frame):
        with contextlib.suppress(OSError):  # what prints may be in the middle of it
            os.write(2, f"\n{self.said}\n".encode() if self.said and self.signal_number is None else b"")
        self.signal_number = number
        if not self.patient:
            self._restore()

    def _restore(self):
        while self._previous:
            signal.signal(*self._previous.popitem())

    def __exit__(self, *exception):
        if not (self.patient and self.signal_number):  # the same signal may come again while the process leaves
            self._restore()

    def raise_if_set(self, message: str):
        """Raise `Interrupted` with `message` when a signal has come."""
        if self.signal_number is not None:
            raise Interrupted(message, self.signal_number)


def require_place(path: pathlib.Path):
    """Raise `UsageError` unless a file can be made at the `--output` path."""
    if path.exists() and not path.is_file():
        what = "a folder" if path.is_dir() else "not a regular file"
        raise UsageError(f"--output {path}: is {what}. Give the name of a file.")
    above = next(one for one in path.absolute().parents if one.exists())
    if not above.is_dir():
        raise UsageError(f"--output {path}: {above} is a file, not a folder.")


def require_file(path, what: str, make_it: str) -> pathlib.Path:
    """`path` as a Path; `UsageError` unless it is a file. `make_it` is the command that makes one."""
    path = pathlib.Path(path)
    if not path.is_file():
        problem = "is a folder, not a file" if path.is_dir() else "does not exist"
        raise UsageError(f"{what} {str(path)!r} {problem}. Make one with: {make_it}")
    return path
