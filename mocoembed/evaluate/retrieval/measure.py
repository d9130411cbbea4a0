"""How well searching ranks what belongs together: embeddings of one or two files -> mAP, mAP@R, P@k, recall@k.

Every query ranks the whole bank by cosine. Relevant are the images with the query's label, or those that a file of
pairs names. With one file, every image is a query and never finds itself. Blocks of queries are ranked one after
another, so that no matrix of all similarities is made.
"""

import dataclasses
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from mocoembed.config import RetrievalConfig
from mocoembed.data.facts import UNKNOWN
from mocoembed.embed.store import EmbeddingFile
from mocoembed.errors import CollectionError, UsageError
from mocoembed.evaluate import measures
from mocoembed.evaluate.baselines import Baseline, Baselines, baselines
from mocoembed.evaluate.measures import Measured
from mocoembed.evaluate.result import Evaluation, Protocol
from mocoembed.evaluate.retrieval import ranked
from mocoembed.evaluate.retrieval.pairs import Pairs, read_pairs
from mocoembed.evaluate.sides import (
    Overlap,
    Side,
    notes_on_unlabelled,
    overlap,
    queries_beside,
    read_side,
    require_classes,
    require_labelled,
)
from mocoembed.model.precision import Compute
from mocoembed.notes import counted
from mocoembed.workspace import Workspace

ELEMENTS = 1 << 22  # similarities that are ranked at a time: 16 MB, and as much when they are sorted
OUTCOMES = ("map", "map_at_r", "r_precision")  # that are told of every query, and of baselines
WHAT = "Retrieval"
FEWEST = 2  # labelled images of a single file


@dataclass(frozen=True)
class RetrievalResult:
    """What `measure_retrieval` measured, and all that the numbers depend on."""

    config: RetrievalConfig
    protocol: Protocol
    bank: Side
    queries: Side
    """Those that have something to find."""
    leave_one_out: bool
    values: dict[str, Measured]
    """map, map_at_r, r_precision, and for each k those that `ranked.measures_of` names."""
    chance: dict[str, float]
    """Expected value of a random ranking, in percent, for those measures that have a closed form."""
    per_class: dict[str, dict]
    """Label -> number of queries and mAP; empty with pairs."""
    overlap: Overlap
    outcomes: dict[str, np.ndarray]
    """map, map_at_r and r_precision of each query (Q,), in percent."""
    nothing_to_find: int
    """Queries left out because nothing in the bank is relevant to them."""
    baselines: Baselines
    """Their map, map_at_r and r_precision."""
    seconds: float

    def as_json(self) -> dict:
        """The schema of all evaluations, as plain JSON types; `chance` stands beside each value."""
        entry = {name: {**one.as_json(), "chance": self.chance.get(name)} for name, one in self.values.items()}
        shared = Evaluation("retrieval", self.protocol, self.bank, self.queries, self.overlap, [entry],
                            self.per_class, outcomes=self.outcomes, baselines=self.baselines.as_json(),
                            device=str(self.bank.vectors.device), seconds=self.seconds).as_json()
        shared["data"]["nothing_to_find"] = self.nothing_to_find
        return shared

    def summary(self) -> str:
        """One line on what was compared with what."""
        of_all = f" of {len(self.bank.names)}" if len(self.queries.names) < len(self.bank.names) else ""
        sides = (f"{len(self.queries.names)}{of_all} images, each among all the others" if self.leave_one_out else
                 f"{len(self.queries.names)} queries against a bank of {len(self.bank.names)}")
        relevant = "the pairs of a file" if self.config.pairs else counted(len(self.per_class), "class")
        return f"{sides}; {relevant}, {self.bank.features} features"

    def notes(self) -> list[str]:
        """What a reader of the numbers should know."""
        notes = notes_on_unlabelled({"bank": self.bank} if self.leave_one_out else
                                    {"bank": self.bank, "queries": self.queries})
        if self.nothing_to_find:
            notes.append(f"{self.nothing_to_find} queries have nothing to find in the bank and are left out")
        if not self.leave_one_out and self.bank.identity == self.queries.identity:
            return [*notes, "bank and queries are the same images, so each image finds itself; "
                            f"give {self.bank.path} alone for leave-one-out"]
        if not self.config.exclude_identical:
            notes += self.overlap.notes("another image here" if self.leave_one_out else "an image of the bank")
        return [*notes, *self.baselines.notes("map", self.values["map"].value)]


