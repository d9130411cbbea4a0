"""Searching on a GPU: torch's part on a pretended one, with the CPU's numbers; FAISS's by the calls that it gets.

Neither says anything about a real GPU's kernels; `benchmarks/gpu_check.py` does.
"""

import json
import pathlib
import sys

import faiss
import numpy as np
import pytest
from own_process import ROOT, found_by

from mocoembed.config import DuplicatesConfig, IndexConfig, KnnConfig
from mocoembed.data.facts import FACTS
from mocoembed.data.images import Listing, PathTable
from mocoembed.embed.store import EmbeddingFile
from mocoembed.embed.store_writer import Settings, write_embeddings
from mocoembed.errors import MocoembedError, UsageError
from mocoembed.evaluate.knn.accuracy import knn_accuracy
from mocoembed.search import on_gpu
from mocoembed.search.build import build_index
from mocoembed.search.duplicates import find_duplicates
from mocoembed.search.exact import ExactRows
from mocoembed.search.index import SearchIndex
from mocoembed.search.on_gpu import GpuVectors, move, source_on


def clustered(count: int, length: int = 16, unit: bool = True) -> np.ndarray:
    """Vectors about a few centres; every tenth is a copy of the one before it."""
    random = np.random.default_rng(0)
    vectors = random.standard_normal((12, length))[random.integers(0, 12, count)] + 0.3 * random.standard_normal(
        (count, length))
    vectors[9::10] = vectors[8::10]
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True) if unit else vectors).astype(np.float32)


def write_vectors(path: pathlib.Path, vectors: np.ndarray, unit: bool = True) -> pathlib.Path:
    """An embeddings file of made-up images."""
    count = len(vectors)
    listing = Listing(b"/images", PathTable([b"%05d.jpg" % row for row in range(count)]),
                      np.full(count, -1, np.int32), (), {}, (), b"/images")
    settings = Settings({"fingerprint": "f" * 64, "provenance": {}}, "backbone", unit, vectors.shape[1], "fp32", "none")
    write_embeddings(path, listing, settings, np.ones(count, bool), np.zeros(count, FACTS), [vectors], [])
    return path


@pytest.fixture(scope="module")
def on_pretended(tmp_path_factory):
    """What a process with a pretended GPU has found."""
    return found_by(__file__, tmp_path_factory.mktemp("gpu"))


@pytest.mark.parametrize("case", ["unit", "distances", "some rows", "more than there are"])
def test_exact_search_is_the_cpus(on_pretended, case):
    found = on_pretended["exact"][case]
    assert found["gpu"] == found["cpu"]


def test_vectors_are_uploaded_once_and_only_rows_come_back(on_pretended):
    assert on_pretended["bank"] == {"device": "cuda:0", "uploads": 1, "downloads": 1}


def test_near_pairs_are_the_cpus(on_pretended):
    assert on_pretended["pairs"]["gpu"] == on_pretended["pairs"]["cpu"]
    assert on_pretended["pairs"]["gpu"]


def test_duplicates_and_search_by_the_command_line(on_pretended):
    found = on_pretended["commands"]
    assert found["duplicates gpu"]["compared"] == "all pairs on cuda"
    assert found["duplicates gpu"]["groups"] == found["duplicates cpu"]["groups"]
    for kind in ("none", "flat", "rabitq"):
        gpu, cpu = ([hit for hits in found[f"hits {kind}"][name] for hit in hits] for name in ("gpu", "cpu"))
        assert [row - (row % 10 == 9) for row, _ in gpu] == [row - (row % 10 == 9) for row, _ in cpu], kind  # copies
        assert np.allclose([score for _, score in gpu], [score for _, score in cpu], atol=1e-5), kind
    assert found["hits flat"]["notes"] == []
    note, = found["hits rabitq"]["notes"]
    assert note == ("FAISS has no rabitq index for GPUs: every query is compared with all 600 images on cuda:0, "
                    "exactly")


def test_too_little_memory_is_one_line(on_pretended):
    assert on_pretended["no memory"] == ("Comparing 600 vectors of dimension 16 on cuda:0 needs 0.1 MiB of its memory, "
                                         "0.0 MiB are free. Leave out --device, or give --device cpu.")


# ------------------------------------------------------------------------------------------------ FAISS, by its calls


class Copied:
    """In place of an index on a GPU: the CPU's, whose calls are noted."""

    def __init__(self, index, calls):
        self.index, self.calls = index, calls

    def search(self, vectors, k, params):
        self.calls.append(("search", len(vectors), k, type(params).__name__, getattr(params, "nprobe", None)))
        if self.calls[0][0] == "fails":
            raise RuntimeError("Error in x at y.cu:12: Error: 'a' failed: too many")
        return self.index.search(vectors, k, params=params)


