"""Duplicates: the groups that brute force gives, copies told from near ones, and the command on real files."""

import json
import os
import shutil
import signal

import faiss
import numpy as np
import pytest
from PIL import Image

from mocoembed.config import DuplicatesConfig, EmbedConfig, IndexConfig
from mocoembed.data.facts import FACTS
from mocoembed.data.images import Listing, PathTable
from mocoembed.embed.extract import embed_images
from mocoembed.embed.store import EmbeddingFile
from mocoembed.embed.store_writer import Settings, write_embeddings
from mocoembed.errors import Interrupted, UsageError
from mocoembed.files import StopRequest
from mocoembed.search import duplicates as module
from mocoembed.search import sheet
from mocoembed.search.build import build_index
from mocoembed.search.duplicates import Components, find_duplicates
from mocoembed.search.sheet import SIGNATURE, duplicates_sheet


def made(path, vectors, digests=None, areas=None) -> str:
    """An embeddings file of these vectors; images are `areas` pixels wide and one high."""
    count = len(vectors)
    paths = PathTable([b"%05d.jpg" % row for row in range(count)])
    listing = Listing(b"/p", paths, np.full(count, -1, np.int32), (), 0)
    facts = np.zeros(count, FACTS)
    facts["width"], facts["height"] = np.arange(count) if areas is None else areas, 1
    facts["digest"] = np.zeros(count, "V32") if digests is None else np.array(digests, "V32")
    encoder = {"fingerprint": "f" * 64, "provenance": {}}
    settings = Settings(encoder, "backbone", False, vectors.shape[1], "fp32", "none")
    write_embeddings(path, listing, settings, np.ones(count, bool), facts, [vectors.astype(np.float32)], [])
    return str(path)


def rows_of(result) -> set[frozenset]:
    return {frozenset(one.row for one in group.members) for group in result.groups}


def brute_force(vectors, threshold: float, pairs=()) -> set[frozenset]:
    """Components of the graph of all cosines, by spreading the least number until nothing changes."""
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    near = unit @ unit.T >= threshold
    for one, other in pairs:
        near[one, other] = near[other, one] = True
    np.fill_diagonal(near, True)
    number = np.arange(len(vectors))
    while not np.array_equal(number, new := np.where(near, number, len(number)).min(axis=1)):
        number = new
    groups = [np.flatnonzero(number == value) for value in set(number.tolist())]
    return {frozenset(group.tolist()) for group in groups if len(group) > 1}


@pytest.mark.parametrize("threshold", [0.5, 0.8, 0.95, 0.999, 1.0])
def test_groups_are_those_of_brute_force(tmp_path, monkeypatch, threshold):
    monkeypatch.setattr(module, "MOST_ROWS", 17)  # many blocks
    random = np.random.default_rng(0)
    centres = random.standard_normal((60, 16))
    vectors = centres[random.integers(0, 60, 200)] + random.choice([0, 0.02, 0.2, 0.6], (200, 1)) \
        * random.standard_normal((200, 16))
    vectors *= random.uniform(0.1, 9, (200, 1))  # not of length 1
    vectors = vectors.astype(np.float32).astype(np.float64)
    digests = [bytes([0 if row % 50 else 7] * 32) for row in range(200)]
    result = find_duplicates(DuplicatesConfig(made(tmp_path / "e.h5", vectors, digests), threshold=threshold))
    expected = brute_force(vectors, threshold - 1e-6, [(0, 50), (50, 100), (100, 150)])
    assert len(expected) > 1
    assert rows_of(result) == expected
    assert result.compared == "all pairs"
    sizes = [len(group.members) for group in result.groups]
    assert sizes == sorted(sizes, reverse=True)
    assert result.extra == sum(sizes) - len(sizes)
    assert result.copies == 3


def test_an_approximate_index_finds_near_duplicates(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "EXACT_ROWS", 1000)
    random = np.random.default_rng(0)
    vectors = random.standard_normal((3000, 16))
    vectors[1500:1600] = vectors[:100] + 0.01 * random.standard_normal((100, 16))
    result = find_duplicates(DuplicatesConfig(made(tmp_path / "e.h5", vectors), threshold=0.99))
    assert rows_of(result) == {frozenset((row, 1500 + row)) for row in range(100)}
    assert result.compared.startswith("IVF128")


