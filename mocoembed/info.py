"""What any file of ours is, by its content rather than its name."""

import contextlib
import pathlib
import re
from typing import Any

from mocoembed.config import InfoConfig
from mocoembed.embed.prepare import work_file
from mocoembed.embed.seal import HDF5, MARK
from mocoembed.embed.store import KIND, EmbeddingFile
from mocoembed.embed.work import describe_work
from mocoembed.errors import FormatError, UsageError
from mocoembed.files import through_link
from mocoembed.model.encoder_metadata import is_classifier, read_classifier_metadata, read_metadata
from mocoembed.search.trailer import MAGIC, read_manifest


def describe(config: InfoConfig) -> dict[str, Any]:
    """Everything that a file knows about itself, as plain JSON types; `kind` says what it is.

    With `verify`, every hash is recomputed: `FormatError` when one differs or there is none to compare with, else
    `verified` is true. Raises `UsageError` when there is no such file and `FormatError` when it is none of ours.
    """
    path = through_link(config.path)
    unfinished = work_file(path)
    with contextlib.suppress(FileNotFoundError):  # none, or published this moment
        if not path.exists():
            return {"path": str(path), **_work(unfinished, config.verify)}
    if not path.exists():
        raise UsageError(f"{str(path)!r} does not exist. Give a checkpoint, run folder, encoder, "
                         "classifier, embeddings, index or local file of Milvus Lite.")
    if path.is_dir():
        from mocoembed.search.milvus_info import describe_collections, is_milvus_lite

        if is_milvus_lite(path):
            if config.verify:
                raise UsageError(f"--verify: {path} has no hash of its own; `mocoembed push` compares it with the "
                                 "embeddings.")
            return {"path": str(path), **describe_collections(path)}
        from mocoembed.train.checkpoint import current_checkpoint  # with torch, which no other file needs

        path = current_checkpoint(path)
    return {"path": str(path), **_READERS[kind_of(path)](path, config.verify)}


def kind_of(path: pathlib.Path) -> str:
    """`checkpoint`, `encoder`, `embeddings`, `index` or `work`, by the file's first and last bytes."""
    with open(path, "rb") as file:
        head = file.read(64)
        file.seek(max(0, path.stat().st_size - len(MAGIC)))
        tail = file.read()
    if tail == MAGIC:
        return "index"
    if head.startswith((MARK, HDF5)):
        return "embeddings"
    if head.startswith(b"PK\x03\x04"):
        return "checkpoint"
    if head[8:9] == b"{":  # safetensors: eight bytes of length, then JSON
        return "encoder"
    if re.match(rb'\{"format": \d+, "key": ', head):
        return "work"
    raise FormatError(f"{path} is not a mocoembed file: not a checkpoint, encoder, embeddings file or index.")


def _embeddings(path: pathlib.Path, verify: bool) -> dict[str, Any]:
    with EmbeddingFile(path) as file:
        if verify:
            file.verify()
        return {**file.describe(), **_in_progress(path), **_verified(verify)}


def _in_progress(path: pathlib.Path) -> dict[str, Any]:
    """How far the embedding is that is to replace the file, if there is one."""
    with contextlib.suppress(FileNotFoundError, FormatError):  # none, published this moment, or of another version
        work = describe_work(work_file(path))
        return {"in_progress": {"committed": work["committed"], "listed": work["listed"]}}
    return {}


def _encoder(path: pathlib.Path, verify: bool) -> dict[str, Any]:
    if is_classifier(path):
        return _classifier(path, verify)
    if verify:
        from mocoembed.model.encoder_file import load_encoder

        load_encoder(path)  # compares the fingerprint
    return {"kind": "mocoembed encoder", **read_metadata(path), **_verified(verify)}


def _classifier(path: pathlib.Path, verify: bool) -> dict[str, Any]:
    if verify:
        from mocoembed.model.classifier_file import load_classifier

        load_classifier(path)  # compares the fingerprint
    return {**read_classifier_metadata(path), **_verified(verify)}


def _checkpoint(path: pathlib.Path, verify: bool) -> dict[str, Any]:
    from mocoembed.train.checkpoint import MANIFEST, load_checkpoint

    state = load_checkpoint(path)  # compares the SHA-256 with the manifest's
    if verify and not state["verified"]:
        raise FormatError(f"{path} cannot be verified: no {MANIFEST} beside it names it.")
    names = ("format", "step", "epoch", "images", "listing", "versions", "config", "sha256")
    return {"kind": "mocoembed checkpoint", **{name: state.get(name) for name in names}, **_verified(verify)}


def _index(path: pathlib.Path, verify: bool) -> dict[str, Any]:
    if verify:
        from mocoembed.search.index import SearchIndex  # with FAISS, which the manifest does not need

        SearchIndex.open(path, verify=True)  # compares the SHA-256
    from mocoembed.search.matching import outdated  # with what other files do not need

    manifest = read_manifest(path)
    return {**manifest, "outdated": outdated(path, manifest) or None, **_verified(verify)}


def _work(path: pathlib.Path, verify: bool) -> dict[str, Any]:
    if verify and path.exists():
        raise FormatError(f"{path} is an unfinished embedding, which has no hash yet. "
                          "Run the embed command again to finish it.")
    return {"kind": f"{KIND}, unfinished", **describe_work(path)}


def _verified(verify: bool) -> dict[str, Any]:
    return {"verified": True} if verify else {}


_READERS = {"embeddings": _embeddings, "encoder": _encoder, "checkpoint": _checkpoint, "index": _index, "work": _work}
