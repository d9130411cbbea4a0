"""An index file and the embeddings file that it was built from: opened together, and checked against each other."""

import os
import pathlib

from mocoembed.embed.store import EmbeddingFile
from mocoembed.errors import MismatchError, UsageError
from mocoembed.search.index import SearchIndex
from mocoembed.search.trailer import read_manifest
from mocoembed.workspace import Workspace


def default_index(workspace: Workspace, embeddings: str | None) -> pathlib.Path:
    """Where the index of an embeddings file is: beside it; or it is the workspace's, when that was built from it."""
    if embeddings is None:
        return workspace.index
    beside = workspace.embeddings_file(embeddings).with_suffix(workspace.index.suffix)
    if beside.exists() or not workspace.index.exists():
        return beside
    with EmbeddingFile(embeddings) as file:
        built_from = read_manifest(workspace.index)["embeddings"]["rows_sha256"] == file.identity
    return workspace.index if built_from else beside


def embeddings_path(index: pathlib.Path, given: str | None) -> pathlib.Path:
    """The embeddings file of an index file: `given`, or the one that it names, relative to itself.

    Raises `UsageError` when it is not there.
    """
    path = pathlib.Path(given or os.path.normpath(index.parent / read_manifest(index)["embeddings"]["path"]))
    if not path.is_file():
        raise UsageError(f"The embeddings file {str(path)!r} of {index} does not exist. "
                         "If it has moved, give it with --embeddings FILE.")
    return path


def open_both(index: pathlib.Path, embeddings: pathlib.Path) -> tuple[SearchIndex, EmbeddingFile]:
    """An index, for its `rows`, and the embeddings file that it was built from.

    Raises `MismatchError` when that holds other rows by now.
    """
    file = EmbeddingFile(embeddings)
    try:
        return index_of(index, file, for_rows=True), file
    except BaseException:
        file.close()
        raise


def index_of(path: pathlib.Path, file: EmbeddingFile, for_rows: bool = False) -> SearchIndex:
    """The index at `path`; `MismatchError` when it was built from other rows than those of `file`."""
    _require_same_rows(path, read_manifest(path), file)  # before the index, which may be large, is loaded
    index = SearchIndex.open(path, for_rows=for_rows)
    _require_same_rows(path, index.manifest, file)  # it may have been replaced meanwhile
    return index


def _require_same_rows(index: pathlib.Path, manifest: dict, file: EmbeddingFile):
    built_from = manifest["embeddings"]
    if file.identity != built_from["rows_sha256"]:
        raise MismatchError(f"{index} was built from {built_from['count']} rows ({built_from['rows_sha256'][:12]}), "
                            f"but {file.path} has {len(file)} rows ({file.identity[:12]}).\n"
                            f"Run mocoembed index again: mocoembed index {file.path} --output {index}")


def index_by_cosine(given: str, file: EmbeddingFile) -> SearchIndex:
    """The index file `given` with `--index`, of the rows of `file`, where only the cosine counts.

    Raises `UsageError` when it is not there, or compares vectors by their distance.
    """
    path = pathlib.Path(given)
    if not path.is_file():
        raise UsageError(f"--index {given}: is not a file. Make one with: mocoembed index {file.path}")
    if not file.normalized:
        raise UsageError(f"--index {given}: the vectors of {file.path} do not have length 1, so an index of them goes "
                         "by distance, not by cosine. Leave the option out.")
    return index_of(path, file)


def told(index: SearchIndex) -> str:
    """What kind of index it is and what it costs: `rabitq index, recall@10 0.962`, or `flat index, exact`."""
    kind, recall = index.manifest.get("type", "flat"), index.manifest.get("recall_at_10", 0.0)
    return f"{kind} index, exact" if index.exact else f"{kind} index, recall@10 {recall:.3f}"
