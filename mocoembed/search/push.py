"""Pushing embeddings files into a Milvus collection: only rows that are new, changed or gone travel.

    read and hash the file's rows -> list the collection's ids and hashes -> mark the part as not whole
    -> delete, upsert in batches -> flush -> look again and compare, compare a sample of vectors -> mark it as whole

Of a few rows that travelled, these alone are looked at again, and all are counted; of many, all are listed again.

Every step may be cut off; the next push lists what is there and does what is left. A part is called whole only when the
collection has been seen to hold its rows and no others.
"""

import contextlib
import dataclasses
import pathlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from mocoembed.config import PushConfig
from mocoembed.config.push import parameters
from mocoembed.embed.store import EmbeddingFile
from mocoembed.errors import MismatchError, MocoembedError, UsageError
from mocoembed.files import StopRequest
from mocoembed.notes import say_nothing
from mocoembed.search.build import require_vectors
from mocoembed.search.milvus import INDEX, Milvus
from mocoembed.search.milvus_rows import (
    Part,
    about,
    hash_of,
    part_key,
    part_of,
    require_ours,
    require_same,
    rows_of,
)
from mocoembed.search.tuning import Sample, recall
from mocoembed.workspace import Workspace

BATCH_BYTES, ROW_BYTES = 1 << 23, 400  # of rows in a request; of a row beside its vector
IDS_AT_ONCE = 4096  # looked up or deleted in a request
CHECKED = 200  # rows of which everything is compared at the end, and as many of those that travelled
MOST_LOOKED_UP = 0.1  # of the rows: where more have travelled, listing all of them again takes less time
EXACT = ("FLAT", "AUTOINDEX")  # of Milvus Lite's types
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Pushed:
    """What was done for one embeddings file."""

    path: pathlib.Path
    part: Part
    dimension: int
    added: int
    changed: int
    dropped: int
    index: dict
    """Index of the collection: type, metric, params, search_params."""

    def as_json(self) -> dict:
        """Plain JSON types."""
        return {"path": str(self.path), "count": self.part.count, "dimension": self.dimension, "added": self.added,
                "changed": self.changed, "dropped": self.dropped, "recall_at_10": self.part.recall_at_10,
                "latency_ms": self.part.latency_ms, "index": self.index}


def push_embeddings(config: PushConfig, progress: Progress = lambda done, total: None,
                    note: Callable[[str], None] = say_nothing) -> Iterator[Pushed]:
    """Make a Milvus collection hold the rows of embeddings files; the files one after the other, as they are done.

    `progress(done, total)` counts rows that travel. Raises `UsageError` for wrong paths and options, `FormatError` for
    a damaged or empty file, `MismatchError` for a foreign collection, for files of different encoders and where an id
    would stand for two images, `Interrupted` after a signal, `MocoembedError` when the server is away or fails.
    """
    workspace = Workspace(config.workspace)
    paths = [workspace.embeddings_file(given) for given in config.embeddings or (None,)]
    uri = config.to or str(workspace.root / "milvus.db")
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(EmbeddingFile(path)) for path in paths]
        for file in files:
            require_vectors(file)
            require_same(about(file), about(files[0]), file.path, files[0].path)
        _require_apart(files)
        collection = stack.enter_context(Milvus(uri, config.collection, config.timeout, create=True))
        stop = stack.enter_context(StopRequest())
        index = _prepared(collection, config, files[0])
        if collection.local and index["type"] not in EXACT:
            note(f"{index['type']} in Milvus Lite may lose hits where a filter is given; FLAT does not")
        for file in files:
            yield _Push(collection, file, index, progress, stop).run(note)


def _require_apart(files: Sequence[EmbeddingFile]):
    """Raise unless every id stands in one file only, and every file is a part of its own."""
    for number, file in enumerate(files):
        for other in files[:number]:
            if part_of(file) == part_of(other):
                raise UsageError(f"{file.path} and {other.path} have the same name and were embedded from the same "
                                 "collection, so they are one part. Give one of them, or rename one.")
            if len(same := np.intersect1d(file.ids(), other.ids())):
                raise _taken(len(same), file, str(other.path))


def _taken(count: int, file: EmbeddingFile, other: str) -> MismatchError:
    return MismatchError(f"{count} of the {len(file)} ids of {file.path} stand for images of {other}, too: an id is "
                         "made of an image's path within its collection.\n"
                         "Push it into another --collection, or embed both collections from the folder above them.")


