"""A GPU for machines without one: tensors that say they are on `cuda:0` and are computed on the CPU.

`with Pretended() as gpu:` in a process of its own. Which device a storage is on is kept beside it, so views, gradients
and parameters need nothing of their own. An operation on both devices raises, and so does a GPU's memory read as if it
were the host's. `gpu.waits` has what made the host wait for the GPU, `gpu.uploads` the copies to it. What was copied to
the host without waiting is garbage until an event recorded afterwards, or anything else, has been waited for.
"""

import traceback
from unittest import mock

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

CUDA, CPU = torch.device("cuda", 0), torch.device("cpu")
# Their results have a size or a value that the host must know. `isin` sorts and looks for unique values.
WAITING = {"_local_scalar_dense", "nonzero", "masked_select", "unique_dim", "_unique", "_unique2", "unique_consecutive",
           "equal", "isin", "bincount", "is_nonzero"}
REAL = {name: getattr(torch.Tensor, name) for name in ("to", "numpy", "__array__", "device")}


class Marks:
    """A set of storages, which does not keep them alive."""

    def __init__(self):
        self._found = {}

    def add(self, x):
        if len(self._found) > 20_000:
            self._found = {key: reference for key, reference in self._found.items() if not reference.expired()}
        storage = x.untyped_storage()
        self._found[storage._cdata] = StorageWeakRef(storage)  # whose address nothing else gets as long as it is here

    def __contains__(self, x):
        return x.untyped_storage()._cdata in self._found


class Event:
    """What was copied to the host before it was recorded has arrived once it was waited for."""

    def __init__(self, *_, **__):
        self.pending = []

    def record(self, stream=None):
        self.pending = list(Pretended.now.pending)

    def synchronize(self):
        Pretended.now.waits.append("Event.synchronize")
        Pretended.now.arrive(self.pending)


class Pretended(TorchDispatchMode):
    """The GPU; see the module."""

    now: "Pretended"
    cuda, pinned = Marks(), Marks()  # of all: constants are kept from one to the next

    def __init__(self):
        super().__init__()
        self.waits: list[str] = []
        self.uploads: list[str] = []
        self.moving = False
        self.pending: list[tuple[torch.Tensor, torch.Tensor]] = []

    def __enter__(self):
        Pretended.now, self._patches = self, list(patches(self))
        for patch in self._patches:
            patch.start()
        return super().__enter__()

    def __exit__(self, *reason):
        super().__exit__(*reason)
        for patch in self._patches:
            patch.stop()

    def wait(self, why: str):
        """The host waits for all that the GPU was given."""
        place = next((f"{frame.filename.rpartition('/')[2]}:{frame.lineno}"
                      for frame in reversed(traceback.extract_stack()) if "/mocoembed/" in frame.filename), "?")
        self.waits.append(f"{why} at {place}")
        self.arrive(list(self.pending))

    def arrive(self, copies):
        """Let these copies to the host be there, and those before them."""
        for host, values in copies:
            host.copy_(values)
        self.pending = [one for one in self.pending if not any(one is copy for copy in copies)]

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        name = function.__name__.partition(".")[0]
        tensors = [one for one in tree_flatten((args, kwargs))[0] if isinstance(one, torch.Tensor)]
        if any(x.is_meta for x in tensors) or str(kwargs.get("device")) == "meta":
            return function(*args, **kwargs)
        if name in ("copy_", "_to_copy"):
            return self.copied(function, args, kwargs, name)
        device, pinned = kwargs.get("device"), kwargs.pop("pin_memory", None)
        given = device is not None and torch.device(device).type == "cuda"
        # In `new_zeros` and `zeros_like` torch's own code calls the CPU what is the tensor's own device.
        on_gpu = given or (any(x in self.cuda for x in tensors) and (device is None or bool(tensors)))
        if device is not None:
            kwargs["device"] = CPU
        if on_gpu and not given:
            self.check(name, args, tensors)
        result = function(*args, **kwargs)
        for x in tree_flatten(result)[0]:
            if isinstance(x, torch.Tensor):
                self.mark(x, tensors, on_gpu, pinned)
        return result

    def mark(self, x, tensors, on_gpu, pinned):
        """Note where a result is, unless it is a view of what is there already."""
        if on_gpu and x not in self.cuda:
            self.cuda.add(x)
        if pinned:
            self.pinned.add(x)

    def check(self, name, args, tensors):
        """Raise for tensors on both devices; note an operation that waits."""
        indexing = name in ("index", "index_put", "index_put_", "_unsafe_index")
        strangers = [x for x in tensors if x not in self.cuda and x.dim() and not (indexing and x is not args[0])]
        if strangers:
            raise RuntimeError(f"{name}: tensors on cuda:0 and on cpu, {[tuple(x.shape) for x in strangers]}")
        indices = [x for x in (args[1] if indexing else []) if x is not None]
        if name in WAITING or any(x.dtype == torch.bool or x not in self.cuda for x in indices):
            self.wait(name)

    def copied(self, function, args, kwargs, name):
        """`copy_` and `_to_copy`, which go between devices."""
        if name == "copy_":
            target, source = args[:2]
            wait = not (kwargs.get("non_blocking") or (len(args) > 2 and args[2]))
            there, here = target in self.cuda, source in self.cuda
            result = function(*args, **kwargs)
        else:
            source, result, wait = args[0], None, not kwargs.get("non_blocking")
            here, device = source in self.cuda, kwargs.pop("device", None)
            # What torch's own code calls the CPU is where the tensor is.
            there = here if device is None or not self.moving else device.type == "cuda"
            result = target = function(*args, **{**kwargs, "pin_memory": None})
            if there:
                self.cuda.add(result)
        if there and not here:
            self.uploads.append(f"{tuple(source.shape)} {source.dtype}")
            if source.dim() and (wait or source not in self.pinned):
                self.wait("upload" if wait else "upload from memory that is not pinned")
        elif here and not there:
            if wait or target not in self.pinned:
                self.wait("download")
            else:
                self.pending.append((target, torch.empty_like(target).copy_(target)))
                target.fill_(float("nan") if target.is_floating_point() else -(2**6))
        return result


