"""The command line in processes that a test kills, stops, traces, or lets fail at a chosen operation.

They are forked from a server that has loaded what the commands need, so that embedding a dozen images takes a
fraction of a second. All else is as in a process of its own: the process group, what is printed, the exit.
"""

import contextlib
import ctypes
import gc
import itertools
import multiprocessing
import os
import pathlib
import resource
import shutil
import signal
import subprocess
import sys
from functools import partial

import pytest

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["mocoembed.cli.embed", "mocoembed.embed.extract", "mocoembed.info", "pytest"])
SECONDS = 900  # after which a run counts as hanging

needs_strace = pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace (a package of that name)")


class Run:
    """`mocoembed *arguments`, waiting for `go`; what it prints is in the files stdout and stderr of `folder`.

    `prepare` (a function of a module, or a partial of one) is called in the process before the command.
    """

    def __init__(self, folder, *arguments, prepare=None):
        self.folder = pathlib.Path(folder)
        self.folder.mkdir(exist_ok=True, parents=True)
        for name in ("stdout", "stderr"):
            (self.folder / name).write_bytes(b"")
        self._gate, gate = SERVER.Pipe()
        self._process = SERVER.Process(target=_run, args=(gate, self.folder, [str(one) for one in arguments], prepare))
        self._process.start()
        self.pid, self._tracer = self._process.pid, None

    def go(self) -> "Run":
        """Let the command begin."""
        self._gate.send(None)
        return self

    def trace(self, *options) -> "Run":
        """Attach strace, which follows its threads and processes too and writes to the file `strace` of the folder."""
        command = ["strace", "-f", "-o", self.folder / "strace", "-p", str(self.pid), *options]
        self._tracer = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        line = self._tracer.stderr.readline()
        if "attached" not in line:
            self.kill()
            pytest.skip(f"strace cannot attach to a process here: {line.strip()}")
        return self

    def signal(self, number: int):
        """Send a signal to the whole process group."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    def kill(self) -> int:
        """`kill -9` of the process group; the status, as of `wait`."""
        self.signal(signal.SIGKILL)
        return self.wait()

    def wait(self) -> int:
        """Wait for the end: the exit status, or minus the number of the signal that ended it."""
        self._process.join(SECONDS)
        if self._process.is_alive():
            self.signal(signal.SIGKILL)
            pytest.fail(f"still running after {SECONDS} s")
        if self._tracer is not None:
            self._tracer.communicate(timeout=SECONDS)
        return self._process.exitcode

    @property
    def running(self) -> bool:
        """Whether it has not ended yet."""
        return self._process.is_alive()

    @property
    def stdout(self) -> str:
        """What it has printed so far."""
        return (self.folder / "stdout").read_text()

    @property
    def stderr(self) -> str:
        """What it has said so far."""
        return (self.folder / "stderr").read_text()


def _run(gate, folder: pathlib.Path, arguments: list[str], prepare):
    """In the new process: become the leader of a group, wait for the test, run the command, exit as Python does."""
    import torch

    from mocoembed.cli.main import main

    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # what comes before the command counts as coming in it
    os.setsid()
    multiprocessing.set_start_method(None, force=True)  # the usual one, not that of the server
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    gate.recv()
    if prepare is not None:
        prepare()
    status = 0
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        main(arguments)
    except SystemExit as leaving:
        status = leaving.code or 0
    except KeyboardInterrupt:  # in the line above
        status = 130
    sys.stdout.flush()
    sys.stderr.flush()
    gc.freeze()  # spares the exit a search through all that the server has loaded
    # multiprocessing would leave by os._exit, and a crash of a library at the interpreter's exit would not be seen.
    ctypes.pythonapi.Py_Exit(status)


def in_turn(*functions):
    """Call each of `functions`; with `partial` a `prepare` of several parts."""
    for function in functions:
        function()


def kill():
    """End this process as `kill -9` does."""
    os.kill(os.getpid(), signal.SIGKILL)


def at_operation(n: int, act, kinds=("read", "write", "remove")):
    """In this process, call `act` before the n-th operation on the disk, and before all later ones.

    Operations of the kind "write" are opening for writing, `os.pwrite`, fsync, reserving, cutting and renaming;
    "read" is all other opening, and "remove" removing and making folders.
    """
    count = itertools.count(1)

    def one():
        if next(count) >= n:
            act()

    def kind_of(event, arguments) -> str | None:
        if event == "open":
            return "write" if arguments[2] & (os.O_WRONLY | os.O_RDWR) else "read"
        return {"os.rename": "write", "os.truncate": "write", "os.remove": "remove", "os.mkdir": "remove"}.get(event)

    def counted(function, *arguments):
        one()
        return function(*arguments)

    for name in ("fsync", "fdatasync", "pwrite", "pwritev", "posix_fallocate"):
        if hasattr(os, name):
            setattr(os, name, partial(counted, getattr(os, name)))
    sys.addaudithook(lambda event, arguments: one() if kind_of(event, arguments) in kinds else None)