def _prepared(collection: Milvus, config: PushConfig, file: EmbeddingFile) -> dict:
    """Make or check the collection, give it its index and load it; what is known of the index."""
    here = about(file)
    collection.require_type(config.index_type)
    if config.fresh and collection.exists():
        collection.drop()
    if not collection.exists():
        collection.create(file.dimension, here)
    properties = collection.properties()
    require_same(here, require_ours(properties, collection), file.path, f"The Milvus collection {collection}")
    default = "FLAT" if collection.local else "AUTOINDEX"  # Milvus Lite's other types lose hits of a filter
    before = {"type": default, "metric": here["metric"], "params": {}, "search_params": {}, "made": False}
    before |= properties.get(INDEX, {})
    index = before | {"made": True}
    if config.index_type is not None:
        index |= {"type": config.index_type, "params": parameters(config.param)}
        if index["type"] != before["type"]:
            index["search_params"] = {}
    if config.search_param:
        index["search_params"] = parameters(config.search_param)
    if any(index[name] != before[name] for name in ("type", "params", "made")) or not collection.has_index():
        collection.set_property(INDEX, before | {"made": False})  # the next push makes it, should this one be cut off
        collection.index(index["type"], index["metric"], index["params"])
    collection.load()
    if index != before:
        collection.set_property(INDEX, index)
    return index


def _is_whole(known: Part | None, part: Part) -> bool:
    """Whether the properties tell of a push of the same rows that came to its end."""
    return known is not None and known.whole and known.rows_sha256 == part.rows_sha256


def _spread(rows: np.ndarray) -> np.ndarray:
    """`CHECKED` of the rows at even distances, or all."""
    return rows[np.linspace(0, len(rows) - 1, min(CHECKED, len(rows))).astype(np.int64)]


