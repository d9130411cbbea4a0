"""Tar files as `tar` and `cat` make them, against what `tar` unpacks."""

import os
import subprocess
import tarfile

import numpy as np
import pytest
from test_collections import labels, paths, write_tar

from mocoembed.config import EmbedConfig
from mocoembed.data.decode import UnreadableImage
from mocoembed.data.images import scan
from mocoembed.data.shards import read_path
from mocoembed.data.tar_file import tar_members
from mocoembed.embed.extract import embed_images
from mocoembed.embed.store import EmbeddingFile
from mocoembed.errors import FormatError


def content(listing):
    return {path.split(b"/", 1)[1].decode(): listing.read(row)[0] for row, path in enumerate(listing.paths)}


def unpacked(tar, folder):
    """What GNU tar makes of a file, reading over its end marks: {name: bytes} of the images."""
    folder.mkdir()
    subprocess.run(["tar", "--ignore-zeros", "-xf", tar, "-C", folder], check=True)
    return {os.path.relpath(path, folder): path.read_bytes() for path in folder.rglob("*.jpg")}


def cat(path, *parts):
    path.write_bytes(b"".join(part if isinstance(part, bytes) else part.read_bytes() for part in parts))
    return path


@pytest.fixture
def two(tmp_path):
    """Two tar files by GNU tar, padded to 10 kB, of four images each, one of which both have."""
    for name, numbers in (("a", range(4)), ("b", range(3, 7))):
        (tmp_path / name).mkdir()
        for i in numbers:
            (tmp_path / name / f"{i}.jpg").write_bytes(f"{name}{i}".encode() * 300)
            (tmp_path / name / f"{i}.cls").write_text(f"{name} {i}\n")
        subprocess.run(["tar", "-cf", tmp_path / f"{name}.tar", "-C", tmp_path / name, "."], check=True)
    return tmp_path / "a.tar", tmp_path / "b.tar"


def test_tar_files_one_after_the_other_are_all_read(two, tmp_path):
    both = cat(tmp_path / "both.tar", *two)
    listing = scan(both)
    assert content(listing) == unpacked(both, tmp_path / "out")
    assert labels(listing) == [f"{'a' if i < 3 else 'b'} {i}" for i in range(7)]
    assert listing.repeated == 1
    assert read_path(tmp_path / "both.tar" / "6.jpg") == b"b6" * 300
    zeros = bytes(512 * 3)
    for parts in ((zeros, *two), (two[0], zeros, two[1], zeros), (two[0], two[1], bytes(100)),
                  (two[0], bytes(3 << 20), two[1])):
        assert content(scan(cat(tmp_path / "more.tar", *parts))) == content(listing)


@pytest.mark.parametrize("after", [b"x", b"x" * 512, b"\0" * 511 + b"x", b"\0" * 10_240 + b"more", b"second"])
def test_what_follows_the_end_is_not_dropped_without_a_word(two, tmp_path, after):
    tail = two[1].read_bytes()[100:] if after == b"second" else after
    with pytest.raises(FormatError, match=r"after the end mark, from byte \d+ on, there are neither zeros nor another"):
        scan(cat(tmp_path / "c.tar", two[0], tail))


def test_the_second_of_two_is_as_whole_as_the_first(two, tmp_path):
    whole = two[1].read_bytes()
    used = len(whole.rstrip(b"\0")) // 512 * 512 + 512
    for cut in (100, 600, used - 700, used):
        with pytest.raises(FormatError, match=r"neither zeros nor another|no end mark|not a whole"):
            scan(cat(tmp_path / "c.tar", two[0], whole[:cut]))


def test_the_last_of_several_members_with_a_name_counts(tmp_path):
    members = [("1.jpg", b"first"), ("1.cls", b"old"), ("./1.jpg", b"second"), (".//1.cls", b"new"),
               ("2.json", b"{broken"), ("2.jpg", b"two"), ("2.json", b'{"label": "later"}')]
    listing = scan(write_tar(tmp_path / "a.tar", members))
    assert (content(listing), labels(listing), listing.repeated) == (
        {"1.jpg": b"second", "2.jpg": b"two"}, ["new", "later"], 1)
    assert content(listing) == unpacked(tmp_path / "a.tar", tmp_path / "out")


def test_an_image_that_was_appended_again_is_embedded_as_it_is_now(tmp_path, images, fresh_workspace):
    old, new = ((images / name).read_bytes() for name in ("red/001.jpg", "blue/001.jpg"))
    write_tar(tmp_path / "a.tar", [("1.jpg", old), ("1.cls", b"x"), ("1.jpg", new)])
    write_tar(tmp_path / "b.tar", [("1.jpg", new), ("1.cls", b"x")])
    vectors = []
    for name in ("a", "b"):
        result = embed_images(EmbedConfig(str(tmp_path / f"{name}.tar"), workspace=str(fresh_workspace), workers=0,
                                          device="cpu", output=str(tmp_path / f"{name}.h5")))
        with EmbeddingFile(result.path) as file:
            vectors.append(file.embeddings())
    assert np.array_equal(*vectors)