def moved(gpu: Pretended):
    """`Tensor.to` for tensors of both devices."""
    def to(self, *args, **kwargs):
        if args and isinstance(args[0], torch.Tensor):
            args = (args[0].device, args[0].dtype, *args[1:])
        copy = kwargs.pop("copy", False)
        device, dtype, non_blocking, layout = torch._C._nn._parse_to(*args, **kwargs)
        target, more = device or self.device, {} if layout is None else {"memory_format": layout}
        if "meta" in (target.type, self.device.type):
            return REAL["to"](self, *args, **kwargs, copy=copy)
        if target.type == self.device.type:
            copy = copy or (layout is not None and not self.is_contiguous(memory_format=layout))
            return self if dtype in (None, self.dtype) and not copy else \
                REAL["to"](self, dtype=dtype or self.dtype, copy=True, **more)
        gpu.moving = True
        try:
            return torch.ops.aten._to_copy(self, dtype=dtype, device=target, non_blocking=non_blocking, **more)
        finally:
            gpu.moving = False

    return to


def methods(gpu: Pretended) -> dict:
    """The methods of a tensor that never reach an operation."""
    def on_host(name):
        def read(self, *args, **kwargs):
            if self in gpu.cuda:
                raise TypeError("can't convert cuda:0 device type tensor to numpy")
            return REAL[name](self, *args, **kwargs)

        return read

    def pin_memory(self, device=None):
        if self in gpu.cuda:
            raise RuntimeError("cannot pin a tensor on cuda:0")
        pinned = self.clone()
        gpu.pinned.add(pinned)
        return pinned

    def device_of(self):
        real = REAL["device"].__get__(self)
        return CUDA if real.type == "cpu" and self in gpu.cuda else real

    return {"to": moved(gpu), "numpy": on_host("numpy"), "__array__": on_host("__array__"), "pin_memory": pin_memory,
            "tolist": lambda self: self.cpu().detach().numpy().tolist(), "is_pinned": lambda self: self in gpu.pinned,
            "cpu": lambda self, **more: self.to(CPU), "cuda": lambda self, *more, **named: self.to(CUDA),
            "device": property(device_of), "is_cuda": property(lambda self: self in gpu.cuda)}


def set_device(device):
    """As torch's: a device without an index is refused."""
    if not isinstance(device, int) and torch.device(device).index is None:
        raise ValueError(f"Expected a torch.device with a specified index or an integer, but got:{device}")


def patches(gpu: Pretended):
    """All that torch is to say of its GPU."""
    real_tensor, real_autocast = torch.tensor, torch.autocast

    def tensor(data, *, device=None, **kwargs):
        return real_tensor(data, **kwargs) if device is None else real_tensor(data, **kwargs).to(device)

    class Autocast(real_autocast):
        def __init__(self, device_type, *args, **kwargs):
            super().__init__("cpu", *args, **kwargs)

    nothing = lambda *_, **__: None  # noqa: E731
    cuda = {"is_available": lambda: True, "device_count": lambda: 1, "set_device": set_device, "Event": Event,
            "current_device": lambda: 0, "mem_get_info": lambda device=None: (2**33, 2**33),
            "synchronize": lambda device=None: gpu.wait("synchronize"), "_lazy_init": nothing,
            "current_stream": nothing, "empty_cache": nothing, "reset_peak_memory_stats": nothing,
            "max_memory_allocated": lambda *_: 0, "get_device_name": lambda *_: "pretended"}
    accelerator = {"is_available": lambda: True, "current_device_index": lambda: 0, "set_device_index": nothing,
                   "device_count": lambda: 1}
    for place, changes in ((torch.Tensor, methods(gpu)), (torch.cuda, cuda), (torch.accelerator, accelerator),
                           (torch, {"tensor": tensor, "autocast": Autocast})):
        for name, value in changes.items():
            yield mock.patch.object(place, name, value)