@pytest.fixture
def calls(monkeypatch):
    """The calls of FAISS's part for GPUs, of which there are two."""
    made = []

    def resources():
        made.append(("resources",))
        return "resources"

    def copied(its_resources, number, index):
        made.append(("copy", its_resources, number, type(index).__name__))
        return Copied(index, made)

    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 2, raising=False)
    monkeypatch.setattr(faiss, "StandardGpuResources", resources, raising=False)
    monkeypatch.setattr(faiss, "index_cpu_to_gpu", copied, raising=False)
    return made


@pytest.fixture
def indexed(tmp_path):
    """`indexed(type)` gives an open index of 600 vectors, and its embeddings file."""
    path = write_vectors(tmp_path / "e.h5", clustered(600))

    def build(kind: str) -> tuple[SearchIndex, EmbeddingFile]:
        built = build_index(IndexConfig(str(path), type=kind, output=str(tmp_path / "e.faiss"), fresh=True, recall=0.5,
                                        allow_lower_recall=True))
        return SearchIndex.open(built.path), EmbeddingFile(path)

    return build


@pytest.mark.parametrize(("kind", "name"), [("ivf-flat", "IndexIVFFlat"), ("ivf-sq8", "IndexIVFScalarQuantizer"),
                                            ("ivf-pq", "IndexIVFPQ"), ("OPQ8,IVF8,PQ8", "IndexPreTransform")])
def test_inverted_lists_are_copied_once_and_searched_as_on_the_cpu(indexed, calls, kind, name):
    index, file = indexed(kind)
    queries = file.embeddings[:40]
    expected = index.rows(file).nearest(queries, 5)
    index.to_gpu(1)
    scores, rows = index.rows(file).nearest(queries, 5)
    assert rows.tolist() == expected[1].tolist()
    assert np.allclose(scores, expected[0], atol=1e-5)
    assert calls[:2] == [("resources",), ("copy", "resources", 1, name)]
    effort = index.effort()
    with_what = (("SearchParametersPreTransform", None) if name == "IndexPreTransform"
                 else ("SearchParametersIVF", effort.breadth))
    assert calls[2:] == [("search", 40, max(5, effort.candidates), *with_what)]


def test_what_faiss_cannot_look_for_on_a_gpu_is_compared_exactly(indexed, calls, monkeypatch):
    index, file = indexed("ivf-sq8")
    vectors = GpuVectors(file, "cpu")
    vectors.compute = type("Chosen", (), {"device": type("Device", (), {"index": 0})(),
                                          "exact": vectors.compute.exact})()
    source = source_on(vectors, index, index.rows(file))
    assert (len(source), source.exact) == (600, False)
    vectors.compute = GpuVectors(file, "cpu").compute
    searched = len(calls)
    monkeypatch.setattr(on_gpu, "MOST", 20)
    expected = ExactRows(file).nearest(file.embeddings[:7], 30)
    found = source.nearest(file.embeddings[:7], 30)
    assert [one.tolist() for one in found] == [one.tolist() for one in expected]
    assert len(calls) == searched


@pytest.mark.parametrize(("kind", "number", "message"), [
    ("rabitq", "cuda:0", "FAISS has no rabitq index for GPUs. Leave out --index"),
    ("hnsw", "cuda:0", "FAISS has no hnsw index for GPUs"),
    ("ivf-flat", "cuda:5", "this FAISS sees no such GPU")])
def test_an_index_that_cannot_go_to_the_gpu_is_refused(indexed, calls, monkeypatch, kind, number, message):
    from mocoembed.model.precision import Compute

    monkeypatch.setattr("torch.cuda.device_count", lambda: 6)
    index, _ = indexed(kind)
    assert Compute.of(number, "fp32").device.type == "cuda"
    with pytest.raises(UsageError, match=message):
        move(index, number)
    assert calls == []


def test_knn_through_an_index_goes_to_the_gpu_that_is_asked_for(tmp_path, make_embeddings, monkeypatch):
    moved = []
    monkeypatch.setattr("mocoembed.evaluate.knn.through_index.move", lambda index, device: moved.append(device))
    monkeypatch.setattr("mocoembed.evaluate.knn.through_index.is_gpu", lambda device: device == "cpu")
    path = make_embeddings("e", clustered(200), "ab" * 100, normalized=True)
    built = build_index(IndexConfig(str(path), type="ivf-flat", allow_lower_recall=True))
    knn_accuracy(KnnConfig(str(path), index=str(built.path), device="cpu", k=(5,), baselines=False))
    assert moved == ["cpu"]


def test_faisss_refusal_is_one_line(indexed, calls):
    index, file = indexed("ivf-flat")
    index.to_gpu(0)
    calls.insert(0, ("fails",))
    with pytest.raises(MocoembedError, match=r"cannot search this index on GPU 0: .*too many.* Give --device cpu"):
        index.rows(file).nearest(file.embeddings[:2], 3)