def measure_retrieval(config: RetrievalConfig,
                      progress: Callable[[int, int], None] = lambda done, total: None) -> RetrievalResult:
    """How well the queries' own class, or their pairs, come first in a ranking of the bank.

    `progress(done, total)` counts queries. Raises `UsageError` for a missing file or for --exclude-identical where the
    bytes are unknown, `MismatchError` for files of different encoders or features, `CollectionError` when no query has
    anything to find, `FormatError` for a damaged file or list of pairs.
    """
    begun, leave_one_out = time.perf_counter(), config.queries is None
    bank, queries, pairs = read(config)
    task = Task(bank, queries, leave_one_out, pairs, config.exclude_identical)
    each, (relevant_count, ranked_count), nearest = rank_all(task, config, progress)
    some = relevant_count > 0
    if not some.any():
        raise CollectionError(nothing_found(bank, queries, pairs))
    kept = queries.only(some)
    others = baselines(bank, queries, config.baselines, lambda *both: first_of(
        rank_all(dataclasses.replace(task, bank=both[0], queries=both[1]), config)[0]))
    return RetrievalResult(
        config, protocol_of(config, pairs), bank, kept, leave_one_out, measures.means(each),
        ranked.chance(relevant_count[some], ranked_count[some], config.at, config.definition),
        {} if pairs else by_class(kept.names, each["map"]), overlap(kept, bank, leave_one_out, nearest[some]),
        {name: 100 * each[name] for name in OUTCOMES}, int((~some).sum()),
        others, time.perf_counter() - begun)


def rank_all(task: "Task", config: RetrievalConfig, progress: Callable[[int, int], None] = lambda done, total: None,
             ) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """Every measure of the queries that have something to find; two numbers for every query, and one more.

    The numbers (2, Q) are how many images are relevant and how many are ranked; the last (Q,) is the highest cosine.
    """
    found, counts, count = [], [], len(task.queries.names)
    nearest = np.empty(count, np.float32)
    for rows, similarities, relevant in task.blocks():
        wanted = relevant.sum(axis=1)
        some = wanted > 0
        nearest[rows] = similarities.max(axis=1)
        counts.append(np.stack([wanted, np.isfinite(similarities).sum(axis=1)]))
        places = ranked.places_of(similarities[some], relevant[some])
        found.append(ranked.measures_of(places, config.at, config.definition))
        progress(rows.stop, count)
    return ({name: np.concatenate([block[name] for block in found]) for name in found[0]},
            np.concatenate(counts, axis=1), nearest)


def first_of(each: dict[str, np.ndarray]) -> Baseline:
    """A baseline, which is told by the first measures."""
    return Baseline(measures.means({name: each[name] for name in OUTCOMES}))


def protocol_of(config: RetrievalConfig, pairs: Pairs | None) -> Protocol:
    """All that the numbers depend on but the data and the encoder."""
    return Protocol("retrieval", {
        "preprocessing": "vectors scaled to length 1", "similarity": "cosine",
        "relevant": f"pairs {pairs.sha256}" if pairs else "same label", "leave_one_out": config.queries is None,
        "exclude_identical": config.exclude_identical, "definition": config.definition, "at": list(config.at),
        "ties": "the lower row" if config.definition != "steps" else
                "AP: equal similarities are one step; all others: the lower row"})


