"""Code for a GPU, run on tensors that have a shape, a dtype, a layout and the device `cuda:0`, but no values.

`with FakeGpu() as gpu:` in a process of its own. What is on the CPU is real and computed; what is on the GPU is
PyTorch's `FakeTensor`, by whose rules shapes, dtypes, strides and devices follow, as on a GPU: an operation on tensors
of both devices raises, and so does a wrong shape. `gpu.waits` has what made the host wait for a value; it gets 0.
"""

from unittest import mock

import torch
from pretended_cuda import Marks
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

WAITING = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "isin", "bincount", "is_nonzero"}
HOST_MEMORY = {"_pin_memory", "pin_memory"}


class Rules(FakeTensorMode):
    """PyTorch's, told that there is no GPU to wake, whatever `torch.cuda` says."""

    avoid_device_init = True


class FakeGpu(TorchDispatchMode):
    """The GPU; see the module."""

    rules = Rules(allow_non_fake_inputs=True)  # of all: constants are kept from one to the next

    def __init__(self):
        super().__init__()
        self.waits: list[str] = []
        self.memory = Marks()

    def __enter__(self):
        self._patches = list(patches(self))
        for patch in self._patches:
            patch.start()
        with self.rules:
            pass  # it lets PyTorch believe in the device
        return super().__enter__()

    def __exit__(self, *reason):
        super().__exit__(*reason)
        for patch in self._patches:
            patch.stop()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        name = function.__name__.partition(".")[0]
        if function.namespace == "aten" and \
                torch._C._dispatch_has_kernel_for_dispatch_key(function.name(), "CompositeImplicitAutograd"):
            return self.in_parts(function, args, kwargs)  # as in inference mode
        tensors = [one for one in tree_flatten((args, kwargs))[0] if isinstance(one, torch.Tensor)]
        on_gpu = any(isinstance(one, FakeTensor) for one in tensors)
        device = kwargs.get("device")
        if not on_gpu and (device is None or torch.device(device).type != "cuda"):
            kwargs.pop("pin_memory", None)  # there is none here
            return args[0].clone() if name in HOST_MEMORY else function(*args, **kwargs)
        if name in WAITING:
            self.waits.append(name)
            return 0.0
        if name == "copy_" and not isinstance(args[0], FakeTensor):  # to the host
            if not (kwargs.get("non_blocking") or (len(args) > 2 and args[2])):
                self.waits.append("download")
            return args[0].fill_(1)
        if name == "_to_copy" and device is not None and torch.device(device).type == "cpu":
            self.waits.append("download")
            return torch.ones(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
        self.note_waiting(name, args)
        with self.rules:
            return function(*args, **kwargs)

    def note_waiting(self, name, args):
        """Uploads from memory that is not pinned; indices on the CPU, or of which it must be known how many."""
        if name == "_to_copy" and not isinstance(args[0], FakeTensor) and args[0] not in self.memory:
            self.waits.append("upload from memory that is not pinned")
        if name in ("index", "index_put", "index_put_"):
            indices = [one for one in args[1] if one is not None]
            if any(one.dtype == torch.bool or not isinstance(one, FakeTensor) for one in indices):
                self.waits.append(name)

    def pinned(self, x):
        """A copy in memory from which a GPU can copy without waiting."""
        copy = x.clone()
        self.memory.add(copy)
        return copy

    def in_parts(self, function, args, kwargs):
        """An operation that is made of others."""
        super().__enter__()
        try:
            return function.decompose(*args, **kwargs)
        finally:
            super().__exit__(None, None, None)


class Event:
    """All is over at once."""

    def __init__(self, *_, **__):
        pass

    def record(self, stream=None):
        pass

    def synchronize(self):
        pass


def applied(self, change, recurse=True):
    """`nn.Module._apply`, with new parameters: a `FakeTensor` cannot be put into an old one."""
    for module in self.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                with torch.no_grad():
                    new = change(parameter)
                module._parameters[name] = torch.nn.Parameter(new, parameter.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = change(buffer)
    return self


def backward(loss: torch.Tensor):
    """`Tensor.backward`, node by node: PyTorch's engine asks the driver for the streams of a GPU that is not there."""
    waiting = dependencies(loss.grad_fn)
    arrived: dict = {loss.grad_fn: {0: torch.ones_like(loss)}}
    ready = [loss.grad_fn]
    while ready:
        node = ready.pop()
        given = arrived.pop(node, {})
        found = backward_of(node, [given.get(place) for place in range(max(given, default=-1) + 1)])
        for (following, place), gradient in zip(node.next_functions, found):
            if following is None:
                continue
            if gradient is not None:
                there, gradient = arrived.setdefault(following, {}), fitting(gradient, following, place)
                there[place] = there[place] + gradient if place in there else gradient
            waiting[following] -= 1
            if not waiting[following]:
                ready.append(following)


@torch.no_grad()
def backward_of(node, given: list) -> tuple:
    """What a node of the graph passes on; a leaf keeps it."""
    if not given:
        return (None,) * len(node.next_functions)
    if hasattr(node, "variable"):
        leaf = node.variable
        leaf.grad = given[0] if leaf.grad is None else leaf.grad + given[0]
        return ()
    found = node.apply(*given) if isinstance(node, torch.autograd.function.BackwardCFunction) else node(*given)
    return found if isinstance(found, tuple) else (found,)


def fitting(gradient, node, place: int):
    """As the engine wants it: summed up over what was broadcast, in the dtype of what it belongs to, on its device."""
    wanted = node._input_metadata[place]
    if gradient.device.type != wanted.device.type:
        raise RuntimeError(f"{node.name()}: a gradient on {gradient.device} for {wanted.device}")
    return gradient.sum_to_size(wanted.shape).to(wanted.dtype)


def dependencies(first) -> dict:
    """How many gradients each node of the graph waits for."""
    counts, open_now, seen = {}, [first], {first}
    while open_now:
        for following, _ in open_now.pop().next_functions:
            if following is not None:
                counts[following] = counts.get(following, 0) + 1
                if following not in seen:
                    seen.add(following)
                    open_now.append(following)
    return counts


def patches(gpu: FakeGpu):
    """All that torch is to say of its GPU."""
    real_tensor = torch.tensor

    def tensor(data, *, device=None, **kwargs):
        return real_tensor(data, **kwargs) if device is None else real_tensor(data, **kwargs).to(device)

    nothing = lambda *_, **__: None  # noqa: E731
    cuda = {"is_available": lambda: True, "device_count": lambda: 1, "set_device": nothing, "Event": Event,
            "current_device": lambda: 0, "mem_get_info": lambda device=None: (2**33, 2**33), "_lazy_init": nothing,
            "current_stream": nothing, "is_bf16_supported": lambda *_: True, "synchronize": nothing,
            "reset_peak_memory_stats": nothing, "empty_cache": nothing,
            **dict.fromkeys(("memory_allocated", "max_memory_allocated", "memory_reserved"), lambda *_: 0)}
    methods = {"pin_memory": lambda self, device=None: gpu.pinned(self), "backward": backward}
    for place, changes in ((torch.cuda, cuda), (torch.nn.Module, {"_apply": applied}), (torch, {"tensor": tensor}),
                           (torch.Tensor, methods)):
        for name, value in changes.items():
            yield mock.patch.object(place, name, value)
