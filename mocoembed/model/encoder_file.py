"""encoder.safetensors: a frozen query encoder, its preprocessing and where it came from.

The file holds the weights of the backbone and of the projection head; its metadata (one JSON text under the key
`mocoembed`) holds the architecture, the evaluation transform and the provenance. The fingerprint is the SHA-256 of
weights, architecture and transform, so two files with the same fingerprint give the same embeddings.
"""

import dataclasses
import hashlib
import json
from dataclasses import dataclass

import safetensors
import safetensors.torch
import torch
from torch import nn

from mocoembed.data.evaluation import EvaluationTransform
from mocoembed.errors import FormatError, UsageError
from mocoembed.files import write_bytes
from mocoembed.model.encoder import Encoder, EncoderSpec, count_parameters
from mocoembed.model.encoder_metadata import FORMAT_VERSION, read_metadata, transform_of
from mocoembed.version import __version__


@dataclass(frozen=True)
class FrozenEncoder:
    """A query encoder that is not trained any more, with all that its embeddings depend on."""

    encoder: Encoder
    transform: EvaluationTransform
    provenance: dict
    """Recipe, epochs, the parent checkpoint's SHA-256, version of the tool: for people, not for the fingerprint."""

    def metadata(self) -> dict:
        """The description that is stored in the file, the fingerprint included."""
        return {"format": FORMAT_VERSION, "fingerprint": self.fingerprint(), **self.identity(),
                "features": self.encoder.backbone.features, "parameters": count_parameters(self.encoder.backbone),
                "provenance": self.provenance}

    def identity(self) -> dict:
        """What the vectors depend on besides the weights: architecture and evaluation transform."""
        transform = dataclasses.asdict(self.transform)
        if self.transform.mode == "shorter-side":
            del transform["mode"]  # added later, like the next; so fingerprints stayed as they were
        if not self.transform.value_range:
            del transform["value_range"]
        return {"encoder": dataclasses.asdict(self.encoder.spec), "transform": transform}

    def fingerprint(self) -> str:
        """SHA-256 of the weights (float32), the architecture and the evaluation transform."""
        digest = hashlib.sha256(json.dumps(self.identity(), sort_keys=True).encode())
        for name, tensor in sorted(weights_of(self.encoder).items()):
            digest.update(name.encode())
            digest.update(tensor.numpy().tobytes())
        return digest.hexdigest()

    def dimension(self, features: str) -> int:
        """Length of the vectors: D for `backbone`, C for `projection`, which not every encoder has (`UsageError`)."""
        if features == "backbone":
            return self.encoder.backbone.features
        if self.encoder.spec.head == "none":
            raise UsageError("--features projection: this encoder came without a projection head. "
                             "Give --features backbone.")
        return self.encoder.spec.dim


def weights_of(encoder: nn.Module) -> dict[str, torch.Tensor]:
    """State dict on the CPU, floats in float32, contiguous."""
    return {name: (tensor.float() if tensor.is_floating_point() else tensor).detach().cpu().contiguous()
            for name, tensor in encoder.state_dict().items()}


def save_encoder(path, frozen: FrozenEncoder):
    """Replace `path` by the encoder's file."""
    save_tensors(path, weights_of(frozen.encoder), frozen.metadata())


def save_tensors(path, tensors: dict[str, torch.Tensor], metadata: dict):
    """Replace `path` by a safetensors file of ours."""
    # Not by save_file: it has a temporary file of its own, which stays where the process is killed meanwhile.
    write_bytes(path, safetensors.torch.save(tensors, {"mocoembed": json.dumps(metadata, sort_keys=True)}))


def keep_encoder(path, frozen: FrozenEncoder):
    """Save the encoder at `path`, which its fingerprint names, unless it is there with its provenance already."""
    if not path.exists():
        save_encoder(path, frozen)


def load_encoder(path) -> FrozenEncoder:
    """The frozen encoder in `path`, in evaluation mode on the CPU; its fingerprint is recomputed and compared."""
    metadata = read_metadata(path)
    spec = EncoderSpec(**metadata["encoder"])
    encoder = Encoder(spec)
    try:
        encoder.load_state_dict(safetensors.torch.load_file(path))
    except (RuntimeError, safetensors.SafetensorError) as error:
        raise FormatError(f"{path} does not hold the weights that it describes: {error}") from error
    frozen = FrozenEncoder(encoder.eval().requires_grad_(False), transform_of(metadata), metadata["provenance"])
    if frozen.fingerprint() != metadata["fingerprint"]:
        raise FormatError(f"{path} is damaged: its weights do not match its fingerprint. Export it again.")
    return frozen


def read_tensors(path) -> dict[str, torch.Tensor]:
    """All tensors of a safetensors file of others, on the CPU; `FormatError` when it is damaged."""
    try:
        return safetensors.torch.load_file(path)
    except safetensors.SafetensorError as error:
        raise FormatError(f"{path} is damaged: {error}.") from error


def tool_provenance() -> dict:
    """The part of a provenance that says what wrote a file."""
    return {"mocoembed": __version__, "torch": str(torch.__version__)}
