"""`mocoembed map`: alike images lie near each other, places stay, and a map belongs to its rows."""

import dataclasses
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest

from mocoembed.config import EmbedConfig, MapConfig
from mocoembed.embed.extract import embed_images
from mocoembed.embed.store import EmbeddingFile
from mocoembed.errors import FormatError, UsageError
from mocoembed.search.map import EARLY, VOTING, _Making, make_map, principal
from mocoembed.search.map_file import map_file_of, read_map, read_map_facts, write_map


@pytest.fixture
def clusters(make_embeddings):
    """An embeddings file of four clusters of 20 vectors of length 1; labels are the clusters."""
    random = np.random.default_rng(3)
    centres = np.eye(8, dtype=np.float32)[:4]
    vectors = np.repeat(centres, 20, 0) + 0.1 * random.standard_normal((80, 8))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return make_embeddings("clusters", vectors, "".join(letter * 20 for letter in "abcd"), normalized=True)


def test_alike_images_lie_near_each_other(clusters):
    told = []
    result = make_map(MapConfig(clusters), lambda done, total: told.append((done, total)))
    made = read_map(result.path)
    assert result.path == map_file_of(clusters)
    assert (result.count, result.new, result.method) == (80, 80, "t-SNE")
    assert told == sorted(told)
    assert told[-1][0] == told[-1][1]
    with EmbeddingFile(clusters) as file:
        labels, identity, ids, vectors = file.labels(), file.identity, file.ids(), file.embeddings[:]
    assert made.identity == identity
    assert np.array_equal(made.ids, ids)
    squared = ((made.places[:, None] - made.places[None]) ** 2).sum(-1) + 1e9 * np.eye(80)
    nearest = squared.argsort(axis=1)[:, :5]
    assert (labels[nearest] == labels[:, None]).mean() > 0.95
    # Agreement, against the definition written out.
    cosines = vectors @ vectors.T - 9 * np.eye(80)
    expected = [(labels[np.argsort(-cosines[row])[:VOTING]] == labels[row]).mean() for row in range(80)]
    assert made.agreement == pytest.approx(expected)
    assert result.agreement == pytest.approx(np.mean(expected))


def test_the_same_vectors_give_the_same_map(clusters):
    first = read_map(make_map(MapConfig(clusters)).path).places
    assert np.array_equal(read_map(make_map(MapConfig(clusters, fresh=True)).path).places, first)


