"""Several processes for one command: started here, or joined when torchrun or SLURM has started them.

Processes started here are children of this one, made from a function: they die with it, and whatever they raise or
say comes back through a pipe. The first that fails ends the others.
"""

import contextlib
import datetime
import multiprocessing
import multiprocessing.connection
import os
import re
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from functools import partial
from multiprocessing import reduction
from typing import Any

import torch
import torch.distributed as dist

from mocoembed.cores import cores
from mocoembed.errors import Interrupted, MocoembedError, ProcessError, UsageError
from mocoembed.files import StopRequest
from mocoembed.model.ranks import ALONE, Ranks
from mocoembed.notes import counted

SECONDS_TO_LEAVE = 2.0  # for the others after one process failed, before they are ended
SECONDS_BETWEEN_LOOKS = 0.2
SECONDS_TO_SAVE = 60.0  # after a signal, or after the launcher has gone


def run_on_ranks(work: Callable, config, watcher, lock: int | None = None):
    """`work(config, ranks, watcher)` in as many processes as `process_count` says, or in the group found; its result.

    `config` has the fields `processes`, `device` and `timeout`; in each process its device is the process's own.
    `watcher` is a dataclass of functions. Processes started here keep the descriptor `lock` open. In a group of
    torchrun's or srun's the ranks but the first get what `work` gives them there. Raises what `work` raises, and
    `ProcessError` when a process dies or hangs.
    """
    joined = joined_ranks()
    if joined is None and (processes := process_count(config)) > 1:
        return start(work, config, processes, watcher, lock)
    ranks = joined or ALONE
    config = replace(config, device=local_device(config, ranks))
    try:
        with process_group(ranks, config.device, config.timeout):
            return work(config, ranks, watcher)
    except RuntimeError as error:
        if ranks.size > 1 and is_of_communication(error):
            raise ProcessError(f"Rank {ranks.rank} has lost the others: one of them has ended or hangs ("
                               f"{' '.join(str(error).split())[:200]}). What was saved is kept; run the same command "
                               "again to continue.") from error
        raise