@pytest.mark.parametrize("threshold", [0.8, 0.95, 0.999])
def test_cells_that_can_hold_no_neighbour_are_left_out_and_nothing_is_lost(tmp_path, monkeypatch, threshold):
    """With all cells allowed, the pairs are those of brute force, although few cells are looked into."""
    monkeypatch.setattr(module, "EXACT_ROWS", 1000)
    monkeypatch.setattr(module, "PROBED", 1 << 20)
    monkeypatch.setattr(module, "PAIR_BYTES", 1)  # blocks of the least size
    random, probed = np.random.default_rng(0), []
    vectors = random.standard_normal((40, 16))[random.integers(0, 40, 1500)]
    spread = random.choice([0.01, 0.1, 0.4], (1500, 1))
    vectors = module.unit((vectors + spread * random.standard_normal((1500, 16))).astype(np.float32))
    search = faiss.IndexIVFFlat.range_search_preassigned

    def counted(index, some, least, lists, cosines):
        probed.append((lists >= 0).mean())
        return search(index, some, least, lists, cosines)

    monkeypatch.setattr(faiss.IndexIVFFlat, "range_search_preassigned", counted)
    with EmbeddingFile(made(tmp_path / "e.h5", vectors)) as file:
        pairs = [pair for a, b, _ in module.near_pairs(file, threshold, lambda done, total: None, StopRequest())
                 for pair in zip(a.tolist(), b.tolist())]
    cosines = vectors.astype(np.float64) @ vectors.T.astype(np.float64)
    surely, perhaps = ({(a, b) for a, b in np.argwhere(cosines >= bound).tolist() if a > b}
                       for bound in (threshold + 2e-6, threshold - 2e-6))
    assert len(surely) > 10
    assert surely <= set(pairs) <= perhaps
    assert len(pairs) == len(set(pairs))
    assert np.mean(probed) < (0.6 if threshold > 0.9 else 1)


def test_a_chain_is_one_group_that_tells_how_alike_its_ends_are(tmp_path):
    angles = np.radians([0, 10, 20, 30, 90])
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    (group,) = find_duplicates(DuplicatesConfig(made(tmp_path / "e.h5", vectors, areas=[9, 5, 5, 5, 5]),
                                                threshold=float(np.cos(np.radians(11))))).groups
    assert [one.row for one in group.members] == [0, 1, 2, 3]
    assert [one.similarity for one in group.members] == pytest.approx(np.cos(angles[:4]), abs=1e-6)


def test_the_keeper_is_the_largest_and_equal_bytes_are_numbered(tmp_path):
    vectors = np.ones((6, 3))
    digests = [bytes([value] * 32) for value in (1, 2, 2, 1, 3, 0)]
    path = made(tmp_path / "e.h5", vectors, digests, [5, 9, 9, 5, 30, 2])
    (group,) = find_duplicates(DuplicatesConfig(path)).groups
    assert group.keeper.row == 4
    assert {one.row: one.identical for one in group.members} == {0: 1, 3: 1, 1: 2, 2: 2, 4: None, 5: None}
    result = find_duplicates(DuplicatesConfig(path, exact_only=True, root=str(tmp_path)))
    assert rows_of(result) == {frozenset((0, 3)), frozenset((1, 2))}
    assert (result.compared, result.threshold, result.copies) == ("bytes", None, 2)
    assert result.groups[0].keeper.path == str(tmp_path / "00000.jpg")


def test_without_digests_nothing_is_said_about_bytes(tmp_path, run_cli):
    path = made(tmp_path / "e.h5", np.array([[1.0, 0], [1, 0], [0, 1]]))
    status, out, err = run_cli("duplicates", path, "--exact-only")
    assert (status, out, "e.h5 does not know the bytes of its images" in err) == (2, "", True)
    status, out, _ = run_cli("duplicates", path)
    assert out.splitlines()[-1] == ("1 group among 3 images (cosine 0.98 or more, all pairs; bytes unknown): "
                                    "1 can go (* keep)")
    status, out, _ = run_cli("duplicates", path, "--json")
    value = json.loads(out)
    assert (status, value["identical_copies"], value["extra_bytes"]) == (0, None, None)