class _Push:
    """Makes one part of a collection hold the rows of one file."""

    def __init__(self, collection: Milvus, file: EmbeddingFile, index: dict, progress: Progress, stop: StopRequest):
        self.collection, self.file, self.index, self.progress, self.stop = collection, file, index, progress, stop
        self.part = part_of(file)
        self.step = max(1, BATCH_BYTES // (4 * file.dimension + ROW_BYTES))

    def run(self, note: Callable[[str], None]) -> Pushed:
        """All steps of the module's first lines."""
        parts = Part.all_in(self.collection.properties())
        known = parts.get(self.part)
        ids, hashes = self._hashed()
        there, there_hashes = self.collection.listed(self.part)
        once, counts = np.unique(there, return_counts=True)
        once = once[counts == 1]  # what Milvus Lite has doubled when it was killed goes, and is sent again
        is_there = np.isin(ids, once)
        gone = np.setdiff1d(there, ids[is_there])
        added, changed = np.flatnonzero(~is_there), np.flatnonzero(is_there)
        changed = changed[hashes[changed] != there_hashes[np.searchsorted(there, ids[changed])]]
        if set(parts) - {self.part}:
            self._require_free(ids[added], parts)
        if known is not None and not known.whole:
            note(f"an earlier push of {self.file.path.name} was cut off: going on with {len(counts)} rows there")
        part = Part.of(self.file, known.before or known.whole * known.count if known else 0)
        sent = np.sort(np.concatenate([added, changed]))
        if len(gone) + len(sent) or not _is_whole(known, part):
            self._store(part)
            self._delete(gone)
            self._send(sent)
            self.collection.flush()
            self.collection.wait_until_indexed(lambda: self._may_stop("Stopped while Milvus made the index."))
            there, there_hashes = self._listed_again(there, there_hashes, np.concatenate([gone, ids[sent]]))
        self._verify(ids, hashes, there, there_hashes)
        self._compare(ids, hashes, sent)
        among_others = bool(set(parts) - {self.part})
        part = dataclasses.replace(part, whole=True, before=len(self.file), **self._measured(among_others))
        self._store(part)
        return Pushed(self.file.path, part, self.file.dimension, len(added), len(changed), len(gone), self.index)

    def _store(self, part: Part):
        self.collection.set_property(part_key(self.part), dataclasses.asdict(part))

    def _hashed(self) -> tuple[np.ndarray, np.ndarray]:
        """(N,) int64 each: the ids and hashes of the file's rows."""
        hashes = np.empty(len(self.file), np.int64)
        for first in range(0, len(self.file), self.step):
            rows = np.arange(first, min(first + self.step, len(self.file)))
            hashes[rows] = [row["row_hash"] for row in rows_of(self.file, rows, self.part)]
            self._may_stop("Stopped before anything was pushed.")
        return self.file.ids(), hashes

    def _may_stop(self, what: str):
        self.stop.raise_if_set(f"{what} Run the same command again.")

    def _require_free(self, ids: np.ndarray, parts: dict[int, Part]):
        """Raise `MismatchError` if one of the ids stands for an image of another part."""
        taken: list[int] = []
        for first in range(0, len(ids), IDS_AT_ONCE):
            found = self.collection.get(ids[first:first + IDS_AT_ONCE].tolist(), ["part"])
            taken += [row["part"] for row in found if row["part"] != self.part]
            self._may_stop("Stopped before anything was pushed.")
        if taken:
            names = sorted({parts[number].file if number in parts else "another file" for number in taken})
            raise _taken(len(taken), self.file, f"{' and '.join(names)} in {self.collection}")

    def _delete(self, ids: np.ndarray):
        for first in range(0, len(ids), IDS_AT_ONCE):
            self.collection.delete(ids[first:first + IDS_AT_ONCE].tolist())
            self._may_stop(f"Stopped after deleting {min(first + IDS_AT_ONCE, len(ids))} of {len(ids)} rows.")

    def _send(self, rows: np.ndarray):
        for first in range(0, len(rows), self.step):
            self.collection.upsert(list(rows_of(self.file, rows[first:first + self.step], self.part)))
            done = min(first + self.step, len(rows))
            self.progress(done, len(rows))
            self._may_stop(f"Stopped after pushing {done} of {len(rows)} rows.")

    def _listed_again(self, there: np.ndarray, hashes: np.ndarray,
                      touched: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Ids, rising, and hashes of the part's rows now; `there` with `hashes` before the ids `touched` travelled."""
        if len(touched) > MOST_LOOKED_UP * len(there):
            return self.collection.listed(self.part)
        found = []
        for first in range(0, len(touched), IDS_AT_ONCE):
            found += self.collection.get(touched[first:first + IDS_AT_ONCE].tolist(), ["part", "row_hash"])
        mine = [(row["id"], row["row_hash"]) for row in found if row["part"] == self.part]
        new = np.array(mine, np.int64).reshape(len(mine), 2)
        stayed = ~np.isin(there, touched)
        all_ids, all_hashes = np.append(there[stayed], new[:, 0]), np.append(hashes[stayed], new[:, 1])
        order = np.argsort(all_ids, kind="stable")
        return all_ids[order], all_hashes[order]

    def _verify(self, ids: np.ndarray, hashes: np.ndarray, there: np.ndarray, there_hashes: np.ndarray):
        """Raise `MocoembedError` unless the rows `there` are these, and the collection has no others of the part."""
        order = np.argsort(ids)
        if not np.array_equal(there, ids[order]) or not np.array_equal(there_hashes, hashes[order]):
            missing, more = len(np.setdiff1d(ids, there)), len(there) - len(np.intersect1d(ids, there))
            raise self._wrong(f"{missing} of {len(ids)} rows are missing, {more} are too many or doubled")
        if (count := self.collection.count(f"part == {self.part}")) != len(ids):
            raise self._wrong(f"it counts {count} rows instead of {len(ids)}")

    def _compare(self, ids: np.ndarray, hashes: np.ndarray, sent: np.ndarray):
        """Raise `MocoembedError` if one of a sample of rows, half of them from those that were sent, differs."""
        some = np.unique(np.concatenate([_spread(np.arange(len(ids))), _spread(sent)]))
        found = self.collection.get(ids[some].tolist(), ["vector", "path", "label", "width", "height", "digest"])
        stored = {row["id"]: hash_of(row) for row in found}
        wrong = sum(stored.get(number) != its for number, its in zip(ids[some].tolist(), hashes[some].tolist()))
        if wrong:
            raise self._wrong(f"{wrong} of {len(some)} rows that were compared differ")

    def _wrong(self, how: str) -> MocoembedError:
        return MocoembedError(f"{self.collection} does not hold what was pushed: {how}. "
                              "Run the same command again, or add --fresh.")

    def _measured(self, among_others: bool) -> dict:
        """recall@10 against comparison with every row of the file, and the median latency of a query alone, in ms."""
        sample, ids, seconds = Sample.of_stored(self.file, self.stop), self.file.ids(), []
        only = f"part == {self.part}" if among_others else ""
        row_of = dict(zip(ids.tolist(), range(len(ids))))
        found = np.full((len(sample.rows), sample.k + sample.stored), -1, np.int64)
        for place, query in enumerate(sample.queries):
            begun = time.perf_counter()
            hits = self.collection.search(query[None], found.shape[1], only, self.index["metric"],
                                          self.index["search_params"])[0]
            seconds.append(time.perf_counter() - begun)
            found[place, :len(hits)] = [row_of.get(hit["id"], -1) for hit in hits]
            self._may_stop("Stopped while measuring.")
        return {"recall_at_10": float(recall(self.file, sample, sample.without_queries(found)).mean()),
                "latency_ms": 1e3 * float(np.median(seconds))}
