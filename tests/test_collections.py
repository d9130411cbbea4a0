"""List files, tar shards, single images, and listings that are kept: one interface for all."""

import io
import json
import os
import pickle
import tarfile
import time

import numpy as np
import pytest
import torch

from mocoembed.config import EmbedConfig, IndexConfig, PretrainConfig, SearchConfig
from mocoembed.data import listing_cache
from mocoembed.data.decode import UnreadableImage
from mocoembed.data.evaluation import EvaluationTransform
from mocoembed.data.images import scan
from mocoembed.data.loader import evaluation_batches
from mocoembed.data.shards import read_path, shard_paths
from mocoembed.embed.extract import embed_images
from mocoembed.embed.store import EmbeddingFile
from mocoembed.errors import CollectionError, FormatError, MismatchError, UsageError
from mocoembed.search.build import build_index
from mocoembed.search.query import search_images
from mocoembed.search.sheet import contact_sheet
from mocoembed.train.loop import pretrain

TRANSFORM = EvaluationTransform(32, 32, (0.5,) * 3, (0.5,) * 3)


def paths(listing):
    return list(listing.paths)


def labels(listing):
    return [listing.label_names[number] if number >= 0 else None for number in listing.labels]


def equal(one, other, row=1):
    """Whether two listings are the same in all, and image `row` as it is read."""
    return (one.digest(), one.root, one.source, one.label_names, one.skipped, one.repeated, labels(one), one.closed,
            one.read(row)) == (other.digest(), other.root, other.source, other.label_names, other.skipped,
                               other.repeated, labels(other), other.closed, other.read(row))


def write_tar(path, members, kind=tarfile.REGTYPE, form=tarfile.PAX_FORMAT):
    """A tar file of (name, bytes)."""
    with tarfile.open(path, "w", format=form, encoding="utf-8", errors="surrogateescape") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size, info.type = (len(data), kind) if kind == tarfile.REGTYPE else (0, kind)
            tar.addfile(info, io.BytesIO(data))
    return path


# ---------------------------------------------------------------------------------------------- lists


def test_a_list_of_lines(tmp_path):
    (tmp_path / "in" / "b").mkdir(parents=True)
    (tmp_path / "in" / "b" / "1.jpg").write_bytes(b"one")
    (tmp_path / "in" / "list.txt").write_bytes(b"b/1.jpg\r\nno-suffix\n\nb/\xff.jpg\na/../b/1.jpg\n%s\n"
                                               % os.fsencode(tmp_path / "in" / "0.jpg"))
    listing = scan(tmp_path / "in" / "list.txt")
    assert listing.root == os.fsencode(tmp_path / "in")
    assert paths(listing) == [b"0.jpg", b"b/1.jpg", b"b/\xff.jpg", b"no-suffix"]
    assert labels(listing) == ["in", "b", "b", "in"]
    assert listing.repeated == 1
    assert listing.read(1)[0] == b"one"
    assert listing.read(1)[1].size == 3
    with pytest.raises(FileNotFoundError):
        listing.read(0)


def test_the_root_of_a_list_that_points_elsewhere(tmp_path):
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "a.txt").write_text("/data/flowers/red/1.jpg\n/data/flowers/blue/2.jpg\n")
    listing = scan(tmp_path / "lists" / "a.txt")
    assert (listing.root, paths(listing)) == (b"/data/flowers", [b"blue/2.jpg", b"red/1.jpg"])
    (tmp_path / "lists" / "b.txt").write_text("/1.jpg\n/x/2.jpg\n")
    assert (scan(tmp_path / "lists" / "b.txt").root, paths(scan(tmp_path / "lists" / "b.txt"))) == (
        b"/", [b"1.jpg", b"x/2.jpg"])


@pytest.mark.parametrize("text", [
    'label,path\ncat,b.jpg\n,"a, ""x"".jpg"\n7,"line\nbreak.jpg"\n',
    '﻿b.jpg,cat\n"a, ""x"".jpg",\n"line\nbreak.jpg",7\n',
    'x,PATH,y,label\n1,b.jpg,2,cat\n3,"a, ""x"".jpg"\n4,"line\nbreak.jpg",5,7\n'])
def test_a_table_with_labels(tmp_path, text):
    (tmp_path / "list.csv").write_text(text, newline="")
    listing = scan(tmp_path / "list.csv", "first")
    assert paths(listing) == [b'a, "x".jpg', b"b.jpg", b"line\nbreak.jpg"]
    assert labels(listing) == [None, "cat", "7"]
    assert labels(scan(tmp_path / "list.csv", "none")) == [None] * 3


