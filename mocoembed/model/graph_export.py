"""Writing the encoder's graph, by which `search` does without torch: see `graph`."""

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
from mocoembed.model.encoder_file import FrozenEncoder
from mocoembed.model.folding import fold
from mocoembed.model.graph import FORMAT_VERSION, KIND, description_file, read_description, session_of
from mocoembed.notes import say_nothing
from mocoembed.version import __version__

LEAST_COSINE = 0.9999  # of what the graph and torch make of the same images
IMAGES_COMPARED = 3


class _Outputs(nn.Module):
    """Normalised images (N, 3, S, S) -> features (N, D) and, if there is a head, projections (N, C)."""

    def __init__(self, backbone: nn.Module, head: nn.Module | None):
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, x: torch.Tensor):
        features = self.backbone(x)
        return features if self.head is None else (features, self.head(features))


def keep_graph(path: pathlib.Path, frozen: FrozenEncoder, note: Callable[[str], None] = say_nothing):
    """Write the graph of an encoder to `path`, with its description, unless it is there and whole.

    It is compared with torch before it is kept. `note(text)` is told when it cannot be made; nothing else depends on
    it, as `search` then uses torch.
    """
    try:
        read_description(path, frozen.fingerprint())
        return
    except (OSError, FormatError):
        pass
    try:
        _write(path, frozen)
    except Exception as error:  # whatever an exporter raises
        with contextlib.suppress(OSError):  # a folder that cannot be written keeps what it has; it is refused anyway
            description_file(path).unlink(missing_ok=True)
            path.unlink(missing_ok=True)
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        note(f"no ONNX graph of this encoder can be kept, so searching will load torch: {reason}")


def _write(path: pathlib.Path, frozen: FrozenEncoder):
    encoder, side = copy.deepcopy(frozen.encoder).float().cpu().eval().requires_grad_(False), frozen.transform.crop
    network = _Outputs(fold(encoder.backbone, side), None if encoder.spec.head == "none" else encoder.head)
    names = {"backbone": "features", "projection": "projection"}
    dimensions = {kind: frozen.dimension(kind) for kind in names if kind == "backbone" or network.head is not None}
    outputs = [names[kind] for kind in dimensions]
    with replacing(path) as temporary:
        _export(temporary, network, outputs, side)
        _require_equal(temporary, network, outputs, side)
        said = {"kind": KIND, "format": FORMAT_VERSION, "mocoembed": __version__, "fingerprint": frozen.fingerprint(),
                "transform": frozen.metadata()["transform"], "dimensions": dimensions,
                "graph_sha256": sha256_file(temporary)}
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
    session = session_of(path)
    pixels = torch.randn(IMAGES_COMPARED, 3, side, side, generator=torch.Generator().manual_seed(0))
    for x in (pixels, pixels[:1]):
        expected = network(x)
        found = session.run(outputs, {"images": x.numpy()})
        for name, one, other in zip(outputs, found, [expected] if network.head is None else expected):
            cosine = nn.functional.cosine_similarity(torch.from_numpy(np.array(one)), other, dim=1).min().item()
            if not cosine >= LEAST_COSINE:
                raise MocoembedError(f"its {name} differ from torch's (cosine {cosine:.6f})")