def test_many_copies_of_many_kinds_are_numbered(tmp_path):
    """A thousand kinds twice in one group; what is looked up for each must not be searched for."""
    digests = [b"%032d" % (row // 2 + 1) for row in range(2000)]
    path = made(tmp_path / "e.h5", np.ones((2000, 2)), digests, [1] * 2000)
    (group,) = find_duplicates(DuplicatesConfig(path)).groups
    assert [one.identical for one in group.members] == [one.row // 2 + 1 for one in group.members]


def test_the_sheet_marks_copies_of_the_keeper_and_counts_what_it_leaves_out(tmp_path, monkeypatch):
    digests = [bytes([value] * 32) for value in (1, 2, 2, 1)] + [bytes([9, row] * 16) for row in range(20)]
    result = find_duplicates(DuplicatesConfig(made(tmp_path / "e.h5", np.ones((24, 3)), digests, [9] + [5] * 23)))
    drawn = []
    monkeypatch.setattr(sheet.Sheet, "_blank", lambda self, left, top, reason: drawn.append(reason))
    marked = []
    monkeypatch.setattr(sheet.Sheet, "_dot", lambda self, left, middle: marked.append(left))
    duplicates_sheet(result, tmp_path / "s.png")
    assert [reason for reason in drawn if reason.startswith("+")] == ["+12 more"]
    assert len(drawn) == 1 + 11 + 1  # the keeper, the others and the tile that counts
    first = sheet.MARGIN + sheet.TILE + sheet.AFTER_QUERY
    columns = [(left - first) // (sheet.TILE + sheet.GAP) for left in marked[:-1]]  # the last is the legend's
    assert columns == [2]


def test_a_root_that_is_no_folder(tmp_path):
    path = made(tmp_path / "e.h5", np.ones((2, 2)))
    with pytest.raises(UsageError, match="none' is not a folder"):
        find_duplicates(DuplicatesConfig(path, root=str(tmp_path / "none")))


def test_vectors_of_zeros_belong_to_nobody(tmp_path):
    vectors = np.array([[0.0, 0], [0, 0], [1, 1], [2, 2]])
    assert rows_of(find_duplicates(DuplicatesConfig(made(tmp_path / "e.h5", vectors)))) == {frozenset((2, 3))}


def test_union_find_against_sets():
    random, components, sets = np.random.default_rng(0), Components(80), [{row} for row in range(80)]
    for _ in range(30):
        rows = random.integers(0, 80, random.integers(2, 4))
        components.join(rows)
        joined = set().union(*(one for one in sets if one & set(rows.tolist())))
        sets = [one for one in sets if not one & joined] + [joined]
    assert {frozenset(group.tolist()) for group in components.groups()} == {frozenset(o) for o in sets if len(o) > 1}


def test_a_signal_stops_it(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MOST_ROWS", 10)
    path = made(tmp_path / "e.h5", np.random.default_rng(0).standard_normal((40, 4)))
    with pytest.raises(Interrupted, match="Stopped after 10 of 40 images"):
        find_duplicates(DuplicatesConfig(path), lambda *counts: signal.raise_signal(signal.SIGINT))


@pytest.mark.parametrize("threshold", [0.0, 1.01, float("nan")])
def test_thresholds_that_mean_nothing(threshold):
    with pytest.raises(UsageError, match="--threshold"):
        DuplicatesConfig(threshold=threshold)


@pytest.fixture
def collection(tmp_path, images, fresh_workspace):
    """(workspace, folder) of some images, a copy, a smaller one and one saved again; the folder has moved."""
    folder = shutil.copytree(images / "red", tmp_path / "old" / "red")
    shutil.copy(folder / "000.png", folder / "copy\n.png")
    with Image.open(folder / "002.png") as image:
        image.resize((image.width * 3, image.height * 3), Image.Resampling.BICUBIC).save(folder / "larger.png")
        image.save(folder / "again.jpg", quality=95)
    embed_images(EmbedConfig(str(tmp_path / "old"), str(fresh_workspace), workers=0, device="cpu", fresh=True))
    return fresh_workspace, shutil.move(tmp_path / "old", tmp_path / "new")


def test_command(collection, tmp_path, run_cli):
    workspace, folder = collection
    before = sorted(os.listdir(folder / "red"))
    arguments = ("duplicates", "--workspace", workspace, "--threshold", 0.999, "--root", folder)
    status, out, err = run_cli(*arguments, "--json", "--sheet", tmp_path / "s.png")
    assert (status, err) == (0, f"sheet: {tmp_path / 's.png'}\n")
    value = json.loads(out)
    names = [{os.fsencode(os.path.basename(one["path"])) for one in group["members"]} for group in value["groups"]]
    assert {b"000.png", b"copy\n.png"} in names
    assert any({b"002.png", b"again.jpg"} <= group for group in names)
    assert value["identical_copies"] == 1
    with Image.open(tmp_path / "s.png") as image:
        assert image.info["Software"] == SIGNATURE
        blank = image.crop((28, 64, 180, 216)).getcolors(1 << 16)
        assert max(blank)[1] != (230, 231, 234)  # the images were found where the collection is now
    status, out, _ = run_cli(*arguments)
    assert status == 0
    assert "group  similarity" in out
    assert "copy\\n.png" in out
    assert "1 exact copy among them" in out.splitlines()[-1]
    status, out, err = run_cli("duplicates", "--workspace", workspace, "--exact-only")
    assert (status, len(out.splitlines())) == (0, 4)
    assert sorted(os.listdir(folder / "red")) == before


def test_command_without_duplicates_and_with_wrong_calls(workspace, tmp_path, run_cli):
    status, out, err = run_cli("duplicates", "--workspace", workspace, "--exact-only", "--sheet", tmp_path / "s.png")
    assert (status, out) == (0, "no duplicates among 24 images (equal bytes)\n")
    assert err == "no sheet drawn: no duplicates\n"
    for arguments, message in [(("none.h5",), "none.h5"), (("--threshold", 2), "--threshold 2.0: must be auto, or a"),
                               (("--threshold", "low"), "--threshold low: must be auto"),
                               (("--sheet", "s.jpg"), "must end in .png")]:
        status, out, err = run_cli("duplicates", "--workspace", workspace, *arguments)
        assert (status, out, message in err) == (2, "", True)


# ------------------------------------------------------------------------------------------- through an index


@pytest.fixture
def many_copies(make_embeddings, tmp_path):
    """`many_copies(kind)`: vectors with 30 pairs, one group of 60 and 10 alone; their file and index."""
    random = np.random.default_rng(0)
    centres = random.standard_normal((41, 16))
    vectors = np.concatenate([centres[:30], centres[:30], np.repeat(centres[30:31], 60, 0), centres[31:]])
    vectors += 0.001 * random.standard_normal(vectors.shape)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)

    def make(kind: str) -> tuple[str, str]:
        path = make_embeddings("copies", vectors, "a" * len(vectors), normalized=True)
        build_index(IndexConfig(path, output=str(tmp_path / "copies.faiss"), type=kind, allow_lower_recall=True))
        return path, str(tmp_path / "copies.faiss")

    return make


@pytest.mark.parametrize("kind", ["flat", "hnsw", "ivf-flat", "ivf-sq8", "rabitq"])
def test_an_index_finds_the_same_groups(many_copies, kind, monkeypatch, run_cli):
    monkeypatch.setattr(module, "MOST_ROWS", 50)
    path, index = many_copies(kind)
    exact, through = (find_duplicates(DuplicatesConfig(path, threshold=0.99, index=one)) for one in (None, index))
    assert rows_of(exact) == rows_of(through)
    assert sorted(len(group.members) for group in through.groups) == [2] * 30 + [60]
    told = "flat index, exact" if kind == "flat" else f"{kind} index, recall@10 "
    assert through.compared.startswith(told)
    status, out, _ = run_cli("duplicates", path, "--threshold", "0.99", "--index", index)
    assert (status, f"(cosine 0.99 or more, {told}" in out) == (0, True)


def test_an_index_needs_vectors(many_copies):
    path, index = many_copies("flat")
    with pytest.raises(UsageError, match="--index: bytes are compared without an index"):
        DuplicatesConfig(path, exact_only=True, index=index)
