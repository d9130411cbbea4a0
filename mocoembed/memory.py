"""Memory: how much this process can still take, asked before it is filled; and whether it keeps what it frees."""

import contextlib
import ctypes
import os
import pathlib
import resource

from mocoembed.errors import MocoembedError

GIB, MIB = 1 << 30, 1 << 20
IMAGE_MEMORY = "MOCOEMBED_IMAGE_MEMORY"  # the variable with the most that decoding one image may take
LARGEST_KEPT = 32 * MIB  # that glibc comes to keep by itself, of what a program frees
# In messages of errors that are no MemoryError: of torch on a CPU, of its DataLoader, and of a GPU's libraries, which
# allocate for themselves. A thread's stack is memory too.
NO_MEMORY = ("can't allocate memory", "not enough memory", "out of memory", "bad_alloc", "CUDNN_STATUS_ALLOC_FAILED",
             "CUBLAS_STATUS_ALLOC_FAILED", "unable to allocate shared memory", "can't start new thread",
             "could not execute a primitive", "could not create a primitive")  # oneDNN
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h of glibc


def shown(size: int) -> str:
    """Bytes for people: `5.9 MiB`, `2.31 GiB`."""
    return f"{size / GIB:.2f} GiB" if size >= GIB else f"{size / MIB:.1f} MiB"


def available_memory(sharing: int = 1) -> int | None:
    """Bytes that can still be allocated: the least of the machine's, the control group's and the process's limit.

    sharing: processes of this machine that fill its memory together; each gets an equal part of what they share.
    `None` where the system does not say.
    """
    shared = [limit // sharing for limit in (_machine(), _control_group()) if limit is not None]
    limits = [*shared, _process()]
    return min((limit for limit in limits if limit is not None), default=None)


def _machine() -> int | None:
    with contextlib.suppress(OSError):
        for line in pathlib.Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return None


def _control_group(root: pathlib.Path = pathlib.Path("/")) -> int | None:
    """The least of the process's own control group and those above it, of either version."""
    mounted, paths = root / "sys/fs/cgroup", {"": "/", "memory": "/"}  # controllers -> the process's group
    with contextlib.suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            paths["memory" if "memory" in controllers.split(",") else controllers] = path
    left = []
    for controllers, limit, used in (("", "memory.max", "memory.current"),
                                     ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes")):
        own = pathlib.PurePosixPath(paths[controllers].lstrip("/"))
        for group in (mounted / controllers / one for one in (own, *own.parents)):
            with contextlib.suppress(OSError, ValueError):  # not there, or the limit is `max`
                left.append(int((group / limit).read_text()) - int((group / used).read_text())
                            + _cached((group / "memory.stat").read_text()))
    return min(left, default=None)


def _cached(statistics: str) -> int:
    """Bytes of files in the cache, which count as used but are given up when asked for."""
    values = dict(line.split() for line in statistics.splitlines())
    return sum(int(values.get(f"total_{name}", values.get(name, 0)))  # total_: in version 1, with the groups below
               for name in ("inactive_file", "active_file"))


def _process() -> int | None:
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY:
        return None
    with contextlib.suppress(OSError):
        return limit - int(pathlib.Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    return None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether it is Python's, NumPy's or torch's way to say that an allocation failed, on a CPU or on a GPU."""
    return (isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"  # torch's, which is not loaded
            or any(sign in str(error) for sign in NO_MEMORY))


@contextlib.contextmanager
def within_memory(what: str, needed: int):
    """Run the block if `needed` bytes are available; `what` names the work.

    Raises `MocoembedError` before the block when they are not, and when the block runs out of memory all the same.
    """
    available = available_memory()
    if available is not None and needed > available:
        raise MocoembedError(f"{what} needs {needed / GIB:.2f} GiB of memory and {max(0, available) / GIB:.2f} GiB are "
                             "free. Free some, or use a machine with more.")
    try:
        yield
    except MemoryError as error:
        raise MocoembedError(f"{what} ran out of memory; it needs about {needed / GIB:.2f} GiB. "
                             "Free some, or use a machine with more.") from error


@contextlib.contextmanager
def freed_memory_kept():
    """While the block runs, the C library keeps freed memory for the next allocation; then it gives it back.

    By itself glibc gives every block over 32 MiB back to the system and has it filled with zeros again for the next
    tensor, which is a quarter of the time of an encoder on a CPU. It holds for the whole process. Does nothing with
    another C library.
    """
    keep_freed_blocks(GIB)
    try:
        yield
    finally:
        keep_freed_blocks(LARGEST_KEPT)
        if (libc := _glibc()) is not None:
            libc.malloc_trim(0)


def keep_freed_blocks(size: int):
    """Have glibc keep freed blocks of up to so many bytes; larger ones that it has not kept yet it gives back."""
    # Older versions refuse more than 32 MiB. The second setting alone would make it keep less than by itself.
    if (libc := _glibc()) is not None and libc.mallopt(M_MMAP_THRESHOLD, size):
        libc.mallopt(M_TRIM_THRESHOLD, min(2 * size, 2 * GIB - 1))  # an int


def _glibc() -> ctypes.CDLL | None:
    """The C library, if it is glibc."""
    with contextlib.suppress(AttributeError, OSError, ValueError):
        if (os.confstr("CS_GNU_LIBC_VERSION") or "").startswith("glibc"):
            return ctypes.CDLL(None)
    return None