def read(config: RetrievalConfig) -> tuple[Side, Side, Pairs | None]:
    """Bank, queries (with pairs, those that are named) and pairs; one and the same side when none are given."""
    device = Compute.of(config.device, "fp32").device
    labelled = config.pairs is None
    with EmbeddingFile(Workspace(config.workspace).embeddings_file(config.bank)) as file, \
            queries_beside(file, config.queries) as other:
        pairs = None if labelled else read_pairs(config.pairs, other, file)
        bank = read_side(file, device, labelled, WHAT)
        queries = bank if other is file else read_side(other, device, labelled, WHAT)
        queries = queries.only(pairs.asked(len(queries.names))) if pairs else queries
    if labelled:
        require_labelled(bank, FEWEST if config.queries is None else 1, "retrieval")
        require_labelled(queries, 1, "retrieval")
        require_classes(bank, queries, "retrieval")
    if config.exclude_identical:
        for side in (bank, queries):
            if not (side.digests != np.void(UNKNOWN)).any():
                raise UsageError(f"--exclude-identical: {side.path} does not know the bytes of its images, as its "
                                 "vectors come from another tool. Leave the option out.")
    return bank, queries, pairs


@dataclass(frozen=True)
class Task:
    """Who is searched for among whom, and what is left out."""

    bank: Side
    queries: Side
    leave_one_out: bool
    pairs: Pairs | None
    exclude_identical: bool

    def blocks(self) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
        """Rows of some queries (a slice), their similarities (q, N), -inf where left out, and what is relevant."""
        width = len(self.bank.names)
        numbers = self._numbers()
        step = max(1, ELEMENTS // width)
        for first in range(0, len(self.queries.names), step):
            rows = slice(first, min(first + step, len(self.queries.names)))
            similarities = (self.queries.vectors[rows] @ self.bank.vectors.T).cpu().numpy()
            relevant = (numbers[1][rows, None] == numbers[0][None, :] if self.pairs is None
                        else self._marked(rows, self.pairs.relevant))
            if self.leave_one_out or self.pairs or self.exclude_identical:
                out = self._left_out(rows)
                similarities[out] = -np.inf
                relevant &= ~out
            yield rows, similarities, relevant

    def _numbers(self) -> tuple[np.ndarray, np.ndarray]:
        """Numbers of the labels of the bank (N,) and of the queries (Q,)."""
        number = {name: place for place, name in enumerate(sorted({*self.bank.names, *self.queries.names}))}
        bank, queries = (np.array([number[name] for name in side.names]) for side in (self.bank, self.queries))
        return bank, queries

    def _marked(self, rows: slice, wanted: dict[int, list[int]]) -> np.ndarray:
        """(q, N) bool: true at the rows that are named for each query."""
        marked = np.zeros((rows.stop - rows.start, len(self.bank.names)), bool)
        for place, row in enumerate(self.queries.rows[rows].tolist()):
            marked[place, wanted.get(row, [])] = True
        return marked

    def _left_out(self, rows: slice) -> np.ndarray:
        """(q, N) bool: the query itself, junk, and images with its bytes if these are excluded."""
        out = self._marked(rows, self.pairs.junk if self.pairs else {})
        if self.leave_one_out:
            own = self.queries.rows[rows] if self.pairs else np.arange(rows.start, rows.stop)
            out[np.arange(len(out)), own] = True  # with pairs, the bank has every row of the file
        if self.exclude_identical:
            for place, digest in enumerate(self.queries.digests[rows]):
                if digest != np.void(UNKNOWN):
                    out[place] |= self.bank.digests == digest
        return out


def by_class(names: list[str], precision: np.ndarray) -> dict[str, dict]:
    """Label -> number of queries and the mean of `precision` (Q,) in percent, sorted by label."""
    labels, number = np.unique(np.array(names, dtype=object), return_inverse=True)
    counts, sums = np.bincount(number), np.bincount(number, precision)
    return {name: {"count": int(count), "map": 100 * float(total) / int(count)}
            for name, count, total in zip(labels, counts, sums)}


def nothing_found(bank: Side, queries: Side, pairs: Pairs | None) -> str:
    """Why no query has anything to find."""
    if pairs:
        return "the pairs name nothing that is not left out of the ranking: no query has anything to find."
    if bank is queries:
        return (f"{bank.path}: no two images have the same label, so there is nothing to find. Put the images into one "
                "folder per class and embed them again, or give --pairs.")
    return (f"no label of {queries.path} is in {bank.path} ({', '.join(sorted(set(queries.names))[:3])} ...), so there "
            "is nothing to find. Give files of the same classes, or --pairs.")
