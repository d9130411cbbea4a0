"""What the file of an encoder or a classifier says of itself, read without torch.

The weights are read by `encoder_file` and `classifier_file`.
"""

import json
from typing import Any

import safetensors

from mocoembed.data.evaluation import EvaluationTransform
from mocoembed.errors import FormatError

FORMAT_VERSION = 1
CLASSIFIER, CLASSIFIER_VERSION = "mocoembed classifier", 1  # `kind` and `format` of a classifier; encoders have no kind
MAKE_ONE = "mocoembed finetune TRAIN"


def described(path) -> str | None:
    """What a safetensors file says of itself as an encoder or classifier of ours; `None` for one of others."""
    try:
        return _said(path)
    except (safetensors.SafetensorError, OSError) as error:
        raise FormatError(f"{path} is not an encoder file: {error}. "
                          "Make one with: mocoembed pretrain IMAGES") from error


def _said(path) -> str | None:
    with safetensors.safe_open(path, "np") as file:
        return (file.metadata() or {}).get("mocoembed")


def read_metadata(path) -> dict:
    """The description in an encoder's file; `FormatError` when it is not one or is of a newer version."""
    text = described(path)
    if text is None:
        raise FormatError(f"{path} is a safetensors file, but not an encoder of mocoembed.")
    metadata = json.loads(text)
    if metadata.get("kind") == CLASSIFIER:
        raise FormatError(f"{path} is a classifier, not an encoder. Use it with: mocoembed classify IMAGE... "
                          f"--classifier {path}")
    if metadata["format"] > FORMAT_VERSION:
        raise FormatError(f"{path} has encoder format {metadata['format']}; this version reads up to "
                          f"{FORMAT_VERSION}. Install a newer mocoembed.")
    return metadata


def is_classifier(path) -> bool:
    """Whether a safetensors file holds a classifier of ours; `FormatError` when it is damaged."""
    text = described(path)
    return text is not None and json.loads(text).get("kind") == CLASSIFIER


def read_classifier_metadata(path) -> dict:
    """The description in a classifier's file; `FormatError` when it is not one or is of a newer version."""
    try:
        text = _said(path)
    except (safetensors.SafetensorError, OSError) as error:
        raise FormatError(f"{path} is not a classifier ({error}). Make one with: {MAKE_ONE}") from error
    metadata = json.loads(text) if text else {}
    if metadata.get("kind") != CLASSIFIER:
        what = "an encoder, which knows no labels" if metadata else "a safetensors file of another tool"
        raise FormatError(f"{path} is {what}, not a classifier. Make one with: {MAKE_ONE}")
    if metadata["format"] > CLASSIFIER_VERSION:
        raise FormatError(f"{path} has classifier format {metadata['format']}; this version reads up to "
                          f"{CLASSIFIER_VERSION}. Install a newer mocoembed.")
    return metadata


def transform_of(metadata: dict) -> EvaluationTransform:
    """The evaluation transform in an encoder's description."""
    settings: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value
                                for name, value in metadata["transform"].items()}
    return EvaluationTransform(**settings)
