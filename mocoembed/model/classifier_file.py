"""classifier.safetensors: a fine-tuned encoder and the linear layer on its features, with the labels that it predicts.

The tensors are those of an encoder without a head (`backbone.*`) and of the layer (`classifier.weight`, (C, D), and
`classifier.bias`, (C,)). The metadata holds architecture, evaluation transform, labels and provenance, as an encoder's
does. The fingerprint is the SHA-256 of weights, architecture, transform and labels.
"""

import dataclasses
import functools
import hashlib
import json
from dataclasses import dataclass

import torch

from mocoembed.errors import FormatError
from mocoembed.model.encoder import Encoder, EncoderSpec
from mocoembed.model.encoder_file import FrozenEncoder, read_tensors, save_tensors, weights_of
from mocoembed.model.encoder_metadata import CLASSIFIER, CLASSIFIER_VERSION, read_classifier_metadata, transform_of

WEIGHT, BIAS = "classifier.weight", "classifier.bias"


@dataclass(frozen=True)
class Classifier:
    """A frozen encoder without a head, and the layer that turns its features into a logit for each label."""

    frozen: FrozenEncoder
    """Its provenance is the classifier's."""
    weight: torch.Tensor
    """(C, D) float32."""
    bias: torch.Tensor
    """(C,) float32."""
    labels: tuple[str, ...]
    """C names."""

    @classmethod
    def of(cls, encoder: FrozenEncoder, weight: torch.Tensor, bias: torch.Tensor, labels, provenance: dict):
        """From an encoder of any head, which is left out."""
        bare = Encoder(dataclasses.replace(encoder.encoder.spec, head="none", dim=0))
        bare.backbone.load_state_dict(encoder.encoder.backbone.state_dict())
        frozen = FrozenEncoder(bare.eval().requires_grad_(False), encoder.transform, provenance)
        weight, bias = (one.detach().to("cpu", torch.float32, copy=True) for one in (weight, bias))
        return cls(frozen, weight, bias, tuple(labels))

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the encoder's fingerprint, the layer and the labels."""
        digest = hashlib.sha256(json.dumps([self.frozen.fingerprint(), self.labels]).encode())
        for tensor in (self.weight, self.bias):
            digest.update(tensor.contiguous().numpy().tobytes())
        return digest.hexdigest()

    def metadata(self) -> dict:
        """The description that is stored in the file, the fingerprint included."""
        said = self.frozen.metadata()
        return {**said, "kind": CLASSIFIER, "format": CLASSIFIER_VERSION, "fingerprint": self.fingerprint,
                "labels": list(self.labels)}

    def logits(self, features: torch.Tensor) -> torch.Tensor:
        """(N, C) from features (N, D), not normalised."""
        return features @ self.weight.T + self.bias


def save_classifier(path, classifier: Classifier):
    """Replace `path` by the classifier's file."""
    layer = {WEIGHT: classifier.weight.contiguous(), BIAS: classifier.bias.contiguous()}
    save_tensors(path, {**weights_of(classifier.frozen.encoder), **layer}, classifier.metadata())


def load_classifier(path) -> Classifier:
    """The classifier in `path`, on the CPU; its fingerprint is recomputed and compared."""
    metadata = read_classifier_metadata(path)
    encoder, tensors, labels = Encoder(EncoderSpec(**metadata["encoder"])), read_tensors(path), metadata["labels"]
    try:
        weight, bias = tensors.pop(WEIGHT), tensors.pop(BIAS)
        if weight.shape != (len(labels), encoder.backbone.features) or bias.shape != (len(labels),):
            raise KeyError(f"a layer of {tuple(weight.shape)} for {len(labels)} labels")
        encoder.load_state_dict(tensors)
    except (RuntimeError, KeyError) as error:
        raise FormatError(f"{path} does not hold the weights that it describes: {error}") from error
    frozen = FrozenEncoder(encoder.eval().requires_grad_(False), transform_of(metadata), metadata["provenance"])
    classifier = Classifier(frozen, weight, bias, tuple(labels))
    if classifier.fingerprint != metadata["fingerprint"]:
        raise FormatError(f"{path} is damaged: its weights do not match its fingerprint. Train it again.")
    return classifier
