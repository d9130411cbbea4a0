"""A frozen encoder made ready to embed: images in, vectors out, as fast as the device allows.

In: pixels (N, 3, S, S) uint8, channels last in memory, pinned where the device is a GPU, or views that are normalised
already, as floats. Out: vectors (N, D) float32
on the CPU. BatchNorm is folded into the convolutions, the weights lie channels last, and when memory runs out the
images are computed in smaller pieces.
"""

import copy
from collections.abc import Callable

import torch
from torch import nn
from torch._dynamo.exc import TorchDynamoException  # which torchvision imports anyway
from torch.nn import functional

from mocoembed.data.evaluation import EvaluationTransform
from mocoembed.errors import MocoembedError
from mocoembed.memory import is_out_of_memory
from mocoembed.model.encoder_file import FrozenEncoder
from mocoembed.model.folding import fold
from mocoembed.model.precision import Compute, to_host


class Embedder:
    """Runs a copy of a `FrozenEncoder`, which itself stays as it is, on batches of uint8 images.

    With `compile` the copy is compiled by torch.compile at the first batch, for the size of that batch; other batches
    are brought to that size. `note(text)` is told what a person should know.
    """

    def __init__(self, frozen: FrozenEncoder, compute: Compute, features: str, normalized: bool,
                 compile: bool = False, note: Callable[[str], None] = lambda text: None):
        wanted: nn.Module = frozen.encoder if features == "projection" else frozen.encoder.backbone
        network = fold(copy.deepcopy(wanted).to(compute.dtype).eval().requires_grad_(False), frozen.transform.crop)
        self.frozen, self.compute, self.note = frozen, compute, note
        self._inference = compute.place(_Inference(network, frozen.transform, normalized).eval())
        if compute.device.type == "cuda":
            torch.cuda.set_device(compute.device)  # else pinned memory would take room on the first GPU
        self._compiled = compile
        if compile:
            self._inference.compile(dynamic=False, fullgraph=True)
        self.at_once: int | None = None
        """Images that are computed at once; `None`: as many as come."""
        self._to_tell = False

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        """(N, D) float32 on the CPU, from pixels (N, 3, S, S) uint8 or from normalised views."""
        return self.begin(pixels)()

    def begin(self, pixels: torch.Tensor) -> Callable[[], torch.Tensor]:
        """Start to embed pixels (N, 3, S, S) uint8; the function that comes back waits for the vectors (N, D) float32.

        On a GPU it comes back before the work is done, and the next batch can be begun; on a CPU after that. Raises
        `MocoembedError` when the memory does not hold a single image, or when compiling fails.
        """
        if self._compiled and self.at_once is None:
            self.at_once = len(pixels)
        waiting, at = [], 0
        while at < len(pixels):
            piece = pixels[at:at + (self.at_once or len(pixels))]
            vectors = self._run(piece)
            if vectors is None:
                self._take_less(piece)
                continue
            waiting.append(to_host(vectors))
            at += len(piece)
            if self._to_tell:
                self._to_tell = False
                self.note(f"out of memory; batches are computed {self.at_once} images at a time from now on")
        return lambda: waiting[0]() if len(waiting) == 1 else torch.cat([wait() for wait in waiting])

    @torch.inference_mode()
    def _run(self, pixels: torch.Tensor) -> torch.Tensor | None:
        """Vectors (N, D) float32 on the device, perhaps not computed yet; `None` when its memory ran out."""
        try:
            x = pixels.to(self.compute.device, non_blocking=True).contiguous(memory_format=torch.channels_last)
            if self._compiled:  # copied even when nothing is added: another kind of tensor would be compiled again
                assert self.at_once is not None  # `begin` has set it
                x = functional.pad(x, (0, 0) * 3 + (0, self.at_once - len(x)))
            with self.compute.autocast(), self.compute.exact():
                return self._inference(x)[:len(pixels)]
        except TorchDynamoException as error:
            raise MocoembedError(f"The encoder cannot be compiled: {_reason(error)}\nLeave out --compile.") from error
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        return None

    def _take_less(self, piece: torch.Tensor):
        """Compute half as many images at once as there are in `piece`."""
        if len(piece) == 1:
            side, device = piece.shape[-1], self.compute.device
            raise MocoembedError(f"The memory of the device {device} is too small for a single image of "
                                 f"{side} x {side} pixels.\nStop other programs that use it, or give another --device.")
        self.at_once, self._to_tell = len(piece) // 2, True
        if self.compute.device.type == "cuda":
            torch.cuda.empty_cache()


class _Inference(nn.Module):
    """Pixels (N, 3, S, S) uint8, channels last in memory -> normalised -> network -> vectors (N, D) float32.

    Floats are normalised already.
    """

    scale: torch.Tensor
    shift: torch.Tensor

    def __init__(self, network: nn.Module, transform: EvaluationTransform, normalized: bool):
        super().__init__()
        self.network, self.normalized = network, normalized
        mean, std = (torch.tensor(values, dtype=torch.float64) for values in (transform.mean, transform.std))
        self.register_buffer("scale", 1 / (255 * std))
        self.register_buffer("shift", -mean / std)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        vectors = self.network(images if images.is_floating_point() else self._normalised(images)).to(self.scale.dtype)
        return (functional.normalize(vectors, dim=1) if self.normalized else vectors).float()

    def _normalised(self, pixels: torch.Tensor) -> torch.Tensor:
        n, c, h, w = pixels.shape
        # Whole rows at a time: a loop over three channels, the last dimension in memory, takes twice as long.
        rows = pixels.permute(0, 2, 3, 1).reshape(n, h, w * c).to(self.scale.dtype)
        rows = rows.mul_(self.scale.repeat(w)).add_(self.shift.repeat(w))
        return rows.view(n, h, w, c).permute(0, 3, 1, 2)


def _reason(error: Exception) -> str:
    """The first line of a message, and the second where that only announces it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return " ".join(lines[:2] if lines[0].endswith(":") else lines[:1])
