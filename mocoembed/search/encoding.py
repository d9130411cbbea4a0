"""Which encoder embeds the queries: the graph kept beside it on onnxruntime, or the encoder itself on torch.

Importing torch takes seconds, and embedding one image milliseconds. So torch is imported only where it is asked for or
needed: for a GPU, for an encoder that is given, for vectors that were made in less precision, and where there is no
graph.
"""

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from mocoembed.checks import is_gpu
from mocoembed.data.evaluation import EvaluationTransform
from mocoembed.embed.npy import is_foreign
from mocoembed.errors import MismatchError, MocoembedError, UsageError
from mocoembed.model.encoder_metadata import read_metadata
from mocoembed.model.graph import GraphEncoder
from mocoembed.notes import say_nothing
from mocoembed.workspace import Workspace

EXACT = ("fp32", "tf32")  # precisions whose vectors the graph gives, too


class QueryEncoder(Protocol):
    """Embeds queries as the collection was embedded."""

    transform: EvaluationTransform

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """(Q, D) float32 from pixels (Q, S, S, 3) uint8."""


class Described(Protocol):
    """An index, or what stands in its place, by what it says about its vectors."""

    @property
    def path(self) -> Any:
        """What it is called in messages."""

    @property
    def manifest(self) -> dict:
        """`encoder`, `features` and `normalized` at least."""


class Made(Protocol):
    """An embeddings file, or what stands in its place, by how its vectors were made."""

    @property
    def precision(self) -> str:
        """Arithmetic of the encoder."""


def require_device(device: str):
    """Raise `UsageError` for a device that this machine does not have."""
    if is_gpu(device):
        from mocoembed.model.precision import Compute

        Compute.of(device, "fp32")


def is_without_torch(encoder: QueryEncoder) -> bool:
    """Whether it runs on onnxruntime."""
    return isinstance(encoder, GraphEncoder)


def query_encoder(config, workspace: Workspace, index: Described, file: Made,
                  note: Callable[[str], None] = say_nothing) -> QueryEncoder:
    """The encoder that made the vectors of `index` and `file`: `config.encoder`, or the workspace's copy.

    Raises `UsageError` when it is not there and `MismatchError` when `config.encoder` is another one.
    """
    wanted, features, normalized = (index.manifest[name] for name in ("encoder", "features", "normalized"))
    if is_foreign(wanted):
        raise UsageError(f"{index.path} holds vectors made by another tool ({wanted[:12]}), so there is no encoder to "
                         "embed a query image with.\n"
                         "Search by images of the collection (--row N), or embed it with mocoembed embed.")
    graph = workspace.graph_of(wanted)
    if config.encoder is None and not config.torch and not is_gpu(config.device) and file.precision in EXACT:
        try:
            return GraphEncoder(graph, wanted, features, normalized)
        except FileNotFoundError:
            pass
        except (OSError, MocoembedError) as error:
            note(f"{error}\nThe query is embedded by torch instead, which takes seconds to load.")
    return _torch_encoder(config, workspace, index, file, note)


class _TorchEncoder:
    """A frozen encoder on torch, called with NumPy's arrays."""

    def __init__(self, frozen: Any, compute: Any, features: str, normalized: bool):
        from mocoembed.model.embedder import Embedder

        self.transform, self._embedder = frozen.transform, Embedder(frozen, compute, features, normalized)

    def __call__(self, images: np.ndarray) -> np.ndarray:
        import torch

        return self._embedder(torch.from_numpy(images).permute(0, 3, 1, 2)).numpy()


def _torch_encoder(config, workspace: Workspace, index: Described, file: Made, note) -> QueryEncoder:
    from mocoembed.model.graph_export import keep_graph
    from mocoembed.model.precision import Compute

    frozen = _frozen(workspace, config.encoder, index, note)
    if workspace.encoders.is_dir():
        keep_graph(workspace.graph_of(index.manifest["encoder"]), frozen)  # for the next time, unless it is there
    manifest = index.manifest
    return _TorchEncoder(frozen, Compute.nearest(config.device, file.precision), manifest["features"],
                         manifest["normalized"])


def _frozen(workspace: Workspace, given: str | None, index: Described, note):
    """The `FrozenEncoder` that made the index's vectors: `given`, or the workspace's copy."""
    from mocoembed.model.encoder_file import load_encoder
    from mocoembed.train.export import open_encoder

    wanted = index.manifest["encoder"]
    if given:
        frozen = open_encoder(given, workspace, note)
        if (found := frozen.fingerprint()) != wanted:
            raise MismatchError(f"{index.path} was made with encoder {wanted[:12]}, but {given} is {found[:12]}. "
                                "Leave out --encoder, or embed and index the collection again with it.")
        return frozen
    for path in (workspace.encoder_of(wanted), workspace.newest_encoder):
        if path.is_file() and read_metadata(path)["fingerprint"] == wanted:
            return load_encoder(path)
    raise UsageError(f"The encoder {wanted[:12]} that made {index.path} is not in {workspace.root}. "
                     "Give it with --encoder FILE.")