def test_old_images_stay_and_new_ones_lie_among_their_neighbours(make_embeddings, tmp_path):
    random = np.random.default_rng(5)
    vectors = np.repeat(np.eye(8, dtype=np.float32)[:2], 30, 0) + 0.05 * random.standard_normal((60, 8))
    path = make_embeddings("all", vectors / np.linalg.norm(vectors, axis=1, keepdims=True), "a" * 30 + "b" * 30)
    whole = read_map(make_map(MapConfig(path)).path)
    keep = np.arange(60) % 10 != 0  # as if the map had been made when a tenth was not there
    write_map(map_file_of(path), type(whole)(whole.identity, "t-SNE", whole.ids[keep], whole.places[keep],
                                             whole.agreement[keep]))
    result = make_map(MapConfig(path))
    made = read_map(result.path)
    assert (result.new, result.arranged) == (6, False)
    assert np.array_equal(made.places[keep], whole.places[keep])
    middles = [whole.places[keep & (np.arange(60) // 30 == half)].mean(axis=0) for half in (0, 1)]
    for row in np.flatnonzero(~keep):
        own, other = (np.linalg.norm(made.places[row] - middles[half]) for half in (row // 30, 1 - row // 30))
        assert own < other
    few = keep & (np.arange(60) % 3 == 0)  # so few that all are arranged again
    write_map(map_file_of(path), type(whole)(whole.identity, "t-SNE", whole.ids[few], whole.places[few],
                                             whole.agreement[few]))
    result = make_map(MapConfig(path))
    assert (result.new, result.arranged) == (42, True)


@pytest.fixture
def ring(make_embeddings):
    """`ring(name, keep)`: an embeddings file of those of 240 vectors of length 1 around a ring."""
    angles, noise = np.arange(240) / 240 * 2 * np.pi, np.random.default_rng(4).standard_normal((240, 8))
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1) @ np.eye(2, 8) + 0.05 * noise
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)

    def make(name, keep):
        return make_embeddings(name, vectors[keep], "a" * keep.sum(), normalized=True)
    return make


def test_images_that_come_little_by_little_count_together(ring):
    def kept(count):
        return np.random.default_rng(1).permutation(240) < count

    made, path = read_map(make_map(MapConfig(ring("first", kept(170)))).path), None
    for count, arranged in ((190, False), (209, False), (220, True), (240, False)):  # a fifth of 220 is 44
        before, path = made, ring(f"of{count}", kept(count))
        with EmbeddingFile(path) as file:
            ids = file.ids()[np.isin(np.flatnonzero(kept(count)), np.flatnonzero(kept(len(before))))]
            write_map(map_file_of(path), dataclasses.replace(before, identity=file.identity, ids=ids))
        result = make_map(MapConfig(path))
        made = read_map(result.path)
        assert (result.new, result.arranged) == (count - len(before), arranged)
        assert made.placed == {190: 20, 209: 39, 220: 0, 240: 20}[count]


@pytest.mark.parametrize(("share", "early"), [(0.4, 0), (0.6, EARLY)])
def test_of_many_new_images_all_are_arranged_again_and_up_to_a_half_the_old_ones_stay_near(
        ring, run_cli, monkeypatch, share, early):
    arranged, begun = _Making._arranged, []

    def watched(self, first, early):
        begun.append((early, bool(first.std() > 1)))
        return arranged(self, first, early)

    keep = np.random.default_rng(1).permutation(240) >= share * 240
    old, path = read_map(make_map(MapConfig(ring("part", keep))).path), ring("whole", keep | True)
    with EmbeddingFile(path) as file:
        write_map(map_file_of(path), dataclasses.replace(old, identity=file.identity, ids=file.ids()[keep]))
    monkeypatch.setattr(_Making, "_arranged", watched)
    status, out, notes = run_cli("map", path)
    assert begun == [(early, early == 0)]  # with exaggeration, from a point nearly; without, from the old places
    assert (status, "deviation" in notes) == (0, False)
    assert f"240 images ({240 * share:.0f} new, all arranged again) by t-SNE" in out
    made = read_map(map_file_of(path))
    assert not made.provisional
    nearest = ((made.places[:, None] - made.places[None]) ** 2).sum(-1).argsort(axis=1)[:, 1:6]
    apart = np.abs(nearest - np.arange(240)[:, None])
    assert np.median(np.minimum(apart, 240 - apart)) <= 8  # neighbours on the map are neighbours on the ring
    shown = [(places - places.min(axis=0)) / np.ptp(places, axis=0).max() for places in (old.places, made.places)]
    moved = np.median(np.linalg.norm(shown[1][keep] - shown[0], axis=1))
    assert early or moved < 0.06


@pytest.mark.parametrize("count", [1, 2, 9])
def test_few_images(make_embeddings, count):
    path = make_embeddings("few", np.random.default_rng(0).standard_normal((count, 4)), "?" * count)
    made = read_map(make_map(MapConfig(path)).path)
    assert (made.method, len(made)) == ("PCA", count)
    assert np.isfinite(made.places).all()
    assert np.isnan(made.agreement).all()


def test_copies_of_one_image(make_embeddings):
    path = make_embeddings("copies", np.ones((200, 4)), "a" * 200)
    made = read_map(make_map(MapConfig(path)).path)
    assert np.isfinite(made.places).all()
    assert (made.agreement == 1).all()


def test_principal_components_are_those_of_the_singular_value_decomposition():
    vectors = np.random.default_rng(1).standard_normal((40, 6)).astype(np.float32)
    centred = vectors.astype(np.float64) - vectors.mean(axis=0)
    expected = centred @ np.linalg.svd(centred, full_matrices=False)[2][:2].T
    assert np.abs(principal(vectors)) == pytest.approx(np.abs(expected), abs=1e-4)


def test_principal_components_are_shown_until_the_arrangement_is_done(clusters, monkeypatch):
    shown = []

    def stopped(self, first, early):
        shown.append(read_map(map_file_of(clusters)))
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("mocoembed.search.map._Making._arranged", stopped)
        with pytest.raises(KeyboardInterrupt):
            make_map(MapConfig(clusters))
    (one,) = shown
    with EmbeddingFile(clusters) as file:
        expected, identity = principal(file.embeddings[:]), file.identity
    assert (one.method, one.provisional, one.identity) == ("PCA", True, identity)
    assert np.abs(one.places) == pytest.approx(np.abs(expected), abs=1e-4)
    assert read_map_facts(map_file_of(clusters)).provisional
    assert make_map(MapConfig(clusters)).new == 80  # what was shown meanwhile is no map to keep
    made = read_map(map_file_of(clusters))
    assert (made.method, made.provisional) == ("t-SNE", False)
    with monkeypatch.context() as patched:
        patched.setattr("mocoembed.search.map._Making._arranged", stopped)
        with pytest.raises(KeyboardInterrupt):
            make_map(MapConfig(clusters, fresh=True))
    assert np.array_equal(shown[1].places, made.places)  # a map of the same images is not replaced by less


def test_a_damaged_file_is_refused_and_made_anew(clusters):
    path = make_map(MapConfig(clusters)).path
    data = path.read_bytes()
    for wrong, words in ((data[:-1], "is damaged"), (data[:-1] + bytes([data[-1] ^ 1]), "is damaged"),
                         (b"", "is not a map"), (b"[]\n", "is not a map"), (b"\xff" * 99, "is not a map"),
                         (data.replace(b'"format": 1', b'"format": 9', 1), "format 9")):
        path.write_bytes(wrong)
        with pytest.raises(FormatError, match=words):
            read_map(path)
    assert make_map(MapConfig(clusters)).new == 80
    assert len(read_map(path)) == 80


def test_a_missing_library_is_named(clusters, monkeypatch):
    monkeypatch.setitem(sys.modules, "openTSNE", None)
    before = map_file_of(clusters).exists()
    with pytest.raises(UsageError, match=r"pip install \'mocoembed\[map\]\'"):
        make_map(MapConfig(clusters))
    assert not before
    assert not map_file_of(clusters).exists()
    with pytest.raises(UsageError, match="does not exist"):
        make_map(MapConfig("no.h5"))


def test_a_map_of_embeddings_that_grew(workspace, make_images, tmp_path):
    root = shutil.copytree(workspace, tmp_path / "ws")
    make_images(tmp_path / "images", 8)
    embed_images(EmbedConfig(str(tmp_path / "images"), workspace=str(root), workers=0, device="cpu", fresh=True))
    before = read_map(make_map(MapConfig(workspace=str(root))).path)
    make_images(tmp_path / "images", 9)
    embed_images(EmbedConfig(str(tmp_path / "images"), workspace=str(root), workers=0, device="cpu"))
    result = make_map(MapConfig(workspace=str(root)))
    after = read_map(result.path)
    assert (result.new, len(after)) == (3, 27)
    assert after.identity != before.identity
    places = dict(zip(after.ids.tolist(), after.places.tolist()))
    assert all(places[one] == place for one, place in zip(before.ids.tolist(), before.places.tolist()))


def test_the_command_runs_without_torch(clusters):
    script = ("import sys\nclass Blocked:\n  def find_spec(self, name, *rest):\n"
              "    if name.partition('.')[0] in ('torch', 'torchvision'): raise ImportError(name)\n"
              "sys.meta_path.insert(0, Blocked())\n"
              "from mocoembed.cli.main import main\nmain(['map', *sys.argv[1:]])\n")
    result = subprocess.run([sys.executable, "-c", script, clusters, "--json"], capture_output=True, text=True,
                            timeout=100)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["count"] == 80