def test_where_there_is_no_gpu_it_is_said(tmp_path):
    path = write_vectors(tmp_path / "e.h5", clustered(50))
    with pytest.raises(UsageError, match="--device cuda: not on this machine"):
        find_duplicates(DuplicatesConfig(str(path), device="cuda"))


# ------------------------------------------------------------------------------------- in a process of its own


def run_exact(folder: pathlib.Path) -> dict:
    """`nearest` of both."""
    found = {}
    cases = {"unit": (True, None, 10), "distances": (False, None, 10), "some rows": (True, np.arange(3, 600, 7), 12),
             "more than there are": (True, np.array([5, 9, 18]), 10)}
    for case, (unit, selected, k) in cases.items():
        with EmbeddingFile(write_vectors(folder / f"{case}.h5", clustered(600, unit=unit), unit)) as file, Pretended():
            queries = np.concatenate([file.embeddings[:600:9], clustered(7, unit=unit)])
            both = {"cpu": ExactRows(file, selected), "gpu": GpuVectors(file, "cuda").rows(selected)}
            found[case] = {name: [one.tolist() for one in rows.nearest(queries, k)] for name, rows in both.items()}
    return found


def run_bank(path: pathlib.Path) -> dict:
    """Where the vectors are, and what was copied for the second search."""
    with EmbeddingFile(path) as file, Pretended() as gpu:
        vectors = GpuVectors(file, "cuda")
        vectors.rows().nearest(file.embeddings[:3], 2)
        gpu.uploads.clear(), gpu.waits.clear()
        vectors.rows().nearest(file.embeddings[:3], 2)
        return {"device": str(vectors.bank.device), "uploads": len(gpu.uploads),
                "downloads": sum(one.startswith("download") for one in gpu.waits)}


def run_pairs(path: pathlib.Path) -> dict:
    """Pairs of rows with a cosine of 0.95 or more."""
    def listed(pairs):
        return sorted([int(a), int(b)] for some in pairs for a, b in zip(some[0], some[1]))

    with EmbeddingFile(path) as file, StopRequest() as stop, Pretended(), \
            mock.patch.object(on_gpu, "TILE_ROWS", 64), mock.patch.object(on_gpu, "TILE_COLUMNS", 100):
        cpu = listed(near_pairs(file, 0.95, lambda done, total: None, stop))
        return {"cpu": cpu, "gpu": listed(GpuVectors(file, "cuda", unit).pairs(0.95 - 1e-6, lambda done: None))}


def run_commands(path: pathlib.Path) -> dict:
    """The commands' functions on both devices."""
    found = {}
    with Pretended():
        for device in ("cpu", "cuda"):
            one = find_duplicates(DuplicatesConfig(str(path), device=device, threshold=0.999)).as_json()
            found[f"duplicates {'gpu' if device == 'cuda' else 'cpu'}"] = one
        for kind in ("none", "flat", "rabitq"):
            index = path.with_suffix(".faiss")
            if kind != "none":
                build_index(IndexConfig(str(path), type=kind, recall=0.9, fresh=True))
            with EmbeddingFile(path) as file:
                queries = file.embeddings[:50]
            hits, notes = {}, []
            for name, device in (("cpu", "cpu"), ("gpu", "cuda")):
                # rabitq, which may miss some, is compared with exact search
                exact = kind == "rabitq" and name == "cpu"
                config = SearchConfig(("-",), str(path.parent), index=str(index) if kind != "none" else None,
                                      embeddings=str(path), device=device)
                with Pair(config, notes.append, encoder=False) as pair:
                    if exact:
                        pair._rows = None
                    plain = pair.search(queries, 5)
                    some = pair.search(queries, 5, Filter(paths=("*1.jpg",)), unique=True)
                hits[name] = [[(hit.row, hit.score) for hit in one] for one in plain + some]
            found[f"hits {kind}"] = {**hits, "notes": notes}
    return found


def run_without_memory(path: pathlib.Path) -> str:
    with EmbeddingFile(path) as file, Pretended():
        torch.cuda.mem_get_info = lambda device=None: (0, 0)
        try:
            GpuVectors(file, "cuda").rows().nearest(file.embeddings[:1], 1)
        except MocoembedError as error:
            return str(error)
    return "it went through"


if __name__ == "__main__":
    from unittest import mock

    import torch

    sys.path += [str(ROOT), str(ROOT / "tests")]
    from pretended_cuda import Pretended

    from mocoembed.config import SearchConfig
    from mocoembed.files import StopRequest
    from mocoembed.search.duplicates import near_pairs, unit
    from mocoembed.search.filters import Filter
    from mocoembed.search.pair import Pair

    torch.set_num_threads(1)
    place = pathlib.Path(sys.argv[1])
    file = write_vectors(place / "e.h5", clustered(600), True)
    print(json.dumps({"exact": run_exact(place), "bank": run_bank(file), "pairs": run_pairs(file),
                      "commands": run_commands(file), "no memory": run_without_memory(file)}))
