"""Search in a Milvus collection: query images -> vectors by the collection's own encoder -> hits.

Like `query`, of which this is the counterpart for `search --to`. The embeddings files need not be here; where the
workspace has one that was pushed, it must hold the rows that are in the collection.
"""

import dataclasses
import hashlib
import math
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from mocoembed.config import MilvusConfig, SearchConfig
from mocoembed.config.push import parameters, push_command
from mocoembed.data.images import require_root
from mocoembed.embed.npy import is_foreign
from mocoembed.embed.store import EmbeddingFile
from mocoembed.errors import CollectionError, MismatchError, UsageError
from mocoembed.notes import say_nothing
from mocoembed.search.encoding import is_without_torch, query_encoder, require_device
from mocoembed.search.filters import COMPARED, Filter, no_path_matches, nothing_matches, nothing_matches_all
from mocoembed.search.hits import HIGHEST, Hit, QueryResult
from mocoembed.search.left_out import LeftOut
from mocoembed.search.milvus import INDEX, MOST_HITS, Milvus
from mocoembed.search.milvus_expressions import PathCheck, expression, one_label
from mocoembed.search.milvus_rows import Part, about, part_of, path_of, require_ours, require_same
from mocoembed.search.pair import query_pixels, readable
from mocoembed.search.queries import UNLIKE, combined, combined_each, name_together, query_names, read_bytes, shown
from mocoembed.workspace import Workspace

BATCH = 64  # query images embedded, and searched for, at a time
SECONDS = 60.0  # that a request may take
MORE = 8  # times as many candidates when globs leave too few hits
ALONE = {"row": "rows are those of an embeddings file", "unique": "folding is not supported for Milvus collections",
         "diverse": "hits of a collection are ranked by nearness", "index": "the collection takes its place",
         "server": "the collection takes its place", "recall": "Milvus's own parameters are given by --search-param"}


class Described:
    """What a collection says of itself, as an index and an embeddings file do, for choosing the encoder."""

    def __init__(self, collection: Milvus, about_it: dict):
        self.path, self.manifest = f"The Milvus collection {collection}", about_it
        self.precision, self.full_decode = about_it["precision"], about_it["full_decode"]
        self.value_range = tuple(map(float, about_it["value_range"]))


def iterate_milvus_search(config: SearchConfig, where: MilvusConfig,
                          progress: Callable[[int, int], None] = lambda done, total: None,
                          note: Callable[[str], None] = say_nothing) -> Iterator[QueryResult]:
    """The result of every query of `config`, found in the collection `where`, as `iterate_search` gives them.

    Raises what that raises, and `UsageError` for options that a collection does not have, `MocoembedError` when the
    server is away, slow or fails.
    """
    for name, why in ALONE.items():
        if getattr(config, name):
            raise UsageError(f"--{name} does not go with --to: {why}. Leave it out.")
    if config.k > MOST_HITS:
        raise UsageError(f"-k {config.k}: Milvus gives at most {MOST_HITS} hits for a query.")
    require_device(config.device)
    require_root(config.root)
    names = query_names(config.images, note)
    with Milvus(str(where.to), where.collection, SECONDS) as collection:
        search = MilvusSearch(collection, config, where, note)
        if config.together:
            yield search.together(names, progress)
            return
        left_out = LeftOut(len(names), note)
        for first in range(0, len(names), BATCH):
            some = names[first:first + BATCH]
            yield from search.results(some, left_out)
            progress(first + len(some), len(names))
        left_out.raise_if_any()


