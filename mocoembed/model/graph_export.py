"""Writing the graph of an encoder or a classifier, by which `search` and `classify` do without torch: see `graph`."""

import contextlib
import copy
import pathlib
import warnings
from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from mocoembed.errors import FormatError, MocoembedError
from mocoembed.files import replacing, sha256_file, sha256_json, write_json
from mocoembed.model.classifier_file import Classifier
from mocoembed.model.encoder_file import FrozenEncoder
from mocoembed.model.folding import fold
from mocoembed.model.graph import (
    CLASSIFIER_KIND,
    FORMAT_VERSION,
    KIND,
    NOUNS,
    description_file,
    read_description,
    session_of,
)
from mocoembed.notes import say_nothing
from mocoembed.version import __version__

LEAST_COSINE = 0.9999  # of what the graph and torch make of the same images
IMAGES_COMPARED = 3


class _Outputs(nn.Module):
    """Normalised images (N, 3, S, S) -> features (N, D) and, if there is a head, projections (N, C)."""

    def __init__(self, backbone: nn.Module, head: nn.Module | None):
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        features = self.backbone(x)
        return (features,) if self.head is None else (features, self.head(features))


class _Logits(nn.Module):
    """Normalised images (N, 3, S, S) -> logits (N, C)."""

    def __init__(self, backbone: nn.Module, classifier: Classifier):
        super().__init__()
        self.backbone, self.layer = backbone, nn.Linear(classifier.weight.shape[1], len(classifier.labels))
        self.layer.load_state_dict({"weight": classifier.weight, "bias": classifier.bias})

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (self.layer(self.backbone(x)),)


def keep_graph(path: pathlib.Path, frozen: FrozenEncoder, note: Callable[[str], None] = say_nothing):
    """Write the graph of an encoder to `path`, with its description, unless it is there and whole.

    It is compared with torch before it is kept. `note(text)` is told when it cannot be made; nothing else depends on
    it, as `search` then uses torch.
    """
    def write():
        head = None if frozen.encoder.spec.head == "none" else frozen.encoder.head
        network = _Outputs(_folded(frozen), None if head is None else _still(head))
        kinds = ["backbone"] if head is None else ["backbone", "projection"]
        dimensions = {kind: frozen.dimension(kind) for kind in kinds}
        outputs = ["features" if kind == "backbone" else kind for kind in kinds]
        _write(path, network, outputs, frozen.transform.crop,
               {"kind": KIND, "fingerprint": frozen.fingerprint(), "transform": frozen.metadata()["transform"],
                "dimensions": dimensions})

    _keep(path, frozen.fingerprint(), KIND, write, "searching", note)


def keep_classifier_graph(path: pathlib.Path, classifier: Classifier, note: Callable[[str], None] = say_nothing):
    """Write the graph of a classifier to `path`, in the same way, for `classify`."""
    def write():
        _write(path, _still(_Logits(_folded(classifier.frozen), classifier)), ["logits"],
               classifier.frozen.transform.crop,
               {"kind": CLASSIFIER_KIND, "fingerprint": classifier.fingerprint,
                "transform": classifier.metadata()["transform"], "dimensions": {"logits": len(classifier.labels)},
                "labels": list(classifier.labels)})

    _keep(path, classifier.fingerprint, CLASSIFIER_KIND, write, "classifying", note)


def _keep(path: pathlib.Path, fingerprint: str, kind: str, write: Callable[[], None], use: str,
          note: Callable[[str], None]):
    """Call `write` unless the graph is there and whole; clean up when it fails, and tell what will load torch."""
    try:
        read_description(path, fingerprint, kind)
        return
    except (OSError, FormatError):
        pass
    try:
        write()
    except Exception as error:  # whatever an exporter raises
        with contextlib.suppress(OSError):  # a folder that cannot be written keeps what it has; it is refused anyway
            description_file(path).unlink(missing_ok=True)
            path.unlink(missing_ok=True)
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        note(f"no ONNX graph of this {NOUNS[kind]} can be kept, so {use} will load torch: {reason}")


def _still(network: nn.Module) -> nn.Module:
    """A copy on the CPU that is not trained."""
    return copy.deepcopy(network).float().cpu().eval().requires_grad_(False)


def _folded(frozen: FrozenEncoder) -> nn.Module:
    return fold(_still(frozen.encoder.backbone), frozen.transform.crop)


def _write(path: pathlib.Path, network: nn.Module, outputs: list[str], side: int, about: dict):
    """Write the graph and then its description: what is said `about` it, and the hashes."""
    with replacing(path) as temporary:
        _export(temporary, network, outputs, side)
        _require_equal(temporary, network, outputs, side)
        said = {"format": FORMAT_VERSION, "mocoembed": __version__, **about, "graph_sha256": sha256_file(temporary)}
    write_json(description_file(path), {**said, "sha256": sha256_json(said)})


def _export(path: pathlib.Path, network: nn.Module, outputs: list[str], side: int):
    with warnings.catch_warnings(), torch.no_grad(), _attention_in_parts():
        warnings.simplefilter("ignore")  # it traces: a result that depends on the pixels is seen in the comparison
        # Not by the newer exporter: it takes seconds instead of a tenth, and a package more.
        torch.onnx.export(network, (torch.zeros(2, 3, side, side),), path, input_names=["images"],
                          output_names=outputs, dynamic_axes={name: {0: "images"} for name in ("images", *outputs)},
                          dynamo=False)


@contextlib.contextmanager
def _attention_in_parts():
    """Without torch's fused attention, which ONNX does not know."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@torch.inference_mode()
def _require_equal(path: pathlib.Path, network: nn.Module, outputs: list[str], side: int):
    """Raise `MocoembedError` unless the graph gives what the network gives, for one image and for several."""
    session = session_of(path, side**2)
    pixels = torch.randn(IMAGES_COMPARED, 3, side, side, generator=torch.Generator().manual_seed(0))
    for x in (pixels, pixels[:1]):
        expected = network(x)
        found = session.run(outputs, {"images": x.numpy()})
        for name, one, other in zip(outputs, found, expected):
            cosine = nn.functional.cosine_similarity(torch.from_numpy(np.array(one)), other, dim=1).min().item()
            if not cosine >= LEAST_COSINE:
                raise MocoembedError(f"its {name} differ from torch's (cosine {cosine:.6f})")
