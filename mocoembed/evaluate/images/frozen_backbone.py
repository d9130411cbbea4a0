"""A backbone that nothing may change: images -> raw features, and the proof that it stayed as it was.

In: pixels (N, 3, S, S) uint8 or normalised views (N, 3, S, S). Out: features (N, D) float32 on the device, never scaled
to length 1. It runs in evaluation mode: BatchNorm that trains would change its statistics with every batch.
"""

import copy
import hashlib
from dataclasses import dataclass

import torch

from mocoembed.data.views import normalize
from mocoembed.errors import FormatError, TrainingError
from mocoembed.model.encoder_file import FrozenEncoder
from mocoembed.model.precision import Compute
from mocoembed.train.checkpoint import not_finite

AT_ONCE = {"cpu": 64, "cuda": 256}  # images; features do not depend on it


def require_finite(frozen: FrozenEncoder):
    """Raise `FormatError` for weights that are not finite, from which nothing can be learned."""
    if bad := not_finite(frozen.encoder.backbone.state_dict()):
        raise FormatError(f"The encoder holds values that are not finite in {len(bad)} of its tensors ({bad[0]} ...). "
                          "Give another --encoder.")


@dataclass(frozen=True)
class Digests:
    """SHA-256 of all of a backbone's tensors, and of its BatchNorm statistics alone."""

    weights: str
    statistics: str
    layers: int
    """BatchNorm layers that have statistics."""


class FrozenBackbone:
    """A copy of an encoder's backbone on the device, unfolded, in evaluation mode."""

    def __init__(self, frozen: FrozenEncoder, compute: Compute):
        self.transform, self.compute = frozen.transform, compute
        self.network = compute.place(copy.deepcopy(frozen.encoder.backbone)).eval().requires_grad_(False)
        self.dimension = frozen.dimension("backbone")
        """D."""
        self.before = self.digests()

    def digests(self) -> Digests:
        """What the backbone is now."""
        everything, statistics, layers = hashlib.sha256(), hashlib.sha256(), 0
        for name, tensor in self.network.state_dict().items():
            data = tensor.detach().cpu().contiguous().numpy().tobytes()
            everything.update(name.encode() + data)
            if name.endswith(("running_mean", "running_var", "num_batches_tracked")):
                statistics.update(name.encode() + data)
                layers += name.endswith("running_mean")
        return Digests(everything.hexdigest(), statistics.hexdigest(), layers)

    def require_unchanged(self) -> Digests:
        """What the backbone is now; `TrainingError` unless it is what it was in the beginning."""
        now = self.digests()
        if now != self.before:
            what = "BatchNorm statistics" if now.statistics != self.before.statistics else "weights"
            raise TrainingError(f"The backbone's {what} have changed (SHA-256 {self.before.weights[:12]} before, "
                                f"{now.weights[:12]} now), so it was not frozen and no number of it counts. This is a "
                                "bug; please report it.")
        return now

    @torch.no_grad()
    def features(self, views: torch.Tensor) -> torch.Tensor:
        """(N, D) float32 on the device, from normalised views there."""
        with self.compute.autocast(), self.compute.exact():
            parts = [self.network(part).float() for part in views.split(AT_ONCE[views.device.type])]
        return torch.cat(parts)

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """(N, D) float32 on the device, from pixels (N, 3, S, S) uint8 as they are tested."""
        x = pixels.to(self.compute.device).contiguous(memory_format=torch.channels_last).to(self.compute.dtype)
        return self.features(normalize(x.div_(255), self.transform.mean, self.transform.std))