class MilvusSearch:
    """An open collection with its encoder, and what is asked of the hits."""

    def __init__(self, collection: Milvus, config: SearchConfig, where: MilvusConfig, note: Callable[[str], None]):
        self.collection, self.config, self.note = collection, config, note
        properties = self._properties()
        self.described = Described(collection, require_ours(properties, collection))
        self.parts = Part.all_in(properties)
        self._require_whole()
        workspace = Workspace(config.workspace)
        self._require_fresh(workspace)
        if is_foreign(self.described.manifest["encoder"]):
            raise UsageError(f"{self.described.path} holds vectors made by another tool, so there is no encoder to "
                             "embed a query image with.")
        self.encoder = query_encoder(config, workspace, self.described, self.described, note)
        self.transform = dataclasses.replace(self.encoder.transform, value_range=self.described.value_range)
        self.parameters = parameters(where.search_param) or properties.get(INDEX, {}).get("search_params", {})
        self.filter = Filter(config.label, config.not_label, config.path)
        collection.load()
        self._require_each()
        if config.exclude_self and not any(part.digests for part in self.parts.values()):
            raise UsageError(f"--exclude-self: {self.described.path} does not know the bytes of its images. "
                             "Leave it out.")
        unlike = [self._read(name, ())[0] for name in query_names(config.unlike, say_nothing, UNLIKE)]
        self._unlike = self.encoder(np.stack(unlike)) if unlike else None

    def __len__(self):
        return sum(part.count for part in self.parts.values())

    def _properties(self) -> dict[str, dict]:
        if not self.collection.exists():
            raise UsageError(f"The Milvus collection {self.collection} does not exist. Make it with: "
                             f"{push_command(self.collection.uri, self.collection.name)}")
        return self.collection.properties()

    def _require_whole(self):
        """Raise `MismatchError` for a collection whose first push has not come to its end; tell of a later one."""
        again = push_command(self.collection.uri, self.collection.name)
        for part in [part for part in self.parts.values() if not part.whole]:
            if not part.before:
                raise MismatchError(f"{self.described.path} does not hold all {part.count} rows of {part.file} yet: a "
                                    f"push runs, or was cut off.\nWait for it, or run it again: {again}")
            self.note(f"{self.described.path}: a push of {part.file} ({part.before} rows before, {part.count} after) "
                      f"runs or was cut off, so hits may be missing or outdated. If none runs: {again}")
        if not self.parts:
            raise MismatchError(f"{self.described.path} is empty. Fill it with: {again}")

    def _require_fresh(self, workspace: Workspace):
        """Raise `MismatchError` if the embeddings file that is here holds other rows than were pushed."""
        given = self.config.embeddings
        if given is None and not workspace.embeddings.is_file():
            return
        with EmbeddingFile(workspace.embeddings_file(given)) as file:
            part = self.parts.get(part_of(file))
            if part is None and given is None:
                return
            if given is not None:
                require_same(about(file), self.described.manifest, file.path, self.described.path)
            count, identity = (part.count, part.rows_sha256[:12]) if part else (0, "none")
            if identity != file.identity[:12]:
                raise MismatchError(f"{self.described.path} was pushed from {count} rows ({identity}), but {file.path} "
                                    f"has {len(file)} rows ({file.identity[:12]}).\n"
                                    "Push it again: "
                                    f"{push_command(self.collection.uri, self.collection.name, file.path)}")

    def _require_each(self):
        """Raise `UsageError` for a label that no row has, and for a glob that none can match."""
        for option, labels in (("--label", self.filter.labels), ("--not-label", self.filter.not_labels)):
            for label in labels:
                if not self.collection.any(one_label(label)):
                    names = dict.fromkeys(name for part in self.parts.values() for name in part.labels)
                    raise nothing_matches(f"{option} {label!r}", len(self), "labels", label, names)
        for glob in self.filter.paths:
            if not self.collection.any(expression(Filter(paths=(glob,)))):
                raise self._no_path(glob)

    def _no_path(self, glob: str) -> UsageError:
        return no_path_matches(glob, len(self), (os.fsdecode(path_of(text))
                                                 for text in self.collection.some("path", COMPARED)))

    # ------------------------------------------------------------------------------------------------ searching

    def results(self, names: Sequence[str], left_out: LeftOut) -> list[QueryResult]:
        """The result of each of the query images that can be used."""
        read = {}
        for name in names:
            try:
                read[name] = self._read(name, self.config.crop)
            except (CollectionError, UsageError) as error:  # the latter: a region outside of it
                left_out.add(error)
        if not read:
            return []
        names = [name for name in names if name in read]
        vectors, digests = self._embedded([read[name] for name in names])
        places, asked = combined_each(names, vectors, self._unlike, self._normalized(), left_out)
        return [self._result(names[place], hits)
                for place, hits in zip(places, self._hits(asked, [[digests[place]] for place in places]))]

    def together(self, names: Sequence[str], progress: Callable[[int, int], None]) -> QueryResult:
        """The result of all query images as one."""
        vectors, digests = [], []
        for first in range(0, len(names), BATCH):
            some = self._embedded([self._read(name, self.config.crop) for name in names[first:first + BATCH]])
            vectors.append(some[0])
            digests += some[1]
            progress(min(first + BATCH, len(names)), len(names))
        asked = combined(np.concatenate(vectors), self._unlike, True, self._normalized())
        return self._result(name_together(names), self._hits(asked, [digests])[0], names[0])

    def _normalized(self) -> bool:
        return bool(self.described.manifest["normalized"])

    def _embedded(self, read: Sequence[tuple[np.ndarray, bytes]]) -> tuple[np.ndarray, list[str]]:
        """(Q, D) float32: the vectors of images that were read; and the SHA-256 of their bytes."""
        vectors = self.encoder(np.stack([pixels for pixels, _ in read]))
        return vectors, [hashlib.sha256(data).hexdigest() for _, data in read]

    def _read(self, name: str, crop: Sequence[int]) -> tuple[np.ndarray, bytes]:
        """(S, S, 3) uint8: a query image, or its region `crop`, as the encoder sees it; and its bytes."""
        with readable(shown(name)):
            data = read_bytes(name)
        return query_pixels(data, name, self.transform, self.described.full_decode, crop,
                            not is_without_torch(self.encoder)), data

    def _hits(self, vectors: np.ndarray, digests: list[list[str]]) -> list[list[dict]]:
        """The rows that are hits of each of `vectors` (Q, D); `digests`: for each, bytes that are none."""
        if self.config.exclude_self:
            hits = [self._found(vector[None], self.filter, list(dict.fromkeys(its)), self.config.min_score)[0]
                    for vector, its in zip(vectors, digests)]
        else:
            hits = self._found(vectors, self.filter, least=self.config.min_score)
        if self.filter and len(hits) and not any(hits):
            self._require_some(vectors[:1])
        return hits

    def _found(self, vectors: np.ndarray, chosen: Filter, left_out: Sequence[str] = (),
               least: float | None = None) -> list[list[dict]]:
        """Rows that the filter selects, without those of the digests `left_out`, the nearest first.

        Their scores are `least` or more; more of them are asked for while globs leave fewer than k.
        """
        k, least = self.config.k, -math.inf if least is None else least
        only, matches = expression(chosen, left_out), PathCheck(chosen.paths)
        hits: list[list[dict]] = [[] for _ in vectors]
        pending, count = list(range(len(vectors))), k
        while pending:
            found = self.collection.search(vectors[pending], count, only, self.described.manifest["metric"],
                                           self.parameters)
            again = []
            for place, rows in zip(pending, found):
                good = [row for row in rows if row["score"] >= least and matches(row["path"])]
                hits[place] = good[:k]
                is_all = len(rows) < count or rows[-1]["score"] < least or not matches
                if len(good) < k and not is_all:
                    again.append(place)
            if again and count == MOST_HITS:
                self.note(f"--path: only the nearest {MOST_HITS} images that may match were compared")
                break
            pending, count = again, min(MORE * count, MOST_HITS)
        return hits

    def _require_some(self, vector: np.ndarray):
        """Raise `UsageError` when a glob or all filters select nothing, not even what is near to `vector` (1, D)."""
        for glob in self.filter.paths:
            if not any(self._found(vector, Filter(paths=(glob,)))):
                raise self._no_path(glob)
        if not any(self._found(vector, self.filter)):
            raise nothing_matches_all(len(self))

    def _result(self, name: str, rows: list[dict], image: str | None = None) -> QueryResult:
        hits = [Hit(rank, min(row["score"], HIGHEST), self._full(row), row["label"], None, row["id"])
                for rank, row in enumerate(rows, 1)]
        return QueryResult(name, hits, self.described.value_range, image)

    def _full(self, row: dict[str, Any]) -> str:
        part = self.parts.get(row["part"])
        root = os.fsencode(self.config.root) if self.config.root else path_of(part.root) if part else b""
        return os.fsdecode(os.path.join(root, path_of(row["path"])))
