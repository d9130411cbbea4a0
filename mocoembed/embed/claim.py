"""Which file an embed run writes, and the lock that lets one run at a time write it; loads nothing heavy."""

import contextlib
import os
import pathlib
import threading
from collections.abc import Iterator

from mocoembed.config import EmbedConfig
from mocoembed.files import locked, require_place, through_link
from mocoembed.workspace import Workspace


def output_file(config: EmbedConfig) -> pathlib.Path:
    """`--output`, or the workspace's embeddings file; of a link, what it names, so that all lies beside that."""
    return through_link(config.output or Workspace(config.workspace).embeddings)


_held: dict[tuple[str, int], int] = {}  # (lock file, thread) -> descriptor


@contextlib.contextmanager
def output_lock(config: EmbedConfig) -> Iterator[int | None]:
    """Hold the lock of the output, as `locked` does; of a group that torchrun or srun has started, rank 0 does.

    The same thread may enter again: the command line locks before it loads what takes seconds, and who comes second
    leaves at once.

    Raises `UsageError` when there is no encoder at all, or the output cannot be a file, before a lock file is made.
    """
    if config.encoder is None:
        Workspace(config.workspace).encoder(None)
    given = os.environ
    in_a_group = {"RANK", "WORLD_SIZE"} <= given.keys() or int(given.get("SLURM_STEP_NUM_TASKS", 1)) > 1
    if in_a_group and int(given.get("RANK", given.get("SLURM_PROCID", 0))) > 0:
        yield None
        return
    output = output_file(config)
    require_place(output)
    path = output.with_name(f".{output.name}.lock")
    mine = os.path.abspath(path), threading.get_ident()
    if mine in _held:
        yield _held[mine]
        return
    with locked(path, str(output)) as lock:
        _held[mine] = lock
        try:
            yield lock
        finally:
            del _held[mine]
