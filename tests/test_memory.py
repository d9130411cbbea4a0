"""Memory that is kept when it is freed."""

import os
import subprocess
import sys

import pytest

from mocoembed import memory

SCRIPT = """
import resource, torch
from mocoembed.memory import LARGEST_KEPT, freed_memory_kept, keep_freed_blocks

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(8):
        torch.ones(1 << 24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize() >> 20

usual, before = faults(), resident()
with freed_memory_kept():
    keep_freed_blocks(LARGEST_KEPT)  # as a loading process does, before it reads anything
    in_a_worker = faults()
with freed_memory_kept():
    faults()
    kept, held = faults(), resident() - before
print(usual, in_a_worker, kept, held, resident() - before)
"""


@pytest.mark.skipif("CS_GNU_LIBC_VERSION" not in os.confstr_names, reason="the C library is not glibc")
def test_large_blocks_are_not_asked_for_again():
    """Of 8 blocks of 64 MiB each page comes from the system once, or every time; at the end it is given back."""
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    usual, in_a_worker, kept, held, left = map(int, done.stdout.split())
    assert kept < usual / 10
    assert in_a_worker > usual / 2
    assert held >= 60
    assert left < 10


class OlderLibrary:
    """glibc that refuses large values."""

    def __init__(self):
        self.calls = []

    def mallopt(self, setting, value):
        self.calls.append((setting, value))
        return int(value <= 32 << 20)


def test_a_library_that_refuses_is_left_as_it_is(monkeypatch):
    library = OlderLibrary()
    monkeypatch.setattr(memory, "_glibc", lambda: library)
    memory.keep_freed_blocks(1 << 30)
    assert library.calls == [(memory.M_MMAP_THRESHOLD, 1 << 30)]
    monkeypatch.setattr(memory, "_glibc", lambda: None)
    with memory.freed_memory_kept():
        pass
