"""What an encoder's file says of itself, read without torch; the weights are read by `encoder_file`."""

import json
from typing import Any

import safetensors

from mocoembed.data.evaluation import EvaluationTransform
from mocoembed.errors import FormatError

FORMAT_VERSION = 1


def described(path) -> str | None:
    """What a safetensors file says of itself as an encoder of ours; `None` for one of others."""
    try:
        with safetensors.safe_open(path, "np") as file:
            return (file.metadata() or {}).get("mocoembed")
    except (safetensors.SafetensorError, OSError) as error:
        raise FormatError(f"{path} is not an encoder file: {error}. "
                          "Make one with: mocoembed pretrain IMAGES") from error


def read_metadata(path) -> dict:
    """The description in an encoder's file; `FormatError` when it is not one or is of a newer version."""
    text = described(path)
    if text is None:
        raise FormatError(f"{path} is a safetensors file, but not an encoder of mocoembed.")
    metadata = json.loads(text)
    if metadata["format"] > FORMAT_VERSION:
        raise FormatError(f"{path} has encoder format {metadata['format']}; this version reads up to "
                          f"{FORMAT_VERSION}. Install a newer mocoembed.")
    return metadata


def transform_of(metadata: dict) -> EvaluationTransform:
    """The evaluation transform in an encoder's description."""
    settings: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value
                                for name, value in metadata["transform"].items()}
    return EvaluationTransform(**settings)
