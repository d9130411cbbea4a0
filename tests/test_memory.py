"""Memory that is kept when it is freed."""

import os
import subprocess
import sys

import pytest

SCRIPT = """
import resource, sys, torch
from mocoembed.memory import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(8):
        torch.ones(1 << 24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
usual = faults()
keep_freed_memory()
faults()
kept = faults()
keep_freed_memory(32 << 20)
faults()
print(usual, kept, faults())
"""


@pytest.mark.skipif("CS_GNU_LIBC_VERSION" not in os.confstr_names, reason="the C library is not glibc")
def test_large_blocks_are_not_asked_for_again():
    """Of 8 blocks of 64 MiB each page comes from the system once, or every time."""
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    usual, kept, given_back = map(int, done.stdout.split())
    assert kept < usual / 10
    assert given_back > usual / 2
