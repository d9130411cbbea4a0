"""What a figure was measured with, to be kept beside it."""

import importlib.metadata
import platform

from mocoembed import __version__


def processor() -> str:
    """The processor's name as Linux gives it, or else its kind."""
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.partition(":")[2].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def about() -> dict[str, str]:
    """Versions of mocoembed and torch, and the processor."""
    return {"version": __version__, "torch": importlib.metadata.version("torch"), "processor": processor()}