def test_a_table_without_labels_and_names_that_are_not_utf_8(tmp_path):
    (tmp_path / "list.csv").write_bytes(b"path\nx/\xff.jpg\n")
    assert (paths(scan(tmp_path / "list.csv")), labels(scan(tmp_path / "list.csv"))) == ([b"x/\xff.jpg"], ["x"])
    (tmp_path / "list.jsonl").write_bytes(b'{"path": "x/\\udcff.jpg"}\n\n{"path": "y/\xfe.jpg", "label": null}\n'
                                          b'{"path": "z.jpg", "label": 3}\n{"path": "z2.jpg", "label": "\\udcff"}\n')
    listing = scan(tmp_path / "list.jsonl")
    assert paths(listing) == [b"x/\xff.jpg", b"y/\xfe.jpg", b"z.jpg", b"z2.jpg"]
    assert labels(listing) == ["x", None, "3", "\\xff"]


@pytest.mark.parametrize(("name", "text", "message"), [
    ("a.csv", "1,2,3\n", "begins with '1,2,3', which names no column path.*for example: path,label"),
    ("a.csv", "url,label\n1.jpg,cat\n", "begins with 'url,label', which names no column path"),
    ("a.csv", "1.jpg;cat\n", "begins with '1.jpg;cat', which names no column path"),
    ("a.csv", "1.jpg\tcat\n", r"begins with '1.jpg\\tcat', which names no column path"),
    ("a.tsv", "1.jpg\tcat\t7\n", r"which names no column path.*for example: path\tlabel"),
    ("a.tsv", "path\tlabel\n\tcat\n", "line 2: the path is missing"),
    ("a.csv", 'path\nx\n"a"b', "line 3: .* expected after"),
    ("a.csv", "path\n1\0.jpg\n", "line 2: the path contains a NUL byte"),
    ("a.txt", "1.jpg\n2\0.jpg\n", "line 2: the path contains a NUL byte"),
    ("a.jsonl", '{"path": "\\u0000"}', "line 1: the path contains a NUL byte"),
    ("a.txt", b"\xff\xfe1\0", "is UTF-16 text. Save it as UTF-8"),
    ("a.csv", b"\xfe\xff\0001", "is UTF-16 text. Save it as UTF-8"),
    ("a.csv", "path,label\n,cat\n", "line 2: the path is missing"),
    ("a.csv", 'path\n"a', "line 2: unexpected end"), ("a.jsonl", "{]\n", "line 1: not JSON"),
    ("a.jsonl", "[1]\n", "line 1: the path is missing"),
    ("a.jsonl", '{"path": "a", "label": [1]}', r"the label is \[1\]"),
    ("a.jsonl", '{"path": "\\ud800"}', "is not a valid path")])
def test_a_line_that_is_none_is_named(tmp_path, name, text, message):
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(FormatError, match=message):
        scan(tmp_path / name)


def test_an_image_with_two_labels_and_an_empty_list(tmp_path):
    (tmp_path / "a.csv").write_text("x.jpg,cat\nx.jpg,dog\n")
    with pytest.raises(CollectionError, match=r"'x.jpg' has two labels in .*'cat' and 'dog'"):
        scan(tmp_path / "a.csv")
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(CollectionError, match="holds no images"):
        scan(tmp_path / "a.txt")


def test_a_single_image(images):
    listing = scan(images / "red" / "001.jpg")
    assert (listing.root, paths(listing), labels(listing)) == (os.fsencode(images / "red"), [b"001.jpg"], ["red"])


# ---------------------------------------------------------------------------------------------- shards


@pytest.mark.parametrize(("given", "expected"), [
    ("a.tar", ["a.tar"]), ("s-{008..010}.tar", ["s-008.tar", "s-009.tar", "s-010.tar"]),
    ("{2..1}-{a,b}.tar", ["2-a.tar", "2-b.tar", "1-a.tar", "1-b.tar"]), ("s{9..10}.tar", ["s9.tar", "s10.tar"]),
    ("{a}.tar", ["{a}.tar"]), ("{x,{1..2}}.tar", ["{x,1}.tar", "{x,2}.tar"])])