def test_names_are_normalised_and_none_leaves_the_shard(tmp_path):
    members = [("./000.jpg", b"0"), ("a//1.jpg", b"1"), ("a/b/../2.jpg", b"2"), ("./a/2.cls", b"two"),
               ("../up/x.jpg", b"no"), ("a/../../y.jpg", b"no"), ("/etc/z.jpg", b"no"), ("../up/x.cls", b"no")]
    listing = scan(write_tar(tmp_path / "a.tar", members))
    inside = [b"a.tar/000.jpg", b"a.tar/a/1.jpg", b"a.tar/a/2.jpg"]
    outside = [b"a.tar/../up/x.jpg", b"a.tar//etc/z.jpg", b"a.tar/a/../../y.jpg"]
    assert sorted(paths(listing)) == sorted(inside + outside)
    for row, path in enumerate(listing.paths):
        if path in inside:
            assert read_path(os.path.join(listing.root, path)) == listing.read(row)[0] == path[-5:-4]
        else:
            with pytest.raises(UnreadableImage, match="is that of a file outside its shard"):
                listing.read(row)
    assert labels(listing)[paths(listing).index(b"a.tar/a/2.jpg")] == "two"
    assert listing.skipped.total() == 1
    assert read_path(tmp_path / "a.tar" / "." / "a" / ".." / "000.jpg") == b"0"


def test_members_outside_are_reported_as_failed(tmp_path, images, fresh_workspace, run_cli):
    image = (images / "red" / "001.jpg").read_bytes()
    write_tar(tmp_path / "a.tar", [("./1.jpg", image), ("../2.jpg", image), ("/3.jpg", image)])
    status, out, err = run_cli("embed", tmp_path / "a.tar", "--workspace", fresh_workspace, "--fresh", "--workers", 0)
    assert (status, "1 embedded, 2 failed" in out.replace(" (1 new)", "")) == (0, True)
    assert "failed: 'a.tar/../2.jpg': its name, absolute or with '..', is that of a file out" in err


def test_hard_links_have_the_bytes_of_their_target(tmp_path):
    for name, data in (("1.jpg", b"one"), ("1.cls", b"cat")):
        (tmp_path / "f").mkdir(exist_ok=True)
        (tmp_path / "f" / name).write_bytes(data)
        os.link(tmp_path / "f" / name, tmp_path / "f" / name.replace("1", "2"))
    order = ["./1.jpg", "1.cls", "2.jpg", "2.cls", "1.jpg"]  # the last becomes a link to itself
    subprocess.run(["tar", "-cf", tmp_path / "a.tar", "-C", tmp_path / "f", *order], check=True)
    with tarfile.open(tmp_path / "a.tar") as tar:
        assert sum(member.islnk() for member in tar) == 3
    listing = scan(tmp_path / "a.tar")
    assert (content(listing), labels(listing)) == ({"1.jpg": b"one", "2.jpg": b"one"}, ["cat", "cat"])
    assert content(listing) == unpacked(tmp_path / "a.tar", tmp_path / "out")
    with tarfile.open(tmp_path / "b.tar", "w") as tar:
        info = tarfile.TarInfo("x.jpg")
        info.type, info.linkname = tarfile.LNKTYPE, "nowhere.jpg"
        tar.addfile(info)
    with pytest.raises(UnreadableImage, match="a link"):
        scan(tmp_path / "b.tar").read(0)


def test_labels_of_names_with_dots(tmp_path):
    """As WebDataset: `a.b.jpg` is the field `b.jpg` of the sample `a`, whose other fields are `b.cls` and `cls`."""
    members = ["0.75.jpg", "0.75.cls=three quarters", "0.80.jpg", "0.80.json={\"label\": 8}", "0.90.jpg", "0.cls=rest",
               "a.left.jpg", "a.left.cls=", "a.JSON={\"label\": \"A\"}", "b.jpg", "b.left.cls=no", "d.x/c.jpg",
               "d.cls=no", "c.cls=no", "e.f.g.jpg", "e.f.CLS=ef", "e.cls=e"]
    write_tar(tmp_path / "a.tar", [(name.partition("=")[0], name.partition("=")[2].encode()) for name in members])
    listing = scan(tmp_path / "a.tar")
    assert dict(zip([path.decode()[6:] for path in listing.paths], labels(listing))) == {
        "0.75.jpg": "three quarters", "0.80.jpg": "8", "0.90.jpg": "rest", "a.left.jpg": "A", "b.jpg": None,
        "d.x/c.jpg": None, "e.f.g.jpg": "ef"}


def test_hidden_folders_in_a_shard_are_left_out_as_on_the_disk(tmp_path):
    listing = scan(write_tar(tmp_path / "a.tar", [("a/.git/1.jpg", b""), (".x/2.jpg", b""), ("a/._3.jpg", b""),
                                                  ("./4.jpg", b"")]))
    assert (paths(listing), listing.skipped.total()) == ([b"a.tar/4.jpg"], 3)


def test_members_are_not_remembered(tmp_path):
    write_tar(tmp_path / "a.tar", [(f"{i}.jpg", b"") for i in range(50)])
    assert [member.name for member in tar_members(os.fsencode(tmp_path / "a.tar"))] == [f"{i}.jpg" for i in range(50)]
    with pytest.raises(FormatError, match="not a whole"):
        list(tar_members(os.fsencode(cat(tmp_path / "empty.tar"))))
