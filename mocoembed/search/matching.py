"""An index file and the embeddings file that it was built from: opened together, and checked against each other."""

import contextlib
import os
import pathlib
import shlex

from mocoembed.embed.store import EmbeddingFile
from mocoembed.errors import MismatchError, MocoembedError, UsageError
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
        return workspace.index if is_of(read_manifest(workspace.index), file) else beside


def is_of(manifest: dict, file: EmbeddingFile) -> bool:
    """Whether an index with this manifest was built from the rows of `file`."""
    return manifest["embeddings"]["rows_sha256"] == file.identity


def embeddings_path(index: pathlib.Path, given: str | None) -> pathlib.Path:
    """The embeddings file of an index file: `given`, or the one that it names, relative to itself.

    Raises `UsageError` when it is not there.
    """
    path = pathlib.Path(given) if given else _named(index, read_manifest(index))
    if not path.is_file():
        raise UsageError(f"The embeddings file {str(path)!r} of {index} does not exist. "
                         "If it has moved, give it with --embeddings FILE.")
    return path


def _named(index: pathlib.Path, manifest: dict) -> pathlib.Path:
    return pathlib.Path(os.path.normpath(index.parent / manifest["embeddings"]["path"]))


def outdated(index: pathlib.Path, manifest: dict) -> str:
    """Why an index is not of its embeddings file as it is now; empty where it is."""
    path = _named(index, manifest)
    try:
        with EmbeddingFile(path) as file:
            if is_of(manifest, file):
                return ""
    except (MocoembedError, OSError):
        return f"{path} is not there, or damaged"
    return f"{path} has other rows; update the index with: {_again(path, index)}"


def outdated_index(embeddings: pathlib.Path) -> str:
    """A line about the index beside an embeddings file that has other rows by now; empty without one."""
    path = embeddings.with_suffix(".faiss")
    with contextlib.suppress(MocoembedError):  # it is no index of ours
        if path.exists() and (why := outdated(path, read_manifest(path))):
            return f"{path} is outdated: {why}"
    return ""


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
    built_from, named = manifest["embeddings"], _named(index, manifest)
    if not is_of(manifest, file):
        if os.path.realpath(named) != os.path.realpath(file.path):
            raise MismatchError(f"{index} is the index of {named}, not of {file.path}. Give one that belongs to it "
                                f"with --index; make one with: {shlex.join(['mocoembed', 'index', str(file.path)])}")
        raise MismatchError(f"{index} was built from {built_from['count']} rows ({built_from['rows_sha256'][:12]}), "
                            f"but {file.path} has {len(file)} rows ({file.identity[:12]}).\n"
                            f"Run mocoembed index again: {_again(file.path, index)}")


def _again(embeddings: str | os.PathLike, index: pathlib.Path) -> str:
    """The command that updates an index."""
    return shlex.join(["mocoembed", "index", str(embeddings), "--output", str(index)])


def index_by_cosine(given: str, file: EmbeddingFile) -> SearchIndex:
    """The index file `given` with `--index`, of the rows of `file`, where only the cosine counts.

    Raises `UsageError` when it is not there, or compares vectors by their distance.
    """
    path = pathlib.Path(given)
    if not path.is_file():
        raise UsageError(f"--index {given}: is not a file. Make one with: "
                         f"{_again(file.path, path)}")
    if not file.normalized:
        raise UsageError(f"--index {given}: the vectors of {file.path} do not have length 1, so an index of them goes "
                         "by distance, not by cosine. Leave the option out.")
    return index_of(path, file)


def told(index: SearchIndex) -> str:
    """What kind of index it is and what it costs: `rabitq index, recall@10 0.962`, or `flat index, exact`."""
    kind, recall = index.manifest.get("type", "flat"), index.manifest.get("recall_at_10", 0.0)
    return f"{kind} index, exact" if index.exact else f"{kind} index, recall@10 {recall:.3f}"
