"""Memory that processes share without a name in the file system, and the way of a batch out of a loading process.

What torch shares lies in `/dev/shm`, of which Docker gives a container 64 MB; who writes more is killed. Memory of
memfd_create(2) has no such limit. It counts as memory of the processes that use it, and is gone with the last of them.
Only Linux has it: elsewhere batches travel as torch sends them.
"""

import dataclasses
import errno
import mmap
import os
from multiprocessing import reduction
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data._utils.pin_memory import pin_memory

AVAILABLE = hasattr(os, "memfd_create")
ALIGNMENT = 64  # bytes


class SharedBytes:
    """Zeroed memory that forked and spawned processes, and others of the same user on this machine, can open."""

    def __init__(self, size: int, path: str | None = None):
        self.size = size
        if path is None:
            self._descriptor = os.memfd_create("mocoembed")
            os.truncate(self._descriptor, max(1, size))
        else:
            self._descriptor = os.open(path, os.O_RDWR)
        self._map = mmap.mmap(self._descriptor, max(1, size))
        self.path = f"/proc/{os.getpid()}/fd/{self._descriptor}"
        """Where others find it, as long as this process lives."""
        self.array = np.frombuffer(self._map, np.uint8, size)

    def __reduce__(self):
        return SharedBytes, (self.size, self.path)

    def __del__(self):
        if hasattr(self, "_descriptor"):
            os.close(self._descriptor)


class SharedRows:
    """`array` (rows, columns) int64, -1 everywhere at first: loading processes, forked or spawned, write to it."""

    def __init__(self, rows: int, columns: int, memory: Any = None):
        self._shape = rows, columns
        self._memory = _shared_numbers(rows * columns) if memory is None else memory
        numbers = self._memory.array.view(np.int64) if AVAILABLE else self._memory.numpy()
        self.array: np.ndarray = numbers.reshape(rows, columns)
        if memory is None:
            self.array[:] = -1

    def __reduce__(self):
        return SharedRows, (*self._shape, self._memory)


def _shared_numbers(count: int) -> Any:
    """Memory for so many int64 numbers, in a form that can be sent to a process that is being started."""
    return SharedBytes(8 * count) if AVAILABLE else torch.empty(count, dtype=torch.int64).share_memory_()


def _mapped(descriptor: int, size: int, dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
    """A tensor over all the memory behind a descriptor, which may then be closed."""
    file = f"/proc/self/fd/{descriptor}"
    return torch.from_file(file, shared=True, size=size // dtype.itemsize, dtype=dtype).view(shape)


class _Place(NamedTuple):
    """Where a tensor lies in a parcel."""

    first: int
    """Byte at which its storage begins."""
    offset: int
    """Its first element, in elements from there."""
    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class Parcel:
    """A batch on its way out of a loading process: its tensors lie in memory of their own, the rest goes by pipe."""

    def __init__(self, batch: Any):
        """Copy the tensors of `batch`, however deep in its tuples, lists and dataclasses they are.

        Raises `MemoryError` when there is no memory for them.
        """
        self.size = 0
        """Bytes of all tensors."""
        firsts: dict[int, int] = {}  # address of a storage -> where it lies in the parcel
        storages: list[torch.UntypedStorage] = []

        def place(tensor: torch.Tensor) -> _Place:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in firsts:
                firsts[storage.data_ptr()] = self.size
                storages.append(storage)
                self.size += -(-storage.nbytes() // ALIGNMENT) * ALIGNMENT
            first = firsts[storage.data_ptr()]
            return _Place(first, int(tensor.storage_offset()), tensor.dtype, tuple(tensor.shape), tensor.stride())

        self.content = _replaced(batch, torch.Tensor, place)
        descriptor = os.memfd_create("mocoembed-batch")
        try:
            for storage, first in zip(storages, firsts.values()):
                _write(descriptor, storage, first)
            os.truncate(descriptor, self.size)
            self._descriptor = reduction.DupFd(descriptor)  # here, not when it is sent: a thread that fails is silent
        except OSError as error:
            if error.errno in (errno.ENOMEM, errno.ENOSPC):
                raise MemoryError(f"no memory for a batch of {self.size} bytes") from error
            raise
        finally:
            os.close(descriptor)

    def open(self) -> Any:
        """The batch; to be called once, in the parent, while the loading process lives (else an `OSError`)."""
        descriptor = self._descriptor.detach()
        try:
            memory = (_mapped(descriptor, self.size, torch.uint8, (self.size,)) if self.size else
                      torch.empty(0, dtype=torch.uint8)).untyped_storage()
        finally:
            os.close(descriptor)

        def tensor(place: _Place) -> torch.Tensor:
            if 0 in place.shape:
                return torch.empty(place.shape, dtype=place.dtype)
            return torch.empty(0, dtype=place.dtype).set_(
                memory, place.first // place.dtype.itemsize + place.offset, place.shape, place.stride)

        return _replaced(self.content, _Place, tensor)

    def pin_memory(self) -> Any:
        """The batch, in memory from which a GPU can copy while others compute; called by a DataLoader's thread."""
        return pin_memory(self.open())


def _write(descriptor: int, storage: torch.UntypedStorage, first: int):
    """Put the bytes of a storage at place `first`. Written, not mapped: a lack of memory is then an error, no death."""
    data = torch.empty(0, dtype=torch.uint8).set_(storage).numpy().data
    done = 0
    while done < len(data):
        done += os.pwrite(descriptor, data[done:], first + done)


def _replaced(value: Any, kind: type, function) -> Any:
    """`value` with `function(part)` for each part of a `kind`, in tuples, lists and dataclasses."""
    if isinstance(value, kind):
        return function(value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_replaced(part, kind, function) for part in value))
    if isinstance(value, tuple | list):
        return type(value)(_replaced(part, kind, function) for part in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.replace(value, **{field.name: _replaced(getattr(value, field.name), kind, function)
                                             for field in dataclasses.fields(value)})
    return value


def parcel(batch: Any) -> Any:
    """The batch as it is best handed over by a loading process."""
    return Parcel(batch) if AVAILABLE else batch


def opened(batch: Any) -> Any:
    """What `parcel` was given, in the parent."""
    return batch.open() if isinstance(batch, Parcel) else batch
