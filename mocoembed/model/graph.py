"""The encoder's graph: an ONNX file beside the encoder, by which queries are embedded without torch.

`FINGERPRINT.query.onnx` takes normalised images (N, 3, S, S) and gives `features` (N, D) and, where the encoder has a
head, `projection` (N, C); BatchNorm is folded into the convolutions. `FINGERPRINT.query.onnx.json` says which encoder
it is of, how an image enters it and the SHA-256 of both; it is written last, so a graph without it is none. This module
reads them; `graph_export` writes them. A classifier's graph has the same form, and the output `logits` (N, classes).
"""

import json
import os
import pathlib
from typing import Any

import numpy as np

from mocoembed.cores import cores
from mocoembed.errors import FormatError, MocoembedError, UsageError
from mocoembed.files import sha256_file, sha256_json
from mocoembed.model.encoder_metadata import transform_of
from mocoembed.verified import has_digest

FORMAT_VERSION = 1
KIND, CLASSIFIER_KIND = "mocoembed encoder graph", "mocoembed classifier graph"
NOUNS = {KIND: "encoder", CLASSIFIER_KIND: "classifier"}
AT_A_TIME = 16  # images; more at once are no faster on a CPU
LIGHT = 10**11  # bytes of a graph times pixels of an image, 1 to 3 ms of work: sharing it takes longer than doing it
QUIET = 3  # onnxruntime's severity: errors only
NO_TELEMETRY = "ORT_DISABLE_TELEMETRY"
"""Unless this is set before onnxruntime 1.29 or newer is loaded, its own builds for Linux and macOS send the names of
models and their timings to Microsoft, and keep an id of the machine in the user's cache."""


def description_file(path: pathlib.Path) -> pathlib.Path:
    """Where the description of the graph `path` lies."""
    return path.with_name(f"{path.name}.json")


def read_description(path: pathlib.Path, fingerprint: str, kind: str = KIND) -> dict[str, Any]:
    """What is said of the graph `path`.

    Raises `FormatError` unless it is of the encoder or classifier `fingerprint`, whole, and of a known version;
    `OSError` when it is not there. The graph itself is hashed when it is first seen or has changed.
    """
    try:
        said = json.loads(description_file(path).read_bytes())
        claimed = {name: value for name, value in said.items() if name != "sha256"}
        if said["sha256"] != sha256_json(claimed):
            raise FormatError(f"{description_file(path)} is damaged.")
        if (said["kind"], said["format"], said["fingerprint"]) != (kind, FORMAT_VERSION, fingerprint):
            raise FormatError(f"{path} is of another {NOUNS[kind]} or of another version.")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise FormatError(f"{description_file(path)} is damaged.") from error
    with open(path, "rb") as file:
        if not has_digest(file, said["graph_sha256"], lambda: sha256_file(path)):
            raise FormatError(f"{path} is damaged: its bytes do not match their SHA-256.")
    return said


class GraphEncoder:
    """A frozen encoder on onnxruntime, on the CPU; called like `Embedder`, but with NumPy's arrays."""

    def __init__(self, path: pathlib.Path, fingerprint: str, features: str, normalized: bool, kind: str = KIND):
        """`features` are `backbone` or `projection`, or the `logits` of a classifier.

        Raises `FormatError`, `OSError` or `MocoembedError` when there is none that can be used.
        """
        said = read_description(path, fingerprint, kind)
        if features not in said["dimensions"]:
            raise UsageError(f"{path} gives no {features} features.")
        self.transform, self.normalized = transform_of(said), normalized
        self.dimension = int(said["dimensions"][features])
        self.labels = tuple(said.get("labels", ()))  # of a classifier
        self._output = "features" if features == "backbone" else features
        mean, std = (np.array(values, np.float64) for values in (self.transform.mean, self.transform.std))
        scale, shift = 1 / (255 * std), -mean / std
        self._scale, self._shift = (one.astype(np.float32)[:, None, None] for one in (scale, shift))
        self._session = session_of(path, self.transform.crop**2)

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """(N, D) float32 from pixels (N, S, S, 3) uint8."""
        vectors = []
        for first in range(0, len(images), AT_A_TIME):
            x = np.ascontiguousarray(images[first:first + AT_A_TIME].transpose(0, 3, 1, 2), np.float32)  # N x 3 x S x S
            x *= self._scale  # plane by plane, in a tenth of the time that it takes pixel by pixel
            x += self._shift
            vectors.append(self._session.run([self._output], {"images": x})[0])
        found = np.concatenate(vectors)
        if self.normalized:  # as torch's `normalize` does
            found /= np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12)
        return found


def session_of(path: pathlib.Path, pixels: int):
    """The graph for images of so many pixels, ready to be run; `MocoembedError` when onnxruntime cannot."""
    os.environ.setdefault(NO_TELEMETRY, "1")
    try:
        import onnxruntime

        onnxruntime.set_default_logger_severity(QUIET)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1 if path.stat().st_size * pixels < LIGHT else cores()
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        return onnxruntime.InferenceSession(os.fspath(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # whatever it raises for a graph of another version, or for itself
        raise MocoembedError(f"onnxruntime cannot run {path}: {' '.join(str(error).split())}") from error
