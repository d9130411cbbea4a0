"""Where and in which arithmetic the encoders run."""

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from mocoembed.errors import UsageError
from mocoembed.memory import freed_memory_kept

SLOW = 1.5  # times as long as fp32, from which on bf16 is advised against
TRIAL = (32, 16, 32)  # channels, side and images of the convolution by which bf16 is tried

@dataclass(frozen=True)
class Compute:
    """A device and a precision; autocast for bf16 and fp16, whose weights stay in float32."""

    device: torch.device
    precision: str

    @classmethod
    def of(cls, device: str, precision: str) -> "Compute":
        """From the options `--device` and `--precision`; `UsageError` for a device that is not there."""
        name = device
        if device == "auto":
            name = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            chosen = torch.device(name)
        except RuntimeError as error:
            raise UsageError(f"--device {device}: must be auto, cpu, cuda or cuda:N.") from error
        if chosen.type == "cuda" and chosen.index is None:
            chosen = torch.device("cuda", 0)  # tensors name their GPU, and `set_device` takes no other form
        available = {"cpu": 1, "cuda": torch.cuda.device_count()}.get(chosen.type, 0)
        if (chosen.index or 0) >= available:
            raise UsageError(f"--device {device}: not on this machine, which has the CPU and "
                             f"{torch.cuda.device_count()} CUDA GPUs. Give --device auto or cpu.")
        if precision == "fp16" and chosen.type == "cpu":
            raise UsageError("--precision fp16: needs a GPU. On a CPU give bf16 or fp32.")
        return cls(chosen, precision)

    @classmethod
    def nearest(cls, device: str, precision: str) -> "Compute":
        """`of`, but fp32 where the device cannot do fp16."""
        on_cpu = cls.of(device, "fp32").device.type == "cpu"
        return cls.of(device, "fp32" if precision == "fp16" and on_cpu else precision)

    @property
    def dtype(self) -> torch.dtype:
        """Of weights and inputs: float64 for fp64, else float32."""
        return torch.float64 if self.precision == "fp64" else torch.float32

    def autocast(self):
        """The context in which encoders run."""
        if self.precision not in ("bf16", "fp16"):
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16 if self.precision == "bf16" else torch.float16)

    def exact(self):
        """The context in which fp32 on a GPU is float32 throughout, not TF32: for embeddings, which are compared."""
        return _no_tf32() if self.device.type == "cuda" and self.precision == "fp32" else contextlib.nullcontext()

    def keeping_memory(self):
        """The context in which a CPU keeps the memory of one batch for the next."""
        return freed_memory_kept() if self.device.type == "cpu" else contextlib.nullcontext()

    def tune(self):
        """Let a GPU multiply as the precision allows and choose its fastest convolutions: for training."""
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
            torch.backends.cudnn.benchmark = True
            allowed = self.precision != "fp32"
            torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = allowed

    def slowness(self) -> str | None:
        """What to say where bf16 is slower than fp32, as on a CPU without instructions for it; else `None`."""
        if (self.device.type, self.precision) != ("cpu", "bf16") or (times := bf16_against_fp32()) < SLOW:
            return None
        return f"--precision bf16 is about {times:.0f} times slower than fp32 on this CPU (tried): leave the option out"

    def place(self, module: torch.nn.Module) -> torch.nn.Module:
        """The module on the device, in the dtype, with channels-last weights."""
        return module.to(self.device, self.dtype).to(memory_format=torch.channels_last)


def bf16_against_fp32() -> float:
    """How many times as long as in float32 a small convolution takes on this CPU in bf16, forward and backward."""
    channels, side, images = TRIAL
    convolution = torch.nn.Conv2d(channels, channels, 3, padding=1).to(memory_format=torch.channels_last)
    x = torch.ones(images, channels, side, side, requires_grad=True).contiguous(memory_format=torch.channels_last)

    def seconds(precision: str) -> float:
        begun = time.perf_counter()
        with Compute(torch.device("cpu"), precision).autocast():
            convolution(x).sum().backward()
        return time.perf_counter() - begun

    fp32, bf16 = (min(seconds(precision) for _ in range(4)) for precision in ("fp32", "bf16"))
    return bf16 / fp32


@contextlib.contextmanager
def _no_tf32():
    convolutions, products = torch.backends.cudnn, torch.backends.cuda.matmul
    before = convolutions.allow_tf32, products.allow_tf32
    convolutions.allow_tf32 = products.allow_tf32 = False
    try:
        yield
    finally:
        convolutions.allow_tf32, products.allow_tf32 = before


def to_host(x: torch.Tensor) -> Callable[[], torch.Tensor]:
    """Begin to copy x to the CPU; the function that comes back waits for the copy, not for work given after it."""
    if x.device.type != "cuda":
        return lambda: x
    host = torch.empty(x.shape, dtype=x.dtype, pin_memory=True)
    host.copy_(x, non_blocking=True)
    copied = torch.cuda.Event()
    copied.record(torch.cuda.current_stream(x.device))

    def wait() -> torch.Tensor:
        copied.synchronize()
        return host

    return wait