def test_braces(given, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert shard_paths(given) == (["x.tar", "1.tar", "x.tar", "2.tar"] if given.startswith("{x") else expected)


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_shards_give_path_label_and_bytes(tmp_path, form):
    long = "d" * 120 + "/x.png"
    (tmp_path / "s").mkdir()
    write_tar(tmp_path / "s" / "0.tar", [("2.jpg", b"two"), ("2.cls", b"7\n"), ("1.json", b'{"label": "cat"}'),
                                         ("1.left.jpg", b"one"), ("1.right.JPG", b"oneone"), ("1.txt", b"caption"),
                                         ("._1.jpg", b"mac"), (long, b"long"), ("a/1.jpg", b"other")], form=form)
    write_tar(tmp_path / "s" / "1.tar", [("\udcff.jpg", b"raw"), ("0.jpg", b"nul"), ("0.json", b"{}")], form=form)
    listing = scan(tmp_path / "s" / "{0..1}.tar")
    assert listing.root == os.fsencode(tmp_path / "s")
    assert dict(zip(paths(listing), labels(listing))) == {
        b"0.tar/1.left.jpg": "cat", b"0.tar/1.right.JPG": "cat", b"0.tar/2.jpg": "7", b"0.tar/a/1.jpg": None,
        b"0.tar/" + long.encode(): None, b"1.tar/0.jpg": None, b"1.tar/\xff.jpg": None}
    assert [listing.read(row)[0] for row in range(7)] == [b"one", b"oneone", b"two", b"other", b"long", b"nul", b"raw"]
    assert listing.read(1)[1].size == 6
    assert listing.skipped.total() == 2
    assert labels(scan(tmp_path / "s" / "{0..1}.tar", "none")) == [None] * 7
    part = listing.subset([6, 2])
    assert [part.read(row)[0] for row in range(2)] == [b"raw", b"two"]
    for row in range(7):
        assert read_path(listing.full_path(row)) == listing.read(row)[0]
    with pytest.raises(FileNotFoundError, match="no such image"):
        read_path(tmp_path / "s" / "0.tar" / "9.jpg")


def test_links_in_a_shard_are_listed_and_fail(tmp_path):
    write_tar(tmp_path / "a.tar", [("x.jpg", b"")], tarfile.SYMTYPE)
    with pytest.raises(UnreadableImage, match="a link"):
        scan(tmp_path / "a.tar").read(0)


def test_a_shard_that_changes_after_the_scan_costs_its_images(tmp_path):
    write_tar(tmp_path / "a.tar", [("x.jpg", b"1")])
    listing = scan(tmp_path / "a.tar")
    write_tar(tmp_path / "a.tar", [("x.jpg", b"2")])
    with pytest.raises(UnreadableImage, match="has changed"):
        listing.read(0)


def test_a_shard_named_twice_and_a_member_named_twice(tmp_path):
    write_tar(tmp_path / "a.tar", [("x.jpg", b"1"), ("x.jpg", b"2")])
    listing = scan(tmp_path / "{a,a}.tar")
    assert (paths(listing), listing.repeated, listing.read(0)[0]) == ([b"a.tar/x.jpg"], 1, b"2")


def test_shards_that_are_missing_damaged_or_compressed(tmp_path):
    whole = write_tar(tmp_path / "a.tar", [(f"{i}.jpg", bytes(700)) for i in range(20)]).read_bytes()
    with pytest.raises(UsageError, match=r"b.tar' does not exist or is not a file \(1 of 2"):
        scan(tmp_path / "{a,b}.tar")
    members_end = 20 * (512 + 1024)
    for cut in (0, 100, 600, 1536, 5000, members_end - 10, members_end):
        (tmp_path / "a.tar").write_bytes(whole[:cut])
        with pytest.raises(FormatError, match=r"whole, uncompressed|damaged or truncated"):
            scan(tmp_path / "a.tar")
    (tmp_path / "a.tar").write_bytes(whole[:1536] + b"?" * 512 + whole[2048:])
    with pytest.raises(FormatError, match="truncated after 1 members"):
        scan(tmp_path / "a.tar")
    with tarfile.open(tmp_path / "a.tar", "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("x.jpg"))
    with pytest.raises(FormatError, match="not a whole, uncompressed tar"):
        scan(tmp_path / "a.tar")
    write_tar(tmp_path / "a.tar", [("x.jpg", b""), ("x.json", b"{")])
    with pytest.raises(FormatError, match=r"member 'x.json': not JSON.*--labels none"):
        scan(tmp_path / "a.tar")
    assert len(scan(tmp_path / "a.tar", "none")) == 1


# ---------------------------------------------------------------------------------------------- several as one


def put(folder, *names):
    """Files that hold their own names."""
    for name in names:
        path = os.path.join(os.fsencode(folder), os.fsencode(name))
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(os.fsencode(name))


@pytest.fixture
def pets(tmp_path):
    """Folders `pets/cats` and `pets/dogs`, a list beside `pets`, and two shards in it."""
    put(tmp_path, "pets/cats/1.jpg", "pets/cats/young/2.jpg", "pets/cats/notes.md", "pets/cats/.hidden.jpg",
        "pets/dogs/1.jpg", "pets/dogs/.x/3.jpg", "far/9.jpg")
    (tmp_path / "list.csv").write_text("path,label\nfar/9.jpg,fox\npets/dogs/1.jpg,dogs\nmissing.jpg,\n")
    write_tar(tmp_path / "pets" / "a.tar", [("x.jpg", b"in a"), ("x.cls", b"ox"), ("x.txt", b"")])
    write_tar(tmp_path / "pets" / "b.tar", [("y.jpg", b"in b")])
    return tmp_path / "pets"


def test_folders_lists_shards_and_images_are_one_collection(pets, tmp_path):
    several = [pets / "dogs", tmp_path / "list.csv", str(pets / "{a,b}.tar"), pets / "cats" / "1.jpg",
               pets / "cats" / "young"]
    notes = []
    listing = scan(several, note=notes.append)
    assert listing.root == os.fsencode(tmp_path)
    assert list(zip(paths(listing), labels(listing))) == [
        (b"far/9.jpg", "fox"), (b"missing.jpg", None), (b"pets/a.tar/x.jpg", "ox"), (b"pets/b.tar/y.jpg", None),
        (b"pets/cats/1.jpg", "cats"), (b"pets/cats/young/2.jpg", "young"), (b"pets/dogs/1.jpg", "dogs")]
    assert listing.label_names == ("cats", "dogs", "fox", "ox", "young")
    assert (listing.repeated, listing.skipped.total()) == (1, 1)
    assert notes == ["listed more than once, used once: 1 image"]
    assert listing.sources == tuple(sorted(os.fsencode(each) for each in several))
    assert [listing.read(row)[0] for row in (0, 2, 3, 4)] == [b"far/9.jpg", b"in a", b"in b", b"pets/cats/1.jpg"]
    with pytest.raises(FileNotFoundError):
        listing.read(1)
    for again in (pickle.loads(pickle.dumps(listing)), scan(several[::-1]), scan(several + several[:1])):
        assert equal(again, listing, row=2)
    part = listing.subset([3, 0, 2])
    assert [part.read(row)[0] for row in range(3)] == [b"in b", b"far/9.jpg", b"in a"]
    assert part.sources == listing.sources


def test_a_folder_and_one_within_it_are_the_folder(pets):
    whole, both = scan(pets), scan([pets / "cats", pets])
    assert (both.root, paths(both), labels(both), both.digest()) == (whole.root, paths(whole), labels(whole),
                                                                     whole.digest())
    assert both.repeated == 2
    assert both.sources == (whole.source, os.fsencode(pets / "cats"))
    first = scan([pets, pets / "cats" / "1.jpg"], "first")  # an image by itself has no first folder
    assert labels(first) == ["cats", "cats", "dogs"]
    with pytest.raises(CollectionError, match=r"'cats/young/2.jpg' has two labels in '.*/pets' and '.*/pets/cats': "
                                              "'cats' and 'young'"):
        scan([pets, pets / "cats"], "first")


def test_one_collection_in_a_sequence_is_that_collection(pets, tmp_path):
    for collection in (pets, tmp_path / "list.csv", pets / "{a,b}.tar", pets / "dogs" / "1.jpg"):
        alone = scan(collection)
        for same in ([collection], (str(collection), collection)):
            assert equal(scan(same), alone, row=0 if len(alone) < 3 else 2)
        assert alone.sources == (alone.source,) == (os.fsencode(collection),)


def test_several_of_which_some_are_empty_missing_or_closed(pets, tmp_path, monkeypatch):
    put(tmp_path, "none/a.md", "nil/b.md")
    notes = []
    assert len(scan([pets, tmp_path / "none"], note=notes.append)) == 3
    assert notes == [f"{str(tmp_path / 'none')!r} holds no images"]
    with pytest.raises(UsageError, match=r"'.*nowhere' does not exist"):
        scan([pets, tmp_path / "nowhere"])
    with pytest.raises(UsageError, match="No collection"):
        scan([])
    with pytest.raises(CollectionError, match=r"none', '.*nil' holds no images \(skipped 2 files: 2 \.md\)"):
        scan([tmp_path / "none", tmp_path / "nil"])
    real = os.scandir

    def scandir(path):
        if path.rstrip(b"/").endswith((b"young", b"none")):
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert scan([pets, pets / "cats", tmp_path / "none"]).closed == (b"none", b"pets/cats/young")


def test_links_between_collections_are_followed_without_circles(pets):
    (pets / "cats" / "dogs").symlink_to(pets / "dogs")
    (pets / "dogs" / "cats").symlink_to(pets / "cats")
    assert paths(scan([pets / "cats", pets / "dogs"])) == [
        b"cats/1.jpg", b"cats/dogs/1.jpg", b"cats/young/2.jpg", b"dogs/1.jpg", b"dogs/cats/1.jpg",
        b"dogs/cats/young/2.jpg"]


@pytest.mark.parametrize("several", [("pets",), ("pets/cats", "far", "pets/dogs")])
def test_the_file_systems_order_does_not_matter(pets, tmp_path, monkeypatch, several):
    put(pets / "cats", "a.jpg", "a/x.jpg", "a-b.jpg", "a0.jpg", "a/b/y.jpg", "a/b.jpg", "a/b-c/z.jpg", b"a\xff/z.jpg")
    real, listings = os.scandir, []
    for backwards in (False, True):
        monkeypatch.setattr(os, "scandir", lambda path, backwards=backwards: iter(
            sorted(real(path), key=lambda entry: entry.name, reverse=backwards)))
        listings.append(scan([tmp_path / each for each in several]))
    assert paths(listings[0]) == paths(listings[1]) == sorted(paths(listings[0]))
    assert labels(listings[0]) == labels(listings[1])
    assert len(listings[0]) >= 11


def test_every_file_with_an_images_name_is_listed_and_the_others_are_counted(tmp_path):
    put(tmp_path, "a/1.jpg", "a/2.TIFF", "a/3.jpg.txt", "a/jpg", "a/.4.jpg", "b/5.webp", "b/6.mov", "b/.git/7.jpg")
    os.mkfifo(tmp_path / "b" / "8.png")
    (tmp_path / "b" / "9.gif").symlink_to("nowhere")
    (tmp_path / "a" / "folder.jpg").mkdir()
    listed = [b"a/1.jpg", b"a/2.TIFF", b"b/5.webp", b"b/8.png", b"b/9.gif"]
    for collections in (tmp_path, [tmp_path / "a", tmp_path / "b"]):
        listing = scan(collections)
        assert paths(listing) == listed
        assert listing.skipped.total() == 4
        for row in (3, 4):
            with pytest.raises((OSError, UnreadableImage)):
                listing.read(row)


def test_batches_of_several_are_those_of_the_folder_that_holds_them(tmp_path, images):
    (tmp_path / "list.txt").write_text(f"{images}/red/001.jpg\n{images}/green/000.png\n")
    both = scan([images / "blue", images / "red", tmp_path / "list.txt"])
    whole = {path: batch.pixels[row] for batch in evaluation_batches(scan(images), TRANSFORM, 24, 0)
             for row, path in enumerate(scan(images).paths)}
    assert both.root == os.fsencode(images)
    for batch in evaluation_batches(both, TRANSFORM, 7, 2):
        for row, pixels in enumerate(batch.pixels, batch.first):
            assert torch.equal(pixels, whole[both.paths[row]])


# ---------------------------------------------------------------------------------------------- moved


def test_a_list_whose_images_have_moved(pets, tmp_path):
    (tmp_path / "old.txt").write_text("/old/pets/cats/1.jpg\n/old/pets/dogs/1.jpg\n/old/pets/gone.jpg\n")
    (tmp_path / "other.txt").write_text("/old/far/9.jpg\n")
    before, now = scan(tmp_path / "old.txt"), scan(tmp_path / "old.txt", root=pets)
    assert (before.root, now.root) == (b"/old/pets", os.fsencode(pets))
    assert (paths(now), labels(now), now.digest(), now.source) == (paths(before), labels(before), before.digest(),
                                                                   before.source)
    assert now.read(0)[0] == b"pets/cats/1.jpg"
    with pytest.raises(FileNotFoundError):
        now.read(2)
    both = scan([tmp_path / "old.txt", tmp_path / "other.txt"], root=tmp_path)  # the root stands for /old
    assert (both.root, paths(both)) == (os.fsencode(tmp_path), [b"far/9.jpg", b"pets/cats/1.jpg", b"pets/dogs/1.jpg",
                                                                b"pets/gone.jpg"])
    assert both.read(0)[0] == b"far/9.jpg"


def test_the_root_of_relative_paths(pets, tmp_path):
    put(tmp_path, "lists/a.txt")
    (tmp_path / "lists" / "a.txt").write_text("cats/1.jpg\ndogs/1.jpg\n")
    assert scan(tmp_path / "lists" / "a.txt", root=pets).read(1)[0] == b"pets/dogs/1.jpg"


def test_what_is_not_a_list_lies_in_the_root(pets, tmp_path):
    for given, expected in (
            (pets / "cats", [b"pets/cats/1.jpg", b"pets/cats/young/2.jpg"]), (pets / "dogs" / "1.jpg",
                                                                              [b"pets/dogs/1.jpg"]),
            ([str(pets / "{a,b}.tar"), tmp_path / "list.csv"],
             [b"far/9.jpg", b"missing.jpg", b"pets/a.tar/x.jpg", b"pets/b.tar/y.jpg", b"pets/dogs/1.jpg"])):
        listing = scan(given, root=tmp_path)
        assert (listing.root, paths(listing)) == (os.fsencode(tmp_path), expected)
        assert b"" not in {listing.read(row)[0] for row in range(len(expected)) if expected[row] != b"missing.jpg"}
    assert labels(scan(pets / "cats", root=tmp_path)) == ["cats", "young"]
    assert equal(scan(pets, root=pets), scan(pets))


def test_a_root_that_cannot_be(pets, tmp_path):
    with pytest.raises(UsageError, match=r"The root '.*nowhere' is not a folder"):
        scan(pets, root=tmp_path / "nowhere")
    with pytest.raises(UsageError, match=r"'.*cats' is not inside the root '.*dogs'"):
        scan([pets / "dogs", pets / "cats"], root=pets / "dogs")
    (tmp_path / "old.txt").write_text("/old/pets/cats/1.jpg\n/old/pets/dogs/1.jpg\n")
    with pytest.raises(CollectionError, match=r"Nothing was found in the root '.*far' of 2 images looked for, such "
                                              r"as '.*far/cats/1.jpg'. The root stands for '/old/pets'"):
        scan(tmp_path / "old.txt", root=tmp_path / "far")


# ---------------------------------------------------------------------------------------------- states


def require_states_as_read(listing):
    """`states` says of every image what `read` does, and -1 of those that it cannot read."""
    states = listing.states()
    assert states.shape == (len(listing),)
    for row, state in enumerate(states.tolist()):
        try:
            expected = listing.read(row)[1]
        except (OSError, UnreadableImage, ValueError):
            expected = (-1, -1)
        assert state == tuple(expected), listing.paths[row]
    rows = list(range(len(listing)))[::-2]
    assert listing.states(rows).tolist() == states[rows].tolist()
    assert len(listing.states([])) == 0
    return states


@pytest.mark.parametrize("slow", [False, True])
def test_states_are_those_of_reading(pets, tmp_path, monkeypatch, slow):
    monkeypatch.setattr("mocoembed.data.listing.AT_A_TIME", 2)
    monkeypatch.setattr("mocoembed.data.listing.SLOW_LOOK_UP", 0.0 if slow else 1e9)
    put(tmp_path, "more/1.jpg", "more/2.jpg", "more/empty.jpg", b"more/\xff\n.jpg", "more/gone.jpg", "aim.bin")
    os.utime(tmp_path / "more" / "1.jpg", ns=(1, 123_456_789_012_345_678))
    (tmp_path / "more" / "empty.jpg").write_bytes(b"")
    (tmp_path / "more" / "linked.jpg").symlink_to("../aim.bin")
    (tmp_path / "more" / "broken.jpg").symlink_to("nowhere")
    (tmp_path / "more" / "loop.jpg").symlink_to("loop.jpg")
    (tmp_path / "more" / "device.jpg").symlink_to("/dev/null")
    os.mkfifo(tmp_path / "more" / "pipe.jpg")
    (tmp_path / "odd.jsonl").write_text('{"path": "pets"}\n{"path": "more/1.jpg/x"}\n')
    listing = scan([tmp_path / "more", tmp_path / "odd.jsonl", pets, str(pets / "{a,b}.tar")])
    (tmp_path / "more" / "gone.jpg").unlink()
    states = require_states_as_read(listing)
    state = dict(zip(paths(listing), states.tolist()))
    assert state[b"more/1.jpg"] == (10, 123_456_789_012_345_678)
    assert state[b"more/empty.jpg"][0] == 0
    assert state[b"pets/a.tar/x.jpg"][0] == 4
    assert sorted(path for path, (size, _) in state.items() if size < 0) == [
        b"more/1.jpg/x", b"more/broken.jpg", b"more/device.jpg", b"more/gone.jpg", b"more/loop.jpg", b"more/pipe.jpg",
        b"pets"]


def test_states_in_shards_that_changed_or_went(pets, tmp_path):
    write_tar(pets / "c.tar", [("link.jpg", b"")], tarfile.SYMTYPE)
    listing = scan(pets / "{a,b,c}.tar")
    assert require_states_as_read(listing)["size"].tolist() == [4, 4, -1]
    write_tar(pets / "a.tar", [("x.jpg", b"changed")])
    assert require_states_as_read(listing)["size"].tolist() == [-1, 4, -1]
    (pets / "b.tar").unlink()
    assert require_states_as_read(listing)["size"].tolist() == [-1, -1, -1]


# ---------------------------------------------------------------------------------------------- all the way


@pytest.fixture
def shards(tmp_path, images):
    """The images of `images` in two shards, labelled by .cls; as a person would give them."""
    files = sorted(images.rglob("*.*"))
    for number in range(2):
        members = []
        for path in files[number::2]:
            members += [(f"{path.parent.name}/{path.name}", path.read_bytes()),
                        (f"{path.parent.name}/{path.stem}.cls", path.parent.name.encode())]
        write_tar(tmp_path / f"{number}.tar", members)
    return str(tmp_path / "{0..1}.tar")


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_of_shards_and_lists_are_those_of_the_folder(tmp_path, images, shards, workers):
    files = sorted(os.fsencode(path) for path in images.rglob("*.*"))
    (tmp_path / "list.txt").write_bytes(b"\n".join(files[::-1]))
    whole = {path: pixels for batch in evaluation_batches(scan(images), TRANSFORM, 24, 0)
             for path, pixels in zip(files, batch.pixels)}
    listed = scan(tmp_path / "list.txt")
    assert paths(listed) == paths(scan(images))
    for listing in (listed, scan(shards)):
        for batch in evaluation_batches(listing, TRANSFORM, 7, workers):
            for row, pixels in enumerate(batch.pixels, batch.first):
                name = listing.paths[row].split(b".tar/")[-1]
                assert torch.equal(pixels, whole[os.path.join(os.fsencode(images), name)])


def test_shards_are_embedded_searched_and_shown(fresh_workspace, shards, tmp_path, run_cli, images):
    workspace = str(fresh_workspace)
    with pytest.raises(MismatchError, match="another collection"):
        embed_images(EmbedConfig(shards, workspace=workspace, workers=0, device="cpu"))
    embed_images(EmbedConfig(shards, workspace=workspace, workers=0, device="cpu", fresh=True))
    with EmbeddingFile(fresh_workspace / "embeddings.h5") as file:
        assert file.source == os.fsencode(shards)
        assert file.paths()[0] == b"0.tar/blue/000.png"
        assert file.label_names == ["blue", "green", "red"]
    build_index(IndexConfig(workspace=workspace))
    inside = str(tmp_path / "1.tar" / "red" / "007.jpg")
    (found,) = results = search_images(SearchConfig((inside,), workspace=workspace, k=3, device="cpu"))
    assert (found.hits[0].path, found.hits[0].label) == (inside, "red")
    contact_sheet(results, tmp_path / "hits.png")
    status, out, _ = run_cli("search", images / "red" / "007.jpg", "-k", "1", "--format", "paths", "--workspace",
                             workspace)
    assert (status, out.strip()) == (0, inside)


def test_pretraining_on_a_list_is_that_on_its_folder_and_shards_do_too(tmp_path, images, shards):
    (tmp_path / "list.csv").write_text("path\n" + "".join(f"{path}\n" for path in sorted(images.rglob("*.*"))[::-1]))
    results = [pretrain(PretrainConfig.of(
        "small", collection, workspace=str(tmp_path / str(number)), width=0.125, stem="3x3s2", dim=16, queue_size=20,
        batch_size=8, bn_groups=2, image_size=32, epochs=1, workers=0, device="cpu"))
        for number, collection in enumerate((images, tmp_path / "list.csv", shards))]
    assert [result.steps for result in results] == [3, 3, 3]
    assert results[0].fingerprint == results[1].fingerprint


def test_two_lists_in_one_folder_are_two_collections(fresh_workspace, tmp_path, images):
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text(f"{images}/red/001.jpg\n{images}/blue/001.jpg\n")
    settings = {"workspace": str(fresh_workspace), "workers": 0, "device": "cpu"}
    embed_images(EmbedConfig(str(tmp_path / "a.txt"), fresh=True, **settings))
    with pytest.raises(MismatchError, match="another collection"):
        embed_images(EmbedConfig(str(tmp_path / "b.txt"), **settings))


def test_what_a_list_names_is_embedded_or_reported(fresh_workspace, tmp_path, images):
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "text").write_text("hello")
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"path": path}) + "\n" for path in (
        str(images / "red" / "001.jpg"), str(tmp_path / "folder.jpg"), str(tmp_path / "text"), "missing.jpg")))
    result = embed_images(EmbedConfig(str(tmp_path / "a.jsonl"), workspace=str(fresh_workspace), workers=0,
                                      device="cpu", fresh=True))
    assert (result.listed, result.embedded) == (4, 1)
    assert {one.error for one in result.failed} == {"IsADirectoryError", "UnidentifiedImageError", "FileNotFoundError"}