def joined_ranks() -> Ranks | None:
    """This process's place in the group that torchrun or srun has started; `None` when there is none.

    For srun, the environment variables that torch.distributed reads are set from SLURM's.
    """
    given = os.environ
    if "SLURM_STEP_ID" in given and int(given.get("SLURM_STEP_NUM_TASKS", 1)) > 1 and "RANK" not in given:
        given["RANK"], given["WORLD_SIZE"] = given["SLURM_PROCID"], given["SLURM_STEP_NUM_TASKS"]
        given["LOCAL_RANK"] = given["SLURM_LOCALID"]
        # "4(x2),3": four tasks on each of two nodes, three on the next
        counts = [int(count) for count, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", given["SLURM_STEP_TASKS_PER_NODE"])
                  for _ in range(int(times or 1))]
        given["LOCAL_WORLD_SIZE"] = str(counts[int(given.get("SLURM_NODEID", 0))])
        given.setdefault("MASTER_ADDR", first_host(given["SLURM_STEP_NODELIST"]))
        step = int(given["SLURM_JOB_ID"]) + 1009 * int(given["SLURM_STEP_ID"])  # steps of a job may share a node
        given.setdefault("MASTER_PORT", str(20000 + step % 20000))
    if "RANK" not in given or "WORLD_SIZE" not in given:
        return None
    return Ranks(*(int(given.get(name, default)) for name, default in (
        ("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0), ("LOCAL_WORLD_SIZE", 1))))


def first_host(nodes: str) -> str:
    """The first host of a SLURM node list: `gpu[03-05,9],login1` -> `gpu03`."""
    match = re.match(r"([^\[,]*)(?:\[(\w+)[^\]]*\])?([^,\[]*)", nodes)
    assert match  # any part may be empty
    prefix, numbers, suffix = match.groups()
    return prefix + (numbers or "") + suffix


def process_count(config) -> int:
    """`--processes`, or one for each visible GPU, or one on a CPU or a named GPU."""
    if config.processes is not None:
        return config.processes
    return max(1, torch.cuda.device_count()) if config.device in ("auto", "cuda") else 1


def local_device(config, ranks: Ranks) -> str:
    """`--device` for this process: a GPU of its own where there are any; `UsageError` when there are too few."""
    if ranks.size == 1 or config.device == "cpu" or not torch.cuda.is_available():
        return config.device
    if config.device not in ("auto", "cuda"):
        raise UsageError(f"--device {config.device}: one GPU cannot serve {ranks.size} processes. Give --device cuda, "
                         "or --processes 1.")
    if torch.cuda.device_count() == 1 and "SLURM_PROCID" in os.environ:
        return "cuda:0"  # srun has given each task its own GPU and hides the others
    if ranks.local_rank >= torch.cuda.device_count():
        raise UsageError(f"--processes {ranks.local_size}: this machine has "
                         f"{counted(torch.cuda.device_count(), 'visible GPU')}. Give as many processes or fewer, or "
                         "--device cpu.")
    return f"cuda:{ranks.local_rank}"


def share_of_cores(ranks: Ranks) -> int:
    """Cores for this process: its part of those that the processes share, or those that srun has bound it to."""
    bound = "SLURM_PROCID" in os.environ and cores() * ranks.local_size <= (os.cpu_count() or 1)
    return cores() if bound else max(1, cores() // ranks.local_size)


def is_of_communication(error: RuntimeError) -> bool:
    """Whether it is torch.distributed's way to say that another rank does not answer."""
    return isinstance(error, dist.DistError) or any(
        word in str(error) for word in ("gloo", "NCCL", "Connection closed"))


@contextlib.contextmanager
def process_group(ranks: Ranks, device: str, timeout: float, store: Any = None) -> Iterator[None]:
    """Belong to the group of all ranks while the block runs: NCCL between GPUs, gloo between CPUs.

    They meet at `store`, or where the environment says (MASTER_ADDR, MASTER_PORT). Waiting for another rank for more
    than `timeout` seconds is an error.
    """
    if ranks.size == 1:
        yield
        return
    on_gpu = device.startswith("cuda")
    if on_gpu:
        torch.cuda.set_device(device)
    else:
        torch.set_num_threads(share_of_cores(ranks))
    dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo", store=store, rank=ranks.rank,
                            world_size=ranks.size, timeout=datetime.timedelta(seconds=timeout))
    yield
    dist.destroy_process_group()  # after an error the process ends without: the others may never answer


def start(work: Callable, config, processes: int, watcher, lock: int | None = None):
    """Run `work(config, ranks, watcher)` in that many processes of this machine and return what it gave on rank 0.

    See `run_on_ranks`. SIGINT, SIGTERM and SIGUSR1 are passed on, so that the processes save and leave.
    """
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    receiver, sender = multiprocessing.get_context("spawn").Pipe(duplex=False)
    pipe = _Pipe(sender, multiprocessing.get_context("spawn").Lock(), type(watcher), _Kept(lock))
    with StopRequest() as stop:
        with _interrupt_ignored():
            context = torch.multiprocessing.start_processes(
                _process, (work, config, (os.getpid(), processes, store.port), pipe), processes, join=False,
                start_method="spawn")
        sender.close()
        try:
            return _attend(context, receiver, watcher, stop)
        finally:
            for process in context.processes:
                process.kill()
                process.join()


class _Kept:
    """A descriptor that a process started with it keeps open; `None` for none."""

    def __init__(self, descriptor: int | None):
        self.descriptor = descriptor

    def __reduce__(self):
        return _kept, (None if self.descriptor is None else reduction.DupFd(self.descriptor),)


def _kept(duplicate) -> _Kept:
    return _Kept(None if duplicate is None else duplicate.detach())


class _Pipe:
    """The way from a process to the launcher, for messages (kind, *values)."""

    def __init__(self, sender, lock, watcher_class: type, kept: _Kept):
        self.sender, self.lock, self.watcher_class, self.kept = sender, lock, watcher_class, kept

    def send(self, *message):
        with self.lock, contextlib.suppress(OSError):  # the launcher may be no more
            self.sender.send(message)

    def watcher(self):
        """A watcher whose every function is called in the launcher."""
        return self.watcher_class(**{field.name: partial(self.send, field.name)
                                     for field in fields(self.watcher_class)})


@contextlib.contextmanager
def _interrupt_ignored() -> Iterator[None]:
    """Processes started in the block take no notice of Ctrl-C, which their terminal sends to all."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _attend(context, receiver, watcher, stop: StopRequest):
    """Pass on signals one way and messages the other, until all processes have ended or one has failed."""
    results: dict[str, Any] = {}
    try:
        while not context.join(0, grace_period=SECONDS_TO_SAVE if stop.signal_number else SECONDS_TO_LEAVE):
            multiprocessing.connection.wait([receiver, *context.sentinels], SECONDS_BETWEEN_LOOKS)
            _receive(receiver, watcher, results)
            if stop.signal_number is not None:  # again at every look: a process may not have listened yet
                for process in (one for one in context.processes if one.is_alive()):
                    os.kill(process.pid, stop.signal_number)
    except (torch.multiprocessing.ProcessExitedException, torch.multiprocessing.ProcessRaisedException) as ended:
        _receive(receiver, watcher, results)
        # Those that had to be killed afterwards did not answer the others either.
        silent = [rank for rank, process in enumerate(context.processes)
                  if process.exitcode == -signal.SIGKILL and rank != ended.error_index]
        raise _reason(ended, results.get("error"), silent, stop) from None
    _receive(receiver, watcher, results)
    return results.get("result")


def _reason(ended, error: MocoembedError | str | None, silent: list[int], stop: StopRequest) -> MocoembedError:
    """What to raise when a process has ended badly; a mere consequence of another's end is no reason."""
    if stop.signal_number is not None and not isinstance(error, Interrupted):
        return Interrupted("Stopped. Run the same command again to continue.", stop.signal_number)
    signal_name, status = getattr(ended, "signal_name", None), getattr(ended, "exit_code", 1)
    if isinstance(error, Interrupted) and signal_name and stop.signal_number is None:
        error = None  # from one that was asked to end, because another had died
    if isinstance(error, MocoembedError):
        return error
    if error and silent and "imed out" in error:
        error = f"Rank {', '.join(map(str, silent))} did not answer within --timeout. {error}"
    elif signal_name or not error:
        how = f"was killed by {signal_name}" if signal_name else f"ended with status {status}"
        error = f"Rank {ended.error_index} (process {ended.error_pid}) {how}."
    return ProcessError(f"{error} What was saved is kept; run the same command again to continue.")


def _receive(receiver, watcher, results: dict[str, Any]):
    """Give the watcher what has come through the pipe for it; keep the result, and the first error."""
    with contextlib.suppress(EOFError):
        while receiver.poll():
            kind, *values = receiver.recv()
            if kind in ("result", "error"):
                results.setdefault(kind, values[0])
            else:
                getattr(watcher, kind)(*values)


def _process(rank: int, work: Callable, config, group: tuple[int, int, int], pipe: _Pipe):
    """One of the processes that `start` started; `group`: the launcher's id, their number, the port of the store."""
    launcher, processes, port = group
    threading.Thread(target=_leave_with_the_launcher, args=(launcher,), daemon=True).start()
    for number in (signal.SIGINT, signal.SIGUSR1):  # they are for the launcher, which passes them on
        signal.signal(number, signal.SIG_IGN)
    if sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")

    warnings.showwarning = lambda message, *place: pipe.send("note", f"mocoembed: {message}")
    ranks = Ranks(rank, processes, rank, processes)
    try:
        config = replace(config, device=local_device(config, ranks))
        store = dist.TCPStore("127.0.0.1", port, is_master=False)
        with process_group(ranks, config.device, config.timeout, store):
            result = work(config, ranks, pipe.watcher())
        if ranks.first:
            pipe.send("result", result)
        return
    except MocoembedError as error:
        if not error.quiet:
            pipe.send("error", error)
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        pipe.send("error", f"Rank {rank} (process {os.getpid()}) failed: {type(error).__name__}: {reason}.")
        os._exit(1)  # at once: an orderly end would wait for the other ranks
    sys.exit(1)


def _leave_with_the_launcher(launcher: int):
    """Save and end when the launcher is no more, even if no signal came from it."""
    while os.getppid() == launcher:
        time.sleep(1.0)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(SECONDS_TO_SAVE)
    os._exit(1)
