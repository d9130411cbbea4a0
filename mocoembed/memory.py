"""How much memory this process can still take: asked before it is filled, not found out."""

import contextlib
import pathlib
import resource

from mocoembed.errors import MocoembedError

GIB, MIB = 1 << 30, 1 << 20


def shown(size: int) -> str:
    """Bytes for people: `5.9 MiB`, `2.31 GiB`."""
    return f"{size / GIB:.2f} GiB" if size >= GIB else f"{size / MIB:.1f} MiB"


def available_memory() -> int | None:
    """Bytes that can still be allocated: the least of the machine's, the control group's and the process's limit.

    `None` where the system does not say.
    """
    limits = [_machine(), _control_group(), _process()]
    return min((limit for limit in limits if limit is not None), default=None)


def _machine() -> int | None:
    with contextlib.suppress(OSError):
        for line in pathlib.Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return None


def _control_group() -> int | None:
    group = pathlib.Path("/sys/fs/cgroup")
    for limit, used, statistics in (
            ("memory.max", "memory.current", "memory.stat"),
            ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat")):
        with contextlib.suppress(OSError, ValueError):  # ValueError: the limit is `max`
            return (int((group / limit).read_text()) - int((group / used).read_text())
                    + _cached((group / statistics).read_text()))
    return None


def _cached(statistics: str) -> int:
    """Bytes of files in the cache, which count as used but are given up when asked for."""
    values = dict(line.split() for line in statistics.splitlines())
    return int(values.get("inactive_file", 0)) + int(values.get("active_file", 0))


def _process() -> int | None:
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY:
        return None
    with contextlib.suppress(OSError):
        return limit - int(pathlib.Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    return None


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