# ---------------------------------------------------------------------------------------------- kept listings


@pytest.fixture
def keeping(monkeypatch, tmp_path):
    """Keep every listing, in a cache folder of the test's own; the folder."""
    monkeypatch.setenv("MOCOEMBED_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(listing_cache, "CACHED_FROM", 1)
    monkeypatch.setattr(listing_cache, "SETTLED_NS", 0)
    return tmp_path / "cache" / "listings"


@pytest.fixture
def no_scan(monkeypatch):
    """`no_scan()`: from now on nothing can be scanned."""
    def forbid():
        for name in ("find_in_folder", "find_in_list", "find_in_shards"):
            monkeypatch.setattr(f"mocoembed.data.images.{name}", lambda *arguments: pytest.fail("scanned again"))
    return forbid


@pytest.mark.parametrize("kind", ["folder", "list", "shards"])
def test_a_listing_is_kept_and_is_the_same(keeping, no_scan, tmp_path, images, shards, kind):
    (tmp_path / "list.txt").write_text("".join(f"{path}\n" for path in sorted(images.rglob("*.*")) * 2))
    collection = {"folder": images, "list": tmp_path / "list.txt", "shards": shards}[kind]
    time.sleep(0.02)
    first = scan(collection)
    assert len(list(keeping.iterdir())) == 1
    no_scan()
    assert equal(scan(collection), first)


def test_a_kept_listing_sees_what_is_added_removed_and_renamed(keeping, make_images, tmp_path):
    folder = make_images(tmp_path / "p")
    new, red = folder / "red" / "new.jpg", folder / "red"
    for change in (lambda: new.write_bytes(b"x"), new.unlink, lambda: (red / "001.jpg").rename(red / "1.jpg"),
                   (folder / "new").mkdir, lambda: (folder / "new").rename(folder / "newer"), (folder / "newer").rmdir):
        time.sleep(0.02)
        before = scan(folder)
        times = folder.stat(), (folder / "red").stat()
        assert equal(scan(folder), before)
        time.sleep(0.02)
        change()
        os.utime(folder, ns=(times[0].st_atime_ns, times[0].st_mtime_ns))  # as rsync and tar set it
        os.utime(folder / "red", ns=(times[1].st_atime_ns, times[1].st_mtime_ns))
        seen = sorted(os.path.relpath(os.fsencode(path), os.fsencode(folder)) for path in folder.rglob("*.*"))
        assert paths(scan(folder)) == seen


def test_a_damaged_kept_listing_is_not_used(keeping, images):
    time.sleep(0.02)
    whole = scan(images)
    (file,) = keeping.iterdir()
    data = file.read_bytes()
    body = data.index(b"\n") + 1
    for damaged in (b"", b"{}\n", data[:-1], data[:body + 9] + bytes([data[body + 9] ^ 1]) + data[body + 10:],
                    data.replace(b'"arrays"', b'"array"'), data.replace(b"mocoembed listing", b"mocoembed listinG")):
        file.write_bytes(damaged)
        assert equal(scan(images), whole)


def test_small_or_unsettled_listings_and_folders_that_cannot_be_written(keeping, images, tmp_path, monkeypatch):
    monkeypatch.setattr(listing_cache, "SETTLED_NS", 10**18 * 3)
    scan(images)
    assert not keeping.exists()
    monkeypatch.setattr(listing_cache, "SETTLED_NS", 0)
    (tmp_path / "cache").write_text("a file")
    notes = []
    assert len(scan(images, note=notes.append)) == 24
    assert "could not be kept for the next run" in notes[0]


def test_a_long_scan_says_how_far_it_is(tmp_path, images, monkeypatch):
    clock = iter(range(100))
    monkeypatch.setattr("mocoembed.data.images.time.monotonic", lambda: next(clock))
    notes = []
    scan(images, note=notes.append)
    assert notes[0] == f"listing {images}: 0 images so far"


def test_a_listing_is_shared_not_copied_when_it_is_sent_to_a_process(shards):
    from multiprocessing.reduction import ForkingPickler

    listing = scan(shards)
    large = dict.fromkeys(range(200_000), listing.paths[0])
    listing.paths.__init__(list(large.values()))
    assert len(ForkingPickler.dumps(listing.paths)) < 2000
    again = pickle.loads(pickle.dumps(scan(shards)))
    assert equal(again, scan(shards))
    assert np.array_equal(again.labels, scan(shards).labels)
